//! What can go wrong with a repository, named after what was attempted on what.

use cistern_bucket::Class;

use crate::Id;

/// The result of work on a repository.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failure of work on a repository. The text says what was found wrong with what; a cause below is
/// [`source`](std::error::Error::source) and is not repeated. It never holds a secret.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A verb of the bucket below failed; it names verb, key and bucket itself.
    #[error(transparent)]
    Bucket(#[from] cistern_bucket::Error),

    /// No key file of the repository opens with the password.
    #[error("the password opens none of the repository's {keys} keys")]
    WrongPassword {
        /// How many key files were tried.
        keys: usize,
    },

    /// There is no repository where one was expected.
    #[error("there is no repository in {place}: {detail}")]
    NotARepository {
        /// The bucket as a person names it.
        place: Box<str>,
        /// What is missing.
        detail: Box<str>,
    },

    /// There is a repository where a new one was to be created.
    #[error("there is a repository in {place} already")]
    AlreadyARepository {
        /// The bucket as a person names it.
        place: Box<str>,
    },

    /// The repository has a format that this program does not know.
    #[error("the repository has format version {version}, this program knows version 2 ({advice})")]
    UnsupportedVersion {
        /// The version in the repository's config.
        version: u32,
        /// What the reader can do about it.
        advice: &'static str,
    },

    /// The repository can be read but must not be written to.
    #[error("the repository must not be written to: {detail}")]
    ReadOnly {
        /// Why: parameters of another program that would be ignored.
        detail: Box<str>,
    },

    /// Stored data is not what was written.
    #[error("{what}{} is damaged: {detail}", of(.id))]
    Damaged {
        /// The kind of thing.
        what: &'static str,
        /// Its id, where it has one.
        id: Option<Id>,
        /// What is wrong with it.
        detail: Box<str>,
    },

    /// Input exceeds a bound that protects this process; a repository that a peer wrote does not reach it.
    #[error("{what} is refused: {detail}")]
    BadParameter {
        /// The kind of thing.
        what: &'static str,
        /// The value and the bound.
        detail: Box<str>,
    },

    /// Somebody else holds a lock that conflicts.
    #[error("the repository is locked {}by {holder} since {since}", if *.exclusive { "exclusively " } else { "" })]
    Locked {
        /// Who, as `user@host, process n`.
        holder: Box<str>,
        /// Whether the lock excludes every other one.
        exclusive: bool,
        /// The time in the lock, RFC 3339.
        since: Box<str>,
        /// The lock's file name.
        lock: Id,
        /// Whether it looks as if nobody held it any more: it cannot be read, or has not been refreshed in time.
        abandoned: bool,
    },

    /// Our own lock could not be refreshed in time, so that others may regard it as stale.
    #[error("the lock on the repository was lost: {detail}")]
    LockLost {
        /// How.
        detail: Box<str>,
    },

    /// No snapshot answers to the name.
    #[error("there is no snapshot {wanted}")]
    NoSuchSnapshot {
        /// What was asked for.
        wanted: Box<str>,
    },

    /// No key answers to the name.
    #[error("there is no key {wanted}")]
    NoSuchKey {
        /// What was asked for.
        wanted: Box<str>,
    },

    /// The key that opened the repository is not removed with its own help.
    #[error("key {id} is the one that opened the repository")]
    KeyInUse {
        /// The key.
        id: Id,
    },

    /// A password was changed, and the old one still opens the repository as well.
    #[error("the new password opens the repository, and so does the old one: key {old} could not be removed")]
    OldKeyLeft {
        /// The key of the new password.
        new: Id,
        /// The key of the old one.
        old: Id,
        /// Why it could not be removed.
        source: Box<Error>,
    },

    /// An id's beginning names several things.
    #[error("{prefix} is the beginning of several {what} ids")]
    Ambiguous {
        /// The kind of thing.
        what: &'static str,
        /// What was asked for.
        prefix: Box<str>,
    },

    /// A blob is in no index.
    #[error("{kind} blob {id} is in no index")]
    NoSuchBlob {
        /// The kind of the blob.
        kind: crate::BlobKind,
        /// The blob.
        id: Id,
    },

    /// A file of the cache cannot be made.
    #[error("the cache cannot be written")]
    Cache(#[source] std::io::Error),

    /// Somebody asked to stop.
    #[error("cancelled")]
    Cancelled,

    /// An error that everybody gets who waits for the same writer: the first one.
    #[error(transparent)]
    Shared(std::sync::Arc<Error>),

    /// Something that cannot happen happened: a bug or a failing random number generator.
    #[error("internal error: {0}")]
    Broken(&'static str),
}

fn of(id: &Option<Id>) -> String {
    id.as_ref().map(|id| format!(" {id}")).unwrap_or_default()
}

impl Error {
    /// The kind of thing `what` is damaged.
    pub fn damaged(what: &'static str, detail: impl Into<Box<str>>) -> Self {
        Error::Damaged { what, id: None, detail: detail.into() }
    }

    /// Names the damaged thing, unless it has been named.
    pub fn named(mut self, name: Id) -> Self {
        if let Error::Damaged { id: id @ None, .. } = &mut self {
            *id = Some(name);
        }
        self
    }

    /// What the reader can do next.
    pub fn class(&self) -> Class {
        match self {
            Error::Bucket(error) => error.class(),
            Error::WrongPassword { .. } => Class::Denied,
            Error::NotARepository { .. } | Error::NoSuchSnapshot { .. } | Error::NoSuchKey { .. } => {
                Class::NotFound
            }
            Error::AlreadyARepository { .. }
            | Error::UnsupportedVersion { .. }
            | Error::ReadOnly { .. }
            | Error::BadParameter { .. }
            | Error::KeyInUse { .. }
            | Error::Ambiguous { .. } => Class::Invalid,
            Error::Damaged { .. } | Error::NoSuchBlob { .. } => Class::Damaged,
            Error::Locked { .. } | Error::LockLost { .. } => Class::Busy,
            Error::OldKeyLeft { source, .. } => source.class(),
            Error::Cache(_) => Class::Unreachable,
            Error::Cancelled => Class::Cancelled,
            Error::Shared(error) => error.class(),
            Error::Broken(_) => Class::Broken,
        }
    }
}
