//! The end of a restore to a bucket: what was planned is deleted, and what was written is looked at once more.

use std::sync::Arc;

use bytes::Bytes;
use cistern_bucket::{Bucket, Entry, GetOptions};
use cistern_repository::sha256::{Job as HashJob, Lanes, Stream};
use cistern_repository::{BlobKind, NodeKind};
use tokio::task::JoinSet;

use super::Job;
use super::bucket::{To, is_odd, next, state};
use super::conflict::{Decision, Decisions};
use super::delete::Doomed;
use super::object::is_md5;
use super::walk::{Found, Order, Step};
use super::window::lengths;
use crate::{Error, ExceptionKind, Result};

/// Keys that are deleted at once.
const BATCH: usize = 1_000;

/// Deletes what was planned, if it is as it was. Yields how many were deleted.
pub(crate) async fn delete(job: &Arc<Job>, to: &To, doomed: &Doomed) -> Result<u64> {
    let mut target = to.listing(job);
    let mut deleted = 0;
    let mut batch = Vec::new();
    loop {
        let page = target.page().await?;
        let ended = page.is_none();
        let goes = |entry: &Entry| doomed.contains(entry.key.as_bytes(), &state(entry));
        batch.extend(page.into_iter().flatten().filter(goes).map(|entry| entry.key));
        while batch.len() >= BATCH || (ended && !batch.is_empty()) {
            job.check()?;
            let rest = batch.split_off(batch.len().min(BATCH));
            for outcome in to.bucket.delete_many(&batch).await {
                match outcome.result {
                    Ok(()) => deleted += 1,
                    Err(error) => job.collector.add(ExceptionKind::Unwritable, &outcome.key, error),
                }
            }
            batch = rest;
        }
        if ended {
            return Ok(deleted);
        }
    }
}

/// The last walk: every object that was written, or found equal, is listed under its key and with its size; if it is to be
/// verified, also with the entity tag that proves its contents, or it is read back. Yields how many are so.
pub(crate) async fn confirm(job: &Arc<Job>, to: &To, decisions: &Decisions) -> Result<u64> {
    let mut target = to.listing(job);
    let (mut at, mut equal) = (0, 0);
    let mut reads: JoinSet<Result<bool>> = JoinSet::new();
    for root in &job.roots {
        let mut walk = job.walk(root, Order::Key);
        while let Some(step) = next(job, &mut walk).await? {
            let found = match step {
                Step::Node(found) if found.node().kind == NodeKind::File => found,
                Step::Enter { .. } | Step::Lost(_) => {
                    at += 1;
                    continue;
                }
                _ => continue,
            };
            at += 1;
            if decisions.get(at - 1) == Decision::Leave {
                continue;
            }
            let (key, description) = to.key(found.node(), walk.path());
            let Ok(size) = lengths(&job.reader, found.node()) else { continue };
            let Some(entry) = target.find(&key, |_| Ok(())).await? else {
                if job.collector.has_told(&key) != Some(true) {
                    let why = "the target does not list it under this key";
                    let kind = match is_odd(key.as_bytes()) {
                        true => ExceptionKind::NameRefused,
                        false => ExceptionKind::Differs,
                    };
                    job.collector.add(kind, &key, why);
                }
                continue;
            };
            if entry.size != size {
                let detail = format!("the target holds {} bytes of {size}", entry.size);
                job.collector.add(ExceptionKind::Differs, &key, detail);
                continue;
            }
            if !job.task.verify {
                continue;
            }
            let recorded = description.ok().and_then(|d| d.revision);
            let tag = entry.revision.etag().filter(|tag| is_md5(tag));
            if tag.is_some() && recorded.as_ref().and_then(|revision| revision.etag()) == tag {
                equal += 1;
                continue;
            }
            while reads.len() >= job.cx.concurrency.max(1)
                && let Some(read) = reads.join_next().await
            {
                equal += u64::from(judge_read(read)?);
            }
            reads.spawn(read_back(job.clone(), to.bucket.clone(), entry, found));
        }
    }
    while let Some(read) = reads.join_next().await {
        equal += u64::from(judge_read(read)?);
    }
    job.check()?;
    Ok(equal)
}

fn judge_read(read: Result<Result<bool>, tokio::task::JoinError>) -> Result<bool> {
    read.map_err(|error| Error::Broken(format!("reading back ended: {error}")))?
}

/// Reads an object in the state that was listed, and compares it blob by blob with what the repository knows.
async fn read_back(job: Arc<Job>, bucket: Arc<dyn Bucket>, entry: Entry, found: Found) -> Result<bool> {
    let options = GetOptions { revision: Some(entry.revision.clone()), ..GetOptions::default() };
    let mut body = bucket.get(&entry.key, &options).await.map_err(Error::Target)?.body;
    let mut ids = found.node().content.iter().flatten();
    let lanes = Lanes::off();
    let mut same = true;
    let mut blob: Option<(Stream, u64, [u8; 32])> = None;
    while let Some(piece) = body.next().await {
        job.check()?;
        let mut piece: Bytes = piece.map_err(Error::Target)?;
        while !piece.is_empty() && same {
            let (mut hash, left, id) = match blob.take() {
                Some(blob) => blob,
                None => match ids.next() {
                    Some(id) => {
                        let length = job.reader.raw_length(BlobKind::Data, id).unwrap_or_default();
                        (Stream::new(), u64::from(length), *id.as_bytes())
                    }
                    None => {
                        same = false;
                        break;
                    }
                },
            };
            let part = piece.split_to(piece.len().min(left as usize));
            lanes.run(&mut [HashJob::new(&mut hash, &part)]);
            match left - part.len() as u64 {
                0 => same &= hash.finish() == id,
                left => blob = Some((hash, left, id)),
            }
        }
    }
    same &= blob.is_none() && ids.next().is_none();
    if !same {
        let why = "what was read back is not what was stored";
        job.collector.add(ExceptionKind::Differs, &entry.key, why);
    }
    Ok(same)
}
