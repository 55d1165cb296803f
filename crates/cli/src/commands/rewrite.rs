//! `cistern rewrite`: writes snapshots anew without what matches a pattern.

use cistern_engine::{Report, Rewrite, RewriteReport, Task};

use super::{Outcome, Shell, patterns, selector};
use crate::args;
use crate::listing::short_text as short;
use crate::units::counted;

pub async fn run(shell: &Shell, args: args::Rewrite) -> Outcome {
    let task = Task::Rewrite(Rewrite {
        repository: shell.access.repository()?,
        filter: selector("", &args.filter),
        snapshots: args.snapshots,
        exclude: patterns(&args.exclude, &args.exclude_file)?,
        exclude_any_case: patterns(&args.iexclude, &args.iexclude_file)?,
        forget: args.forget,
        dry_run: args.dry_run,
    });
    let report = match cistern_engine::run(&task, &shell.cx()).await {
        Ok(Report::Rewrite(report)) => report,
        Ok(other) => return Err(cistern_engine::Error::Broken(format!("rewrite reported {other:?}")).into()),
        Err(error) => return Err(shell.access.failure(error)),
    };
    show(shell, &report);
    Ok(0)
}

fn show(shell: &Shell, report: &RewriteReport) {
    if shell.ui.is_json() {
        return shell.ui.summary(report, []);
    }
    for rewritten in &report.rewritten {
        let paths = counted(rewritten.left_out, "path");
        match &rewritten.new {
            Some(new) => {
                shell.ui.result(format!(
                    "{} written anew as {} without {paths}",
                    short(&rewritten.old),
                    short(new)
                ));
            }
            None => {
                shell.ui.result(format!("{} would lose {paths}", short(&rewritten.old)));
                rewritten.first.iter().for_each(|path| shell.ui.result(format!("  {path}")));
                let more = rewritten.left_out - rewritten.first.len() as u64;
                if more > 0 {
                    shell.ui.result(format!("  and {more} more"));
                }
            }
        }
    }
    let number = report.rewritten.len() as u64;
    shell.ui.say(match (number, report.dry_run, report.removed) {
        (0, ..) => "no snapshot holds anything that matches".to_owned(),
        (n, true, _) => format!("dry run: {} would be written anew", counted(n, "snapshot")),
        (n, false, 0) => format!("wrote {} anew; the old ones are still there", counted(n, "snapshot")),
        (n, false, _) => format!(
            "wrote {} anew; what only the old ones held takes space until the repository is pruned",
            counted(n, "snapshot")
        ),
    });
}
