//! A directory as the target: what is there is looked at and compared, then files are placed, deleted and verified.
//!
//! All of it runs on one thread that may wait for the operating system, beside the threads that decode and write.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use cistern_bucket::Key;
use cistern_repository::{Node, NodeKind};
use rustix::fs::Stat;
use rustix::io::Errno;
use std::os::fd::AsFd;
use tokio::runtime::Handle;
use tokio::task::JoinSet;

use super::attributes::Rules;
use super::beneath::{Dir, Site};
use super::compare::{self, Answers, Question, Questions};
use super::conflict::{Decision, Decisions, Sameness, Standing, decide};
use super::cursor::{Cursor, Ground, Mode};
use super::placer::{Name, Placer, System, kind, modified, open_root};
use super::plan::{Estimate, Links, Mapped, Remap};
use super::probe::{self, Profile};
use super::walk::{Found, Order, Step, Walk};
use super::window::lengths;
use super::{Job, Outcome, delete, outcome, place};
use crate::{Error, ExceptionKind, Overwrite, Phase, Plan, Result, fidelity};

/// Restores to a directory of this machine.
///
/// # Errors
/// The target cannot be used; `Refused`, `Cancelled`.
pub(crate) async fn restore(job: Arc<Job>, path: PathBuf) -> Result<Outcome> {
    restore_with(job, path, Arc::new(System)).await
}

/// As [`restore`], with other calls than the system's.
pub(crate) async fn restore_with(job: Arc<Job>, path: PathBuf, placer: Arc<dyn Placer>) -> Result<Outcome> {
    let remap = Arc::new(Remap::paths(&job.task.remap)?);
    let planned = {
        let (job, path, placer, remap) = (job.clone(), path.clone(), placer.clone(), remap.clone());
        blocking(move |handle| Survey::new(&job, &path, placer, &remap, handle)?.run()).await?
    };
    let Planned { mut plan, decisions } = planned;
    let doomed = match job.covered.is_some() {
        true => {
            let (job, path, placer) = (job.clone(), path.clone(), placer.clone());
            let doomed = blocking(move |handle| {
                let site = Arc::new(site(&job, placer, Profile::FULL));
                delete::doomed_files(&job, &path, site, &handle)
            });
            let doomed = doomed.await?;
            plan.delete = doomed.count;
            plan.delete_first.clone_from(&doomed.first);
            Some(doomed)
        }
        false => None,
    };
    if !job.approved(&plan).await? {
        return Ok(Outcome { plan, ..Outcome::default() });
    }
    job.meter.enter(Phase::Copying);
    blocking(move |handle| {
        std::fs::create_dir_all(&path).map_err(|source| failed("creating", &path, source))?;
        let fd = open_root(&path).map_err(|error| failed("opening", &path, error.into()))?;
        let profile = probe(&job, &*placer, &fd, &path)?;
        plan.writer = profile.describe();
        let site = Arc::new(site(&job, placer.clone(), profile));
        let root = Dir::root(site.clone(), fd);
        place::place(&job, &root, &remap, &decisions, &handle)?;
        let (mut deleted, mut kept_doomed) = (0, false);
        if let Some(doomed) = doomed.filter(|doomed| doomed.count > 0) {
            match job.may_delete() {
                true => deleted = delete::delete_files(&job, &root, &doomed, &handle)?,
                false => kept_doomed = true,
            }
        }
        job.meter.enter(Phase::Sealing);
        if profile.rename {
            let synced = root.fd().and_then(|fd| placer.sync(fd.as_fd()));
            synced.map_err(|error| failed("writing", &path, error.into()))?;
        }
        let mut verified = 0;
        if job.task.verify {
            job.meter.enter(Phase::Verifying);
            verified =
                Verify { job: &job, root: &root, remap: &remap, decisions: &decisions, handle }.run()?;
        }
        Ok(Outcome { deleted, kept_doomed, verified, ..outcome(plan, &site.counts) })
    })
    .await
}

/// Runs what may wait for the operating system on a thread of its own.
async fn blocking<T: Send + 'static>(work: impl FnOnce(Handle) -> Result<T> + Send + 'static) -> Result<T> {
    let handle = Handle::current();
    let task = tokio::task::spawn_blocking(move || work(handle));
    task.await.map_err(|error| Error::Broken(format!("the thread that places files ended: {error}")))?
}

