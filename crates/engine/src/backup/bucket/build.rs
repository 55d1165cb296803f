//! Builds the trees of a bucket from the steps of a walk, with a stack of open directories, and cuts them into parts.
//!
//! # Cuts
//!
//! A part ends where the parent's parts ended, unless it has become small; then it goes on into the next one's
//! range. When a directory is full (in entries or in bytes of its tree), the part is cut in the middle of it, as a
//! B-tree does, so that both halves have room to grow. All that depends on the listing and on the parent's cuts alone,
//! and a source that does not change keeps its parts.
//!
//! A cut never separates an object `a` from a directory `a`: restored into one place, they would collide. Behind a
//! key, only objects whose keys are a beginning of it can have a directory still to come (`a` < `a-b` < `a/c`).
//! Cuts wait for a place where there is no such object; only if a directory overflows before there is one, the store
//! is asked whether these directories exist.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use cistern_bucket::{Attributes, Bucket, Entry, Key, ListRequest, Tags};
use cistern_repository::{Id, Node, TreeBuilder};
use tokio::sync::mpsc;

use super::directory::{Child, Store, tree};
use super::past::PastPart;
use super::walk::{Fate, Object, Step};
use crate::backup::content::{Read, Reading, Stored};
use crate::backup::session::{Collector, Counts, Sealed, Tally};
use crate::fidelity::{self, Description, Layout, is_escaped, name, set_value, side_file, side_name};
use crate::parts::{Bounds, PartInfo, Splits};
use crate::proof::Evidence;
use crate::{Error, Meter, Part, Result};

/// No tree blob becomes longer than this, in bytes.
const MAX_TREE: usize = 16 << 20;

/// What a builder needs.
pub(crate) struct Needs {
    /// The source, to be asked about directories that lie behind a cut.
    pub bucket: Arc<dyn Bucket>,
    /// Where keys lie in a snapshot.
    pub layout: Arc<Layout>,
    /// Name of the source and beginning of the keys that are meant.
    pub source: (String, Key),
    /// Where trees go.
    pub store: Store,
    /// The parts of the parent.
    pub past: Arc<Vec<PastPart>>,
    /// Most entries of a directory.
    pub part_keys: usize,
    /// What could not be read.
    pub exceptions: Arc<Collector>,
    /// Counts for the report.
    pub counts: Arc<Counts>,
    /// Counts for whoever watches.
    pub meter: Arc<Meter>,
}

/// Builds trees.
pub(crate) struct Builder {
    needs: Needs,
    /// Lower bound of the open part.
    after: Option<Key>,
    /// Upper bounds of the parent's parts that lie ahead.
    planned: VecDeque<Key>,
    /// A planned bound that was passed where no cut was possible.
    wanted: Option<Key>,
    /// The open directories; the first is the root.
    frames: Vec<Frame>,
    /// Their keys below the root, one behind the other, each with a slash behind it.
    path: Vec<u8>,
    /// The parent's trees of the directories on the way of the current object.
    trail: Vec<Option<Id>>,
    sum: Sum,
    /// The last key listed.
    last: Vec<u8>,
    /// Lengths of the beginnings of the last key that are objects whose directory may still come.
    pending: Vec<usize>,
    sealed: Vec<Sealed>,
}

/// An open directory.
struct Frame {
    /// Length of the path above it.
    above: usize,
    children: Vec<Child>,
    /// Bytes of its tree so far.
    bytes: usize,
    /// The parent's tree.
    past: Option<Id>,
    /// Where it can be cut.
    mark: Option<Box<Mark>>,
}

/// A place about in the middle of a directory where it can be cut.
struct Mark {
    /// Number of children before it.
    at: usize,
    /// The last key listed before it.
    until: Key,
    before: Sum,
    since: Sum,
}

/// What is summed up over a part.
#[derive(Clone)]
struct Sum {
    evidence: Evidence,
    splits: Splits,
    tally: Tally,
    exceptions: u64,
    excluded: u64,
}

impl Sum {
    fn new() -> Self {
        let tally = Tally::default();
        Sum { evidence: Evidence::new(), splits: Splits::new(), tally, exceptions: 0, excluded: 0 }
    }
}

impl Frame {
    fn new(above: usize, past: Option<Id>) -> Self {
        Frame { above, children: Vec::new(), bytes: 0, past, mark: None }
    }

    fn push(&mut self, child: Child) {
        self.bytes += child.len();
        self.children.push(child);
    }

    /// Everything in it; it stays open, and empty.
    fn emptied(&mut self) -> Frame {
        let children = std::mem::take(&mut self.children);
        Frame {
            children,
            bytes: std::mem::take(&mut self.bytes),
            above: self.above,
            past: self.past,
            mark: None,
        }
    }
}

