//! One file per verb, and what verbs share.

mod backup;
mod check;
mod completions;
mod copy;
mod demo;
mod diff;
mod find;
mod forget;
mod init;
mod key;
mod ls;
pub mod operator;
mod protect;
mod prune;
mod repair;
mod restore;
mod rewrite;
mod snapshots;
mod stats;
mod tag;
mod unlock;
mod validate;
mod verify;

use std::sync::Arc;
use std::time::Duration;

use cistern_bucket::{Address, Bucket};
use cistern_engine::{Cx, Phase, Progress, Role, Selection, SnapshotSelector, Status, lock_as};
use cistern_repository::{Identity, Lock, LockKind, Repository};
use tokio_util::sync::CancellationToken;

use crate::access::{Access, Handle};
use crate::args::{Cli, Command, Global, Select, SnapshotFilter};
use crate::cluster;
use crate::environment::Environment;
use crate::failure::Failure;
use crate::ui::Ui;

/// Everything a verb works with.
pub struct Shell {
    /// Settings of the command line.
    pub global: Global,
    /// Access to stores, with the settings of this command line.
    pub access: Arc<Access>,
    /// The user.
    pub ui: Arc<Ui>,
    /// Fires on an interrupt.
    pub cancel: CancellationToken,
}

/// Exit code of a verb that did what was asked, in part or whole.
pub type Outcome = Result<u8, Failure>;

/// Runs the verb.
///
/// # Errors
/// Whatever kept it from being done.
pub async fn run(cli: Cli, environment: Environment, ui: Arc<Ui>, cancel: CancellationToken) -> Outcome {
    let access = Arc::new(Access::new(cli.global.clone(), environment)?);
    let shell = Shell { global: cli.global, access, ui, cancel };
    match cli.command {
        Command::Init(args) => shell.unless_interrupted(init::run(&shell, args)).await,
        Command::Backup(args) => backup::run(&shell, args).await,
        Command::Snapshots(args) => shell.unless_interrupted(snapshots::run(&shell, args)).await,
        Command::Forget(args) => forget::run(&shell, args).await,
        Command::Prune(args) => prune::run(&shell, args).await,
        Command::Protect(args) => protect::run(&shell, args).await,
        Command::Copy(args) => copy::run(&shell, args).await,
        Command::Rewrite(args) => rewrite::run(&shell, args).await,
        Command::Tag(args) => tag::run(&shell, args).await,
        Command::Ls(args) => shell.unless_interrupted(ls::run(&shell, args)).await,
        Command::Find(args) => shell.unless_interrupted(find::run(&shell, args)).await,
        Command::Diff(args) => shell.unless_interrupted(diff::run(&shell, args)).await,
        Command::Restore(args) => restore::run(&shell, args).await,
        Command::Verify(args) => verify::run(&shell, args).await,
        Command::Check(args) => check::run(&shell, args).await,
        Command::Stats(args) => shell.unless_interrupted(stats::run(&shell, args)).await,
        Command::Key(args) => key::run(&shell, args).await,
        Command::Repair(verb) => repair::run(&shell, verb).await,
        Command::Unlock(args) => shell.unless_interrupted(unlock::run(&shell, args)).await,
        Command::Demo(args) => demo::run(&shell, args).await,
        Command::Completions(args) => completions::shell(args),
        Command::Man => completions::manual(),
        Command::Job(args) => cluster::job::run(&shell, args).await,
        Command::Trigger(args) => {
            let connected = cluster::connect(&args.connection).await?;
            shell.unless_interrupted(cluster::trigger(&shell, &connected, args.start)).await
        }
        Command::Cluster(args) => {
            let connected = cluster::connect(&args.connection).await?;
            shell.unless_interrupted(cluster::kubectl(&shell, &connected, args.verb)).await
        }
        Command::Operator(args) => operator::run(&shell, args).await,
        Command::Validate(args) => validate::run(&shell, &args),
    }
}

impl Shell {
    /// Work that only reads, or whose writes stand each for itself, and so can be dropped wherever it is.
    async fn unless_interrupted<T>(
        &self,
        verb: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        tokio::select! {
            outcome = verb => outcome,
            () = self.cancel.cancelled() => Err(cistern_engine::Error::Cancelled.into()),
        }
    }

