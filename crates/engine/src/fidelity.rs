//! Keys and attributes of objects as nodes of a restic tree, and back: the one place where a key becomes a path.
//!
//! # Names
//!
//! An object is a file node. Its path is the snapshot's root (`/<bucket>`, or what the task says) followed by the
//! key, cut at every `/`. A piece that a tree can hold is the name as it is. The others are written as names that
//! begin with `.cistern~`:
//!
//! | Name | Stands for |
//! |---|---|
//! | `.cistern~c~TEXT` | a piece that is empty, `.`, `..`, longer than 255 bytes, holds a zero byte, or itself begins with `.cistern~` |
//! | `.cistern~h~HEAD~HASH` | the same, where the line above would pass 255 bytes |
//! | `.cistern~o~TEXT` | the last piece of an object's key beside a directory of the same name (`a` beside `a/b`): the directory keeps the name |
//! | `.cistern~oh~HEAD~HASH` | the same, where the line above would pass 255 bytes |
//! | `.cistern~a~TEXT` | side file with attributes of the object whose last piece is TEXT |
//! | `.cistern~ah~HEAD~HASH` | the same, where the line above would pass 255 bytes |
//!
//! TEXT is the piece with `%`, `/`, control characters and bytes that are no UTF-8 written as `%` and two upper-case
//! hex digits, everything else as it is. HASH is the SHA-256 of the piece as 64 lower-case hex digits, HEAD at most
//! the first 100 bytes of TEXT, for people. Only a name that this mapping would write is read back by it: any other
//! name that begins with `.cistern~` stands for itself. So two keys never have one path.
//!
//! A marker such as `a/` has an empty last piece: it is `a/.cistern~c~`.
//!
//! # Attributes
//!
//! What an object carries besides its contents is one extended attribute of its node, [`ATTRIBUTE`]: a JSON object
//! with its keys in ascending order, left out when there is nothing to say.
//!
//! | Field | Holds |
//! |---|---|
//! | `cacheControl`, `contentDisposition`, `contentEncoding`, `contentLanguage`, `contentType`, `expires`, `websiteRedirect` | the header of that name |
//! | `class` | storage class, if it is not the standard one |
//! | `etag` | entity tag without quotes |
//! | `generation`, `metageneration` | of Google Cloud Storage |
//! | `key` | the key below the root, if any name on the path is escaped |
//! | `keyBytes` | the same in base64, if the key is no UTF-8 or would be long as JSON |
//! | `legalHold` | `true` if the object is locked until somebody takes the lock away |
//! | `meta` | the user's metadata |
//! | `missingMeta` | how many metadata entries the store could not express |
//! | `more` | name of the side file, in the same directory, that holds the fields that are not here |
//! | `retention` | until when the object is locked: an object with `mode` and `until` |
//! | `side` | `true` on a side file itself |
//! | `tags` | the tags |
//! | `tagsUnknown` | `true` if the store did not let us read them |
//! | `version` | version id |
//!
//! A value above 3,500 bytes does not fit into an inode of ext4 with its neighbours. Then `class`, `etag`,
//! `generation`, `key`, `keyBytes`, `metageneration` and `version` stay, and all other fields are the contents of a
//! side file: a JSON object of the same form.
//!
//! # Everything else of a node
//!
//! `mtime` = `atime` = `ctime` = last modification, mode 0644 (directories 0755), user and group 0, no inode, no
//! device; directories have the time 1970-01-01T00:00:00Z. So an unchanged directory is an unchanged tree, whichever
//! way the bucket was read.

use std::borrow::Cow;
use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use cistern_bucket::{Attributes, Entry, Key, Retention, Revision, Tags};
use cistern_repository::node::mode;
use cistern_repository::{Id, Node, NodeKind, Time, Xattr};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// Name of the extended attribute that holds an object's attributes.
pub const ATTRIBUTE: &str = "user.cistern.object";

