//! Compares a snapshot with a bucket, in step with its listing.

use std::sync::Arc;

use cistern_bucket::{Attributes, Bucket, Class, Entry, ErrorKind, GetOptions, Key, Revision};
use cistern_repository::{Node, NodeKind, Tree};
use tokio::task::JoinSet;

use super::Job;
use super::content::{Blobs, Expectation};
use crate::backup::bucket::listing::Listing;
use crate::backup::bucket::past::{Past, PastPart, Place, Unseen, ordered};
use crate::backup::bucket::splits;
use crate::backup::content::join;
use crate::fidelity::{self, Description, Layout, name};
use crate::{Error, ExceptionKind, Result};

/// Objects whose contents are read at once; each may need a blob's length of memory.
const AT_ONCE: usize = 12;

/// Compares everything below `prefix` of a bucket.
///
/// # Errors
/// Whatever kept it from being compared.
pub(super) async fn compare(
    job: &Arc<Job>,
    bucket: &Arc<dyn Bucket>,
    bucket_name: &str,
    prefix: &Key,
) -> Result<()> {
    let (layout, parts) = parts(job, bucket_name, prefix).await?;
    let ranges: Vec<_> = parts.iter().map(|part| part.bounds.clone()).collect();
    let mut listing = Listing::new(bucket.clone(), layout.prefix(), splits(&parts, &layout));
    let mut past = Past::new(job.reader.clone(), Arc::new(parts)).watch_unseen();
    let mut contents = Contents {
        job: job.clone(),
        bucket: bucket.clone(),
        running: JoinSet::new(),
        blobs: Blobs::new(job.clone()),
    };
    let leftovers = Leftovers { job, layout: &layout };
    while let Some(page) = listing.next().await? {
        for entry in page {
            let below = layout.below(entry.key.as_bytes());
            // A single part of several says nothing of keys outside of it.
            if !ranges.iter().any(|range| range.contains(below))
                || !is_selected(job, &layout, below, entry.size, Some(entry.modified))
            {
                // Its node is not meant either, and must not look as if it was only there.
                past.find(below).await?;
                continue;
            }
            job.meter.found(entry.size);
            let (place, _) = past.find(below).await?;
            let side = place.as_ref().and_then(|place| fidelity::side_of(place.node()));
            let side = side.and_then(|name| past.beside(&name));
            match place {
                None => job.collector.add(
                    ExceptionKind::OnlyInSource,
                    &entry.key,
                    "the snapshot does not hold it",
                ),
                Some(place) => contents.judge(entry, place, side).await?,
            }
            for unseen in past.unseen() {
                leftovers.report(unseen).await?;
            }
        }
    }
    past.finish().await?;
    for unseen in past.unseen() {
        leftovers.report(unseen).await?;
    }
    if past.damaged() > 0 {
        let detail = "the trees of these many directories cannot be read; what they held counts as missing";
        job.collector.add(ExceptionKind::Damaged, past.damaged(), detail);
    }
    contents.finish().await
}

/// The parts of the snapshot, and where keys lie in them.
async fn parts(job: &Job, bucket_name: &str, prefix: &Key) -> Result<(Layout, Vec<PastPart>)> {
    let snapshots = &job.selected.run.parts;
    let mut layout = Layout::new(job.wanted_root().as_deref(), bucket_name, prefix)?;
    let mut parts = open(job, &layout).await?;
    if parts.iter().all(|part| part.root.is_none()) && job.wanted_root().is_none() {
        // A copy in a bucket of another name: the snapshot itself knows where its keys begin.
        if let Some((_, first)) = snapshots.first()
            && let Some((root, _)) = crate::parts::marked(&job.reader, first).await?
        {
            layout = Layout::at(&root, prefix)?;
            parts = open(job, &layout).await?;
        }
    }
    parts.retain(|part| part.root.is_some());
    if parts.is_empty() {
        let path = layout.path();
        return Err(Error::NotFound(format!(
            "the snapshot holds no directory {path}; name the one to compare"
        )));
    }
    match ordered(parts) {
        Some(parts) => Ok((layout, parts)),
        None => Err(Error::Invalid(
            "a snapshot in several parts is compared as a whole, not by a path in it".into(),
        )),
    }
}

async fn open(job: &Job, layout: &Layout) -> Result<Vec<PastPart>> {
    let mut parts = Vec::new();
    for (id, snapshot) in &job.selected.run.parts {
        parts.push(PastPart::open(&job.reader, *id, snapshot, layout).await?);
    }
    Ok(parts)
}

fn is_selected(
    job: &Job,
    layout: &Layout,
    below: &[u8],
    size: u64,
    modified: Option<jiff::Timestamp>,
) -> bool {
    job.select.metadata(size, modified)
        && (job.select.takes_every_path() || job.select.object(&layout.shown(below)))
}

/// Reads objects whose contents are to be compared.
struct Contents {
    job: Arc<Job>,
    bucket: Arc<dyn Bucket>,
    running: JoinSet<Result<Option<(Entry, Place)>>>,
    blobs: Blobs,
}

