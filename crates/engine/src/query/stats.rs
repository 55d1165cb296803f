//! What snapshots hold, and what they cost in the repository.

use std::collections::HashSet;

use cistern_repository::{BlobKind, Id, NodeKind, Reader};
use serde::Serialize;

use super::walk::{Next, walk};
use crate::Result;

/// Counts over one or more snapshots.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Stats {
    /// Snapshots that were counted.
    pub snapshots: u64,
    /// Files (objects) in them, every snapshot for itself.
    pub files: u64,
    /// Directories in them.
    pub directories: u64,
    /// Links, devices and the like in them.
    pub others: u64,
    /// Bytes that a restore of every one of them would write.
    pub restore_bytes: u64,
    /// Different blobs that they lean on.
    pub blobs: u64,
    /// Bytes of these before compression.
    pub raw_bytes: u64,
    /// Bytes of these as stored.
    pub stored_bytes: u64,
}

/// Counts what the trees `roots` hold together. Directories that occur in several snapshots are read once;
/// memory is 32 bytes per different directory and blob.
///
/// # Errors
/// A tree that cannot be read.
pub async fn stats(reader: &Reader, roots: &[Id]) -> Result<Stats> {
    let mut stats = Stats::default();
    let mut blobs: HashSet<Id> = HashSet::new();
    let mut trees: HashSet<Id> = HashSet::new();
    for root in roots {
        stats.snapshots += 1;
        count_tree(reader, &mut stats, &mut trees, root);
        walk(reader, root, b"", |_, node| {
            match node.kind {
                NodeKind::Dir => {
                    stats.directories += 1;
                    if let Some(subtree) = &node.subtree {
                        count_tree(reader, &mut stats, &mut trees, subtree);
                    }
                }
                NodeKind::File => {
                    stats.files += 1;
                    stats.restore_bytes += node.size;
                    for id in node.content.iter().flatten() {
                        if blobs.insert(*id) {
                            count_blob(reader, &mut stats, BlobKind::Data, id);
                        }
                    }
                }
                _ => stats.others += 1,
            }
            Ok(Next::Descend)
        })
        .await?;
    }
    Ok(stats)
}

fn count_tree(reader: &Reader, stats: &mut Stats, trees: &mut HashSet<Id>, id: &Id) {
    if trees.insert(*id) {
        count_blob(reader, stats, BlobKind::Tree, id);
    }
}

fn count_blob(reader: &Reader, stats: &mut Stats, kind: BlobKind, id: &Id) {
    stats.blobs += 1;
    stats.raw_bytes += u64::from(reader.raw_length(kind, id).unwrap_or(0));
    stats.stored_bytes += reader.locate(kind, id).map_or(0, |location| u64::from(location.length));
}
