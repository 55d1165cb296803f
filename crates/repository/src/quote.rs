//! Go's `strconv.Quote`, in which restic keeps file names inside its JSON: any bytes become printable text.
//!
//! Source of the rules: <https://pkg.go.dev/strconv#Quote>. Which characters are printable is Unicode's choice
//! (letters, marks, numbers, punctuation, symbols), and the version of Unicode is that of the Go release.

use crate::json;

/// Appends `name` quoted, without the outer quotes, and escaped once more for JSON.
pub(crate) fn write_name(name: &[u8], out: &mut Vec<u8>) {
    let plain = |byte: &u8| matches!(byte, b' '..=b'~') && !matches!(byte, b'"' | b'\\' | b'<' | b'>' | b'&');
    if name.iter().all(plain) {
        return out.extend_from_slice(name);
    }
    let mut quoted = Vec::with_capacity(name.len() + 16);
    quote(name, &mut quoted);
    json::write_escaped(&quoted, out);
}

fn quote(name: &[u8], out: &mut Vec<u8>) {
    for chunk in name.utf8_chunks() {
        for c in chunk.valid().chars() {
            let code = u32::from(c);
            match c {
                '"' => out.extend_from_slice(b"\\\""),
                '\\' => out.extend_from_slice(b"\\\\"),
                '\u{7}' => out.extend_from_slice(b"\\a"),
                '\u{8}' => out.extend_from_slice(b"\\b"),
                '\u{c}' => out.extend_from_slice(b"\\f"),
                '\n' => out.extend_from_slice(b"\\n"),
                '\r' => out.extend_from_slice(b"\\r"),
                '\t' => out.extend_from_slice(b"\\t"),
                '\u{b}' => out.extend_from_slice(b"\\v"),
                c if is_printable(c) => out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
                '\0'..'\u{80}' => out.extend_from_slice(format!("\\x{code:02x}").as_bytes()),
                '\u{80}'..='\u{ffff}' => out.extend_from_slice(format!("\\u{code:04x}").as_bytes()),
                _ => out.extend_from_slice(format!("\\U{code:08x}").as_bytes()),
            }
        }
        for byte in chunk.invalid() {
            out.extend_from_slice(format!("\\x{byte:02x}").as_bytes());
        }
    }
}

/// The inverse of quoting, on the string that JSON held; `None` if Go would refuse it.
pub(crate) fn unquote(quoted: &[u8]) -> Option<Vec<u8>> {
    let mut name = Vec::with_capacity(quoted.len());
    let mut rest = quoted;
    while let Some((byte, tail)) = rest.split_first() {
        rest = tail;
        match byte {
            b'"' | b'\n' => return None,
            b'\\' => (),
            plain => {
                name.push(*plain);
                continue;
            }
        }
        let (escape, tail) = rest.split_first()?;
        rest = tail;
        match escape {
            b'a' => name.push(7),
            b'b' => name.push(8),
            b'f' => name.push(12),
            b'n' => name.push(b'\n'),
            b'r' => name.push(b'\r'),
            b't' => name.push(b'\t'),
            b'v' => name.push(11),
            b'\\' | b'"' => name.push(*escape),
            b'x' => name.push(number(&mut rest, 2, 16)? as u8),
            // Octal: three digits, the first of which was taken.
            b'0'..=b'7' => {
                let high = u32::from(escape - b'0') * 64;
                name.push(u8::try_from(high + number(&mut rest, 2, 8)?).ok()?);
            }
            b'u' | b'U' => {
                let code = number(&mut rest, if *escape == b'u' { 4 } else { 8 }, 16)?;
                name.extend_from_slice(char::from_u32(code)?.encode_utf8(&mut [0; 4]).as_bytes());
            }
            _ => return None,
        }
    }
    Some(name)
}

/// Takes so many digits.
fn number(text: &mut &[u8], digits: usize, radix: u32) -> Option<u32> {
    let (number, rest) = text.split_at_checked(digits)?;
    *text = rest;
    number.iter().try_fold(0u32, |value, digit| {
        value.checked_mul(radix)?.checked_add(char::from(*digit).to_digit(radix)?)
    })
}

/// Go's `strconv.IsPrint`.
fn is_printable(c: char) -> bool {
    let code = u32::from(c);
    match code {
        0..0x80 => matches!(code, 0x20..0x7f),
        // The runs begin with one of the unprintable: after an even number of beginnings, this is the other.
        _ => STARTS.partition_point(|start| *start <= code).is_multiple_of(2),
    }
}

