//! Blobs of one kind as two columns sorted by id: 32 bytes of id and 16 bytes of place for each, in memory or mapped.

use std::ops::Deref;
use std::sync::Arc;

use memmap2::Mmap;

use super::{Location, PackNo};
use crate::Id;

/// Bytes of an id.
pub(super) type RowId = [u8; Id::LEN];
/// Pack number, offset, sealed length, plain length; 0 stands for "not compressed": an empty blob is never stored.
pub(super) type Place = [u32; 4];

/// Below this many rows a general sort is as fast as distributing them.
const FEW: usize = 256;
/// Bytes of an id by which rows are distributed; whoever makes ids alike in all of them has them sorted generally.
const DEPTH: usize = 8;

pub(super) fn place(location: &Location) -> Place {
    [location.pack.0, location.offset, location.length, location.raw_length.unwrap_or(0)]
}

pub(super) fn location([pack, offset, length, raw_length]: Place) -> Location {
    Location { pack: PackNo(pack), offset, length, raw_length: (raw_length > 0).then_some(raw_length) }
}

/// One column.
#[derive(Debug)]
pub(super) enum Column<T> {
    /// In memory of its own.
    Owned(Vec<T>),
    /// A stretch of a file.
    Mapped {
        map: Arc<Mmap>,
        /// First byte, a multiple of `T`'s alignment.
        start: usize,
        /// Number of `T`s.
        count: usize,
    },
}

impl<T: bytemuck::Pod> Deref for Column<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        match self {
            Column::Owned(values) => values,
            Column::Mapped { map, start, count } => {
                bytemuck::cast_slice(&map[*start..*start + count * size_of::<T>()])
            }
        }
    }
}

/// Rows by id, and those of one id by place.
#[derive(Debug)]
pub(super) struct Table {
    pub(super) ids: Column<RowId>,
    pub(super) places: Column<Place>,
}

impl Default for Table {
    fn default() -> Self {
        Table { ids: Column::Owned(Vec::new()), places: Column::Owned(Vec::new()) }
    }
}

impl Table {
    /// Sorts rows where they are and drops what is said twice.
    pub(super) fn new(mut ids: Vec<RowId>, mut places: Vec<Place>) -> Self {
        sort(&mut ids, &mut places);
        let count = dedup(&mut ids, &mut places);
        ids.truncate(count);
        places.truncate(count);
        Table { ids: Column::Owned(ids), places: Column::Owned(places) }
    }

    pub(super) fn len(&self) -> usize {
        self.ids.len()
    }

    pub(super) fn id(&self, row: usize) -> Id {
        Id::from_bytes(self.ids[row])
    }

    pub(super) fn location(&self, row: usize) -> Location {
        location(self.places[row])
    }

    /// The first row with this id.
    ///
    /// Ids are uniform, so that each tells about where it is: three guesses, each from what the last one found, come
    /// within a few rows. What a hostile repository can do about that costs the steps of a binary search.
    pub(super) fn find(&self, id: &Id) -> Option<usize> {
        let ids = &*self.ids;
        let last = ids.len().checked_sub(1)?;
        let (wanted, id) = (id.leading(), id.as_bytes());
        let rows_per_value = ids.len() as f64 / 2f64.powi(64);
        let mut at = ((wanted as f64 * rows_per_value) as usize).min(last);
        for _ in 0..3 {
            let distance = (i128::from(wanted) - i128::from(leading(&ids[at]))) as f64 * rows_per_value;
            let next = ((at as f64 + distance).max(0.0) as usize).min(last);
            if next == at {
                break;
            }
            at = next;
        }
        // Away from the guess in growing steps, until the first row that is not below `id` lies in `low..=high`.
        let (mut low, mut high, mut step) = (0, ids.len(), 1);
        if ids[at] < *id {
            low = at + 1;
            while let Some(probe) = low.checked_add(step).filter(|probe| *probe < high) {
                if ids[probe] >= *id {
                    high = probe;
                } else {
                    low = probe + 1;
                    step *= 2;
                }
            }
        } else {
            high = at;
            while let Some(probe) = high.checked_sub(step) {
                if ids[probe] < *id {
                    low = probe + 1;
                    break;
                }
                high = probe;
                step *= 2;
            }
        }
        let at = low + ids[low..high].partition_point(|other| other < id);
        (ids.get(at)? == id).then_some(at)
    }
}

