//! Visits the nodes of a snapshot in the order of their paths, one directory in memory per level.

use std::sync::Arc;

use cistern_repository::{Id, Node, NodeKind, Reader, Tree};

use crate::{Error, Result};

/// Deeper trees are an attack: a path of the operating system has at most 2,048 components, a key at most 1,024.
const MAX_DEPTH: usize = 4_096;

/// What the visitor wants next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Go on, into the node if it is a directory.
    Descend,
    /// Go on behind the node.
    Skip,
    /// Visit nothing more.
    Stop,
}

/// Calls `visit` with the path (`/` and components joined by `/`) and the node for everything below the
/// tree `root`, directories before what they hold. `base` is the path of the root itself, empty for the
/// root of a snapshot.
///
/// # Errors
/// A tree that cannot be read, or one that is absurdly deep.
pub async fn walk(
    reader: &Reader,
    root: &Id,
    base: &[u8],
    mut visit: impl FnMut(&[u8], &Node) -> Result<Next> + Send,
) -> Result<()> {
    struct Level {
        tree: Arc<Tree>,
        next: usize,
        path: usize,
    }
    let mut path = base.to_vec();
    let mut stack = vec![Level { tree: reader.tree(root).await?, next: 0, path: path.len() }];
    while let Some(level) = stack.last_mut() {
        path.truncate(level.path);
        let Some(node) = level.tree.nodes().get(level.next) else {
            stack.pop();
            continue;
        };
        level.next += 1;
        path.push(b'/');
        path.extend_from_slice(&node.name);
        match visit(&path, node)? {
            Next::Stop => return Ok(()),
            Next::Skip => {}
            Next::Descend => {
                if let (NodeKind::Dir, Some(subtree)) = (node.kind, node.subtree) {
                    if stack.len() >= MAX_DEPTH {
                        return Err(Error::Repository(cistern_repository::Error::damaged(
                            "tree",
                            "it is deeper than any source can be",
                        )));
                    }
                    let tree = reader.tree(&subtree).await?;
                    stack.push(Level { tree, next: 0, path: path.len() });
                }
            }
        }
    }
    Ok(())
}