    /// Works on the repository under a lock. An interrupt ends the work wherever it is.
    ///
    /// # Errors
    /// As [`repository`](Self::repository); the repository is locked by somebody else; what the work says.
    async fn locked<T>(
        &self,
        kind: LockKind,
        work: impl AsyncFnOnce(&Repository, &Arc<Lock>) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let repository = self.repository().await?;
        let lock =
            lock_as(&repository, kind, &self.cx()).await.map_err(|error| self.access.failure(error))?;
        let lock = Arc::new(lock);
        let outcome = self.unless_interrupted(work(&repository, &lock)).await;
        lock.release().await;
        outcome
    }

    /// Shows how many of what a look at the repository has done.
    fn counting(&self, what: &str, done: u64, total: u64) {
        self.ui.status(&Status {
            phase: Phase::Verifying,
            objects_done: done,
            objects_total: total,
            current: what.to_owned(),
            ..Status::default()
        });
    }

    /// The engine's surroundings.
    pub fn cx(&self) -> Cx {
        Cx {
            access: Arc::new(Handle(self.access.clone())),
            progress: self.ui.clone(),
            cancel: self.cancel.clone(),
            identity: identity(),
            concurrency: self.global.store.connections.max(1),
            lock_wait: self.lock_wait(),
        }
    }

    /// How long to wait for a lock.
    pub fn lock_wait(&self) -> Duration {
        self.global.retry_lock.and_then(|wait| Duration::try_from(wait).ok()).unwrap_or_default()
    }

    /// Opens the repository for reading.
    ///
    /// # Errors
    /// No address, no access, no repository, wrong password.
    pub async fn repository(&self) -> Result<Repository, Failure> {
        let address = self.access.repository()?;
        let bucket = self.repository_bucket(&address).await?;
        let password = self.access.secret(false).await?;
        Ok(Repository::open(bucket, &password, self.access.options(&address)).await?)
    }

    /// The bucket that the repository lies in.
    ///
    /// # Errors
    /// Settings that cannot be used.
    pub async fn repository_bucket(&self, address: &Address) -> Result<Arc<dyn Bucket>, Failure> {
        let opened =
            cistern_engine::repository_bucket(address, Role::Repository, &Handle(self.access.clone())).await;
        opened.map_err(|error| self.access.failure(error))
    }
}

/// Who acts: this process.
pub fn identity() -> Identity {
    Identity {
        hostname: rustix::system::uname().nodename().to_string_lossy().into_owned(),
        username: whoami(),
        pid: std::process::id(),
        uid: rustix::process::getuid().as_raw(),
        gid: rustix::process::getgid().as_raw(),
    }
}

fn whoami() -> String {
    ["USER", "LOGNAME"]
        .iter()
        .find_map(|name| std::env::var(name).ok())
        .unwrap_or_else(|| if rustix::process::getuid().is_root() { "root".into() } else { "unknown".into() })
}

/// Patterns, and those of files, one a line.
///
/// # Errors
/// A pattern file that cannot be read.
pub fn patterns(patterns: &[String], files: &[std::path::PathBuf]) -> Result<Vec<String>, Failure> {
    let mut all = patterns.to_vec();
    for file in files {
        let text = std::fs::read_to_string(file)
            .map_err(|e| Failure::io(format!("reading the pattern file {}", file.display()), e))?;
        let lines = text.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#'));
        all.extend(lines.map(str::to_owned));
    }
    Ok(all)
}

/// The engine's form of a selection; patterns of files are added.
///
/// # Errors
/// A pattern file that cannot be read.
pub fn selection(select: &Select) -> Result<Selection, Failure> {
    Ok(Selection {
        include: patterns(&select.include, &select.include_file)?,
        exclude: patterns(&select.exclude, &select.exclude_file)?,
        ignore_case: select.ignore_case,
        max_size: select.exclude_larger_than,
        modified_since: select.modified_since,
    })
}

/// The engine's form of a snapshot's name with its filters.
pub fn selector(name: &str, filter: &SnapshotFilter) -> SnapshotSelector {
    SnapshotSelector {
        name: name.to_owned(),
        hosts: filter.host.clone(),
        paths: filter.path.clone(),
        tags: filter.tag.clone(),
    }
}
