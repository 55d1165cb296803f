//! `cistern forget`: removes snapshots, and says of each why it is kept or removed.

use cistern_engine::retention::{Period, Policy};
use cistern_engine::{Forget, ForgetReport, Judged, Report, Task};

use super::{Outcome, Shell, prune, selector};
use crate::args;
use crate::listing::{self, columns, local, short};
use crate::units::counted;

pub async fn run(shell: &Shell, args: args::Forget) -> Outcome {
    let pruning = args.prune.then(|| args.pruning.clone());
    let task = Task::Forget(Forget {
        repository: shell.access.repository()?,
        policy: policy(&args),
        group_by: args.group_by,
        allow_remove_all: args.unsafe_allow_remove_all,
        dry_run: args.dry_run,
        filter: selector("", &args.filter),
        snapshots: args.snapshots,
    });
    let report = match cistern_engine::run(&task, &shell.cx()).await {
        Ok(Report::Forget(report)) => report,
        Ok(other) => return Err(cistern_engine::Error::Broken(format!("forget reported {other:?}")).into()),
        Err(error) => return Err(shell.access.failure(error)),
    };
    // Who is told what was removed before it is pruned knows it also if that fails.
    if !shell.ui.is_json() {
        show(shell, &report, pruning.is_some());
    }
    let pruned = match pruning {
        Some(pruning) if report.dry_run || report.removed > 0 => {
            Some(prune::prune(shell, &pruning, report.dry_run, forgotten(&report)).await)
        }
        _ => None,
    };
    if shell.ui.is_json() {
        let pruned = pruned.as_ref().and_then(|pruned| serde_json::to_value(pruned.as_ref().ok()?).ok());
        shell.ui.summary(&report, pruned.map(|pruned| ("prune", pruned)));
    }
    let Some(pruned) = pruned.transpose()? else { return Ok(0) };
    if !shell.ui.is_json() {
        prune::show(shell, &pruned);
    }
    prune::verdict(&pruned)
}

/// In a dry run, the snapshots that would go.
fn forgotten(report: &ForgetReport) -> Vec<String> {
    let runs = report.groups.iter().flat_map(|group| &group.runs);
    let gone = runs.filter(|run| report.dry_run && !run.verdict.keep);
    gone.flat_map(|run| run.parts.iter().map(|(id, _)| id.to_string())).collect()
}

fn policy(args: &args::Forget) -> Policy {
    use Period::{Daily, Hourly, Last, Monthly, Weekly, Yearly};
    let counts = [
        (Last, args.keep_last),
        (Hourly, args.keep_hourly),
        (Daily, args.keep_daily),
        (Weekly, args.keep_weekly),
        (Monthly, args.keep_monthly),
        (Yearly, args.keep_yearly),
    ];
    let within = [
        (Hourly, args.keep_within_hourly),
        (Daily, args.keep_within_daily),
        (Weekly, args.keep_within_weekly),
        (Monthly, args.keep_within_monthly),
        (Yearly, args.keep_within_yearly),
    ];
    let words = |list: &String| list.split(',').map(|tag| tag.trim().to_owned()).collect();
    Policy {
        counts: counts.into_iter().filter_map(|(period, count)| Some((period, count?))).collect(),
        within: args.keep_within,
        periods_within: within.into_iter().filter_map(|(period, age)| Some((period, age?))).collect(),
        tags: args.keep_tag.iter().map(words).collect(),
        incomplete: args.keep_incomplete,
    }
}

fn show(shell: &Shell, report: &ForgetReport, is_pruned: bool) {
    for judged in &report.groups {
        let kept = judged.runs.iter().filter(|run| run.verdict.keep).count();
        let group = match report.groups.len() {
            1 if kept == 0 => String::new(),
            _ => format!("{}: ", judged.group),
        };
        let removed = judged.runs.len() - kept;
        let verb = if report.dry_run { "would go" } else { "removed" };
        shell.ui.say(format!("{group}{kept} kept, {removed} {verb}"));
        shell.ui.result(table(&judged.runs, report.dry_run));
    }
    match (report.dry_run, report.removed) {
        (true, _) => shell.ui.say("dry run: nothing was removed"),
        (false, 0) => shell.ui.say("nothing to remove"),
        (false, n) if is_pruned => shell.ui.say(format!("removed {}", counted(n, "snapshot"))),
        (false, n) => shell.ui.say(format!(
            "removed {}; what only they held takes space until the repository is pruned",
            counted(n, "snapshot")
        )),
    }
}

fn table(runs: &[Judged], dry_run: bool) -> String {
    let mut table = listing::table([]);
    for run in runs {
        let (id, snapshot) = &run.parts[0];
        let parts = match run.parts.len() {
            1 => String::new(),
            n => format!("({})", counted(n as u64, "part")),
        };
        let what = match (run.verdict.keep, dry_run) {
            (true, _) => "keep",
            (false, true) => "would remove",
            (false, false) => "removed",
        };
        let reasons = run.verdict.reasons.join(", ");
        table.add_row([short(id), local(&snapshot.time), parts, what.to_owned(), reasons]);
    }
    columns(&table)
}
