//! How index files and packs are replaced: what is new becomes durable, then what it replaces goes, as long as the lock
//! excludes all others.

use cistern_bucket::Key;

use crate::file::FileKind;
use crate::index::{Index, IndexFile, NamedIn, PackNo};
use crate::pack::PackedBlob;
use crate::repository::Repository;
use crate::{Id, Lock, Result};

/// Files that are deleted before the lock is looked at again.
const TOGETHER: usize = 1000;

/// Those index files that are meant, and all packs that they name, each once.
pub(crate) fn naming(index: &Index, is_meant: impl Fn(&NamedIn) -> bool) -> (Vec<Id>, Vec<PackNo>) {
    let files: Vec<&NamedIn> = index.files().iter().filter(|file| is_meant(file)).collect();
    let mut packs: Vec<PackNo> = files.iter().flat_map(|file| &file.packs).copied().collect();
    packs.sort_unstable();
    packs.dedup();
    (files.iter().map(|file| file.id).collect(), packs)
}

/// Writes packs with their blobs into as many index files as they need.
pub(crate) struct IndexFiles<'a> {
    repo: &'a Repository,
    lock: &'a Lock,
    file: IndexFile,
    written: u64,
}

impl<'a> IndexFiles<'a> {
    /// Nothing is written yet.
    pub(crate) fn new(repo: &'a Repository, lock: &'a Lock) -> Self {
        IndexFiles { repo, lock, file: IndexFile::new(), written: 0 }
    }

    /// Adds a pack; true if a file was written with it.
    pub(crate) async fn add(&mut self, pack: &Id, blobs: &[PackedBlob]) -> Result<bool> {
        self.file.add(pack, blobs);
        let is_full = self.file.is_full();
        if is_full {
            self.write().await?;
        }
        Ok(is_full)
    }

    /// Writes what is left; yields how many files were written.
    pub(crate) async fn finish(mut self) -> Result<u64> {
        if !self.file.is_empty() {
            self.write().await?;
        }
        Ok(self.written)
    }

    async fn write(&mut self) -> Result<()> {
        self.lock.check()?;
        let json = std::mem::take(&mut self.file).finish();
        self.repo.inner().save_json(FileKind::Index, json).await?;
        self.written += 1;
        Ok(())
    }
}

/// Deletes files, as long as the lock excludes all others. `done` is told how many are gone.
pub(crate) async fn delete(
    repo: &Repository,
    lock: &Lock,
    kind: FileKind,
    ids: &[Id],
    done: &(dyn Fn(u64) + Send + Sync),
) -> Result<()> {
    let mut gone = 0;
    for ids in ids.chunks(TOGETHER) {
        lock.still_excludes().await?;
        let keys: Vec<Key> = ids.iter().map(|id| kind.key(id)).collect();
        for outcome in repo.inner().bucket.delete_many(&keys).await {
            outcome.result?;
        }
        if let Some(cache) = &repo.inner().cache {
            for id in ids {
                cache.remove(kind, id).await;
            }
        }
        gone += ids.len() as u64;
        done(gone);
    }
    Ok(())
}