/// An object that is as it was, with tags that could not be read then.
fn tagged(entry: &Entry, node: &Node, tags: Tags) -> Option<Stored> {
    let attributes = Description::of(node).ok().filter(|known| known.more.is_none())?.attributes;
    let attributes = Attributes { tags: Some(tags), ..attributes };
    Some(Stored { entry: entry.clone(), attributes, blobs: node.content.as_deref()?.to_vec() })
}

impl Builder {
    /// Nothing was listed yet.
    pub fn new(needs: Needs) -> Self {
        let planned = needs.past.iter().filter_map(|part| part.bounds.until.clone()).collect();
        let root = needs.past.first().and_then(|part| part.root);
        Builder {
            needs,
            after: None,
            planned,
            wanted: None,
            frames: vec![Frame::new(0, root)],
            path: Vec::new(),
            trail: Vec::new(),
            sum: Sum::new(),
            last: Vec::new(),
            pending: Vec::new(),
            sealed: Vec::new(),
        }
    }

    /// Takes all steps until there are no more, and yields the parts in the order of their ranges. Whether the
    /// steps came to their end, only the walk knows.
    ///
    /// # Errors
    /// Of reading and of writing.
    pub async fn run(mut self, mut steps: mpsc::Receiver<Step>) -> Result<Vec<Sealed>> {
        while let Some(step) = steps.recv().await {
            match step {
                Step::Page => self.add(|sum| sum.evidence.page()),
                Step::Object(object) => self.object(*object).await?,
            }
        }
        self.seal(None, &[]).await?;
        Ok(self.sealed)
    }

    async fn object(&mut self, object: Object) -> Result<()> {
        let Object { entry, trail, fate } = object;
        let layout = self.needs.layout.clone();
        let below = layout.below(entry.key.as_bytes());
        self.approach(below).await?;
        if let Some(trail) = trail {
            self.trail = trail;
        }
        match fate {
            Fate::Excluded => {
                self.advance(below, &entry, false);
                self.add(|sum| sum.excluded += 1);
            }
            Fate::Same { place, side, tags } => {
                let tags = match tags {
                    Some(reading) => reading.finished().await?,
                    None => None,
                };
                let tagged = tags.and_then(|tags| tagged(&entry, place.node(), tags));
                self.enter(below).await?;
                self.advance(below, &entry, true);
                match &tagged {
                    Some(stored) => self.new_object(below, stored).await?,
                    None => self.push(Child::same(&below[self.path.len()..], place)),
                }
                if let Some(side) = side {
                    self.push(Child::same_side(side));
                }
                self.needs.meter.done(entry.size);
                self.add(|sum| {
                    let tally = &mut sum.tally;
                    *(if tagged.is_some() {
                        &mut tally.files_changed
                    } else {
                        &mut tally.files_unchanged
                    }) += 1;
                    tally.bytes += entry.size;
                });
            }
            Fate::Read { known, reading } => {
                let Some(stored) = self.stored(&entry, reading).await? else {
                    self.advance(below, &entry, false);
                    self.add(|sum| sum.exceptions += 1);
                    return Ok(());
                };
                self.enter(below).await?;
                self.advance(below, &entry, true);
                self.new_object(below, &stored).await?;
                self.needs.meter.objects_done.fetch_add(1, Relaxed);
                self.add(|sum| {
                    *(if known { &mut sum.tally.files_changed } else { &mut sum.tally.files_new }) += 1;
                    sum.tally.bytes += stored.entry.size;
                });
            }
        }
        Ok(())
    }

    /// What was read; `None` if there is nothing to keep.
    async fn stored(&self, entry: &Entry, reading: Option<Reading<Read>>) -> Result<Option<Stored>> {
        let Some(reading) = reading else {
            let attributes = Attributes { tags: Some(Tags::new()), ..Attributes::default() };
            return Ok(Some(Stored { entry: entry.clone(), attributes, blobs: Vec::new() }));
        };
        match reading.finished().await? {
            Read::Stored(stored) => Ok(Some(*stored)),
            Read::Vanished => {
                Counts::add(&self.needs.counts.vanished, 1);
                Ok(None)
            }
            Read::Unreadable(kind, detail) => {
                self.needs.exceptions.add(kind, &entry.key, detail);
                Ok(None)
            }
        }
    }

