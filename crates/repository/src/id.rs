//! Names of everything in a repository: SHA-256 over content, written as 64 hexadecimal digits.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// SHA-256 of a blob's plain bytes, or of a stored file's bytes, which is its name.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Id([u8; 32]);

/// The text is not an id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an id is 64 lower-case hexadecimal digits")]
pub struct ParseIdError;

impl Id {
    /// Length in bytes.
    pub const LEN: usize = 32;
    /// Length in hexadecimal digits.
    pub const HEX_LEN: usize = 64;

    /// The id whose bytes are these.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Id(bytes)
    }

    /// The name of `data`.
    pub fn of(data: &[u8]) -> Self {
        Id(crate::sha256::hash(data))
    }

    /// A random id, as the config carries one.
    pub fn random() -> crate::Result<Self> {
        let mut bytes = [0; 32];
        crate::crypto::random(&mut bytes)?;
        Ok(Id(bytes))
    }

    /// The 32 bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Reads 64 hexadecimal digits; upper case is accepted, as restic does.
    pub fn from_hex(digits: &[u8]) -> Result<Self, ParseIdError> {
        let digits: &[u8; 64] = digits.try_into().map_err(|_| ParseIdError)?;
        let mut bytes = [0; 32];
        let mut wrong = 0;
        for (four, eight) in bytes.as_chunks_mut::<4>().0.iter_mut().zip(digits.as_chunks::<8>().0) {
            let (value, differs) = four_bytes(u64::from_le_bytes(*eight));
            *four = value.to_le_bytes();
            wrong |= differs;
        }
        if wrong == 0 { Ok(Id(bytes)) } else { Err(ParseIdError) }
    }

    /// The 64 lower-case digits.
    pub fn hex(&self) -> [u8; 64] {
        let mut digits = [0; 64];
        for (eight, four) in digits.as_chunks_mut::<8>().0.iter_mut().zip(self.0.as_chunks::<4>().0) {
            *eight = eight_digits(u32::from_le_bytes(*four)).to_le_bytes();
        }
        digits
    }

    /// The first eight digits, as restic shows ids to people.
    pub fn short(&self) -> String {
        let hex = self.hex();
        String::from_utf8_lossy(&hex[..8]).into_owned()
    }

    /// Whether the hexadecimal form begins with `prefix` (lower or upper case).
    pub fn has_prefix(&self, prefix: &str) -> bool {
        let hex = self.hex();
        prefix.len() <= hex.len() && hex[..prefix.len()].eq_ignore_ascii_case(prefix.as_bytes())
    }

    /// The first eight bytes as a number: ids are uniform, so this is a position among all ids.
    pub(crate) fn leading(&self) -> u64 {
        u64::from_be_bytes(*self.0.first_chunk().expect("an id has 32 bytes"))
    }
}

/// A number that has `byte` eight times: arithmetic on it is arithmetic on eight characters.
const fn eight(byte: u8) -> u64 {
    u64::from_ne_bytes([byte; 8])
}

/// The lower-case digits of eight values below 16.
fn digits_of(nibbles: u64) -> u64 {
    let above_nine = (nibbles + eight(6)) >> 4 & eight(1);
    nibbles + eight(b'0') + above_nine * u64::from(b'a' - b'9' - 1)
}

/// The four bytes that eight digits stand for, the first digit and the first byte lowest; and something that is
/// not zero if they are no digits.
fn four_bytes(digits: u64) -> (u32, u64) {
    // Of the characters that matter, letters have bit 6, and the low four bits of `a` and `A` are 1.
    let letters = digits >> 6 & eight(1);
    let nibbles = (digits & eight(0xf)) + letters * 9;
    let wrong = digits_of(nibbles & eight(0xf)) ^ (digits | letters << 5);
    let pairs = (nibbles << 4 | nibbles >> 8) & 0x00ff_00ff_00ff_00ff;
    let pairs = (pairs | pairs >> 8) & 0x0000_ffff_0000_ffff;
    ((pairs | pairs >> 16) as u32, wrong)
}

