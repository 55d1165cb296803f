//! A set of ids that takes little more memory than the ids: a run claims a million of them and more.

use crate::Id;

/// Slots at first.
const FIRST: usize = 64;

/// Ids in one table with open addressing. They are random as they are: the first bytes say where to look. Filled to at
/// most four fifths and grown by a quarter, it has 40 to 50 bytes per id, where a table that doubles has up to 75.
#[derive(Default)]
pub(crate) struct IdSet {
    /// The id of nothing but zeros is an empty slot.
    slots: Vec<Id>,
    count: usize,
    /// Whether the id of nothing but zeros is in the set.
    zero: bool,
}

impl IdSet {
    const EMPTY: Id = Id::from_bytes([0; 32]);

    /// Adds an id; false if it is there already.
    pub(crate) fn insert(&mut self, id: &Id) -> bool {
        if *id == Self::EMPTY {
            return !std::mem::replace(&mut self.zero, true);
        }
        if (self.count + 1) * 5 > self.slots.len() * 4 {
            self.grow();
        }
        let slot = self.slot(id);
        if self.slots[slot] == *id {
            return false;
        }
        self.slots[slot] = *id;
        self.count += 1;
        true
    }

    /// Whether an id is in the set.
    pub(crate) fn contains(&self, id: &Id) -> bool {
        match *id == Self::EMPTY {
            true => self.zero,
            false => !self.slots.is_empty() && self.slots[self.slot(id)] == *id,
        }
    }

    /// Number of ids.
    pub(crate) fn len(&self) -> usize {
        self.count + usize::from(self.zero)
    }

    /// Where an id is, or belongs. There is always a slot that is empty.
    fn slot(&self, id: &Id) -> usize {
        let first = id.as_bytes().first_chunk().map_or(0, |first| u64::from_be_bytes(*first));
        let mut slot = ((u128::from(first) * self.slots.len() as u128) >> 64) as usize;
        while self.slots[slot] != Self::EMPTY && self.slots[slot] != *id {
            slot = if slot + 1 == self.slots.len() { 0 } else { slot + 1 };
        }
        slot
    }

    fn grow(&mut self) {
        let length = (self.slots.len() + self.slots.len() / 4).max(FIRST);
        let old = std::mem::replace(&mut self.slots, vec![Self::EMPTY; length]);
        for id in old.iter().filter(|id| **id != Self::EMPTY) {
            let slot = self.slot(id);
            self.slots[slot] = *id;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn it_is_a_set_also_of_ids_that_begin_alike() {
        let (mut set, mut model) = (IdSet::default(), HashSet::new());
        assert!(!set.contains(&Id::of(b"x")) && !set.contains(&IdSet::EMPTY));
        let ids = (0..20_000u32).map(|i| match i % 4 {
            // In the last slots, from where the search goes on at the front.
            0 => [&[0xff; 28][..], &i.to_be_bytes()].concat(),
            1 => [&[0; 28][..], &(i % 400).to_be_bytes()].concat(),
            _ => Id::of(&(i / 3).to_be_bytes()).as_bytes().to_vec(),
        });
        for id in ids.map(|id| Id::from_bytes(id.try_into().unwrap())).chain([IdSet::EMPTY, IdSet::EMPTY]) {
            assert_eq!(set.contains(&id), model.contains(&id));
            assert_eq!(set.insert(&id), model.insert(id));
            assert!(set.contains(&id));
        }
        assert_eq!(set.len(), model.len());
        assert!(model.iter().all(|id| set.contains(id)) && !set.contains(&Id::of(b"x")));
        assert!(set.slots.len() * 32 <= model.len() * 51, "{} slots", set.slots.len());
    }
}