impl Contents {
    /// Judges an object by the listing, or begins to read it.
    async fn judge(&mut self, entry: Entry, place: Place, side: Option<Place>) -> Result<()> {
        match by_listing(place.node(), &entry, self.job.task.content) {
            Ok(Listed::Equal) => {
                self.job.equal(entry.size);
                self.job.meter.done(entry.size);
                return Ok(());
            }
            Ok(Listed::Open) => {}
            Err(why) => {
                self.job.differs(&entry.key, why);
                self.job.meter.done(entry.size);
                return Ok(());
            }
        }
        while self.running.len() >= AT_ONCE.min(self.job.cx.concurrency.max(1)) {
            self.next().await?;
        }
        let (job, bucket) = (self.job.clone(), self.bucket.clone());
        self.running.spawn(async move {
            let equal = by_content(&job, &*bucket, &entry, &place, side).await?;
            job.meter.done(entry.size);
            Ok(equal.then_some((entry, place)))
        });
        Ok(())
    }

    async fn next(&mut self) -> Result<()> {
        let Some(outcome) = self.running.join_next().await else { return Ok(()) };
        if let Some((entry, place)) = join(outcome).flatten()? {
            let blobs = place.node().content.as_deref().unwrap_or_default();
            self.blobs.add(entry.key.to_string(), entry.size, blobs).await?;
        }
        Ok(())
    }

    async fn finish(mut self) -> Result<()> {
        while !self.running.is_empty() {
            self.next().await?;
        }
        self.blobs.flush().await
    }
}

/// What a listing says of an object that does not differ by it.
enum Listed {
    Equal,
    /// Only the contents tell.
    Open,
}

/// Whether a tag is that of an object that came in parts: it depends on how long the parts were, so that the same
/// contents have another one after a restore.
fn is_of_parts(tag: &str) -> bool {
    let number = tag.trim_matches('"').rsplit_once('-').map(|(_, number)| number);
    number.is_some_and(|number| !number.is_empty() && number.bytes().all(|digit| digit.is_ascii_digit()))
}

/// Compares a node and an object by what a listing says; with `content_decides`, by size alone.
fn by_listing(node: &Node, entry: &Entry, content_decides: bool) -> Result<Listed, String> {
    if node.size != entry.size {
        return Err(format!("{} bytes in the snapshot, {} in the source", node.size, entry.size));
    }
    if content_decides {
        return Ok(Listed::Open);
    }
    let then = Description::of(node)?.revision;
    let same_second = node.mtime.seconds == fidelity::time(entry.modified).seconds;
    match (&then, &entry.revision) {
        (Some(Revision::ETag(then)), Revision::ETag(now)) if then != now => {
            if is_of_parts(then) || is_of_parts(now) {
                return Ok(Listed::Open);
            }
            Err(format!("entity tag {then} in the snapshot, {now} in the source"))
        }
        (Some(Revision::ETag(_)), Revision::ETag(_)) => Ok(Listed::Equal),
        (Some(Revision::Generation { object: then, .. }), Revision::Generation { object: now, .. }) => {
            match then == now {
                true => Ok(Listed::Equal),
                false => Err(format!("generation {then} in the snapshot, {now} in the source")),
            }
        }
        _ if same_second => Ok(Listed::Equal),
        _ => Err("another time of modification, and nothing else to go by".into()),
    }
}

/// Whether contents and attributes are equal; if not, it has been told.
async fn by_content(
    job: &Job,
    bucket: &dyn Bucket,
    entry: &Entry,
    place: &Place,
    side: Option<Place>,
) -> Result<bool> {
    let options = GetOptions { range: None, revision: Some(entry.revision.clone()) };
    let mut get = match bucket.get(&entry.key, &options).await {
        Ok(get) => get,
        Err(error) => {
            let kind = match error.kind {
                ErrorKind::NoSuchKey => ExceptionKind::OnlyInSnapshot,
                ErrorKind::PreconditionFailed => ExceptionKind::Differs,
                ErrorKind::Archived => ExceptionKind::Archived,
                ErrorKind::CustomerKey => ExceptionKind::CustomerKey,
                ErrorKind::Denied => ExceptionKind::Denied,
                ErrorKind::Invalid | ErrorKind::Unsupported => ExceptionKind::Unreadable,
                _ => return Err(Error::Source(error)),
            };
            job.collector.add(kind, &entry.key, error);
            return Ok(false);
        }
    };
    let Some(mut expectation) = Expectation::of(place.node(), &job.reader) else {
        job.collector.add(ExceptionKind::Damaged, &entry.key, "a blob of its contents is in no index");
        return Ok(false);
    };
    while let Some(bytes) = get.body.next().await {
        if !expectation.push(&bytes.map_err(Error::Source)?) {
            break;
        }
    }
    if !expectation.finish() {
        job.differs(&entry.key, "the contents differ");
        return Ok(false);
    }
    let description = match described(job, place.node(), side).await {
        Ok(description) => description,
        Err(why) => {
            job.collector.add(ExceptionKind::Damaged, &entry.key, why);
            return Ok(false);
        }
    };
    // A node without a revision comes from a mount, which does not show attributes.
    if description.revision.is_some()
        && let Some(names) = different(&description.attributes, &get.attributes)
    {
        job.differs(&entry.key, format!("other attributes: {names}"));
        return Ok(false);
    }
    Ok(true)
}

