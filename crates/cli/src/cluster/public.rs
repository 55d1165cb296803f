//! What of an error may stand where everybody reads it: no endpoint, no address of a machine.

/// The text with every endpoint and address of a machine left out, and at most `most` bytes of it.
pub fn public(text: &str, most: usize) -> String {
    let words: Vec<String> = text.split(' ').map(word).collect();
    shortened(&words.join(" "), most)
}

/// At most so many bytes, cut between two characters.
pub fn shortened(text: &str, most: usize) -> String {
    const DOTS: &str = "…";
    if text.len() <= most {
        return text.to_owned();
    }
    let mut end = most.saturating_sub(DOTS.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}{DOTS}", &text[..end])
}

fn word(word: &str) -> String {
    if let Some(at) = word.find("http://").or_else(|| word.find("https://")) {
        // `s3:https://host:port/bucket/prefix` is the bucket and the prefix, `(https://host)` nothing.
        let authority = &word[at..][word[at..].find("//").map_or(0, |slashes| slashes + 2)..];
        let end = authority.find(['/', ')', ',', '"', '\'', '?', '#']).unwrap_or(authority.len());
        let before = word[..at].trim_end_matches("s3:");
        let rest = authority[end..].trim_start_matches('/');
        let rest = if rest.starts_with(char::is_alphanumeric) {
            format!("s3://{rest}")
        } else {
            format!("the store{rest}")
        };
        return format!("{before}{rest}");
    }
    let bare = word.trim_matches(|c: char| !c.is_ascii_alphanumeric() && c != '[' && c != ']' && c != ':');
    let bare = bare.trim_end_matches(':');
    let is_port = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let named = bare.rsplit_once(':').is_some_and(|(host, port)| {
        is_port(port)
            && (host.contains('.') || host == "localhost")
            && host.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'.' || b == b'-')
    });
    let is_machine = named
        || bare.parse::<std::net::SocketAddr>().is_ok()
        || bare.trim_matches(['[', ']']).parse::<std::net::IpAddr>().is_ok();
    if is_machine { word.replace(bare, "the store") } else { word.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_left_out_and_buckets_are_not() {
        for (text, shown) in [
            (
                "reading config in s3:http://10.0.0.7:9000/backups/orders: no such object",
                "reading config in s3://backups/orders: no such object",
            ),
            ("opening s3://backups: access denied", "opening s3://backups: access denied"),
            ("(https://minio.internal:9000)", "(the store)"),
            ("tcp connect error: 127.0.0.1:9000: refused", "tcp connect error: the store: refused"),
            ("connecting to [::1]:9000, twice", "connecting to the store, twice"),
            ("connecting to minio.demo.svc:9000", "connecting to the store"),
            ("https://minio.internal", "the store"),
            ("snapshot run:12 and key a:b", "snapshot run:12 and key a:b"),
        ] {
            assert_eq!(public(text, 200), shown, "{text}");
        }
    }

    #[test]
    fn a_long_text_ends_between_two_characters() {
        assert_eq!(shortened("ääää", 6), "ä…");
        assert_eq!(shortened("abc", 3), "abc");
    }
}
