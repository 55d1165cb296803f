//! What a listing says of the packs of an index.

use std::collections::HashMap;

use jiff::Timestamp;

use crate::file::FileKind;
use crate::index::{Index, PackNo};
use crate::repository::Repository;
use crate::{BlobKind, Id, Result};

/// The packs that exist: those of an index by their numbers, and the others.
#[derive(Default)]
pub(crate) struct Listed {
    /// Sizes by pack number; none for those that are not there.
    pub(crate) sizes: Vec<Option<u64>>,
    /// Packs that the index does not name, by id, with sizes and the times when they were written.
    pub(crate) unnamed: Vec<(Id, u64, Timestamp)>,
}

impl Listed {
    pub(crate) async fn new(repo: &Repository, index: &Index) -> Result<Self> {
        let numbers: HashMap<Id, usize> = index.packs().iter().copied().zip(0..).collect();
        let mut listed = Listed { sizes: vec![None; index.packs().len()], unnamed: Vec::new() };
        for (id, size, modified) in repo.inner().list_entries(FileKind::Pack).await? {
            match numbers.get(&id) {
                Some(pack) => listed.sizes[*pack] = Some(size),
                None => listed.unnamed.push((id, size, modified)),
            }
        }
        listed.unnamed.sort_unstable();
        Ok(listed)
    }

    /// The size of a pack; none if it is not there.
    pub(crate) fn size(&self, pack: PackNo) -> Option<u64> {
        self.sizes[pack.index()]
    }

    /// Whether a pack reaches to a blob's end.
    pub(crate) fn reaches(&self, pack: PackNo, end: u64) -> bool {
        self.size(pack).is_some_and(|size| end <= size)
    }

    /// Whether a blob may be whole somewhere, as far as a listing can tell.
    pub(crate) fn has(&self, index: &Index, kind: BlobKind, id: &Id) -> bool {
        index.lookup_all(kind, id).any(|place| self.reaches(place.pack, place.blob(kind, *id).end()))
    }
}
