//! Decides what becomes of something that is there already: pure tables, one per kind of target.

use crate::Overwrite;

/// What is known of an object or file that stands where another is to be restored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Standing {
    /// Whether its contents are those of the snapshot.
    pub same: Sameness,
    /// Whether what the snapshot holds was modified later.
    pub older: bool,
}

/// Whether contents are equal, as far as that can be known without trust in times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sameness {
    /// They are.
    Equal,
    /// They are not, or nobody can tell.
    Different,
    /// Both have to be read to know.
    Unread,
}

/// What is done with one object or file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Decision {
    /// Nothing: it is not wanted, cannot be had, or has to stay as it is.
    Leave = 0,
    /// It is new.
    Write = 1,
    /// It takes the place of what is there.
    Replace = 2,
    /// Its contents are there already; attributes may differ.
    Same = 3,
}

/// What to do, or nothing if the contents have to be compared first.
pub(crate) fn decide(policy: Overwrite, standing: Option<Standing>) -> Option<Decision> {
    let Some(standing) = standing else { return Some(Decision::Write) };
    match (policy, standing.same) {
        (Overwrite::Never, _) => Some(Decision::Leave),
        (Overwrite::IfNewer, _) if !standing.older => Some(Decision::Leave),
        (Overwrite::IfNewer | Overwrite::Always, _) => Some(Decision::Replace),
        (Overwrite::IfChanged, Sameness::Equal) => Some(Decision::Same),
        (Overwrite::IfChanged, Sameness::Different) => Some(Decision::Replace),
        (Overwrite::IfChanged, Sameness::Unread) => None,
    }
}

/// Decisions in the order of a walk, two bits each: a second walk of the same snapshot finds them again.
#[derive(Debug, Default)]
pub(crate) struct Decisions {
    bits: Vec<u8>,
    len: usize,
}

impl Decisions {
    /// Keeps a place for the next one, to be [`set`](Self::set) later.
    pub fn reserve(&mut self) -> usize {
        if self.len.is_multiple_of(4) {
            self.bits.push(0);
        }
        self.len += 1;
        self.len - 1
    }

    /// Sets one; its place must be reserved and not set before.
    pub fn set(&mut self, at: usize, decision: Decision) {
        self.bits[at / 4] |= (decision as u8) << (at % 4 * 2);
    }

    /// One of them; beyond the end, nothing is done.
    pub fn get(&self, at: usize) -> Decision {
        match self.bits.get(at / 4).map_or(0, |byte| byte >> (at % 4 * 2) & 3) {
            1 => Decision::Write,
            2 => Decision::Replace,
            3 => Decision::Same,
            _ => Decision::Leave,
        }
    }
}

#[cfg(test)]
mod tests {
    use Overwrite::*;
    use Sameness::*;

    use super::*;

    #[test]
    fn what_is_there_is_replaced_as_the_policy_says() {
        let there = |same, older| Some(Standing { same, older });
        let table = [
            (Always, None, Some(Decision::Write)),
            (Never, None, Some(Decision::Write)),
            (IfChanged, None, Some(Decision::Write)),
            (IfNewer, None, Some(Decision::Write)),
            (Always, there(Equal, false), Some(Decision::Replace)),
            (Always, there(Unread, false), Some(Decision::Replace)),
            (Never, there(Different, true), Some(Decision::Leave)),
            (IfNewer, there(Different, false), Some(Decision::Leave)),
            (IfNewer, there(Equal, true), Some(Decision::Replace)),
            (IfNewer, there(Unread, true), Some(Decision::Replace)),
            (IfChanged, there(Equal, true), Some(Decision::Same)),
            (IfChanged, there(Different, false), Some(Decision::Replace)),
            (IfChanged, there(Unread, false), None),
        ];
        for (policy, standing, expected) in table {
            assert_eq!(decide(policy, standing), expected, "{policy:?} {standing:?}");
        }
    }

    #[test]
    fn decisions_are_found_again_in_any_order() {
        let all = [Decision::Leave, Decision::Write, Decision::Replace, Decision::Same];
        let mut decisions = Decisions::default();
        let places: Vec<_> = (0..1_001).map(|_| decisions.reserve()).collect();
        for at in places.iter().rev() {
            decisions.set(*at, all[at * 7 % 4]);
        }
        assert!(places.iter().all(|at| decisions.get(*at) == all[at * 7 % 4]));
        assert_eq!(decisions.get(5_000), Decision::Leave);
    }
}
