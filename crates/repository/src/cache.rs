//! Copies of index files, snapshots and packs of directories in a local directory, stored as in the repository.
//!
//! Nothing in it is trusted: a file is what its name says or it is removed and fetched again. Nothing depends on
//! it either: an error here costs a request and is only logged.

use std::collections::HashSet;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::{fs, io};

use bytes::Bytes;

use crate::Id;
use crate::file::FileKind;

/// What backup programs look for to leave a directory out (<https://bford.info/cachedir/>).
const TAG: &[u8] = b"Signature: 8a477f597d28d172789f06886806bc55\n\
# This file marks a cache directory of Cistern. Its contents can be removed at any time.\n";

/// The cache of one repository.
#[derive(Clone, Debug)]
pub(crate) struct Cache {
    root: PathBuf,
    directory: PathBuf,
}

impl Cache {
    /// The cache of the repository `id` below `root`; directories are made when something is written.
    pub(crate) fn new(root: &Path, id: &Id) -> Self {
        Cache { root: root.to_owned(), directory: root.join(id.to_string()) }
    }

    fn path(&self, kind: FileKind, id: &Id) -> PathBuf {
        self.directory.join(kind.path(id))
    }

    /// The stored bytes of a file, if their hash is the name; what is damaged is removed.
    pub(crate) async fn read(&self, kind: FileKind, id: &Id) -> Option<Vec<u8>> {
        let (path, id) = (self.path(kind, id), *id);
        run(move || {
            let bound = kind.max_length() as u64;
            let mut bytes = Vec::new();
            let outcome = fs::File::open(&path).and_then(|file| file.take(bound + 1).read_to_end(&mut bytes));
            match outcome {
                Ok(_) if bytes.len() as u64 <= bound && Id::of(&bytes) == id => Some(bytes),
                Ok(_) => {
                    tracing::info!(path = %path.display(), "removing a damaged file of the cache");
                    ignore(fs::remove_file(&path));
                    None
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => None,
                Err(error) => {
                    tracing::warn!(%error, path = %path.display(), "a file of the cache cannot be read");
                    None
                }
            }
        })
        .await
    }

    /// A range of a file's stored bytes, not verified: the caller authenticates what is in it.
    pub(crate) async fn read_range(
        &self,
        kind: FileKind,
        id: &Id,
        offset: u64,
        length: usize,
    ) -> Option<Vec<u8>> {
        let path = self.path(kind, id);
        run(move || {
            let mut file = fs::File::open(&path).ok()?;
            let end = offset.checked_add(length as u64)?;
            if file.metadata().ok()?.len() < end {
                return None;
            }
            file.seek(SeekFrom::Start(offset)).ok()?;
            let mut bytes = vec![0; length];
            file.read_exact(&mut bytes).ok()?;
            Some(bytes)
        })
        .await
    }

    /// Keeps a copy of a file that was verified. It appears complete or not at all.
    pub(crate) async fn write(&self, kind: FileKind, id: &Id, stored: Bytes) {
        let (cache, path) = (self.clone(), self.path(kind, id));
        run(move || {
            if let Err(error) = cache.write_now(&path, &stored) {
                tracing::warn!(%error, path = %path.display(), "a file cannot be put into the cache");
            }
        })
        .await;
    }

    fn write_now(&self, path: &Path, stored: &[u8]) -> io::Result<()> {
        self.make(path.parent().unwrap_or(&self.directory))?;
        replace(path, stored)
    }

    fn make(&self, directory: &Path) -> io::Result<()> {
        if !directory.exists() {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
            let tag = self.root.join("CACHEDIR.TAG");
            if !tag.exists() {
                replace(&tag, TAG)?;
            }
        }
        Ok(())
    }

    /// Removes a file.
    pub(crate) async fn remove(&self, kind: FileKind, id: &Id) {
        let path = self.path(kind, id);
        run(move || ignore(fs::remove_file(path))).await;
    }

    /// Where the mapped index of exactly these files is, or belongs; those of others are removed. None if there is no
    /// place for it.
    pub(crate) async fn mapped_index(&self, files: &[(Id, u64)]) -> Option<PathBuf> {
        let mut ids: Vec<Id> = files.iter().map(|(id, _)| *id).collect();
        ids.sort_unstable();
        let all: Vec<u8> = ids.iter().flat_map(Id::as_bytes).copied().collect();
        let (cache, name) = (self.clone(), Id::of(&all));
        run(move || {
            let directory = cache.directory.join("mapped-index");
            if let Err(error) = cache.make(&directory) {
                tracing::warn!(%error, path = %directory.display(), "a directory of the cache cannot be made");
                return None;
            }
            keep_in(directory.clone(), &HashSet::from([name]));
            Some(directory.join(name.to_string()))
        })
        .await
    }

    /// Removes a mapped index; whoever has mapped it keeps it.
    pub(crate) async fn remove_mapped_index(&self, path: PathBuf) {
        run(move || ignore(fs::remove_file(path))).await;
    }

    /// Removes files of a kind that the repository does not have any more.
    pub(crate) async fn keep(&self, kind: FileKind, ids: HashSet<Id>) {
        let directory = self.directory.join(kind.prefix());
        run(move || keep_in(directory, &ids)).await;
    }
}

/// Removes all files below a directory whose names are not among these ids.
fn keep_in(directory: PathBuf, ids: &HashSet<Id>) {
    let mut directories = vec![directory];
    while let Some(directory) = directories.pop() {
        let Ok(entries) = fs::read_dir(&directory) else { continue };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let id = name.to_str().and_then(|name| name.parse::<Id>().ok());
            match id {
                Some(id) if ids.contains(&id) => (),
                // Also what an interrupted writing has left; a writing that goes on right now starts again.
                _ if entry.file_type().is_ok_and(|kind| kind.is_dir()) => directories.push(entry.path()),
                Some(_) => ignore(fs::remove_file(entry.path())),
                None if is_old(&entry) => ignore(fs::remove_file(entry.path())),
                None => (),
            }
        }
    }
}

