//! Packs read whole: the hash that is their name, the header against the index, every blob.

use std::collections::HashMap;
use std::sync::Arc;

use cistern_bucket::GetOptions;
use futures::StreamExt;
use tokio::sync::Semaphore;

use super::{Check, CheckStage, Problem, ReadData, local};
use crate::crypto::OVERHEAD;
use crate::file::FileKind;
use crate::index::{Index, PackNo};
use crate::opened::{group, other_hash};
use crate::pack::{self, Header, PackedBlob, TRAILER};
use crate::reader::{Scratch, opener_of};
use crate::sha256::{Job, Stream};
use crate::store::Inner;
use crate::{Error, Id, Result};

/// Packs above this length are reported rather than read: restic closes them at 128 MiB at most.
const LONGEST: u64 = 512 << 20;

/// The size of a pack with these blobs, by its format.
pub(crate) fn expected_size(blobs: &[PackedBlob]) -> u64 {
    let mut distinct: Vec<&PackedBlob> = blobs.iter().collect();
    distinct.dedup_by_key(|blob| blob.offset);
    let end = distinct.last().map_or(0, |blob| blob.end());
    let entries: u64 = distinct.iter().map(|blob| if blob.raw_length.is_some() { 41 } else { 37 }).sum();
    end + entries + (OVERHEAD + TRAILER) as u64
}

impl Check<'_> {
    /// Reads those packs of the index that are wanted and there.
    pub(super) async fn data(
        &self,
        index: &Arc<Index>,
        sizes: &HashMap<PackNo, u64>,
        wanted: ReadData,
    ) -> Result<()> {
        let chosen = choose(index, sizes, wanted)?;
        if chosen.is_empty() {
            return Ok(());
        }
        let inner = self.repo.inner();
        let reader = self.repo.reader(index.clone());
        let memory = inner.options.memory.clamp(1, u32::MAX as usize) as u32;
        let budget = Semaphore::new(memory as usize);
        let total = chosen.len();
        let by_pack = index.by_pack();
        let packs = chosen.into_iter().map(|pack| {
            let blobs = by_pack.of(pack).into_iter().map(|(_, blob)| blob).collect();
            (index.pack(pack), sizes[&pack], blobs)
        });
        let mut checks = futures::stream::iter(packs)
            .map(|(id, size, blobs): (Id, u64, Vec<PackedBlob>)| {
                let (budget, reader) = (&budget, &reader);
                async move {
                    if size > LONGEST {
                        let detail = format!("it has {size} bytes, at most {LONGEST} are read").into();
                        let error = Error::BadParameter { what: "pack", detail };
                        return Ok(vec![Problem::Pack { id, error }]);
                    }
                    let share = u32::try_from(size).unwrap_or(memory).clamp(1, memory);
                    let _held = budget.acquire_many(share).await.expect("the semaphore is never closed");
                    let stored = match whole(inner, &id, size).await {
                        Ok(stored) => stored,
                        Err(error) => return Ok(vec![Problem::Pack { id, error: local(error)? }]),
                    };
                    let examine = move |inner: &Inner, scratch: &mut Scratch| {
                        let problems = examine(inner, scratch, &id, &stored, &blobs)?;
                        inner.buffers.give(stored);
                        Ok(problems)
                    };
                    reader.decode(examine).await
                }
            })
            .buffer_unordered(inner.options.connections);
        let mut done = 0;
        while let Some(problems) = checks.next().await {
            let problems: Vec<Problem> = problems?;
            problems.into_iter().for_each(|problem| self.push(problem));
            done += 1;
            self.report(CheckStage::Data, done, total);
        }
        Ok(())
    }
}

/// The bytes of a pack, in memory that was used before.
async fn whole(inner: &Inner, id: &Id, size: u64) -> Result<Vec<u8>> {
    let body = inner.bucket.get(&FileKind::Pack.key(id), &GetOptions::default()).await?.body;
    if body.length() > LONGEST {
        let detail = format!("it has {} bytes, at most {LONGEST} are read", body.length()).into();
        return Err(Error::BadParameter { what: "pack", detail });
    }
    Ok(body.read_into(inner.buffers.take(size)).await?)
}

