//! One budget in bytes for everything that waits in memory between the reading of a source and its packs.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Semaphore;

/// A count of bytes that may be held at once; those who want more wait in the order in which they came.
pub(crate) struct Budget {
    bytes: Semaphore,
    total: usize,
    /// Bytes taken without waiting when none were left; paid back before anybody gets more.
    debt: Mutex<usize>,
}

impl Budget {
    pub(crate) fn new(total: usize) -> Arc<Self> {
        let total = total.clamp(1, Semaphore::MAX_PERMITS.min(u32::MAX as usize));
        Arc::new(Budget { bytes: Semaphore::new(total), total, debt: Mutex::new(0) })
    }

    /// Waits until `bytes` are free; more than the whole budget counts as the whole. `None` after
    /// [`close`](Self::close).
    pub(crate) async fn take(self: &Arc<Self>, bytes: usize) -> Option<Permit> {
        let bytes = bytes.min(self.total);
        // Also a request for nothing waits until debts are paid.
        let permit = self.bytes.acquire_many(bytes.max(1) as u32).await.ok()?;
        permit.forget();
        Some(Permit { budget: self.clone(), bytes: bytes.max(1) })
    }

    /// Takes `bytes` without waiting, as a debt where they are not free: for work that has to go on so that
    /// others give back theirs.
    pub(crate) fn force(self: &Arc<Self>, bytes: usize) -> Permit {
        let mut debt = self.debt.lock().unwrap_or_else(PoisonError::into_inner);
        *debt += bytes - self.bytes.forget_permits(bytes);
        Permit { budget: self.clone(), bytes }
    }

    /// Lets everybody who waits, now or later, leave with nothing.
    pub(crate) fn close(&self) {
        self.bytes.close();
    }

    fn give_back(&self, bytes: usize) {
        let mut debt = self.debt.lock().unwrap_or_else(PoisonError::into_inner);
        let paid = bytes.min(*debt);
        *debt -= paid;
        self.bytes.add_permits(bytes - paid);
    }
}

/// Bytes of a [`Writer`](crate::Writer)'s memory budget; they are free again when it is dropped.
#[must_use = "the bytes are free again as soon as the permit is dropped"]
pub struct Permit {
    budget: Arc<Budget>,
    bytes: usize,
}

impl Permit {
    /// How many bytes it stands for.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.budget.give_back(self.bytes);
    }
}

impl std::fmt::Debug for Permit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Permit").field("bytes", &self.bytes).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[test]
    fn waits_in_order_and_debts_are_paid_first() {
        let budget = Budget::new(100);
        let first = budget.take(70).now_or_never().unwrap().unwrap();
        let mut second = Box::pin(budget.take(40));
        assert!(second.as_mut().now_or_never().is_none());
        let forced = budget.force(50);
        drop(first);
        // 100 − 50 forced = 50 free: the second gets its 40.
        let second = second.now_or_never().unwrap().unwrap();
        assert_eq!(second.bytes(), 40);
        assert!(budget.take(20).now_or_never().is_none());
        drop(forced);
        assert_eq!(budget.take(60).now_or_never().unwrap().unwrap().bytes(), 60);
    }

    #[test]
    fn a_request_above_the_whole_gets_the_whole_and_closing_frees_everybody() {
        let budget = Budget::new(10);
        let all = budget.take(1000).now_or_never().unwrap().unwrap();
        assert_eq!(all.bytes(), 10);
        let waiting = Box::pin(budget.take(1));
        budget.close();
        assert!(waiting.now_or_never().unwrap().is_none());
    }
}
