//! A bucket that fails on cue: it wraps any other, counts what is asked of it, and breaks what it is told to.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use cistern_bucket::{
    Attributes, Body, Bucket, Capabilities, Checksums, DeleteOutcome, Entry, Error, ErrorKind, Get,
    GetOptions, Key, Ledger, ListRequest, Page, PartId, Put, PutOptions, Result, Retention, Revision, Tags,
    Upload, Verb,
};
use futures::{StreamExt, stream};

use crate::rule::decide;
use crate::{Request, Rule};

/// What goes wrong with a request.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fault {
    /// It fails, and has no effect.
    Error(ErrorKind),
    /// It takes effect, but the answer is lost and this error comes instead.
    Lost(ErrorKind),
    /// It is answered this much later (paused time of tokio passes at once).
    Delay(Duration),
    /// It is never answered.
    Hang,
    /// The body of a get ends after so many bytes.
    TruncatedBody(u64),
    /// The body of a get breaks with an error after so many bytes.
    BrokenBody(u64, ErrorKind),
    /// The body of a get has the right length, and a wrong byte at this place (counted from its start, modulo
    /// its length).
    WrongBody(u64),
    /// A page ends after so many entries and says that nothing follows.
    ShortListing(usize),
    /// A page holds its first entry twice.
    RepeatedEntry,
    /// A page is in descending order.
    UnsortedListing,
    /// The process dies before this request takes effect: it and all later ones fail without effect.
    Die,
    /// The process dies right after this request took effect: it and all later ones fail.
    DieAfter,
}

/// A bucket that fails on cue. Without rules it behaves as the bucket below, but for batch deletions,
/// which it hands on key by key, so that a process can die between two of them.
#[derive(Debug)]
pub struct Faulty {
    inner: Arc<dyn Bucket>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    rules: Vec<Rule<Fault>>,
    log: Vec<Request>,
    dead: bool,
}

impl Faulty {
    /// Wraps `inner`; nothing fails yet.
    pub fn new(inner: Arc<dyn Bucket>) -> Arc<Self> {
        Arc::new(Faulty { inner, state: Mutex::default() })
    }

    /// Adds a rule. The first rule that meets a request decides; all rules count it.
    pub fn inject(&self, rule: Rule<Fault>) {
        self.state().rules.push(rule);
    }

    /// The process dies at the `n`-th request that changes something (from 0), before or after its effect.
    pub fn die_at_write(&self, n: u64, after_effect: bool) {
        let fault = if after_effect { Fault::DieAfter } else { Fault::Die };
        self.inject(Rule::new(fault).writes().nth(n));
    }

    /// Forgets rules, log and death.
    pub fn reset(&self) {
        *self.state() = State::default();
    }

    /// Every request since the start, in order.
    pub fn requests(&self) -> Vec<Request> {
        self.state().log.clone()
    }

    /// Number of requests since the start.
    pub fn count(&self) -> u64 {
        self.state().log.len() as u64
    }

    /// Number of requests since the start that change something.
    pub fn writes(&self) -> u64 {
        self.state().log.iter().filter(|request| request.write).count() as u64
    }

