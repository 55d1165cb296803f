//! Evidence that a range of keys was listed to its end, gathered while the listing goes by.

use aws_lc_rs::digest;
use cistern_bucket::{Entry, Revision};

use crate::Proof;

/// A [`Proof`] in the making. A copy goes on by itself.
///
/// The hash is SHA-256 over one record per object, in order of the keys: length of the key (8 bytes,
/// little-endian), the key below the root, size (8 bytes, little-endian), and the revision: `e` with length (8
/// bytes, little-endian) and text of the entity tag, `g` with generation and metageneration (8 bytes each,
/// little-endian), or `t` with the time of modification in nanoseconds since 1970 (16 bytes, little-endian).
#[derive(Clone)]
pub(crate) struct Evidence {
    keys: u64,
    bytes: u64,
    pages: u64,
    hash: digest::Context,
}

impl Evidence {
    /// Nothing was listed yet.
    pub fn new() -> Self {
        Evidence { keys: 0, bytes: 0, pages: 0, hash: digest::Context::new(&digest::SHA256) }
    }

    /// Takes in one object, whose key below the root is `below`.
    pub fn object(&mut self, below: &[u8], entry: &Entry) {
        self.keys += 1;
        // A listing that claims more than 2^64 bytes lies; its objects cannot be read either.
        self.bytes = self.bytes.saturating_add(entry.size);
        let length = |text: &[u8]| (text.len() as u64).to_le_bytes();
        self.hash.update(&length(below));
        self.hash.update(below);
        self.hash.update(&entry.size.to_le_bytes());
        match &entry.revision {
            Revision::ETag(tag) => {
                self.hash.update(b"e");
                self.hash.update(&length(tag.as_bytes()));
                self.hash.update(tag.as_bytes());
            }
            Revision::Generation { object, meta } => {
                self.hash.update(b"g");
                self.hash.update(&object.to_le_bytes());
                self.hash.update(&meta.to_le_bytes());
            }
            Revision::Unknown => {
                self.hash.update(b"t");
                self.hash.update(&entry.modified.as_nanosecond().to_le_bytes());
            }
        }
    }

    /// Counts a page of the listing.
    pub fn page(&mut self) {
        self.pages += 1;
    }

    /// Objects so far.
    pub fn keys(&self) -> u64 {
        self.keys
    }

    /// The proof for what was taken in.
    pub fn proof(&self) -> Proof {
        let hash = self.hash.clone().finish();
        let hash: [u8; 32] = hash.as_ref().try_into().expect("SHA-256 has 32 bytes");
        let hash = cistern_repository::Id::from_bytes(hash).to_string();
        Proof { keys: self.keys, bytes: self.bytes, pages: self.pages, hash }
    }
}

#[cfg(test)]
mod tests {
    use cistern_bucket::Key;
    use jiff::Timestamp;

    use super::*;

    fn entry(key: &str, size: u64, revision: Revision, second: i64) -> Entry {
        Entry {
            key: Key::from(key),
            size,
            modified: Timestamp::from_second(second).unwrap(),
            revision,
            class: None,
            attributes: None,
        }
    }

    #[test]
    fn the_hash_tells_every_field_apart_and_a_copy_goes_on_by_itself() {
        let tag = |tag: &str| Revision::ETag(tag.into());
        let generation = |object, meta| Revision::Generation { object, meta };
        let objects = [
            entry("a", 1, tag("x"), 0),
            entry("b", 1, tag("x"), 0),
            entry("a", 2, tag("x"), 0),
            entry("a", 1, tag("y"), 0),
            entry("a", 1, generation(1, 2), 0),
            entry("a", 1, generation(2, 1), 0),
            entry("a", 1, Revision::Unknown, 0),
            entry("a", 1, Revision::Unknown, 1),
        ];
        let mut all = Evidence::new();
        let mut hashes = vec![all.proof().hash];
        for object in &objects {
            let mut one = Evidence::new();
            one.object(object.key.as_bytes(), object);
            hashes.push(one.proof().hash);
            let before = all.clone();
            all.object(object.key.as_bytes(), object);
            assert_eq!(before.keys() + 1, all.keys());
        }
        all.page();
        let proof = all.proof();
        assert_eq!((proof.keys, proof.bytes, proof.pages), (8, 9, 1));
        hashes.sort();
        hashes.dedup();
        assert_eq!(hashes.len(), objects.len() + 1);
    }

    /// Reproducible by hand: `printf '\1\0\0\0\0\0\0\0a\2\0\0\0\0\0\0\0e\1\0\0\0\0\0\0\0x' | sha256sum`.
    #[test]
    fn the_hash_is_the_documented_one() {
        let mut evidence = Evidence::new();
        evidence.object(b"a", &entry("ignored", 2, Revision::ETag("x".into()), 0));
        let expected =
            cistern_repository::Id::of(b"\x01\0\0\0\0\0\0\0a\x02\0\0\0\0\0\0\0e\x01\0\0\0\0\0\0\0x");
        assert_eq!(evidence.proof().hash, expected.to_string());
    }
}
