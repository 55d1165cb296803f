//! When a failed request is made again: exponential back-off with full jitter, bounded in tries and time.

use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use rand::Rng;
use tokio::time::Instant;

use crate::{Error, Ledger, Result};

/// How often and how long a request is tried again when its failure may pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Requests at most, the first included.
    pub max_tries: u32,
    /// Upper bound of the first pause; it doubles with every further one.
    pub base_delay: Duration,
    /// No pause of our own choice is longer; a `Retry-After` of the store may be.
    pub max_delay: Duration,
    /// No further try begins so long after the first failure.
    pub total: Duration,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        RetryPolicy {
            max_tries: 10,
            base_delay: Duration::from_millis(100),
            max_delay: Duration::from_secs(20),
            total: Duration::from_secs(300),
        }
    }
}

impl RetryPolicy {
    /// The pause after `tries` failed tries, where `random` lies in `0.0..=1.0`; `None` is the end.
    ///
    /// Full jitter: the whole pause is random, so that many clients that failed together do not come back
    /// together (<https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/>). A pause that
    /// the store asked for is kept and spread by up to the same amount.
    fn pause(
        &self,
        tries: u32,
        elapsed: Duration,
        retry_after: Option<Duration>,
        random: f64,
    ) -> Option<Duration> {
        if tries >= self.max_tries {
            return None;
        }
        let doubled = self.base_delay.saturating_mul(1_u32.checked_shl(tries - 1).unwrap_or(u32::MAX));
        let pause = doubled.min(self.max_delay).mul_f64(random) + retry_after.unwrap_or_default();
        (elapsed + pause <= self.total).then_some(pause)
    }
}

/// Tries against a store that has never answered: a wrong address is worth seconds, not minutes.
const TRIES_UNKNOWN: u32 = 6;

/// The tries of one request.
#[derive(Debug)]
pub(crate) struct Retry {
    policy: RetryPolicy,
    /// When the first try failed: how long it took says nothing about whether another is worthwhile.
    failing: Option<Instant>,
    tries: u32,
}

impl Retry {
    /// Tries under `policy`.
    pub(crate) fn new(policy: RetryPolicy) -> Self {
        Retry { policy, failing: None, tries: 0 }
    }

    /// How many tries have failed.
    pub(crate) fn failed(&self) -> u32 {
        self.tries
    }

    /// Waits until the next try, which is counted in `ledger`; or gives the error back, if it will not pass
    /// or nothing is left to try. `known` says that the store has answered before.
    pub(crate) async fn again(&mut self, error: Error, ledger: &Ledger, known: bool) -> Result<()> {
        self.tries += 1;
        if !error.kind.is_transient() || (!known && self.tries >= TRIES_UNKNOWN) {
            return Err(error);
        }
        let random = rand::rng().random();
        let failing = self.failing.get_or_insert_with(Instant::now).elapsed();
        let Some(pause) = self.policy.pause(self.tries, failing, error.retry_after, random) else {
            return Err(error);
        };
        tracing::debug!(%error, tries = self.tries, pause_ms = pause.as_millis() as u64, "request tried again");
        tokio::time::sleep(pause).await;
        ledger.retried();
        Ok(())
    }
}

/// The value of `Retry-After`: seconds, or a date (RFC 9110, section 10.2.3).
pub(crate) fn retry_after(value: &[u8], now: SystemTime) -> Option<Duration> {
    let text = std::str::from_utf8(value).ok()?.trim();
    if let Ok(seconds) = text.parse::<u32>() {
        return Some(Duration::from_secs(seconds.into()));
    }
    let then = jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(text).ok()?;
    let now = Timestamp::try_from(now).ok()?;
    Some(then.duration_since(now).try_into().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ErrorKind, Verb};

    fn error(kind: ErrorKind) -> Error {
        Error::new(kind, Verb::Get, "b")
    }

    #[test]
    fn pauses_double_up_to_a_bound_and_end() {
        let policy = RetryPolicy { max_tries: 9, ..RetryPolicy::default() };
        let pause = |tries, elapsed, after: Option<u64>, random| {
            policy
                .pause(tries, Duration::from_secs(elapsed), after.map(Duration::from_secs), random)
                .map(|p| p.as_millis())
        };
        let table = [
            (1, 0, None, 1.0, Some(100)),
            (1, 0, None, 0.0, Some(0)),
            (2, 0, None, 1.0, Some(200)),
            (2, 0, None, 0.5, Some(100)),
            (8, 0, None, 1.0, Some(12_800)),
            (9, 0, None, 0.0, None),
            (1, 0, Some(7), 0.5, Some(7_050)),
            (1, 299, None, 1.0, Some(100)),
            (1, 300, None, 1.0, None),
            (1, 0, Some(3_600), 0.0, None),
        ];
        for (tries, elapsed, after, random, expected) in table {
            assert_eq!(
                pause(tries, elapsed, after, random),
                expected,
                "{tries} {elapsed} {after:?} {random}"
            );
        }
        let endless = RetryPolicy { max_tries: u32::MAX, ..policy };
        assert_eq!(endless.pause(1_000, Duration::ZERO, None, 1.0), Some(policy.max_delay));
    }

    #[tokio::test(start_paused = true)]
    async fn what_will_not_pass_is_given_back_and_the_rest_waits() {
        let ledger = Ledger::default();
        let mut retry = Retry::new(RetryPolicy { max_tries: 3, ..RetryPolicy::default() });
        let started = Instant::now();
        let mut throttled = error(ErrorKind::Throttled);
        throttled.retry_after = Some(Duration::from_secs(5));
        retry.again(throttled, &ledger, true).await.unwrap();
        assert!(started.elapsed() >= Duration::from_secs(5));
        assert_eq!(ledger.snapshot().retries, 1);
        let denied = retry.again(error(ErrorKind::Denied), &ledger, true).await.unwrap_err();
        assert_eq!(denied.kind, ErrorKind::Denied);
        let third = retry.again(error(ErrorKind::Unreachable), &ledger, true).await.unwrap_err();
        assert_eq!(third.kind, ErrorKind::Unreachable);
        assert_eq!(ledger.snapshot().retries, 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_store_that_never_answered_is_given_up_within_seconds() {
        let (ledger, started) = (Ledger::default(), Instant::now());
        let mut retry = Retry::new(RetryPolicy::default());
        while retry.again(error(ErrorKind::Unreachable), &ledger, false).await.is_ok() {}
        assert_eq!(retry.failed(), TRIES_UNKNOWN);
        assert!(started.elapsed() < Duration::from_secs(5));
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_445_412_480);
        let table: [(&[u8], Option<u64>); 6] = [
            (b"3", Some(3)),
            (b" 0 ", Some(0)),
            (b"Wed, 21 Oct 2015 07:28:30 GMT", Some(30)),
            (b"Wed, 21 Oct 2015 07:27:00 GMT", Some(0)),
            (b"-1", None),
            (b"soon\xff", None),
        ];
        for (value, expected) in table {
            assert_eq!(retry_after(value, now).map(|d| d.as_secs()), expected, "{value:?}");
        }
    }
}