/// Where each run of [`RUNS`] begins.
const STARTS: [u32; RUNS.len()] = {
    let mut starts = [0; RUNS.len()];
    let (mut at, mut run) = (0x80, 0);
    while run < RUNS.len() {
        starts[run] = at;
        at += RUNS[run];
        run += 1;
    }
    starts
};

/// Lengths of runs of unprintable and printable characters, in turn, from U+0080: Unicode 15.0, which Go has
/// used since release 1.21; unprintable to the end.
#[rustfmt::skip]
const RUNS: [u32; 1421] = [
    33, 12, 1, 714, 2, 6, 4, 7, 1, 1, 1, 20, 1, 397, 1, 38, 2, 50, 2, 3, 1, 55, 8, 27, 4, 6, 17, 22, 1, 192,
    1, 48, 2, 59, 2, 101, 14, 59, 2, 49, 2, 15, 1, 28, 2, 1, 1, 11, 5, 31, 9, 74, 1, 161, 1, 8, 2, 2, 2, 22,
    1, 7, 1, 1, 3, 4, 2, 9, 2, 2, 2, 4, 8, 1, 4, 2, 1, 5, 2, 25, 2, 3, 1, 6, 4, 2, 2, 22, 1, 7, 1, 2, 1, 2,
    1, 2, 2, 1, 1, 5, 4, 2, 2, 3, 3, 1, 7, 4, 1, 1, 7, 17, 10, 3, 1, 9, 1, 3, 1, 22, 1, 7, 1, 2, 1, 5, 2,
    10, 1, 3, 1, 3, 2, 1, 15, 4, 2, 12, 7, 7, 1, 3, 1, 8, 2, 2, 2, 22, 1, 7, 1, 2, 1, 5, 2, 9, 2, 2, 2, 3,
    7, 3, 4, 2, 1, 5, 2, 18, 10, 2, 1, 6, 3, 3, 1, 4, 3, 2, 1, 1, 1, 2, 3, 2, 3, 3, 3, 12, 4, 5, 3, 3, 1, 4,
    2, 1, 6, 1, 14, 21, 5, 13, 1, 3, 1, 23, 1, 16, 2, 9, 1, 3, 1, 4, 7, 2, 1, 3, 2, 1, 2, 4, 2, 10, 7, 22,
    1, 3, 1, 23, 1, 10, 1, 5, 2, 9, 1, 3, 1, 4, 7, 2, 6, 2, 1, 4, 2, 10, 1, 3, 12, 13, 1, 3, 1, 51, 1, 3, 1,
    6, 4, 16, 2, 26, 1, 3, 1, 18, 3, 24, 1, 9, 1, 1, 2, 7, 3, 1, 4, 6, 1, 1, 1, 8, 6, 10, 2, 3, 12, 58, 4,
    29, 37, 2, 1, 1, 1, 5, 1, 24, 1, 1, 1, 23, 2, 5, 1, 1, 1, 7, 1, 10, 2, 4, 32, 72, 1, 36, 4, 39, 1, 36,
    1, 15, 1, 13, 37, 198, 1, 1, 5, 1, 2, 377, 1, 4, 2, 7, 1, 1, 1, 4, 2, 41, 1, 4, 2, 33, 1, 4, 2, 7, 1, 1,
    1, 4, 2, 15, 1, 57, 1, 4, 2, 67, 2, 32, 3, 26, 6, 86, 2, 6, 2, 640, 1, 28, 3, 89, 7, 22, 9, 24, 9, 20,
    12, 13, 1, 3, 1, 2, 12, 94, 2, 10, 6, 10, 6, 14, 1, 11, 6, 89, 7, 43, 5, 70, 10, 31, 1, 12, 4, 12, 4, 1,
    3, 42, 2, 5, 11, 44, 4, 26, 6, 11, 3, 62, 2, 65, 1, 29, 2, 11, 6, 10, 6, 14, 2, 31, 49, 77, 3, 47, 1,
    116, 8, 60, 3, 15, 3, 60, 7, 43, 2, 11, 8, 43, 5, 534, 2, 6, 2, 38, 2, 6, 2, 8, 1, 1, 1, 1, 1, 1, 1, 31,
    2, 53, 1, 15, 1, 14, 2, 6, 1, 19, 2, 3, 1, 9, 17, 24, 8, 47, 17, 2, 2, 27, 1, 13, 3, 33, 15, 33, 15,
    140, 4, 663, 25, 11, 21, 1812, 2, 32, 1, 349, 5, 45, 1, 1, 5, 1, 2, 56, 7, 2, 14, 24, 9, 7, 1, 7, 1, 7,
    1, 7, 1, 7, 1, 7, 1, 7, 1, 7, 1, 126, 34, 26, 1, 89, 12, 214, 26, 12, 5, 63, 1, 86, 2, 103, 5, 43, 1,
    94, 1, 84, 12, 47, 1, 29293, 3, 55, 9, 348, 20, 184, 8, 203, 5, 2, 1, 1, 1, 5, 24, 59, 3, 10, 6, 56, 8,
    70, 8, 12, 6, 116, 11, 30, 3, 78, 1, 11, 4, 33, 1, 55, 9, 14, 2, 10, 2, 103, 24, 28, 10, 6, 2, 6, 2, 6,
    9, 7, 1, 7, 1, 60, 4, 126, 2, 10, 6, 11172, 12, 23, 4, 49, 8452, 366, 2, 106, 38, 7, 12, 5, 5, 26, 1, 5,
    1, 1, 1, 2, 1, 2, 1, 125, 16, 445, 2, 54, 7, 1, 32, 42, 6, 51, 1, 19, 1, 4, 4, 5, 1, 135, 4, 190, 3, 6,
    2, 6, 2, 6, 2, 3, 3, 7, 1, 7, 13, 2, 2, 12, 1, 26, 1, 19, 1, 2, 1, 15, 2, 14, 34, 123, 5, 3, 4, 45, 3,
    88, 1, 13, 3, 1, 47, 46, 130, 29, 3, 49, 15, 28, 4, 36, 9, 30, 5, 43, 5, 30, 1, 37, 4, 14, 42, 158, 2,
    10, 6, 36, 4, 36, 4, 40, 8, 52, 11, 12, 1, 15, 1, 7, 1, 2, 1, 11, 1, 15, 1, 7, 1, 2, 67, 311, 9, 22, 10,
    8, 24, 6, 1, 42, 1, 9, 69, 6, 2, 1, 1, 44, 1, 2, 3, 1, 2, 23, 1, 72, 8, 9, 48, 19, 1, 2, 5, 33, 3, 27,
    5, 1, 64, 56, 4, 20, 2, 50, 1, 2, 5, 8, 1, 3, 1, 29, 2, 3, 4, 10, 7, 9, 7, 64, 32, 39, 4, 12, 9, 54, 3,
    29, 2, 27, 5, 26, 7, 4, 12, 7, 80, 73, 55, 51, 13, 51, 7, 46, 8, 10, 294, 31, 1, 42, 1, 3, 2, 2, 75, 43,
    8, 42, 22, 26, 38, 28, 20, 23, 9, 78, 4, 36, 9, 62, 1, 5, 13, 25, 7, 10, 6, 53, 1, 18, 8, 39, 9, 96, 1,
    20, 11, 18, 1, 47, 62, 7, 1, 1, 1, 4, 1, 15, 1, 11, 6, 59, 5, 10, 6, 4, 1, 8, 2, 2, 2, 22, 1, 7, 1, 2,
    1, 5, 1, 10, 2, 2, 2, 3, 2, 1, 6, 1, 5, 7, 2, 7, 3, 5, 139, 92, 1, 5, 30, 72, 8, 10, 166, 54, 2, 38, 34,
    69, 11, 10, 6, 13, 19, 58, 6, 10, 54, 27, 2, 15, 4, 23, 185, 60, 100, 83, 12, 8, 2, 1, 2, 8, 1, 2, 1,
    30, 1, 2, 2, 12, 9, 10, 70, 8, 2, 46, 2, 11, 27, 72, 8, 83, 13, 73, 7, 10, 246, 9, 1, 45, 1, 14, 10, 29,
    3, 32, 2, 22, 1, 14, 73, 7, 1, 2, 1, 44, 3, 1, 1, 2, 1, 9, 8, 10, 6, 6, 1, 2, 1, 37, 1, 2, 1, 6, 7, 10,
    310, 25, 7, 17, 1, 41, 3, 28, 86, 1, 15, 50, 13, 923, 102, 111, 1, 5, 11, 196, 2636, 99, 13, 1072, 16,
    22, 4010, 583, 8633, 569, 7, 31, 1, 10, 4, 81, 1, 10, 6, 30, 2, 6, 10, 70, 10, 10, 1, 7, 1, 21, 5, 19,
    688, 91, 101, 75, 4, 57, 7, 17, 64, 5, 11, 2, 14, 6136, 8, 1238, 42, 9, 8935, 4, 1, 7, 1, 2, 1, 291, 15,
    1, 29, 3, 2, 1, 14, 4, 8, 396, 2308, 107, 5, 13, 3, 9, 7, 10, 2, 4, 4704, 46, 2, 23, 9, 116, 60, 246,
    10, 39, 2, 74, 8, 112, 21, 70, 122, 20, 12, 20, 12, 87, 9, 25, 135, 85, 1, 71, 1, 2, 2, 1, 2, 2, 2, 4,
    1, 12, 1, 1, 1, 7, 1, 65, 1, 4, 2, 8, 1, 7, 1, 28, 1, 4, 1, 5, 1, 1, 3, 7, 1, 340, 2, 292, 2, 702, 15,
    5, 1, 15, 1104, 31, 6, 6, 213, 7, 1, 17, 2, 7, 1, 2, 1, 5, 5, 62, 33, 1, 112, 45, 3, 14, 2, 10, 4, 2,
    320, 31, 17, 58, 5, 1, 464, 42, 742, 7, 1, 4, 1, 2, 1, 15, 1, 197, 2, 16, 41, 76, 4, 10, 4, 2, 785, 68,
    76, 61, 194, 4, 1, 27, 1, 2, 1, 1, 2, 1, 1, 10, 1, 4, 1, 1, 1, 1, 6, 1, 4, 1, 1, 1, 1, 1, 1, 3, 1, 2, 1,
    1, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 2, 1, 1, 2, 4, 1, 7, 1, 4, 1, 4, 1, 1, 1, 10, 1, 17, 5, 3, 1, 5, 1,
    17, 52, 2, 270, 44, 4, 100, 12, 15, 2, 15, 1, 15, 1, 37, 10, 174, 56, 29, 13, 44, 4, 9, 7, 2, 14, 6,
    154, 984, 4, 17, 3, 13, 3, 119, 4, 95, 6, 12, 4, 1, 15, 12, 4, 56, 8, 10, 6, 40, 8, 30, 2, 2, 78, 340,
    12, 14, 2, 13, 3, 9, 7, 46, 1, 7, 8, 14, 4, 9, 7, 9, 7, 147, 1, 55, 37, 10, 1030, 42720, 32, 4154, 6,
    222, 2, 5762, 14, 7473, 3103, 542, 1506, 4939, 5, 4192, 712016, 240, 196112,
];

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn quoted(name: &[u8]) -> String {
        let mut out = Vec::new();
        quote(name, &mut out);
        String::from_utf8(out).unwrap()
    }

    /// Pairs that Go's strconv.Quote gave.
    #[test]
    fn quotes_as_go_does() {
        for (name, expected) in [
            (&b"plain name.txt"[..], "plain name.txt"),
            (b"a\"b\\c'd", r#"a\"b\\c'd"#),
            (b"\x00\x07\x08\x09\x0a\x0b\x0c\x0d\x1b\x1f\x7f", r"\x00\a\b\t\n\v\f\r\x1b\x1f\x7f"),
            (b"\x80\xff\xc3", r"\x80\xff\xc3"),
            (b"\xe2\x82", r"\xe2\x82"),
            (b"\xed\xa0\x80", r"\xed\xa0\x80"),
            ("é漢😀".as_bytes(), "é漢😀"),
            ("\u{85}\u{a0}\u{ad}".as_bytes(), r"\u0085\u00a0\u00ad"),
            ("\u{200b}\u{2028}\u{feff}\u{fffd}".as_bytes(), "\\u200b\\u2028\\ufeff\u{fffd}"),
            ("\u{e000}\u{10ffff}\u{f0000}".as_bytes(), r"\ue000\U0010ffff\U000f0000"),
            ("<&>".as_bytes(), "<&>"),
        ] {
            assert_eq!(quoted(name), expected);
            assert_eq!(unquote(expected.as_bytes()).unwrap(), name);
        }
    }

    #[test]
    fn unquotes_what_go_accepts_and_no_more() {
        let name = [b"A\xff", "\u{e9}\u{1f600}".as_bytes()].concat();
        assert_eq!(unquote(br"\101\377\u00e9\U0001F600").unwrap(), name);
        for bad in [
            &br"\"[..],
            br"\q",
            br"\'",
            br"\x4",
            br"\xg0",
            br"\400",
            br"\ud800",
            br"\U00110000",
            b"\"",
            b"\n",
        ] {
            assert_eq!(unquote(bad), None);
        }
    }

    proptest! {
        #[test]
        fn any_name_comes_back(name in any::<Vec<u8>>(), text in any::<String>()) {
            for name in [&name[..], text.as_bytes()] {
                prop_assert_eq!(unquote(quoted(name).as_bytes()).unwrap(), name);
                let mut json = Vec::new();
                write_name(name, &mut json);
                let inner: String = serde_json::from_slice(&[b"\"", &json[..], b"\""].concat()).unwrap();
                prop_assert_eq!(inner, quoted(name));
            }
        }
    }
}