/// The attribute of a side file.
const OF_SIDE: &[u8] = br#"{"side":true}"#;

/// Longest name that a directory can hold, in bytes.
const MAX_NAME: usize = 255;
/// Longest value of the extended attribute that is written, in bytes.
const MAX_VALUE: usize = 3_500;
/// Longest value of the extended attribute, or side file, that is read, in bytes.
pub const MAX_SIDE: usize = 1 << 20;
/// Longest `key` as JSON before `keyBytes` is used.
const MAX_KEY_TEXT: usize = 1_400;
/// Longest HEAD of a hashed name.
const MAX_HEAD: usize = 100;

const ESCAPE: &[u8] = b".cistern~";
const CODED: (&str, &str) = (".cistern~c~", ".cistern~h~");
const OBJECT: (&str, &str) = (".cistern~o~", ".cistern~oh~");
const SIDE: (&str, &str) = (".cistern~a~", ".cistern~ah~");

// ------------------------------------------------------------------------------------------------ names

/// The name under which a piece of a key stands in a tree.
pub fn name(piece: &[u8]) -> Cow<'_, [u8]> {
    if is_natural(piece) { Cow::Borrowed(piece) } else { Cow::Owned(escaped(CODED, piece)) }
}

/// The name of an object whose last piece is also the name of a directory beside it.
pub fn object_name(piece: &[u8]) -> Vec<u8> {
    escaped(OBJECT, piece)
}

/// The name of the side file of an object by its last piece.
pub fn side_name(piece: &[u8]) -> Vec<u8> {
    escaped(SIDE, piece)
}

/// Whether a tree can hold a piece of a key as it is.
pub fn is_natural(piece: &[u8]) -> bool {
    Node::check_name(piece).is_ok() && piece.len() <= MAX_NAME && !piece.starts_with(ESCAPE)
}

/// The piece of a key that a name stands for; `None` for a hashed name, whose piece only the attribute `key` knows.
pub fn piece(name: &[u8]) -> Option<Cow<'_, [u8]>> {
    if !name.starts_with(ESCAPE) {
        return Some(Cow::Borrowed(name));
    }
    for (form, hashed) in [CODED, OBJECT] {
        if let Some(text) = name.strip_prefix(form.as_bytes())
            && let Some(piece) = decoded(text)
            && if form == CODED.0 { *self::name(&piece) == *name } else { object_name(&piece) == name }
        {
            return Some(Cow::Owned(piece));
        }
        if let Some(rest) = name.strip_prefix(hashed.as_bytes())
            && rest.len() > 64
            && rest.len() <= MAX_HEAD + 65
            && rest[rest.len() - 65] == b'~'
            && rest[rest.len() - 64..].iter().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
        {
            return None;
        }
    }
    Some(Cow::Borrowed(name))
}

fn escaped((form, hashed): (&str, &str), piece: &[u8]) -> Vec<u8> {
    let text = encoded(piece);
    if form.len() + text.len() <= MAX_NAME {
        return [form.as_bytes(), text.as_bytes()].concat();
    }
    let mut head = MAX_HEAD.min(text.len());
    // Neither a character nor a %XX is cut in two.
    while !text.is_char_boundary(head) || text[..head].bytes().rev().take(2).any(|b| b == b'%') {
        head -= 1;
    }
    format!("{hashed}{}~{}", &text[..head], Id::of(piece)).into_bytes()
}

/// A piece or key as text of one line: `%`, `/`, control characters and what is no UTF-8 as `%XX`.
pub(crate) fn encoded(piece: &[u8]) -> String {
    use std::fmt::Write as _;
    let mut text = String::with_capacity(piece.len());
    let code = |text: &mut String, byte: u8| write!(text, "%{byte:02X}").expect("a string takes all");
    for chunk in piece.utf8_chunks() {
        for c in chunk.valid().chars() {
            if c.is_control() || c == '%' || c == '/' {
                c.encode_utf8(&mut [0; 4]).bytes().for_each(|byte| code(&mut text, byte));
            } else {
                text.push(c);
            }
        }
        chunk.invalid().iter().for_each(|byte| code(&mut text, *byte));
    }
    text
}

