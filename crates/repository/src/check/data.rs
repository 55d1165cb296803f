//! Packs read whole: the hash that is their name, the header against the index, every blob.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use cistern_bucket::GetOptions;
use futures::StreamExt;
use tokio::sync::Semaphore;

use super::{Check, CheckStage, Problem, ReadData, local};
use crate::crypto::{IV_LEN, MAC_LEN, OVERHEAD};
use crate::file::FileKind;
use crate::index::{Index, PackNo};
use crate::opened::{group, other_hash};
use crate::pack::{self, Header, Opener, PackedBlob, Plain, TRAILER};
use crate::reader::{Scratch, opener_of};
use crate::sha256::{Job, Stream};
use crate::store::Inner;
use crate::{Error, Id, Result};

/// Packs above this length are reported rather than read: restic closes them at 128 MiB at most.
pub(crate) const LONGEST: u64 = 512 << 20;

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
        // Two at a time: the hash of one whole pack is a lane of its own, and leaves a third of the lanes empty.
        let pairs = chosen.chunks(2).map(|pair| {
            let blobs = |pack| by_pack.of(pack).into_iter().map(|(_, blob)| blob).collect();
            let pack = |pack: &PackNo| (index.pack(*pack), sizes[pack], blobs(*pack));
            pair.iter().map(pack).collect()
        });
        let mut checks = futures::stream::iter(pairs)
            .map(|pair: Vec<(Id, u64, Vec<PackedBlob>)>| {
                let (budget, reader) = (&budget, &reader);
                async move {
                    let count = pair.len();
                    let bytes: u64 =
                        pair.iter().map(|(_, size, _)| *size).filter(|size| *size <= LONGEST).sum();
                    let share = u32::try_from(bytes).unwrap_or(memory).clamp(1, memory);
                    let _held = budget.acquire_many(share).await.expect("the semaphore is never closed");
                    let (mut packs, mut problems) = (Vec::with_capacity(count), Vec::new());
                    for (id, size, blobs) in pair {
                        match whole(inner, &id, size).await {
                            Ok(stored) => packs.push((id, stored, blobs)),
                            Err(error) => problems.push(Problem::Pack { id, error: local(error)? }),
                        }
                    }
                    problems
                        .extend(reader.decode(move |inner, scratch| examine(inner, scratch, packs)).await?);
                    Ok::<_, Error>((count, problems))
                }
            })
            .buffer_unordered(inner.options.connections);
        let mut done = 0;
        while let Some(outcome) = checks.next().await {
            let (count, problems) = outcome?;
            problems.into_iter().for_each(|problem| self.push(problem));
            done += count;
            self.report(CheckStage::Data, done, total);
        }
        Ok(())
    }
}

