//! `cistern ls`: lists what a snapshot holds.

use cistern_engine::query::{Next, locate, walk};
use cistern_repository::Node;

use super::{Outcome, Shell, selector};
use crate::args;
use crate::failure::Failure;
use crate::listing::{key_json, key_of, local, node_json, node_line, short, shown, snapshot_json};

pub async fn run(shell: &Shell, args: args::Ls) -> Outcome {
    let repository = shell.repository().await?;
    let snapshots = repository.snapshots().await?;
    let selected = cistern_engine::resolve(&snapshots, &selector(&args.snapshot, &args.filter))?;
    let reader = repository.reader(repository.index().await?);
    let mut paths = args.paths.clone();
    paths.extend(selected.subpath.clone());
    if let Some(wrong) = paths.iter().find(|path| !path.starts_with('/')) {
        return Err(Failure::invalid(format!("{wrong} is not an absolute path"))
            .hint("paths in a snapshot begin with a slash: /bucket/prefix"));
    }
    let show = |path: &[u8], node: &Node| {
        if args.keys {
            if let Some(key) = key_of(path, node) {
                match shell.ui.is_json() {
                    true => shell.ui.object(&key_json(&key, node.size)),
                    false => shell.ui.result(shown(key.as_bytes())),
                }
            }
        } else if shell.ui.is_json() {
            shell.ui.object(&node_json(path, node));
        } else {
            shell.ui.result(node_line(path, node, args.long));
        }
    };
    let mut missing = paths.clone();
    for (id, snapshot) in &selected.run.parts {
        if shell.ui.is_json() && !args.keys {
            let mut value = snapshot_json(id, snapshot);
            value["message_type"] = "snapshot".into();
            shell.ui.object(&value);
        } else {
            shell.ui.note(format!(
                "snapshot {} of {} at {}",
                short(id),
                snapshot.paths.join(", "),
                local(&snapshot.time)
            ));
        }
        if paths.is_empty() {
            walk(&reader, &snapshot.tree, b"", |path, node| {
                show(path, node);
                Ok(if args.no_recursion { Next::Skip } else { Next::Descend })
            })
            .await?;
        }
        for path in &paths {
            let node = match locate(&reader, &snapshot.tree, path).await {
                Ok(node) => node,
                Err(cistern_engine::Error::NotFound(_)) => continue,
                Err(error) => return Err(error.into()),
            };
            missing.retain(|other| other != path);
            let base = path.trim_end_matches('/').as_bytes();
            let below = match &node {
                None => Some(snapshot.tree),
                Some(node) => {
                    show(base, node);
                    node.subtree
                }
            };
            if let Some(tree) = below {
                walk(&reader, &tree, base, |path, node| {
                    show(path, node);
                    Ok(if args.no_recursion { Next::Skip } else { Next::Descend })
                })
                .await?;
            }
        }
    }
    match missing.first() {
        Some(path) => Err(cistern_engine::Error::NotFound(format!("the snapshot holds no {path}")).into()),
        None => Ok(0),
    }
}
