//! Keys as paths, attributes of objects, and tasks.

use cistern_bucket::{Key, Revision};
use cistern_engine::Task;
use cistern_engine::fidelity::{self, Description};
use cistern_engine::parts::{ATTRIBUTE, PartInfo};
use cistern_repository::{Id, Node, Tree, TreeBuilder, Xattr};
use std::borrow::Cow;

/// The names under which any key stands are entries of directories, and say the key again.
pub fn key(data: &[u8]) {
    let key = Key::new(data);
    let pieces: Vec<&[u8]> = data.split(|byte| *byte == b'/').collect();
    let mut names: Vec<Cow<'_, [u8]>> = pieces.iter().map(|piece| fidelity::name(piece)).collect();
    for (piece, name) in pieces.iter().zip(&names) {
        assert!(Node::check_name(name).is_ok() && name.len() <= 255, "no directory holds this name");
        assert!(fidelity::piece(name).is_none_or(|again| again == *piece), "the name says another piece");
    }
    let attribute = fidelity::is_escaped(data).then_some(&key);
    assert_eq!(said(&names, attribute), key);
    // An object beside a directory of the same name.
    let last = pieces.last().expect("a key has a piece");
    *names.last_mut().expect("a key has a piece") = fidelity::object_name(last).into();
    assert!(Node::check_name(names.last().expect("a key has a piece")).is_ok());
    assert_eq!(said(&names, Some(&key)), key);
}

fn said(names: &[Cow<'_, [u8]>], attribute: Option<&Key>) -> Key {
    fidelity::key(&names.iter().map(|name| &**name).collect::<Vec<_>>(), attribute)
}

/// Names that somebody else wrote, one a line, and the key that their node claims.
pub fn names(data: &[u8]) {
    let mut lines: Vec<&[u8]> = data.split(|byte| *byte == b'\n').collect();
    let Some(claim) = lines.pop().map(Key::new) else { return };
    for claim in [None, Some(&claim)] {
        let key = fidelity::key(&lines, claim);
        assert!(key.len() <= data.len() + claim.map_or(0, Key::len), "the key is longer than what says it");
    }
}

/// The attribute of a node, written again as it was read, through a tree as well.
pub fn attributes(data: &[u8]) {
    let mut node = Node { name: b"object"[..].into(), ..Node::default() };
    fidelity::set_value(&mut node, Some(data.to_vec()));
    let Ok(mut description) = Description::of(&node) else { return };
    if description.revision == Some(Revision::Unknown) {
        description.revision = None;
    }
    let (value, side) = description.encode(|| fidelity::side_name(b"object"));
    fidelity::set_value(&mut node, value);
    let mut tree = TreeBuilder::new();
    tree.add(&node).expect("a small tree");
    let tree = Tree::parse(tree.finish().expect("one name")).expect("a tree that was written can be read");
    let mut again = Description::of(&tree.nodes()[0]).expect("what was written can be read");
    if let Some(side) = side {
        assert!(Node::check_name(&side.name).is_ok());
        again = again.with_side(&side.content).expect("the side file that was written can be read");
    }
    assert_eq!(again, description);
    let _ = description.with_side(data);
}

pub fn task(data: &[u8]) {
    if let Ok(task) = serde_json::from_slice::<Task>(data) {
        let json = serde_json::to_vec(&task).expect("a task has string keys only");
        let again: Task =
            serde_json::from_slice(&json).expect("a task that was read can be written and read");
        let again = serde_json::to_vec(&again).expect("a task has string keys only");
        assert_eq!(String::from_utf8_lossy(&again), String::from_utf8_lossy(&json));
    }
}

/// What a root directory says of its part, written again as it was read.
pub fn part(data: &[u8]) {
    let mut node = Node { name: b"orders"[..].into(), subtree: Some(Id::of(b"tree")), ..Node::default() };
    node.xattrs.push(Xattr { name: ATTRIBUTE.into(), value: Some(data.to_vec().into()) });
    let Some(info) = PartInfo::of(&node) else { return };
    let _ = info.source();
    info.put(&mut node);
    let again = PartInfo::of(&node).expect("what was written can be read");
    assert_eq!(again, PartInfo { proven: true, ..info });
}
