//! What a plan is made of besides decisions: other beginnings for keys, and about how many requests it takes.

use std::borrow::Cow;
use std::collections::HashMap;

use cistern_repository::index::PackNo;
use cistern_repository::{BlobKind, Node, Reader};

use crate::{Error, Result};

/// Other beginnings for keys or paths: the first pair whose first half fits counts.
#[derive(Clone, Debug, Default)]
pub(crate) struct Remap(Vec<(Vec<u8>, Vec<u8>)>);

/// A path with another beginning.
#[derive(Debug, PartialEq)]
pub(crate) struct Mapped<'a> {
    /// The path.
    pub path: Cow<'a, [u8]>,
    /// Length of the beginning that was replaced.
    from: usize,
    /// Length of the beginning in its place.
    to: usize,
    /// Whether both end with a slash.
    slashes: bool,
}

impl Mapped<'_> {
    /// The length of the original path that corresponds to the first `end` bytes of this one, if they hold all of
    /// the new beginning (but for a slash at its end).
    pub fn original(&self, end: usize) -> Option<usize> {
        if end >= self.to || (self.slashes && end + 1 == self.to) {
            return (end + self.from).checked_sub(self.to);
        }
        None
    }
}

impl Remap {
    /// For keys of a bucket, as they are.
    pub fn keys(pairs: &[(String, String)]) -> Self {
        Remap(pairs.iter().map(|(from, to)| (from.clone().into_bytes(), to.clone().into_bytes())).collect())
    }

    /// For paths below a directory: they begin with a slash, given or not.
    ///
    /// # Errors
    /// `Invalid` if a new beginning leads out of the target.
    pub fn paths(pairs: &[(String, String)]) -> Result<Self> {
        let path = |text: &String| {
            let slash = if text.starts_with('/') { "" } else { "/" };
            format!("{slash}{text}").into_bytes()
        };
        for (_, to) in pairs {
            if to.split('/').any(|part| part == "." || part == "..") || to.contains('\0') {
                return Err(Error::Invalid(format!(
                    "the path '{to}' cannot be the beginning of paths in the target"
                )));
            }
        }
        Ok(Remap(pairs.iter().map(|(from, to)| (path(from), path(to))).collect()))
    }

    /// Whether nothing is changed.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The path with its other beginning.
    pub fn map<'a>(&self, path: &'a [u8]) -> Mapped<'a> {
        for (from, to) in &self.0 {
            if let Some(rest) = path.strip_prefix(&from[..]) {
                let slashes = from.ends_with(b"/") && to.ends_with(b"/");
                return Mapped { path: [to, rest].concat().into(), from: from.len(), to: to.len(), slashes };
            }
        }
        Mapped { path: path.into(), from: 0, to: 0, slashes: false }
    }

    /// The path of a directory with its other beginning, which may end with the slash behind it.
    pub fn map_directory<'a>(&self, path: &'a [u8]) -> Mapped<'a> {
        if self.is_empty() {
            return Mapped { path: path.into(), from: 0, to: 0, slashes: false };
        }
        let with_slash = [path, b"/"].concat();
        let Mapped { path, from, to, slashes } = self.map(&with_slash);
        let mut path = path.into_owned();
        while path.last() == Some(&b'/') {
            path.pop();
        }
        Mapped { path: path.into(), from, to, slashes }
    }
}

/// Gaps up to this many bytes are read along: a request costs more.
const GAP: u64 = 256 << 10;
/// Blobs that are asked for together, about as in the placing.
const WINDOW: usize = 4_096;
/// Bytes that are asked for together, about as in the placing.
const WINDOW_BYTES: u64 = 24 << 20;

/// Counts requests to the repository without making any.
#[derive(Debug, Default)]
pub(crate) struct Estimate {
    window: Vec<(PackNo, u32, u32)>,
    plain: u64,
    /// Requests so far.
    pub requests: u64,
    /// Bytes to read so far.
    pub bytes: u64,
}

impl Estimate {
    /// Adds the contents of a file.
    pub fn add(&mut self, reader: &Reader, node: &Node) {
        for id in node.content.iter().flatten() {
            if let Some(place) = reader.locate(BlobKind::Data, id) {
                let blob = place.blob(BlobKind::Data, *id);
                self.window.push((place.pack, blob.offset, blob.length));
                self.plain += u64::from(blob.plain_length());
            }
            if self.window.len() >= WINDOW || self.plain >= WINDOW_BYTES {
                self.close();
            }
        }
    }

    /// Counts what is left.
    pub fn close(&mut self) {
        self.window.sort_unstable_by_key(|(pack, offset, _)| (pack.index(), *offset));
        let mut last: Option<(PackNo, u64)> = None;
        for (pack, offset, length) in self.window.drain(..) {
            let (start, end) = (u64::from(offset), u64::from(offset) + u64::from(length));
            match last {
                Some((same, before)) if same == pack && start <= before.saturating_add(GAP) => {
                    self.bytes += end.saturating_sub(before);
                    last = Some((pack, end.max(before)));
                }
                _ => {
                    self.requests += 1;
                    self.bytes += end - start;
                    last = Some((pack, end));
                }
            }
        }
        self.plain = 0;
    }
}

