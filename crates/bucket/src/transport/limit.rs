//! How much is asked of a store at once: requests and bytes per second, and a concurrency that follows the
//! store's complaints.

use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::Instant;

/// How much may be asked of one bucket handle.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// Requests per second; `None` is no limit.
    pub requests_per_second: Option<f64>,
    /// Bytes of contents per second, both directions together; `None` is no limit.
    pub bytes_per_second: Option<u64>,
    /// Requests under way at most, up to the first byte of their answer (a body that is being read does
    /// not count, so that a reader may hold as many as it likes). Halved when the store asks for less, and
    /// raised step by step afterwards.
    pub max_concurrency: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { requests_per_second: None, bytes_per_second: None, max_concurrency: 128 }
    }
}

/// An even pace for requests or bytes: what comes too early is told how long to wait.
#[derive(Debug)]
pub(crate) struct Pace {
    /// Seconds that one unit takes.
    unit: f64,
    /// How much unused time may be saved up.
    burst: Duration,
    /// When the next unit is due.
    due: Mutex<Instant>,
}

impl Pace {
    /// `rate` units per second, of which `burst` seconds' worth may come at once.
    pub(crate) fn new(rate: f64, burst: Duration) -> Self {
        Pace { unit: 1.0 / rate.max(1e-3), burst, due: Mutex::new(Instant::now()) }
    }

    /// Books `units` and says when they may go.
    pub(crate) fn book(&self, units: u64) -> Instant {
        let now = Instant::now();
        let mut due = self.due.lock().unwrap_or_else(PoisonError::into_inner);
        let earliest = now.checked_sub(self.burst).unwrap_or(now);
        let start = (*due).max(earliest);
        *due = start + Duration::from_secs_f64(self.unit * units as f64);
        start.max(now)
    }

    /// Books `units` and waits for them.
    pub(crate) async fn wait(&self, units: u64) {
        let then = self.book(units);
        if then > Instant::now() {
            tokio::time::sleep_until(then).await;
        }
    }
}

/// A number of concurrent requests that grows while the store answers and halves when it complains.
#[derive(Debug)]
pub(crate) struct Concurrency {
    permits: Semaphore,
    max: usize,
    /// The bound as it is now.
    bound: AtomicUsize,
    /// Permits that are to be withdrawn as soon as they come back.
    debt: AtomicUsize,
    /// Good answers since the bound moved.
    good: AtomicUsize,
    /// Counts reductions: a complaint about a request that began before the last one is the same complaint.
    epoch: AtomicU32,
    /// Guards the moves of the bound.
    moving: Mutex<()>,
}

/// Leave for one request; ends when it is dropped.
#[derive(Debug)]
pub(crate) struct Leave<'a> {
    of: &'a Concurrency,
    permit: Option<SemaphorePermit<'a>>,
    epoch: u32,
}

impl Concurrency {
    /// At most `max` at once.
    pub(crate) fn new(max: usize) -> Self {
        let max = max.clamp(1, Semaphore::MAX_PERMITS);
        Concurrency {
            permits: Semaphore::new(max),
            max,
            bound: AtomicUsize::new(max),
            debt: AtomicUsize::new(0),
            good: AtomicUsize::new(0),
            epoch: AtomicU32::new(0),
            moving: Mutex::new(()),
        }
    }

