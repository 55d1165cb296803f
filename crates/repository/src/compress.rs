//! zstd with contexts that are kept: setting one up costs more than compressing a small blob.

use std::io::Cursor;

use zstd::zstd_safe::{CParameter, DParameter};

use crate::{Error, Result};

/// What restic's `auto` and zstd's own default stand for.
pub const DEFAULT_LEVEL: i32 = 3;

/// log₂ of the window: restic's readers keep a window per decoder, 512 KiB as its writers use.
const WINDOW_LOG: u32 = 19;
/// log₂ of the largest window that a streamed frame may ask us to hold.
const MAX_WINDOW_LOG: u32 = 27;

/// Compresses blobs of one worker.
pub struct Compressor {
    context: zstd::bulk::Compressor<'static>,
    level: i32,
}

impl Compressor {
    /// A compressor of a level between −7 and 22.
    pub fn new(level: i32) -> Result<Self> {
        if !(-7..=22).contains(&level) {
            let detail = format!("level {level}, zstd has −7 to 22").into();
            return Err(Error::BadParameter { what: "compression", detail });
        }
        let mut context = zstd::bulk::Compressor::new(level).map_err(no_context)?;
        context.set_parameter(CParameter::WindowLog(WINDOW_LOG)).map_err(no_context)?;
        Ok(Compressor { context, level })
    }

    /// The level in use.
    pub fn level(&self) -> i32 {
        self.level
    }

    /// Changes the level for the blobs to come.
    pub fn set_level(&mut self, level: i32) -> Result<()> {
        if level != self.level {
            *self = Compressor::new(level)?;
        }
        Ok(())
    }

    /// Appends one frame with `plain` to `out`.
    pub fn append(&mut self, plain: &[u8], out: &mut Vec<u8>) -> Result<()> {
        let start = out.len();
        out.reserve(zstd::zstd_safe::compress_bound(plain.len()));
        let mut target = Cursor::new(out);
        target.set_position(start as u64);
        self.context
            .compress_to_buffer(plain, &mut target)
            .map_err(|_| Error::Broken("zstd failed although there was room"))?;
        Ok(())
    }
}

fn no_context(_: std::io::Error) -> Error {
    Error::Broken("zstd could not set up a context")
}

/// Decompresses blobs of one worker.
pub struct Decompressor {
    context: zstd::bulk::Decompressor<'static>,
}

impl Decompressor {
    /// A decompressor.
    pub fn new() -> Result<Self> {
        let mut context = zstd::bulk::Decompressor::new().map_err(no_context)?;
        context.set_parameter(DParameter::WindowLogMax(MAX_WINDOW_LOG)).map_err(no_context)?;
        Ok(Decompressor { context })
    }

    /// Decompresses into `out`, replacing what it holds; it has to give exactly `length` bytes, which the caller
    /// has bounded.
    pub fn exactly(&mut self, frame: &[u8], length: usize, out: &mut Vec<u8>) -> Result<()> {
        out.clear();
        self.append(frame, length, out)
    }

    /// As [`exactly`](Self::exactly), behind what `out` holds, which stays. After an error more may follow it.
    pub fn append(&mut self, frame: &[u8], length: usize, out: &mut Vec<u8>) -> Result<()> {
        let start = out.len();
        out.reserve_exact(length);
        let mut target = Cursor::new(out);
        target.set_position(start as u64);
        // The vector may have room for more than `length`; zstd then stops at the frame's end anyway.
        let written = self
            .context
            .decompress_to_buffer(frame, &mut target)
            .map_err(|error| Error::damaged("compressed data", error.to_string()))?;
        if written != length {
            return Err(Error::damaged(
                "compressed data",
                format!("it has {written} bytes where the index says {length}"),
            ));
        }
        Ok(())
    }

    /// Decompresses a frame of unknown length, of at most `limit` bytes.
    pub fn at_most(&mut self, frame: &[u8], limit: usize) -> Result<Vec<u8>> {
        use std::io::Read;
        let damaged = |error: std::io::Error| Error::damaged("compressed data", error.to_string());
        let mut decoder = zstd::stream::read::Decoder::with_buffer(frame).map_err(damaged)?;
        decoder.window_log_max(MAX_WINDOW_LOG).map_err(damaged)?;
        // The content size, where given, only saves growth; a lie beyond the limit is not believed.
        let hint = zstd::zstd_safe::get_frame_content_size(frame).ok().flatten().unwrap_or(0);
        let mut plain =
            Vec::with_capacity(usize::try_from(hint).unwrap_or(0).min(limit).min(frame.len() * 32));
        decoder.take(limit as u64 + 1).read_to_end(&mut plain).map_err(damaged)?;
        if plain.len() > limit {
            let detail = format!("it decompresses to more than {limit} bytes").into();
            return Err(Error::BadParameter { what: "compressed data", detail });
        }
        Ok(plain)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn appends_behind_what_is_there_and_comes_back() {
        let (mut compressor, mut decompressor) = (Compressor::new(3).unwrap(), Decompressor::new().unwrap());
        let mut plain = Vec::new();
        for length in [0usize, 1, 100, 70_000, 3 << 20] {
            let text: Vec<u8> = (0..length).map(|i| ((i * i) >> 7) as u8).collect();
            let mut out = b"before".to_vec();
            compressor.append(&text, &mut out).unwrap();
            assert!(out.starts_with(b"before"));
            decompressor.exactly(&out[6..], length, &mut plain).unwrap();
            assert_eq!(plain, text);
            assert_eq!(decompressor.at_most(&out[6..], length).unwrap(), text);
        }
    }

    #[test]
    fn a_length_that_lies_is_damage_and_a_bomb_is_refused() {
        let (mut compressor, mut decompressor) = (Compressor::new(1).unwrap(), Decompressor::new().unwrap());
        let mut frame = Vec::new();
        compressor.append(&vec![0; 50 << 20], &mut frame).unwrap();
        let mut plain = Vec::new();
        assert!(decompressor.exactly(&frame, 1000, &mut plain).is_err());
        assert!(decompressor.exactly(&frame, 51 << 20, &mut plain).is_err());
        assert!(matches!(decompressor.at_most(&frame, 1 << 20), Err(Error::BadParameter { .. })));
        assert!(decompressor.at_most(b"no frame", 100).is_err());
        assert!(decompressor.at_most(&frame[..frame.len() / 2], 60 << 20).is_err());
        assert!(Compressor::new(23).is_err());
    }
}
