//! `cistern diff`: what changed between two snapshots.

use cistern_engine::query::{ChangeKind, DiffStats, diff, locate};
use cistern_repository::{Id, NodeKind, Reader, Snapshot};
use serde_json::json;

use super::{Outcome, Shell, selector};
use crate::args;
use crate::failure::Failure;
use crate::listing::{short, shown};
use crate::units::{count, size};

pub async fn run(shell: &Shell, args: args::Diff) -> Outcome {
    let repository = shell.repository().await?;
    let snapshots = repository.snapshots().await?;
    let side = |name: &str| cistern_engine::resolve(&snapshots, &selector(name, &args.filter));
    let (old, new) = (side(&args.old)?, side(&args.new)?);
    let reader = repository.reader(repository.index().await?);
    if old.run.parts.len() != new.run.parts.len() {
        return Err(Failure::invalid(format!(
            "the runs have {} and {} parts and cannot be compared part by part",
            old.run.parts.len(),
            new.run.parts.len()
        ))
        .hint("compare single parts by their ids"));
    }
    let mut total = DiffStats::default();
    for ((old_id, older), (new_id, newer)) in old.run.parts.iter().zip(&new.run.parts) {
        let from = tree(&reader, older, old.subpath.as_deref()).await?;
        let to = tree(&reader, newer, new.subpath.as_deref()).await?;
        shell.ui.note(format!("comparing {} with {}", short(old_id), short(new_id)));
        let stats = diff(&reader, &from, &to, |change| {
            if change.kind == ChangeKind::Metadata && !args.metadata {
                return Ok(());
            }
            let is_dir = change.new.or(change.old).is_some_and(|node| node.kind == NodeKind::Dir);
            let path = format!("{}{}", shown(change.path), if is_dir { "/" } else { "" });
            if shell.ui.is_json() {
                shell.ui.object(&json!({
                    "message_type": "change",
                    "path": path,
                    "modifier": change.kind.letter().to_string(),
                    "kind": change.kind,
                }));
            } else {
                shell.ui.result(format!("{}    {path}", change.kind.letter()));
            }
            Ok(())
        })
        .await?;
        total += stats;
    }
    if shell.ui.is_json() {
        let mut value = serde_json::to_value(total).expect("counts are numbers");
        value["message_type"] = "statistics".into();
        shell.ui.object(&value);
        return Ok(0);
    }
    shell.ui.say("");
    shell.ui.say(format!(
        "files       {} new, {} removed, {} changed",
        count(total.added_files),
        count(total.removed_files),
        count(total.changed_files)
    ));
    shell.ui.say(format!(
        "directories {} new, {} removed",
        count(total.added_dirs),
        count(total.removed_dirs)
    ));
    shell.ui.say(format!("added       {}", size(total.added_bytes)));
    shell.ui.say(format!("removed     {}", size(total.removed_bytes)));
    Ok(0)
}

async fn tree(reader: &Reader, snapshot: &Snapshot, path: Option<&str>) -> Result<Id, Failure> {
    match path {
        None => Ok(snapshot.tree),
        Some(path) => match locate(reader, &snapshot.tree, path).await? {
            None => Ok(snapshot.tree),
            Some(node) => node.subtree.ok_or_else(|| Failure::invalid(format!("{path} is not a directory"))),
        },
    }
}
