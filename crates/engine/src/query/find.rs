//! Finds nodes of a snapshot by patterns on their paths.

use cistern_repository::{Id, Node, Reader};

use super::walk::{Next, walk};
use crate::select::{Directory, Select};
use crate::{Error, Result, Selection};

/// Calls `found` for every node below the tree `root` that the selection means. Directories that cannot hold
/// any are not read.
///
/// # Errors
/// A malformed pattern, a tree that cannot be read.
pub async fn find(
    reader: &Reader,
    root: &Id,
    selection: &Selection,
    mut found: impl FnMut(&[u8], &Node) + Send,
) -> Result<()> {
    let select = Select::new(selection)?;
    walk(reader, root, b"", |path, node| {
        if node.subtree.is_none() {
            if select.file(path) && select.metadata(node.size, Some(node.mtime.timestamp())) {
                found(path, node);
            }
            return Ok(Next::Skip);
        }
        Ok(match select.directory(path) {
            Directory::Excluded => Next::Skip,
            Directory::Passage => Next::Descend,
            Directory::Included => {
                found(path, node);
                Next::Descend
            }
        })
    })
    .await
}

/// The node at `path` below the tree `root`; `None` is the root itself.
///
/// # Errors
/// `NotFound` if there is none.
pub async fn locate(reader: &Reader, root: &Id, path: &str) -> Result<Option<Node>> {
    let mut at: Option<Node> = None;
    let mut tree = *root;
    let mut names = path.split('/').filter(|name| !name.is_empty()).peekable();
    while let Some(name) = names.next() {
        let missing = || Error::NotFound(format!("the snapshot holds no {path}"));
        let node = reader.tree(&tree).await?.get(name.as_bytes()).cloned().ok_or_else(missing)?;
        if names.peek().is_some() {
            tree = node.subtree.ok_or_else(missing)?;
        }
        at = Some(node);
    }
    Ok(at)
}