    async fn new_object(&mut self, below: &[u8], stored: &Stored) -> Result<()> {
        let Stored { entry, attributes, blobs } = stored;
        let piece = &below[self.path.len()..];
        let description = Description {
            key: is_escaped(below).then(|| Key::from(below)),
            revision: Some(entry.revision.clone()),
            attributes: attributes.clone(),
            ..Description::default()
        };
        let (value, side) = description.encode(|| side_name(piece));
        let mut node = fidelity::file(&name(piece), entry.size, entry.modified, blobs);
        set_value(&mut node, value);
        self.push(Child::object(&node));
        if let Some(side) = side {
            let blobs = self.needs.store.side(side.content.clone()).await?;
            self.push(Child::side(&side_file(&side, entry.modified, &blobs)));
        }
        Ok(())
    }

    fn push(&mut self, child: Child) {
        self.top().push(child);
    }

    fn top(&mut self) -> &mut Frame {
        self.frames.last_mut().expect("the root is always open")
    }

    /// Adds to the open part, and to what it would be if it were cut at one of its marks.
    fn add(&mut self, change: impl Fn(&mut Sum)) {
        change(&mut self.sum);
        for frame in &mut self.frames {
            if let Some(mark) = &mut frame.mark {
                change(&mut mark.since);
            }
        }
    }

