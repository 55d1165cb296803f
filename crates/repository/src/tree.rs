//! Directories: the text of their nodes in the order of names, whose hash is the directory's name.

use std::ops::Range;

use crate::json::{JsonResult, Scanner};
use crate::node::{Node, Xattr};
use crate::{Error, Result};

const HEAD: &[u8] = b"{\"nodes\":[";
const TAIL: &[u8] = b"]}\n";
/// A tree in memory is at most so many times as long as its text (real nodes take less than twice), unless it is small.
const MOST_GROWTH: usize = 4;
const SMALL: usize = 8 << 20;

/// A directory that was read, with the text of each node, so that an unchanged one is written again as it was.
#[derive(Debug, Default)]
pub struct Tree {
    text: Vec<u8>,
    nodes: Vec<Node>,
    spans: Vec<Range<u32>>,
}

impl Tree {
    /// Reads a tree blob. The nodes' names have to ascend strictly, as raw bytes.
    pub fn parse(text: Vec<u8>) -> Result<Tree> {
        let (mut nodes, mut spans) = (Vec::new(), Vec::new());
        let mut reader = TreeReader::new(&text)?;
        let mut memory = 0;
        while let Some((node, span)) = reader.next_node()? {
            memory += size_of::<Node>() + node.xattrs.len() * size_of::<Xattr>();
            if memory > SMALL + MOST_GROWTH * text.len() {
                let detail = "its nodes say next to nothing, and are too many to be kept in memory";
                return Err(Error::damaged("tree", detail));
            }
            nodes.push(node);
            spans.push(span);
        }
        Ok(Tree { text, nodes, spans })
    }

    /// The nodes, by name.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The node of this name.
    pub fn get(&self, name: &[u8]) -> Option<&Node> {
        self.position(name).map(|i| &self.nodes[i])
    }

    /// Where the node of this name stands.
    pub fn position(&self, name: &[u8]) -> Option<usize> {
        self.nodes.binary_search_by(|node| (*node.name).cmp(name)).ok()
    }

    /// The text of node `i`, for [`TreeBuilder::add_raw`].
    pub fn raw(&self, i: usize) -> &[u8] {
        let Range { start, end } = self.spans[i];
        &self.text[start as usize..end as usize]
    }

    /// The blob that was read.
    pub fn text(&self) -> &[u8] {
        &self.text
    }
}

/// Reads a tree blob node by node: one node is in memory at a time.
pub struct TreeReader<B> {
    text: B,
    at: usize,
    more: bool,
    last: Option<Vec<u8>>,
}

impl<B: AsRef<[u8]>> TreeReader<B> {
    /// A reader before the first node of the blob.
    pub fn new(text: B) -> Result<Self> {
        let bytes = text.as_ref();
        if u32::try_from(bytes.len()).is_err() {
            return Err(Error::damaged("tree", "it is longer than 4 GiB"));
        }
        let mut scanner = Scanner::new(bytes);
        let more = open(&mut scanner).map_err(|error| error.of("tree"))?;
        let at = scanner.position();
        Ok(TreeReader { text, at, more, last: None })
    }

    /// The next node and where its text lies in the blob; none after the last.
    pub fn next_node(&mut self) -> Result<Option<(Node, Range<u32>)>> {
        if !std::mem::take(&mut self.more) {
            return Ok(None);
        }
        let mut scanner = Scanner::resume(self.text.as_ref(), self.at);
        let (node, span, more) = element(&mut scanner).map_err(|error| error.of("tree"))?;
        match &mut self.last {
            Some(last) if **last >= *node.name => {
                return Err(Error::damaged("tree", "its nodes are not in order, or two have the same name"));
            }
            Some(last) => {
                last.clear();
                last.extend_from_slice(&node.name);
            }
            None => self.last = Some(node.name.to_vec()),
        }
        self.at = scanner.position();
        self.more = more;
        Ok(Some((node, span)))
    }

    /// The text of a node, by the range that came with it.
    pub fn raw(&self, span: &Range<u32>) -> &[u8] {
        &self.text.as_ref()[span.start as usize..span.end as usize]
    }
}

/// Reads up to the first node; yields whether there is one.
fn open(scanner: &mut Scanner<'_>) -> JsonResult<bool> {
    scanner.expect(b'{', "an object")?;
    loop {
        let key = scanner.string()?;
        scanner.expect(b':', "a colon")?;
        if &key[..] == b"nodes" {
            break;
        }
        scanner.skip()?;
        scanner.expect(b',', "nodes")?;
    }
    if !scanner.take_null() {
        scanner.expect(b'[', "an array")?;
        if !scanner.take(b']') {
            return Ok(true);
        }
    }
    close(scanner)?;
    Ok(false)
}

