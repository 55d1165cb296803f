//! `cistern copy`: copies snapshots from one repository into another.

use std::sync::Arc;

use cistern_engine::{CopyReport, CopySnapshots, Cx, Error, Report, Task};

use super::{Outcome, Shell, selector};
use crate::args;
use crate::failure::Failure;
use crate::from::From;
use crate::listing::short_text as short;
use crate::units::{clock, counted, size};

pub async fn run(shell: &Shell, args: args::Copy) -> Outcome {
    let repository = shell.access.repository()?;
    let from = From::new(&shell.access, args.from)?;
    let task = Task::Copy(CopySnapshots {
        from: from.address.clone(),
        repository,
        filter: selector("", &args.filter),
        snapshots: args.snapshots,
        dry_run: args.dry_run,
    });
    let cx = Cx { access: Arc::new(from), ..shell.cx() };
    let result = cistern_engine::run(&task, &cx).await;
    shell.ui.clear();
    match result {
        Ok(Report::Copy(report)) => {
            show(shell, &report);
            Ok(0)
        }
        Ok(_) => Err(Failure::new(cistern_bucket::Class::Broken, "a copy yielded another report")),
        Err(Error::Incomplete { why, report }) => {
            if let Report::Copy(report) = &*report {
                show(shell, report);
            }
            Err(Failure::from(Error::Incomplete { why, report }).hint(
                "`cistern check --read-data` of the source tells what is damaged; back its sources up again",
            ))
        }
        Err(error) => Err(shell.access.failure(error)),
    }
}

fn show(shell: &Shell, report: &CopyReport) {
    if shell.ui.is_json() {
        return shell.ui.summary(report, []);
    }
    for copied in &report.copied {
        let what = match &copied.id {
            Some(id) => format!("copied as {}", short(id)),
            None => "would be copied".to_owned(),
        };
        shell.ui.result(format!("{} {what}", short(&copied.source)));
    }
    for failed in &report.failed {
        shell.ui.result(format!("{} not copied: {}", short(&failed.source), failed.why));
    }
    if report.skipped > 0 {
        shell.ui.say(format!("{} there already", counted(report.skipped, "snapshot")));
    }
    let (blobs, bytes) = (counted(report.blobs, "blob"), size(report.bytes));
    let copied = counted(report.copied.len() as u64, "snapshot");
    let took = clock(report.ended.duration_since(report.started).unsigned_abs());
    shell.ui.say(match (report.dry_run, report.copied.len() + report.failed.len()) {
        (_, 0) => format!("nothing to copy ({took})"),
        (true, _) => format!("dry run: {copied} with {blobs}, {bytes}, would be copied ({took})"),
        (false, _) => format!("copied {copied} with {blobs}, {bytes}, in {took}"),
    });
}
