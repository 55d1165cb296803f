//! Checksums that stores keep or ask for, and a check of contents against the cheapest one at hand.

use std::fmt;

use aws_lc_rs::digest;
use bytes::Bytes;
use crc_fast::{CrcAlgorithm, Digest as Crc};
use md5::{Digest as _, Md5};

use crate::Checksums;

/// The names under which checksums appear in [`Get::checksums`](crate::Get::checksums), cheapest first.
/// The order is that of measured speed: the CRCs take a hundredth of the time of MD5.
const BY_COST: [&str; 5] = ["crc64nvme", "crc32c", "crc32", "sha256", "md5"];

/// The CRC-32C of pieces that follow each other.
pub(crate) fn crc32c(pieces: &[Bytes]) -> [u8; 4] {
    let mut crc = Crc::new(CrcAlgorithm::Crc32Iscsi);
    for piece in pieces {
        crc.update(piece);
    }
    (crc.finalize() as u32).to_be_bytes()
}

/// The SHA-256 of pieces that follow each other.
pub(crate) fn sha256(pieces: &[Bytes]) -> [u8; 32] {
    let mut context = digest::Context::new(&digest::SHA256);
    for piece in pieces {
        context.update(piece);
    }
    context.finish().as_ref().try_into().expect("SHA-256 has 32 bytes")
}

/// The MD5 of pieces that follow each other: for `Content-MD5` and entity tags, no protection against malice.
pub(crate) fn md5(pieces: &[Bytes]) -> [u8; 16] {
    let mut md5 = Md5::new();
    for piece in pieces {
        md5.update(piece);
    }
    md5.finalize().into()
}

/// Compares contents that pass by with one checksum that the store gave. The contents are those of the whole object,
/// in order, whether they came in one answer or in ranges.
///
/// ```
/// use cistern_bucket::{Checksums, Verifier};
///
/// let given = Checksums::from([("crc32c", bytes::Bytes::from_static(&[0xe3, 0x06, 0x92, 0x83]))]);
/// let mut verifier = Verifier::new(&given).expect("CRC-32C is known");
/// verifier.update(b"12345");
/// verifier.update(b"6789");
/// assert!(verifier.finish());
/// ```
pub struct Verifier {
    name: &'static str,
    expected: Bytes,
    state: State,
}

enum State {
    Crc(Box<Crc>, usize),
    Sha256(digest::Context),
    Md5(Md5),
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verifier").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Verifier {
    /// Begins with the cheapest of the given checksums; `None` if none of them is known here.
    pub fn new(checksums: &Checksums) -> Option<Self> {
        BY_COST.into_iter().find_map(|name| {
            let expected = checksums.get(name)?.clone();
            let crc = |algorithm, width| State::Crc(Box::new(Crc::new(algorithm)), width);
            let state = match name {
                "crc64nvme" => crc(CrcAlgorithm::Crc64Nvme, 8),
                "crc32c" => crc(CrcAlgorithm::Crc32Iscsi, 4),
                "crc32" => crc(CrcAlgorithm::Crc32IsoHdlc, 4),
                "sha256" => State::Sha256(digest::Context::new(&digest::SHA256)),
                _ => State::Md5(Md5::new()),
            };
            Some(Verifier { name, expected, state })
        })
    }

    /// The algorithm that is compared.
    pub fn algorithm(&self) -> &'static str {
        self.name
    }

    /// Takes the next bytes of the contents.
    pub fn update(&mut self, bytes: &[u8]) {
        match &mut self.state {
            State::Crc(crc, _) => crc.update(bytes),
            State::Sha256(context) => context.update(bytes),
            State::Md5(md5) => md5.update(bytes),
        }
    }

    /// Whether the contents were those that the store promised.
    pub fn finish(self) -> bool {
        match self.state {
            State::Crc(crc, width) => crc.finalize().to_be_bytes()[8 - width..] == self.expected,
            State::Sha256(context) => *context.finish().as_ref() == *self.expected,
            State::Md5(md5) => *md5.finalize() == *self.expected,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_algorithm_knows_right_from_wrong() {
        // The check values of the published CRC catalogue, and the digests of the same nine digits.
        let table = [
            ("crc64nvme", "ae8b14860a799888"),
            ("crc32c", "e3069283"),
            ("crc32", "cbf43926"),
            ("sha256", "15e2b0d3c33891ebb0f1ef609ec419420c20e320ce94c65fbc8c3312448eb225"),
            ("md5", "25f9e794323b453885f5181f1b624d0b"),
        ];
        assert_eq!(table.map(|(name, _)| name), BY_COST);
        for (name, value) in table {
            let given = Checksums::from([(name, Bytes::from(hex::decode(value).unwrap()))]);
            for (pieces, right) in [(["1234", "56789"], true), (["1234", "56780"], false)] {
                let mut verifier = Verifier::new(&given).unwrap();
                assert_eq!(verifier.algorithm(), name);
                for piece in pieces {
                    verifier.update(piece.as_bytes());
                }
                assert_eq!(verifier.finish(), right, "{name} {pieces:?}");
            }
        }
        assert!(Verifier::new(&Checksums::from([("sha1", Bytes::new())])).is_none());
    }

    #[test]
    fn pieces_count_as_one() {
        let pieces = [Bytes::from_static(b"1234"), Bytes::new(), Bytes::from_static(b"56789")];
        assert_eq!(hex::encode(crc32c(&pieces)), "e3069283");
        assert_eq!(hex::encode(md5(&pieces)), "25f9e794323b453885f5181f1b624d0b");
        assert!(hex::encode(sha256(&pieces)).starts_with("15e2b0d3"));
    }
}