/// Reads a node and what follows it; yields whether there is another.
fn element(scanner: &mut Scanner<'_>) -> JsonResult<(Node, Range<u32>, bool)> {
    scanner.peek();
    let start = scanner.position();
    let node = Node::read(scanner)?;
    let span = start as u32..scanner.position() as u32;
    let more = scanner.take(b',');
    if !more {
        scanner.expect(b']', "the end of the nodes")?;
        close(scanner)?;
    }
    Ok((node, span, more))
}

/// Reads what follows the nodes.
fn close(scanner: &mut Scanner<'_>) -> JsonResult<()> {
    while scanner.take(b',') {
        scanner.string()?;
        scanner.expect(b':', "a colon")?;
        scanner.skip()?;
    }
    scanner.expect(b'}', "the end of the tree")?;
    scanner.end()
}

/// A directory that is being written. Nodes may come in any order.
#[derive(Debug)]
pub struct TreeBuilder {
    /// The head, and the nodes as they came, with a comma behind each.
    text: Vec<u8>,
    /// The names, one behind the other.
    names: Vec<u8>,
    entries: Vec<Entry>,
    sorted: bool,
}

#[derive(Clone, Debug)]
struct Entry {
    name: Range<u32>,
    text: Range<u32>,
}

impl TreeBuilder {
    /// An empty directory.
    pub fn new() -> Self {
        TreeBuilder { text: HEAD.to_vec(), names: Vec::new(), entries: Vec::new(), sorted: true }
    }

    /// Number of nodes.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is no node.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Length of the blob that [`finish`](Self::finish) would give.
    pub fn byte_len(&self) -> usize {
        self.text.len() - usize::from(!self.entries.is_empty()) + TAIL.len()
    }

    /// Adds a node.
    pub fn add(&mut self, node: &Node) -> Result<()> {
        let start = self.text.len();
        node.write(&mut self.text);
        self.entry(&node.name, start)
    }

    /// Adds a node by the text that was read for it.
    pub fn add_raw(&mut self, name: &[u8], raw: &[u8]) -> Result<()> {
        let start = self.text.len();
        self.text.extend_from_slice(raw);
        self.entry(name, start)
    }

    fn entry(&mut self, name: &[u8], start: usize) -> Result<()> {
        let (name_start, end) = (self.names.len(), self.text.len());
        if let Some(last) = self.entries.last() {
            self.sorted &= self.name(last) < name;
        }
        self.names.extend_from_slice(name);
        self.text.push(b',');
        let range = |start: usize, end: usize| Some(u32::try_from(start).ok()?..u32::try_from(end).ok()?);
        let too_long =
            || Error::BadParameter { what: "directory", detail: "its tree has more than 4 GiB".into() };
        let entry = Entry {
            name: range(name_start, self.names.len()).ok_or_else(too_long)?,
            text: range(start, end).ok_or_else(too_long)?,
        };
        self.entries.push(entry);
        Ok(())
    }

    fn name(&self, entry: &Entry) -> &[u8] {
        &self.names[entry.name.start as usize..entry.name.end as usize]
    }

    /// The blob. Two nodes of the same name are an error, for no reader could tell them apart.
    pub fn finish(mut self) -> Result<Vec<u8>> {
        if !self.sorted {
            self.sort()?;
        }
        if !self.entries.is_empty() {
            self.text.pop();
        }
        self.text.extend_from_slice(TAIL);
        Ok(self.text)
    }

    fn sort(&mut self) -> Result<()> {
        let mut entries = std::mem::take(&mut self.entries);
        entries.sort_unstable_by(|a, b| self.name(a).cmp(self.name(b)));
        if let Some(pair) = entries.windows(2).find(|pair| self.name(&pair[0]) == self.name(&pair[1])) {
            let name = String::from_utf8_lossy(self.name(&pair[0])).escape_debug().to_string();
            let detail = format!("two of its entries are named {name}").into();
            return Err(Error::BadParameter { what: "directory", detail });
        }
        let mut text = Vec::with_capacity(self.text.len() + TAIL.len());
        text.extend_from_slice(HEAD);
        for entry in &entries {
            // With the comma behind it.
            text.extend_from_slice(&self.text[entry.text.start as usize..=entry.text.end as usize]);
        }
        self.text = text;
        self.entries = entries;
        Ok(())
    }
}