pub(crate) fn decoded(text: &[u8]) -> Option<Vec<u8>> {
    let mut piece = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((first, tail)) = rest.split_first() {
        rest = tail;
        if *first != b'%' {
            piece.push(*first);
            continue;
        }
        let (digits, tail) = rest.split_at_checked(2)?;
        let digit = |d: u8| char::from(d).to_digit(16).map(|d| d as u8);
        piece.push(digit(digits[0])? << 4 | digit(digits[1])?);
        rest = tail;
    }
    Some(piece)
}

/// Whether the path of a key has an escaped name, so that its node has to carry the key.
pub fn is_escaped(key: &[u8]) -> bool {
    !key.split(|b| *b == b'/').all(is_natural)
}

/// The key that a node stands for, relative to a directory: `names` are the names on the way from there, the node's
/// own last; `attribute` is the key in its attributes. Without a (fitting) attribute, a hashed name stands for itself.
pub fn key(names: &[&[u8]], attribute: Option<&Key>) -> Key {
    if let Some(pieces) = attribute.and_then(|whole| fitting(names, whole)) {
        return Key::new(pieces);
    }
    let pieces: Vec<Cow<'_, [u8]>> = names.iter().map(|n| piece(n).unwrap_or(Cow::Borrowed(n))).collect();
    Key::new(pieces.join(&b'/'))
}

/// The end of `whole` that the names stand for, if they do: a node that was moved has another key than before.
fn fitting(names: &[&[u8]], whole: &Key) -> Option<Vec<u8>> {
    let pieces: Vec<&[u8]> = whole.as_bytes().split(|b| *b == b'/').collect();
    let last = names.len().checked_sub(1)?;
    // The names may begin above the root (then the root's names come first) or below it.
    let above = names.len().saturating_sub(pieces.len());
    let pieces = &pieces[pieces.len() - (names.len() - above)..];
    for (i, (given, piece)) in names[above..].iter().zip(pieces).enumerate() {
        let object = above + i == last && object_name(piece) == *given;
        if *name(piece) != **given && !object {
            return None;
        }
    }
    let root: Vec<Cow<'_, [u8]>> = names[..above].iter().map(|n| piece(n)).collect::<Option<_>>()?;
    let all: Vec<&[u8]> = root.iter().map(|n| &**n).chain(pieces.iter().copied()).collect();
    Some(all.join(&b'/'))
}

// --------------------------------------------------------------------------------------------- the root

/// Where the keys of a source lie in its snapshots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    names: Vec<Box<[u8]>>,
    prefix: Key,
    below: usize,
    path: String,
}

impl Layout {
    /// The layout for the objects of `bucket` whose keys begin with `prefix`: below `root`, the keys are relative to
    /// the prefix; without a root they are whole and lie below `/<bucket>`.
    ///
    /// # Errors
    /// `Invalid` if `root` is not absolute, or names no directory.
    pub fn new(root: Option<&str>, bucket: &str, prefix: &Key) -> Result<Self> {
        let Some(root) = root else {
            let path = format!("/{}", Key::new([bucket.as_bytes(), b"/", prefix.as_bytes()].concat()));
            return Ok(Layout {
                names: vec![name(bucket.as_bytes()).into()],
                prefix: prefix.clone(),
                below: 0,
                path: path.trim_end_matches('/').to_owned(),
            });
        };
        let bad = || Error::Invalid(format!("the root {root:?} is not an absolute path of a directory"));
        let names = root.strip_prefix('/').ok_or_else(bad)?.trim_end_matches('/');
        if !names.split('/').all(|piece| is_natural(piece.as_bytes())) {
            return Err(bad());
        }
        Ok(Layout {
            names: names.split('/').map(|piece| piece.as_bytes().into()).collect(),
            prefix: prefix.clone(),
            below: prefix.len(),
            path: format!("/{names}"),
        })
    }

