//! Whether a repository is whole: first what can be told from listings, index and directories, then, if asked for,
//! every byte of every pack.
//!
//! What is found is returned as values that say which snapshots it endangers. An error is returned only when the
//! check itself could not go on.

mod data;
mod run;
mod trees;

pub(crate) use self::data::{LONGEST, examine, expected_size, whole};
pub use self::run::{RunCheck, check_run};

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::StreamExt;

use crate::file::FileKind;
use crate::index::{Index, PackNo};
use crate::repository::Repository;
use crate::{BlobKind, Error, Id, Result, Snapshot};

/// What is looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct CheckOptions {
    /// Which packs are read whole: their names, their headers, every blob.
    pub read_data: ReadData,
}

/// Which packs a check reads.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum ReadData {
    /// None.
    #[default]
    No,
    /// All.
    All,
    /// One of so many parts into which they are divided by their names: who reads them all, one after the other, has read
    /// every pack.
    Part {
        /// Which one, from 1.
        number: u32,
        /// How many there are.
        of: u32,
    },
    /// A share (0 to 1) of them, chosen at random.
    Share(f64),
    /// Some of them, chosen at random, of about so many bytes.
    Bytes(u64),
}

/// How far a check is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CheckProgress {
    /// What is being looked at.
    pub stage: CheckStage,
    /// How many of them are done.
    pub done: u64,
    /// How many there are.
    pub total: u64,
}

/// The steps of a check, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CheckStage {
    /// Index files.
    Index,
    /// Packs, by one listing.
    Packs,
    /// Snapshots with all their directories.
    Snapshots,
    /// Packs, read whole.
    Data,
}

/// Something that is not as it should be.
#[derive(Debug)]
pub struct Finding {
    /// What it is.
    pub problem: Problem,
    /// The snapshots that cannot be restored completely because of it, the oldest first.
    pub endangers: Vec<Id>,
    /// Some of what is incomplete in the newest of them, as paths.
    pub paths: Vec<Vec<u8>>,
}

/// What is not as it should be.
#[derive(Debug)]
#[non_exhaustive]
pub enum Problem {
    /// An index file cannot be read.
    Index {
        /// The file.
        id: Id,
        /// Why.
        error: Error,
    },
    /// A pack that the index names does not exist.
    MissingPack {
        /// The pack.
        id: Id,
        /// How many blobs it should hold.
        blobs: usize,
    },
    /// A pack has another size than its blobs and their header take.
    PackSize {
        /// The pack.
        id: Id,
        /// The size that the index implies.
        expected: u64,
        /// The size that the bucket lists.
        found: u64,
    },
    /// No index names this pack: an interrupted run has left it, or a prune. It takes space and harms nothing.
    UnusedPack {
        /// The pack.
        id: Id,
        /// Its size.
        size: u64,
    },
    /// A pack holds both data and directories, as old programs wrote them.
    MixedPack {
        /// The pack.
        id: Id,
    },
    /// Blobs are stored more than once: two runs at the same time, or an interrupted prune. It takes space and harms
    /// nothing.
    Twice {
        /// How often a blob is stored once more than is needed.
        blobs: u64,
        /// The bytes that it takes.
        bytes: u64,
    },
    /// A key file is not what its name says, or no key.
    Key {
        /// The file.
        id: Id,
        /// What is wrong.
        error: Error,
    },
    /// A pack is not what its name says, or not what the index says about it.
    Pack {
        /// The pack.
        id: Id,
        /// What is wrong.
        error: Error,
    },
    /// A blob within a pack is damaged.
    Blob {
        /// The pack.
        pack: Id,
        /// What the blob holds.
        kind: BlobKind,
        /// The blob.
        id: Id,
        /// What is wrong.
        error: Error,
    },
    /// A snapshot cannot be read.
    Snapshot {
        /// The snapshot.
        id: Id,
        /// Why.
        error: Error,
    },
    /// A directory cannot be read.
    Tree {
        /// The directory.
        id: Id,
        /// Why.
        error: Error,
    },
    /// A blob of a file is in no index.
    MissingBlob {
        /// The blob.
        id: Id,
    },
    /// An entry of a directory is not as it has to be.
    Node {
        /// The directory.
        tree: Id,
        /// The entry's name.
        name: Box<[u8]>,
        /// What is wrong.
        detail: &'static str,
    },
    /// More of the same kinds, which are not listed one by one.
    More {
        /// How many.
        count: u64,
    },
}

