//! `cistern repair packs`: saves what is whole in damaged packs.

use cistern_repository::{DamagedPack, Id, PacksPlan, PacksRepaired, plan_repair_packs, repair_packs};
use serde_json::json;

use super::{LOST, approve, line, listed, listener, locked};
use crate::args;
use crate::commands::{Outcome, Shell};
use crate::failure::Failure;
use crate::units::counted;

pub async fn run(shell: &Shell, args: args::RepairPacks) -> Outcome {
    let parse = |text: &String| {
        text.parse::<Id>().map_err(|_| Failure::invalid(format!("'{text}' is no id of a pack")))
    };
    let ids = args.ids.iter().map(parse).collect::<Result<Vec<Id>, Failure>>();
    let ids =
        ids.map_err(|failure| failure.hint("`cistern check --read-data` names damaged packs in full"))?;
    locked(shell, args.dry_run, async |repository, lock| {
        let listen = listener(shell);
        let plan = plan_repair_packs(repository, &ids, &listen).await?;
        shell.ui.clear();
        show(shell, &plan);
        let (lost, read, is_empty) = (plan.lost(), plan.packs_read, plan.is_empty());
        let unread = plan.unread.len();
        if lost > 0 && !args.dry_run {
            let what = format!("{} cannot be saved", counted(lost, "blob"));
            approve(shell, "remove the damaged packs, and have the index forget what is lost?", what).await?;
        }
        let damaged = plan.damaged.len() as u64;
        let done = match args.dry_run {
            true => PacksRepaired::default(),
            false => repair_packs(repository, plan, lock, &listen).await?,
        };
        shell.ui.clear();
        for (id, error) in &done.failed {
            shell.ui.warn(format!("pack {id} stays as it is: {error}"));
        }
        if shell.ui.is_json() {
            shell.ui.object(&json!({
                "message_type": "summary",
                "dry_run": args.dry_run,
                "packs_read": read,
                "packs_damaged": damaged,
                "packs_unread": unread,
                "packs_failed": done.failed.len(),
                "packs_removed": done.packs_removed,
                "packs_written": done.packs_written,
                "blobs_written": done.blobs_written,
                "blobs_lost": lost,
            }));
        } else {
            shell.ui.say(match (is_empty, args.dry_run) {
                (true, _) => format!("nothing to repair: {} read", counted(read, "pack")),
                (false, true) => "dry run: nothing was changed".to_owned(),
                (false, false) => format!(
                    "repaired    wrote {} into {}, removed {}; copies of these are below cistern/damaged/",
                    counted(done.blobs_written, "blob"),
                    counted(done.packs_written, "pack"),
                    counted(done.packs_removed, "pack"),
                ),
            });
        }
        let is_lost = lost > 0 || unread > 0 || !done.failed.is_empty();
        if is_lost {
            shell.ui.note("next: back up what the sources still have, or `cistern repair snapshots`");
        }
        Ok(if is_lost { LOST } else { 0 })
    })
    .await
}

fn show(shell: &Shell, plan: &PacksPlan) {
    for pack in &plan.damaged {
        if shell.ui.is_json() {
            shell.ui.object(&pack_json(pack));
            continue;
        }
        let saved = counted(pack.saved() as u64, "blob");
        line(shell, !pack.lost.is_empty(), format!("damaged     pack {}: {saved} to write anew", pack.id));
        let lost: Vec<String> = pack.lost.iter().map(|(kind, id)| format!("{kind} blob {id}")).collect();
        listed(shell, true, format!("lost        {}", counted(lost.len() as u64, "blob")), lost.into_iter());
    }
    for (id, error) in &plan.unread {
        shell.ui.warn(format!("pack {id} cannot be read: {error}"));
    }
}

fn pack_json(pack: &DamagedPack) -> serde_json::Value {
    json!({
        "message_type": "pack",
        "id": pack.id.to_string(),
        "size": pack.size,
        "problems": pack.problems.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "blobs_saved": pack.saved(),
        "lost": pack
            .lost
            .iter()
            .map(|(kind, id)| json!({"type": kind.as_str(), "id": id.to_string()}))
            .collect::<Vec<_>>(),
    })
}