    /// The layout of whole keys below `root`, whatever the bucket is called.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn at(root: &str, prefix: &Key) -> Result<Self> {
        Ok(Layout { below: 0, ..Layout::new(Some(root), "", prefix)? })
    }

    /// Names of the directories from the snapshot's `/` down to the root.
    pub fn names(&self) -> &[Box<[u8]>] {
        &self.names
    }

    /// All keys begin with this.
    pub fn prefix(&self) -> &Key {
        &self.prefix
    }

    /// The path that the snapshot carries.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The part of a key that becomes a path below the root. The key begins with [`prefix`](Self::prefix).
    pub fn below<'a>(&self, key: &'a [u8]) -> &'a [u8] {
        &key[self.below..]
    }

    /// Whether what lies under `below` the root is a key that begins with the prefix.
    pub fn holds(&self, below: &[u8]) -> bool {
        below.starts_with(&self.prefix.as_bytes()[self.below..])
    }

    /// The path of a key below the root as patterns see it: in pieces of the key, not in names.
    pub fn shown(&self, below: &[u8]) -> Vec<u8> {
        let mut path = Vec::new();
        for name in &self.names {
            path.push(b'/');
            path.extend_from_slice(name);
        }
        path.push(b'/');
        path.extend_from_slice(below);
        path
    }

    /// The key in the bucket of what lies under `below` the root.
    pub fn full(&self, below: &[u8]) -> Key {
        Key::new([&self.prefix.as_bytes()[..self.below], below].concat())
    }
}

// ------------------------------------------------------------------------------------------- attributes

/// The JSON of the extended attribute and of a side file. The fields stand in the order of their names.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Fields<'a> {
    #[serde(skip_serializing_if = "Option::is_none", borrow)]
    cache_control: Option<Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none", borrow)]
    class: Option<Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none", borrow)]
    content_disposition: Option<Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none", borrow)]
    content_encoding: Option<Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none", borrow)]
    content_language: Option<Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none", borrow)]
    content_type: Option<Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none", borrow)]
    etag: Option<Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none", borrow)]
    expires: Option<Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    generation: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none", borrow)]
    key: Option<Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key_bytes: Option<String>,
    #[serde(skip_serializing_if = "is_false")]
    legal_hold: bool,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    meta: Cow<'a, BTreeMap<String, String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    metageneration: Option<u64>,
    #[serde(skip_serializing_if = "is_zero")]
    missing_meta: u32,
    #[serde(skip_serializing_if = "Option::is_none", borrow)]
    more: Option<Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none", borrow)]
    retention: Option<Lock<'a>>,
    #[serde(skip_serializing_if = "is_false")]
    side: bool,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    tags: Cow<'a, Tags>,
    #[serde(skip_serializing_if = "is_false")]
    tags_unknown: bool,
    #[serde(skip_serializing_if = "Option::is_none", borrow)]
    version: Option<Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none", borrow)]
    website_redirect: Option<Cow<'a, str>>,
}

/// A [`Retention`] in JSON.
#[derive(Debug, Serialize, Deserialize)]
struct Lock<'a> {
    #[serde(borrow)]
    mode: Cow<'a, str>,
    until: Timestamp,
}

fn is_zero(n: &u32) -> bool {
    *n == 0
}

fn is_false(b: &bool) -> bool {
    !*b
}

/// Whether a node says that the tags of its object could not be read; that of an object with a side file does not tell.
pub(crate) fn lacks_tags(node: &Node) -> bool {
    const FIELD: &[u8] = b"\"tagsUnknown\":true";
    // Within a text, the quotes would be escaped.
    value(node).is_some_and(|json| json.windows(FIELD.len()).any(|at| at == FIELD))
}

