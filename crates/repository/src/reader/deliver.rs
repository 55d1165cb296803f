//! Bulk reading: ranges of packs are fetched ahead, opened on the decoding threads, and handed to a sink there.

use std::sync::Arc;

use futures::{StreamExt, TryStreamExt};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::decoders::KEEP;
use super::plan::{Item, Plan, Span, plan};
use super::{Reader, Scratch, check_length, is_local, opener_of};
use crate::pack::PackedBlob;
use crate::store::Inner;
use crate::{BlobKind, Error, Id, Result};

/// What gets the blobs: called with a position in the list of what is wanted and the plain bytes, which lie in a
/// worker's buffer, or the reason why there are none.
pub type Sink = dyn Fn(usize, Result<&[u8], &Error>) + Send + Sync;

/// A range of a pack that is fetched at once, at most: several blobs, so that they can be hashed together. Allocators give
/// memory of about 8 MiB and more back at once, and the next range would pay for new pages.
const SPAN: usize = 7 << 20;
/// Plain bytes that are hashed together, unless one blob alone has more: as much as a thread keeps room for.
const GROUP: u64 = KEEP as u64;

impl Reader {
    /// Fetches data blobs; repeats are allowed and cost nothing. `sink` is called for every position of `wanted`, on
    /// the decoding threads, several at once, in any order. A damaged or missing blob gives its error to its sinks,
    /// after every place that has it was tried; the rest goes on.
    ///
    /// In memory are at most [`Options::memory`](crate::Options::memory) bytes of ranges, and a few blobs per
    /// thread.
    ///
    /// # Errors
    /// What concerns the bucket as a whole, or a panic of the sink: then not every position has been called.
    pub async fn deliver(&self, wanted: Vec<Id>, sink: Arc<Sink>) -> Result<()> {
        if u32::try_from(wanted.len()).is_err() {
            return Err(Error::BadParameter {
                what: "list of blobs",
                detail: "it has more than 2^32".into(),
            });
        }
        let options = &self.inner.options;
        let memory = options.memory.min(u32::MAX as usize);
        let ahead = options.connections + options.workers;
        let longest = (memory / ahead).clamp(1 << 20, SPAN) as u64;
        let Plan { spans, missing } = plan(&self.index, BlobKind::Data, &wanted, longest);
        for i in missing {
            sink(i as usize, Err(&Error::NoSuchBlob { kind: BlobKind::Data, id: wanted[i as usize] }));
        }
        drop(wanted);
        let budget = Arc::new(Semaphore::new(memory));
        let connections = Arc::new(Semaphore::new(options.connections));
        let spans = futures::stream::iter(spans.into_iter().map(|span| {
            let (budget, connections, sink) = (&budget, &connections, &sink);
            async move {
                let bytes = (span.end - span.start).clamp(1, memory as u64) as u32;
                let closed = "the semaphore is never closed";
                let held = budget.clone().acquire_many_owned(bytes).await.expect(closed);
                let fetched = {
                    let _connection = connections.acquire().await.expect(closed);
                    self.fetch_span(&span).await
                };
                match fetched {
                    Ok(sealed) => self.open_span(span, sealed, held, sink.clone()).await,
                    Err(error) if is_local(&error) => self.one_by_one(span.items, sink).await,
                    Err(error) => Err(error),
                }
            }
        }));
        spans.buffer_unordered(ahead).try_collect::<()>().await
    }

    async fn fetch_span(&self, span: &Span) -> Result<Vec<u8>> {
        for item in &span.items {
            check_length(&item.place.blob(BlobKind::Data, item.id))?;
        }
        let memory = self.inner.buffers.take(span.end - span.start);
        self.fetch(span.pack, span.start, span.end, memory).await
    }