pub(crate) fn failed(doing: &'static str, path: &Path, source: std::io::Error) -> Error {
    use std::os::unix::ffi::OsStrExt;
    Error::File { doing, path: Key::from(path.as_os_str().as_bytes()).to_string(), source }
}

fn site(job: &Job, placer: Arc<dyn Placer>, profile: Profile) -> Site {
    let rules =
        Rules { owners: job.task.privileged || job.cx.identity.uid == 0, privileged: job.task.privileged };
    Site::new(placer, profile, rules, job.collector.clone(), job.meter.clone(), job.stop.clone())
}

fn probe(job: &Job, placer: &dyn Placer, root: &OwnedFd, path: &Path) -> Result<Profile> {
    use std::hash::{BuildHasher, RandomState};
    let name = format!(".cistern-probe-{:016x}", RandomState::new().hash_one(0));
    let profile = probe::probe(placer, root.as_fd(), job.task.writer, &name);
    profile.map_err(|error| failed("writing in", path, error.into()))
}

/// What is in the way of a file, as far as a description tells.
pub(crate) fn standing(stat: &Stat, found: &Found, size: u64) -> Standing {
    let candidate = kind(stat) == NodeKind::File && stat.st_size as u64 == size;
    let same = match (candidate, size) {
        (true, 0) => Sameness::Equal,
        (true, _) => Sameness::Unread,
        (false, _) => Sameness::Different,
    };
    Standing { same, older: modified(stat) < found.node().mtime.instant() }
}

/// Whether a node that is no file can be made in a directory; nothing is said of one that is left out on purpose.
///
/// # Errors
/// Why it cannot.
pub(crate) fn can_be_made(node: &Node, rules: Rules) -> Result<bool, &'static str> {
    match node.kind {
        NodeKind::Symlink | NodeKind::Fifo => Ok(true),
        NodeKind::Device | NodeKind::CharDevice if rules.privileged => Ok(true),
        NodeKind::Device | NodeKind::CharDevice => Err("a device is made only with privileges"),
        // It means nothing without the program that listens; restic leaves it out as well.
        NodeKind::Socket => Ok(false),
        _ => Err("nobody knows what it is"),
    }
}

/// What is in the way of a link or special file.
pub(crate) fn standing_of_other(
    dir: &Dir,
    name: &[u8],
    stat: &Stat,
    found: &Found,
) -> rustix::io::Result<Standing> {
    let node = found.node();
    let same = match (kind(stat) == node.kind, node.kind) {
        (true, NodeKind::Symlink) => {
            let name = Name::new(name).map_err(|_| Errno::INVAL)?;
            *dir.site().placer.read_link(dir.fd()?.as_fd(), name)? == *node.link_target
        }
        (true, NodeKind::Device | NodeKind::CharDevice) => stat.st_rdev == node.device,
        (same, _) => same,
    };
    let same = if same { Sameness::Equal } else { Sameness::Different };
    Ok(Standing { same, older: modified(stat) < node.mtime.instant() })
}

/// The decision about a directory in whose place something has to stay.
pub(crate) const BLOCKED: Decision = Decision::Same;

/// Path and length of the directory part of a file's path in the target, and its name there.
pub(crate) fn split<'a>(mapped: &'a Mapped<'_>) -> (usize, &'a [u8]) {
    let slash = mapped.path.iter().rposition(|b| *b == b'/').unwrap_or(0);
    (slash, mapped.path.get(slash + 1..).unwrap_or_default())
}

/// The next step of a walk, unless somebody asks to stop.
pub(crate) fn next(job: &Job, walk: &mut Walk, handle: &Handle) -> Result<Option<Step>> {
    // A step that is at hand is taken without waiting, and there may be no end of those.
    job.check()?;
    handle.block_on(async {
        tokio::select! {
            biased;
            step = walk.next() => step,
            () = job.stop.cancelled() => Err(Error::Cancelled),
        }
    })
}

