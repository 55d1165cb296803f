//! `cistern check`: is the repository whole, and what is endangered if not?

use std::time::Instant;

use cistern_engine::{Phase, Progress, Status};
use cistern_repository::{CheckOptions, CheckProgress, CheckStage, LockKind, check};
use serde_json::json;

use super::{Outcome, Shell, identity};
use crate::args;
use crate::failure::Failure;
use crate::listing::short;
use crate::units::{clock, counted};

pub async fn run(shell: &Shell, args: args::Check) -> Outcome {
    let started = Instant::now();
    let repository = shell.repository().await?;
    let lock = repository.lock(LockKind::Shared, &identity(), shell.lock_wait()).await?;
    let listener = |progress: CheckProgress| {
        let what = match progress.stage {
            CheckStage::Index => "index files",
            CheckStage::Packs => "packs",
            CheckStage::Snapshots => "snapshots",
            CheckStage::Data => "packs, reading",
        };
        shell.ui.status(&Status {
            phase: Phase::Verifying,
            objects_done: progress.done,
            objects_total: progress.total,
            current: what.to_owned(),
            ..Status::default()
        });
    };
    let options = CheckOptions { read_data: args.read_data };
    let result = tokio::select! {
        result = check(&repository, options, &listener) => result,
        () = shell.cancel.cancelled() => Err(cistern_repository::Error::Cancelled),
    };
    lock.release().await;
    let findings = result?;
    shell.ui.clear();
    let harmful = findings.iter().filter(|finding| !finding.problem.is_hint()).count();
    for finding in &findings {
        if shell.ui.is_json() {
            shell.ui.object(&json!({
                "message_type": if finding.problem.is_hint() { "hint" } else { "finding" },
                "message": finding.problem.to_string(),
                "endangers": finding.endangers.iter().map(ToString::to_string).collect::<Vec<_>>(),
            }));
        } else if finding.problem.is_hint() {
            shell.ui.note(format!("unused      {}", finding.problem));
        } else {
            shell.ui.result(format!("damaged     {}", finding.problem));
            if !finding.endangers.is_empty() {
                let ids: Vec<String> = finding.endangers.iter().take(20).map(short).collect();
                shell.ui.result(format!("            endangers snapshots {}", ids.join(", ")));
            }
        }
    }
    if shell.ui.is_json() {
        shell.ui.object(&json!({
            "message_type": "summary",
            "num_errors": harmful,
            "num_hints": findings.len() - harmful,
            "read_data": args.read_data,
        }));
    }
    if harmful > 0 {
        return Err(Failure::new(
            cistern_bucket::Class::Damaged,
            format!("the repository has {}", counted(harmful as u64, "error")),
        )
        .hint(
            "keep the repository as it is, and back up again: what the sources still hold is stored anew",
        ));
    }
    let what = if args.read_data { "all data was read" } else { "the structure is whole" };
    shell.ui.say(format!("no errors   {what} ({})", clock(started.elapsed())));
    Ok(0)
}
