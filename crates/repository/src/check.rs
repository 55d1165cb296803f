//! Whether a repository is whole: first what can be told from listings, index and directories, then, if asked for,
//! every byte of every pack.
//!
//! What is found is returned as values that say which snapshots it endangers. An error is returned only when the
//! check itself could not go on.

mod data;
mod trees;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt;
use std::sync::Arc;

use futures::StreamExt;

use crate::file::FileKind;
use crate::index::{Index, IndexBuilder, PackNo};
use crate::repository::Repository;
use crate::store::blocking;
use crate::{BlobKind, Error, Id, Result, Snapshot};

/// What is looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CheckOptions {
    /// Reads every pack whole: its name, its header, every blob.
    pub read_data: bool,
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
    /// The snapshots that cannot be restored completely because of it.
    pub endangers: Vec<Id>,
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
}

impl Problem {
    /// Whether it takes space but endangers nothing.
    pub fn is_hint(&self) -> bool {
        matches!(self, Problem::UnusedPack { .. })
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
            Problem::Pack { id, error } => write!(f, "pack {id} is damaged: {error}"),
            Problem::Blob { pack, kind, id, error } => {
                write!(f, "{kind} blob {id} in pack {pack} is damaged: {error}")
            }
            Problem::Snapshot { id, error } => write!(f, "snapshot {id} cannot be read: {error}"),
            Problem::Tree { id, error } => write!(f, "directory {id} cannot be read: {error}"),
            Problem::MissingBlob { id } => write!(f, "data blob {id} is in no index"),
            Problem::Node { tree, name, detail } => {
                let name = String::from_utf8_lossy(name).escape_debug().to_string();
                write!(f, "entry {name} of directory {tree}: {detail}")
            }
        }
    }
}

/// Who listens to a check.
pub type Progress<'a> = dyn Fn(CheckProgress) + Send + Sync + 'a;

/// What one check has seen so far.
struct Check<'a> {
    repo: &'a Repository,
    progress: &'a Progress<'a>,
    problems: Vec<Problem>,
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
    let mut check = Check { repo, progress, problems: Vec::new() };
    // Snapshots are listed before the index: then the index names everything that they need.
    let snapshots = check.snapshots().await?;
    let index = check.index().await?;
    let sizes = check.packs(&index).await?;
    check.trees(&snapshots, &index).await?;
    if options.read_data {
        check.data(&index, &sizes).await?;
    }
    let endangered = check.endangered(&snapshots, &index).await?;
    let findings = check.problems.into_iter().zip(endangered);
    Ok(findings.map(|(problem, endangers)| Finding { problem, endangers }).collect())
}

impl Check<'_> {
    fn report(&self, stage: CheckStage, done: usize, total: usize) {
        (self.progress)(CheckProgress { stage, done: done as u64, total: total as u64 });
    }

    async fn snapshots(&mut self) -> Result<Vec<(Id, Snapshot)>> {
        let files = self.repo.inner().list(FileKind::Snapshot).await?;
        let mut snapshots = Vec::with_capacity(files.len());
        let repo = self.repo;
        let mut loads = futures::stream::iter(files)
            .map(|(id, _)| async move { (id, repo.snapshot(&id).await) })
            .buffer_unordered(repo.options().connections);
        while let Some((id, snapshot)) = loads.next().await {
            match snapshot {
                Ok(snapshot) => snapshots.push((id, snapshot)),
                // Somebody has forgotten it meanwhile.
                Err(Error::NoSuchSnapshot { .. }) => (),
                Err(error) => self.problems.push(Problem::Snapshot { id, error: local(error)? }),
            }
        }
        snapshots.sort_by_cached_key(|(id, snapshot)| (snapshot.time.instant(), *id));
        Ok(snapshots)
    }

    async fn index(&mut self) -> Result<Arc<Index>> {
        let files = self.repo.inner().list(FileKind::Index).await?;
        let total = files.len();
        let inner = self.repo.inner();
        let mut loads = futures::stream::iter(files)
            .map(|(id, _)| async move { (id, inner.load_json(FileKind::Index, &id).await) })
            .buffer_unordered(self.repo.options().connections.min(4));
        let mut builder = IndexBuilder::new();
        let mut done = 0;
        while let Some((id, json)) = loads.next().await {
            let added = match json {
                Err(error) => Err(error),
                Ok(json) => {
                    let (back, outcome) = blocking(move || {
                        let outcome = builder.add_file(&json);
                        Ok((builder, outcome))
                    })
                    .await?;
                    builder = back;
                    outcome
                }
            };
            if let Err(error) = added {
                self.problems.push(Problem::Index { id, error: local(error)? });
            }
            done += 1;
            self.report(CheckStage::Index, done, total);
        }
        blocking(move || Ok(Arc::new(builder.finish()))).await
    }

    /// Compares the index with one listing; yields the packs that are there, with their sizes.
    async fn packs(&mut self, index: &Index) -> Result<HashMap<PackNo, u64>> {
        let mut listed: HashMap<Id, u64> =
            self.repo.inner().list(FileKind::Pack).await?.into_iter().collect();
        let total = index.packs().len();
        let mut sizes = HashMap::with_capacity(total);
        for (done, (pack, blobs)) in index.by_pack().enumerate() {
            let id = index.pack(pack);
            match listed.remove(&id) {
                None => self.problems.push(Problem::MissingPack { id, blobs: blobs.len() }),
                Some(found) => {
                    let expected = data::expected_size(&blobs);
                    if expected != found {
                        self.problems.push(Problem::PackSize { id, expected, found });
                    }
                    sizes.insert(pack, found);
                }
            }
            if done % 1024 == 0 {
                self.report(CheckStage::Packs, done, total);
            }
        }
        self.report(CheckStage::Packs, total, total);
        let mut unused: Vec<(Id, u64)> = listed.into_iter().collect();
        unused.sort_unstable();
        self.problems.extend(unused.into_iter().map(|(id, size)| Problem::UnusedPack { id, size }));
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
            for (pack, blobs) in index.by_pack() {
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
