//! The last step of a run: snapshots, which may be written only while everything that they need is there.

use std::collections::HashSet;
use std::sync::atomic::Ordering::Relaxed;

use super::Core;
use crate::file::FileKind;
use crate::{BlobKind, Error, Id, Lock, Result, Snapshot};

/// Writes the snapshots, after everything else has become durable.
pub(super) async fn snapshots(core: &Core, lock: &Lock, snapshots: Vec<Snapshot>) -> Result<Vec<Id>> {
    let inner = core.repo.inner();
    let mut json = Vec::with_capacity(snapshots.len());
    for snapshot in &snapshots {
        if !core.live.contains(BlobKind::Tree, &snapshot.tree) {
            return Err(Error::NoSuchBlob { kind: BlobKind::Tree, id: snapshot.tree });
        }
        json.push(snapshot.to_json());
    }
    lock.check()?;
    if !json.is_empty() && !lock.was_always_there().await? {
        prove(core, &snapshots).await?;
    }
    let mut ids = Vec::with_capacity(json.len());
    for json in json {
        lock.check()?;
        let (id, length) = inner.save_json(FileKind::Snapshot, json).await?;
        core.counters.uploaded.fetch_add(length, Relaxed);
        ids.push(id);
    }
    Ok(ids)
}

/// Our lock was removed by somebody: looks for every blob that the snapshots need in the index as it is now, and
/// for the packs that it names.
async fn prove(core: &Core, snapshots: &[Snapshot]) -> Result<()> {
    let lost = |detail: String| Error::LockLost { detail: detail.into() };
    let index = core.repo.index().await?;
    let packs: HashSet<Id> =
        core.repo.inner().list(FileKind::Pack).await?.into_iter().map(|(id, _)| id).collect();
    let present =
        |kind, id: &Id| index.lookup_all(kind, id).any(|place| packs.contains(&index.pack(place.pack)));
    let reader = core.repo.reader(index.clone());
    let mut seen: HashSet<Id> = HashSet::new();
    let mut stack: Vec<Id> = snapshots.iter().map(|snapshot| snapshot.tree).collect();
    while let Some(id) = stack.pop() {
        if !seen.insert(id) {
            continue;
        }
        if !present(BlobKind::Tree, &id) {
            return Err(lost(format!("it was removed, and tree {id} is gone")));
        }
        let tree = reader.tree(&id).await?;
        for node in tree.nodes() {
            if let Some(blob) = node.content.iter().flatten().find(|blob| !present(BlobKind::Data, blob)) {
                return Err(lost(format!("it was removed, and blob {blob} is gone")));
            }
            stack.extend(node.subtree);
        }
    }
    Ok(())
}
