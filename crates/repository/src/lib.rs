//! A repository in restic's format (version 2) on any bucket.
//!
//! There is one way in, [`Writer`], whose `finish` yields the snapshots, and one way out, [`Reader`], which compares
//! every blob with its name. Stock restic reads, checks, prunes and continues what is written here, and the other
//! way round (`tests/whole/interop.rs`).
//!
//! ```
//! use std::sync::Arc;
//! use std::time::Duration;
//!
//! use cistern_bucket::Memory;
//! use cistern_repository::{BlobKind, Identity, LockKind, Node, Options, Repository, Snapshot, Time, TreeBuilder};
//!
//! # #[tokio::main]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let who = Identity { hostname: "host-0".into(), username: "ann".into(), pid: 1, uid: 1000, gid: 1000 };
//! let bucket = Arc::new(Memory::new("memory"));
//! let repo = Repository::init(bucket, &"a password".into(), &who, Options::default()).await?;
//!
//! // In: a lock, the index of what is there, a writer. Files go in batches that a worker fills; directories follow.
//! let lock = repo.lock(LockKind::Shared, &who, Duration::ZERO).await?;
//! let writer = repo.writer(repo.index().await?, lock);
//! let permit = writer.permit(5).await?;
//! let contents = writer.batch(permit, |batch| batch.add(b"hello")).await?.remove(0)?;
//! let mut tree = TreeBuilder::new();
//! tree.add(&Node {
//!     name: b"greeting".as_slice().into(),
//!     mode: 0o644,
//!     size: contents.size,
//!     content: Some(contents.blobs.into()),
//!     ..Node::default()
//! })?;
//! let root = writer.tree(tree.finish()?)?;
//! let snapshot = Snapshot::new(Time::new(1_800_000_000, 0), root, vec!["/data".into()]);
//! writer.finish(vec![snapshot]).await?;
//!
//! // Out: snapshots are listed before the index is loaded.
//! let (_, snapshot) = repo.snapshots().await?.pop().ok_or("there is one")?;
//! let reader = repo.reader(repo.index().await?);
//! let root = reader.tree(&snapshot.tree).await?;
//! let node = root.get(b"greeting").ok_or("it is there")?;
//! let blob = node.content.as_ref().ok_or("it is a file")?[0];
//! assert_eq!(reader.blob(BlobKind::Data, &blob).await?, b"hello"[..]);
//! # Ok(())
//! # }
//! ```
//!
//! What this crate is not: it does not know files, keys of objects, or what to keep how long, prints nothing, and reads
//! no environment variable. The one thing of this machine that it looks at is `/proc`, to tell whether the process that
//! holds a lock on the same host is alive.

mod cache;
mod check;
pub mod chunker;
pub mod compress;
pub mod config;
mod copy;
pub mod crypto;
mod error;
pub mod file;
mod id;
mod idset;
pub mod index;
mod json;
pub mod key;
mod keys;
mod listed;
mod lock;
mod marks;
mod needed;
pub mod node;
mod opened;
pub mod pack;
pub mod polynomial;
mod prune;
mod quote;
mod reader;
mod repair;
mod replace;
mod repository;
mod scrypt;
pub mod sha256;
pub mod snapshot;
mod store;
pub mod time;
pub mod tree;
mod writer;

pub use check::{
    CheckOptions, CheckProgress, CheckStage, Finding, Problem, Progress, ReadData, RunCheck, check, check_run,
};
pub use copy::{Copied, Copier, Needed};
pub use error::{Error, Result};
pub use id::{BlobKind, Id, ParseIdError};
pub use index::{Index, Location};
pub use key::KdfParams;
pub use keys::{MAX_KEYS, NewKey, StoredKey};
pub use lock::{HeldLock, Lock, LockFile, LockKind};
pub use node::{Node, NodeKind, Xattr};
pub use prune::{
    Amount, Margins, MaxUnused, PruneOptions, PrunePlan, PruneProgress, PruneStage, Pruned, Requests,
    plan_prune, prune,
};
pub use reader::{Reader, Sink};
pub use repair::{
    BrokenSnapshot, DamagedPack, IndexPlan, IndexRepaired, Loss, PacksPlan, PacksRepaired, REPAIRED_TAG,
    Remedy, RepairListener, RepairProgress, RepairStage, SnapshotsPlan, SnapshotsRepaired, plan_repair_index,
    plan_repair_packs, plan_repair_snapshots, repair_index, repair_packs, repair_snapshots,
};
pub use repository::{Compression, Identity, Options, Repository};
pub use snapshot::{Snapshot, Summary};
pub use time::Time;
pub use tree::{Tree, TreeBuilder, TreeReader};
pub use writer::{Batch, Contents, FileWriter, Finished, Permit, Ticket, Writer, WriterStats};
