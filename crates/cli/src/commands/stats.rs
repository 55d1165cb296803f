//! `cistern stats`: what snapshots hold and what they cost.

use super::snapshots::chosen;
use super::{Outcome, Shell};
use crate::args;
use crate::units::{count, counted, size};

pub async fn run(shell: &Shell, args: args::Stats) -> Outcome {
    let repository = shell.repository().await?;
    let snapshots = chosen(repository.snapshots().await?, &args.snapshots, &args.filter)?;
    let reader = repository.reader(repository.index().await?);
    let roots: Vec<_> = snapshots.iter().map(|(_, snapshot)| snapshot.tree).collect();
    let stats = cistern_engine::query::stats(&reader, &roots).await?;
    if shell.ui.is_json() {
        let mut value = serde_json::to_value(stats).expect("counts are numbers");
        value["message_type"] = "stats".into();
        shell.ui.object(&value);
        return Ok(0);
    }
    let share = |part: u64, whole: u64| if whole == 0 { 0.0 } else { part as f64 / whole as f64 };
    shell.ui.result(format!("snapshots   {}", count(stats.snapshots)));
    shell.ui.result(format!(
        "contents    {}, {}, {} others",
        counted(stats.files, "file"),
        counted(stats.directories, "directory"),
        count(stats.others)
    ));
    shell.ui.result(format!("restored    {}", size(stats.restore_bytes)));
    shell.ui.result(format!("unique      {} in {}", size(stats.raw_bytes), counted(stats.blobs, "blob")));
    shell.ui.result(format!(
        "stored      {} ({:.2}x compression, {:.2}x with deduplication)",
        size(stats.stored_bytes),
        share(stats.raw_bytes, stats.stored_bytes),
        share(stats.restore_bytes, stats.stored_bytes)
    ));
    Ok(0)
}
