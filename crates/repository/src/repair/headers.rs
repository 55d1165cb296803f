//! Headers of packs: the end of each is fetched, and more of it where the header is longer.

use std::sync::Arc;

use tokio::sync::Semaphore;

use crate::pack::{self, Header, PackedBlob, TRAILER};
use crate::reader::{fetch_range, is_local};
use crate::store::{Inner, blocking};
use crate::{Error, Id, Result};

/// Bytes of a pack's end that are fetched at once: the header of some 400 blobs.
const TAIL: u64 = 16 << 10;
/// Headers that are longer, of 16 MiB at most, and in memory at once.
const LONG: usize = 4;

/// Reads headers, several at once.
pub(super) struct Headers<'a> {
    inner: &'a Arc<Inner>,
    long: Semaphore,
}

impl<'a> Headers<'a> {
    pub(super) fn new(inner: &'a Arc<Inner>) -> Self {
        Headers { inner, long: Semaphore::new(LONG) }
    }

    /// The blobs that the header of a pack of `size` bytes names. It is asked for twice before it is believed to be
    /// damaged: a transfer can be, too.
    ///
    /// # Errors
    /// [`Error::Damaged`]; what the bucket says.
    pub(super) async fn read(&self, id: &Id, size: u64) -> Result<Vec<PackedBlob>> {
        match self.read_once(id, size).await {
            Err(error) if is_local(&error) => self.read_once(id, size).await,
            outcome => outcome,
        }
        .map_err(|error| error.named(*id))
    }

    async fn read_once(&self, id: &Id, size: u64) -> Result<Vec<PackedBlob>> {
        if size < TRAILER as u64 {
            return Err(Error::damaged("pack", format!("it has {size} bytes, and no header")));
        }
        let length = match self.tail(id, size, TAIL.min(size)).await? {
            Header::Blobs(blobs) => return Ok(blobs),
            Header::Needs(length) => length as u64,
        };
        let _held = self.long.acquire().await.expect("the semaphore is never closed");
        match self.tail(id, size, length).await? {
            Header::Blobs(blobs) => Ok(blobs),
            Header::Needs(_) => Err(Error::damaged("pack", "its end changes while it is read")),
        }
    }

    async fn tail(&self, id: &Id, size: u64, length: u64) -> Result<Header> {
        let tail = fetch_range(self.inner, id, size - length, size, Vec::new()).await?;
        let inner = self.inner.clone();
        blocking(move || pack::read_header(&inner.master, size, &tail)).await
    }
}
