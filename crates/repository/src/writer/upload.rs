//! Takes finished packs to the bucket, several at a time, and writes index files about those that are durable.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use tokio::sync::mpsc::UnboundedReceiver;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::Core;
use super::packs::PackBytes;
use crate::file::FileKind;
use crate::index::IndexFile;
use crate::pack::{FinishedPack, PackedBlob};
use crate::{Error, Id, Result};

/// A pack is named by an index file at the latest so long after it was stored; it is also about how long
/// another writer may store the same blobs again.
const INDEX_EVERY: Duration = Duration::from_secs(120);

/// What an upload has achieved.
enum Done {
    Pack(Id, Vec<PackedBlob>),
    Index,
}

/// Runs until the workers are gone and everything is durable, or until the writer has failed.
pub(super) async fn run(core: Arc<Core>, packs: UnboundedReceiver<FinishedPack>) {
    if let Err(error) = upload(&core, packs).await {
        core.fail(error);
    }
}

async fn upload(core: &Arc<Core>, mut packs: UnboundedReceiver<FinishedPack>) -> Result<()> {
    let connections = core.repo.options().connections;
    let mut failed = core.failed.subscribe();
    let mut uploads: JoinSet<Result<Done>> = JoinSet::new();
    let (mut more, mut uploading) = (true, 0);
    let mut index = IndexFile::new();
    let mut due = Instant::now();
    loop {
        let last = !more && uploading == 0;
        if !index.is_empty() && (index.is_full() || last || Instant::now() >= due) {
            let json = std::mem::take(&mut index).finish();
            let core = core.clone();
            uploads.spawn(async move {
                let (_, length) = core.repo.inner().save_json(FileKind::Index, json).await?;
                core.counters.index_files.fetch_add(1, Relaxed);
                core.counters.uploaded.fetch_add(length, Relaxed);
                Ok(Done::Index)
            });
        }
        if last && uploads.is_empty() {
            return Ok(());
        }
        tokio::select! {
            _ = failed.wait_for(|failed| *failed) => return Err(core.error()),
            pack = packs.recv(), if more && uploading < connections => match pack {
                None => more = false,
                Some(mut pack) => {
                    uploading += 1;
                    let core = core.clone();
                    uploads.spawn(async move {
                        let bytes = PackBytes::of(&mut pack, core.packs.clone());
                        let length = bytes.len() as u64;
                        core.repo.inner().put(FileKind::Pack, &pack.id, bytes).await?;
                        core.counters.uploaded.fetch_add(length, Relaxed);
                        Ok(Done::Pack(pack.id, pack.blobs))
                    });
                }
            },
            Some(done) = uploads.join_next(), if !uploads.is_empty() => {
                match done.map_err(|_| Error::Broken("an uploading task panicked"))?? {
                    Done::Index => {}
                    Done::Pack(id, blobs) => {
                        uploading -= 1;
                        if index.is_empty() {
                            due = Instant::now() + INDEX_EVERY;
                        }
                        index.add(&id, &blobs);
                    }
                }
            }
            () = sleep_until(due), if !index.is_empty() => {}
        }
    }
}
