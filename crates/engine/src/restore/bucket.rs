//! A bucket as the target: one listing beside the walk decides, then objects are put together and written.
//!
//! # When an object is equal to what is there
//!
//! Equal contents are known only from the size and the entity tag that the snapshot recorded: neither times nor
//! a request per object are needed. Where they are equal, the attributes are compared as well (a request for the
//! head of that object, and for its tags if there are any); but if the time of modification is the recorded one, too,
//! nobody has written the object since the backup, and its attributes are taken to be as they were. Everything else is
//! written.
//!
//! # What cannot go into a bucket
//!
//! Links, devices and pipes are reported. Empty directories, and modes, owners and times of files, have no place in a
//! bucket and are left out without a word.

use std::sync::Arc;

use cistern_bucket::{Address, Attributes, Bucket, Entry, ErrorKind, Key, LedgerSnapshot};
use cistern_repository::{BlobKind, Node, NodeKind};
use tokio::task::JoinSet;

use super::confirm::{confirm, delete};
use super::conflict::{Decision, Decisions, Sameness, Standing, decide};
use super::delete::Doomed;
use super::fill::place;
use super::object::Store;
use super::plan::{Estimate, Remap};
use super::target::Target;
use super::walk::{Found, Order, Step, Walk};
use super::window::lengths;
use super::{Job, Outcome};
use crate::fidelity::{self, Description, MAX_SIDE};
use crate::{Error, ExceptionKind, Phase, Plan, Result, Role};

/// Restores to a bucket, or below a prefix of one.
///
/// # Errors
/// The target cannot be used; `Refused`, `Cancelled`.
pub(crate) async fn restore(job: Arc<Job>, address: &Address) -> Result<Outcome> {
    let bucket = tokio::select! {
        bucket = job.cx.access.bucket(address, Role::Target) => bucket.map_err(Error::Target)?,
        () = job.stop.cancelled() => return Err(Error::Cancelled),
    };
    if job.covered.as_ref().is_some_and(|covered| !covered.bucket) {
        let why = "nothing can be deleted: the snapshot was not made from a bucket, keys may have been hidden from it";
        return Err(Error::Invalid(why.into()));
    }
    let before = bucket.ledger().snapshot();
    let mut prefix = match address {
        Address::S3 { prefix, .. } => prefix.as_bytes().to_vec(),
        Address::Directory(_) => Vec::new(),
    };
    if !prefix.is_empty() && !prefix.ends_with(b"/") {
        prefix.push(b'/');
    }
    let to = To { bucket, prefix: Key::new(prefix), remap: Remap::keys(&job.task.remap) };
    let target = match to.prefix.is_empty() {
        true => to.bucket.name().to_owned(),
        false => format!("{}/{}", to.bucket.name(), to.prefix),
    };
    let Planned { mut plan, decisions, doomed, odd } = Survey::new(&job, &to, target)?.run().await?;
    plan.writer = "bucket".into();
    if !job.approved(&plan).await? {
        return Ok(Outcome { plan, requests: Some(since(&to, &before)), ..Outcome::default() });
    }
    job.meter.enter(Phase::Copying);
    let store = Arc::new(Store::new(
        to.bucket.clone(),
        job.collector.clone(),
        job.meter.clone(),
        job.stop.clone(),
        job.cx.concurrency,
    ));
    place(&job, &to, &store, &decisions).await?;
    let (mut deleted, mut kept_doomed) = (0, false);
    if let Some(doomed) = doomed.filter(|doomed| doomed.count > 0) {
        match job.may_delete() {
            true => deleted = delete(&job, &to, &doomed).await?,
            false => kept_doomed = true,
        }
    }
    let mut verified = 0;
    if job.task.verify || odd {
        job.meter.enter(if job.task.verify { Phase::Verifying } else { Phase::Sealing });
        verified = confirm(&job, &to, &decisions).await?;
    }
    let mut outcome = super::outcome(plan, &store.counts);
    outcome.deleted = deleted;
    outcome.kept_doomed = kept_doomed;
    outcome.verified = if job.task.verify { verified } else { 0 };
    outcome.requests = Some(since(&to, &before));
    Ok(outcome)
}

fn since(to: &To, before: &LedgerSnapshot) -> LedgerSnapshot {
    to.bucket.ledger().snapshot().since(before)
}

