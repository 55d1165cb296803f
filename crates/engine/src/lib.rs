//! Backup, restore and verification: what to copy, and how to prove that it was copied.
//!
//! A [`Task`] says what is wanted, as plain data; [`run`] does it and yields a [`Report`]. Everything
//! that the outside world has to supply (buckets, passwords, who we are) comes through [`Cx`], everything
//! that it may want to know while work goes on leaves through [`Progress`].
//!
//! What this crate is not: it has never heard of Kubernetes, of a terminal or of an environment
//! variable, and it knows nothing of HTTP or of the layout of a pack.

mod backup;
mod copy;
mod error;
pub mod fidelity;
mod forget;
mod parent;
pub mod parts;
mod posix;
mod progress;
mod proof;
mod protect;
mod prune;
pub mod query;
mod report;
mod restore;
pub mod retention;
mod rewrite;
mod run;
mod select;
mod snapshots;
mod tag;
mod task;
mod verify;

pub use backup::session::{lock_as, repository_bucket};
pub use backup::several::backup_to_several;
pub use cistern_repository::Amount;
pub use copy::{CopiedSnapshot, CopyReport, CopySnapshots, NotCopied};
pub use error::{Error, Result};
pub use forget::{ForgetReport, ForgottenGroup, Judged};
pub use progress::{Meter, Note, Phase, Plan, Progress, Silent, Status};
pub use protect::{Coverage, LockMode, ProtectReport};
pub use prune::PruneReport;
pub use report::{
    BackupReport, Exception, ExceptionKind, Exceptions, Part, Proof, Report, Requests, RestoreReport, Stored,
    VerifyReport,
};
pub use rewrite::{Rewrite, RewriteReport, RewrittenSnapshot};
pub use run::{Access, Cx, Role, run};
pub use snapshots::{INCOMPLETE_TAG, PARTIAL_TAG, PARTS_TAG, RUN_TAG, Run, Selected, resolve, runs};
pub use tag::{Retagged, Tag, TagChange, TagReport};
pub use task::{
    Backup, Forget, OnUnreadable, Overwrite, Protect, Prune, Restore, Selection, SnapshotSelector, Task,
    Unused, Verify, Writer as TargetWriter,
};
