//! An object as a store describes it: what identifies its state, and every attribute it carries.

use std::collections::BTreeMap;

use jiff::Timestamp;

use crate::Key;

/// The tags of an object, by name.
pub type Tags = BTreeMap<String, String>;

/// Identifies one state of an object's contents, as a listing gives it.
///
/// Two equal revisions of one key have equal contents; reads are pinned to it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Revision {
    /// An HTTP entity tag without its quotes (S3, Azure). On S3 it is the MD5 of the contents only for
    /// objects that were put in one piece and not encrypted with a managed key.
    ETag(Box<str>),
    /// A generation and metageneration (Google Cloud Storage).
    Generation {
        /// Changes with the contents.
        object: u64,
        /// Changes with the attributes.
        meta: u64,
    },
    /// The store gives nothing but size and time.
    Unknown,
}

impl Revision {
    /// The entity tag, if that is what the store gives.
    pub fn etag(&self) -> Option<&str> {
        match self {
            Revision::ETag(tag) => Some(tag),
            _ => None,
        }
    }
}

/// One object in a listing or in the answer to a head request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The object's name within the bucket.
    pub key: Key,
    /// Size of the contents in bytes.
    pub size: u64,
    /// Time of the last modification, in the store's resolution.
    pub modified: Timestamp,
    /// The state of the contents.
    pub revision: Revision,
    /// Storage class, if it is not the standard one.
    pub class: Option<Box<str>>,
    /// Attributes, where the listing carries them (Google Cloud Storage, Azure).
    pub attributes: Option<Box<Attributes>>,
}

/// How long a version of an object can be neither deleted nor overwritten (S3 Object Lock).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retention {
    /// `GOVERNANCE`, which some may override, or `COMPLIANCE`, which nobody may.
    pub mode: String,
    /// The end of the time.
    pub until: Timestamp,
}

/// Everything an object carries besides its contents and who may do what with it.
///
/// Access control lists are not covered: they name accounts of one provider, buckets made since 2023 have none by
/// default on AWS, and reading them would cost a request per object. What is written gets the default of its bucket.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    /// Media type.
    pub content_type: Option<String>,
    /// Caching directives.
    pub cache_control: Option<String>,
    /// Presentation in a browser.
    pub content_disposition: Option<String>,
    /// Encoding of the stored bytes (never decoded here).
    pub content_encoding: Option<String>,
    /// Language of the contents.
    pub content_language: Option<String>,
    /// Expiry for caches, in the words of the store.
    pub expires: Option<String>,
    /// Where a web site redirects this key (S3).
    pub website_redirect: Option<String>,
    /// Storage class, if it is not the standard one.
    pub class: Option<String>,
    /// How long the object is locked, as far as reading that is permitted.
    pub retention: Option<Retention>,
    /// Whether the object is locked until somebody takes the lock away.
    pub legal_hold: bool,
    /// The user's own metadata, by lower-case name.
    pub meta: BTreeMap<String, String>,
    /// Number of metadata entries that the store could not express in a header.
    pub missing_meta: u32,
    /// Number of tags, if the store says so: `None` means "not known", not "none".
    pub tag_count: Option<u32>,
    /// Tags, where they were read.
    pub tags: Option<Tags>,
}
