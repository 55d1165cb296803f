//! `cistern restore`: copies a snapshot to a bucket or a directory.

use cistern_engine::{Error, Overwrite, Report, Restore, RestoreReport, TargetWriter, Task};

use super::backup::exceptions;
use super::{Outcome, Shell, selection, selector};
use crate::args;
use crate::failure::Failure;
use crate::ui::{Ui, plan_lines};
use crate::units::{clock, count, counted, size};

pub async fn run(shell: &Shell, args: args::Restore) -> Outcome {
    let access = &shell.access;
    let task = Restore {
        repository: access.repository()?,
        snapshot: selector(&args.snapshot, &args.filter),
        target: access.address(&args.to)?,
        selection: selection(&args.select)?,
        remap: args.remap.clone(),
        overwrite: match args.overwrite {
            args::OverwritePolicy::Always => Overwrite::Always,
            args::OverwritePolicy::IfChanged => Overwrite::IfChanged,
            args::OverwritePolicy::IfNewer => Overwrite::IfNewer,
            args::OverwritePolicy::Never => Overwrite::Never,
        },
        delete: args.delete,
        dry_run: args.dry_run,
        verify: args.verify,
        writer: match args.writer {
            args::FileWriter::Auto => TargetWriter::Auto,
            args::FileWriter::Random => TargetWriter::Random,
            args::FileWriter::Sequential => TargetWriter::Sequential,
        },
        privileged: args.privileged,
    };
    let result = cistern_engine::run(&Task::Restore(task), &shell.cx()).await;
    shell.ui.clear();
    match result {
        Ok(Report::Restore(report)) => {
            print(&shell.ui, &report, args.dry_run);
            Ok(if report.exceptions.total() > 0 { 3 } else { 0 })
        }
        Ok(_) => Err(Failure::new(cistern_bucket::Class::Broken, "a restore yielded another report")),
        Err(Error::Incomplete { why, report }) => {
            if let Report::Restore(report) = &*report {
                print(&shell.ui, report, args.dry_run);
            }
            Err(Error::Incomplete { why, report }.into())
        }
        Err(error) => Err(shell.access.failure(error)),
    }
}

/// Prints what a restore did.
pub fn print(ui: &Ui, report: &RestoreReport, dry_run: bool) {
    let took = report.ended.duration_since(report.started).unsigned_abs();
    if ui.is_json() {
        return ui.summary(report, [("dry_run", dry_run.into()), ("seconds", took.as_secs_f64().into())]);
    }
    if dry_run {
        for line in plan_lines(&report.plan) {
            ui.say(line);
        }
        ui.say("dry run     nothing was written");
        return;
    }
    ui.say(format!(
        "restored    {}, {}",
        counted(report.objects_written, "object"),
        size(report.bytes_written)
    ));
    if report.objects_kept > 0 {
        ui.say(format!("kept        {} that were there already", counted(report.objects_kept, "object")));
    }
    if report.objects_deleted > 0 {
        ui.say(format!("deleted     {}", counted(report.objects_deleted, "object")));
    }
    if report.objects_verified > 0 {
        ui.say(format!("verified    {}", counted(report.objects_verified, "object")));
    }
    exceptions(ui, &report.exceptions);
    ui.say(format!(
        "snapshot    {} in {}",
        report.snapshots.iter().map(|id| &id[..id.len().min(8)]).collect::<Vec<_>>().join(", "),
        clock(took)
    ));
    if report.exceptions.total() > 0 {
        ui.warn(format!("{} exceptions: see above", count(report.exceptions.total())));
    }
}
