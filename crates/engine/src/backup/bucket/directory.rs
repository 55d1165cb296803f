//! One directory on its way to a tree blob: settles which objects have to give way to directories of their name.

use std::collections::HashSet;

use cistern_repository::{Id, Node, Tree, TreeBuilder, Writer};

use super::past::Place;
use crate::fidelity::{
    self, Description, Side, is_escaped, name, object_name, piece, set_value, side_file, side_name,
};
use crate::{Error, Result};

/// Where trees go, and the small blobs that belong to them.
#[derive(Clone)]
pub(crate) struct Store {
    /// `None` in a dry run: ids are computed, nothing is kept.
    pub writer: Option<Writer>,
}

impl Store {
    /// Stores a tree blob.
    ///
    /// # Errors
    /// The writer's.
    pub async fn tree(&self, bytes: Vec<u8>) -> Result<Id> {
        let Some(writer) = &self.writer else { return Ok(Id::of(&bytes)) };
        // Trees take their memory without waiting; this waits for them.
        drop(writer.permit(0).await?);
        Ok(writer.tree(bytes)?)
    }

    /// Stores the contents of a side file.
    ///
    /// # Errors
    /// The writer's.
    pub async fn side(&self, content: Vec<u8>) -> Result<Vec<Id>> {
        let Some(writer) = &self.writer else { return Ok(vec![Id::of(&content)]) };
        let permit = writer.permit(content.len()).await?;
        let stored = writer.batch(permit, move |batch| batch.add(&content)).await?;
        let contents = stored.into_iter().next().and_then(std::result::Result::ok);
        Ok(contents.ok_or_else(|| Error::Broken("a batch of one gave no answer".into()))?.blobs)
    }
}

/// An entry of a directory.
pub(crate) struct Child {
    /// The name, as if nothing else had it: never that of an object beside a directory.
    name: Box<[u8]>,
    text: Text,
    kind: Kind,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Directory,
    Side,
    /// An object; whether its text has the name of an object beside a directory.
    Object {
        beside: bool,
    },
}

enum Text {
    /// As it stands in the parent's tree.
    Raw(Place),
    /// Newly made.
    Own(Box<[u8]>),
}

impl Text {
    fn of(node: &Node) -> Text {
        let mut text = Vec::with_capacity(512);
        node.write(&mut text);
        Text::Own(text.into())
    }

    fn bytes(&self) -> &[u8] {
        match self {
            Text::Raw(place) => place.tree.raw(place.at),
            Text::Own(text) => text,
        }
    }

    fn node(&self) -> Result<Node> {
        match self {
            Text::Raw(place) => Ok(place.node().clone()),
            Text::Own(text) => {
                let tree = Tree::parse([&b"{\"nodes\":["[..], text, b"]}\n"].concat())?;
                tree.nodes()
                    .first()
                    .cloned()
                    .ok_or_else(|| Error::Broken("a node of ours cannot be read".into()))
            }
        }
    }
}

impl Child {
    /// A directory.
    pub fn directory(piece: &[u8], subtree: Id) -> Child {
        let name = name(piece);
        Child {
            text: Text::of(&fidelity::directory(&name, subtree)),
            name: name.into(),
            kind: Kind::Directory,
        }
    }

    /// An object with a new node, which has its natural name.
    pub fn object(node: &Node) -> Child {
        Child { name: node.name.clone(), text: Text::of(node), kind: Kind::Object { beside: false } }
    }

    /// An object as it is in the parent; `piece` is the last piece of its key.
    pub fn same(piece: &[u8], place: Place) -> Child {
        let name: Box<[u8]> = name(piece).into();
        let beside = place.node().name != name;
        Child { name, text: Text::Raw(place), kind: Kind::Object { beside } }
    }

    /// A side file with a new node.
    pub fn side(node: &Node) -> Child {
        Child { name: node.name.clone(), text: Text::of(node), kind: Kind::Side }
    }

    /// A side file as it is in the parent.
    pub fn same_side(place: Place) -> Child {
        Child { name: place.node().name.clone(), text: Text::Raw(place), kind: Kind::Side }
    }

    /// Bytes that it takes in the tree.
    pub fn len(&self) -> usize {
        self.text.bytes().len() + 1
    }
}

/// Makes the tree blob of a directory. `path` is the key below the root of the directory, with a slash behind it
/// unless it is the root itself; the objects with these last pieces (`later`) have a directory of their name in a later part.
///
/// # Errors
/// Of the writer; `Broken` if a name is there twice.
pub(crate) async fn tree(
    store: &Store,
    path: &[u8],
    mut children: Vec<Child>,
    later: &[&[u8]],
) -> Result<Vec<u8>> {
    let directories: HashSet<Box<[u8]>> = children
        .iter()
        .filter(|child| child.kind == Kind::Directory)
        .map(|child| child.name.clone())
        .collect();
    let mut sides = Vec::new();
    for child in &mut children {
        let Kind::Object { beside } = child.kind else { continue };
        let taken =
            directories.contains(&child.name) || later.iter().any(|piece| *name(piece) == *child.name);
        if taken == beside {
            continue;
        }
        let (node, side) = renamed(child, path, taken)?;
        child.text = Text::of(&node);
        child.kind = Kind::Object { beside: taken };
        if let Some(side) = side {
            let blobs = store.side(side.content.clone()).await?;
            let mut file = side_file(&side, jiff::Timestamp::UNIX_EPOCH, &blobs);
            (file.mtime, file.atime, file.ctime) = (node.mtime, node.atime, node.ctime);
            sides.push(Child::side(&file));
        }
    }
    children.append(&mut sides);
    let mut builder = TreeBuilder::new();
    for child in &children {
        match (&child.text, child.kind) {
            (Text::Raw(place), _) => builder.add_raw(&place.node().name, child.text.bytes())?,
            (Text::Own(text), Kind::Object { beside: true }) => {
                builder.add_raw(&child.text.node()?.name, text)?
            }
            (Text::Own(text), _) => builder.add_raw(&child.name, text)?,
        }
    }
    Ok(builder.finish()?)
}

/// The node of an object under its other name: beside a directory of its natural name, or not any more.
fn renamed(child: &Child, path: &[u8], beside: bool) -> Result<(Node, Option<Side>)> {
    let mut node = child.text.node()?;
    let description = Description::of(&node);
    let known = description.as_ref().ok().and_then(|description| description.key.as_ref());
    let last = match known {
        Some(key) => key.as_bytes().rsplit(|byte| *byte == b'/').next().unwrap_or_default().to_vec(),
        None => piece(&child.name).map_or_else(|| child.name.to_vec(), |piece| piece.into_owned()),
    };
    let key = [path, &last].concat();
    node.name = if beside { object_name(&last).into() } else { child.name.clone() };
    // An attribute that is not ours to read stays as it is; the name alone says enough.
    let Ok(mut description) = description else { return Ok((node, None)) };
    description.key = (beside || is_escaped(&key)).then(|| cistern_bucket::Key::new(key));
    let (value, side) = description.encode(|| side_name(&last));
    set_value(&mut node, value);
    Ok((node, side))
}