impl Problem {
    /// Whether it takes space but endangers nothing.
    pub fn is_hint(&self) -> bool {
        matches!(self, Problem::UnusedPack { .. } | Problem::MixedPack { .. } | Problem::Twice { .. })
    }

    /// One word for the kind of problem, which does not change.
    pub fn kind(&self) -> &'static str {
        match self {
            Problem::Index { .. } => "index",
            Problem::MissingPack { .. } => "missing-pack",
            Problem::PackSize { .. } => "pack-size",
            Problem::UnusedPack { .. } => "unused-pack",
            Problem::MixedPack { .. } => "mixed-pack",
            Problem::Twice { .. } => "stored-twice",
            Problem::Key { .. } => "key",
            Problem::Pack { .. } => "pack",
            Problem::Blob { .. } => "blob",
            Problem::Snapshot { .. } => "snapshot",
            Problem::Tree { .. } => "tree",
            Problem::MissingBlob { .. } => "missing-blob",
            Problem::Node { .. } => "node",
            Problem::More { .. } => "more",
        }
    }

    /// The pack that is to be repaired, if it is about one.
    pub fn pack(&self) -> Option<Id> {
        match self {
            Problem::PackSize { id, .. } | Problem::Pack { id, .. } => Some(*id),
            Problem::Blob { pack, .. } => Some(*pack),
            _ => None,
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Problem::Index { id, error } => write!(f, "index file {id} cannot be read: {error}"),
            Problem::MissingPack { id, blobs } => write!(f, "pack {id} with {blobs} blobs is missing"),
            Problem::PackSize { id, expected, found } => {
                write!(f, "pack {id} has {found} bytes, the index implies {expected}")
            }
            Problem::UnusedPack { id, size } => write!(f, "pack {id} ({size} bytes) is in no index"),
            Problem::MixedPack { id } => write!(f, "pack {id} holds both data and directories"),
            Problem::Twice { blobs, bytes } => {
                write!(f, "{blobs} blobs ({bytes} bytes) are stored once more than is needed")
            }
            Problem::Key { id, error } => write!(f, "key {id} cannot be used: {error}"),
            Problem::Pack { id, error } => write!(f, "pack {id} is damaged: {error}"),
            Problem::Blob { pack, kind, id, error } => {
                write!(f, "{kind} blob {id} in pack {pack} is damaged: {error}")
            }
            Problem::Snapshot { id, error } => write!(f, "snapshot {id} cannot be read: {error}"),
            Problem::Tree { id, error } => write!(f, "directory {id} cannot be read: {error}"),
            Problem::MissingBlob { id } => write!(f, "data blob {id} is in no index"),
            Problem::More { count } => write!(f, "{count} more problems of these kinds"),
            Problem::Node { tree, name, detail } => {
                let name = String::from_utf8_lossy(name).escape_debug().to_string();
                write!(f, "entry {name} of directory {tree}: {detail}")
            }
        }
    }
}

/// Who listens to a check.
pub type Progress<'a> = dyn Fn(CheckProgress) + Send + Sync + 'a;

/// Problems that are listed one by one: of an index without its half, every blob would be one.
const MOST: usize = 10_000;

/// What was found so far; shared by those who look at the same time.
#[derive(Default)]
struct Problems {
    list: Vec<Problem>,
    more: u64,
}

impl Problems {
    fn push(&mut self, problem: Problem) {
        if self.list.len() < MOST || problem.is_hint() && self.list.len() < 2 * MOST {
            self.list.push(problem);
        } else {
            self.more += 1;
        }
    }
}

/// One check.
struct Check<'a> {
    repo: &'a Repository,
    progress: &'a Progress<'a>,
    problems: Arc<Mutex<Problems>>,
}

