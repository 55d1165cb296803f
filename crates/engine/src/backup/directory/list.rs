//! The names in a directory, sorted as trees sort them: as bytes.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsFd;

use rustix::fs::RawDir;

/// Bytes that one call lists into: some hundred names.
const BUFFER: usize = 64 << 10;

/// Names, one behind the other in one piece of memory, which is kept from directory to directory.
#[derive(Default)]
pub(super) struct Names {
    text: Vec<u8>,
    /// Where each name lies.
    spans: Vec<(usize, u16)>,
    buffer: Vec<MaybeUninit<u8>>,
}

impl Names {
    /// Reads and sorts the names of an open directory.
    ///
    /// # Errors
    /// The listing broke off: what was listed is not the directory.
    pub fn read(&mut self, directory: impl AsFd) -> io::Result<()> {
        self.text.clear();
        self.spans.clear();
        self.buffer.resize(BUFFER, MaybeUninit::uninit());
        let mut entries = RawDir::new(directory, &mut self.buffer);
        while let Some(entry) = entries.next() {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if name == b"." || name == b".." {
                continue;
            }
            let length =
                u16::try_from(name.len()).map_err(|_| io::Error::other("a name of over 65,535 bytes"))?;
            self.spans.push((self.text.len(), length));
            self.text.extend_from_slice(name);
        }
        let text = &self.text;
        self.spans.sort_unstable_by_key(|span| name(text, *span));
        // Some file systems list a name twice while the directory changes.
        self.spans.dedup_by_key(|span| name(text, *span));
        Ok(())
    }

    /// The names in ascending order.
    pub fn sorted(&self) -> impl Iterator<Item = &[u8]> {
        self.spans.iter().map(|span| name(&self.text, *span))
    }
}

fn name(text: &[u8], (start, length): (usize, u16)) -> &[u8] {
    &text[start..start + usize::from(length)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_sorted_as_bytes_and_without_dots() {
        use std::ffi::OsStr;
        use std::os::unix::ffi::OsStrExt;

        let temp = tempfile::tempdir().unwrap();
        let mut names = Names::default();
        let mut expected: Vec<Vec<u8>> =
            vec![b"a".into(), b"a-b".into(), b"a.b".into(), b"\xff".into(), b"Z".into()];
        expected.extend(
            (0..3_000).map(|i| format!("a longer name, to fill more than one buffer {i}").into_bytes()),
        );
        for name in &expected {
            std::fs::write(temp.path().join(OsStr::from_bytes(name)), b"").unwrap();
        }
        expected.sort();
        for _ in 0..2 {
            names.read(std::fs::File::open(temp.path()).unwrap()).unwrap();
            assert!(names.sorted().eq(expected.iter().map(Vec::as_slice)));
        }
    }
}