/// What an object's node says besides name, size, time and contents.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Description {
    /// The key below the root, if the path does not say it.
    pub key: Option<Key>,
    /// The state of the object that was read; `None` if the source did not say (a mount).
    pub revision: Option<Revision>,
    /// Version id.
    pub version: Option<String>,
    /// Headers, metadata and tags. `tags` is `None` only if they could not be read.
    pub attributes: Attributes,
    /// Name of the side file that holds the rest; see [`with_side`](Self::with_side).
    pub more: Option<Box<str>>,
    /// The node is a side file and no object.
    pub side: bool,
}

impl Description {
    /// Reads the attribute of a node; empty if it has none. An attribute of another form than ours is an error.
    ///
    /// # Errors
    /// In one line, why the attribute is not usable.
    pub fn of(node: &Node) -> Result<Self, String> {
        let none = || Description {
            attributes: Attributes { tags: Some(Tags::new()), ..Attributes::default() },
            ..Description::default()
        };
        value(node).map_or_else(|| Ok(none()), Self::parse)
    }

    fn parse(json: &[u8]) -> Result<Self, String> {
        if json.len() > MAX_SIDE {
            return Err(format!("the attributes have {} bytes", json.len()));
        }
        let fields: Fields<'_> = serde_json::from_slice(json)
            .map_err(|error| format!("the attributes cannot be read: {error}"))?;
        let text = |field: Option<Cow<'_, str>>| field.map(Cow::into_owned);
        let key = match (fields.key, fields.key_bytes) {
            (Some(key), _) => Some(Key::from(&*key)),
            (None, Some(coded)) => {
                Some(Key::new(BASE64.decode(coded).map_err(|_| "keyBytes is not base64")?))
            }
            (None, None) => None,
        };
        let revision = match (fields.etag, fields.generation) {
            (_, Some(object)) => {
                Some(Revision::Generation { object, meta: fields.metageneration.unwrap_or(0) })
            }
            (Some(etag), None) => Some(Revision::ETag(etag.into())),
            (None, None) => None,
        };
        Ok(Description {
            key,
            revision,
            version: text(fields.version),
            attributes: Attributes {
                content_type: text(fields.content_type),
                cache_control: text(fields.cache_control),
                content_disposition: text(fields.content_disposition),
                content_encoding: text(fields.content_encoding),
                content_language: text(fields.content_language),
                expires: text(fields.expires),
                website_redirect: text(fields.website_redirect),
                class: text(fields.class),
                retention: fields
                    .retention
                    .map(|lock| Retention { mode: lock.mode.into_owned(), until: lock.until }),
                legal_hold: fields.legal_hold,
                meta: fields.meta.into_owned(),
                missing_meta: fields.missing_meta,
                tag_count: None,
                tags: (!fields.tags_unknown).then(|| fields.tags.into_owned()),
            },
            more: fields.more.map(Into::into),
            side: fields.side,
        })
    }

    /// Adds what the side file named by `more` holds.
    ///
    /// # Errors
    /// In one line, why the side file is not usable.
    pub fn with_side(self, json: &[u8]) -> Result<Self, String> {
        let rest = Self::parse(json)?;
        Ok(Description {
            key: self.key.or(rest.key),
            revision: self.revision.or(rest.revision),
            version: self.version.or(rest.version),
            attributes: Attributes {
                class: self.attributes.class.or(rest.attributes.class),
                ..rest.attributes
            },
            more: None,
            side: self.side,
        })
    }

