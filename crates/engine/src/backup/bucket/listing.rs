//! Lists a bucket to its end, several ranges at once, and believes nothing that a listing must not say.
//!
//! Ranges are listed ahead of the reader in a sliding window: each has a bounded buffer of pages, and the pages come
//! out in the order of their keys. Every error is an error of the whole listing.

use std::collections::VecDeque;
use std::sync::Arc;

use cistern_bucket::{Bucket, Entry, Error as BucketError, ErrorKind, Key, ListRequest, Verb};
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use crate::parts::Bounds;
use crate::{Error, Result};

/// Ranges that are listed at once.
const WINDOW: usize = 4;
/// Pages that one range may be ahead of the reader.
const AHEAD: usize = 6;
/// Pages without any entry, one after the other, after which a listing counts as endless.
const MAX_EMPTY_PAGES: usize = 100;
/// No store has longer keys, in bytes.
const MAX_KEY: usize = 64 << 10;

/// A running listing of all keys that begin with a prefix.
pub(crate) struct Listing {
    bucket: Arc<dyn Bucket>,
    prefix: Key,
    waiting: VecDeque<Bounds>,
    running: VecDeque<Range>,
}

/// What comes from a range that is listed.
enum Listed {
    Page(Vec<Entry>),
    /// The range was listed to its end. A range that only falls silent was not.
    End,
}

struct Range {
    pages: mpsc::Receiver<Result<Listed>>,
    _task: AbortOnDropHandle<()>,
}

impl Listing {
    /// Begins to list. `splits` (whole keys) cut the listing into ranges where the store can list from any key on;
    /// those that do not ascend or lie outside of the prefix are left out.
    pub fn new(bucket: Arc<dyn Bucket>, prefix: &Key, splits: impl IntoIterator<Item = Key>) -> Self {
        let mut waiting = VecDeque::new();
        let mut after: Option<Key> = None;
        if bucket.capabilities().list_after {
            for split in splits {
                let ascends = after.as_ref().is_none_or(|after| *after < split);
                if ascends && split.as_bytes().starts_with(prefix.as_bytes()) && split != *prefix {
                    waiting.push_back(Bounds { after: after.replace(split.clone()), until: Some(split) });
                }
            }
        }
        waiting.push_back(Bounds { after, until: None });
        Listing { bucket, prefix: prefix.clone(), waiting, running: VecDeque::new() }
    }

    /// The next page, possibly empty; `None` when everything was listed to its end.
    ///
    /// # Errors
    /// `Source` with what the store said, or with what is wrong in what it said.
    pub async fn next(&mut self) -> Result<Option<Vec<Entry>>> {
        loop {
            while self.running.len() < WINDOW
                && let Some(bounds) = self.waiting.pop_front()
            {
                let (sender, pages) = mpsc::channel(AHEAD);
                let task = tokio::spawn(list(self.bucket.clone(), self.prefix.clone(), bounds, sender));
                self.running.push_back(Range { pages, _task: AbortOnDropHandle::new(task) });
            }
            let Some(range) = self.running.front_mut() else { return Ok(None) };
            match range.pages.recv().await {
                Some(Ok(Listed::Page(page))) => return Ok(Some(page)),
                Some(Ok(Listed::End)) => drop(self.running.pop_front()),
                Some(Err(error)) => return Err(error),
                None => return Err(Error::Broken("the listing of a range broke off".into())),
            }
        }
    }
}

