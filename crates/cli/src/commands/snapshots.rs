//! `cistern snapshots`: lists what the repository holds.

use std::collections::HashMap;

use cistern_engine::{INCOMPLETE_TAG, PARTS_TAG, RUN_TAG};
use cistern_repository::{Id, Snapshot};
use comfy_table::{Table, presets};
use serde_json::Value;

use super::{Outcome, Shell};
use crate::args::{self, SnapshotFilter};
use crate::failure::Failure;
use crate::listing::{local, short, snapshot_json};
use crate::units::{counted, size};

pub async fn run(shell: &Shell, args: args::Snapshots) -> Outcome {
    let repository = shell.repository().await?;
    let mut snapshots = repository.snapshots().await?;
    snapshots.retain(|(_, snapshot)| matches(snapshot, &args.filter));
    if !args.ids.is_empty() {
        for wanted in &args.ids {
            if !snapshots.iter().any(|(id, _)| id.to_string().starts_with(wanted.as_str())) {
                return Err(
                    cistern_repository::Error::NoSuchSnapshot { wanted: wanted.as_str().into() }.into()
                );
            }
        }
        snapshots.retain(|(id, _)| args.ids.iter().any(|wanted| id.to_string().starts_with(wanted.as_str())));
    }
    if let Some(latest) = args.latest {
        snapshots = newest(snapshots, latest);
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
    shell.ui.result(table(&snapshots));
    shell.ui.say(counted(snapshots.len() as u64, "snapshot"));
    Ok(0)
}

/// Whether a snapshot passes the filter of the command line.
pub fn matches(snapshot: &Snapshot, filter: &SnapshotFilter) -> bool {
    filter.host.as_ref().is_none_or(|host| *host == snapshot.hostname)
        && filter.path.iter().all(|path| snapshot.paths.contains(path))
        && filter.tag.iter().all(|tag| snapshot.tags.contains(tag))
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
        return Ok(snapshots.into_iter().filter(|(_, snapshot)| matches(snapshot, filter)).collect());
    }
    let mut all = Vec::new();
    for name in names {
        all.extend(cistern_engine::resolve(&snapshots, &super::selector(name, filter))?.run.parts);
    }
    Ok(all)
}

fn newest(snapshots: Vec<(Id, Snapshot)>, count: usize) -> Vec<(Id, Snapshot)> {
    let mut seen: HashMap<(String, Vec<String>), usize> = HashMap::new();
    let mut kept: Vec<_> = snapshots
        .into_iter()
        .rev()
        .filter(|(_, snapshot)| {
            let n = seen.entry((snapshot.hostname.clone(), snapshot.paths.clone())).or_default();
            *n += 1;
            *n <= count
        })
        .collect();
    kept.reverse();
    kept
}

fn table(snapshots: &[(Id, Snapshot)]) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["ID", "Time", "Host", "Tags", "Paths", "Objects", "Size"]);
    for (id, snapshot) in snapshots {
        // Tags that hold runs together are for programs.
        let tags: Vec<&str> = snapshot
            .tags
            .iter()
            .map(String::as_str)
            .filter(|tag| !tag.starts_with(RUN_TAG) && !tag.starts_with(PARTS_TAG) || *tag == INCOMPLETE_TAG)
            .collect();
        let summary = snapshot.summary.as_ref();
        table.add_row([
            short(id),
            local(&snapshot.time),
            snapshot.hostname.clone(),
            tags.join(","),
            snapshot.paths.join("\n"),
            summary.map_or(String::new(), |s| crate::units::count(s.total_files_processed)),
            summary.map_or(String::new(), |s| size(s.total_bytes_processed)),
        ]);
    }
    for column in [5, 6] {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(comfy_table::CellAlignment::Right);
        }
    }
    table
        .lines()
        .map(|line| line.strip_prefix(' ').unwrap_or(&line).trim_end().to_owned())
        .collect::<Vec<_>>()
        .join("\n")
}
