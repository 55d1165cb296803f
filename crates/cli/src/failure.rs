//! What a failed verb tells the user: the error, its causes, a hint, and the exit code of its class.

use std::error::Error as StdError;

use cistern_bucket::{Class, ErrorKind, Verb};

/// An error on its way to the user.
#[derive(Debug)]
pub struct Failure {
    /// What failed.
    pub error: Box<dyn StdError + Send + Sync>,
    /// What the reader can do next.
    pub class: Class,
    /// Exit code, from the class unless restic has one of its own.
    pub code: u8,
    /// A next step, if there is one that fits.
    pub hint: Option<String>,
}

/// One line: the error with its causes.
impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.error)?;
        self.causes().iter().try_for_each(|cause| write!(f, ": {cause}"))
    }
}

/// The exit code of a class, as listed in `cistern --help`.
pub fn exit_code(class: Class) -> u8 {
    match class {
        Class::Broken => 1,
        Class::Invalid => 2,
        Class::Incomplete => 3,
        Class::Busy => 11,
        Class::NotFound => 20,
        Class::Denied => 21,
        Class::Damaged => 22,
        Class::Throttled | Class::Unreachable => 23,
        Class::Cancelled => 130,
    }
}

impl Failure {
    /// A failure of `class` with the text as its error.
    pub fn new(class: Class, text: impl Into<String>) -> Self {
        Failure { error: text.into().into(), class, code: exit_code(class), hint: None }
    }

    /// Input that has to be changed.
    pub fn invalid(text: impl Into<String>) -> Self {
        Failure::new(Class::Invalid, text)
    }

    /// A failing file or program of this machine.
    pub fn io(doing: String, error: std::io::Error) -> Self {
        let class = match error.kind() {
            std::io::ErrorKind::NotFound => Class::NotFound,
            std::io::ErrorKind::PermissionDenied => Class::Denied,
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => Class::Unreachable,
            _ => Class::Invalid,
        };
        Failure { error: Box::new(Doing { doing, source: error }), class, code: exit_code(class), hint: None }
    }

    /// Adds a next step.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The causes, outermost first, without those that repeat the text above them.
    pub fn causes(&self) -> Vec<String> {
        let mut causes: Vec<String> = Vec::new();
        let mut last = self.error.to_string();
        let mut next = self.error.source();
        while let Some(cause) = next {
            let text = cause.to_string();
            if !last.contains(&text) {
                causes.push(text.clone());
                last = text;
            }
            next = cause.source();
        }
        causes
    }
}

#[derive(Debug, thiserror::Error)]
#[error("{doing}")]
struct Doing {
    doing: String,
    source: std::io::Error,
}

impl From<cistern_bucket::Error> for Failure {
    fn from(error: cistern_bucket::Error) -> Self {
        let class = error.class();
        let hint = bucket_hint(&error);
        Failure { error: Box::new(error), class, code: exit_code(class), hint }
    }
}

impl From<cistern_repository::Error> for Failure {
    fn from(error: cistern_repository::Error) -> Self {
        use cistern_repository::Error as E;
        let class = error.class();
        let (code, hint) = repository_code_and_hint(&error, class);
        let error: Box<dyn StdError + Send + Sync> = match error {
            E::Bucket(inner) => Box::new(inner),
            // Several tasks of a writer end with one error.
            E::Shared(inner) => Box::new(inner),
            other => Box::new(other),
        };
        Failure { error, class, code, hint }
    }
}

fn repository_code_and_hint(error: &cistern_repository::Error, class: Class) -> (u8, Option<String>) {
    use cistern_repository::Error as E;
    let some = |text: &str| Some(text.to_owned());
    match error {
        E::Shared(inner) => repository_code_and_hint(inner, class),
        E::Bucket(inner) if inner.kind == ErrorKind::NoSuchBucket => {
            (10, some("create it with `cistern init`, or check the name and --repo-endpoint"))
        }
        E::Bucket(inner) => (exit_code(class), bucket_hint(inner)),
        E::WrongPassword { .. } => {
            (12, some("check CISTERN_PASSWORD_FILE, CISTERN_PASSWORD or --password-file"))
        }
        E::NotARepository { .. } => (10, some("create it with `cistern init`, or check the address")),
        E::AlreadyARepository { .. } => (exit_code(class), some("use it as it is, or choose another prefix")),
        E::Locked { abandoned: true, .. } => (
            11,
            some("if nobody is at work on the repository any more, `cistern unlock --all` removes the lock"),
        ),
        E::Locked { .. } => {
            (11, some("wait with --retry-lock 10m; a lock whose holder died is ignored after 30 minutes"))
        }
        E::NoSuchKey { .. } => (20, some("`cistern key list` lists what there is")),
        E::KeyInUse { .. } => (
            exit_code(class),
            some(
                "open the repository with the password of another key, or change it with `cistern key passwd`",
            ),
        ),
        E::OldKeyLeft { old, source, .. } => (
            repository_code_and_hint(source, class).0,
            Some(format!("remove it with the new password: `cistern key remove {}`", old.short())),
        ),
        E::NoSuchSnapshot { .. } => (20, some("`cistern snapshots` lists what there is")),
        E::Ambiguous { .. } => (exit_code(class), some("give more digits")),
        E::Damaged { .. } | E::NoSuchBlob { .. } => {
            (exit_code(class), some("`cistern check --read-data` finds out what is affected"))
        }
        _ => (exit_code(class), None),
    }
}

