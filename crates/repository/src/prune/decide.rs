//! What becomes of each pack: a pure function of how much of it is in use.

use std::cmp::Reverse;

use serde::Serialize;

use crate::BlobKind;

/// How much that no snapshot needs may stay, to save the work of packing what lies around it anew.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum MaxUnused {
    /// A share (0 to 1) of all that stays.
    Share(f64),
    /// So many bytes.
    Bytes(u64),
    /// Any amount: nothing is packed anew for it.
    Unlimited,
}

impl MaxUnused {
    /// In bytes, beside so many that are used.
    fn limit(self, used: u64) -> u64 {
        match self {
            MaxUnused::Share(share) if share >= 1.0 => u64::MAX,
            MaxUnused::Share(share) => (share.max(0.0) / (1.0 - share.max(0.0)) * used as f64) as u64,
            MaxUnused::Bytes(bytes) => bytes,
            MaxUnused::Unlimited => u64::MAX,
        }
    }
}

/// What a pack holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct PackUse {
    /// Its size; none if it does not exist.
    pub(super) size: Option<u64>,
    /// Blobs that snapshots need and that are to be had from here, and their stored bytes.
    pub(super) used: Amount,
    /// Blobs that no snapshot needs.
    pub(super) unused: Amount,
    /// Blobs that are to be had from another pack.
    pub(super) twice: Amount,
    /// Whether directories are in it.
    pub(super) trees: bool,
}

/// So many blobs or packs of so many bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Amount {
    /// Number of blobs or packs.
    pub count: u64,
    /// Stored bytes in all of them.
    pub bytes: u64,
}

impl Amount {
    /// Adds one of so many bytes.
    pub(super) fn add(&mut self, bytes: u64) {
        self.count += 1;
        self.bytes += bytes;
    }

    /// The sum.
    pub(super) fn and(self, other: Amount) -> Amount {
        Amount { count: self.count + other.count, bytes: self.bytes + other.bytes }
    }
}

impl PackUse {
    fn waste(&self) -> Amount {
        self.unused.and(self.twice)
    }
}

/// What becomes of a pack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// It stays as it is.
    Keep,
    /// What is used of it is packed anew, then it goes.
    Repack,
    /// It goes: nobody needs it.
    Delete,
    /// It does not exist, and nobody needs it: the index forgets it.
    Forget,
}

/// What is decided by.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rules {
    pub(super) max_unused: MaxUnused,
    /// Bytes of packs that are packed anew, at most.
    pub(super) max_repack: u64,
    /// Whether packs that are smaller than this are put together.
    pub(super) small: Option<u64>,
}

