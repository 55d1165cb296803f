//! Files of a repository: where each kind lies, and how index, snapshots, locks and config are encoded
//! (<https://restic.readthedocs.io/en/stable/100_references.html#unpacked-data-format>).

use std::fmt;

use cistern_bucket::Key;

use crate::pack::{Opener, Sealer};
use crate::{Error, Id, Result};

/// In front of a zstd frame within a sealed file.
const COMPRESSED: u8 = 2;

/// Kinds of files.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum FileKind {
    /// The one config.
    Config,
    /// Key files, the only ones that are not sealed.
    Key,
    /// Locks.
    Lock,
    /// Snapshots.
    Snapshot,
    /// Index files.
    Index,
    /// Packs.
    Pack,
}

impl FileKind {
    /// All kinds of which there may be many, each with a directory of its own.
    pub const DIRECTORIES: [FileKind; 5] =
        [FileKind::Key, FileKind::Lock, FileKind::Snapshot, FileKind::Index, FileKind::Pack];

    /// The word for people.
    pub const fn as_str(self) -> &'static str {
        match self {
            FileKind::Config => "config",
            FileKind::Key => "key",
            FileKind::Lock => "lock",
            FileKind::Snapshot => "snapshot",
            FileKind::Index => "index",
            FileKind::Pack => "pack",
        }
    }

    /// What keys of files of this kind begin with.
    pub const fn prefix(self) -> &'static str {
        match self {
            FileKind::Config => "config",
            FileKind::Key => "keys/",
            FileKind::Lock => "locks/",
            FileKind::Snapshot => "snapshots/",
            FileKind::Index => "index/",
            FileKind::Pack => "data/",
        }
    }

    /// The key of a file, relative to the repository; the config ignores the id.
    pub fn path(self, id: &Id) -> String {
        match self {
            FileKind::Config => self.prefix().into(),
            FileKind::Pack => {
                let id = id.to_string();
                format!("data/{}/{id}", &id[..2])
            }
            _ => format!("{}{id}", self.prefix()),
        }
    }

    /// As [`path`](Self::path), as a key of a bucket.
    pub fn key(self, id: &Id) -> Key {
        Key::from(self.path(id))
    }

    /// The id in the key of a file of this kind; none if the key is not one that [`path`](Self::path) gives.
    pub fn id_of(self, key: &[u8]) -> Option<Id> {
        let id = Id::from_hex(key.get(key.len().checked_sub(Id::HEX_LEN)?..)?).ok()?;
        (self != FileKind::Config && self.path(&id).as_bytes() == key).then_some(id)
    }

    /// Most plain bytes that are taken for one file of this kind. A pack of 409,000 entries is the largest thing
    /// that an index file must hold: 60 MB.
    pub const fn max_length(self) -> usize {
        match self {
            FileKind::Config | FileKind::Key | FileKind::Lock => 1 << 20,
            FileKind::Snapshot => 8 << 20,
            FileKind::Index => 256 << 20,
            FileKind::Pack => u32::MAX as usize,
        }
    }
}

impl fmt::Display for FileKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Seals the JSON of a file: the config plainly, the others compressed. The file's name is the [`Id::of`] of
/// what this gives.
pub fn seal(sealer: &mut Sealer, kind: FileKind, json: &[u8]) -> Result<Vec<u8>> {
    let mut stored = Vec::new();
    match kind {
        FileKind::Config => sealer.seal_plain(json, &mut stored)?,
        _ => sealer.seal_marked(COMPRESSED, json, &mut stored)?,
    }
    Ok(stored)
}

