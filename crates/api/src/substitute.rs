//! Variables in texts of the catalogue: `${name}` and `${name:=default}`.

use std::collections::BTreeMap;

/// The text with its variables replaced. One that nobody set, or that is empty, becomes its default, or nothing. What is no
/// variable stays as it is.
pub fn substitute(text: &str, variables: &BTreeMap<String, String>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find("${") {
        let (before, from) = rest.split_at(start);
        out.push_str(before);
        let Some((inside, after)) = from[2..].split_once('}') else {
            rest = from;
            break;
        };
        let (name, default) = inside.split_once(":=").unwrap_or((inside, ""));
        let value = variables.get(name).map(String::as_str).filter(|value| !value.is_empty());
        out.push_str(value.unwrap_or(default));
        rest = after;
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_have_values_defaults_or_nothing() {
        let all = BTreeMap::from([("a".to_owned(), "1".to_owned()), ("empty".to_owned(), String::new())]);
        for (text, expected) in [
            ("", ""),
            ("plain $a {a} $", "plain $a {a} $"),
            ("${a}", "1"),
            ("x${a:=2}y${b:=2}z", "x1y2z"),
            ("${b}", ""),
            ("${empty:=full}", "full"),
            ("--paths=${paths:=/kubestash-data}", "--paths=/kubestash-data"),
            ("open ${a", "open ${a"),
            ("${a}${a}", "11"),
        ] {
            assert_eq!(substitute(text, &all), expected, "{text}");
        }
    }

    #[test]
    fn values_are_not_read_again() {
        let all = BTreeMap::from([("a".to_owned(), "${b}".to_owned()), ("b".to_owned(), "x".to_owned())]);
        assert_eq!(substitute("${a}", &all), "${b}");
    }
}