    /// Waits, in order of arrival, until one more request may go.
    pub(crate) async fn enter(&self) -> Leave<'_> {
        let permit = self.permits.acquire().await.expect("the semaphore is never closed");
        Leave { of: self, permit: Some(permit), epoch: self.epoch.load(Relaxed) }
    }

    /// The bound as it is now.
    #[cfg(test)]
    pub(crate) fn bound(&self) -> usize {
        self.bound.load(Relaxed)
    }

    fn grow(&self) {
        let bound = self.bound.load(Relaxed);
        if bound >= self.max || self.good.fetch_add(1, Relaxed) + 1 < bound {
            return;
        }
        let _moving = self.moving.lock().unwrap_or_else(PoisonError::into_inner);
        let bound = self.bound.load(Relaxed);
        if bound >= self.max {
            return;
        }
        self.good.store(0, Relaxed);
        self.bound.store(bound + 1, Relaxed);
        let debt = self.debt.load(Relaxed);
        if debt > 0 {
            self.debt.store(debt - 1, Relaxed);
        } else {
            self.permits.add_permits(1);
        }
    }

    fn shrink(&self, epoch: u32) {
        let _moving = self.moving.lock().unwrap_or_else(PoisonError::into_inner);
        if self.epoch.load(Relaxed) != epoch {
            return;
        }
        self.epoch.store(epoch.wrapping_add(1), Relaxed);
        self.good.store(0, Relaxed);
        let bound = self.bound.load(Relaxed);
        let halved = (bound / 2).max(1);
        let free = self.permits.forget_permits(bound - halved);
        self.debt.store(self.debt.load(Relaxed) + bound - halved - free, Relaxed);
        self.bound.store(halved, Relaxed);
    }
}

impl Leave<'_> {
    /// The store answered without complaint.
    pub(crate) fn good(self) {
        self.of.grow();
    }

    /// The store asked for less.
    pub(crate) fn throttled(self) {
        self.of.shrink(self.epoch);
    }
}

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        let Some(permit) = self.permit.take() else { return };
        if self.of.debt.load(Relaxed) == 0 {
            return; // the permit goes back by itself
        }
        let _moving = self.of.moving.lock().unwrap_or_else(PoisonError::into_inner);
        let debt = self.of.debt.load(Relaxed);
        if debt > 0 {
            self.of.debt.store(debt - 1, Relaxed);
            permit.forget();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_pace_lets_a_burst_pass_and_then_keeps_the_rate() {
        let pace = Pace::new(100.0, Duration::from_millis(100));
        tokio::time::advance(Duration::from_secs(60)).await;
        let started = Instant::now();
        for _ in 0..111 {
            pace.wait(1).await;
        }
        // 10 saved up and one that is due at once; the other 100 take a second.
        assert_eq!(started.elapsed().as_millis().div_ceil(10), 100);
        let started = Instant::now();
        pace.wait(1_000).await; // booked units are waited for by whoever comes next
        pace.wait(1).await;
        assert!(started.elapsed() >= Duration::from_secs(10), "{:?}", started.elapsed());
    }

    #[tokio::test]
    async fn concurrency_halves_once_per_complaint_and_grows_back_one_by_one() {
        let limit = Concurrency::new(8);
        let mut under_way = Vec::new();
        for _ in 0..8 {
            under_way.push(limit.enter().await);
        }
        under_way.pop().unwrap().throttled();
        assert_eq!(limit.bound(), 4);
        under_way.pop().unwrap().throttled(); // began before the reduction
        assert_eq!(limit.bound(), 4);
        // Two are back, six are under way, four are allowed: nobody may enter.
        assert_eq!(limit.permits.available_permits(), 0);
        drop(under_way);
        assert_eq!(limit.permits.available_permits(), 4);
        for expected in [4, 4, 4, 5, 5, 5, 5, 5, 6] {
            limit.enter().await.good();
            assert_eq!(limit.bound(), expected);
        }
        for _ in 0..10 {
            limit.enter().await.throttled();
        }
        assert_eq!((limit.bound(), limit.permits.available_permits()), (1, 1));
        for _ in 0..100 {
            limit.enter().await.good();
        }
        assert_eq!((limit.bound(), limit.permits.available_permits()), (8, 8));
    }

    #[tokio::test]
    async fn a_bound_that_grows_while_permits_are_owed_pays_the_debt_first() {
        let limit = Concurrency::new(4);
        let mut under_way = Vec::new();
        for _ in 0..4 {
            under_way.push(limit.enter().await);
        }
        under_way.pop().unwrap().throttled();
        assert_eq!(limit.bound(), 2);
        under_way.pop().unwrap().good();
        under_way.pop().unwrap().good();
        assert_eq!(limit.bound(), 3);
        drop(under_way);
        assert_eq!(limit.permits.available_permits(), 3);
    }
}