fn leading(id: &RowId) -> u64 {
    Id::from_bytes(*id).leading()
}

/// Sorts both columns by id and then by place, without a second copy of either: rows are distributed by a byte of
/// their ids after the other, each swapped to where it belongs, until few are left that have them in common.
pub(super) fn sort(ids: &mut [RowId], places: &mut [Place]) {
    debug_assert_eq!(ids.len(), places.len());
    sort_from(ids, places, 0);
}

fn sort_from(ids: &mut [RowId], places: &mut [Place], byte: usize) {
    if ids.len() <= FEW || byte == DEPTH {
        let mut rows: Vec<(RowId, Place)> = ids.iter().copied().zip(places.iter().copied()).collect();
        rows.sort_unstable();
        for ((id, place), row) in ids.iter_mut().zip(places).zip(rows) {
            (*id, *place) = row;
        }
        return;
    }
    let mut next = [0usize; 257];
    for id in ids.iter() {
        next[usize::from(id[byte]) + 1] += 1;
    }
    for value in 0..256 {
        next[value + 1] += next[value];
    }
    let ends: [usize; 256] = std::array::from_fn(|value| next[value + 1]);
    for value in 0..256 {
        while next[value] < ends[value] {
            let at = next[value];
            let belongs = usize::from(ids[at][byte]);
            if belongs != value {
                ids.swap(at, next[belongs]);
                places.swap(at, next[belongs]);
            }
            next[belongs] += 1;
        }
    }
    let mut start = 0;
    for end in ends {
        sort_from(&mut ids[start..end], &mut places[start..end], byte + 1);
        start = end;
    }
}

/// Moves each row that is not the same as the one before to the front; yields how many there are.
pub(super) fn dedup(ids: &mut [RowId], places: &mut [Place]) -> usize {
    let mut kept = 0;
    for row in 0..ids.len() {
        if row == 0 || ids[row] != ids[kept - 1] || places[row] != places[kept - 1] {
            ids[kept] = ids[row];
            places[kept] = places[row];
            kept += 1;
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Ids that are all alike but for a few bytes, and uniform ones.
    fn id(clustered: bool, n: u16) -> RowId {
        if clustered {
            let mut id = [0xee; Id::LEN];
            id[30..].copy_from_slice(&n.to_be_bytes());
            id[3] = (n % 3) as u8;
            return id;
        }
        *Id::of(&n.to_le_bytes()).as_bytes()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]
        #[test]
        fn rows_are_sorted_and_found(clustered in any::<bool>(), numbers in prop::collection::vec((any::<u16>(), 0u32..3), 0..2000), others in prop::collection::vec(any::<u16>(), 50)) {
            let mut model: Vec<(RowId, Place)> =
                numbers.iter().map(|(n, place)| (id(clustered, *n), [*place, 1, 2, 3])).collect();
            let table = Table::new(
                model.iter().map(|(id, _)| *id).collect(),
                model.iter().map(|(_, place)| *place).collect(),
            );
            model.sort_unstable();
            model.dedup();
            let rows: Vec<(RowId, Place)> = table.ids.iter().copied().zip(table.places.iter().copied()).collect();
            prop_assert!(rows == model);
            for n in others.into_iter().chain(numbers.into_iter().map(|(n, _)| n)) {
                let id = id(clustered, n);
                let expected = model.iter().position(|(other, _)| *other == id);
                prop_assert_eq!(table.find(&Id::from_bytes(id)), expected);
            }
        }
    }

    #[test]
    fn the_first_and_the_last_of_all_ids_are_found() {
        let ids = [[0; Id::LEN], [1; Id::LEN], [0xff; Id::LEN]];
        let table = Table::new(ids.to_vec(), vec![[0; 4]; 3]);
        for (row, id) in ids.iter().enumerate() {
            assert_eq!(table.find(&Id::from_bytes(*id)), Some(row));
        }
        assert_eq!(Table::default().find(&Id::from_bytes([0; Id::LEN])), None);
    }
}
