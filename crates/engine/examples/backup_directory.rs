//! Backs up one directory into a repository in another, for measuring: `backup_directory SOURCE REPOSITORY`.
//!
//! The repository is created if there is none; its password is `measure`, so that stock restic can be
//! measured on the same one.
#![expect(clippy::print_stdout, reason = "the figures are what it is for")]

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use cistern_bucket::{Address, Bucket, Directory};
use cistern_engine::{Access, Backup, Cx, Error, Report, Result, Role, Silent, Task};
use cistern_repository::{Compression, Identity, Options, Repository};
use secrecy::SecretString;
use tokio_util::sync::CancellationToken;

struct Local {
    options: Options,
}

fn password() -> SecretString {
    SecretString::from("measure")
}

#[async_trait]
impl Access for Local {
    async fn bucket(&self, address: &Address, _role: Role) -> cistern_bucket::Result<Arc<dyn Bucket>> {
        match address {
            Address::Directory(path) => Ok(Arc::new(Directory::new(path))),
            Address::S3 { .. } => panic!("only directories are measured"),
        }
    }

    async fn password(&self, _repository: &Address) -> Result<SecretString> {
        Ok(password())
    }

    fn options(&self, _repository: &Address) -> Options {
        self.options.clone()
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    let mut arguments = std::env::args_os().skip(1);
    let (Some(source), Some(repository)) = (arguments.next(), arguments.next()) else {
        return Err(Error::Invalid("usage: backup_directory SOURCE REPOSITORY [fastest]".into()));
    };
    let mut options = Options::default();
    if arguments.next().is_some() {
        options.compression = Compression::Fastest;
    }
    let identity = Identity {
        hostname: "measure".into(),
        username: "measure".into(),
        pid: std::process::id(),
        uid: 0,
        gid: 0,
    };
    let bucket = Arc::new(Directory::new(&repository));
    if let Ok(entries) = std::fs::read_dir(&repository)
        && entries.count() > 0
    {
        // There is a repository already.
    } else {
        Repository::init(bucket, &password(), &identity, options.clone()).await?;
    }
    let cx = Cx {
        access: Arc::new(Local { options }),
        progress: Arc::new(Silent),
        cancel: CancellationToken::new(),
        identity,
        concurrency: 8,
        lock_wait: Duration::from_secs(1),
    };
    let mut task =
        Backup::new(Address::Directory(source.into()), Address::Directory(repository.into()), "measure");
    task.accept_shrink = true;
    let report = match cistern_engine::run(&Task::Backup(task), &cx).await? {
        Report::Backup(report) => report,
        other => return Err(Error::Invalid(format!("{other:?}"))),
    };
    println!(
        "{} new, {} changed, {} unchanged; {} bytes read; {:?}",
        report.objects_new,
        report.objects_changed,
        report.objects_unchanged,
        report.bytes_read,
        report.stored
    );
    println!("snapshot {}", report.snapshots.join(", "));
    Ok(())
}
