//! Directories: those read last stay in memory, and their neighbours are fetched with them.
//!
//! A directory is written after its children, and those in the order of their names: a walk from the root finds
//! the children before a directory, and its next sibling behind it. The stretch that is fetched has both.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use bytes::Bytes;
use cistern_bucket::{ErrorKind, GetOptions};

use super::{Reader, check_length, is_local};
use crate::file::FileKind;
use crate::index::PackNo;
use crate::pack::PackedBlob;
use crate::{BlobKind, Error, Id, Result, Tree};

/// Text of the directories that are kept; in memory they take about three times as much.
const TEXT: usize = 12 << 20;
/// Stretches of packs that are kept; as many threads may be walking.
const STRETCHES: usize = 8;
/// Bytes fetched before a directory, and behind it.
const BEFORE: u64 = 256 << 10;
const BEHIND: u64 = 512 << 10;
/// Packs up to this length are fetched whole into the cache.
const WHOLE: u64 = 160 << 20;

/// What a reader keeps of directories.
#[derive(Default)]
pub(super) struct Trees {
    kept: Mutex<Kept>,
    stretches: Mutex<VecDeque<Stretch>>,
    /// Where the last directory of each pack ends, by the pack's number.
    ends: OnceLock<Vec<u64>>,
    /// Who fetches a pack into the cache; gone when nobody wants it any more.
    flights: Mutex<HashMap<PackNo, Weak<tokio::sync::Mutex<()>>>>,
}

#[derive(Default)]
struct Kept {
    trees: HashMap<Id, (Arc<Tree>, u64)>,
    text: usize,
    clock: u64,
}

struct Stretch {
    pack: PackNo,
    start: u64,
    bytes: Bytes,
}

impl Trees {
    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stretches(&self) -> MutexGuard<'_, VecDeque<Stretch>> {
        self.stretches.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn flight(&self, pack: PackNo) -> Arc<tokio::sync::Mutex<()>> {
        let mut flights = self.flights.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(flight) = flights.get(&pack).and_then(Weak::upgrade) {
            return flight;
        }
        flights.retain(|_, flight| flight.strong_count() > 0);
        let flight = Arc::default();
        flights.insert(pack, Arc::downgrade(&flight));
        flight
    }

    pub(super) async fn tree(&self, reader: &Reader, id: &Id) -> Result<Arc<Tree>> {
        if let Some(tree) = self.kept().get(id) {
            return Ok(tree);
        }
        let text = self.blob(reader, id).await?;
        let tree = Arc::new(Tree::parse(text).map_err(|error| error.named(*id))?);
        self.kept().insert(*id, tree.clone());
        Ok(tree)
    }

    pub(super) async fn blob(&self, reader: &Reader, id: &Id) -> Result<Vec<u8>> {
        let place = reader.index.lookup(BlobKind::Tree, id);
        let place = place.ok_or(Error::NoSuchBlob { kind: BlobKind::Tree, id: *id })?;
        let blob = place.blob(BlobKind::Tree, *id);
        check_length(&blob)?;
        for _ in 0..2 {
            match self.sealed(reader, place.pack, &blob).await {
                Ok(sealed) => match reader.open(blob, sealed).await {
                    // What was kept is damaged: the second time it is fetched.
                    Err(error) if is_local(&error) => self.forget(reader, place.pack).await,
                    outcome => return outcome,
                },
                Err(error) if is_local(&error) => (),
                Err(error) => return Err(error),
            }
        }
        // Ask for this one blob, wherever it is.
        reader.blob_from_anywhere(BlobKind::Tree, id).await
    }

