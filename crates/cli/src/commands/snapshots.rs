//! `cistern snapshots`: lists what the repository holds.

use std::collections::HashMap;

use cistern_engine::{PARTS_TAG, RUN_TAG, Run, runs};
use cistern_repository::{Id, Snapshot, Summary};
use serde_json::Value;

use super::{Outcome, Shell};
use crate::args::{self, SnapshotFilter};
use crate::failure::Failure;
use crate::listing::{self, columns, local, short, snapshot_json};
use crate::units::{count, counted, size};

pub async fn run(shell: &Shell, args: args::Snapshots) -> Outcome {
    let repository = shell.repository().await?;
    let mut snapshots = chosen(repository.snapshots().await?, &args.snapshots, &args.filter)?;
    if let Some(latest) = args.latest {
        snapshots = newest(&snapshots, latest);
    }
    if shell.ui.is_json() {
        let all: Vec<Value> = snapshots.iter().map(|(id, snapshot)| snapshot_json(id, snapshot)).collect();
        shell.ui.object(&all);
        return Ok(0);
    }
    if snapshots.is_empty() {
        shell.ui.say("no snapshots");
        return Ok(0);
    }
    let runs = runs(&snapshots);
    shell.ui.result(table(&runs));
    shell.ui.say(counted(runs.len() as u64, "snapshot"));
    Ok(0)
}

/// The snapshots that a verb with a list of names means: all that pass the filter if there are no names.
///
/// # Errors
/// A name that means nothing.
pub fn chosen(
    snapshots: Vec<(Id, Snapshot)>,
    names: &[String],
    filter: &SnapshotFilter,
) -> Result<Vec<(Id, Snapshot)>, Failure> {
    if names.is_empty() {
        let wanted = super::selector("", filter);
        return Ok(snapshots.into_iter().filter(|(_, snapshot)| wanted.accepts(snapshot)).collect());
    }
    let mut all = Vec::new();
    for name in names {
        all.extend(cistern_engine::resolve(&snapshots, &super::selector(name, filter))?.run.parts);
    }
    Ok(all)
}

/// The newest `count` runs of each host and source, ascending by time.
fn newest(snapshots: &[(Id, Snapshot)], count: usize) -> Vec<(Id, Snapshot)> {
    let mut seen: HashMap<(String, Vec<String>), usize> = HashMap::new();
    let mut kept: Vec<_> = runs(snapshots)
        .into_iter()
        .rev()
        .filter(|run| {
            let host = run.parts[0].1.hostname.clone();
            let n = seen.entry((host, run.source_paths().to_vec())).or_default();
            *n += 1;
            *n <= count
        })
        .collect();
    kept.reverse();
    kept.into_iter().flat_map(|run| run.parts).collect()
}

/// A row for each run: its parts are one backup.
fn table(runs: &[Run]) -> String {
    let mut table = listing::table(["ID", "Time", "Host", "Tags", "Paths", "Objects", "Size"]);
    for run in runs {
        let (id, first) = &run.parts[0];
        let is_ours =
            |tag: &str| run.id.is_some() && (tag.starts_with(RUN_TAG) || tag.starts_with(PARTS_TAG));
        let mut tags: Vec<String> = first.tags.iter().filter(|tag| !is_ours(tag)).cloned().collect();
        if run.id.is_some() {
            let broken = if run.is_whole() { "" } else { ", broken off" };
            tags.push(format!("({}{broken})", counted(run.parts.len() as u64, "part")));
        }
        let sum = |of: &dyn Fn(&Summary) -> u64| -> Option<u64> {
            run.parts.iter().map(|(_, snapshot)| snapshot.summary.as_ref().map(of)).sum()
        };
        table.add_row([
            short(id),
            local(&first.time),
            first.hostname.clone(),
            tags.join(","),
            run.source_paths().join("\n"),
            sum(&|s| s.total_files_processed).map_or(String::new(), count),
            sum(&|s| s.total_bytes_processed).map_or(String::new(), size),
        ]);
    }
    for column in [5, 6] {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(comfy_table::CellAlignment::Right);
        }
    }
    columns(&table)
}