    /// The value of the attribute, and the contents of the side file if one is needed under the name `side`.
    pub fn encode(&self, side: impl FnOnce() -> Vec<u8>) -> (Option<Vec<u8>>, Option<Side>) {
        let whole = json(&self.fields());
        // What has a side file already keeps it: nothing that could move is left here.
        if whole.len() <= MAX_VALUE || self.more.is_some() {
            return ((whole != b"{}").then_some(whole), None);
        }
        let name = side();
        let mut rest = self.fields();
        let mut stay = Fields {
            class: rest.class.take(),
            etag: rest.etag.take(),
            generation: rest.generation.take(),
            key: rest.key.take(),
            key_bytes: rest.key_bytes.take(),
            metageneration: rest.metageneration.take(),
            version: rest.version.take(),
            more: Some(String::from_utf8(name.clone()).expect("escaped names are text").into()),
            ..Fields::default()
        };
        // What is too long even alone moves as well.
        let moves: [for<'a> fn(&mut Fields<'a>, &mut Fields<'a>); 4] = [
            |stay, rest| rest.key_bytes = stay.key_bytes.take(),
            |stay, rest| rest.version = stay.version.take(),
            |stay, rest| rest.class = stay.class.take(),
            |stay, rest| rest.etag = stay.etag.take(),
        ];
        let mut value = json(&stay);
        for take in moves {
            if value.len() > MAX_VALUE {
                take(&mut stay, &mut rest);
                value = json(&stay);
            }
        }
        (Some(value), Some(Side { name: name.into(), content: json(&rest) }))
    }

    fn fields(&self) -> Fields<'_> {
        let a = &self.attributes;
        let (key, key_bytes) = match &self.key {
            None => (None, None),
            Some(key) => match key.as_str().filter(|text| json(text).len() <= MAX_KEY_TEXT) {
                Some(text) => (Some(Cow::Borrowed(text)), None),
                None => (None, Some(BASE64.encode(key.as_bytes()))),
            },
        };
        let (etag, generation, metageneration) = match &self.revision {
            Some(Revision::ETag(tag)) => (Some(Cow::Borrowed(&**tag)), None, None),
            Some(Revision::Generation { object, meta }) => (None, Some(*object), Some(*meta)),
            Some(Revision::Unknown) | None => (None, None, None),
        };
        static NO_TAGS: Tags = Tags::new();
        Fields {
            cache_control: a.cache_control.as_deref().map(Cow::Borrowed),
            class: a.class.as_deref().map(Cow::Borrowed),
            content_disposition: a.content_disposition.as_deref().map(Cow::Borrowed),
            content_encoding: a.content_encoding.as_deref().map(Cow::Borrowed),
            content_language: a.content_language.as_deref().map(Cow::Borrowed),
            content_type: a.content_type.as_deref().map(Cow::Borrowed),
            etag,
            expires: a.expires.as_deref().map(Cow::Borrowed),
            generation,
            key,
            key_bytes,
            legal_hold: a.legal_hold,
            meta: Cow::Borrowed(&a.meta),
            metageneration,
            missing_meta: a.missing_meta,
            more: self.more.as_deref().map(Cow::Borrowed),
            retention: a
                .retention
                .as_ref()
                .map(|lock| Lock { mode: Cow::Borrowed(&lock.mode), until: lock.until }),
            side: self.side,
            tags: Cow::Borrowed(a.tags.as_ref().unwrap_or(&NO_TAGS)),
            tags_unknown: a.tags.is_none(),
            version: self.version.as_deref().map(Cow::Borrowed),
            website_redirect: a.website_redirect.as_deref().map(Cow::Borrowed),
        }
    }
}

/// The contents of a side file and the name that it has to get.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Side {
    /// Name in the object's directory.
    pub name: Box<[u8]>,
    /// JSON.
    pub content: Vec<u8>,
}

fn json(value: &(impl Serialize + ?Sized)) -> Vec<u8> {
    serde_json::to_vec(value).expect("the fields have string keys only")
}

/// The value of a node's [`ATTRIBUTE`].
fn value(node: &Node) -> Option<&[u8]> {
    node.xattrs.iter().find(|xattr| &*xattr.name == ATTRIBUTE)?.value.as_deref()
}

// ------------------------------------------------------------------------------------------------ nodes

/// The node of an object, but for its attribute (see [`set_value`]).
pub fn file(name: &[u8], size: u64, modified: Timestamp, content: &[Id]) -> Node {
    let time = time(modified);
    Node {
        name: name.into(),
        kind: NodeKind::File,
        mode: 0o644,
        mtime: time,
        atime: time,
        ctime: time,
        size,
        content: Some(content.into()),
        ..Node::default()
    }
}

