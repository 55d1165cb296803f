//! The entries of an index, pack by pack.

use super::{EntryNo, Index, PackNo};
use crate::pack::PackedBlob;

/// Packs with their entries in the order of their offsets, by pack number. A pack that no entry names any more is left
/// out.
pub struct ByPack<'a> {
    index: &'a Index,
    /// Entries, those of one pack together.
    order: Vec<EntryNo>,
    /// Where those of each pack end.
    ends: Vec<u32>,
}

impl<'a> ByPack<'a> {
    pub(super) fn new(index: &'a Index) -> Self {
        let mut ends = vec![0; index.packs().len()];
        let packs = || {
            let tables = [&index.data, &index.trees].into_iter();
            tables.flat_map(|table| (0..table.len()).map(move |row| table.location(row).pack))
        };
        for pack in packs() {
            ends[pack.index()] += 1;
        }
        let mut sum = 0;
        for end in &mut ends {
            // Where the pack begins, for now.
            sum += std::mem::replace(end, sum);
        }
        let mut order = vec![EntryNo(0); index.entries()];
        for (pack, entry) in packs().zip(0..) {
            let at = &mut ends[pack.index()];
            order[*at as usize] = EntryNo(entry);
            *at += 1;
        }
        ByPack { index, order, ends }
    }

    /// The entries of one pack, by offset.
    pub fn of(&self, pack: PackNo) -> Vec<(EntryNo, PackedBlob)> {
        let start = pack.index().checked_sub(1).map_or(0, |before| self.ends[before] as usize);
        let entries = &self.order[start..self.ends[pack.index()] as usize];
        let mut blobs: Vec<_> = entries.iter().map(|entry| (*entry, self.index.blob(*entry).1)).collect();
        blobs.sort_unstable_by_key(|(entry, blob)| (blob.offset, *entry));
        blobs
    }

    /// All packs that have entries, with their blobs by offset.
    pub fn iter(&self) -> impl Iterator<Item = (PackNo, Vec<PackedBlob>)> + '_ {
        let blobs = |pack| self.of(pack).into_iter().map(|(_, blob)| blob).collect();
        let packs = self.index.pack_numbers().map(move |pack| (pack, blobs(pack)));
        packs.filter(|(_, blobs): &(PackNo, Vec<PackedBlob>)| !blobs.is_empty())
    }
}