/// Where objects go.
pub(crate) struct To {
    pub bucket: Arc<dyn Bucket>,
    /// All keys begin with it.
    prefix: Key,
    remap: Remap,
}

impl To {
    /// The key in the target of what a walk meets at `path`, and what its node says of the object.
    pub fn key(&self, node: &Node, path: &[u8]) -> (Key, Result<Description, String>) {
        let description = Description::of(node);
        let below = path.strip_prefix(b"/").unwrap_or(path);
        let original = if path.windows(ESCAPED.len()).any(|window| window == ESCAPED) {
            let names: Vec<&[u8]> = below.split(|b| *b == b'/').collect();
            fidelity::key(&names, description.as_ref().ok().and_then(|d| d.key.as_ref()))
        } else {
            Key::from(below)
        };
        let mapped = self.remap.map(original.as_bytes());
        (Key::from(&*mapped.path).under(self.prefix.as_bytes()), description)
    }

    /// A listing of everything that may be in the way.
    pub fn listing(&self, job: &Job) -> Target {
        // Where the snapshot's parts are cut, the target's keys may well be cut, too.
        let splits = job.splits.iter().map(|key| key.under(self.prefix.as_bytes()));
        Target::new(self.bucket.clone(), &self.prefix, splits.collect::<Vec<_>>())
    }
}

/// Beginning of the names that stand for others, with the slash before it.
const ESCAPED: &[u8] = b"/.cistern~";

/// The first walk: decides and counts.
struct Survey<'a> {
    job: &'a Arc<Job>,
    to: &'a To,
    plan: Plan,
    decisions: Decisions,
    estimate: Estimate,
    doomed: Option<Doomed>,
    covered: Vec<u8>,
    /// Attributes that are being compared.
    heads: JoinSet<Result<(usize, u64, Found, bool)>>,
    odd: bool,
}

/// What the first walk yields.
struct Planned {
    plan: Plan,
    decisions: Decisions,
    doomed: Option<Doomed>,
    /// Whether keys are written that some stores are known to list under other names.
    odd: bool,
}

impl<'a> Survey<'a> {
    fn new(job: &'a Arc<Job>, to: &'a To, target: String) -> Result<Self> {
        let mut covered = match &job.covered {
            Some(covered) => job.covered_path(covered)?,
            None => Vec::new(),
        };
        if !covered.is_empty() {
            covered.push(b'/');
        }
        Ok(Survey {
            job,
            to,
            plan: job.plan(target),
            decisions: Decisions::default(),
            estimate: Estimate::default(),
            doomed: job.covered.as_ref().map(|_| Doomed::new()),
            covered,
            heads: JoinSet::new(),
            odd: false,
        })
    }

    async fn run(mut self) -> Result<Planned> {
        let job = self.job;
        let mut target = self.to.listing(job);
        for root in &job.roots {
            let mut walk = job.walk(root, Order::Key);
            while let Some(step) = next(job, &mut walk).await? {
                self.step(step, walk.path(), &mut target).await?;
            }
        }
        if self.doomed.is_some() {
            let (to, covered) = (self.to, std::mem::take(&mut self.covered));
            let doomed = &mut self.doomed;
            target.rest(|entry| passed(job, to, doomed, &covered, entry)).await?;
        }
        while let Some(head) = self.heads.join_next().await {
            self.compared(head)?;
        }
        self.estimate.close();
        self.plan.repository_requests = self.estimate.requests;
        self.plan.repository_bytes = self.estimate.bytes;
        if let Some(doomed) = &self.doomed {
            self.plan.delete = doomed.count;
            self.plan.delete_first.clone_from(&doomed.first);
        }
        Ok(Planned { plan: self.plan, decisions: self.decisions, doomed: self.doomed, odd: self.odd })
    }