fn bucket_hint(error: &cistern_bucket::Error) -> Option<String> {
    let text = match error.kind {
        ErrorKind::NoSuchBucket => "check the name and --endpoint; Cistern does not create source buckets",
        ErrorKind::Denied if error.verb == Verb::Delete => {
            "these credentials may not delete, as those of a writer that may only append: use some that may"
        }
        ErrorKind::Denied => {
            "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or --profile, and what the bucket's policy allows"
        }
        ErrorKind::Unreachable => {
            "check --endpoint, the network, and --cacert for a private certificate authority"
        }
        ErrorKind::NoSpace => "free space on the target; nothing is left half-written",
        ErrorKind::Throttled => "try again later, or lower the rate with --limit-requests or --connections",
        ErrorKind::Unsupported if error.verb == Verb::Retention => {
            "objects can be locked in S3 buckets that were created with Object Lock only"
        }
        ErrorKind::Archived => "restore the object from its archive tier first",
        _ => return None,
    };
    Some(text.to_owned())
}

impl From<cistern_engine::Error> for Failure {
    fn from(error: cistern_engine::Error) -> Self {
        use cistern_engine::Error as E;
        let class = error.class();
        let (code, hint) = engine_code_and_hint(&error, class);
        match error {
            E::Repository(inner) => inner.into(),
            // The bucket's own text says which side it was: its name is in it.
            E::Source(inner) | E::Target(inner) => Failure { error: Box::new(inner), class, code, hint },
            // Several repositories of a run end with one error.
            E::Shared(inner) => Failure { error: Box::new(inner), class, code, hint },
            other => Failure { error: Box::new(other), class, code, hint },
        }
    }
}

fn engine_code_and_hint(error: &cistern_engine::Error, class: Class) -> (u8, Option<String>) {
    use cistern_engine::Error as E;
    let hint = match error {
        E::Shared(inner) => return engine_code_and_hint(inner, class),
        E::Repository(inner) => return repository_code_and_hint(inner, class),
        E::SourceEmpty { .. } => Some("check the address; --allow-empty accepts an empty source".to_owned()),
        E::SourceShrunk { .. } => {
            Some("look at what is gone with `cistern verify`; --accept-shrink accepts it".to_owned())
        }
        E::Source(inner) | E::Target(inner) => bucket_hint(inner),
        _ => None,
    };
    (exit_code(class), hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_are_those_of_the_help() {
        let bucket = |kind| cistern_bucket::Error::new(kind, Verb::List, "s3://x");
        assert_eq!(Failure::from(bucket(ErrorKind::NoSuchBucket)).code, 20);
        assert_eq!(
            Failure::from(cistern_repository::Error::Bucket(bucket(ErrorKind::NoSuchBucket))).code,
            10
        );
        assert_eq!(Failure::from(cistern_repository::Error::WrongPassword { keys: 1 }).code, 12);
        assert_eq!(Failure::from(cistern_engine::Error::Cancelled).code, 130);
        assert_eq!(Failure::from(cistern_engine::Error::Source(bucket(ErrorKind::Denied))).code, 21);
    }

    #[test]
    fn causes_do_not_repeat_what_was_said() {
        let inner = std::io::Error::other("no route");
        let failure = Failure::from(bucket_with(inner));
        assert_eq!(failure.causes(), ["no route"]);
    }

    #[test]
    fn a_password_that_still_opens_is_named_with_the_way_to_remove_it() {
        use cistern_repository::{Error as E, Id};
        let denied = cistern_bucket::Error::new(ErrorKind::Denied, Verb::Delete, "s3://x");
        let (new, old) = (Id::of(b"new"), Id::of(b"old"));
        let failure = Failure::from(E::OldKeyLeft { new, old, source: Box::new(E::Bucket(denied)) });
        assert_eq!((failure.code, failure.causes().len()), (21, 1), "{failure}");
        assert!(failure.hint.unwrap().contains(&format!("cistern key remove {}", old.short())));
    }

    fn bucket_with(source: std::io::Error) -> cistern_bucket::Error {
        cistern_bucket::Error::new(ErrorKind::Unreachable, Verb::Get, "s3://x").source(source)
    }
}