/// The bytes of a pack, in memory that was used before.
pub(crate) async fn whole(inner: &Inner, id: &Id, size: u64) -> Result<Vec<u8>> {
    let too_long = |length| {
        let detail = format!("it has {length} bytes, at most {LONGEST} are read").into();
        Error::BadParameter { what: "pack", detail }
    };
    if size > LONGEST {
        return Err(too_long(size));
    }
    let body = inner.bucket.get(&FileKind::Pack.key(id), &GetOptions::default()).await?.body;
    if body.length() > LONGEST {
        return Err(too_long(body.length()));
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

/// How far a pack is examined.
struct Exam {
    id: Id,
    blobs: Vec<PackedBlob>,
    problems: Vec<Problem>,
    /// Of the whole pack.
    stream: Stream,
    /// Bytes that went into it.
    hashed: usize,
    /// The first blob that is not opened yet.
    next: usize,
    /// Where the blobs end that were opened.
    opened_to: u64,
    /// Blobs that are not whole, by their positions.
    failed: Vec<(usize, Error)>,
}

/// A blob that was opened and is still to be hashed.
struct Opened {
    /// Position of its pack.
    exam: usize,
    /// Position in the pack.
    blob: usize,
    /// Where its plain bytes lie.
    place: Place,
}

enum Place {
    /// In its pack, in the place of what was stored.
    Stored(Range<usize>),
    /// In the buffer for what was compressed.
    Plain(Range<usize>),
}

/// Checks packs against their names and what the index says about them. What is stored is spent: each stretch of a pack
/// is hashed before its blobs are opened in place, and their hashes are made beside those of the next stretch.
pub(crate) fn examine(
    inner: &Inner,
    scratch: &mut Scratch,
    packs: Vec<(Id, Vec<u8>, Vec<PackedBlob>)>,
) -> Result<Vec<Problem>> {
    let Scratch { opener, plain } = scratch;
    let opener = opener_of(inner, opener)?;
    let (mut exams, mut stored): (Vec<Exam>, Vec<Vec<u8>>) =
        packs.into_iter().map(|(id, stored, blobs)| (Exam::begin(inner, id, &stored, blobs), stored)).unzip();
    let mut opened: Vec<Opened> = Vec::new();
    loop {
        let groups: Vec<Range<usize>> = exams.iter().map(Exam::group).collect();
        let mut streams: Vec<Stream> = opened.iter().map(|_| Stream::new()).collect();
        let mut jobs: Vec<Job<'_>> = Vec::with_capacity(exams.len() + opened.len());
        for ((exam, stored), group) in exams.iter_mut().zip(&stored).zip(&groups) {
            jobs.extend(exam.stretch(stored, group));
        }
        jobs.extend(streams.iter_mut().zip(&opened).map(|(stream, one)| {
            let bytes = match &one.place {
                Place::Stored(range) => &stored[one.exam][range.clone()],
                Place::Plain(range) => &plain[range.clone()],
            };
            Job::last(stream, bytes)
        }));
        inner.lanes.run(&mut jobs);
        drop(jobs);
        for (one, stream) in opened.drain(..).zip(streams) {
            let exam = &mut exams[one.exam];
            let id = exam.blobs[one.blob].id;
            if Id::from_bytes(stream.finish()) != id {
                exam.failed.push((one.blob, other_hash(id)));
            }
        }
        if groups.iter().all(Range::is_empty) {
            break;
        }
        plain.clear();
        for (number, group) in groups.into_iter().enumerate() {
            exams[number].next = group.end;
            for blob in group {
                match exams[number].open(blob, opener, &mut stored[number], plain) {
                    Ok(place) => opened.push(Opened { exam: number, blob, place }),
                    Err(error) => exams[number].failed.push((blob, error)),
                }
            }
        }
    }
    plain.clear();
    stored.into_iter().for_each(|stored| inner.buffers.give(stored));
    Ok(exams.into_iter().flat_map(Exam::finish).collect())
}

impl Exam {
    /// Compares header and index, before anything is opened.
    fn begin(inner: &Inner, id: Id, stored: &[u8], blobs: Vec<PackedBlob>) -> Self {
        let mut problems = Vec::new();
        let header = match pack::read_header(&inner.master, stored.len() as u64, stored) {
            Ok(Header::Blobs(header)) => header,
            Ok(Header::Needs(_)) => Vec::new(),
            Err(error) => {
                problems.push(Problem::Pack { id, error });
                Vec::new()
            }
        };
        if !header.is_empty() && header.iter().any(|blob| !contains_sorted(&blobs, blob)) {
            problems.push(damaged(id, "its header names blobs that the index does not place there"));
        }
        if !header.is_empty() && blobs.iter().any(|blob| !contains_sorted(&header, blob)) {
            problems.push(damaged(id, "the index places blobs there that its header does not name"));
        }
        let stream = Stream::new();
        Exam { id, blobs, problems, stream, hashed: 0, next: 0, opened_to: 0, failed: Vec::new() }
    }

    /// Positions of the blobs that are opened next.
    fn group(&self) -> Range<usize> {
        self.next..self.next + group(&self.blobs[self.next..])
    }

    /// The stretch of the pack that is hashed before this group is opened; with the last group, all that is left.
    fn stretch<'a>(&'a mut self, stored: &'a [u8], group: &Range<usize>) -> Option<Job<'a>> {
        let last = group.end == self.blobs.len();
        let reach = self.blobs[group.clone()].last().map_or(0, PackedBlob::end);
        let reach = usize::try_from(reach).unwrap_or(usize::MAX).clamp(self.hashed, stored.len());
        let end = if last { stored.len() } else { reach };
        let stretch = &stored[self.hashed..end];
        self.hashed = end;
        match (stretch.is_empty(), last) {
            (true, _) => None,
            (false, true) => Some(Job::last(&mut self.stream, stretch)),
            (false, false) => Some(Job::new(&mut self.stream, stretch)),
        }
    }

    /// Opens a blob in place; one of which others claim a part, in a copy.
    fn open(
        &mut self,
        number: usize,
        opener: &mut Opener,
        stored: &mut [u8],
        plain: &mut Vec<u8>,
    ) -> Result<Place> {
        let blob = self.blobs[number];
        let overlaps_last = u64::from(blob.offset) < self.opened_to;
        let overlaps_next =
            self.blobs.get(number + 1).is_some_and(|next| u64::from(next.offset) < blob.end());
        self.opened_to = self.opened_to.max(blob.end());
        let range = blob.offset as usize..usize::try_from(blob.end()).unwrap_or(usize::MAX);
        let beyond = || Error::damaged("blob", "it lies beyond the end of the pack").named(blob.id);
        let sealed = stored.get_mut(range.clone()).ok_or_else(beyond)?;
        if overlaps_last || overlaps_next {
            let mut copy = sealed.to_vec();
            let start = plain.len();
            if let Plain::InPlace(bytes) = opener.open_unverified(&blob, &mut copy, plain)? {
                plain.extend_from_slice(bytes);
            }
            if overlaps_last {
                return Err(Error::damaged("blob", "it overlaps another").named(blob.id));
            }
            return Ok(Place::Plain(start..plain.len()));
        }
        Ok(match opener.open_unverified(&blob, sealed, plain)? {
            Plain::InPlace(_) => Place::Stored(range.start + IV_LEN..range.end - MAC_LEN),
            Plain::Appended(range) => Place::Plain(range),
        })
    }

    fn finish(mut self) -> Vec<Problem> {
        self.failed.sort_by_key(|(number, _)| *number);
        self.problems.extend(self.failed.into_iter().map(|(number, error)| {
            let PackedBlob { kind, id, .. } = self.blobs[number];
            Problem::Blob { pack: self.id, kind, id, error }
        }));
        if Id::from_bytes(self.stream.finish()) != self.id {
            self.problems.push(damaged(self.id, "its content has another hash than its name"));
        }
        self.problems
    }
}

fn damaged(id: Id, detail: &str) -> Problem {
    Problem::Pack { id, error: Error::damaged("pack", detail) }
}

/// Whether a blob is among those of one pack, which are in the order of their offsets.
fn contains_sorted(blobs: &[PackedBlob], blob: &PackedBlob) -> bool {
    let at = blobs.partition_point(|other| other.offset < blob.offset);
    blobs[at..].iter().take_while(|other| other.offset == blob.offset).any(|other| other == blob)
}