    /// Makes the directory of a key the open one, with room for another entry.
    async fn enter(&mut self, below: &[u8]) -> Result<()> {
        let directory = &below[..below.iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1)];
        while !directory.starts_with(&self.path) {
            self.leave().await?;
        }
        while self.path.len() < directory.len() {
            self.make_room(below).await?;
            let rest = &directory[self.path.len()..];
            let piece = rest.iter().position(|byte| *byte == b'/').map_or(rest.len(), |slash| slash + 1);
            let past = self.trail.get(self.frames.len() - 1).copied().flatten();
            self.frames.push(Frame::new(self.path.len(), past));
            self.path.extend_from_slice(&rest[..piece]);
        }
        self.make_room(below).await
    }

    /// Closes the innermost directory.
    async fn leave(&mut self) -> Result<()> {
        let Some(frame) = self.frames.pop() else { return Ok(()) };
        let path = self.path.clone();
        self.path.truncate(frame.above);
        // Behind a cut, a directory may be open in which nothing was found any more.
        if !frame.children.is_empty() {
            let child = self.closed(&path, frame, &[]).await?;
            self.push(child);
        }
        Ok(())
    }

    /// The entry for a directory that is complete. `path` is its own.
    async fn closed(&mut self, path: &[u8], frame: Frame, later: &[Key]) -> Result<Child> {
        let id = self.close(path, frame.past, frame.children, later).await?;
        Ok(Child::directory(&path[frame.above..path.len() - 1], id))
    }

    async fn close(
        &mut self,
        path: &[u8],
        past: Option<Id>,
        children: Vec<Child>,
        later: &[Key],
    ) -> Result<Id> {
        let here = later.iter().filter_map(|key| key.strip_prefix(path));
        let pieces: Vec<&[u8]> = here.filter(|piece| !piece.contains(&b'/')).collect();
        let bytes = tree(&self.needs.store, path, children, &pieces).await?;
        self.store(bytes, past).await
    }

    async fn store(&mut self, tree: Vec<u8>, past: Option<Id>) -> Result<Id> {
        let id = self.needs.store.tree(tree).await?;
        self.add(|sum| match past {
            None => sum.tally.dirs_new += 1,
            Some(past) if past == id => sum.tally.dirs_unchanged += 1,
            Some(_) => sum.tally.dirs_changed += 1,
        });
        Ok(id)
    }

    // ---------------------------------------------------------------------------------------------- cuts

    /// Finds out whether a cut before `below` is possible, and makes it if one is planned.
    async fn approach(&mut self, below: &[u8]) -> Result<()> {
        let last = &self.last;
        let may_come = |length: usize| {
            below.len() > length && below[..length] == last[..length] && below[length] <= b'/'
        };
        while self.pending.pop_if(|length| !may_come(*length)).is_some() {}
        while self.planned.front().is_some_and(|bound| below > bound.as_bytes()) {
            self.wanted = self.planned.pop_front();
        }
        if !self.pending.is_empty() {
            return Ok(());
        }
        let Some(bound) = self.wanted.take() else { return Ok(()) };
        if self.sum.evidence.keys() * 4 < self.needs.part_keys as u64 {
            return Ok(());
        }
        let until = Key::from(bound.as_bytes().max(&self.last));
        self.seal(Some(until), &[]).await
    }

    /// Takes in an object, whether or not it is kept.
    fn advance(&mut self, below: &[u8], entry: &Entry, kept: bool) {
        self.add(|sum| {
            sum.evidence.object(below, entry);
            sum.splits.key(below);
        });
        // Its directory has come: the two are in one part.
        self.pending.pop_if(|length| below[*length] == b'/');
        if kept {
            self.pending.push(below.len());
        }
        self.last.clear();
        self.last.extend_from_slice(below);
    }

    /// Makes sure that the open directory can take another entry, which belongs to the key `below`.
    async fn make_room(&mut self, below: &[u8]) -> Result<()> {
        let most = self.needs.part_keys.max(2);
        let clean = self.pending.is_empty();
        let frame = self.top();
        if frame.children.len() >= most || frame.bytes >= MAX_TREE {
            match frame.mark.take() {
                Some(mark) => self.split(*mark).await?,
                None => {
                    let later = self.later(below).await?;
                    self.seal(Some(Key::from(&self.last[..])), &later).await?;
                    self.pending.clear();
                }
            }
        }
        let frame = self.top();
        let half = frame.children.len() >= most / 2 || frame.bytes >= MAX_TREE / 2;
        if half && clean && frame.mark.is_none() {
            let at = frame.children.len();
            let (until, before, since) = (Key::from(&self.last[..]), self.sum.clone(), Sum::new());
            self.top().mark = Some(Box::new(Mark { at, until, before, since }));
        }
        Ok(())
    }

    /// Those of the pending objects that have a directory of their name behind the cut before `below`.
    async fn later(&self, below: &[u8]) -> Result<Vec<Key>> {
        let mut later = Vec::new();
        for length in &self.pending {
            let object = &self.last[..*length];
            let directory = [object, b"/"].concat();
            let exists = below.starts_with(&directory) || {
                let prefix = self.needs.layout.full(&directory);
                let request = ListRequest { prefix, limit: Some(1), ..ListRequest::default() };
                let page = self.needs.bucket.list(&request).await.map_err(Error::Source)?;
                !page.entries.is_empty()
            };
            if exists {
                later.push(Key::from(object));
            }
        }
        Ok(later)
    }

    /// Cuts the innermost directory, and with it the part, at its mark.
    async fn split(&mut self, mark: Mark) -> Result<()> {
        let rest = self.top().children.split_off(mark.at);
        self.sum = mark.before;
        self.seal(Some(mark.until), &[]).await?;
        self.sum = mark.since;
        rest.into_iter().for_each(|child| self.push(child));
        Ok(())
    }

    /// Ends the open part: a snapshot's trees from the innermost open directory up to `/`. The directories stay
    /// open, and empty.
    async fn seal(&mut self, until: Option<Key>, later: &[Key]) -> Result<()> {
        self.frames.iter_mut().for_each(|frame| frame.mark = None);
        let mut path = self.path.clone();
        for at in (1..self.frames.len()).rev() {
            let frame = self.frames[at].emptied();
            let above = frame.above;
            if !frame.children.is_empty() {
                let child = self.closed(&path, frame, later).await?;
                self.frames[at - 1].push(child);
            }
            path.truncate(above);
        }
        let root = self.frames[0].emptied();
        let mut tree = self.close(b"", root.past, root.children, later).await?;
        let bounds = Bounds { after: self.after.clone(), until: until.clone() };
        let info = PartInfo {
            bounds: bounds.clone(),
            proof: self.sum.evidence.proof(),
            proven: true,
            exceptions: self.sum.exceptions,
            excluded: self.sum.excluded,
            splits: self.sum.splits.clone().finish(),
            bucket: self.needs.source.0.clone(),
            prefix: self.needs.source.1.clone(),
        };
        let past = self.past().cloned();
        let layout = self.needs.layout.clone();
        for (depth, name) in layout.names().iter().enumerate().rev() {
            let mut node = fidelity::directory(name, tree);
            if depth + 1 == layout.names().len() {
                info.put(&mut node);
            }
            let mut builder = TreeBuilder::new();
            builder.add(&node)?;
            let before = past.as_ref().and_then(|past| match depth {
                0 => Some(past.tree),
                depth => past.chain.get(depth - 1).copied(),
            });
            tree = self.store(builder.finish()?, before).await?;
        }
        let (after_text, until_text) = bounds.texts();
        self.sealed.push(Sealed {
            tree,
            paths: bounds.paths(layout.path()),
            parent: past.as_ref().map(|past| past.snapshot),
            parent_tree: past.as_ref().map(|past| past.tree),
            tags: Vec::new(),
            tally: self.sum.tally,
            part: Part { snapshot: String::new(), after: after_text, until: until_text, proof: info.proof },
        });
        self.sum = Sum::new();
        self.after = until;
        self.frames[0].past = self.past().and_then(|past| past.root);
        Ok(())
    }

    /// The parent's part that the open one continues.
    fn past(&self) -> Option<&PastPart> {
        let same = |part: &&PastPart| part.bounds.after <= self.after;
        self.needs.past.iter().rev().find(same)
    }
}
