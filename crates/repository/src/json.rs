//! A JSON reader for the two texts that are read by the million, nodes and index entries: it pulls values out
//! of the bytes without a tree in between, and remembers where each one stood.

use std::borrow::Cow;

use crate::{Error, Id};

/// How deep a value that is skipped may nest.
const MAX_DEPTH: u32 = 64;

/// Why and where the text is not what was expected.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct JsonError {
    at: usize,
    expected: &'static str,
}

pub(crate) type JsonResult<T> = Result<T, JsonError>;

impl JsonError {
    /// The error of the repository: `what` is damaged.
    pub(crate) fn of(self, what: &'static str) -> Error {
        Error::damaged(what, format!("expected {} at byte {}", self.expected, self.at))
    }
}

/// A position in a text.
#[derive(Clone)]
pub(crate) struct Scanner<'a> {
    text: &'a [u8],
    at: usize,
}

impl<'a> Scanner<'a> {
    pub(crate) fn new(text: &'a [u8]) -> Self {
        Scanner { text, at: 0 }
    }

    /// The text from byte `at`, which an earlier [`position`](Self::position) was.
    pub(crate) fn resume(text: &'a [u8], at: usize) -> Self {
        Scanner { text, at }
    }

    pub(crate) fn position(&self) -> usize {
        self.at
    }

