//! `cistern check`: is the repository whole, and what is endangered if not?

use std::sync::Arc;
use std::time::Instant;

use cistern_repository::{
    CheckOptions, CheckProgress, CheckStage, Finding, Lock, LockKind, ReadData, Repository, check,
};
use serde_json::json;

use super::{Outcome, Shell};
use crate::args;
use crate::failure::Failure;
use crate::listing::{short, shown};
use crate::units::{clock, count, counted};

pub async fn run(shell: &Shell, args: args::Check) -> Outcome {
    let started = Instant::now();
    let listener = |progress: CheckProgress| {
        let what = match progress.stage {
            CheckStage::Index => "index files",
            CheckStage::Packs => "packs",
            CheckStage::Snapshots => "snapshots",
            CheckStage::Data => "packs, reading",
        };
        shell.counting(what, progress.done, progress.total);
    };
    let read_data = match args.read_data_subset {
        Some(subset) => subset,
        None if args.read_data => ReadData::All,
        None => ReadData::No,
    };
    let options = CheckOptions { read_data };
    let work =
        async |repository: &Repository, _: &Arc<Lock>| Ok(check(repository, options, &listener).await?);
    let findings = shell.locked(LockKind::Shared, work).await?;
    shell.ui.clear();
    let harmful = findings.iter().filter(|finding| !finding.problem.is_hint()).count();
    for finding in &findings {
        show(shell, finding);
    }
    if shell.ui.is_json() {
        shell.ui.object(&json!({
            "message_type": "summary",
            "num_errors": harmful,
            "num_hints": findings.len() - harmful,
            "read_data": read_data != ReadData::No,
        }));
    }
    if harmful > 0 {
        return Err(Failure::new(
            cistern_bucket::Class::Damaged,
            format!("the repository has {}", counted(harmful as u64, "error")),
        )
        .hint(
            "`cistern repair index`, then `repair packs` (both with --dry-run first); then back up again, which \
             stores anew what the sources still hold; then `repair snapshots` for what is lost",
        ));
    }
    let what = match read_data {
        ReadData::No => "the structure is whole",
        ReadData::All => "all data was read",
        _ => "a part of the data was read",
    };
    shell.ui.say(format!("no errors   {what} ({})", clock(started.elapsed())));
    Ok(0)
}

/// Snapshots that are named of each finding; JSON has all.
const SNAPSHOTS: usize = 20;

fn show(shell: &Shell, finding: &Finding) {
    let Finding { problem, endangers, paths } = finding;
    let path = |path: &Vec<u8>| shown(path);
    if shell.ui.is_json() {
        return shell.ui.object(&json!({
            "message_type": if problem.is_hint() { "hint" } else { "finding" },
            "kind": problem.kind(),
            "message": problem.to_string(),
            "endangers": endangers.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "paths": paths.iter().map(path).collect::<Vec<_>>(),
        }));
    }
    if problem.is_hint() {
        return shell.ui.note(format!("hint        {problem}"));
    }
    shell.ui.result(format!("damaged     {problem}"));
    if endangers.is_empty() {
        return;
    }
    // The newest are those that somebody is going to restore.
    let ids: Vec<String> = endangers.iter().rev().take(SNAPSHOTS).map(short).collect();
    let more = match endangers.len().saturating_sub(SNAPSHOTS) {
        0 => String::new(),
        more => format!(" and {} more", count(more as u64)),
    };
    shell.ui.result(format!("            endangers snapshots {}{more}", ids.join(", ")));
    for path in paths.iter().map(path) {
        shell.ui.result(format!("            {path}"));
    }
}