/// Lists one range page by page.
async fn list(bucket: Arc<dyn Bucket>, prefix: Key, bounds: Bounds, pages: mpsc::Sender<Result<Listed>>) {
    let mut check = Check { last: bounds.after.clone(), token: None, empty: 0 };
    loop {
        let request = ListRequest {
            prefix: prefix.clone(),
            after: bounds.after.clone(),
            token: check.token.clone(),
            limit: None,
        };
        let page = match bucket.list(&request).await {
            Ok(page) => page,
            Err(error) => {
                let _ = pages.send(Err(Error::Source(error))).await;
                return;
            }
        };
        let (mut entries, next) = (page.entries, page.next);
        if let Err(why) = check.page(&prefix, &entries, next.as_deref()) {
            let error = BucketError::new(ErrorKind::BadAnswer, Verb::List, bucket.name()).detail(why);
            let _ = pages.send(Err(Error::Source(error))).await;
            return;
        }
        let within = entries.partition_point(|entry| !bounds.is_behind(entry.key.as_bytes()));
        let done = next.is_none() || within < entries.len();
        entries.truncate(within);
        // An error means that nobody wants to know any more.
        if pages.send(Ok(Listed::Page(entries))).await.is_err() {
            return;
        }
        if done {
            let _ = pages.send(Ok(Listed::End)).await;
            return;
        }
    }
}

/// What was seen of a listing so far.
struct Check {
    last: Option<Key>,
    token: Option<String>,
    empty: usize,
}

impl Check {
    /// Takes in a page, or tells what is wrong with it.
    fn page(&mut self, prefix: &Key, entries: &[Entry], next: Option<&str>) -> Result<(), String> {
        for Entry { key, .. } in entries {
            if !key.as_bytes().starts_with(prefix.as_bytes()) {
                return Err(format!("the listing holds {key}, which does not begin with {prefix}"));
            }
            if key.is_empty() || key.len() > MAX_KEY {
                return Err(format!("the listing holds a key of {} bytes", key.len()));
            }
            if let Some(last) = &self.last
                && key <= last
            {
                return Err(format!("the listing is out of order: {key} comes after {last}"));
            }
            self.last = Some(key.clone());
        }
        self.empty = if entries.is_empty() { self.empty + 1 } else { 0 };
        if next.is_some() && (next == self.token.as_deref() || self.empty > MAX_EMPTY_PAGES) {
            return Err("the listing does not get on".into());
        }
        self.token = next.map(str::to_owned);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cistern_bucket::Revision;
    use jiff::Timestamp;

    fn entries(keys: &[&str]) -> Vec<Entry> {
        let entry = |key: &&str| Entry {
            key: Key::from(*key),
            size: 0,
            modified: Timestamp::UNIX_EPOCH,
            revision: Revision::Unknown,
            class: None,
            attributes: None,
        };
        keys.iter().map(entry).collect()
    }

    #[test]
    fn a_listing_that_lies_is_found_out() {
        let table: [(&str, &[&[&str]], &str); 6] = [
            ("p/", &[&["p/b", "p/a"]], "out of order"),
            ("p/", &[&["p/a"], &["p/a"]], "out of order"),
            ("p/", &[&["p/a", "q"]], "does not begin"),
            ("p/", &[&["p/after"]], "out of order"),
            ("", &[&[""]], "0 bytes"),
            ("p/", &[&["p/b"], &[]], ""),
        ];
        for (prefix, pages, expected) in table {
            let last = (expected == "out of order" && pages[0] == ["p/after"]).then(|| Key::from("p/b"));
            let mut check = Check { last, token: None, empty: 0 };
            let mut all = pages.iter().enumerate();
            let outcome: Result<(), String> = all.try_for_each(|(i, page)| {
                check.page(&Key::from(prefix), &entries(page), Some(&i.to_string()))
            });
            match outcome {
                Ok(()) => assert_eq!(expected, ""),
                Err(why) => assert!(why.contains(expected) && !expected.is_empty(), "{why}"),
            }
        }
        let mut check = Check { last: None, token: None, empty: 0 };
        check.page(&Key::default(), &entries(&["a"]), Some("t")).unwrap();
        check.page(&Key::default(), &entries(&["b"]), Some("t")).expect_err("the same token twice");
        let mut check = Check { last: None, token: None, empty: 0 };
        let endless = (0..200).map(|i| check.page(&Key::default(), &[], Some(&i.to_string())));
        endless.collect::<Result<(), String>>().expect_err("pages without end");
    }
}
