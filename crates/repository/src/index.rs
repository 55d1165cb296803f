//! The index: which blob lies where; as files of JSON in the repository, and as a sorted table in memory, or in a file
//! that is mapped where memory would be too dear.

mod builder;
mod by_pack;
mod file;
mod live;
pub(crate) mod mapped;
mod table;

pub use self::builder::IndexBuilder;
pub use self::by_pack::ByPack;
pub use self::file::{BLOBS_PER_FILE, IndexFile, parse};
pub use self::live::{LiveIndex, Pending};

use self::table::Table;
use crate::pack::PackedBlob;
use crate::{BlobKind, Id};

/// The number of a pack within one [`Index`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub struct PackNo(u32);

impl PackNo {
    /// The number, from 0.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// The number of an entry within one [`Index`]: data by id, then trees by id.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub struct EntryNo(u32);

impl EntryNo {
    /// The number, from 0.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// Where a blob lies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Location {
    /// The pack, by its number in the index that answered.
    pub pack: PackNo,
    /// First byte within the pack.
    pub offset: u32,
    /// Sealed length.
    pub length: u32,
    /// Plain length, if the blob is compressed.
    pub raw_length: Option<u32>,
}

impl Location {
    /// The blob, as it stands in its pack.
    pub fn blob(&self, kind: BlobKind, id: Id) -> PackedBlob {
        PackedBlob { kind, id, offset: self.offset, length: self.length, raw_length: self.raw_length }
    }
}

/// An index file, and what it names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedIn {
    /// The file.
    pub id: Id,
    /// Packs that it names, in its order.
    pub packs: Vec<PackNo>,
    /// Number of blobs that it names.
    pub blobs: usize,
}

/// Everything that the index files say, sorted by id; it does not change. It takes 48 bytes for each entry, in memory or
/// in a file that is mapped, and 36 for each pack.
#[derive(Debug, Default)]
pub struct Index {
    packs: Vec<Id>,
    files: Vec<NamedIn>,
    data: Table,
    trees: Table,
}

impl Index {
    /// An index without blobs.
    pub fn empty() -> Self {
        Index::default()
    }

    /// Where a blob lies; any of several places.
    pub fn lookup(&self, kind: BlobKind, id: &Id) -> Option<Location> {
        let table = self.table(kind);
        table.find(id).map(|row| table.location(row))
    }

    /// Everywhere a blob lies.
    pub fn lookup_all(&self, kind: BlobKind, id: &Id) -> impl Iterator<Item = Location> {
        self.entries_of(kind, id).map(|(_, location)| location)
    }

    /// The entries about a blob: one for everywhere it lies.
    pub fn entries_of(&self, kind: BlobKind, id: &Id) -> impl Iterator<Item = (EntryNo, Location)> {
        let table = self.table(kind);
        let start = table.find(id).unwrap_or(table.len());
        let id = *id.as_bytes();
        let same = (start..table.len()).take_while(move |row| table.ids[*row] == id);
        same.map(move |row| (self.number(kind, row), table.location(row)))
    }

    /// The first entry about a blob, which stands for it.
    pub fn entry(&self, kind: BlobKind, id: &Id) -> Option<EntryNo> {
        self.table(kind).find(id).map(|row| self.number(kind, row))
    }

    /// Whether the blob is stored.
    pub fn contains(&self, kind: BlobKind, id: &Id) -> bool {
        self.table(kind).find(id).is_some()
    }

    /// Number of entries of a kind; a blob that is stored twice counts twice.
    pub fn len(&self, kind: BlobKind) -> usize {
        self.table(kind).len()
    }

    /// Number of entries of both kinds.
    pub fn entries(&self) -> usize {
        self.data.len() + self.trees.len()
    }

    /// Whether it names no blob.
    pub fn is_empty(&self) -> bool {
        self.entries() == 0
    }

    /// Packs by number.
    pub fn packs(&self) -> &[Id] {
        &self.packs
    }

    /// The pack of a number that this index gave.
    pub fn pack(&self, number: PackNo) -> Id {
        self.packs[number.index()]
    }

    /// The numbers of all packs.
    pub fn pack_numbers(&self) -> impl ExactSizeIterator<Item = PackNo> + use<> {
        (0..self.packs.len() as u32).map(PackNo)
    }

    /// The index files that it was read from.
    pub fn files(&self) -> &[NamedIn] {
        &self.files
    }

    /// All entries of a kind, by id.
    pub fn blobs(&self, kind: BlobKind) -> impl ExactSizeIterator<Item = (PackNo, PackedBlob)> {
        let table = self.table(kind);
        (0..table.len()).map(move |row| {
            let location = table.location(row);
            (location.pack, location.blob(kind, table.id(row)))
        })
    }