    /// The bytes between an earlier position and this one.
    pub(crate) fn since(&self, start: usize) -> &'a [u8] {
        &self.text[start..self.at]
    }

    pub(crate) fn error<T>(&self, expected: &'static str) -> JsonResult<T> {
        Err(JsonError { at: self.at, expected })
    }

    /// The next byte that is not white space, without taking it.
    #[inline]
    pub(crate) fn peek(&mut self) -> Option<u8> {
        loop {
            match self.text.get(self.at) {
                Some(b' ' | b'\n' | b'\r' | b'\t') => self.at += 1,
                next => return next.copied(),
            }
        }
    }

    /// Takes `byte` if it comes next.
    #[inline]
    pub(crate) fn take(&mut self, byte: u8) -> bool {
        let found = self.peek() == Some(byte);
        self.at += usize::from(found);
        found
    }

    /// Takes exactly these bytes if they come next: the way a known writer writes.
    #[inline]
    pub(crate) fn take_literally(&mut self, bytes: &[u8]) -> bool {
        let found = self.text[self.at..].starts_with(bytes);
        self.at += if found { bytes.len() } else { 0 };
        found
    }

    pub(crate) fn expect(&mut self, byte: u8, expected: &'static str) -> JsonResult<()> {
        if self.take(byte) { Ok(()) } else { self.error(expected) }
    }

    /// Takes a `null` if it comes next.
    #[inline]
    pub(crate) fn take_null(&mut self) -> bool {
        self.peek() == Some(b'n') && self.take_literally(b"null")
    }

    /// The end of the text, after white space.
    pub(crate) fn end(&mut self) -> JsonResult<()> {
        if self.peek().is_none() { Ok(()) } else { self.error("the end of the text") }
    }

    /// A string as it stands between its quotes, and whether a backslash is in it.
    #[inline]
    fn raw_string(&mut self) -> JsonResult<(&'a [u8], bool)> {
        self.expect(b'"', "a string")?;
        let start = self.at;
        let mut escaped = false;
        loop {
            match self.text.get(self.at) {
                Some(b'"') => {
                    self.at += 1;
                    return Ok((&self.text[start..self.at - 1], escaped));
                }
                Some(b'\\') => {
                    escaped = true;
                    self.at += 2;
                }
                Some(0..0x20) => return self.error("no control character in a string"),
                Some(_) => self.at += 1,
                None => {
                    self.at = self.text.len();
                    return self.error("the end of a string");
                }
            }
        }
    }

    /// The rest of a string whose opening quote was taken, if nothing in it is escaped.
    #[inline]
    pub(crate) fn rest_of_plain_string(&mut self) -> Option<&'a [u8]> {
        let rest = &self.text[self.at..];
        let end = rest.iter().position(|byte| matches!(byte, b'"' | b'\\' | 0..0x20))?;
        self.at += end + 1;
        (rest[end] == b'"').then_some(&rest[..end])
    }

    /// The rest of an id whose opening quote was taken.
    #[inline]
    pub(crate) fn rest_of_id(&mut self) -> Option<Id> {
        let (id, rest) = self.text[self.at..].split_first_chunk::<{ Id::HEX_LEN }>()?;
        self.at += Id::HEX_LEN + 1;
        if *rest.first()? == b'"' { Id::from_hex(id).ok() } else { None }
    }

    /// A string with its escapes resolved. Lone surrogates become U+FFFD, as in Go.
    #[inline]
    pub(crate) fn string(&mut self) -> JsonResult<Cow<'a, [u8]>> {
        let (raw, escaped) = self.raw_string()?;
        if escaped { self.unescape(raw).map(Cow::Owned) } else { Ok(Cow::Borrowed(raw)) }
    }

    #[cold]
    fn unescape(&self, raw: &[u8]) -> JsonResult<Vec<u8>> {
        let mut text = Vec::with_capacity(raw.len());
        let mut rest = raw;
        while let Some(at) = rest.iter().position(|b| *b == b'\\') {
            text.extend_from_slice(&rest[..at]);
            let Some(escape) = rest.get(at + 1) else { return self.error("an escape") };
            rest = &rest[at + 2..];
            let plain = match escape {
                b'"' | b'\\' | b'/' => *escape,
                b'b' => 8,
                b'f' => 12,
                b'n' => b'\n',
                b'r' => b'\r',
                b't' => b'\t',
                b'u' => {
                    let Some(mut code) = hex4(rest) else { return self.error("four hexadecimal digits") };
                    rest = &rest[4..];
                    if let (0xd800..0xdc00, Some(low @ 0xdc00..0xe000)) =
                        (code, rest.strip_prefix(b"\\u").and_then(hex4))
                    {
                        code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
                        rest = &rest[6..];
                    }
                    let c = char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER);
                    text.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
                    continue;
                }
                _ => return self.error("a known escape"),
            };
            text.push(plain);
        }
        text.extend_from_slice(rest);
        Ok(text)
    }

    /// A non-negative integer.
    #[inline]
    pub(crate) fn u64(&mut self) -> JsonResult<u64> {
        self.peek();
        let start = self.at;
        let mut value = 0u64;
        while let Some(digit @ b'0'..=b'9') = self.text.get(self.at) {
            let Some(next) = value.checked_mul(10).and_then(|v| v.checked_add(u64::from(digit - b'0')))
            else {
                return self.error("a number below 2^64");
            };
            value = next;
            self.at += 1;
        }
        if self.at == start || matches!(self.text.get(self.at), Some(b'.' | b'e' | b'E')) {
            return self.error("a non-negative integer");
        }
        Ok(value)
    }

    #[inline]
    pub(crate) fn u32(&mut self) -> JsonResult<u32> {
        match u32::try_from(self.u64()?) {
            Ok(value) => Ok(value),
            Err(_) => self.error("a number below 2^32"),
        }
    }

    /// An id.
    #[inline]
    pub(crate) fn id(&mut self) -> JsonResult<Id> {
        let (raw, _) = self.raw_string()?;
        match Id::from_hex(raw) {
            Ok(id) => Ok(id),
            Err(_) => self.error("64 hexadecimal digits"),
        }
    }

    /// Calls `member` with each key of an object; it takes the value.
    pub(crate) fn object(
        &mut self,
        mut member: impl FnMut(&mut Self, &[u8]) -> JsonResult<()>,
    ) -> JsonResult<()> {
        self.expect(b'{', "an object")?;
        if self.take(b'}') {
            return Ok(());
        }
        loop {
            let key = self.string()?;
            self.expect(b':', "a colon")?;
            member(self, &key)?;
            if !self.take(b',') {
                return self.expect(b'}', "the end of an object");
            }
        }
    }

    /// Calls `element` before each element of an array; it takes the value.
    pub(crate) fn array(&mut self, mut element: impl FnMut(&mut Self) -> JsonResult<()>) -> JsonResult<()> {
        self.expect(b'[', "an array")?;
        if self.take(b']') {
            return Ok(());
        }
        loop {
            element(self)?;
            if !self.take(b',') {
                return self.expect(b']', "the end of an array");
            }
        }
    }

    /// Skips one value; yields its bytes.
    pub(crate) fn skip(&mut self) -> JsonResult<&'a [u8]> {
        self.peek();
        let start = self.at;
        self.skip_within(0)?;
        Ok(self.since(start))
    }

    fn skip_within(&mut self, depth: u32) -> JsonResult<()> {
        if depth > MAX_DEPTH {
            return self.error("less nesting");
        }
        match self.peek() {
            Some(b'"') => self.raw_string().map(|_| ()),
            Some(b'{') => self.object(|scanner, _| scanner.skip_within(depth + 1)),
            Some(b'[') => self.array(|scanner| scanner.skip_within(depth + 1)),
            Some(b't') if self.take_literally(b"true") => Ok(()),
            Some(b'f') if self.take_literally(b"false") => Ok(()),
            Some(b'n') if self.take_literally(b"null") => Ok(()),
            Some(b'-' | b'0'..=b'9') => {
                while let Some(b'-' | b'+' | b'.' | b'e' | b'E' | b'0'..=b'9') = self.text.get(self.at) {
                    self.at += 1;
                }
                Ok(())
            }
            _ => self.error("a value"),
        }
    }
}

