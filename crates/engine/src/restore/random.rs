//! Writes a file's blobs where they belong, in any order and from several threads, straight from where they were
//! decoded.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use super::beneath::locked;
use super::landing::{Landing, Open};
use super::window::Receive;

/// A file whose blobs are still coming.
pub(crate) struct RandomFile {
    landing: Landing,
    size: u64,
    /// It has one blob.
    single: bool,
    /// Blobs that have not come.
    missing: AtomicU32,
    /// Nothing more is to be written.
    failed: AtomicBool,
    open: Mutex<Option<Open>>,
}

impl RandomFile {
    /// A file of `blobs` blobs and `size` bytes.
    pub fn new(landing: Landing, blobs: u32, size: u64) -> Self {
        RandomFile {
            landing,
            size,
            single: blobs == 1,
            missing: AtomicU32::new(blobs),
            failed: AtomicBool::new(false),
            open: Mutex::new(None),
        }
    }

    /// A file of one blob: one thread does everything.
    fn whole(&self, contents: Result<&[u8], &cistern_repository::Error>) {
        let contents = match contents {
            Ok(contents) => contents,
            Err(error) => return self.landing.lost(error),
        };
        let open = match self.landing.open() {
            Ok(open) => open,
            Err(error) => return self.landing.refused(error),
        };
        match self.landing.dir.site().placer.append(open.fd(), contents) {
            Ok(()) => self.landing.finish(open, contents.len() as u64),
            Err(error) => {
                self.landing.discard(open);
                self.landing.refused(error);
            }
        }
    }

    fn write(&self, offset: u64, contents: Result<&[u8], &cistern_repository::Error>) {
        if self.failed.load(Ordering::Relaxed) {
            return;
        }
        let contents = match contents {
            Ok(contents) => contents,
            Err(error) => return self.fail(|landing| landing.lost(error)),
        };
        // The kernel lets one thread at a time write to a file, and has the others spin.
        let mut held = locked(&self.open);
        let open = match &mut *held {
            Some(open) => open,
            none => match self.landing.open() {
                Ok(new) => {
                    // Under its own name it would look whole too early.
                    if new.is_temporary() {
                        self.landing.dir.site().placer.reserve(new.fd(), self.size);
                    }
                    none.insert(new)
                }
                Err(error) => {
                    drop(held);
                    return self.fail(|landing| landing.refused(error));
                }
            },
        };
        let written = self.landing.dir.site().placer.write_at(open.fd(), contents, offset);
        drop(held);
        if let Err(error) = written {
            self.fail(|landing| landing.refused(error));
        }
    }

    /// The first reason is told.
    fn fail(&self, tell: impl FnOnce(&Landing)) {
        if !self.failed.swap(true, Ordering::Relaxed) {
            tell(&self.landing);
        }
    }
}

impl Receive for RandomFile {
    fn piece(&self, _number: u32, offset: u64, contents: Result<&[u8], &cistern_repository::Error>) {
        if self.landing.is_stopped() {
            return;
        }
        if self.single {
            return self.whole(contents);
        }
        self.write(offset, contents);
        // Whoever counts down to nothing sees all that was written, and is the only one who holds the file.
        if self.missing.fetch_sub(1, Ordering::AcqRel) == 1
            && let Some(open) = locked(&self.open).take()
        {
            match self.failed.load(Ordering::Relaxed) {
                true => self.landing.discard(open),
                false => self.landing.finish(open, self.size),
            }
        }
    }
}

impl Drop for RandomFile {
    fn drop(&mut self) {
        // Not all came: the run was stopped.
        if let Some(open) = locked(&self.open).take() {
            self.landing.discard(open);
        }
    }
}
