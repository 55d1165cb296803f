//! Cuts the contents of many files into windows of bounded size, which the repository delivers blob by blob.

use std::sync::Arc;

use cistern_repository::{BlobKind, Id, Node, Reader};
use tokio::sync::mpsc::Sender;

use crate::{Error, Result};

/// Takes the blobs of one file, in any order, on any thread.
pub(crate) trait Receive: Send + Sync {
    /// Takes blob `number` of the file, whose contents begin at `offset` in the file, or why it cannot be had.
    fn piece(&self, number: u32, offset: u64, contents: Result<&[u8], &cistern_repository::Error>);
}

/// How large a window may become.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Plain bytes.
    pub bytes: u64,
    /// Blobs.
    pub blobs: usize,
    /// Files of more than one blob: each is open while it is written.
    pub open: usize,
}

/// Blobs that are wanted together, and who wants each.
#[derive(Default)]
pub(crate) struct Window {
    wanted: Vec<Id>,
    pieces: Vec<Piece>,
    files: Vec<Arc<dyn Receive>>,
    bytes: u64,
    open: usize,
}

struct Piece {
    file: u32,
    number: u32,
    offset: u64,
}

impl Window {
    /// Whether nothing is wanted.
    pub fn is_empty(&self) -> bool {
        self.wanted.is_empty()
    }

    /// Whether no more should be added.
    pub fn is_full(&self, limits: &Limits) -> bool {
        self.bytes >= limits.bytes || self.wanted.len() >= limits.blobs || self.open >= limits.open
    }

    /// Adds a file that wants blobs; `of_many` if these are not all.
    pub fn file(&mut self, file: Arc<dyn Receive>, of_many: bool) {
        self.files.push(file);
        self.open += usize::from(of_many);
    }

    /// Adds a blob that the last file wants.
    pub fn blob(&mut self, number: u32, offset: u64, id: Id, length: u32) {
        let file = self.files.len().checked_sub(1).expect("a blob is wanted by a file") as u32;
        self.pieces.push(Piece { file, number, offset });
        self.wanted.push(id);
        self.bytes += u64::from(length);
    }

    /// Fetches everything and hands it out. `alive` is dropped when no thread holds anything of the window any
    /// more, which may be later than the end of this, if it is cut short.
    ///
    /// # Errors
    /// The repository cannot be read at all; a blob that is damaged is told to its file only.
    pub async fn deliver(self, reader: Arc<Reader>, alive: Sender<()>) -> Result<()> {
        let Window { wanted, pieces, files, .. } = self;
        let hands = Hands { pieces, files, _alive: alive };
        let sink =
            move |i: usize, contents: Result<&[u8], &cistern_repository::Error>| hands.hand(i, contents);
        reader.deliver(wanted, Arc::new(sink)).await.map_err(Error::Repository)
    }
}

/// Hands blobs to the files that want them. The fields go in this order: whoever hears that all is over finds no file
/// half-written.
struct Hands {
    pieces: Vec<Piece>,
    files: Vec<Arc<dyn Receive>>,
    _alive: Sender<()>,
}

impl Hands {
    fn hand(&self, i: usize, contents: Result<&[u8], &cistern_repository::Error>) {
        let piece = &self.pieces[i];
        self.files[piece.file as usize].piece(piece.number, piece.offset, contents);
    }
}

/// Where a file's blobs begin, and how long it is.
///
/// # Errors
/// In one line, why the contents cannot be had: a blob is in no index.
pub(crate) fn lengths(reader: &Reader, node: &Node) -> Result<u64, String> {
    let mut total = 0u64;
    for id in node.content.iter().flatten() {
        let length =
            reader.raw_length(BlobKind::Data, id).ok_or_else(|| format!("data blob {id} is in no index"))?;
        total += u64::from(length);
    }
    Ok(total)
}
