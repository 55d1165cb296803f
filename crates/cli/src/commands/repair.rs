//! `cistern repair`: mends a damaged repository: the index, then packs, then snapshots. Each shows its plan first.

mod index;
mod packs;
mod snapshots;

use std::sync::Arc;

use cistern_repository::{Lock, LockKind, RepairProgress, RepairStage, Repository};

use super::{Outcome, Shell};
use crate::args;
use crate::failure::Failure;

/// Done, and something is lost: the output names it.
const LOST: u8 = 3;
/// Things that are named one by one; the rest is counted. JSON has all of them.
const MOST: usize = 20;

pub async fn run(shell: &Shell, verb: args::Repair) -> Outcome {
    match verb {
        args::Repair::Index(args) => index::run(shell, args).await,
        args::Repair::Packs(args) => packs::run(shell, args).await,
        args::Repair::Snapshots(args) => snapshots::run(shell, args).await,
    }
}

/// Works under a lock: an exclusive one, unless nothing is to be changed.
async fn locked(
    shell: &Shell,
    dry_run: bool,
    work: impl AsyncFnOnce(&Repository, &Arc<Lock>) -> Outcome,
) -> Outcome {
    shell.locked(if dry_run { LockKind::Shared } else { LockKind::Exclusive }, work).await
}

/// Shows how far a repair is.
fn listener(shell: &Shell) -> impl Fn(RepairProgress) + Send + Sync {
    |progress: RepairProgress| {
        let what = match progress.stage {
            RepairStage::Index => "index files",
            RepairStage::Headers => "headers of packs",
            RepairStage::Packs => "packs, reading",
            RepairStage::Snapshots => "snapshots",
            RepairStage::Write => "writing anew",
            RepairStage::Delete => "deleting what was replaced",
        };
        shell.counting(what, progress.done, progress.total);
    }
}

/// A word of approval for a repair after which something is gone for good.
///
/// # Errors
/// No, or nobody to ask.
async fn approve(shell: &Shell, question: &'static str, what: String) -> Result<(), Failure> {
    match shell.ui.approval(question).await {
        Some(true) => Ok(()),
        Some(false) => Err(cistern_engine::Error::Refused.into()),
        None => Err(Failure::invalid(format!("{what}, and there is nobody to ask"))
            .hint("--yes carries the plan out without asking; --dry-run shows it")),
    }
}

/// One line of a plan: under `--quiet` only if it is about a loss.
fn line(shell: &Shell, is_loss: bool, line: String) {
    match (shell.ui.is_json(), is_loss) {
        (true, _) => (),
        (false, true) => shell.ui.result(line),
        (false, false) => shell.ui.say(line),
    }
}

/// A heading with the things that it is about, the first ones by name.
fn listed(shell: &Shell, is_loss: bool, heading: String, names: impl ExactSizeIterator<Item = String>) {
    let count = names.len();
    if count == 0 {
        return;
    }
    line(shell, is_loss, heading);
    for name in names.take(MOST) {
        line(shell, is_loss, format!("            {name}"));
    }
    if count > MOST {
        line(
            shell,
            is_loss,
            format!("            … and {} more", crate::units::count((count - MOST) as u64)),
        );
    }
}