    /// Whether a fault has killed the process.
    pub fn is_dead(&self) -> bool {
        self.state().dead
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn error(&self, kind: ErrorKind, verb: Verb, key: &Key) -> Error {
        let error = Error::new(kind, verb, self.inner.name()).detail("injected");
        if key.is_empty() { error } else { error.key(key) }
    }

    fn death(&self, verb: Verb, key: &Key) -> Error {
        self.error(ErrorKind::Cancelled, verb, key).detail("the process is dead")
    }

    /// Notes a request and finds out what becomes of it.
    fn admit(&self, verb: Verb, write: bool, key: &Key) -> Result<Option<Fault>> {
        let mut state = self.state();
        if state.dead {
            return Err(self.death(verb, key));
        }
        let request = Request { verb, key: key.clone(), write };
        let fault = decide(&mut state.rules, &request);
        state.log.push(request);
        state.dead |= matches!(fault, Some(Fault::Die | Fault::DieAfter));
        Ok(fault)
    }

    /// Runs a request as the rules will have it. Faults of bodies and pages come back to the caller.
    async fn run<T>(
        &self,
        (verb, write, key): (Verb, bool, &Key),
        work: impl Future<Output = Result<T>>,
    ) -> Result<(T, Option<Fault>)> {
        let fault = self.admit(verb, write, key)?;
        match fault {
            Some(Fault::Error(kind)) => return Err(self.error(kind, verb, key)),
            Some(Fault::Die) => return Err(self.death(verb, key)),
            Some(Fault::Hang) => std::future::pending().await,
            Some(Fault::Delay(duration)) => tokio::time::sleep(duration).await,
            _ => {}
        }
        let answer = work.await;
        match fault {
            Some(Fault::Lost(kind)) => answer.and(Err(self.error(kind, verb, key))),
            Some(Fault::DieAfter) => answer.and(Err(self.death(verb, key))),
            _ => Ok((answer?, fault)),
        }
    }

    async fn write<T>(&self, verb: Verb, key: &Key, work: impl Future<Output = Result<T>>) -> Result<T> {
        Ok(self.run((verb, true, key), work).await?.0)
    }

    async fn read<T>(&self, verb: Verb, key: &Key, work: impl Future<Output = Result<T>>) -> Result<T> {
        Ok(self.run((verb, false, key), work).await?.0)
    }

    /// The body of a get with its fault.
    fn spoil(&self, key: &Key, body: Body, fault: Option<Fault>) -> Body {
        let length = body.length();
        let pieces = stream::unfold(body, |mut body| async move { Some((body.next().await?, body)) });
        let (limit, error) = match fault {
            Some(Fault::TruncatedBody(limit)) => (limit, None),
            Some(Fault::BrokenBody(limit, kind)) => (limit, Some(self.error(kind, Verb::Get, key))),
            Some(Fault::WrongBody(place)) if length > 0 => {
                let mut left = place % length;
                let pieces = pieces.map(move |piece| {
                    let piece = piece?;
                    let here = left < piece.len() as u64;
                    let wrong = if here { flipped(&piece, left as usize) } else { piece.clone() };
                    left = if here { u64::MAX } else { left.saturating_sub(piece.len() as u64) };
                    Ok(wrong)
                });
                return Body::new(length, pieces.boxed());
            }
            _ => return Body::new(length, pieces.boxed()),
        };
        let cut = pieces.scan(limit, |left, piece| {
            let piece = piece.map(|piece| piece.slice(..piece.len().min(*left as usize)));
            *left -= piece.as_ref().map_or(0, |piece| piece.len() as u64);
            futures::future::ready(Some(piece))
        });
        let cut =
            cut.take_while(|piece| futures::future::ready(!matches!(piece, Ok(piece) if piece.is_empty())));
        Body::new(length, cut.chain(stream::iter(error.map(Err))).boxed())
    }
}

fn flipped(piece: &Bytes, at: usize) -> Bytes {
    let mut wrong = BytesMut::from(piece.as_ref());
    wrong[at] ^= 0x20;
    wrong.freeze()
}

#[async_trait]
impl Bucket for Faulty {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    fn ledger(&self) -> &Ledger {
        self.inner.ledger()
    }

    async fn probe(&self) -> Result<()> {
        self.read(Verb::Bucket, &Key::default(), self.inner.probe()).await
    }

    async fn create(&self) -> Result<()> {
        self.write(Verb::Bucket, &Key::default(), self.inner.create()).await
    }

    async fn list(&self, request: &ListRequest) -> Result<Page> {
        let (mut page, fault) =
            self.run((Verb::List, false, &request.prefix), self.inner.list(request)).await?;
        match fault {
            Some(Fault::ShortListing(entries)) => {
                page.entries.truncate(entries);
                page.next = None;
            }
            Some(Fault::RepeatedEntry) => page.entries.extend_from_within(..page.entries.len().min(1)),
            Some(Fault::UnsortedListing) => page.entries.reverse(),
            _ => {}
        }
        Ok(page)
    }

