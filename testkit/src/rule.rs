//! Which requests a fault meets, and what has been asked so far: one vocabulary for buckets and servers that fail.

use std::ops::Range;

use cistern_bucket::{Key, Verb};

/// One request that came in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Its kind.
    pub verb: Verb,
    /// The key, or the prefix of a listing; empty for requests about the bucket.
    pub key: Key,
    /// Whether it changes something.
    pub write: bool,
}

/// Which requests meet the fault `F`: the `at`-th ones (from 0) of those that match.
#[derive(Clone, Debug)]
pub struct Rule<F> {
    verb: Option<Verb>,
    writes: bool,
    prefix: Vec<u8>,
    at: Range<u64>,
    seen: u64,
    fault: F,
}

impl<F: Clone> Rule<F> {
    /// Meets every request with `fault`, until it is narrowed down.
    pub fn new(fault: F) -> Self {
        Rule { verb: None, writes: false, prefix: Vec::new(), at: 0..u64::MAX, seen: 0, fault }
    }

    /// Only requests of one kind.
    #[must_use]
    pub fn verb(mut self, verb: Verb) -> Self {
        self.verb = Some(verb);
        self
    }

    /// Only requests that change something.
    #[must_use]
    pub fn writes(mut self) -> Self {
        self.writes = true;
        self
    }

    /// Only requests about keys that begin so. The key of a listing is its prefix.
    #[must_use]
    pub fn prefix(mut self, prefix: impl AsRef<[u8]>) -> Self {
        self.prefix = prefix.as_ref().to_vec();
        self
    }

    /// Only the `n`-th such request, counted from 0.
    #[must_use]
    pub fn nth(self, n: u64) -> Self {
        self.range(n..n.saturating_add(1))
    }

    /// Only these of the requests, counted from 0.
    #[must_use]
    pub fn range(mut self, at: Range<u64>) -> Self {
        self.at = at;
        self
    }

    fn meets(&mut self, request: &Request) -> Option<F> {
        let matches = self.verb.is_none_or(|verb| verb == request.verb)
            && (!self.writes || request.write)
            && request.key.as_bytes().starts_with(&self.prefix);
        if !matches {
            return None;
        }
        let number = self.seen;
        self.seen += 1;
        self.at.contains(&number).then(|| self.fault.clone())
    }
}

/// The fault that meets a request: the first rule decides, and all count.
pub(crate) fn decide<F: Clone>(rules: &mut [Rule<F>], request: &Request) -> Option<F> {
    rules.iter_mut().filter_map(|rule| rule.meets(request)).reduce(|first, _| first)
}
