//! `cistern backup`: copies a bucket or a directory into a repository.

use cistern_bucket::Address;
use cistern_engine::{Backup, BackupReport, Error, OnUnreadable, Report, Task};

use super::{Outcome, Shell, selection};
use crate::args;
use crate::failure::Failure;
use crate::listing::short_text;
use crate::ui::Ui;
use crate::units::{clock, count, counted, size};

pub async fn run(shell: &Shell, args: args::Backup) -> Outcome {
    let access = &shell.access;
    let repository = access.repository()?;
    let source: Address = access.address(&args.source)?;
    let host = args.host.clone().unwrap_or_else(|| access.host_of(&source));
    let task = Backup {
        tags: args.tag.clone(),
        selection: selection(&args.select)?,
        time: args.time,
        parent: args.parent.clone(),
        force: args.force,
        on_unreadable: match args.on_unreadable {
            args::Unreadable::Fail => OnUnreadable::Fail,
            args::Unreadable::Skip => OnUnreadable::Skip,
        },
        max_shrink: args.max_shrink,
        accept_shrink: args.accept_shrink,
        allow_empty: args.allow_empty,
        tags_of_objects: !args.no_object_tags,
        with_atime: args.with_atime,
        one_file_system: args.one_file_system,
        ignore_inode: args.ignore_inode,
        dry_run: args.dry_run,
        skip_if_unchanged: args.skip_if_unchanged,
        ..Backup::new(source, repository, host)
    };
    let dry_run = task.dry_run;
    let source = task.source.to_string();
    let result = cistern_engine::run(&Task::Backup(task), &shell.cx()).await;
    shell.ui.clear();
    match result {
        Ok(Report::Backup(report)) => {
            print(&shell.ui, &source, &report, dry_run);
            Ok(if report.exceptions.total() > 0 { 3 } else { 0 })
        }
        Ok(_) => Err(Failure::new(cistern_bucket::Class::Broken, "a backup yielded another report")),
        Err(Error::Incomplete { why, report }) => {
            if let Report::Backup(report) = &*report {
                print(&shell.ui, &source, report, dry_run);
            }
            Err(Error::Incomplete { why, report }.into())
        }
        Err(error) => Err(shell.access.failure(error)),
    }
}

/// Prints what a backup did.
pub fn print(ui: &Ui, source: &str, report: &BackupReport, dry_run: bool) {
    if ui.is_json() {
        let seconds = seconds(report).as_secs_f64();
        let more = [("dry_run", dry_run.into()), ("source", source.into()), ("seconds", seconds.into())];
        return ui.summary(report, more);
    }
    ui.say(format!(
        "source      {source}: {}, {}",
        counted(report.objects_listed, "object"),
        size(report.bytes_listed)
    ));
    if let Some(parent) = &report.parent {
        ui.say(format!("parent      {}", short_text(parent)));
    }
    let mut changes = format!(
        "objects     {} new, {} changed, {} unchanged, {} deleted",
        count(report.objects_new),
        count(report.objects_changed),
        count(report.objects_unchanged),
        count(report.objects_deleted)
    );
    if report.objects_vanished > 0 {
        changes += &format!(", {} vanished while reading", count(report.objects_vanished));
    }
    ui.say(changes);
    let requests = requests(&report.source_requests);
    ui.say(format!(
        "read        {}{}",
        size(report.bytes_read),
        if requests.is_empty() { String::new() } else { format!(" in {requests}") }
    ));
    ui.say(format!(
        "{}      {} ({} before compression), {}",
        if dry_run { "would be" } else { "stored" },
        size(report.stored.bytes_stored),
        size(report.stored.bytes_added),
        counted(report.stored.data_blobs + report.stored.tree_blobs, "blob")
    ));
    exceptions(ui, &report.exceptions);
    let took = clock(seconds(report));
    match report.snapshots.as_slice() {
        [] if dry_run => ui.say(format!("dry run     nothing was written ({took})")),
        [] => ui.say(format!("snapshot    none written, nothing changed ({took})")),
        [one] => ui.say(format!("snapshot    {} saved in {took}", &one[..one.len().min(8)])),
        many => ui.say(format!("snapshot    {} saved in {took}, in {} parts", &many[0][..8], many.len())),
    }
}

fn seconds(report: &BackupReport) -> std::time::Duration {
    report.ended.duration_since(report.started).unsigned_abs()
}

/// `12 GET, 5 LIST`.
pub fn requests(requests: &cistern_engine::Requests) -> String {
    let shown: Vec<String> =
        requests.by_kind.iter().map(|(kind, n)| format!("{} {}", count(*n), kind.to_uppercase())).collect();
    shown.join(", ")
}

/// Counts of exceptions by kind, a line each.
pub fn exceptions(ui: &Ui, exceptions: &cistern_engine::Exceptions) {
    for (kind, number) in &exceptions.counts {
        let name =
            serde_json::to_value(kind).ok().and_then(|v| v.as_str().map(str::to_owned)).unwrap_or_default();
        ui.say(format!("{name:<11} {}", counted(*number, "object")));
    }
}