/// The first walk: decides and counts.
struct Survey<'a> {
    job: &'a Arc<Job>,
    remap: &'a Remap,
    handle: Handle,
    /// What is known of the target before anything is written in it.
    site: Arc<Site>,
    cursor: Cursor,
    plan: Plan,
    decisions: Decisions,
    estimate: Estimate,
    links: Links,
    questions: Questions,
    asked: JoinSet<Answers>,
}

/// What the first walk yields.
struct Planned {
    plan: Plan,
    decisions: Decisions,
}

impl<'a> Survey<'a> {
    fn new(
        job: &'a Arc<Job>,
        path: &Path,
        placer: Arc<dyn Placer>,
        remap: &'a Remap,
        handle: Handle,
    ) -> Result<Self> {
        let target = path.display().to_string();
        let site = Arc::new(site(job, placer, Profile::FULL));
        let root = match open_root(path) {
            Ok(fd) => Ground::Here(Dir::root(site.clone(), fd)),
            Err(Errno::NOENT) => Ground::Absent,
            Err(error) => return Err(failed("opening", path, error.into())),
        };
        let mut plan = job.plan(target);
        plan.writer = match job.task.writer {
            crate::TargetWriter::Auto => "chosen when the target is tried".into(),
            crate::TargetWriter::Random => "random".into(),
            crate::TargetWriter::Sequential => "sequential".into(),
        };
        Ok(Survey {
            job,
            remap,
            handle,
            site,
            cursor: Cursor::new(Mode::Look, job.task.overwrite, root),
            plan,
            decisions: Decisions::default(),
            estimate: Estimate::default(),
            links: Links::default(),
            questions: Questions::default(),
            asked: JoinSet::new(),
        })
    }

    fn run(mut self) -> Result<Planned> {
        let job = self.job;
        for root in &job.roots {
            let mut walk = job.walk(root, Order::Name);
            while let Some(step) = next(job, &mut walk, &self.handle)? {
                self.step(step, walk.path())?;
            }
            self.cursor.leave_all();
        }
        let rest = self.questions.take();
        self.ask(rest)?;
        while let Some(answers) = self.handle.block_on(self.asked.join_next()) {
            self.take(answers)?;
        }
        if let Some(error) = self.site.take_failure() {
            return Err(error);
        }
        job.check()?;
        self.estimate.close();
        self.plan.repository_requests = self.estimate.requests;
        self.plan.repository_bytes = self.estimate.bytes;
        Ok(Planned { plan: self.plan, decisions: self.decisions })
    }

    fn step(&mut self, step: Step, path: &[u8]) -> Result<()> {
        match step {
            Step::Enter { found, included } => {
                let at = self.decisions.reserve();
                self.cursor.enter(path.len(), found);
                let mapped = self.remap.map_directory(path);
                let blocked =
                    included && matches!(self.cursor.go(&mapped, mapped.path.len()), Ground::Blocked);
                self.decisions.set(at, if blocked { BLOCKED } else { Decision::Write });
                self.plan.replace += self.cursor.take_giving_way();
            }
            Step::Leave => self.cursor.leave(),
            Step::Lost(why) => {
                self.decisions.reserve();
                self.job.collector.add(ExceptionKind::Damaged, Key::from(path), why);
            }
            Step::Refused(why) => {
                self.job.collector.add(ExceptionKind::NameRefused, Key::from(path), why);
            }
            Step::Node(found) if found.node().kind == NodeKind::File => self.file(found, path)?,
            Step::Node(found) => self.other(&found, path),
        }
        Ok(())
    }

    /// Decides about a link or a special file.
    fn other(&mut self, found: &Found, path: &[u8]) {
        let at = self.decisions.reserve();
        match can_be_made(found.node(), self.site.rules) {
            Ok(true) => (),
            Ok(false) => return,
            Err(why) => return self.job.collector.add(ExceptionKind::Unwritable, Key::from(path), why),
        }
        let mapped = self.remap.map(path);
        let (end, name) = split(&mapped);
        let standing = match self.cursor.go(&mapped, end) {
            Ground::Absent => Ok(None),
            Ground::Here(dir) => look(&dir, name).and_then(|stat| match stat {
                Some(stat) => standing_of_other(&dir, name, &stat, found).map(Some),
                None => Ok(None),
            }),
            Ground::Blocked => {
                let detail = "its directory cannot be entered or made";
                return self.job.collector.add(ExceptionKind::Unwritable, Key::from(path), detail);
            }
        };
        match standing {
            Ok(standing) => {
                let decision = decide(self.job.task.overwrite, standing).unwrap_or(Decision::Leave);
                self.plan.replace += u64::from(decision == Decision::Replace);
                self.decisions.set(at, decision);
            }
            Err(error) => self.site.refused("looking at", &mapped.path, error),
        }
    }

