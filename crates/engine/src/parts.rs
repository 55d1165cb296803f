//! Parts: contiguous ranges of keys, each a plain snapshot, with their bounds and proofs kept in the tree.
//!
//! # Where bounds and proof are kept
//!
//! The directory node of the snapshot's root (`/<bucket>` or what the task says) carries the extended attribute
//! [`ATTRIBUTE`]: a JSON object with its keys in ascending order.
//!
//! | Field | Holds |
//! |---|---|
//! | `after` | the part holds keys behind this one; left out in the first part |
//! | `bucket` | name of the bucket that was read |
//! | `bytes` | bytes of contents that were listed |
//! | `exceptions` | objects that were listed and are not in the snapshot; left out if there are none |
//! | `excluded` | objects that were listed and that the selection left out; left out if there are none |
//! | `hash` | of the [`Proof`] |
//! | `keys` | objects that were listed |
//! | `prefix` | beginning of the keys that were read; left out if it is empty |
//! | `splits` | keys that cut the part into ranges of about equal length, for the next listing |
//! | `tree` | id of the tree below the node, when the attribute was written |
//! | `until` | the part holds keys up to this one; left out in the last part |
//!
//! Keys are those below the root, with `%`, `/`, control characters and what is no UTF-8 as `%XX`. restic keeps
//! the attribute in copy, rewrite, tag and restore. If a tool changes what lies below, `tree` no longer fits and the
//! proof is void. An unchanged part has an unchanged attribute: nothing in it depends on when or how a run went.
//!
//! # What parts look like to restic
//!
//! One part is the normal case: `paths` is the root alone. With several, each snapshot's `paths` is the root and one
//! more element that names the part by its lower bound, so that forget and parents go part by part.

use cistern_bucket::{Address, Key};
use cistern_repository::{Id, Node, NodeKind, Reader, Snapshot, Xattr};
use serde::{Deserialize, Serialize};

use crate::fidelity::{MAX_SIDE, decoded, encoded};
use crate::{Proof, Result};

/// Name of the extended attribute of a part's root directory.
pub const ATTRIBUTE: &str = "user.cistern.part";

/// Most splits that are kept.
const MAX_SPLITS: usize = 64;
/// Most bytes of splits that are kept: the attribute has to fit into an inode.
const MAX_SPLIT_BYTES: usize = 2_000;
/// A range between splits has at least so many keys: ten pages of S3, so that the last page of a range, which
/// is not full, costs little.
const RANGE_KEYS: u64 = 10_000;

/// A range of keys below the root: behind `after`, up to and with `until`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bounds {
    /// Exclusive; `None` is the beginning.
    pub after: Option<Key>,
    /// Inclusive; `None` is the end.
    pub until: Option<Key>,
}

impl Bounds {
    /// Whether a key lies within.
    pub fn contains(&self, key: &[u8]) -> bool {
        self.after.as_ref().is_none_or(|after| key > after.as_bytes()) && !self.is_behind(key)
    }

    /// Whether a key lies behind the upper bound.
    pub fn is_behind(&self, key: &[u8]) -> bool {
        self.until.as_ref().is_some_and(|until| key > until.as_bytes())
    }

    /// The bounds as text, as the attribute and reports have them.
    pub fn texts(&self) -> (Option<String>, Option<String>) {
        let text = |key: &Option<Key>| key.as_ref().map(|key| encoded(key.as_bytes()));
        (text(&self.after), text(&self.until))
    }

    /// Paths of the snapshot of this part of `root`.
    pub fn paths(&self, root: &str) -> Vec<String> {
        if *self == Bounds::default() {
            return vec![root.to_owned()];
        }
        let lower = self.after.as_ref().map_or(&b""[..], Key::as_bytes);
        vec![root.to_owned(), format!("{root}/.cistern~part~{}", &Id::of(lower).to_string()[..16])]
    }
}

/// What is known of a part: bounds and proof.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PartInfo {
    /// Its range of keys.
    pub bounds: Bounds,
    /// Evidence that it was listed to its end; pages are not kept.
    pub proof: Proof,
    /// Whether the proof holds: what lies below has not been changed since.
    pub proven: bool,
    /// Objects that were listed and are not in the snapshot.
    pub exceptions: u64,
    /// Objects that were listed and that the selection left out.
    pub excluded: u64,
    /// Keys that cut it into ranges of about equal length.
    pub splits: Vec<Key>,
    /// The bucket that was read; empty if it is not known.
    pub bucket: String,
    /// Beginning of the keys that were read.
    pub prefix: Key,
}