impl Default for TreeBuilder {
    fn default() -> Self {
        TreeBuilder::new()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::Id;

    fn node(name: &[u8]) -> Node {
        Node { name: name.into(), ..Node::default() }
    }

    fn tree(names: &[&[u8]]) -> Vec<u8> {
        let mut builder = TreeBuilder::new();
        names.iter().for_each(|name| builder.add(&node(name)).unwrap());
        assert_eq!(builder.len(), names.len());
        let length = builder.byte_len();
        let blob = builder.finish().unwrap();
        assert_eq!(blob.len(), length);
        blob
    }

    #[test]
    fn an_empty_directory_has_restics_own_id() {
        assert_eq!(tree(&[]), b"{\"nodes\":[]}\n");
        // As restic names it.
        assert_eq!(Id::of(&tree(&[])).short(), "ac08ce34");
        assert!(Tree::parse(tree(&[])).unwrap().nodes().is_empty());
        assert!(Tree::parse(b"{\"nodes\":null}".to_vec()).unwrap().nodes().is_empty());
    }

    #[test]
    fn nodes_that_say_nothing_do_not_fill_the_memory() {
        let text = |count: usize| {
            let nodes: Vec<String> = (0..count).map(|i| format!("{{\"name\":\"{i:06}\"}}")).collect();
            format!("{{\"nodes\":[{}]}}", nodes.join(",")).into_bytes()
        };
        assert_eq!(Tree::parse(text(1_000)).unwrap().nodes().len(), 1_000);
        assert!(Tree::parse(text(200_000)).unwrap_err().to_string().contains("too many"));
    }

    #[test]
    fn order_of_raw_bytes_is_kept_and_disorder_is_damage() {
        let text = String::from_utf8(tree(&[b"a", b"b"])).unwrap();
        Tree::parse(text.clone().into_bytes()).unwrap();
        for (a, b) in [("b", "a"), ("a", "a"), ("b", "")] {
            let bad = text
                .replace("\"a\"", "\"A\"")
                .replace("\"b\"", &format!("\"{b}\""))
                .replace("\"A\"", &format!("\"{a}\""));
            let error = Tree::parse(bad.into_bytes()).unwrap_err();
            assert!(error.to_string().contains("not in order"), "{error}");
        }
        // Escaped, `"` begins with a backslash and would sort behind `a`.
        let blob = tree(&[b"a", b"\"", b"\xff", "\u{e9}".as_bytes()]);
        let tree = Tree::parse(blob).unwrap();
        let names: Vec<&[u8]> = tree.nodes().iter().map(|node| &*node.name).collect();
        assert_eq!(names, [b"\"", &b"a"[..], "\u{e9}".as_bytes(), b"\xff"]);
        assert_eq!(tree.position(b"a"), Some(1));
        assert!(tree.get(b"b").is_none());
    }

    #[test]
    fn two_of_one_name_are_refused() {
        let mut builder = TreeBuilder::new();
        for name in [b"x\n", b"y\n", b"x\n"] {
            builder.add(&node(name)).unwrap();
        }
        let error = builder.finish().unwrap_err();
        assert_eq!(error.to_string(), "directory is refused: two of its entries are named x\\n");
    }

    #[test]
    fn other_members_of_a_tree_are_passed_over_and_damage_is_not() {
        let text = String::from_utf8(tree(&[b"a"])).unwrap();
        let with = text.replacen('{', "{\"v\":[{}],", 1).replacen("]}\n", "],\"w\":1} ", 1);
        assert_eq!(Tree::parse(with.into_bytes()).unwrap().nodes().len(), 1);
        for end in 0..text.len() - 1 {
            assert!(Tree::parse(text.as_bytes()[..end].to_vec()).is_err(), "{end}");
        }
        for bad in [
            "",
            "[]",
            "{}",
            "{\"nodes\":{}}",
            "{\"nodes\":[]}x",
            "{\"nodes\":[,]}",
            "{\"nodes\":[{},]}",
            "{\"nodes\":[1]}",
        ] {
            assert!(Tree::parse(bad.into()).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn nodes_in_any_order_make_one_tree(names in prop::collection::btree_set(any::<Vec<u8>>(), 0..30), seed in any::<u64>()) {
            let sorted: Vec<&[u8]> = names.iter().map(|name| &name[..]).collect();
            let mut mixed = sorted.clone();
            mixed.sort_by_key(|name| Id::of(&[&seed.to_le_bytes()[..], name].concat()));
            let blob = tree(&sorted);
            prop_assert_eq!(&tree(&mixed), &blob);
            let parsed = Tree::parse(blob.clone()).unwrap();
            let mut copied = TreeBuilder::new();
            for (i, node) in parsed.nodes().iter().enumerate().rev() {
                prop_assert_eq!(&*node.name, sorted[i]);
                copied.add_raw(&node.name, parsed.raw(i)).unwrap();
            }
            prop_assert_eq!(copied.finish().unwrap(), blob);
        }
    }
}