/// Looks at everything. Take a lock before, shared if nobody deletes meanwhile.
///
/// # Errors
/// What keeps the check from going on: the bucket cannot be listed, or cannot be reached any more.
pub async fn check(
    repo: &Repository,
    options: CheckOptions,
    progress: &Progress<'_>,
) -> Result<Vec<Finding>> {
    let check = Check { repo, progress, problems: Arc::default() };
    // Snapshots are listed before the index: then the index names everything that they need.
    let snapshots = check.snapshots().await?;
    let index = check.index().await?;
    check.keys().await?;
    let sizes = check.packs(&index).await?;
    check.trees(&snapshots, &index).await?;
    check.data(&index, &sizes, options.read_data).await?;
    let Problems { list: mut problems, more } = std::mem::take(&mut *check.found());
    // They came as they were found, several at once.
    problems.sort_by_cached_key(|problem| (problem.is_hint(), problem.kind(), problem.to_string()));
    if more > 0 {
        problems.push(Problem::More { count: more });
    }
    let harms = trees::harms(repo, &problems, &snapshots, &index).await?;
    let findings = problems.into_iter().zip(harms);
    Ok(findings.map(|(problem, (endangers, paths))| Finding { problem, endangers, paths }).collect())
}

impl Check<'_> {
    fn report(&self, stage: CheckStage, done: usize, total: usize) {
        (self.progress)(CheckProgress { stage, done: done as u64, total: total as u64 });
    }

    fn found(&self) -> MutexGuard<'_, Problems> {
        self.problems.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, problem: Problem) {
        self.found().push(problem);
    }

    /// Every key file is what its name says, and says how to open it.
    async fn keys(&self) -> Result<()> {
        for key in self.repo.keys().await? {
            if let Err(error) = key.file {
                self.push(Problem::Key { id: key.id, error: local(error)? });
            }
        }
        Ok(())
    }

    async fn snapshots(&self) -> Result<Vec<(Id, Snapshot)>> {
        let files = self.repo.inner().list(FileKind::Snapshot).await?;
        let mut snapshots = Vec::with_capacity(files.len());
        let mut loads = std::pin::pin!(self.repo.load_snapshots(files));
        while let Some((id, snapshot)) = loads.next().await {
            match snapshot {
                Ok(snapshot) => snapshots.push((id, snapshot)),
                // Somebody has forgotten it meanwhile.
                Err(Error::NoSuchSnapshot { .. }) => (),
                Err(error) => self.push(Problem::Snapshot { id, error: local(error)? }),
            }
        }
        snapshots.sort_by_cached_key(|(id, snapshot)| (snapshot.time.instant(), *id));
        Ok(snapshots)
    }

    async fn index(&self) -> Result<Arc<Index>> {
        let files = self.repo.inner().list(FileKind::Index).await?;
        let (total, mut done, repo) = (files.len(), 0, self.repo);
        let mut each = |id, read| {
            if let Err(error) = read {
                self.push(Problem::Index { id, error: local(error)? });
            }
            done += 1;
            self.report(CheckStage::Index, done, total);
            Ok(())
        };
        repo.read_index(&files, &mut each).await
    }

    /// Compares the index with one listing; yields the packs that are there, with their sizes.
    async fn packs(&self, index: &Index) -> Result<HashMap<PackNo, u64>> {
        let mut listed: HashMap<Id, u64> =
            self.repo.inner().list(FileKind::Pack).await?.into_iter().collect();
        let total = index.packs().len();
        let mut sizes = HashMap::with_capacity(total);
        for (done, (pack, blobs)) in index.by_pack().iter().enumerate() {
            let id = index.pack(pack);
            match listed.remove(&id) {
                None => self.push(Problem::MissingPack { id, blobs: blobs.len() }),
                Some(found) => {
                    let expected = data::expected_size(&blobs);
                    if expected != found {
                        self.push(Problem::PackSize { id, expected, found });
                    }
                    sizes.insert(pack, found);
                }
            }
            if blobs.iter().any(|blob| blob.kind != blobs[0].kind) {
                self.push(Problem::MixedPack { id });
            }
            if done % 1024 == 0 {
                self.report(CheckStage::Packs, done, total);
            }
        }
        self.report(CheckStage::Packs, total, total);
        for (id, size) in listed {
            self.push(Problem::UnusedPack { id, size });
        }
        let (mut blobs, mut bytes, mut last) = (0, 0, None);
        for kind in BlobKind::ALL {
            for (_, blob) in index.blobs(kind) {
                if last.replace((kind, blob.id)) == Some((kind, blob.id)) {
                    blobs += 1;
                    bytes += u64::from(blob.length);
                }
            }
        }
        if blobs > 0 {
            self.push(Problem::Twice { blobs, bytes });
        }
        Ok(sizes)
    }
}