    /// All entries in their order; those about one blob follow each other.
    pub fn numbered(&self) -> impl Iterator<Item = (EntryNo, PackNo, PackedBlob)> {
        let all = BlobKind::ALL.into_iter().flat_map(|kind| self.blobs(kind));
        all.zip(0..).map(|((pack, blob), number)| (EntryNo(number), pack, blob))
    }

    /// One entry.
    pub fn blob(&self, entry: EntryNo) -> (PackNo, PackedBlob) {
        let (kind, row) = match entry.index().checked_sub(self.data.len()) {
            None => (BlobKind::Data, entry.index()),
            Some(row) => (BlobKind::Tree, row),
        };
        let table = self.table(kind);
        let location = table.location(row);
        (location.pack, location.blob(kind, table.id(row)))
    }

    /// All entries by pack and offset; takes 4 bytes for each while it is in use.
    pub fn by_pack(&self) -> ByPack<'_> {
        ByPack::new(self)
    }

    /// Stored bytes of all entries, without headers of packs.
    pub fn stored_bytes(&self) -> u64 {
        let lengths = |table: &Table| {
            table.places.iter().map(|place| u64::from(table::location(*place).length)).sum::<u64>()
        };
        lengths(&self.data) + lengths(&self.trees)
    }

    /// Plain bytes of all entries.
    pub fn plain_bytes(&self) -> u64 {
        let kinds = BlobKind::ALL.into_iter();
        kinds.flat_map(|kind| self.blobs(kind)).map(|(_, blob)| u64::from(blob.plain_length())).sum()
    }

    fn number(&self, kind: BlobKind, row: usize) -> EntryNo {
        let before = match kind {
            BlobKind::Data => 0,
            BlobKind::Tree => self.data.len(),
        };
        EntryNo((before + row) as u32)
    }

    fn table(&self, kind: BlobKind) -> &Table {
        match kind {
            BlobKind::Data => &self.data,
            BlobKind::Tree => &self.trees,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{HashMap, HashSet};
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;

    /// Pack, offset, length and plain length.
    type Place = (Id, u32, u32, Option<u32>);

    fn blob(kind: BlobKind, n: u32, offset: u32) -> PackedBlob {
        let raw_length = (!n.is_multiple_of(3)).then_some(n + 1);
        PackedBlob { kind, id: Id::of(&n.to_le_bytes()), offset, length: 32 + n % 100, raw_length }
    }

    fn file(packs: &[(u32, Vec<PackedBlob>)]) -> Vec<u8> {
        let mut file = IndexFile::new();
        packs.iter().for_each(|(pack, blobs)| file.add(&Id::of(&[*pack as u8, 9]), blobs));
        file.finish()
    }

    fn load(files: &[Vec<u8>]) -> Index {
        let mut builder = IndexBuilder::new();
        files.iter().for_each(|file| builder.add_file(&Id::of(file), file).unwrap());
        builder.finish().unwrap()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(60))]
        #[test]
        fn the_index_is_a_map_from_kind_and_id_to_places(
            packs in prop::collection::vec((0u32..40, prop::collection::vec((any::<bool>(), 0u32..500), 0..60)), 0..30),
            split in 0usize..30,
        ) {
            let packs: Vec<(u32, Vec<PackedBlob>)> = packs.into_iter().map(|(pack, blobs)| {
                let kind = |tree| if tree { BlobKind::Tree } else { BlobKind::Data };
                (pack, blobs.into_iter().zip(0..).map(|((tree, n), at)| blob(kind(tree), n, at * 200)).collect())
            }).collect();
            let (first, second) = packs.split_at(split.min(packs.len()));
            // The second file comes twice, as after a repair.
            let index = load(&[file(first), file(second), file(second)]);
            let mut expected: HashMap<(BlobKind, Id), HashSet<Place>> = HashMap::new();
            for (pack, blobs) in &packs {
                for blob in blobs {
                    let place = (Id::of(&[*pack as u8, 9]), blob.offset, blob.length, blob.raw_length);
                    expected.entry((blob.kind, blob.id)).or_default().insert(place);
                }
            }
            for n in 0..600u32 {
                for kind in BlobKind::ALL {
                    let id = Id::of(&n.to_le_bytes());
                    let places: Vec<_> = index
                        .lookup_all(kind, &id)
                        .map(|place| (index.pack(place.pack), place.offset, place.length, place.raw_length))
                        .collect();
                    let wanted = expected.get(&(kind, id)).cloned().unwrap_or_default();
                    prop_assert_eq!(places.len(), wanted.len());
                    prop_assert_eq!(places.into_iter().collect::<HashSet<_>>(), wanted.clone());
                    prop_assert_eq!(index.contains(kind, &id), !wanted.is_empty());
                    prop_assert_eq!(index.lookup(kind, &id), index.lookup_all(kind, &id).next());
                }
            }
            let rows: usize = expected.values().map(HashSet::len).sum();
            prop_assert_eq!(index.len(BlobKind::Data) + index.len(BlobKind::Tree), rows);
            let mut seen = HashSet::new();
            let mut by_pack = 0;
            for (pack, blobs) in index.by_pack().iter() {
                prop_assert!(seen.insert(pack));
                prop_assert!(blobs.is_sorted_by_key(|blob| blob.offset));
                by_pack += blobs.len();
                for blob in blobs {
                    let place = (index.pack(pack), blob.offset, blob.length, blob.raw_length);
                    prop_assert!(expected[&(blob.kind, blob.id)].contains(&place));
                }
            }
            prop_assert_eq!(by_pack, rows);
        }
    }

    #[test]
    fn ids_that_are_all_alike_are_found() {
        let id = |n: u16| {
            let mut bytes = [0xab; 32];
            bytes[30..].copy_from_slice(&n.to_be_bytes());
            Id::from_bytes(bytes)
        };
        let mut builder = IndexBuilder::new();
        for n in (0..20_000).step_by(2) {
            builder.add(&Id::of(b"pack"), &PackedBlob { id: id(n), ..blob(BlobKind::Data, 1, 0) }).unwrap();
        }
        let index = builder.finish().unwrap();
        assert!((0..20_000).all(|n| index.contains(BlobKind::Data, &id(n)) == (n % 2 == 0)));
        for end in [[0; 32], [0xff; 32]] {
            assert!(!index.contains(BlobKind::Data, &Id::from_bytes(end)));
        }
    }

    #[test]
    fn what_others_write_is_read() {
        let id = Id::of(b"");
        let json = r#" {"supersedes":["ID"],"packs":[{"id":"ID","time":"2026-01-01T00:00:00Z","size":7,"blobs":[
            {"type":"tree","id":"ID","uncompressed_length":0,"length":40,"offset":0},
            {"id":"ID","type":"data","offset":40,"length":50,"uncompressed_length":9,"later":{"a":[null,true,-1.5e3,"x\""]}}
            ]},{"id":"ID","blobs":null}],"packs_to_delete":[{"id":"ID","blobs":[]}]} "#
            .replace("ID", &id.to_string());
        let mut found = Vec::new();
        parse(json.as_bytes(), |pack, blob| found.push((*pack, blob))).unwrap();
        let first = PackedBlob { kind: BlobKind::Tree, id, offset: 0, length: 40, raw_length: None };
        let second =
            PackedBlob { kind: BlobKind::Data, offset: 40, length: 50, raw_length: Some(9), ..first };
        assert_eq!(found, [(id, first), (id, second)]);
        for empty in ["{}", r#"{"packs":null}"#, r#"{"packs":[]}"#] {
            parse(empty.as_bytes(), |_, _| panic!("there is none")).unwrap();
        }
    }

    #[test]
    fn damage_is_an_error_and_no_panic() {
        let json = file(&[(1, vec![blob(BlobKind::Data, 1, 0), blob(BlobKind::Tree, 2, 200)])]);
        let mut builder = IndexBuilder::new();
        for end in 0..json.len() - 1 {
            assert!(builder.add_file(&Id::of(b"file"), &json[..end]).is_err(), "{end}");
        }
        let text = String::from_utf8(json).unwrap();
        for (from, to) in [
            ("\"offset\":0", "\"offset\":4294967296"),
            ("\"offset\":0", "\"offset\":-1"),
            ("\"offset\":0", "\"offset\":0.5"),
            ("\"length\":33", "\"length\":31"),
            (",\"length\":33", ""),
            ("\"data\"", "\"date\""),
            ("packs\":[{\"id", "packs\":[{\"di"),
        ] {
            let bad = text.replacen(from, to, 1);
            assert_ne!(bad, text);
            assert!(builder.add_file(&Id::of(b"file"), bad.as_bytes()).is_err(), "{bad}");
        }
        let deep = format!("{{\"x\":{}", "[".repeat(1_000_000));
        assert!(builder.add_file(&Id::of(b"file"), deep.as_bytes()).is_err());
    }

    #[test]
    fn one_of_many_workers_wins_each_claim() {
        let mut builder = IndexBuilder::new();
        builder.add(&Id::of(b"pack"), &blob(BlobKind::Data, 0, 0)).unwrap();
        let live = LiveIndex::new(Arc::new(builder.finish().unwrap()));
        let id = |n: u32| Id::of(&n.to_le_bytes());
        let won: usize = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..4)
                .map(|_| scope.spawn(|| (0..5000).filter(|n| live.claim(BlobKind::Data, &id(*n))).count()))
                .collect();
            workers.into_iter().map(|worker| worker.join().unwrap()).sum()
        });
        assert_eq!(won, 4999);
        assert_eq!(live.pending().len(), 4999);
        assert!(live.contains(BlobKind::Data, &id(0)) && live.contains(BlobKind::Data, &id(4999)));
        assert!(!live.contains(BlobKind::Tree, &id(1)) && live.claim(BlobKind::Tree, &id(0)));
    }
}