    async fn head(&self, key: &Key) -> Result<(Entry, Attributes)> {
        self.read(Verb::Head, key, self.inner.head(key)).await
    }

    async fn get(&self, key: &Key, options: &GetOptions) -> Result<Get> {
        let (get, fault) = self.run((Verb::Get, false, key), self.inner.get(key, options)).await?;
        Ok(Get { body: self.spoil(key, get.body, fault), ..get })
    }

    async fn checksums(&self, key: &Key, revision: &Revision) -> Result<Checksums> {
        self.read(Verb::Head, key, self.inner.checksums(key, revision)).await
    }

    async fn put(&self, key: &Key, body: &[Bytes], options: &PutOptions) -> Result<Put> {
        self.write(Verb::Put, key, self.inner.put(key, body, options)).await
    }

    async fn begin_upload(&self, key: &Key, options: &PutOptions) -> Result<Upload> {
        self.write(Verb::Multipart, key, self.inner.begin_upload(key, options)).await
    }

    async fn upload_part(&self, upload: &Upload, number: u32, body: &[Bytes]) -> Result<PartId> {
        self.write(Verb::Put, &upload.key, self.inner.upload_part(upload, number, body)).await
    }

    async fn complete_upload(&self, upload: &Upload, parts: &[PartId], options: &PutOptions) -> Result<Put> {
        self.write(Verb::Multipart, &upload.key, self.inner.complete_upload(upload, parts, options)).await
    }

    async fn abort_upload(&self, upload: &Upload) -> Result<()> {
        self.write(Verb::Multipart, &upload.key, self.inner.abort_upload(upload)).await
    }

    async fn copy(&self, from: &Key, to: &Key) -> Result<Put> {
        self.write(Verb::Copy, to, self.inner.copy(from, to)).await
    }

    async fn delete(&self, key: &Key) -> Result<()> {
        self.write(Verb::Delete, key, self.inner.delete(key)).await
    }

    async fn delete_many(&self, keys: &[Key]) -> Vec<DeleteOutcome> {
        let mut outcomes = Vec::with_capacity(keys.len());
        for key in keys {
            outcomes.push(DeleteOutcome { key: key.clone(), result: self.delete(key).await });
        }
        outcomes
    }

    async fn tags(&self, key: &Key) -> Result<Tags> {
        self.read(Verb::Tags, key, self.inner.tags(key)).await
    }

    async fn retention(&self, key: &Key) -> Result<Option<Retention>> {
        self.read(Verb::Retention, key, self.inner.retention(key)).await
    }

    async fn set_retention(&self, key: &Key, retention: &Retention) -> Result<()> {
        self.write(Verb::Retention, key, self.inner.set_retention(key, retention)).await
    }
}

#[cfg(test)]
mod tests {
    use cistern_bucket::Memory;

    use super::*;

    const CONTENT: &str = "0123456789";

    fn bucket(rule: Rule<Fault>) -> (Arc<Memory>, Arc<Faulty>) {
        let memory = Arc::new(Memory::new("memory"));
        for key in ["a", "b", "c"] {
            memory.insert(key, CONTENT, Attributes::default());
        }
        let faulty = Faulty::new(memory.clone());
        faulty.inject(rule);
        (memory, faulty)
    }

    async fn text(bucket: &Faulty, key: &str) -> Result<Bytes> {
        bucket.get(&key.into(), &GetOptions::default()).await?.body.bytes().await
    }

    async fn put(bucket: &Faulty, key: &str) -> Result<Put> {
        bucket.put(&key.into(), &["new".into()], &PutOptions::default()).await
    }

