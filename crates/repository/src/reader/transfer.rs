//! Blobs on their way from one place of storage to another, in this repository or into another one.

use futures::StreamExt;

use super::plan::Span;
use super::{Reader, is_local};
use crate::writer::Import;
use crate::{BlobKind, Error, Id, Result, Writer};

/// Bytes of a pack that are fetched at once, at most.
pub(crate) const SPAN: u64 = 7 << 20;

/// What became of one span.
pub(crate) struct Transferred {
    /// Bytes that were fetched.
    pub(crate) fetched: u64,
    /// Blobs that were wanted.
    pub(crate) blobs: u64,
    /// Their bytes as they are stored.
    pub(crate) stored: u64,
    /// Blobs that are whole nowhere.
    pub(crate) failed: Vec<(Id, Error)>,
}

impl Reader {
    /// Has `writer` take over the blobs of `kind` in these spans, each compared with its name; a blob that is damaged is
    /// looked for elsewhere. `done` is told of each span when the writer has all of it.
    ///
    /// # Errors
    /// What concerns the bucket as a whole; the first error of the writer.
    pub(crate) async fn transfer(
        &self,
        kind: BlobKind,
        spans: impl Iterator<Item = Span> + Send,
        writer: &Writer,
        done: &mut (dyn FnMut(Transferred) + Send),
    ) -> Result<()> {
        let options = &self.inner.options;
        let work = spans.map(|span| async move {
            let (fetched, blobs) = (span.end - span.start, span.items.len() as u64);
            let stored = span.items.iter().map(|item| u64::from(item.place.length)).sum();
            let failed = self.transfer_span(kind, span, writer).await?;
            Ok::<_, Error>(Transferred { fetched, blobs, stored, failed })
        });
        let mut work = futures::stream::iter(work).buffer_unordered(options.connections + options.workers);
        while let Some(outcome) = work.next().await {
            done(outcome?);
        }
        Ok(())
    }

    async fn transfer_span(&self, kind: BlobKind, span: Span, writer: &Writer) -> Result<Vec<(Id, Error)>> {
        let blobs: Vec<_> = span.items.iter().map(|item| item.place.blob(kind, item.id)).collect();
        let permit = writer.permit((span.end - span.start) as usize).await?;
        let damaged = match self.fetch(span.pack, span.start, span.end, Vec::new()).await {
            Ok(stretch) => {
                let import = Import { key: self.inner.master.clone(), stretch, start: span.start, blobs };
                writer.import(permit, import).await?
            }
            Err(Error::Damaged { detail, .. }) => {
                let error = |id| Error::damaged("pack", detail.clone()).named(id);
                blobs.into_iter().map(|blob| (blob, error(self.index.pack(span.pack)))).collect()
            }
            Err(error) => return Err(error),
        };
        let mut failed = Vec::new();
        for (blob, first) in damaged {
            match self.blob_from_anywhere(kind, &blob.id).await {
                Ok(plain) => writer.blob(kind, blob.id, plain)?,
                Err(error) if is_local(&error) => failed.push((blob.id, first)),
                Err(error) => return Err(error),
            }
        }
        Ok(failed)
    }
}
