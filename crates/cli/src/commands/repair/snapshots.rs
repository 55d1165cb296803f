//! `cistern repair snapshots`: has snapshots do without what is lost.

use cistern_repository::{
    BrokenSnapshot, Remedy, SnapshotsPlan, SnapshotsRepaired, plan_repair_snapshots, repair_snapshots,
};
use serde_json::json;

use super::{LOST, approve, line, listener, locked};
use crate::args;
use crate::commands::{Outcome, Shell};
use crate::listing::{local, short, shown};
use crate::units::{count, counted};

pub async fn run(shell: &Shell, args: args::RepairSnapshots) -> Outcome {
    locked(shell, args.dry_run, async |repository, lock| {
        let listen = listener(shell);
        let plan = plan_repair_snapshots(repository, &listen).await?;
        shell.ui.clear();
        show(shell, &plan, args.forget);
        let (broken, read) = (plan.broken.len() as u64, plan.snapshots);
        if args.forget && broken > 0 && !args.dry_run {
            let what = format!("{} would be removed", counted(broken, "damaged snapshot"));
            approve(shell, "remove the damaged snapshots once the new ones are written?", what).await?;
        }
        let tags = [cistern_engine::PARTIAL_TAG];
        let done = match args.dry_run {
            true => SnapshotsRepaired::default(),
            false => repair_snapshots(repository, plan, &tags, args.forget, lock, &listen).await?,
        };
        shell.ui.clear();
        if shell.ui.is_json() {
            let written = |(new, old): &(_, _)| json!({"id": string(new), "original": string(old)});
            shell.ui.object(&json!({
                "message_type": "summary",
                "dry_run": args.dry_run,
                "snapshots_read": read,
                "snapshots_damaged": broken,
                "written": done.written.iter().map(written).collect::<Vec<_>>(),
                "removed": done.removed.iter().map(string).collect::<Vec<_>>(),
            }));
        } else {
            for (new, old) in &done.written {
                shell.ui.say(format!("wrote       snapshot {} in the place of {}", short(new), short(old)));
            }
            shell.ui.say(match (broken, args.dry_run) {
                (0, _) => format!("nothing to repair: {} read", counted(read, "snapshot")),
                (_, true) => "dry run: nothing was changed".to_owned(),
                (_, false) => format!(
                    "repaired    wrote {}, removed {}",
                    counted(done.written.len() as u64, "snapshot"),
                    counted(done.removed.len() as u64, "snapshot")
                ),
            });
            if broken > 0 && !args.forget {
                shell.ui.note("the damaged snapshots are still there; with --forget they go");
            }
        }
        Ok(if broken > 0 { LOST } else { 0 })
    })
    .await
}

fn string(id: &cistern_repository::Id) -> String {
    id.to_string()
}

fn show(shell: &Shell, plan: &SnapshotsPlan, forget: bool) {
    for broken in &plan.broken {
        if shell.ui.is_json() {
            shell.ui.object(&snapshot_json(broken));
            continue;
        }
        let when = broken.snapshot.as_ref().map(|snapshot| format!(" of {}", local(&snapshot.time)));
        let id = format!("snapshot {}{}", short(&broken.id), when.unwrap_or_default());
        let goes = if forget { "goes" } else { "stays as it is" };
        let fate = match &broken.remedy {
            Remedy::Rewrite => "a new one does without what is lost".to_owned(),
            Remedy::Rewritten(twin) => format!("{} is there in its place", short(twin)),
            Remedy::NothingLeft => format!("its root directory is lost: it {goes}"),
            Remedy::Unreadable(error) => format!("it {goes}: {error}"),
        };
        line(shell, true, format!("damaged     {id}: {fate}"));
        let lost = broken.lost;
        if lost.files + lost.directories > 0 {
            let counts = [(lost.files, "file"), (lost.directories, "directory")];
            let counts: Vec<String> =
                counts.iter().filter(|(n, _)| *n > 0).map(|(n, one)| number(*n, one)).collect();
            line(shell, true, format!("lost        contents of {}", counts.join(" and ")));
        }
        for path in &broken.paths {
            line(shell, true, format!("            {}", shown(path)));
        }
        let more = (lost.files.saturating_add(lost.directories)).saturating_sub(broken.paths.len() as u64);
        if more > 0 {
            line(shell, true, format!("            … and {} more", count(more)));
        }
    }
}

fn number(n: u64, one: &str) -> String {
    match (n, one) {
        (1, _) => format!("1 {one}"),
        (_, "directory") => format!("{} directories", count(n)),
        _ => counted(n, one),
    }
}

fn snapshot_json(broken: &BrokenSnapshot) -> serde_json::Value {
    let mut value = json!({
        "message_type": "snapshot",
        "id": broken.id.to_string(),
        "files_lost": broken.lost.files,
        "directories_lost": broken.lost.directories,
        "paths": broken.paths.iter().map(|path| shown(path)).collect::<Vec<_>>(),
        "remedy": match &broken.remedy {
            Remedy::Rewrite => "rewrite",
            Remedy::Rewritten(_) => "rewritten",
            Remedy::NothingLeft => "nothing-left",
            Remedy::Unreadable(_) => "unreadable",
        },
    });
    match &broken.remedy {
        Remedy::Rewritten(twin) => value["successor"] = twin.to_string().into(),
        Remedy::Unreadable(error) => value["error"] = error.to_string().into(),
        Remedy::Rewrite | Remedy::NothingLeft => (),
    }
    value
}
