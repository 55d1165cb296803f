//! What can go wrong with a bucket, named after what the reader can do next.

use std::error::Error as StdError;
use std::fmt;
use std::time::Duration;

use crate::{Key, Verb};

/// The result of a bucket verb.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The closed set of answers to "what can be done about it", shared by every crate: it decides exit
/// code, condition and retry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Class {
    /// Fix the input.
    Invalid,
    /// Create it, or point elsewhere.
    NotFound,
    /// Fix credentials or policy.
    Denied,
    /// Wait, or unlock.
    Busy,
    /// Look at what was skipped.
    Incomplete,
    /// Run a check: stored data is not what was written.
    Damaged,
    /// The store asks for less.
    Throttled,
    /// The store does not answer.
    Unreachable,
    /// Somebody asked to stop.
    Cancelled,
    /// A bug: report it.
    Broken,
}

/// What happened, as precisely as a store says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The object (or upload) does not exist.
    NoSuchKey,
    /// The bucket, or the directory that stands for it, does not exist.
    NoSuchBucket,
    /// A condition did not hold: the object was replaced since it was listed (HTTP 412 and the like).
    PreconditionFailed,
    /// A conditional create found an object under the key.
    AlreadyExists,
    /// The credentials are missing, wrong or not sufficient.
    Denied,
    /// The object is in an archive tier and has to be restored there first.
    Archived,
    /// The object is encrypted with a key of the customer that was not given (SSE-C).
    CustomerKey,
    /// This store cannot hold such a key, attribute or size, or lacks the verb.
    Unsupported,
    /// The request makes no sense: bad range, bad address, bad configuration.
    Invalid,
    /// No space or quota is left.
    NoSpace,
    /// The store asks for a lower rate (503 SlowDown, 429).
    Throttled,
    /// Connection, time-out, name resolution or a server error that persisted.
    Unreachable,
    /// The answer is not what was asked for: truncated, unparsable, wrong checksum.
    BadAnswer,
    /// The caller asked to stop.
    Cancelled,
}

impl ErrorKind {
    /// The class that decides what the reader does next.
    pub fn class(self) -> Class {
        match self {
            ErrorKind::NoSuchKey | ErrorKind::NoSuchBucket => Class::NotFound,
            ErrorKind::Denied | ErrorKind::CustomerKey => Class::Denied,
            ErrorKind::Archived => Class::Incomplete,
            ErrorKind::PreconditionFailed | ErrorKind::AlreadyExists => Class::Busy,
            ErrorKind::Unsupported | ErrorKind::Invalid => Class::Invalid,
            ErrorKind::NoSpace | ErrorKind::Unreachable | ErrorKind::BadAnswer => Class::Unreachable,
            ErrorKind::Throttled => Class::Throttled,
            ErrorKind::Cancelled => Class::Cancelled,
        }
    }

    /// Whether the same request may well succeed later.
    pub fn is_transient(self) -> bool {
        matches!(self, ErrorKind::Throttled | ErrorKind::Unreachable | ErrorKind::BadAnswer)
    }
}

/// A failed verb: what was attempted, on which bucket and key, and why it failed.
///
/// The text says what was attempted; the cause is [`source`](StdError::source) and is not repeated.
/// It never holds a secret.
#[derive(Debug)]
pub struct Error {
    /// What happened.
    pub kind: ErrorKind,
    /// What was attempted.
    pub verb: Verb,
    /// The bucket as a person names it, without credentials.
    pub bucket: Box<str>,
    /// The key, where one object was meant.
    pub key: Option<Key>,
    /// The store's own words or code, trimmed to one line of at most 300 characters.
    pub detail: Option<Box<str>>,
    /// How long the store asked to wait.
    pub retry_after: Option<Duration>,
    /// The cause below.
    pub source: Option<Box<dyn StdError + Send + Sync>>,
}

impl Error {
    /// An error of `kind` at `verb` on the bucket shown as `bucket`.
    pub fn new(kind: ErrorKind, verb: Verb, bucket: impl Into<Box<str>>) -> Self {
        Error { kind, verb, bucket: bucket.into(), key: None, detail: None, retry_after: None, source: None }
    }

    /// Names the object.
    pub fn key(mut self, key: &Key) -> Self {
        self.key = Some(key.clone());
        self
    }

    /// Adds the store's own words, as one line of bounded length.
    pub fn detail(mut self, detail: impl AsRef<str>) -> Self {
        let line: String =
            detail.as_ref().chars().map(|c| if c.is_control() { ' ' } else { c }).take(300).collect();
        let line = line.trim();
        self.detail = (!line.is_empty()).then(|| line.into());
        self
    }

    /// Adds the cause.
    pub fn source(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// What the reader can do next.
    pub fn class(&self) -> Class {
        self.kind.class()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.kind {
            ErrorKind::NoSuchKey => "no such object",
            ErrorKind::NoSuchBucket => "no such bucket",
            ErrorKind::PreconditionFailed => "the object was replaced meanwhile",
            ErrorKind::AlreadyExists => "the object exists already",
            ErrorKind::Denied => "access denied",
            ErrorKind::Archived => "the object is in an archive tier",
            ErrorKind::CustomerKey => "the object is encrypted with a customer key",
            ErrorKind::Unsupported => "the store cannot do this",
            ErrorKind::Invalid => "the request is not valid",
            ErrorKind::NoSpace => "no space left",
            ErrorKind::Throttled => "the store asks for a lower rate",
            ErrorKind::Unreachable => "the store cannot be reached",
            ErrorKind::BadAnswer => "the store's answer is not usable",
            ErrorKind::Cancelled => "cancelled",
        };
        write!(f, "{} ", self.verb.doing())?;
        match &self.key {
            Some(key) => write!(f, "{key} in {}", self.bucket)?,
            None => write!(f, "{}", self.bucket)?,
        }
        write!(f, ": {what}")?;
        if let Some(detail) = &self.detail {
            write!(f, " ({detail})")?;
        }
        Ok(())
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_deref().map(|e| e as _)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_says_what_was_attempted_on_what_in_one_line() {
        let error = Error::new(ErrorKind::Denied, Verb::Get, "s3://orders")
            .key(&Key::from("2026/a\n"))
            .detail("AccessDenied:\nno");
        assert_eq!(error.to_string(), "reading 2026/a\\n in s3://orders: access denied (AccessDenied: no)");
        assert_eq!(error.class(), Class::Denied);
    }
}