    async fn step(&mut self, step: Step, path: &[u8], target: &mut Target) -> Result<()> {
        let report = |kind, why: &str| self.job.collector.add(kind, Key::from(path), why);
        match step {
            Step::Enter { .. } => {
                let at = self.decisions.reserve();
                self.decisions.set(at, Decision::Write);
            }
            Step::Leave => (),
            Step::Lost(why) => {
                self.decisions.reserve();
                if self.doomed.is_some() {
                    return Err(Error::Repository(cistern_repository::Error::damaged("tree", why)));
                }
                report(ExceptionKind::Damaged, &why);
            }
            Step::Refused(why) => report(ExceptionKind::NameRefused, why),
            Step::Node(found) if found.node().kind == NodeKind::File => {
                self.file(found, path, target).await?
            }
            Step::Node(found) => {
                let what = match found.node().kind {
                    NodeKind::Symlink => "a bucket holds no symbolic links",
                    NodeKind::Socket => return Ok(()),
                    NodeKind::Fifo => "a bucket holds no pipes",
                    _ => "a bucket holds no devices",
                };
                report(ExceptionKind::Unwritable, what);
            }
        }
        Ok(())
    }

    async fn file(&mut self, found: Found, path: &[u8], target: &mut Target) -> Result<()> {
        let at = self.decisions.reserve();
        let (key, description) = self.to.key(found.node(), path);
        let description = match description {
            Ok(description) if description.side => return Ok(()),
            Ok(description) => description,
            Err(why) => {
                self.job.collector.add(ExceptionKind::AttributeLost, &key, why);
                Description::default()
            }
        };
        let size = match lengths(&self.job.reader, found.node()) {
            Ok(size) => size,
            Err(why) => {
                self.job.collector.add(ExceptionKind::Damaged, &key, why);
                // It is in the snapshot all the same: what is there must not be deleted.
                let (job, to, doomed, covered) = (self.job, self.to, &mut self.doomed, &self.covered);
                let there = target.find(&key, |entry| passed(job, to, doomed, covered, entry)).await?;
                self.spare(there.as_ref());
                return Ok(());
            }
        };
        self.job.meter.found(size);
        self.job.meter.current(|| key.to_string());
        self.odd |= is_odd(key.as_bytes());
        let (job, to, doomed, covered) = (self.job, self.to, &mut self.doomed, &self.covered);
        let entry = target.find(&key, |entry| passed(job, to, doomed, covered, entry)).await?;
        self.spare(entry.as_ref());
        let Some(entry) = entry else {
            self.decided(at, Decision::Write, &found, size);
            return Ok(());
        };
        let node = found.node();
        let recorded = description.revision.as_ref().and_then(|revision| revision.etag());
        let equal = entry.size == size && recorded.is_some() && recorded == entry.revision.etag();
        let standing = Standing {
            same: if equal { Sameness::Equal } else { Sameness::Different },
            older: fidelity::time(entry.modified).instant() < node.mtime.instant(),
        };
        match decide(job.task.overwrite, Some(standing)) {
            Some(Decision::Same) if fidelity::time(entry.modified).instant() != node.mtime.instant() => {
                while self.heads.len() >= job.cx.concurrency.max(1)
                    && let Some(head) = self.heads.join_next().await
                {
                    self.compared(head)?;
                }
                let (job, bucket) = (job.clone(), to.bucket.clone());
                self.heads.spawn(async move {
                    let same = same_attributes(&job, &*bucket, &key, &found, description).await?;
                    Ok((at, size, found, same))
                });
            }
            Some(decision) => self.decided(at, decision, &found, size),
            None => return Err(Error::Broken("whether an object is equal was left open".into())),
        }
        Ok(())
    }

    fn compared(
        &mut self,
        head: Result<Result<(usize, u64, Found, bool)>, tokio::task::JoinError>,
    ) -> Result<()> {
        let head = head.map_err(|error| Error::Broken(format!("a comparison ended: {error}")))?;
        let (at, size, found, same) = head?;
        self.decided(at, if same { Decision::Same } else { Decision::Replace }, &found, size);
        Ok(())
    }

    fn decided(&mut self, at: usize, decision: Decision, found: &Found, size: u64) {
        self.decisions.set(at, decision);
        match decision {
            Decision::Leave | Decision::Same => self.plan.keep += 1,
            Decision::Write | Decision::Replace => {
                self.plan.write += 1;
                self.plan.replace += u64::from(decision == Decision::Replace);
                self.plan.write_bytes += size;
                self.estimate.add(&self.job.reader, found.node());
            }
        }
    }

    /// What the snapshot holds is not deleted, wherever in the listing it stood.
    fn spare(&mut self, entry: Option<&Entry>) {
        if let (Some(entry), Some(doomed)) = (entry, &mut self.doomed) {
            doomed.spare(entry.key.as_bytes(), &state(entry));
        }
    }
}