/// Which packs are read, those of one directory of the bucket together.
fn choose(index: &Index, sizes: &HashMap<PackNo, u64>, wanted: ReadData) -> Result<Vec<PackNo>> {
    let mut packs: Vec<PackNo> = index.pack_numbers().filter(|pack| sizes.contains_key(pack)).collect();
    packs.sort_by_key(|pack| index.pack(*pack));
    let take_first =
        |packs: Vec<PackNo>, enough: &mut dyn FnMut(usize, u64) -> bool| -> Result<Vec<PackNo>> {
            let mut shuffled =
                packs.into_iter().map(|pack| Ok((Id::random()?, pack))).collect::<Result<Vec<_>>>()?;
            shuffled.sort_unstable();
            let mut bytes = 0;
            let chosen = shuffled.into_iter().enumerate().take_while(|(count, (_, pack))| {
                let go = !enough(*count, bytes);
                bytes += sizes[pack];
                go
            });
            let mut chosen: Vec<PackNo> = chosen.map(|(_, (_, pack))| pack).collect();
            chosen.sort_by_key(|pack| index.pack(*pack));
            Ok(chosen)
        };
    match wanted {
        ReadData::No => Ok(Vec::new()),
        ReadData::All => Ok(packs),
        ReadData::Part { number, of } => {
            packs.retain(|pack| index.pack(*pack).leading() % u64::from(of.max(1)) + 1 == u64::from(number));
            Ok(packs)
        }
        ReadData::Share(share) => {
            // At least one, or a small repository would never be read.
            let count = (packs.len() as f64 * share).ceil() as usize;
            take_first(packs, &mut |taken, _| taken >= count)
        }
        ReadData::Bytes(most) => take_first(packs, &mut |_, bytes| bytes >= most),
    }
}

/// Checks one pack against its name and what the index says about it.
fn examine(
    inner: &Inner,
    scratch: &mut Scratch,
    id: &Id,
    stored: &[u8],
    blobs: &[PackedBlob],
) -> Result<Vec<Problem>> {
    let mut problems = Vec::new();
    let damaged = |detail: &str| Problem::Pack { id: *id, error: Error::damaged("pack", detail) };
    let length = stored.len() as u64;
    let header = match pack::read_header(&inner.master, length, stored) {
        Ok(Header::Blobs(header)) => header,
        Ok(Header::Needs(_)) => Vec::new(),
        Err(error) => {
            problems.push(Problem::Pack { id: *id, error });
            Vec::new()
        }
    };
    if !header.is_empty() && header.iter().any(|blob| !contains_sorted(blobs, blob)) {
        problems.push(damaged("its header names blobs that the index does not place there"));
    }
    if !header.is_empty() && blobs.iter().any(|blob| !contains_sorted(&header, blob)) {
        problems.push(damaged("the index places blobs there that its header does not name"));
    }
    let Scratch { opener, buffers, .. } = scratch;
    let opener = opener_of(inner, opener)?;
    let (mut stream, mut hashed, mut opened_to) = (Stream::new(), 0, 0);
    let mut rest = blobs;
    while !rest.is_empty() {
        let (now, later) = rest.split_at(group(rest));
        rest = later;
        let mut failed: Vec<(usize, Error)> = Vec::new();
        let opened = buffers.open(opener, stored, 0, now, |i, error| failed.push((i, error)));
        let (positions, plains) = opened.plains();
        // The pack as far as these blobs reach is one more message that is hashed with them.
        let end = (now.last().map_or(0, PackedBlob::end) as usize).clamp(hashed, stored.len());
        let mut streams: Vec<Stream> = plains.iter().map(|_| Stream::new()).collect();
        let mut jobs = vec![Job::new(&mut stream, &stored[hashed..end])];
        jobs.extend(streams.iter_mut().zip(&plains).map(|(stream, plain)| Job::last(stream, plain)));
        inner.lanes.run(&mut jobs);
        hashed = end;
        for (i, stream) in positions.into_iter().zip(streams) {
            if Id::from_bytes(stream.finish()) != now[i].id {
                failed.push((i, other_hash(now[i].id)));
            }
        }
        for (i, blob) in now.iter().enumerate() {
            if u64::from(blob.offset) < opened_to && !failed.iter().any(|(other, _)| *other == i) {
                failed.push((i, Error::damaged("blob", "it overlaps another").named(blob.id)));
            }
            opened_to = blob.end();
        }
        failed.sort_by_key(|(i, _)| *i);
        problems.extend(failed.into_iter().map(|(i, error)| {
            let PackedBlob { kind, id: blob, .. } = now[i];
            Problem::Blob { pack: *id, kind, id: blob, error }
        }));
    }
    inner.lanes.run(&mut [Job::last(&mut stream, &stored[hashed..])]);
    if Id::from_bytes(stream.finish()) != *id {
        problems.push(damaged("its content has another hash than its name"));
    }
    buffers.shrink();
    Ok(problems)
}

/// Whether a blob is among those of one pack, which are in the order of their offsets.
fn contains_sorted(blobs: &[PackedBlob], blob: &PackedBlob) -> bool {
    let at = blobs.partition_point(|other| other.offset < blob.offset);
    blobs[at..].iter().take_while(|other| other.offset == blob.offset).any(|other| other == blob)
}