    /// Opens all blobs of a span on a decoding thread; those that are damaged are looked for elsewhere.
    async fn open_span(
        &self,
        span: Span,
        mut sealed: Vec<u8>,
        held: OwnedSemaphorePermit,
        sink: Arc<Sink>,
    ) -> Result<()> {
        let passed = sink.clone();
        let failed = self
            .decode(move |inner, scratch| {
                let failed = open_all(inner, scratch, &span, &mut sealed, &*passed)?;
                inner.buffers.give(sealed);
                drop(held);
                Ok(failed)
            })
            .await?;
        self.one_by_one(failed, &sink).await
    }

    /// Fetches blobs each by itself, from every place that has them.
    async fn one_by_one(&self, items: Vec<Item>, sink: &Arc<Sink>) -> Result<()> {
        for item in items {
            let outcome = match self.blob_from_anywhere(BlobKind::Data, &item.id).await {
                Err(error) if !is_local(&error) => return Err(error),
                outcome => outcome,
            };
            let sink = sink.clone();
            self.decode(move |_, _| {
                item.wanted.iter().for_each(|i| sink(*i as usize, outcome.as_deref()));
                Ok(())
            })
            .await?;
        }
        Ok(())
    }
}

/// Opens the blobs of a span in groups that are hashed together. Yields those that are not whole.
fn open_all(
    inner: &Inner,
    scratch: &mut Scratch,
    span: &Span,
    sealed: &mut [u8],
    sink: &Sink,
) -> Result<Vec<Item>> {
    let Scratch { opener, plain: out } = scratch;
    let opener = opener_of(inner, opener)?;
    let mut failed = Vec::new();
    let (mut rest, mut at) = (sealed, span.start);
    let mut items = span.items.as_slice();
    while !items.is_empty() {
        let (count, bytes) = group(items);
        let (now, later) = items.split_at(count);
        items = later;
        out.clear();
        if out.capacity() < bytes as usize {
            // Once for all groups but those of one large blob.
            *out = Vec::with_capacity(GROUP.max(bytes) as usize);
        }
        let mut opened = Vec::with_capacity(count);
        for item in now {
            let blob = item.place.blob(BlobKind::Data, item.id);
            // Entries that overlap, as only a liar writes them, are left to be read one by one.
            match take(&mut rest, &mut at, &blob).map(|own| opener.open_for_hash(&blob, own, out)) {
                Some(Ok(plain)) => opened.push((item, plain)),
                None | Some(Err(_)) => failed.push(item.clone()),
            }
        }
        let (opened, plains): (Vec<&Item>, Vec<&[u8]>) =
            opened.into_iter().map(|(item, plain)| (item, plain.bytes(out))).unzip();
        for ((item, plain), hash) in opened.iter().zip(&plains).zip(inner.lanes.hash_many(&plains)) {
            if Id::from_bytes(hash) == item.id {
                item.wanted.iter().for_each(|i| sink(*i as usize, Ok(plain)));
            } else {
                failed.push((*item).clone());
            }
        }
    }
    Ok(failed)
}

/// How many of these blobs are opened and hashed together, and how much memory those of them need that are compressed.
fn group(items: &[Item]) -> (usize, u64) {
    let (mut count, mut bytes, mut compressed) = (0, 0, 0);
    for item in items {
        let blob = item.place.blob(BlobKind::Data, item.id);
        bytes += u64::from(blob.plain_length());
        if count > 0 && bytes > GROUP {
            break;
        }
        count += 1;
        compressed += u64::from(blob.raw_length.unwrap_or(0));
    }
    (count, compressed)
}

/// Splits the blob's sealed bytes off what is left of a span whose next byte lies at `at`.
fn take<'a>(rest: &mut &'a mut [u8], at: &mut u64, blob: &PackedBlob) -> Option<&'a mut [u8]> {
    let skip = usize::try_from(u64::from(blob.offset).checked_sub(*at)?).ok()?;
    let length = blob.length as usize;
    if skip.checked_add(length)? > rest.len() {
        return None;
    }
    let (_, behind) = std::mem::take(rest).split_at_mut(skip);
    let (own, behind) = behind.split_at_mut(length);
    *rest = behind;
    *at = blob.end();
    Some(own)
}