/// Whether a temporary file has been left behind: nobody writes one file for an hour.
fn is_old(entry: &fs::DirEntry) -> bool {
    let modified = entry.metadata().and_then(|metadata| metadata.modified());
    modified.is_ok_and(|time| time.elapsed().is_ok_and(|age| age.as_secs() > 3600))
}

/// Writes a file under a temporary name in the same directory and renames it.
fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let random = Id::random().map_err(io::Error::other)?;
    let temporary = path.with_file_name(format!(".{}.tmp", random.short()));
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
    let outcome = file.write_all(bytes).and_then(|()| fs::rename(&temporary, path));
    if outcome.is_err() {
        ignore(fs::remove_file(&temporary));
    }
    outcome
}

/// The cache is worth no error.
fn ignore(outcome: io::Result<()>) {
    if let Err(error) = outcome
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::debug!(%error, "a file of the cache cannot be removed");
    }
}

/// Runs file calls where they keep no task from running; a runtime that is shutting down yields the default.
async fn run<T: Default + Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[tokio::test]
    async fn keeps_what_is_whole_and_forgets_the_rest() {
        let root = tempfile::tempdir().unwrap();
        let cache = Cache::new(root.path(), &Id::of(b"repository"));
        let files = [b"one".as_slice(), b"two"].map(|bytes| (Id::of(bytes), bytes));
        for kind in [FileKind::Index, FileKind::Pack] {
            for (id, bytes) in files {
                assert_eq!(cache.read(kind, &id).await, None);
                cache.write(kind, &id, Bytes::from_static(bytes)).await;
                assert_eq!(cache.read(kind, &id).await.as_deref(), Some(bytes));
                assert_eq!(cache.read_range(kind, &id, 1, 2).await.as_deref(), Some(&bytes[1..]));
                assert_eq!(cache.read_range(kind, &id, 1, 3).await, None);
                assert_eq!(cache.read_range(kind, &id, u64::MAX, 3).await, None);
            }
            let path = cache.path(kind, &files[0].0);
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
            assert_eq!(fs::metadata(path.parent().unwrap()).unwrap().permissions().mode() & 0o777, 0o700);
            fs::write(&path, b"onf").unwrap();
            assert_eq!(cache.read(kind, &files[0].0).await, None);
            assert!(!path.exists());
            cache.keep(kind, HashSet::new()).await;
            assert_eq!(cache.read(kind, &files[1].0).await, None);
        }
        assert!(
            fs::read(root.path().join("CACHEDIR.TAG"))
                .unwrap()
                .starts_with(b"Signature: 8a477f597d28d172789f")
        );
    }
}