/// The node of a side file.
pub fn side_file(side: &Side, modified: Timestamp, content: &[Id]) -> Node {
    let mut node = file(&side.name, side.content.len() as u64, modified, content);
    set_value(&mut node, Some(OF_SIDE.to_vec()));
    node
}

/// The node of a directory.
pub fn directory(name: &[u8], subtree: Id) -> Node {
    let time = Time::new(0, 0);
    Node {
        name: name.into(),
        kind: NodeKind::Dir,
        mode: mode::DIR | 0o755,
        mtime: time,
        atime: time,
        ctime: time,
        subtree: Some(subtree),
        ..Node::default()
    }
}

/// Replaces the attribute of a node; other extended attributes stay.
pub fn set_value(node: &mut Node, value: Option<Vec<u8>>) {
    node.xattrs.retain(|xattr| &*xattr.name != ATTRIBUTE);
    if let Some(value) = value {
        node.xattrs.push(Xattr { name: ATTRIBUTE.into(), value: Some(value.into()) });
    }
}

/// A store's time as a node has it.
pub fn time(modified: Timestamp) -> Time {
    let nanoseconds = modified.as_nanosecond();
    let second = nanoseconds.div_euclid(1_000_000_000) as i64;
    Time::new(second, nanoseconds.rem_euclid(1_000_000_000) as u32)
}

/// The fields that tell the state of an object, without a copy of the others.
#[derive(Deserialize)]
struct State<'a> {
    #[serde(borrow, default)]
    etag: Option<Cow<'a, str>>,
    #[serde(default)]
    generation: Option<u64>,
    #[serde(default)]
    metageneration: Option<u64>,
    #[serde(borrow, default)]
    more: Option<Cow<'a, str>>,
}

/// Name of the side file that belongs to a node.
pub fn side_of(node: &Node) -> Option<Box<[u8]>> {
    let json = value(node)?;
    // Nearly no node has one: the text is read only if it can say so.
    if !json.windows(7).any(|text| text == b"\"more\":") {
        return None;
    }
    let state: State<'_> = serde_json::from_slice(json).ok()?;
    state.more.map(|name| name.as_bytes().into())
}

/// Whether two times are the same, as far as both sides know them: some know whole seconds only.
pub(crate) fn same_second(a: Time, b: Time) -> bool {
    let (a, b) = (a.instant(), b.instant());
    a.0 == b.0 && (a.1 == b.1 || a.1 == 0 || b.1 == 0)
}

/// Whether this is the node of a side file.
pub(crate) fn is_side(node: &Node) -> bool {
    value(node) == Some(OF_SIDE)
}

/// Whether a node holds the very state of an object that a listing shows: size, time, and entity tag or generation
/// where both sides have one; the time in whole seconds where neither is there (a mount; rules.md 3.7).
pub fn is_same(node: &Node, entry: &Entry) -> bool {
    if node.kind != NodeKind::File || node.size != entry.size {
        return false;
    }
    let same_second = same_second(node.mtime, time(entry.modified));
    let then = node.mtime.instant();
    let Some(json) = value(node) else { return same_second };
    let Ok(state) = serde_json::from_slice::<State<'_>>(json) else { return false };
    match (&entry.revision, state) {
        (Revision::ETag(now), State { etag: Some(etag), .. }) => {
            *etag == **now && then == self::time(entry.modified).instant()
        }
        (
            Revision::Generation { object, meta },
            State { generation: Some(generation), metageneration, .. },
        ) => *object == generation && metageneration == Some(*meta),
        (Revision::Unknown, _) => same_second,
        // Its entity tag moved into the side file, or it comes from another kind of store.
        (_, State { etag, generation, more, .. }) => {
            etag.is_none() && generation.is_none() && more.is_none() && same_second
        }
    }
}
