//! Packs read whole: the hash that is their name, the header against the index, every blob.

use std::collections::HashMap;
use std::sync::Arc;

use futures::StreamExt;
use tokio::sync::Semaphore;

use super::{Check, CheckStage, Problem, local};
use crate::crypto::OVERHEAD;
use crate::file::FileKind;
use crate::index::{Index, PackNo};
use crate::pack::{self, Header, PackedBlob, TRAILER};
use crate::reader::{Scratch, opener_of};
use crate::store::{Inner, fetch};
use crate::{Error, Id, Result};

/// Packs above this length are reported rather than read: restic closes them at 128 MiB at most.
const LONGEST: u64 = 512 << 20;

/// The size of a pack with these blobs, by its format.
pub(super) fn expected_size(blobs: &[PackedBlob]) -> u64 {
    let mut distinct: Vec<&PackedBlob> = blobs.iter().collect();
    distinct.dedup_by_key(|blob| blob.offset);
    let end = distinct.last().map_or(0, |blob| blob.end());
    let entries: u64 = distinct.iter().map(|blob| if blob.raw_length.is_some() { 41 } else { 37 }).sum();
    end + entries + (OVERHEAD + TRAILER) as u64
}

impl Check<'_> {
    /// Reads every pack of the index that is there.
    pub(super) async fn data(&mut self, index: &Arc<Index>, sizes: &HashMap<PackNo, u64>) -> Result<()> {
        let inner = self.repo.inner();
        let reader = self.repo.reader(index.clone());
        let memory = inner.options.memory.clamp(1, u32::MAX as usize) as u32;
        let budget = Semaphore::new(memory as usize);
        let total = sizes.len();
        let packs =
            index.by_pack().filter_map(|(pack, blobs)| Some((index.pack(pack), *sizes.get(&pack)?, blobs)));
        let mut checks = futures::stream::iter(packs)
            .map(|(id, size, blobs)| {
                let (budget, reader) = (&budget, &reader);
                async move {
                    if size > LONGEST {
                        let detail = format!("it has {size} bytes, at most {LONGEST} are read").into();
                        let error = Error::BadParameter { what: "pack", detail };
                        return Ok(vec![Problem::Pack { id, error }]);
                    }
                    let share = u32::try_from(size).unwrap_or(memory).clamp(1, memory);
                    let _held = budget.acquire_many(share).await.expect("the semaphore is never closed");
                    let stored = match fetch(&*inner.bucket, FileKind::Pack, &id).await {
                        Ok(stored) => stored.to_vec(),
                        Err(error) => return Ok(vec![Problem::Pack { id, error: local(error)? }]),
                    };
                    reader.decode(move |inner, scratch| examine(inner, scratch, &id, stored, blobs)).await
                }
            })
            .buffer_unordered(inner.options.connections);
        let mut done = 0;
        while let Some(problems) = checks.next().await {
            let problems: Vec<Problem> = problems?;
            self.problems.extend(problems);
            done += 1;
            (self.progress)(super::CheckProgress { stage: CheckStage::Data, done, total: total as u64 });
        }
        Ok(())
    }
}

/// Checks one pack against its name and what the index says about it.
fn examine(
    inner: &Inner,
    scratch: &mut Scratch,
    id: &Id,
    mut stored: Vec<u8>,
    blobs: Vec<PackedBlob>,
) -> Result<Vec<Problem>> {
    let mut problems = Vec::new();
    let damaged = |detail: &str| Problem::Pack { id: *id, error: Error::damaged("pack", detail) };
    if Id::of(&stored) != *id {
        problems.push(damaged("its content has another hash than its name"));
    }
    let length = stored.len() as u64;
    let header = match pack::read_header(&inner.master, length, &stored) {
        Ok(Header::Blobs(header)) => header,
        Ok(Header::Needs(_)) => Vec::new(),
        Err(error) => {
            problems.push(Problem::Pack { id: *id, error });
            Vec::new()
        }
    };
    if !header.is_empty() && header.iter().any(|blob| !blobs.contains_sorted(blob)) {
        problems.push(damaged("its header names blobs that the index does not place there"));
    }
    if !header.is_empty() && blobs.iter().any(|blob| !header.contains_sorted(blob)) {
        problems.push(damaged("the index places blobs there that its header does not name"));
    }
    let opener = opener_of(inner, &mut scratch.opener)?;
    let out = &mut scratch.plain;
    let mut opened_to = 0;
    for blob in blobs {
        let range = usize::try_from(blob.offset).ok().zip(usize::try_from(blob.end()).ok());
        let sealed = range
            .filter(|(start, _)| *start >= opened_to)
            .and_then(|(start, end)| stored.get_mut(start..end));
        let outcome = match sealed {
            None => Err(Error::damaged("blob", "it overlaps another or lies beyond the end of the pack")),
            Some(sealed) => {
                opened_to = blob.end() as usize;
                opener.open(&blob, sealed, out).map(|_| ())
            }
        };
        if let Err(error) = outcome {
            problems.push(Problem::Blob { pack: *id, kind: blob.kind, id: blob.id, error });
        }
    }
    Ok(problems)
}

/// Looking up a blob among those of one pack.
trait Sorted {
    fn contains_sorted(&self, blob: &PackedBlob) -> bool;
}

impl Sorted for Vec<PackedBlob> {
    /// Blobs of a pack are in the order of their offsets.
    fn contains_sorted(&self, blob: &PackedBlob) -> bool {
        let at = self.partition_point(|other| other.offset < blob.offset);
        self[at..].iter().take_while(|other| other.offset == blob.offset).any(|other| other == blob)
    }
}