    fn file(&mut self, found: Found, path: &[u8]) -> Result<()> {
        let at = self.decisions.reserve();
        self.job.meter.current(|| Key::from(path).to_string());
        let size = match lengths(&self.job.reader, found.node()) {
            Ok(size) => size,
            Err(why) => {
                self.job.collector.add(ExceptionKind::Damaged, Key::from(path), why);
                return Ok(());
            }
        };
        self.job.meter.found(size);
        tell_escaped(self.job, found.node(), path);
        let mapped = self.remap.map(path);
        let (end, name) = split(&mapped);
        let (dir, stat) = match self.cursor.go(&mapped, end) {
            Ground::Absent => (None, None),
            Ground::Here(dir) => match look(&dir, name) {
                Ok(stat) => (Some(dir), stat),
                Err(error) => {
                    self.site.refused("looking at", &mapped.path, error);
                    return Ok(());
                }
            },
            Ground::Blocked => {
                let detail = "its directory cannot be entered or made";
                self.job.collector.add(ExceptionKind::Unwritable, Key::from(path), detail);
                return Ok(());
            }
        };
        let standing = stat.map(|stat| standing(&stat, &found, size));
        match decide(self.job.task.overwrite, standing) {
            Some(decision) => self.decided(at, decision, &found, size, &mapped.path),
            None => {
                let dir = dir.ok_or_else(|| Error::Broken("a file stands in no directory".into()))?;
                let name = (*name != *found.node().name).then(|| name.into());
                if let Some(questions) = self.questions.add(Question { at, dir, name, found, size }) {
                    self.ask(questions)?;
                }
            }
        }
        Ok(())
    }

    fn decided(&mut self, at: usize, decision: Decision, found: &Found, size: u64, path: &[u8]) {
        self.decisions.set(at, decision);
        match decision {
            Decision::Leave | Decision::Same => self.plan.keep += 1,
            Decision::Write | Decision::Replace => {
                self.plan.write += 1;
                self.plan.replace += u64::from(decision == Decision::Replace);
                if self.links.earlier(found.node()).is_none() {
                    self.links.placed(found.node(), path);
                    self.plan.write_bytes += size;
                    self.estimate.add(&self.job.reader, found.node());
                }
            }
        }
    }

    /// Has contents compared by other threads, as many at once as there are processors.
    fn ask(&mut self, questions: Vec<Question>) -> Result<()> {
        if questions.is_empty() {
            return Ok(());
        }
        while self.asked.len() >= processors()
            && let Some(answers) = self.handle.block_on(self.asked.join_next())
        {
            self.take(answers)?;
        }
        let reader = self.job.reader.clone();
        self.asked.spawn_blocking_on(move || compare::answer(&reader, questions), &self.handle);
        Ok(())
    }

    fn take(&mut self, answers: Result<Answers, tokio::task::JoinError>) -> Result<()> {
        let answers = answers.map_err(|error| Error::Broken(format!("the comparison ended: {error}")))?;
        for (question, same) in answers {
            // What cannot be read is not known to be equal.
            let same = if same == Ok(true) { Sameness::Equal } else { Sameness::Different };
            let standing = Standing { same, older: false };
            if let Some(decision) = decide(self.job.task.overwrite, Some(standing)) {
                self.decided(question.at, decision, &question.found, question.size, b"");
            }
        }
        Ok(())
    }
}

pub(crate) fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// What has this name in a directory.
pub(crate) fn look(dir: &Dir, name: &[u8]) -> rustix::io::Result<Option<Stat>> {
    let name = Name::new(name).map_err(|_| Errno::INVAL)?;
    dir.site().placer.stat(dir.fd()?.as_fd(), name)
}