/// Fates by pack, and the numbers of the packs to repack in the order in which it pays most.
pub(super) fn decide(packs: &[PackUse], rules: &Rules) -> (Vec<Fate>, Vec<usize>) {
    let mut fates: Vec<Fate> = packs
        .iter()
        .map(|pack| match (pack.size, pack.used.count) {
            (None, _) => Fate::Forget,
            (Some(_), 0) => Fate::Delete,
            (Some(_), _) => Fate::Keep,
        })
        .collect();
    let is_small =
        |pack: &PackUse| rules.small.is_some_and(|small| pack.size.is_some_and(|size| size < small));
    let mut candidates: Vec<usize> = (0..packs.len())
        .filter(|i| fates[*i] == Fate::Keep && (packs[*i].waste().count > 0 || is_small(&packs[*i])))
        .collect();
    // Directories first, which every reader fetches; then by how much is won for what it costs.
    candidates.sort_by_cached_key(|i| {
        let pack = &packs[*i];
        let share = pack.waste().bytes as f64 / (pack.waste().bytes + pack.used.bytes).max(1) as f64;
        (!pack.trees, Reverse((share * 1e9) as u64), *i)
    });
    let used: u64 = packs.iter().map(|pack| pack.used.bytes).sum();
    let mut waste: u64 = candidates.iter().map(|i| packs[*i].waste().bytes).sum();
    let limit = rules.max_unused.limit(used);
    let mut left = rules.max_repack;
    let mut chosen: Vec<usize> = Vec::new();
    for i in candidates {
        let pack = &packs[i];
        let size = pack.size.unwrap_or(0);
        let pays = waste > limit && pack.waste().count > 0;
        if (pays || is_small(pack)) && size <= left {
            left -= size;
            waste -= pack.waste().bytes;
            chosen.push(i);
        }
    }
    // One small pack alone would become one small pack.
    for kind in BlobKind::ALL {
        let trees = kind == BlobKind::Tree;
        let of_kind = || chosen.iter().filter(|i| packs[**i].trees == trees);
        if of_kind().count() == 1 && of_kind().all(|i| packs[*i].waste().count == 0) {
            chosen.retain(|i| packs[*i].trees != trees);
        }
    }
    for i in &chosen {
        fates[*i] = Fate::Repack;
    }
    (fates, chosen)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ALL: Rules = Rules { max_unused: MaxUnused::Bytes(0), max_repack: u64::MAX, small: None };

    fn pack(used: u64, unused: u64, twice: u64) -> PackUse {
        let amount = |bytes: u64| Amount { count: bytes.min(1), bytes };
        let (used, unused, twice) = (amount(used), amount(unused), amount(twice));
        PackUse { size: Some(used.bytes + unused.bytes + twice.bytes), used, unused, twice, trees: false }
    }

    #[test]
    fn packs_are_kept_or_packed_anew_by_what_it_is_worth() {
        use Fate::*;
        let packs = [
            pack(100, 0, 0),
            pack(0, 50, 50),
            pack(90, 10, 0),
            pack(50, 0, 50),
            PackUse { size: None, ..pack(0, 70, 0) },
            PackUse { trees: true, ..pack(99, 1, 0) },
        ];
        let table: [(Rules, [Fate; 6], &[usize]); 6] = [
            (ALL, [Keep, Delete, Repack, Repack, Forget, Repack], &[5, 3, 2]),
            (
                Rules { max_unused: MaxUnused::Unlimited, ..ALL },
                [Keep, Delete, Keep, Keep, Forget, Keep],
                &[],
            ),
            // 61 are unused beside 339: directories and the worst go first, until at most 11 are left.
            (
                Rules { max_unused: MaxUnused::Bytes(11), ..ALL },
                [Keep, Delete, Keep, Repack, Forget, Repack],
                &[5, 3],
            ),
            (
                Rules { max_unused: MaxUnused::Share(0.151), ..ALL },
                [Keep, Delete, Keep, Keep, Forget, Repack],
                &[5],
            ),
            (Rules { max_repack: 150, ..ALL }, [Keep, Delete, Keep, Keep, Forget, Repack], &[5]),
            (
                Rules { max_unused: MaxUnused::Unlimited, small: Some(101), ..ALL },
                [Repack, Delete, Repack, Repack, Forget, Repack],
                &[5, 3, 2, 0],
            ),
        ];
        for (rules, fates, order) in table {
            assert_eq!(decide(&packs, &rules), (fates.to_vec(), order.to_vec()), "{rules:?}");
        }
    }

    #[test]
    fn one_small_pack_alone_stays() {
        let rules = Rules { small: Some(1000), ..ALL };
        let trees = PackUse { trees: true, ..pack(5, 0, 0) };
        assert_eq!(decide(&[pack(10, 0, 0), trees], &rules).1, [0usize; 0]);
        assert_eq!(decide(&[pack(10, 0, 0), pack(9, 0, 0)], &rules).1, [0, 1]);
        assert_eq!(decide(&[pack(10, 1, 0)], &rules).1, [0]);
    }

    proptest! {
        #[test]
        fn nothing_that_is_used_is_deleted_and_limits_hold(
            packs in prop::collection::vec((0u64..1000, 0u64..1000, 0u64..1000, any::<bool>(), any::<bool>()), 0..40),
            limit in 0u64..5000, max_repack in 0u64..5000, small in prop::option::of(0u64..2000),
        ) {
            let packs: Vec<PackUse> = packs.into_iter().map(|(used, unused, twice, exists, trees)| {
                let one = pack(if exists { used } else { 0 }, unused, twice);
                PackUse { size: exists.then_some(one.size.unwrap()), trees, ..one }
            }).collect();
            let rules = Rules { max_unused: MaxUnused::Bytes(limit), max_repack, small };
            let (fates, order) = decide(&packs, &rules);
            let of = |fate| packs.iter().zip(&fates).filter(move |(_, is)| **is == fate).map(|(pack, _)| pack);
            prop_assert!(of(Fate::Delete).chain(of(Fate::Forget)).all(|pack| pack.used.count == 0));
            prop_assert!(of(Fate::Repack).map(|pack| pack.size.unwrap()).sum::<u64>() <= max_repack);
            prop_assert_eq!(of(Fate::Repack).count(), order.len());
            let left: u64 = of(Fate::Keep).map(|pack| pack.waste().bytes).sum();
            let could = of(Fate::Repack).map(|pack| pack.size.unwrap()).sum::<u64>();
            let fits = of(Fate::Keep).any(|pack| pack.waste().count > 0 && could + pack.size.unwrap() <= max_repack);
            prop_assert!(left <= limit || !fits, "{left} left");
        }
    }
}
