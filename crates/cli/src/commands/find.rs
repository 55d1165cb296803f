//! `cistern find`: in which snapshots is a key, and what did it look like there?

use cistern_engine::Selection;
use cistern_engine::query::find;
use serde_json::{Value, json};

use super::snapshots::chosen;
use super::{Outcome, Shell};
use crate::args;
use crate::listing::{local, node_json, node_line, short};

pub async fn run(shell: &Shell, args: args::Find) -> Outcome {
    let repository = shell.repository().await?;
    let snapshots = chosen(repository.snapshots().await?, &args.snapshot, &args.filter)?;
    let reader = repository.reader(repository.index().await?);
    let selection =
        Selection { include: args.patterns.clone(), ignore_case: args.ignore_case, ..Selection::default() };
    let mut total = 0;
    for (id, snapshot) in &snapshots {
        let mut found: Vec<Value> = Vec::new();
        let mut first = true;
        find(&reader, &snapshot.tree, &selection, |path, node| {
            total += 1;
            if shell.ui.is_json() {
                let mut value = node_json(path, node);
                value["message_type"] = "match".into();
                value["snapshot"] = id.to_string().into();
                found.push(value);
                if found.len() >= 256 {
                    found.drain(..).for_each(|value| shell.ui.object(&value));
                }
                return;
            }
            if std::mem::take(&mut first) {
                shell.ui.result(format!("in snapshot {} of {}:", short(id), local(&snapshot.time)));
            }
            shell.ui.result(format!("  {}", node_line(path, node, args.long)));
        })
        .await?;
        found.iter().for_each(|value| shell.ui.object(value));
    }
    if shell.ui.is_json() {
        shell.ui.object(&json!({"message_type": "summary", "snapshots": snapshots.len(), "matches": total}));
    } else if total == 0 {
        shell
            .ui
            .say(format!("nothing found in {}", crate::units::counted(snapshots.len() as u64, "snapshot")));
    }
    Ok(0)
}