    /// The sealed bytes, from what is kept, or from the cache, or with their neighbours from the bucket.
    async fn sealed(&self, reader: &Reader, pack: PackNo, blob: &PackedBlob) -> Result<Vec<u8>> {
        let (start, end) = (u64::from(blob.offset), blob.end());
        if let Some(sealed) = self.stretches().iter().find_map(|stretch| stretch.get(pack, start, end)) {
            return Ok(sealed.into());
        }
        let id = reader.index.pack(pack);
        if let Some(cache) = &reader.inner.cache {
            let length = blob.length as usize;
            if let Some(sealed) = cache.read_range(FileKind::Pack, &id, start, length).await {
                return Ok(sealed);
            }
            // One of those who want it fetches it, the others find it in the cache then.
            let flight = self.flight(pack);
            let _flying = flight.lock().await;
            if let Some(sealed) = cache.read_range(FileKind::Pack, &id, start, length).await {
                return Ok(sealed);
            }
            if reader.missing().contains(&pack) {
                return Err(reader.is_missing(pack));
            }
            let got = match reader.inner.bucket.get(&FileKind::Pack.key(&id), &GetOptions::default()).await {
                Err(error) if error.kind == ErrorKind::NoSuchKey => return Err(reader.is_missing(pack)),
                got => got?,
            };
            if got.body.length() <= WHOLE {
                let whole = got.body.bytes().await?;
                let sealed = usize::try_from(end).ok().and_then(|end| whole.get(start as usize..end));
                let sealed = sealed.map(<[u8]>::to_vec);
                let short = || Error::damaged("pack", format!("it ends before byte {end}")).named(id);
                cache.write(FileKind::Pack, &id, whole).await;
                return sealed.ok_or_else(short);
            }
        }
        let (from, to) = (start.saturating_sub(BEFORE), end.max(self.end(reader, pack).min(end + BEHIND)));
        let bytes = Bytes::from(reader.fetch(pack, from, to, Vec::new()).await?);
        let stretch = Stretch { pack, start: from, bytes };
        let sealed =
            stretch.get(pack, start, end).ok_or(Error::Broken("a stretch lacks what it was fetched for"))?;
        let mut stretches = self.stretches();
        stretches.push_front(stretch);
        stretches.truncate(STRETCHES);
        Ok(sealed.into())
    }

    /// Where the last directory of a pack ends.
    fn end(&self, reader: &Reader, pack: PackNo) -> u64 {
        let ends = self.ends.get_or_init(|| {
            let mut ends = vec![0; reader.index.packs().len()];
            for (pack, blob) in reader.index.blobs(BlobKind::Tree) {
                if let Some(end) = ends.get_mut(pack.index()) {
                    *end = blob.end().max(*end);
                }
            }
            ends
        });
        ends.get(pack.index()).copied().unwrap_or(0)
    }

    async fn forget(&self, reader: &Reader, pack: PackNo) {
        self.stretches().retain(|stretch| stretch.pack != pack);
        if let Some(cache) = &reader.inner.cache {
            cache.remove(FileKind::Pack, &reader.index.pack(pack)).await;
        }
    }
}

impl Stretch {
    fn get(&self, pack: PackNo, start: u64, end: u64) -> Option<Bytes> {
        let from = usize::try_from(start.checked_sub(self.start)?).ok()?;
        let to = usize::try_from(end.checked_sub(self.start)?).ok()?;
        (self.pack == pack && to <= self.bytes.len()).then(|| self.bytes.slice(from..to))
    }
}

impl Kept {
    fn get(&mut self, id: &Id) -> Option<Arc<Tree>> {
        self.clock += 1;
        let (tree, used) = self.trees.get_mut(id)?;
        *used = self.clock;
        Some(tree.clone())
    }

    fn insert(&mut self, id: Id, tree: Arc<Tree>) {
        let length = tree.text().len();
        if length > TEXT / 2 {
            return;
        }
        self.clock += 1;
        self.text += length;
        if let Some((old, _)) = self.trees.insert(id, (tree, self.clock)) {
            self.text -= old.text().len();
        }
        if self.text > TEXT {
            // Half of them go, those not used for longest, so that the search for them is rare.
            let mut ages: Vec<u64> = self.trees.values().map(|(_, used)| *used).collect();
            let middle = ages.len() / 2;
            let (_, &mut median, _) = ages.select_nth_unstable(middle);
            let text = &mut self.text;
            self.trees.retain(|_, (tree, used)| {
                let stays = *used >= median;
                *text -= if stays { 0 } else { tree.text().len() };
                stays
            });
        }
    }
}