    #[tokio::test]
    async fn rules_meet_the_requests_that_they_name_and_no_others() {
        let (_, faulty) =
            bucket(Rule::new(Fault::Error(ErrorKind::Throttled)).verb(Verb::Get).prefix("b").nth(1));
        assert_eq!(text(&faulty, "a").await.unwrap(), CONTENT);
        assert_eq!(text(&faulty, "b").await.unwrap(), CONTENT);
        faulty.head(&"b".into()).await.unwrap();
        assert_eq!(text(&faulty, "b").await.unwrap_err().kind, ErrorKind::Throttled);
        assert_eq!(text(&faulty, "b").await.unwrap(), CONTENT);
        put(&faulty, "d").await.unwrap();
        assert_eq!((faulty.count(), faulty.writes()), (6, 1));
        assert_eq!(faulty.requests()[5], Request { verb: Verb::Put, key: "d".into(), write: true });
        faulty.reset();
        faulty.inject(Rule::new(Fault::Error(ErrorKind::Denied)).writes().range(1..3));
        let results = [
            put(&faulty, "a").await,
            put(&faulty, "a").await,
            put(&faulty, "a").await,
            put(&faulty, "a").await,
        ];
        assert_eq!(results.map(|result| result.is_ok()), [true, false, false, true]);
    }

    #[tokio::test]
    async fn bodies_are_cut_broken_and_falsified() {
        for (fault, expected) in [
            (Fault::TruncatedBody(4), Err(ErrorKind::BadAnswer)),
            (Fault::TruncatedBody(0), Err(ErrorKind::BadAnswer)),
            (Fault::TruncatedBody(10), Ok(CONTENT)),
            (Fault::BrokenBody(4, ErrorKind::Unreachable), Err(ErrorKind::Unreachable)),
            (Fault::WrongBody(13), Ok("012\u{13}456789")),
        ] {
            let (_, faulty) = bucket(Rule::new(fault));
            let answer = text(&faulty, "a").await;
            assert_eq!(
                answer.as_deref().map_err(|error| error.kind),
                expected.map(str::as_bytes),
                "{fault:?}"
            );
        }
    }

    #[tokio::test]
    async fn listings_lie() {
        for (fault, expected) in [
            (Fault::ShortListing(1), vec!["a"]),
            (Fault::RepeatedEntry, vec!["a", "b", "c", "a"]),
            (Fault::UnsortedListing, vec!["c", "b", "a"]),
        ] {
            let (_, faulty) = bucket(Rule::new(fault).verb(Verb::List));
            let page = faulty.list(&ListRequest::default()).await.unwrap();
            let keys: Vec<String> = page.entries.iter().map(|entry| entry.key.to_string()).collect();
            assert_eq!(
                (keys, page.next),
                (expected.into_iter().map(String::from).collect(), None),
                "{fault:?}"
            );
        }
    }

    #[tokio::test]
    async fn answers_get_lost_and_processes_die_before_or_after_the_effect() {
        let (memory, faulty) = bucket(Rule::new(Fault::Lost(ErrorKind::Unreachable)).verb(Verb::Put));
        assert_eq!(put(&faulty, "d").await.unwrap_err().kind, ErrorKind::Unreachable);
        assert_eq!(memory.content(&"d".into()).unwrap(), "new");
        for (after, left) in [(false, vec!["b", "c"]), (true, vec!["c"])] {
            let (memory, faulty) = bucket(Rule::new(Fault::Delay(Duration::ZERO)).verb(Verb::Tags));
            faulty.die_at_write(1, after);
            let outcomes = faulty.delete_many(&["a".into(), "b".into(), "c".into()]).await;
            assert_eq!(outcomes.iter().map(|o| o.result.is_ok()).collect::<Vec<_>>(), [true, false, false]);
            assert!(faulty.is_dead());
            assert_eq!(memory.keys(), left.into_iter().map(Key::from).collect::<Vec<_>>());
            assert_eq!(text(&faulty, "c").await.unwrap_err().kind, ErrorKind::Cancelled);
            assert_eq!(faulty.count(), 2);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn time_passes_or_never_ends() {
        let (_, faulty) = bucket(Rule::new(Fault::Delay(Duration::from_secs(60))).nth(0));
        faulty.inject(Rule::new(Fault::Hang).nth(1));
        let start = tokio::time::Instant::now();
        text(&faulty, "a").await.unwrap();
        assert_eq!(start.elapsed(), Duration::from_secs(60));
        assert!(tokio::time::timeout(Duration::from_secs(3_600), text(&faulty, "a")).await.is_err());
        text(&faulty, "a").await.unwrap();
    }
}
