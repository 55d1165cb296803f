//! Every directory below some roots, each read once however many name it, several at once: what a check and a prune
//! look at.

use std::collections::HashSet;
use std::sync::Arc;

use futures::StreamExt;
use futures::stream::FuturesUnordered;

use super::Reader;
use crate::marks::Marks;
use crate::tree::TreeReader;
use crate::{BlobKind, Error, Id, Node, Result};

/// Plain bytes of directories that are read at once; one alone may have more.
const TEXT: u64 = 32 << 20;

/// Called with each entry and the directory that it is in, on decoding threads, several at once.
pub(crate) type Visit = dyn Fn(&Id, &Node) + Send + Sync;

/// A walk that goes on from root to root.
pub(crate) struct TreeWalk {
    reader: Reader,
    visit: Arc<Visit>,
    /// Directories that were begun.
    seen: Marks,
    /// Those that are in no index.
    unknown: HashSet<Id>,
}

impl TreeWalk {
    pub(crate) fn new(reader: Reader, visit: Arc<Visit>) -> Self {
        let seen = Marks::new(reader.index.entries());
        TreeWalk { reader, visit, seen, unknown: HashSet::new() }
    }

    /// Reads what is below `root` and was not read before. `failed` is told of each directory that cannot be read, once,
    /// and says whether to go on.
    pub(crate) async fn below(
        &mut self,
        root: Id,
        failed: &mut (dyn FnMut(Id, Error) -> Result<()> + Send),
    ) -> Result<()> {
        let limit = self.reader.inner.options.connections;
        let mut stack = vec![root];
        let mut reading = FuturesUnordered::new();
        let mut text = 0;
        loop {
            while reading.len() < limit
                && (text < TEXT || reading.is_empty())
                && let Some(id) = stack.pop()
            {
                match self.reader.index.entry(BlobKind::Tree, &id) {
                    Some(entry) if self.seen.set(entry) => {
                        let length = u64::from(self.reader.index.blob(entry).1.plain_length());
                        text += length;
                        let (reader, visit) = (self.reader.clone(), self.visit.clone());
                        reading.push(async move { (id, length, read(&reader, id, visit).await) });
                    }
                    Some(_) => (),
                    None if self.unknown.insert(id) => {
                        failed(id, Error::NoSuchBlob { kind: BlobKind::Tree, id })?;
                    }
                    None => (),
                }
            }
            match reading.next().await {
                None => return Ok(()),
                Some((id, length, outcome)) => {
                    text -= length;
                    match outcome {
                        // The first is on top: a walk goes through packs as they were written.
                        Ok(below) => stack.extend(below.into_iter().rev()),
                        Err(error) => failed(id, error)?,
                    }
                }
            }
        }
    }
}

/// Visits the entries of a directory; yields its subdirectories.
async fn read(reader: &Reader, id: Id, visit: Arc<Visit>) -> Result<Vec<Id>> {
    let text = reader.blob(BlobKind::Tree, &id).await?;
    reader
        .decode(move |_, _| {
            let mut below = Vec::new();
            let mut nodes = TreeReader::new(text)?;
            while let Some((node, _)) = nodes.next_node().map_err(|error| error.named(id))? {
                visit(&id, &node);
                below.extend(node.subtree);
            }
            Ok(below)
        })
        .await
}