/// The error, if it is about one file; what concerns the whole bucket ends the check.
fn local(error: Error) -> Result<Error> {
    if crate::reader::is_local(&error) { Ok(error) } else { Err(error) }
}

/// Blobs that a problem makes unreadable, by kind.
#[derive(Default)]
struct Lost {
    data: HashMap<Id, BTreeSet<usize>>,
    trees: HashMap<Id, BTreeSet<usize>>,
}

impl Lost {
    /// What the problems take away; a blob that lies elsewhere as well is not lost.
    fn of(problems: &[Problem], index: &Index) -> Self {
        // Packs with the length up to which they can be read.
        let mut packs: HashMap<Id, (usize, u64)> = HashMap::new();
        for (i, problem) in problems.iter().enumerate() {
            let (id, readable) = match problem {
                Problem::MissingPack { id, .. } => (*id, 0),
                Problem::PackSize { id, expected, found } if found < expected => (*id, *found),
                // It cannot be fetched, or is not: of one that was read, each blob is judged by itself.
                Problem::Pack { id, error: Error::Bucket(_) | Error::BadParameter { .. } } => (*id, 0),
                _ => continue,
            };
            let worst = packs.entry(id).or_insert((i, readable));
            if readable < worst.1 {
                *worst = (i, readable);
            }
        }
        let is_cut = |pack: &Id, end: u64| packs.get(pack).is_some_and(|(_, readable)| end > *readable);
        let bad: HashSet<(BlobKind, Id, Id)> = problems
            .iter()
            .filter_map(|problem| match problem {
                Problem::Blob { pack, kind, id, .. } => Some((*kind, *id, *pack)),
                _ => None,
            })
            .collect();
        let mut lost = Lost::default();
        let elsewhere = |kind, id: &Id| {
            index.lookup_all(kind, id).any(|place| {
                let pack = index.pack(place.pack);
                !is_cut(&pack, place.blob(kind, *id).end()) && !bad.contains(&(kind, *id, pack))
            })
        };
        for (i, problem) in problems.iter().enumerate() {
            match problem {
                Problem::Tree { id, .. } | Problem::Node { tree: id, .. } => lost.add(BlobKind::Tree, *id, i),
                Problem::MissingBlob { id } => lost.add(BlobKind::Data, *id, i),
                Problem::Blob { kind, id, .. } if !elsewhere(*kind, id) => lost.add(*kind, *id, i),
                _ => (),
            }
        }
        if !packs.is_empty() {
            for (pack, blobs) in index.by_pack().iter() {
                let Some((problem, readable)) = packs.get(&index.pack(pack)) else { continue };
                for blob in blobs {
                    if blob.end() > *readable && !elsewhere(blob.kind, &blob.id) {
                        lost.add(blob.kind, blob.id, *problem);
                    }
                }
            }
        }
        lost
    }

    fn add(&mut self, kind: BlobKind, id: Id, problem: usize) {
        let blobs = match kind {
            BlobKind::Data => &mut self.data,
            BlobKind::Tree => &mut self.trees,
        };
        blobs.entry(id).or_default().insert(problem);
    }

    fn is_empty(&self) -> bool {
        self.data.is_empty() && self.trees.is_empty()
    }
}