/// What a node says, with its side file.
async fn described(job: &Job, node: &Node, side: Option<Place>) -> Result<Description, String> {
    let description = Description::of(node)?;
    if description.more.is_none() {
        return Ok(description);
    }
    let side = side.ok_or("its side file is missing")?;
    if side.node().size > fidelity::MAX_SIDE as u64 {
        return Err("its side file is too long".into());
    }
    let mut json = Vec::new();
    for id in side.node().content.as_deref().unwrap_or_default() {
        let blob = job.reader.blob(cistern_repository::BlobKind::Data, id).await;
        json.extend_from_slice(&blob.map_err(|error| error.to_string())?);
    }
    description.with_side(&json)
}

/// Names of the attributes that an answer to a read shows and that differ.
fn different(then: &Attributes, now: &Attributes) -> Option<String> {
    let fields = [
        ("contentType", then.content_type == now.content_type),
        ("cacheControl", then.cache_control == now.cache_control),
        ("contentDisposition", then.content_disposition == now.content_disposition),
        ("contentEncoding", then.content_encoding == now.content_encoding),
        ("contentLanguage", then.content_language == now.content_language),
        ("expires", then.expires == now.expires),
        ("websiteRedirect", then.website_redirect == now.website_redirect),
        // Whoever may not read a lock sees none, and one that ran out is gone.
        ("retention", then.retention.is_none() || now.retention.is_none() || then.retention == now.retention),
        ("legalHold", then.legal_hold == now.legal_hold),
        ("meta", then.meta == now.meta),
    ];
    let names: Vec<&str> = fields.iter().filter(|(_, equal)| !equal).map(|(name, _)| *name).collect();
    (!names.is_empty()).then(|| names.join(", "))
}

/// Tells of what only the snapshot holds.
struct Leftovers<'a> {
    job: &'a Job,
    layout: &'a Layout,
}

impl Leftovers<'_> {
    async fn report(&self, unseen: Unseen) -> Result<()> {
        let pieces = unseen.path.split(|b| *b == b'/');
        let count = unseen.path.iter().filter(|b| **b == b'/').count();
        let names: Vec<Box<[u8]>> = pieces.take(count).map(|piece| name(piece).into()).collect();
        for place in unseen.places {
            self.node(&names, place.node()).await?;
        }
        Ok(())
    }

    /// A node and everything below it. `above` are the names on its way from the root.
    async fn node(&self, above: &[Box<[u8]>], node: &Node) -> Result<()> {
        let mut open: Vec<(Vec<Box<[u8]>>, Node)> = vec![(above.to_vec(), node.clone())];
        while let Some((above, node)) = open.pop() {
            let mut names = above;
            names.push(node.name.clone());
            if let (NodeKind::Dir, Some(subtree)) = (node.kind, node.subtree) {
                let tree: Arc<Tree> = match self.job.reader.tree(&subtree).await {
                    Ok(tree) => tree,
                    Err(error) if error.class() == Class::Damaged => {
                        let path = Key::new(names.join(&b'/'));
                        self.job.collector.add(ExceptionKind::Damaged, path, error);
                        continue;
                    }
                    Err(error) => return Err(error.into()),
                };
                open.extend(tree.nodes().iter().rev().map(|node| (names.clone(), node.clone())));
                continue;
            }
            self.file(&names, &node);
        }
        Ok(())
    }

    fn file(&self, names: &[Box<[u8]>], node: &Node) {
        let description = Description::of(node).unwrap_or_default();
        if description.side {
            return;
        }
        let path: Vec<&[u8]> = names.iter().map(|name| &**name).collect();
        let below = fidelity::key(&path, description.key.as_ref());
        let modified = node.mtime.timestamp();
        if self.layout.holds(below.as_bytes())
            && is_selected(self.job, self.layout, below.as_bytes(), node.size, Some(modified))
        {
            let key = self.layout.full(below.as_bytes());
            self.job.collector.add(ExceptionKind::OnlyInSnapshot, key, "the source does not hold it");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_that_differ_are_named() {
        let then = Attributes { content_type: Some("a".into()), ..Attributes::default() };
        let now = Attributes {
            meta: [("k".to_string(), "v".to_string())].into(),
            tag_count: Some(3),
            ..Attributes::default()
        };
        assert_eq!(different(&then, &then), None);
        assert_eq!(different(&then, &now).as_deref(), Some("contentType, meta"));
    }
}