/// Most hard links that are remembered; beyond it, files are written as often as they have names.
const MOST_LINKS: usize = 1 << 20;

/// Files that have several names, by where they were in the source.
#[derive(Debug, Default)]
pub(crate) struct Links(HashMap<(u64, u64), First>);

#[derive(Debug)]
struct First {
    path: Box<[u8]>,
    size: u64,
    /// Tells contents apart: two files under one inode number are no links of each other.
    content: Option<cistern_repository::Id>,
    left: u64,
}

impl Links {
    /// The path at which the same file was placed before.
    pub fn earlier(&mut self, node: &Node) -> Option<Box<[u8]>> {
        let key = key(node)?;
        let first = self.0.get_mut(&key)?;
        if (first.size, first.content) != (node.size, content(node)) {
            return None;
        }
        first.left -= 1;
        if first.left == 0 {
            return self.0.remove(&key).map(|first| first.path);
        }
        Some(first.path.clone())
    }

    /// Remembers where a file is placed, if it has more names.
    pub fn placed(&mut self, node: &Node, path: &[u8]) {
        if let Some(key) = key(node)
            && self.0.len() < MOST_LINKS
        {
            let first =
                First { path: path.into(), size: node.size, content: content(node), left: node.links - 1 };
            self.0.insert(key, first);
        }
    }
}

fn key(node: &Node) -> Option<(u64, u64)> {
    (node.links > 1 && node.inode != 0).then_some((node.device_id, node.inode))
}

/// The hash of the list of blobs; none for a file without contents.
fn content(node: &Node) -> Option<cistern_repository::Id> {
    match node.content.as_deref() {
        Some([]) | None => None,
        Some([one]) => Some(*one),
        Some(many) => {
            let bytes: Vec<u8> = many.iter().flat_map(|id| *id.as_bytes()).collect();
            Some(cistern_repository::Id::of(&bytes))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(from, to)| ((*from).into(), (*to).into())).collect()
    }

    #[test]
    fn the_first_pair_that_fits_counts() {
        let remap = Remap::keys(&pairs(&[("2026/a", "x"), ("2026/", "2027/"), ("", "rest/")]));
        for (key, expected) in [("2026/abc", "xbc"), ("2026/b", "2027/b"), ("c", "rest/c")] {
            assert_eq!(remap.map(key.as_bytes()).path, expected.as_bytes(), "{key}");
        }
        assert_eq!(Remap::default().map(b"a").path, &b"a"[..]);
    }

    #[test]
    fn paths_of_directories_follow_and_tell_where_they_were() {
        let remap = Remap::paths(&pairs(&[("a/b/", "/x/"), ("/c", "/dd"), ("/e/", "/")])).unwrap();
        type Ends = &'static [(usize, Option<usize>)];
        let cases: [(&str, &str, Ends); 4] = [
            ("/a/b", "/x", &[(2, Some(4))]),
            ("/a/b/q", "/x/q", &[(2, Some(4)), (4, Some(6))]),
            ("/cat/s", "/ddat/s", &[(3, Some(2)), (5, Some(4)), (7, Some(6)), (1, None)]),
            ("/e/f", "/f", &[(2, Some(4))]),
        ];
        for (path, expected, ends) in cases {
            let mapped = remap.map_directory(path.as_bytes());
            assert_eq!(mapped.path, expected.as_bytes());
            for (end, original) in ends {
                assert_eq!(mapped.original(*end), *original, "{path} {end}");
            }
        }
        assert_eq!(remap.map_directory(b"/a").path, &b"/a"[..]);
        assert_eq!(remap.map_directory(b"/a").original(2), Some(2));
        for bad in ["../x", "/a/../b", "x/.", "a\0b"] {
            assert!(Remap::paths(&pairs(&[("/a", bad)])).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_file_with_several_names_is_placed_once() {
        let node = |inode, links, byte: u8| Node {
            inode,
            links,
            device_id: 7,
            size: 1,
            content: Some([cistern_repository::Id::of(&[byte])].into()),
            ..Node::default()
        };
        let mut links = Links::default();
        assert_eq!(links.earlier(&node(1, 3, 0)), None);
        links.placed(&node(1, 3, 0), b"/a");
        assert_eq!(links.earlier(&node(1, 3, 1)), None, "other contents");
        assert_eq!(links.earlier(&node(2, 3, 0)), None);
        assert_eq!(links.earlier(&node(1, 3, 0)).as_deref(), Some(&b"/a"[..]));
        assert_eq!(links.earlier(&node(1, 3, 0)).as_deref(), Some(&b"/a"[..]));
        assert_eq!(links.earlier(&node(1, 3, 0)), None, "all names are placed");
        links.placed(&node(3, 1, 0), b"/b");
        links.placed(&node(0, 9, 0), b"/c");
        assert!(links.0.is_empty());
    }
}
