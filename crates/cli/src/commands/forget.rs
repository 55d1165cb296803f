//! `cistern forget`: removes snapshots, and says of each why it is kept or removed.

use cistern_engine::retention::{Period, Policy};
use cistern_engine::{Forget, ForgetReport, Judged, Report, Task};
use comfy_table::{Table, presets};

use super::{Outcome, Shell, selector};
use crate::args;
use crate::listing::{columns, local, short};
use crate::units::counted;

pub async fn run(shell: &Shell, args: args::Forget) -> Outcome {
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
    if shell.ui.is_json() {
        let mut value = serde_json::to_value(&report).unwrap_or_default();
        value["message_type"] = "summary".into();
        shell.ui.object(&value);
    } else {
        show(shell, &report);
    }
    Ok(0)
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

fn show(shell: &Shell, report: &ForgetReport) {
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
        (false, n) => shell.ui.say(format!(
            "removed {}; what only they held takes space until the repository is pruned",
            counted(n, "snapshot")
        )),
    }
}

fn table(runs: &[Judged], dry_run: bool) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
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