/// Takes note of an object that the walk has not asked for.
fn passed(job: &Job, to: &To, doomed: &mut Option<Doomed>, covered: &[u8], entry: &Entry) -> Result<()> {
    let Some(doomed) = doomed else { return Ok(()) };
    let Some(below) = entry.key.strip_prefix(to.prefix.as_bytes()) else { return Ok(()) };
    if below.starts_with(covered) && is_selected(job, below) {
        doomed.add(entry.key.as_bytes(), &state(entry))?;
    }
    Ok(())
}

/// Whether the task means an object of this key, were it in the snapshot: by the pieces of the key, as the walk does.
fn is_selected(job: &Job, key: &[u8]) -> bool {
    if job.select.takes_every_path() {
        return true;
    }
    let base = job.roots.first().map_or(&b""[..], |root| &root.base);
    job.select.object(&[base, b"/", key].concat())
}

/// An object's state, as text.
pub(crate) fn state(entry: &Entry) -> String {
    format!("{} {:?}", entry.size, entry.revision)
}

/// Whether some stores are known to list such a key under another name, or not at all, though they take it.
pub(crate) fn is_odd(key: &[u8]) -> bool {
    let mut pieces = key.split(|b| *b == b'/').peekable();
    let mut odd = false;
    while let Some(piece) = pieces.next() {
        let marker = piece.is_empty() && pieces.peek().is_none();
        odd |= !marker && !fidelity::is_natural(piece)
            || piece.iter().any(|b| b.is_ascii_control() || *b == b'\\');
    }
    odd
}

/// The next step of a walk, unless somebody asks to stop.
pub(crate) async fn next(job: &Job, walk: &mut Walk) -> Result<Option<Step>> {
    // As for directories: steps that are at hand are taken without waiting.
    job.check()?;
    tokio::select! {
        biased;
        step = walk.next() => step,
        () = job.stop.cancelled() => Err(Error::Cancelled),
    }
}

/// What a node and its side file say of an object.
pub(crate) async fn described(
    job: &Job,
    found: &Found,
    description: Description,
) -> Result<Description, String> {
    let Some(name) = &description.more else { return Ok(description) };
    let side = found.tree().get(name.as_bytes()).filter(|node| node.kind == NodeKind::File);
    let side = side.ok_or("the file with its attributes is missing")?;
    if lengths(&job.reader, side)? > MAX_SIDE as u64 {
        return Err("the file with its attributes is too long".into());
    }
    let mut json = Vec::new();
    for id in side.content.iter().flatten() {
        let blob = job.reader.blob(BlobKind::Data, id).await.map_err(|error| error.to_string())?;
        json.extend_from_slice(&blob);
    }
    description.with_side(&json)
}

/// Whether an object whose contents are equal has the attributes that it had.
async fn same_attributes(
    job: &Job,
    bucket: &dyn Bucket,
    key: &Key,
    found: &Found,
    description: Description,
) -> Result<bool> {
    let Ok(description) = described(job, found, description).await else { return Ok(false) };
    let there = match bucket.head(key).await {
        Ok((_, attributes)) => attributes,
        Err(error) if error.kind == ErrorKind::NoSuchKey => return Ok(false),
        Err(error) => return Err(Error::Target(error)),
    };
    let can = bucket.capabilities();
    if can.attributes && headers(&there) != headers(&description.attributes) {
        return Ok(false);
    }
    let Some(wanted) = description.attributes.tags.filter(|_| can.tags) else { return Ok(true) };
    match there.tag_count {
        Some(count) if count as usize != wanted.len() => Ok(false),
        Some(0) => Ok(true),
        _ => match bucket.tags(key).await {
            Ok(tags) => Ok(tags == wanted),
            // Who may not read them cannot tell that they differ.
            Err(error) if matches!(error.kind, ErrorKind::Denied | ErrorKind::Unsupported) => Ok(true),
            Err(error) => Err(Error::Target(error)),
        },
    }
}

/// Attributes without what only describes how they were read, and without tags.
pub(crate) fn headers(attributes: &Attributes) -> Attributes {
    Attributes { tag_count: None, tags: None, missing_meta: 0, ..attributes.clone() }
}