#[derive(Serialize, Deserialize)]
struct Fields {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    after: Option<String>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    bucket: String,
    bytes: u64,
    #[serde(default, skip_serializing_if = "is_zero")]
    exceptions: u64,
    #[serde(default, skip_serializing_if = "is_zero")]
    excluded: u64,
    hash: String,
    keys: u64,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    prefix: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    splits: Vec<String>,
    tree: Id,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    until: Option<String>,
}

fn is_zero(n: &u64) -> bool {
    *n == 0
}

impl PartInfo {
    /// What the node of a root directory says of its part; `None` if it says nothing, or nothing that can be read.
    pub fn of(node: &Node) -> Option<Self> {
        let value = node.xattrs.iter().find(|xattr| &*xattr.name == ATTRIBUTE)?.value.as_deref()?;
        if value.len() > MAX_SIDE {
            return None;
        }
        let fields: Fields = serde_json::from_slice(value).ok()?;
        let key = |text: String| decoded(text.as_bytes()).map(Key::new);
        let bound = |text: Option<String>| text.map(key).map_or(Some(None), |key| key.map(Some));
        Some(PartInfo {
            bounds: Bounds { after: bound(fields.after)?, until: bound(fields.until)? },
            proof: Proof { keys: fields.keys, bytes: fields.bytes, pages: 0, hash: fields.hash },
            proven: node.subtree == Some(fields.tree),
            exceptions: fields.exceptions,
            excluded: fields.excluded,
            splits: fields.splits.into_iter().take(MAX_SPLITS).map(key).collect::<Option<_>>()?,
            bucket: fields.bucket,
            prefix: key(fields.prefix)?,
        })
    }

    /// The bucket and prefix that were read, at an endpoint that is not kept.
    pub fn source(&self) -> Option<Address> {
        let bucket = (!self.bucket.is_empty()).then(|| self.bucket.clone())?;
        Some(Address::S3 { endpoint: None, bucket, prefix: self.prefix.clone() })
    }

    /// Writes this down in the node of the root directory, whose subtree is known.
    pub fn put(&self, node: &mut Node) {
        let Some(tree) = node.subtree else { return };
        let (after, until) = self.bounds.texts();
        let fields = Fields {
            after,
            bucket: self.bucket.clone(),
            bytes: self.proof.bytes,
            exceptions: self.exceptions,
            excluded: self.excluded,
            hash: self.proof.hash.clone(),
            keys: self.proof.keys,
            prefix: encoded(self.prefix.as_bytes()),
            splits: self.splits.iter().map(|key| encoded(key.as_bytes())).collect(),
            tree,
            until,
        };
        let value = serde_json::to_vec(&fields).expect("the fields have string keys only");
        node.xattrs.retain(|xattr| &*xattr.name != ATTRIBUTE);
        node.xattrs.push(Xattr { name: ATTRIBUTE.into(), value: Some(value.into()) });
    }
}

/// The root directory that a backup of a bucket has marked in a snapshot: its path, and what it says.
///
/// # Errors
/// Trees that cannot be read.
pub async fn marked(reader: &Reader, snapshot: &Snapshot) -> Result<Option<(String, PartInfo)>> {
    let mut path = String::new();
    let mut tree = reader.tree(&snapshot.tree).await?;
    // A backup of a bucket has one directory per level down to its root.
    while let [node] = tree.nodes() {
        let (NodeKind::Dir, Some(subtree)) = (node.kind, node.subtree) else { break };
        path = format!("{path}/{}", String::from_utf8_lossy(&node.name));
        if let Some(info) = PartInfo::of(node) {
            return Ok(Some((path, info)));
        }
        tree = reader.tree(&subtree).await?;
    }
    Ok(None)
}

/// Chooses keys that cut a listing into ranges of about equal length, while it goes by. The choice depends on the
/// keys alone.
#[derive(Clone, Debug)]
pub(crate) struct Splits {
    every: u64,
    count: u64,
    kept: Vec<Key>,
    last: Vec<u8>,
}

