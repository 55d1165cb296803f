//! `cistern prune`: frees what no snapshot needs, and says what that is before and after.

use cistern_engine::{Amount, Prune, PruneReport, Report, Task};

use super::{Outcome, Shell};
use crate::args;
use crate::failure::Failure;
use crate::units::{count, counted, size};

pub async fn run(shell: &Shell, args: args::Prune) -> Outcome {
    let report = prune(shell, &args.pruning, args.dry_run, Vec::new()).await?;
    if shell.ui.is_json() {
        shell.ui.summary(&report, []);
    } else {
        show(shell, &report);
    }
    verdict(&report)
}

/// Prunes; in a dry run as if the snapshots `without` were removed.
///
/// # Errors
/// Whatever kept it from being done.
pub async fn prune(
    shell: &Shell,
    args: &args::Pruning,
    dry_run: bool,
    without: Vec<String>,
) -> Result<PruneReport, Failure> {
    let task = Task::Prune(Prune {
        repository: shell.access.repository()?,
        max_unused: args.max_unused,
        max_repack: args.max_repack_size,
        repack_small: args.repack_small,
        time_limit: args.max_time.map(seconds).transpose()?,
        grace: seconds(args.grace)?,
        without,
        dry_run,
    });
    match cistern_engine::run(&task, &shell.cx()).await {
        Ok(Report::Prune(report)) => Ok(report),
        Ok(other) => Err(cistern_engine::Error::Broken(format!("prune reported {other:?}")).into()),
        Err(error) => Err(shell.access.failure(error)),
    }
}

fn seconds(duration: jiff::SignedDuration) -> Result<u64, Failure> {
    u64::try_from(duration.as_secs())
        .map_err(|_| Failure::invalid("a duration cannot be negative".to_owned()))
}

/// Fails if something that is needed is damaged.
///
/// # Errors
/// Says how much.
pub fn verdict(report: &PruneReport) -> Outcome {
    match report.exceptions.total() {
        0 => Ok(0),
        damaged => Err(Failure::new(
            cistern_bucket::Class::Damaged,
            format!("{} that snapshots need cannot be read; their packs stay", counted(damaged, "blob")),
        )
        .hint("`cistern check --read-data` names the snapshots and paths")),
    }
}

/// What was to be done, and what was.
pub fn show(shell: &Shell, report: &PruneReport) {
    shell.ui.clear();
    for line in plan_lines(report) {
        shell.ui.say(line);
    }
    shell.ui.say(match &report.done {
        None if report.dry_run => "dry run: nothing was changed".to_owned(),
        None => "nothing to prune".to_owned(),
        Some(done) => {
            let left = match done.packs_left {
                0 => String::new(),
                left => format!("; time was up, {} are left to the next run", counted(left, "pack")),
            };
            format!(
                "pruned      {} deleted, {} written{left}",
                counted(done.packs_deleted, "pack"),
                count(done.packs_written),
            )
        }
    });
}

fn plan_lines(report: &PruneReport) -> Vec<String> {
    let blobs = |amount: Amount| format!("{} ({})", counted(amount.count, "blob"), size(amount.bytes));
    let packs = |amount: Amount| format!("{} ({})", counted(amount.count, "pack"), size(amount.bytes));
    let mut lines = vec![format!("used        {}", blobs(report.used))];
    let mut line = |amount: Amount, text: String| {
        if amount.count > 0 {
            lines.push(text);
        }
    };
    line(report.unused, format!("unused      {}", blobs(report.unused)));
    line(report.twice, format!("twice       {} stored once more than is needed", blobs(report.twice)));
    line(report.packs_unused, format!("delete      {} that nobody needs", packs(report.packs_unused)));
    line(
        report.packs_repacked,
        format!(
            "repack      {}, of which {} are needed",
            packs(report.packs_repacked),
            size(report.bytes_repacked)
        ),
    );
    line(report.packs_unnamed, format!("delete      {} that no index names", packs(report.packs_unnamed)));
    line(
        report.packs_unnamed_kept,
        format!("wait        {} that no index names, too young to go", packs(report.packs_unnamed_kept)),
    );
    if report.packs_forgotten > 0 {
        let missing = counted(report.packs_forgotten, "pack");
        lines.push(format!("missing     {missing} that nobody needs leave the index"));
    }
    if report.bytes_unused_left > 0 {
        lines.push(format!("stay        {} that nobody needs", size(report.bytes_unused_left)));
    }
    if report.bytes_freed > 0 {
        let requests = report.planned_requests;
        lines.push(format!(
            "free        about {}, by about {}, {} and {} to delete",
            size(report.bytes_freed),
            counted(requests.reads, "read"),
            counted(requests.writes, "write"),
            counted(requests.deletes, "file"),
        ));
    }
    lines
}
