//! Compares contents: what the source gives, blob by blob with the ids of the node, and the blobs with their ids.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use cistern_repository::{BlobKind, Id, Node, Reader};

use super::Job;
use crate::{ExceptionKind, Result};

/// Blobs that are read from the repository at once.
const BLOBS: usize = 8_192;

/// Contents that come in pieces, compared with the blobs that they should be.
pub(super) struct Expectation {
    blobs: std::vec::IntoIter<(Id, usize)>,
    pending: Vec<u8>,
    equal: bool,
}

impl Expectation {
    /// What the node holds; `None` if a blob is in no index.
    pub fn of(node: &Node, reader: &Reader) -> Option<Self> {
        let blobs = node.content.as_deref().unwrap_or_default().iter();
        let known = blobs.map(|id| Some((*id, reader.raw_length(BlobKind::Data, id)? as usize)));
        let blobs: Vec<_> = known.collect::<Option<_>>()?;
        Some(Expectation { blobs: blobs.into_iter(), pending: Vec::new(), equal: true })
    }

    /// Takes in the next bytes; false as soon as they cannot be equal any more.
    pub fn push(&mut self, mut bytes: &[u8]) -> bool {
        while self.equal && !bytes.is_empty() {
            let Some((id, length)) = self.blobs.as_slice().first().copied() else {
                self.equal = false;
                break;
            };
            let missing = length.saturating_sub(self.pending.len()).min(bytes.len());
            let whole = self.pending.is_empty() && missing == length;
            if !whole {
                self.pending.extend_from_slice(&bytes[..missing]);
            }
            let blob = if whole { &bytes[..missing] } else { &self.pending[..] };
            if blob.len() == length {
                self.equal = Id::of(blob) == id;
                self.blobs.next();
                self.pending.clear();
            }
            bytes = &bytes[missing..];
        }
        self.equal
    }

    /// Whether everything came, and nothing else.
    pub fn finish(self) -> bool {
        self.equal && self.pending.is_empty() && self.blobs.len() == 0
    }
}

/// Objects whose source is what it should be, and whose blobs are still to be read.
pub(super) struct Blobs {
    job: Arc<Job>,
    objects: Vec<(String, u64)>,
    wanted: Vec<(Id, u32)>,
}

impl Blobs {
    /// None yet.
    pub fn new(job: Arc<Job>) -> Self {
        Blobs { job, objects: Vec::new(), wanted: Vec::new() }
    }

    /// Adds an object, and reads blobs when many have come together.
    ///
    /// # Errors
    /// As the repository says.
    pub async fn add(&mut self, key: String, size: u64, blobs: &[Id]) -> Result<()> {
        let number = self.objects.len() as u32;
        self.objects.push((key, size));
        self.wanted.extend(blobs.iter().map(|id| (*id, number)));
        if self.wanted.len() >= BLOBS || self.objects.len() >= BLOBS { self.flush().await } else { Ok(()) }
    }

    /// Reads the blobs that are left.
    ///
    /// # Errors
    /// As the repository says.
    pub async fn flush(&mut self) -> Result<()> {
        let objects = std::mem::take(&mut self.objects);
        let (ids, owners): (Vec<Id>, Vec<u32>) = std::mem::take(&mut self.wanted).into_iter().unzip();
        let damaged: Arc<Mutex<HashMap<u32, String>>> = Arc::default();
        let sink = {
            let damaged = damaged.clone();
            move |i: usize, blob: cistern_repository::Result<&[u8], &cistern_repository::Error>| {
                // The reader has compared the hash already.
                if let Err(error) = blob {
                    let mut damaged = damaged.lock().unwrap_or_else(PoisonError::into_inner);
                    damaged.entry(owners[i]).or_insert_with(|| error.to_string());
                }
            }
        };
        self.job.reader.deliver(ids, Arc::new(sink)).await?;
        let damaged = std::mem::take(&mut *damaged.lock().unwrap_or_else(PoisonError::into_inner));
        for (number, (key, size)) in objects.into_iter().enumerate() {
            match damaged.get(&(number as u32)) {
                Some(why) => self.job.collector.add(ExceptionKind::Damaged, key, why),
                None => self.job.equal(size),
            }
        }
        Ok(())
    }
}
