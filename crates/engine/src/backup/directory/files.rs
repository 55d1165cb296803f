//! What a walk does with regular files: takes over what did not change, reads the rest once for every repository that
//! does not have it, and waits until it is stored.

use std::io;
use std::sync::atomic::Ordering::Relaxed;

use cistern_repository::{BlobKind, Contents, Node, NodeKind, Ticket};

use super::destination::{Destination, Open};
use super::frame::is_same;
use super::previous::Previous;
use super::read::{Batched, Broken, Found, Grown, LARGE, Out, Want, Wanted, read_large};
use super::walk::{Entry, Job, Walk, Walker, lock};
use crate::backup::session::Counts;
use crate::fidelity::{ATTRIBUTE, same_second, side_of};
use crate::posix::{changed, inode, modified, size};
use crate::{Error, Result};

/// Batches and large files that a thread has handed over before it waits for the oldest.
const UNDER_WAY: usize = 4;

/// What was handed to the workers and is not settled yet.
pub(super) enum UnderWay {
    Batch(Batched),
    File(Box<(Wanted, Found, Vec<(usize, Ticket<Contents>)>)>),
}

impl Walker<'_> {
    /// A regular file: as it was, or to be read; each repository has its own opinion.
    pub(super) fn file(&mut self, entry: Entry<'_>, open: &mut [Open], jobs: &mut Vec<Job>) -> Result<()> {
        let walk = self.walk;
        let size = size(entry.stat);
        let (mut some_have_it, mut some_want_it) = (false, false);
        for one in &mut *open {
            let destination = &walk.destinations[one.side];
            one.found = one.found.take().filter(|(node, _)| node.kind == NodeKind::File);
            let seen = &mut self.sides[one.side].seen;
            seen.listed += 1;
            seen.matched += u64::from(one.found.is_some());
            if destination.count_totals {
                destination.meter.found(size);
            }
            one.unchanged = match &one.found {
                Some((node, _)) => {
                    is_unchanged(walk, destination, entry, node)
                        && (!walk.ignore_inode || has_side(destination, node, &mut one.past))
                }
                None => false,
            };
            some_have_it |= one.unchanged;
            some_want_it |= !one.unchanged;
        }
        if some_have_it {
            self.unchanged(entry, open);
        }
        if some_want_it { self.changed(entry, open, jobs) } else { Ok(()) }
    }

    /// Those whose parents have the contents take them over.
    fn unchanged(&mut self, entry: Entry<'_>, open: &mut [Open]) {
        let walk = self.walk;
        let those = open.iter().filter(|one| one.unchanged).map(|one| one.side);
        let described = self.described(entry, those);
        for one in open.iter_mut().filter(|one| one.unchanged) {
            let Some((previous, span)) = one.found.take() else { continue };
            let mut node = described.clone();
            let mut side = None;
            if walk.reading.style.of_bucket {
                // The parent may know the time better.
                (node.mtime, node.atime, node.ctime) = (previous.mtime, previous.atime, previous.ctime);
            }
            if walk.ignore_inode
                && let Some(kept) = previous.xattrs.iter().find(|xattr| &*xattr.name == ATTRIBUTE)
                && !node.xattrs.iter().any(|xattr| &*xattr.name == ATTRIBUTE)
            {
                node.xattrs.push(kept.clone());
                side = side_of(&previous).and_then(|name| one.past.side(&name).ok().flatten());
            }
            let tally = &mut self.sides[one.side].seen.tally;
            tally.files_unchanged += 1;
            tally.bytes += previous.size;
            walk.destinations[one.side].meter.done(previous.size);
            node.content = previous.content.clone();
            let raw = one.past.raw(&span);
            let added = match is_same(&mut node, &previous) && !raw.is_empty() {
                true => one.frame.add_raw(&node.name, raw),
                false => one.frame.add(&node),
            };
            let added = added.and_then(|()| match side {
                Some((side, span)) => one.frame.add_raw(&side.name, one.past.raw(&span)),
                None => Ok(()),
            });
            walk.contain(one.side, added);
        }
    }

    /// Those whose parents do not have the contents want them to be read.
    fn changed(&mut self, entry: Entry<'_>, open: &mut [Open], jobs: &mut Vec<Job>) -> Result<()> {
        let walk = self.walk;
        let size = size(entry.stat);
        let mut wants = Vec::new();
        for one in open.iter_mut().filter(|one| !one.unchanged) {
            let destination = &walk.destinations[one.side];
            let previous = one.found.take().map(|(node, _)| Box::new(node));
            if destination.writer.is_some() {
                one.frame.expect();
                wants.push(Want { side: one.side, frame: one.frame.clone(), previous });
                continue;
            }
            // A dry run: what the contents would become is not known.
            let tally = &mut self.sides[one.side].seen.tally;
            match previous {
                Some(_) => tally.files_changed += 1,
                None => tally.files_new += 1,
            }
            tally.bytes += size;
            destination.meter.done(size);
            let node = walk.reading.style.node(entry.shown.unwrap_or(entry.name), entry.stat);
            walk.contain(one.side, one.frame.add(&node));
        }
        if wants.is_empty() {
            return Ok(());
        }
        let wanted = Wanted {
            wants,
            directory: entry.directory.clone(),
            name: entry.name.into(),
            shown: entry.shown.map(Into::into),
            owner: entry.stat.st_uid,
            size,
        };
        if wanted.size >= LARGE {
            jobs.push(Job::File(wanted));
            return Ok(());
        }
        if self.gathering.is_full_for(wanted.size) {
            self.send()?;
        }
        self.gathering.add(wanted);
        Ok(())
    }

    /// Reads a large file, and lets the workers store what was read.
    pub(super) fn large(&mut self, wanted: Wanted) -> Result<()> {
        let walk = self.walk;
        let path = wanted.path();
        let mut outs = Vec::new();
        for want in &wanted.wants {
            let destination = &walk.destinations[want.side];
            if let Some(writer) = destination.writer.as_ref().filter(|_| !destination.is_over()) {
                destination.meter.current(|| walk.shown(&path).to_string());
                outs.push(Out { side: want.side, file: Ok(writer.file()) });
            }
        }
        if outs.is_empty() {
            return Ok(());
        }
        let mut read = 0;
        let go_on = |bytes| {
            read += bytes;
            for want in &wanted.wants {
                let destination = &walk.destinations[want.side];
                destination.meter.bytes_done.fetch_add(bytes, Relaxed);
                Counts::add(&destination.counts.bytes_read, bytes);
            }
            !walk.stopped()
        };
        let outcome = read_large(&wanted, &walk.reading, &mut outs, &mut self.xattrs, go_on);
        let mut tickets = Vec::new();
        for Out { side, file } in outs {
            match (file, &outcome) {
                (Err(error), _) => walk.contain(side, Err(error.into())),
                (Ok(file), Ok(_)) => tickets.push((side, file.finish())),
                (Ok(file), Err(_)) => file.abort(),
            }
        }
        match outcome {
            Ok(found) => self.hand_over(UnderWay::File(Box::new((wanted, found, tickets)))),
            Err(Broken::File(error)) => {
                for want in &wanted.wants {
                    walk.destinations[want.side].meter.bytes_done.fetch_sub(read, Relaxed);
                }
                self.unread(wanted, &error);
                Ok(())
            }
            Err(Broken::Stopped) => Ok(()),
        }
    }

    /// Hands over what was gathered. One repository's workers read it themselves; for several it is read here.
    pub(super) fn send(&mut self) -> Result<()> {
        let walk = self.walk;
        let gathered = std::mem::take(&mut self.gathering);
        if let [only] = &walk.destinations[..] {
            let Some(writer) = &only.writer else { return Ok(()) };
            let batched = gathered.send(writer, &walk.reading)?;
            return self.hand_over(UnderWay::Batch(batched));
        }
        let (mut batched, failed) = gathered.read(&walk.reading, &mut self.xattrs);
        for (side, destination) in walk.destinations.iter().enumerate() {
            if let Some(writer) = destination.writer.as_ref().filter(|_| !destination.is_over()) {
                let stored = batched.store(side, writer);
                walk.contain(side, stored.map_err(Into::into));
            }
        }
        for (wanted, error) in failed {
            self.not_in_batch(wanted, &error)?;
        }
        self.hand_over(UnderWay::Batch(batched.batched))
    }

    fn hand_over(&mut self, one: UnderWay) -> Result<()> {
        self.under_way.push_back(one);
        while self.under_way.len() > UNDER_WAY {
            self.settle_oldest()?;
        }
        Ok(())
    }

    /// Waits for the workers to finish what was handed over first.
    pub(super) fn settle_oldest(&mut self) -> Result<()> {
        let walk = self.walk;
        match self.under_way.pop_front() {
            None => (),
            Some(UnderWay::File(one)) => {
                let (wanted, found, tickets) = *one;
                for (side, ticket) in tickets {
                    let stored = ticket.wait().map_err(Error::from).and_then(|contents| {
                        walk.destinations[side].meter.objects_done.fetch_add(1, Relaxed);
                        self.stored(&wanted, side, &found, contents)
                    });
                    walk.contain(side, stored);
                }
            }
            Some(UnderWay::Batch(Batched { files, found, tickets })) => {
                for (side, numbers, ticket) in tickets {
                    let results = match ticket.wait() {
                        Ok(results) => results,
                        Err(error) => {
                            walk.contain(side, Err(error.into()));
                            continue;
                        }
                    };
                    let found = lock(&found);
                    if results.len() != numbers.len() || found.len() != files.len() {
                        return Err(Error::Broken(
                            "a batch has another number of results than of files".into(),
                        ));
                    }
                    for (number, result) in numbers.into_iter().zip(results) {
                        self.small(&files[number], side, found[number].as_ref(), result)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn small(
        &mut self,
        wanted: &Wanted,
        side: usize,
        found: Option<&Found>,
        result: io::Result<Contents>,
    ) -> Result<()> {
        match (result, found) {
            (Ok(contents), Some(found)) => {
                let destination = &self.walk.destinations[side];
                Counts::add(&destination.counts.bytes_read, contents.size);
                destination.meter.done(contents.size);
                let stored = self.stored(wanted, side, found, contents);
                self.walk.contain(side, stored);
                Ok(())
            }
            (Ok(_), None) => Err(Error::Broken("a file was stored that was never opened".into())),
            (Err(error), _) => self.not_in_batch(wanted.of(side), &error),
        }
    }

    /// A file that could not be read with the others of its batch.
    fn not_in_batch(&mut self, wanted: Wanted, error: &io::Error) -> Result<()> {
        if error.get_ref().is_some_and(|error| error.is::<Grown>()) {
            return self.large(wanted);
        }
        self.unread(wanted, error);
        Ok(())
    }

    /// A file that could not be read: it is missing from the snapshots.
    fn unread(&mut self, wanted: Wanted, error: &io::Error) {
        self.walk.missing(wanted.wants.iter().map(|want| want.side), &wanted.path(), error);
        for want in wanted.wants {
            self.walk.contain(want.side, want.frame.settle(&mut self.sides[want.side]));
        }
    }

    /// The contents are in a repository: the node is complete.
    fn stored(&mut self, wanted: &Wanted, side: usize, found: &Found, contents: Contents) -> Result<()> {
        let Some(want) = wanted.wants.iter().find(|want| want.side == side) else {
            return Err(Error::Broken("a file was stored that nobody had asked for".into()));
        };
        for (attribute, error) in &found.lost {
            let path = self.walk.shown(&wanted.path());
            self.walk.destinations[side].lost(&path, attribute, error);
        }
        let mut node = found.node.clone();
        node.size = contents.size;
        node.content = Some(contents.blobs.into());
        let tally = &mut self.sides[side].seen.tally;
        tally.bytes += contents.size;
        match &want.previous {
            None => tally.files_new += 1,
            Some(previous) if is_same(&mut node, previous) => tally.files_unchanged += 1,
            Some(_) => tally.files_changed += 1,
        }
        want.frame.add(&node)?;
        want.frame.settle(&mut self.sides[side])
    }
}

/// Whether the attributes that a node keeps in a side file are there: else it would name what nobody has.
fn has_side(destination: &Destination, node: &Node, past: &mut Previous) -> bool {
    let Some(name) = side_of(node) else { return true };
    let Ok(Some((side, _))) = past.side(&name) else { return false };
    let content = side.content.as_deref().unwrap_or_default();
    content.iter().all(|id| destination.index.contains(BlobKind::Data, id))
}

/// Whether the contents are those that the parent snapshot has, as restic judges it.
fn is_unchanged(walk: &Walk, destination: &Destination, entry: Entry<'_>, previous: &Node) -> bool {
    let stat = entry.stat;
    let same_time = match walk.reading.style.of_bucket {
        true => same_second(previous.mtime, modified(stat)),
        false => previous.mtime.instant() == modified(stat).instant(),
    };
    if previous.size != size(stat) || !same_time {
        return false;
    }
    let same_inode = || previous.ctime.instant() == changed(stat).instant() && previous.inode == inode(stat);
    if !walk.ignore_inode && !same_inode() {
        return false;
    }
    let content = previous.content.as_deref().unwrap_or_default();
    if content.iter().all(|id| destination.index.contains(BlobKind::Data, id)) {
        return true;
    }
    destination.damaged(
        &walk.shown(&entry.path()),
        "blobs of the parent snapshot are missing from the index; the file is stored again",
    );
    false
}
