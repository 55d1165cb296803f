//! `cistern repair index`: makes the index say what packs hold.

use cistern_repository::{Id, IndexPlan, IndexRepaired, plan_repair_index, repair_index};
use serde_json::json;

use super::{LOST, listed, listener, locked};
use crate::args;
use crate::commands::{Outcome, Shell};
use crate::units::counted;

pub async fn run(shell: &Shell, args: args::RepairIndex) -> Outcome {
    locked(shell, args.dry_run, async |repository, lock| {
        let listen = listener(shell);
        let plan = plan_repair_index(repository, args.read_all_packs, &listen).await?;
        shell.ui.clear();
        show(shell, &plan);
        let is_lost = plan.lost > 0 || !plan.unreadable_packs.is_empty();
        let mut summary = summary(&plan, args.dry_run);
        let is_empty = plan.is_empty();
        let done = match args.dry_run {
            true => IndexRepaired::default(),
            false => repair_index(repository, plan, lock, &listen).await?,
        };
        shell.ui.clear();
        if shell.ui.is_json() {
            summary["index_files_written"] = done.files_written.into();
            summary["index_files_removed"] = done.files_deleted.into();
            shell.ui.object(&summary);
        } else {
            shell.ui.say(match (is_empty, args.dry_run) {
                (true, _) => "nothing to repair: the index names what the packs hold".to_owned(),
                (false, true) => "dry run: nothing was changed".to_owned(),
                (false, false) => format!(
                    "repaired    wrote {}, removed {}",
                    counted(done.files_written, "index file"),
                    counted(done.files_deleted, "index file")
                ),
            });
        }
        if is_lost {
            shell.ui.note("next: `cistern repair packs`, then `cistern repair snapshots`");
        }
        Ok(if is_lost { LOST } else { 0 })
    })
    .await
}

fn show(shell: &Shell, plan: &IndexPlan) {
    let ids = |ids: &[Id]| ids.iter().map(ToString::to_string).collect::<Vec<_>>().into_iter();
    let errors = |list: &[(Id, cistern_repository::Error)]| {
        list.iter().map(|(id, error)| format!("{id}  {error}")).collect::<Vec<_>>().into_iter()
    };
    let n = |count: usize, one: &str| counted(count as u64, one);
    let heading = format!("replace     {} that cannot be read", n(plan.unreadable_files.len(), "index file"));
    listed(shell, false, heading, errors(&plan.unreadable_files));
    let heading = format!("adopt       {} that no index names", n(plan.added.len(), "pack"));
    listed(shell, false, heading, ids(&plan.added));
    let heading = format!("correct     {} with other contents", n(plan.corrected.len(), "pack"));
    listed(shell, false, heading, ids(&plan.corrected));
    let missing = n(plan.missing.len(), "pack");
    let heading =
        format!("forget      {missing} missing from the bucket, {} lost", counted(plan.lost, "blob"));
    listed(shell, plan.lost > 0, heading, ids(&plan.missing));
    let heading = format!("unreadable  {}, left as found", n(plan.unreadable_packs.len(), "pack"));
    listed(shell, true, heading, errors(&plan.unreadable_packs));
}

fn summary(plan: &IndexPlan, dry_run: bool) -> serde_json::Value {
    let ids = |ids: &[Id]| ids.iter().map(ToString::to_string).collect::<Vec<_>>();
    let named = |list: &[(Id, cistern_repository::Error)]| {
        list.iter().map(|(id, _)| id.to_string()).collect::<Vec<_>>()
    };
    json!({
        "message_type": "summary",
        "dry_run": dry_run,
        "headers_read": plan.headers_read,
        "unreadable_index_files": named(&plan.unreadable_files),
        "packs_added": ids(&plan.added),
        "packs_corrected": ids(&plan.corrected),
        "packs_missing": ids(&plan.missing),
        "packs_unreadable": named(&plan.unreadable_packs),
        "blobs_lost": plan.lost,
    })
}
