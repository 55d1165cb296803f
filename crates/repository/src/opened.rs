//! Several blobs of a stretch of a pack, opened together so that they can be hashed together; the stretch stays as it is.

use std::ops::Range;

use crate::pack::{Opener, PackedBlob};
use crate::{Error, Id, Result};

/// Plain bytes of blobs that are opened and hashed together, unless one alone has more.
const GROUP: u64 = 6 << 20;

/// Memory that is used again from group to group.
#[derive(Default)]
pub(crate) struct Buffers {
    texts: Vec<u8>,
    plains: Vec<u8>,
}

/// A group of opened blobs, those whose seal is good, by their positions in what was asked for.
pub(crate) struct Opened<'a> {
    buffers: &'a Buffers,
    blobs: Vec<One>,
}

struct One {
    position: usize,
    text: Range<usize>,
    /// What the text was compressed from; none if it was not.
    plain: Option<Range<usize>>,
}

impl Buffers {
    /// Opens `blobs`, of which `stretch`, which begins at byte `start` of their pack, has the sealed bytes. Those that do
    /// not open are given to `failed` by their positions.
    pub(crate) fn open(
        &mut self,
        opener: &mut Opener,
        stretch: &[u8],
        start: u64,
        blobs: &[PackedBlob],
        mut failed: impl FnMut(usize, Error),
    ) -> Opened<'_> {
        let Buffers { texts, plains } = self;
        texts.clear();
        plains.clear();
        let mut opened = Vec::with_capacity(blobs.len());
        for (position, blob) in blobs.iter().enumerate() {
            let mut open = || -> Result<One> {
                let sealed = sealed(stretch, start, blob)?;
                let text = opener.text(blob, sealed, texts)?;
                let plain = match blob.raw_length {
                    None => None,
                    Some(_) => Some(opener.expand(blob, &texts[text.clone()], plains)?),
                };
                Ok(One { position, text, plain })
            };
            match open() {
                Ok(one) => opened.push(one),
                Err(error) => failed(position, error),
            }
        }
        Opened { buffers: self, blobs: opened }
    }

    /// Gives back memory that one large blob needed.
    pub(crate) fn shrink(&mut self) {
        for buffer in [&mut self.texts, &mut self.plains] {
            buffer.clear();
            buffer.shrink_to(2 * GROUP as usize);
        }
    }
}

impl Opened<'_> {
    /// The blobs' positions and their plain bytes.
    pub(crate) fn plains(&self) -> (Vec<usize>, Vec<&[u8]>) {
        let plain = |one: &One| match &one.plain {
            None => &self.buffers.texts[one.text.clone()],
            Some(plain) => &self.buffers.plains[plain.clone()],
        };
        self.blobs.iter().map(|one| (one.position, plain(one))).unzip()
    }

    /// What was sealed of the `n`th blob that opened.
    pub(crate) fn text(&self, n: usize) -> &[u8] {
        &self.buffers.texts[self.blobs[n].text.clone()]
    }
}

/// The sealed bytes of a blob in a stretch of its pack.
///
/// # Errors
/// [`Error::Damaged`] if the stretch does not reach so far.
pub(crate) fn sealed<'a>(stretch: &'a [u8], start: u64, blob: &PackedBlob) -> Result<&'a [u8]> {
    let from = u64::from(blob.offset).checked_sub(start).and_then(|from| usize::try_from(from).ok());
    let sealed = from.and_then(|from| stretch.get(from..from.checked_add(blob.length as usize)?));
    sealed.ok_or_else(|| Error::damaged("blob", "it lies beyond the end of the pack").named(blob.id))
}

/// Those at the front that are opened together: at least one.
pub(crate) fn group(blobs: &[PackedBlob]) -> usize {
    let mut bytes = 0;
    let fitting = blobs.iter().take_while(|blob| {
        bytes += u64::from(blob.plain_length());
        bytes <= GROUP
    });
    fitting.count().max(1).min(blobs.len())
}

/// The error of a blob that opened, and is not what its name says.
pub(crate) fn other_hash(id: Id) -> Error {
    Error::damaged("blob", "its content has another hash").named(id)
}
