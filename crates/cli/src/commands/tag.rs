//! `cistern tag`: changes the tags of snapshots.

use cistern_engine::{Report, Tag, TagChange, TagReport, Task};
use serde_json::json;

use super::{Outcome, Shell, selector};
use crate::args;
use crate::listing::short_text as short;
use crate::units::counted;

pub async fn run(shell: &Shell, args: args::Tag) -> Outcome {
    let words = |tags: &[String]| {
        tags.iter().map(|tag| tag.trim().to_owned()).filter(|tag| !tag.is_empty()).collect()
    };
    let change = match args.set.is_empty() {
        false => TagChange::Set(words(&args.set)),
        true => TagChange::Edit { add: words(&args.add), remove: words(&args.remove) },
    };
    let task = Task::Tag(Tag {
        repository: shell.access.repository()?,
        filter: selector("", &args.filter),
        snapshots: args.snapshots,
        change,
        dry_run: args.dry_run,
    });
    let report = match cistern_engine::run(&task, &shell.cx()).await {
        Ok(Report::Tag(report)) => report,
        Ok(other) => return Err(cistern_engine::Error::Broken(format!("tag reported {other:?}")).into()),
        Err(error) => return Err(shell.access.failure(error)),
    };
    show(shell, &report);
    Ok(0)
}

/// As restic's `tag --json` where it says the same.
fn show(shell: &Shell, report: &TagReport) {
    if shell.ui.is_json() {
        for changed in &report.changed {
            shell.ui.object(&json!({
                "message_type": "changed",
                "old_snapshot_id": changed.old,
                "new_snapshot_id": changed.new,
                "tags": changed.tags,
            }));
        }
        shell.ui.object(&json!({
            "message_type": "summary",
            "changed_snapshots": report.changed.len(),
            "unchanged_snapshots": report.unchanged,
            "dry_run": report.dry_run,
        }));
        return;
    }
    for changed in &report.changed {
        let now = match &changed.new {
            Some(new) => format!("is now {}", short(new)),
            None => "would change".to_owned(),
        };
        let tags = match changed.tags.join(",") {
            none if none.is_empty() => "no tags".to_owned(),
            tags => format!("tags {}", crate::listing::shown(tags.as_bytes())),
        };
        shell.ui.result(format!("{} {now}, with {tags}", short(&changed.old)));
    }
    let number = report.changed.len() as u64;
    shell.ui.say(match (report.dry_run, number) {
        (_, 0) => "no tags to change".to_owned(),
        (true, n) => format!("dry run: {} would change", counted(n, "snapshot")),
        (false, n) => format!("changed the tags of {}", counted(n, "snapshot")),
    });
}