/// Tells of an object whose key no file system can hold that it is placed under the name that stands for it.
fn tell_escaped(job: &Job, node: &Node, path: &[u8]) {
    if !path.windows(ESCAPED.len()).any(|window| window == ESCAPED) {
        return;
    }
    if let Ok(description) = fidelity::Description::of(node)
        && !description.side
        && let Some(key) = description.key
    {
        let detail = format!("no directory can hold this key: placed as {}", Key::from(path));
        job.escaped.fetch_add(1, Relaxed);
        job.collector.add(ExceptionKind::NameRefused, key, detail);
    }
}

/// Beginning of the names that stand for others, with the slash before it.
const ESCAPED: &[u8] = b"/.cistern~";

/// The last walk: reads back what was placed, or found equal.
struct Verify<'a> {
    job: &'a Arc<Job>,
    root: &'a Arc<Dir>,
    remap: &'a Remap,
    decisions: &'a Decisions,
    handle: Handle,
}

impl Verify<'_> {
    /// Yields how many files hold what they should.
    fn run(&self) -> Result<u64> {
        let mut cursor = Cursor::new(Mode::Look, Overwrite::Never, Ground::Here(self.root.clone()));
        let (mut questions, mut asked) = (Questions::default(), JoinSet::new());
        let (mut at, mut equal) = (0, 0);
        for root in &self.job.roots {
            let mut walk = self.job.walk(root, Order::Name);
            while let Some(step) = next(self.job, &mut walk, &self.handle)? {
                let found = match step {
                    Step::Node(found) if found.node().kind == NodeKind::File => found,
                    Step::Enter { .. } | Step::Lost(_) | Step::Node(_) => {
                        at += 1;
                        continue;
                    }
                    _ => continue,
                };
                at += 1;
                if self.decisions.get(at - 1) == Decision::Leave {
                    continue;
                }
                let Ok(size) = lengths(&self.job.reader, found.node()) else { continue };
                let mapped = self.remap.map(walk.path());
                let (end, name) = split(&mapped);
                let Ground::Here(dir) = cursor.go(&mapped, end) else {
                    self.missing(&self.root.site().show(&mapped.path), "its directory is not there");
                    continue;
                };
                let name = (*name != *found.node().name).then(|| name.into());
                if let Some(full) = questions.add(Question { at, dir, name, found, size }) {
                    self.ask(&mut asked, full, &mut equal)?;
                }
            }
            cursor.leave_all();
        }
        self.ask(&mut asked, questions.take(), &mut equal)?;
        while let Some(answers) = self.handle.block_on(asked.join_next()) {
            equal += self.judge(answers)?;
        }
        self.job.check()?;
        Ok(equal)
    }

    fn ask(&self, asked: &mut Asked, questions: Vec<Question>, equal: &mut u64) -> Result<()> {
        while asked.len() >= processors()
            && let Some(answers) = self.handle.block_on(asked.join_next())
        {
            *equal += self.judge(answers)?;
        }
        let reader = self.job.reader.clone();
        asked.spawn_blocking_on(move || compare::answer(&reader, questions), &self.handle);
        Ok(())
    }

    fn judge(&self, answers: Result<Answers, tokio::task::JoinError>) -> Result<u64> {
        let answers = answers.map_err(|error| Error::Broken(format!("the comparison ended: {error}")))?;
        let mut equal = 0;
        for (question, same) in answers {
            let name = question.name.as_deref().unwrap_or(&question.found.node().name);
            let path = || question.dir.site().show(&question.dir.path_of(name));
            match same {
                Ok(true) => equal += 1,
                Ok(false) => self.job.collector.add(
                    ExceptionKind::Differs,
                    path(),
                    "what was read back is not what was stored",
                ),
                Err(error) => {
                    let detail = format!("it cannot be read back: {}", std::io::Error::from(error));
                    self.missing(&path(), &detail);
                }
            }
        }
        Ok(equal)
    }

    /// Tells of a file that is not there, unless it was said already that it could not be placed.
    fn missing(&self, path: &str, detail: &str) {
        if self.job.collector.has_told(path) != Some(true) {
            self.job.collector.add(ExceptionKind::Differs, path, detail);
        }
    }
}

type Asked = JoinSet<Answers>;
