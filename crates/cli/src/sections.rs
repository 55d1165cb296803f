//! Files of the AWS tools: sections of `name = value` lines.

use std::collections::BTreeMap;

/// Sections of `name = value` lines. The line that fails is not shown whole: it may hold a secret.
pub fn parse(text: &str) -> Result<BTreeMap<String, BTreeMap<String, String>>, String> {
    let options = ini::ParseOption { enabled_quote: false, enabled_escape: false, ..Default::default() };
    let file = ini::Ini::load_from_str_opt(text, options).map_err(|e| format!("line {}", e.line))?;
    Ok(file
        .iter()
        .filter_map(|(name, values)| {
            let values = values.iter().map(|(k, v)| (k.to_owned(), v.trim().to_owned())).collect();
            Some((name?.trim().to_owned(), values))
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_does_not_parse_is_named_without_its_contents() {
        let why = parse("[a]\nx = 1\nsecret\n").unwrap_err();
        assert!(why.starts_with("line ") && !why.contains("secret"), "{why}");
    }
}