/// Opens a file that was read under the name `id` (any, for the config): checks name and seal, decompresses.
pub fn open(opener: &mut Opener, kind: FileKind, id: &Id, mut stored: Vec<u8>) -> Result<Vec<u8>> {
    let what = kind.as_str();
    let named = |error| match error {
        Error::Damaged { detail, .. } => {
            Error::Damaged { what, id: (kind != FileKind::Config).then_some(*id), detail }
        }
        Error::BadParameter { detail, .. } => Error::BadParameter { what, detail },
        other => other,
    };
    if kind != FileKind::Config && Id::of(&stored) != *id {
        return Err(named(Error::damaged(what, "its content has another hash than its name")));
    }
    let start = stored.len();
    let text = opener.open_plain(&mut stored).map_err(named)?;
    match text.first() {
        Some(b'{' | b'[') => {
            let length = text.len();
            let start = start - length - crate::crypto::MAC_LEN;
            stored.truncate(start + length);
            stored.drain(..start);
            Ok(stored)
        }
        Some(&COMPRESSED) if kind != FileKind::Config => {
            // Ids and times do not compress well: what grows more than this is made to harm.
            let most = match kind {
                FileKind::Snapshot | FileKind::Index => (16 * text.len() + (1 << 20)).min(kind.max_length()),
                _ => kind.max_length(),
            };
            opener.decompress(&text[1..], most).map_err(named)
        }
        _ => Err(named(Error::damaged(what, "its encoding is unknown"))),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::crypto::MasterKey;

    fn pair() -> (Sealer, Opener) {
        let key = Arc::new(MasterKey::generate().unwrap());
        (Sealer::new(key.clone(), Some(3)).unwrap(), Opener::new(key).unwrap())
    }

    #[test]
    fn both_encodings_come_back_under_their_own_name_only() {
        let (mut sealer, mut opener) = pair();
        let json = br#"{"packs":[]}"#.to_vec();
        for kind in [FileKind::Config, FileKind::Index, FileKind::Snapshot, FileKind::Lock] {
            let stored = seal(&mut sealer, kind, &json).unwrap();
            assert_eq!(open(&mut opener, kind, &Id::of(&stored), stored.clone()).unwrap(), json);
            if kind != FileKind::Config {
                let error = open(&mut opener, kind, &Id::of(b""), stored).unwrap_err();
                assert!(error.to_string().starts_with(kind.as_str()), "{error}");
            }
        }
        // What restic wrote before it compressed.
        let mut stored = Vec::new();
        sealer.seal_plain(&json, &mut stored).unwrap();
        assert_eq!(open(&mut opener, FileKind::Index, &Id::of(&stored), stored).unwrap(), json);
        for odd in [&b""[..], b"\x01{}", b"\x03", b"\x02", b"\x02no frame"] {
            let mut stored = Vec::new();
            sealer.seal_plain(odd, &mut stored).unwrap();
            assert!(open(&mut opener, FileKind::Index, &Id::of(&stored), stored).is_err());
        }
    }

    #[test]
    fn a_bomb_is_refused() {
        let (mut sealer, mut opener) = pair();
        let stored = seal(&mut sealer, FileKind::Lock, &vec![b' '; 2 << 20]).unwrap();
        let error = open(&mut opener, FileKind::Lock, &Id::of(&stored), stored).unwrap_err();
        assert!(matches!(error, Error::BadParameter { what: "lock", .. }), "{error}");
        // Below the bound of its kind, but out of nothing.
        for kind in [FileKind::Snapshot, FileKind::Index] {
            let stored = seal(&mut sealer, kind, &vec![b' '; 4 << 20]).unwrap();
            let error = open(&mut opener, kind, &Id::of(&stored), stored).unwrap_err();
            assert!(matches!(error, Error::BadParameter { .. }), "{error}");
            let mut random = vec![0; 2 << 20];
            crate::crypto::random(&mut random).unwrap();
            let honest: Vec<u8> = random.iter().flat_map(|byte| format!("{byte:02x}").into_bytes()).collect();
            let stored = seal(&mut sealer, kind, &honest).unwrap();
            assert_eq!(open(&mut opener, kind, &Id::of(&stored), stored).unwrap(), honest);
        }
    }

    #[test]
    fn keys_and_back() {
        let id = Id::of(b"");
        assert_eq!(FileKind::Pack.path(&id), format!("data/e3/{id}"));
        assert_eq!(FileKind::Config.path(&id), "config");
        for kind in FileKind::DIRECTORIES {
            assert_eq!(kind.id_of(kind.key(&id).as_bytes()), Some(id));
        }
        let pack = |key: String| FileKind::Pack.id_of(key.as_bytes());
        assert_eq!(pack(format!("data/e4/{id}")), None);
        assert_eq!(pack(format!("data/{id}")), None);
        assert_eq!(pack(id.to_string().to_uppercase()), None);
        assert_eq!(pack("data/e3/e3b0".into()), None);
        assert_eq!(FileKind::Config.id_of(b"config"), None);
    }
}
