//! Restores the newest snapshot of a repository in one directory into another, for measuring:
//! `restore_directory REPOSITORY TARGET [sequential] [verify]`. The repository's password is `measure`.
#![expect(clippy::print_stdout, reason = "the figures are what it is for")]

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use cistern_bucket::{Address, Bucket, Directory};
use cistern_engine::{
    Access, Cx, Error, Overwrite, Report, Restore, Result, Role, Selection, Silent, SnapshotSelector,
    TargetWriter, Task,
};
use cistern_repository::{Identity, Options};
use secrecy::SecretString;
use tokio_util::sync::CancellationToken;

struct Local;

#[async_trait]
impl Access for Local {
    async fn bucket(&self, address: &Address, _role: Role) -> cistern_bucket::Result<Arc<dyn Bucket>> {
        match address {
            Address::Directory(path) => Ok(Arc::new(Directory::new(path))),
            Address::S3 { .. } => panic!("only directories are measured"),
        }
    }

    async fn password(&self, _repository: &Address) -> Result<SecretString> {
        Ok(SecretString::from("measure"))
    }

    fn options(&self, _repository: &Address) -> Options {
        Options::default()
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    let mut arguments = std::env::args_os().skip(1).map(PathBuf::from);
    let (Some(repository), Some(target)) = (arguments.next(), arguments.next()) else {
        return Err(Error::Invalid(
            "usage: restore_directory REPOSITORY TARGET [sequential] [verify]".into(),
        ));
    };
    let words: Vec<PathBuf> = arguments.collect();
    let has = |word: &str| words.iter().any(|given| given.as_os_str() == word);
    let identity = Identity {
        hostname: "measure".into(),
        username: "measure".into(),
        pid: std::process::id(),
        uid: 0,
        gid: 0,
    };
    let cx = Cx {
        access: Arc::new(Local),
        progress: Arc::new(Silent),
        cancel: CancellationToken::new(),
        identity,
        concurrency: 8,
        lock_wait: Duration::from_secs(1),
    };
    let task = Restore {
        repository: Address::Directory(repository),
        snapshot: SnapshotSelector { name: "latest".into(), ..SnapshotSelector::default() },
        target: Address::Directory(target),
        selection: Selection::default(),
        remap: Vec::new(),
        overwrite: Overwrite::IfChanged,
        delete: false,
        dry_run: false,
        verify: has("verify"),
        writer: if has("sequential") { TargetWriter::Sequential } else { TargetWriter::Auto },
        privileged: false,
    };
    let report = match cistern_engine::run(&Task::Restore(task), &cx).await {
        Ok(Report::Restore(report)) => report,
        Err(Error::Incomplete { report, .. }) if matches!(*report, Report::Restore(_)) => match *report {
            Report::Restore(report) => report,
            _ => return Ok(()),
        },
        Ok(other) => return Err(Error::Invalid(format!("{other:?}"))),
        Err(error) => return Err(error),
    };
    println!(
        "{} written ({} bytes), {} kept, {} others, {} verified; planned {} requests, made {:?}; {:?}",
        report.objects_written,
        report.bytes_written,
        report.objects_kept,
        report.others_written,
        report.objects_verified,
        report.plan.repository_requests,
        report.repository_requests.by_kind,
        report.exceptions.first,
    );
    Ok(())
}
