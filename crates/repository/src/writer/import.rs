//! Blobs that are stored already, in this repository or in another one: opened, compared with their names, and taken over
//! as they are compressed.

use std::sync::Arc;

use tokio::sync::oneshot;

use super::budget::Permit;
use super::worker::Worker;
use crate::crypto::MasterKey;
use crate::opened::{Buffers, group, other_hash, sealed};
use crate::pack::{Opener, PackedBlob};
use crate::{BlobKind, Error, Id, Result};

/// A stretch of a pack, and which of its blobs are wanted.
pub(crate) struct Import {
    /// The key under which the blobs are sealed.
    pub(crate) key: Arc<MasterKey>,
    pub(crate) stretch: Vec<u8>,
    /// Where in the pack the stretch begins.
    pub(crate) start: u64,
    /// All of one kind.
    pub(crate) blobs: Vec<PackedBlob>,
}

/// A blob that could not be taken over, and why.
pub(crate) type Failed = (PackedBlob, Error);

/// An import that waits for a worker.
pub(crate) struct ImportJob {
    pub(super) import: Import,
    /// Freed when it is done.
    pub(super) _permit: Permit,
    /// Stays until there is an answer: the blobs that are not whole.
    pub(super) answer: Option<oneshot::Sender<Vec<Failed>>>,
}

/// A blob whose plain bytes and name are at hand: a directory, or what was whole only in its second place.
pub(crate) struct BlobJob {
    pub(crate) kind: BlobKind,
    pub(crate) id: Id,
    pub(crate) plain: Vec<u8>,
    /// Freed when the job is done.
    pub(crate) _permit: Permit,
}

/// What one worker keeps for imports.
#[derive(Default)]
pub(super) struct Importer {
    /// For the key that was used last.
    opener: Option<(Arc<MasterKey>, Opener)>,
    buffers: Buffers,
}

impl Importer {
    fn opener(&mut self, key: &Arc<MasterKey>) -> Result<(&mut Opener, &mut Buffers)> {
        if !self.opener.as_ref().is_some_and(|(last, _)| Arc::ptr_eq(last, key)) {
            self.opener = Some((key.clone(), Opener::new(key.clone())?));
        }
        let (_, opener) = self.opener.as_mut().expect("it was just made");
        Ok((opener, &mut self.buffers))
    }
}

/// A blob as it is at hand for the pack that takes it.
pub(super) enum Content<'a> {
    /// To be compressed and sealed.
    Plain(&'a [u8]),
    /// To be sealed.
    Text(&'a [u8], Option<u32>),
    /// To be copied.
    Sealed(&'a [u8], Option<u32>),
}

impl Worker {
    pub(super) fn import(&mut self, job: &mut ImportJob) -> Result<()> {
        let Some(answer) = job.answer.take() else { return Ok(()) };
        let mut importer = std::mem::take(&mut self.importer);
        let mut failed = Vec::new();
        let mut rest = job.import.blobs.as_slice();
        while !rest.is_empty() {
            let (now, later) = rest.split_at(group(rest));
            rest = later;
            self.import_group(&mut importer, &job.import, now, &mut failed)?;
        }
        importer.buffers.shrink();
        self.importer = importer;
        // Nobody may be waiting any more.
        let _ = answer.send(failed);
        Ok(())
    }

    fn import_group(
        &mut self,
        importer: &mut Importer,
        import: &Import,
        blobs: &[PackedBlob],
        failed: &mut Vec<Failed>,
    ) -> Result<()> {
        let Import { key, stretch, start, .. } = import;
        let (opener, buffers) = importer.opener(key)?;
        let opened = buffers.open(opener, stretch, *start, blobs, |i, error| failed.push((blobs[i], error)));
        let (positions, plains) = opened.plains();
        let kind = blobs[0].kind;
        let mut pack = self.take_open(kind);
        let ids = self.hash(&plains, pack.as_mut());
        let is_ours = Arc::ptr_eq(key, self.master());
        for (n, (position, id)) in positions.into_iter().zip(ids).enumerate() {
            let blob = &blobs[position];
            if id != blob.id {
                failed.push((*blob, other_hash(blob.id)));
            } else if self.claim(kind, &id) {
                let content = match is_ours {
                    true => Content::Sealed(sealed(stretch, *start, blob)?, blob.raw_length),
                    false => Content::Text(opened.text(n), blob.raw_length),
                };
                self.put(kind, &mut pack, id, &content, plains[n].len())?;
            }
        }
        if let Some(pack) = pack {
            self.give_back(pack);
        }
        Ok(())
    }
}