fn hex4(digits: &[u8]) -> Option<u32> {
    let digits = digits.first_chunk::<4>()?;
    digits.iter().try_fold(0, |code, digit| Some(code << 4 | char::from(*digit).to_digit(16)?))
}

/// Appends a string as Go's encoding/json writes it: HTML-safe, control characters escaped, invalid UTF-8
/// replaced (<https://pkg.go.dev/encoding/json#Marshal>).
pub(crate) fn write_string(text: &[u8], out: &mut Vec<u8>) {
    out.push(b'"');
    write_escaped(text, out);
    out.push(b'"');
}

/// [`write_string`] without the quotes.
pub(crate) fn write_escaped(text: &[u8], out: &mut Vec<u8>) {
    if text.iter().all(|byte| PLAIN[*byte as usize]) {
        return out.extend_from_slice(text);
    }
    for chunk in text.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '"' => out.extend_from_slice(b"\\\""),
                '\\' => out.extend_from_slice(b"\\\\"),
                '\n' => out.extend_from_slice(b"\\n"),
                '\r' => out.extend_from_slice(b"\\r"),
                '\t' => out.extend_from_slice(b"\\t"),
                '\u{8}' => out.extend_from_slice(b"\\b"),
                '\u{c}' => out.extend_from_slice(b"\\f"),
                '\0'..' ' | '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => {
                    out.extend_from_slice(format!("\\u{:04x}", u32::from(c)).as_bytes());
                }
                c => out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
            }
        }
        // Go replaces each invalid byte by itself; a chunk's invalid part may have up to three.
        for _ in chunk.invalid() {
            out.extend_from_slice(b"\\ufffd");
        }
    }
}

/// Bytes that stand for themselves whatever surrounds them.
const PLAIN: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0x20;
    while byte < 0x80 {
        table[byte] = !matches!(byte as u8, b'"' | b'\\' | b'<' | b'>' | b'&');
        byte += 1;
    }
    table
};

/// Appends a number in decimal.
pub(crate) fn write_u64(mut value: u64, out: &mut Vec<u8>) {
    let mut digits = [0; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (value % 10) as u8;
        value /= 10;
        if value == 0 {
            return out.extend_from_slice(&digits[at..]);
        }
    }
}
