//! Index files: the JSON in which packs and their blobs are named
//! (<https://restic.readthedocs.io/en/stable/100_references.html#indexing>).

use crate::json::{self, Scanner};
use crate::pack::PackedBlob;
use crate::{BlobKind, Id, Result};

/// Blobs after which restic closes an index file.
pub const BLOBS_PER_FILE: usize = 50_000;

/// An index file that is being written.
#[derive(Debug)]
pub struct IndexFile {
    json: Vec<u8>,
    blobs: usize,
    packs: usize,
}

impl IndexFile {
    /// An empty index file.
    pub fn new() -> Self {
        IndexFile { json: b"{\"packs\":[".to_vec(), blobs: 0, packs: 0 }
    }

    /// Adds a pack.
    pub fn add(&mut self, pack: &Id, blobs: &[PackedBlob]) {
        let out = &mut self.json;
        let text = |out: &mut Vec<u8>, text: &str| out.extend_from_slice(text.as_bytes());
        if self.packs > 0 {
            out.push(b',');
        }
        text(out, "{\"id\":\"");
        out.extend_from_slice(&pack.hex());
        text(out, "\",\"blobs\":[");
        for (i, blob) in blobs.iter().enumerate() {
            text(out, if i == 0 { "{\"id\":\"" } else { ",{\"id\":\"" });
            out.extend_from_slice(&blob.id.hex());
            text(out, "\",\"type\":\"");
            text(out, blob.kind.as_str());
            text(out, "\",\"offset\":");
            json::write_u64(blob.offset.into(), out);
            text(out, ",\"length\":");
            json::write_u64(blob.length.into(), out);
            if let Some(length) = blob.raw_length {
                text(out, ",\"uncompressed_length\":");
                json::write_u64(length.into(), out);
            }
            out.push(b'}');
        }
        text(out, "]}");
        self.packs += 1;
        self.blobs += blobs.len();
    }

    /// Number of blobs.
    pub fn len(&self) -> usize {
        self.blobs
    }

    /// Whether no pack is in it.
    pub fn is_empty(&self) -> bool {
        self.packs == 0
    }

    /// Whether it has as many blobs as one file should.
    pub fn is_full(&self) -> bool {
        self.blobs >= BLOBS_PER_FILE
    }

    /// The file's JSON.
    pub fn finish(mut self) -> Vec<u8> {
        self.json.extend_from_slice(b"]}\n");
        self.json
    }
}

impl Default for IndexFile {
    fn default() -> Self {
        IndexFile::new()
    }
}

/// Reads an index file: calls `found` for each blob with its pack's id.
pub fn parse(json: &[u8], mut found: impl FnMut(&Id, PackedBlob)) -> Result<()> {
    let mut blobs = Vec::new();
    let mut read = || {
        let mut scanner = Scanner::new(json);
        scanner.object(|scanner, key| match key {
            b"packs" if scanner.take_null() => Ok(()),
            b"packs" => scanner.array(|scanner| {
                let pack = read_pack(scanner, &mut blobs)?;
                blobs.drain(..).for_each(|blob| found(&pack, blob));
                Ok(())
            }),
            _ => scanner.skip().map(|_| ()),
        })?;
        scanner.end()
    };
    read().map_err(|error: json::JsonError| error.of("index"))
}

fn read_pack(scanner: &mut Scanner<'_>, blobs: &mut Vec<PackedBlob>) -> json::JsonResult<Id> {
    let mut pack = None;
    scanner.object(|scanner, key| {
        match key {
            b"id" => pack = Some(scanner.id()?),
            b"blobs" if scanner.take_null() => (),
            b"blobs" => scanner.array(|scanner| {
                blobs.push(read_blob(scanner)?);
                Ok(())
            })?,
            _ => drop(scanner.skip()?),
        }
        Ok(())
    })?;
    match pack {
        Some(id) => Ok(id),
        None => scanner.error("the pack's id"),
    }
}

fn read_blob(scanner: &mut Scanner<'_>) -> json::JsonResult<PackedBlob> {
    let start = scanner.clone();
    if let Some(blob) = read_blob_as_written(scanner) {
        return Ok(blob);
    }
    *scanner = start;
    let (mut id, mut kind, mut offset, mut length, mut raw_length) = (None, None, None, None, None);
    scanner.object(|scanner, key| {
        match key {
            b"id" => id = Some(scanner.id()?),
            b"type" => {
                kind = match &*scanner.string()? {
                    b"data" => Some(BlobKind::Data),
                    b"tree" => Some(BlobKind::Tree),
                    _ => return scanner.error("data or tree"),
                }
            }
            b"offset" => offset = Some(scanner.u32()?),
            b"length" => length = Some(scanner.u32()?),
            b"uncompressed_length" => raw_length = Some(scanner.u32()?).filter(|length| *length > 0),
            _ => drop(scanner.skip()?),
        }
        Ok(())
    })?;
    match (id, kind, offset, length) {
        (Some(id), Some(kind), Some(offset), Some(length)) if length >= crate::crypto::OVERHEAD as u32 => {
            Ok(PackedBlob { kind, id, offset, length, raw_length })
        }
        _ => scanner.error("id, type, offset and length of a blob"),
    }
}

/// [`read_blob`], if it is written exactly as restic, rustic and we write it.
fn read_blob_as_written(scanner: &mut Scanner<'_>) -> Option<PackedBlob> {
    let took = |scanner: &mut Scanner<'_>, text: &[u8]| scanner.take_literally(text).then_some(());
    took(scanner, b"{\"id\":\"")?;
    let id = scanner.rest_of_id()?;
    took(scanner, b",\"type\":\"")?;
    let kind = if scanner.take_literally(b"data\"") {
        BlobKind::Data
    } else {
        took(scanner, b"tree\"")?;
        BlobKind::Tree
    };
    took(scanner, b",\"offset\":")?;
    let offset = scanner.u32().ok()?;
    took(scanner, b",\"length\":")?;
    let length = scanner.u32().ok().filter(|length| *length >= crate::crypto::OVERHEAD as u32)?;
    let mut raw_length = None;
    if scanner.take_literally(b",\"uncompressed_length\":") {
        raw_length = Some(scanner.u32().ok()?).filter(|length| *length > 0);
    }
    took(scanner, b"}")?;
    Some(PackedBlob { kind, id, offset, length, raw_length })
}
