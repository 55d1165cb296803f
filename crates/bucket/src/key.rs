//! Names of objects: plain bytes, compared as bytes, never normalised.

use std::fmt;

/// The name of an object within its bucket: any bytes, ordered bytewise as stores list them.
///
/// Stores accept different sets of keys (S3: 1,024 bytes of UTF-8); a `Key` holds whatever it was given.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Key(Box<[u8]>);

impl Key {
    /// Takes bytes as they are.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Self {
        Key(bytes.into().into_boxed_slice())
    }

    /// The exact bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The key as text, if it is UTF-8.
    pub fn as_str(&self) -> Option<&str> {
        std::str::from_utf8(&self.0).ok()
    }

    /// Whether no byte is in the key; the empty key names no object.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// The rest of the key behind `prefix`.
    pub fn strip_prefix(&self, prefix: &[u8]) -> Option<&[u8]> {
        self.0.strip_prefix(prefix)
    }

    /// `prefix` followed by this key.
    pub fn under(&self, prefix: &[u8]) -> Key {
        Key([prefix, &self.0].concat().into_boxed_slice())
    }
}

impl From<&str> for Key {
    fn from(text: &str) -> Self {
        Key::new(text.as_bytes())
    }
}

impl From<String> for Key {
    fn from(text: String) -> Self {
        Key::new(text.into_bytes())
    }
}

impl From<&[u8]> for Key {
    fn from(bytes: &[u8]) -> Self {
        Key::new(bytes)
    }
}

impl AsRef<[u8]> for Key {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

/// Shows the key to a person: control characters and bytes that are no UTF-8 are escaped.
impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for chunk in self.0.utf8_chunks() {
            for c in chunk.valid().chars() {
                if c.is_control() {
                    write!(f, "{}", c.escape_default())?;
                } else {
                    write!(f, "{c}")?;
                }
            }
            for byte in chunk.invalid() {
                write!(f, "\\x{byte:02x}")?;
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_ordered_as_bytes_and_shown_without_control_characters() {
        let mut keys = [Key::from("a/b"), Key::from("a-b"), Key::from("a"), Key::new([0xff, b'\n'])];
        keys.sort();
        assert_eq!(keys.map(|k| k.to_string()), ["a", "a-b", "a/b", "\\xff\\n"]);
    }
}
