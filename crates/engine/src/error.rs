//! Why a task did not do what was asked, with a class that tells the reader the next move.

use cistern_bucket::Class;

use crate::Report;

/// The result of engine functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a task ended without doing all that was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The source bucket or directory failed.
    #[error("the source failed")]
    Source(#[source] cistern_bucket::Error),
    /// The target bucket or directory failed.
    #[error("the target failed")]
    Target(#[source] cistern_bucket::Error),
    /// The repository failed.
    #[error("the repository failed")]
    Repository(#[from] cistern_repository::Error),
    /// A file or directory of this machine failed.
    #[error("{doing} {path}")]
    File {
        /// What was attempted, such as "reading".
        doing: &'static str,
        /// On what, as shown to a person.
        path: String,
        /// The operating system's answer.
        #[source]
        source: std::io::Error,
    },
    /// The task makes no sense as given.
    #[error("{0}")]
    Invalid(String),
    /// Nothing to work on under that name.
    #[error("{0}")]
    NotFound(String),
    /// The source holds no object at all.
    #[error("the source {source_name} holds nothing")]
    SourceEmpty {
        /// The source as a person names it.
        source_name: String,
    },
    /// The source lost more keys than allowed since the parent snapshot.
    #[error("the source {source_name} shrank from {before} to {now} keys")]
    SourceShrunk {
        /// The source as a person names it.
        source_name: String,
        /// Keys in the parent.
        before: u64,
        /// Keys listed now.
        now: u64,
    },
    /// Part of the work was done; the report says what is missing.
    #[error("{why}")]
    Incomplete {
        /// One line on what is missing.
        why: String,
        /// What was done.
        report: Box<Report>,
    },
    /// The plan was not approved.
    #[error("not approved")]
    Refused,
    /// Somebody asked to stop.
    #[error("cancelled")]
    Cancelled,
    /// An error that several get who waited for the same thing: repositories of one run.
    #[error(transparent)]
    Shared(std::sync::Arc<Error>),
    /// A broken invariant.
    #[error("internal error: {0}")]
    Broken(String),
}

impl Error {
    /// The same error for so many; one alone has it as it is.
    pub(crate) fn for_all(self, count: usize) -> Vec<Error> {
        let shared = match (self, count) {
            (error, 1) => return vec![error],
            (Error::Cancelled, _) => return (0..count).map(|_| Error::Cancelled).collect(),
            (Error::Shared(error), _) => error,
            (error, _) => std::sync::Arc::new(error),
        };
        (0..count).map(|_| Error::Shared(shared.clone())).collect()
    }

    /// An error that others may have, too; the last one has it as it is.
    pub(crate) fn of_all(error: std::sync::Arc<Error>) -> Error {
        std::sync::Arc::try_unwrap(error).unwrap_or_else(Error::Shared)
    }

    /// What the reader can do next.
    pub fn class(&self) -> Class {
        match self {
            Error::Source(e) | Error::Target(e) => e.class(),
            Error::Repository(e) => e.class(),
            Error::File { source, .. } => match source.kind() {
                std::io::ErrorKind::NotFound => Class::NotFound,
                std::io::ErrorKind::PermissionDenied => Class::Denied,
                _ => Class::Unreachable,
            },
            Error::Invalid(_) | Error::SourceEmpty { .. } | Error::SourceShrunk { .. } | Error::Refused => {
                Class::Invalid
            }
            Error::NotFound(_) => Class::NotFound,
            Error::Incomplete { .. } => Class::Incomplete,
            Error::Cancelled => Class::Cancelled,
            Error::Shared(error) => error.class(),
            Error::Broken(_) => Class::Broken,
        }
    }
}
