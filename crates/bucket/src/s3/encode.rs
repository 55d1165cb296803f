//! Percent-encoding as Signature Version 4 wants it: byte by byte, nothing normalised.

/// Which bytes stand for themselves: `A-Z a-z 0-9 - . _ ~` (RFC 3986, unreserved).
const UNRESERVED: [bool; 256] = {
    let mut table = [false; 256];
    let mut i = 0;
    while i < 256 {
        let c = i as u8;
        table[i] = c.is_ascii_alphanumeric() || matches!(c, b'-' | b'.' | b'_' | b'~');
        i += 1;
    }
    table
};

/// Appends `bytes` with all but the unreserved ones as `%XX`; `/` stays if `slashes`.
pub(crate) fn percent(bytes: &[u8], slashes: bool, out: &mut String) {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    for &byte in bytes {
        if UNRESERVED[byte as usize] || (slashes && byte == b'/') {
            out.push(byte.into());
        } else {
            out.push('%');
            out.push(HEX[usize::from(byte >> 4)].into());
            out.push(HEX[usize::from(byte & 15)].into());
        }
    }
}

/// Decodes a key of a listing with `encoding-type=url`: `%XX`, and `+` for a space (stores write a plus sign as
/// `%2B`). A `%` that begins no escape stands for itself.
pub(crate) fn decode(text: &str) -> Vec<u8> {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let escape = || {
            let pair = bytes.get(at + 1..at + 3)?;
            Some((char::from(pair[0]).to_digit(16)? << 4 | char::from(pair[1]).to_digit(16)?) as u8)
        };
        match byte {
            b'+' => out.push(b' '),
            b'%' if let Some(value) = escape() => {
                out.push(value);
                at += 2;
            }
            other => out.push(other),
        }
        at += 1;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn paths_keep_dots_and_slashes_and_nothing_else() {
        let table: [(&[u8], &str); 5] = [
            (b"a/../b//./c", "a/../b//./c"),
            (b"/lead", "/lead"),
            (b"a b+c%41?#&=", "a%20b%2Bc%2541%3F%23%26%3D"),
            ("é~_-".as_bytes(), "%C3%A9~_-"),
            (b"\x00\xff\n", "%00%FF%0A"),
        ];
        for (key, expected) in table {
            let mut out = String::new();
            percent(key, true, &mut out);
            assert_eq!(out, expected);
        }
        let mut out = String::new();
        percent(b"a/b", false, &mut out);
        assert_eq!(out, "a%2Fb");
    }

    #[test]
    fn listings_are_decoded_leniently() {
        for (text, expected) in
            [("a+b%2Bc", "a b+c"), ("%", "%"), ("%4", "%4"), ("%zz%41", "%zzA"), ("%+1", "% 1")]
        {
            assert_eq!(decode(text), expected.as_bytes(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_survive(bytes in prop::collection::vec(any::<u8>(), 0..64), slashes: bool) {
            let mut text = String::new();
            percent(&bytes, slashes, &mut text);
            prop_assert_eq!(decode(&text), bytes);
        }
    }
}