/// The inverse of [`four_bytes`].
fn eight_digits(bytes: u32) -> u64 {
    let pairs = u64::from(bytes);
    let pairs = (pairs | pairs << 16) & 0x0000_ffff_0000_ffff;
    let pairs = (pairs | pairs << 8) & 0x00ff_00ff_00ff_00ff;
    digits_of((pairs >> 4 & eight(0xf)) | (pairs << 8 & eight(0xf) & 0xff00_ff00_ff00_ff00))
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(std::str::from_utf8(&self.hex()).expect("hexadecimal digits are ASCII"))
    }
}

impl fmt::Debug for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Id {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        Id::from_hex(text.as_bytes())
    }
}

impl Serialize for Id {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Id {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = Id;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("64 hexadecimal digits")
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Id, E> {
                text.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_str(Visitor)
    }
}

/// What a blob holds; blobs of both kinds have names of their own: the key of a blob is (kind, id).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BlobKind {
    /// A piece of a file.
    Data,
    /// A directory.
    Tree,
}

impl BlobKind {
    /// Both kinds.
    pub const ALL: [BlobKind; 2] = [BlobKind::Data, BlobKind::Tree];

    /// The word that the index uses.
    pub const fn as_str(self) -> &'static str {
        match self {
            BlobKind::Data => "data",
            BlobKind::Tree => "tree",
        }
    }

    /// Plain bytes above which a blob is refused. restic cuts files at 8 MiB; a tree of a million entries
    /// has about 400 MB.
    pub const fn max_length(self) -> u32 {
        match self {
            BlobKind::Data => 64 << 20,
            BlobKind::Tree => 512 << 20,
        }
    }
}

impl fmt::Display for BlobKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hex_and_back() {
        let id = Id::of(b"");
        let text = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(id.to_string(), text);
        assert_eq!(text.parse(), Ok(id));
        assert_eq!(text.to_uppercase().parse(), Ok(id));
        assert_eq!(id.short(), "e3b0c442");
        for bad in
            ["", "e3", &text[1..], &format!("{text}0"), &text.replace('e', "g"), &text.replace("e3", "é")]
        {
            assert_eq!(bad.parse::<Id>(), Err(ParseIdError), "{bad}");
        }
    }

    #[test]
    fn every_byte_has_its_digits_and_nothing_else_is_one() {
        for byte in 0..=255u8 {
            let id = Id([byte; 32]);
            assert_eq!(id.to_string(), format!("{byte:02x}").repeat(32));
            assert_eq!(id.to_string().parse(), Ok(id));
            for at in [0, 1, 31, 63] {
                let mut digits = [b'0'; 64];
                digits[at] = byte;
                assert_eq!(Id::from_hex(&digits).is_ok(), byte.is_ascii_hexdigit(), "{byte}");
            }
        }
        let id = Id(std::array::from_fn(|i| (i * 37) as u8));
        let text: String = id.0.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!((id.to_string(), text.parse()), (text, Ok(id)));
    }

    #[test]
    fn prefixes_count_digits_not_bytes() {
        let id = Id::of(b"");
        assert!(id.has_prefix("") && id.has_prefix("e") && id.has_prefix("e3b") && id.has_prefix("E3B0"));
        assert!(!id.has_prefix("3") && !id.has_prefix("e3c") && !id.has_prefix(&"e".repeat(65)));
    }

    #[test]
    fn serde_is_the_hex_string() {
        let id = Id::of(b"x");
        let json = serde_json::to_string(&id).unwrap();
        assert_eq!(json, format!("\"{id}\""));
        assert_eq!(serde_json::from_str::<Id>(&json).unwrap(), id);
        assert!(serde_json::from_str::<Id>("\"00\"").is_err());
    }
}
