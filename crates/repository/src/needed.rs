//! The files that the snapshots of a repository need, whatever else lies in it.

use std::sync::Arc;

use crate::file::FileKind;
use crate::index::Index;
use crate::marks::Marks;
use crate::prune::{Listener, PruneProgress, PruneStage, needed};
use crate::repository::Repository;
use crate::{Id, Result};

impl Repository {
    /// Every file without which one of the snapshots could not be restored: the config, all keys, all snapshots, all
    /// index files, and the packs that hold anything which a snapshot needs. Of what lies in several packs, all of them
    /// are named, since any may be the one that is read. Locks and packs that nobody needs are not.
    ///
    /// `listen` hears about index files and snapshots. Memory is that of the index and a mark for each of its blobs.
    ///
    /// # Errors
    /// What snapshots need is missing or damaged; what the bucket says.
    pub async fn needed_files(&self, listen: &Listener<'_>) -> Result<Vec<(FileKind, Id)>> {
        // Snapshots are listed before the index: then the index names everything that they need.
        let snapshots = self.snapshots().await?;
        let loaded = |done, total| listen(PruneProgress { stage: PruneStage::Index, done, total });
        let index = self.index_with_progress(&loaded).await?;
        let marks = needed(self, &index, snapshots.iter().map(|(_, snapshot)| snapshot.tree), listen).await?;
        let mut files = vec![(FileKind::Config, Id::default())];
        files.extend(self.inner().list(FileKind::Key).await?.into_iter().map(|(id, _)| (FileKind::Key, id)));
        files.extend(snapshots.iter().map(|(id, _)| (FileKind::Snapshot, *id)));
        files.extend(index.files().iter().map(|file| (FileKind::Index, file.id)));
        files.extend(packs(&index, &marks).into_iter().map(|id| (FileKind::Pack, id)));
        Ok(files)
    }
}

/// The packs that hold a marked blob.
fn packs(index: &Arc<Index>, marks: &Marks) -> Vec<Id> {
    let mut holds = vec![false; index.packs().len()];
    let mut last = None;
    let mut wanted = false;
    for (entry, pack, blob) in index.numbered() {
        // The first of the entries about a blob stands for all of them.
        if last.replace((blob.kind, blob.id)) != Some((blob.kind, blob.id)) {
            wanted = marks.has(entry);
        }
        holds[pack.index()] |= wanted;
    }
    index.packs().iter().zip(holds).filter(|(_, holds)| *holds).map(|(id, _)| *id).collect()
}