impl Splits {
    /// Nothing was listed yet.
    pub fn new() -> Self {
        Splits { every: RANGE_KEYS, count: 0, kept: Vec::new(), last: Vec::new() }
    }

    /// Takes in the next key.
    pub fn key(&mut self, key: &[u8]) {
        if self.count > 0 && self.count.is_multiple_of(self.every) {
            self.kept.push(between(&self.last, key));
            let bytes: usize = self.kept.iter().map(Key::len).sum();
            if self.kept.len() > MAX_SPLITS || bytes > MAX_SPLIT_BYTES {
                // Every other one stays: those at multiples of twice the distance.
                let mut position = 0;
                self.kept.retain(|_| {
                    position += 1;
                    position % 2 == 0
                });
                self.every *= 2;
            }
        }
        self.count += 1;
        self.last.clear();
        self.last.extend_from_slice(key);
    }

    /// The splits, ascending.
    pub fn finish(self) -> Vec<Key> {
        self.kept
    }
}

/// A short key from `low` (exclusive or not, it does not matter to the ranges) up to `high`: the beginning of `high`
/// as far as it is needed, in whole characters, since stores want text.
fn between(low: &[u8], high: &[u8]) -> Key {
    let common = low.iter().zip(high).take_while(|(a, b)| a == b).count();
    let mut end = (common + 1).min(high.len());
    while end < high.len() && (high[end] & 0xc0) == 0x80 {
        end += 1;
    }
    Key::from(&high[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory(tree: &[u8]) -> Node {
        Node { name: (*b"orders").into(), subtree: Some(Id::of(tree)), ..Node::default() }
    }

    #[test]
    fn a_part_is_known_again_unless_its_tree_was_changed() {
        let key = |text: &[u8]| Some(Key::new(text));
        let info = PartInfo {
            bounds: Bounds { after: key(b"a/\xff%\n"), until: key(b"b, c") },
            proof: Proof { keys: 3, bytes: 9, pages: 0, hash: "00".into() },
            proven: true,
            exceptions: 1,
            excluded: 2,
            splits: vec![Key::from("a/z"), Key::from("b")],
            bucket: "orders".into(),
            prefix: Key::from("2026/"),
        };
        let mut node = directory(b"tree");
        assert_eq!(PartInfo::of(&node), None);
        info.put(&mut node);
        info.put(&mut node);
        assert_eq!(node.xattrs.len(), 1);
        assert_eq!(PartInfo::of(&node), Some(info));
        let text = String::from_utf8(node.xattrs[0].value.clone().unwrap().into()).unwrap();
        assert!(
            text.starts_with(
                r#"{"after":"a%2F%FF%25%0A","bucket":"orders","bytes":9,"exceptions":1,"excluded":2,"hash":"00","keys":3,"#
            ),
            "{text}"
        );
        node.subtree = Some(Id::of(b"other"));
        assert!(!PartInfo::of(&node).unwrap().proven);
    }

    #[test]
    fn a_part_of_several_has_a_path_of_its_own_that_follows_from_its_lower_bound() {
        assert_eq!(Bounds::default().paths("/orders"), ["/orders"]);
        let until = |until: &str| Bounds { after: None, until: Some(Key::from(until)) };
        assert_eq!(until("m").paths("/o"), until("n").paths("/o"));
        let after = Bounds { after: Some(Key::from("m")), until: None };
        assert_ne!(after.paths("/o")[1], until("m").paths("/o")[1]);
        assert!(
            after.contains(b"n")
                && !after.contains(b"m")
                && until("m").contains(b"m")
                && until("m").is_behind(b"m\0")
        );
    }

    #[test]
    fn splits_are_few_ascending_and_about_equally_far_apart() {
        for (count, expected) in
            [(0, 0), (10_000, 0), (10_001, 1), (640_001, 64), (650_001, 32), (1_000_000, 49)]
        {
            let mut splits = Splits::new();
            for i in 0..count {
                splits.key(format!("{i:08}/some/long/name/that/is/not/needed").as_bytes());
            }
            let splits = splits.finish();
            assert_eq!(splits.len(), expected, "{count}");
            assert!(splits.windows(2).all(|pair| pair[0] < pair[1]));
        }
        assert_eq!(between("aé".as_bytes(), "aêx".as_bytes()), Key::from("aê"));
        assert_eq!(between(b"a", b"ab"), Key::from("ab"));
    }
}
