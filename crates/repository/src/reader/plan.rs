//! Which ranges of which packs give the blobs that are wanted: pure.

use std::collections::HashMap;

use super::transfer::SPAN;
use crate::index::{ByPack, Index, Location, PackNo};
use crate::marks::Marks;
use crate::{BlobKind, Id};

/// Bytes between two blobs that are fetched rather than asked around.
const GAP: u64 = 256 << 10;

/// One blob and who wants it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Item {
    pub(crate) id: Id,
    pub(crate) place: Location,
    /// Positions in the list of what is wanted.
    pub(crate) wanted: Vec<u32>,
}

/// A stretch of one pack, with the blobs in it by offset. Two entries of the index may lie at the same place.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Span {
    pub(crate) pack: PackNo,
    pub(crate) start: u64,
    pub(crate) end: u64,
    pub(crate) items: Vec<Item>,
}

/// What to fetch, and what is in no index (positions in `wanted`).
pub(super) struct Plan {
    pub(super) spans: Vec<Span>,
    pub(super) missing: Vec<u32>,
}

/// Groups what is wanted into spans of about `longest` bytes at most, packs in the order in which they are first
/// wanted.
pub(super) fn plan(index: &Index, kind: BlobKind, wanted: &[Id], longest: u64) -> Plan {
    let mut order: Vec<u32> = (0..wanted.len() as u32).collect();
    order.sort_unstable_by_key(|i| (wanted[*i as usize], *i));
    let mut missing = Vec::new();
    let mut items = Vec::with_capacity(order.len());
    // When each pack is wanted first.
    let mut ranks: HashMap<PackNo, u32> = HashMap::new();
    for same in order.chunk_by(|a, b| wanted[*a as usize] == wanted[*b as usize]) {
        let id = wanted[same[0] as usize];
        match index.lookup(kind, &id) {
            None => missing.extend_from_slice(same),
            Some(place) => {
                let rank = ranks.entry(place.pack).or_insert(same[0]);
                *rank = same[0].min(*rank);
                items.push(Item { id, place, wanted: same.to_vec() });
            }
        }
    }
    items.sort_unstable_by_key(|item| (ranks[&item.place.pack], item.place.offset));
    Plan { spans: spans(items, longest), missing }
}

/// Where the blobs of a pack lie whose entries are marked.
pub(crate) fn spans_of(by_pack: &ByPack<'_>, pack: PackNo, kind: BlobKind, marked: &Marks) -> Vec<Span> {
    let items = by_pack.of(pack).into_iter().filter(|(entry, blob)| blob.kind == kind && marked.has(*entry));
    let items = items.map(|(_, blob)| Item { id: blob.id, place: blob.at(pack), wanted: Vec::new() });
    spans(items, SPAN)
}

/// Groups items that are sorted by pack and offset into spans of about `longest` bytes at most.
fn spans(items: impl IntoIterator<Item = Item>, longest: u64) -> Vec<Span> {
    let mut spans: Vec<Span> = Vec::new();
    for item in items {
        let start = u64::from(item.place.offset);
        let end = start + u64::from(item.place.length);
        match spans.last_mut() {
            Some(span)
                if span.pack == item.place.pack
                    && start <= span.end + GAP
                    && end.max(span.end) - span.start <= longest =>
            {
                span.end = span.end.max(end);
                span.items.push(item);
            }
            _ => spans.push(Span { pack: item.place.pack, start, end, items: vec![item] }),
        }
    }
    spans
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::IndexBuilder;
    use crate::pack::PackedBlob;

    #[test]
    fn joins_neighbours_up_to_a_length_and_asks_around_gaps() {
        let mut builder = IndexBuilder::new();
        let name = |i: u32| Id::of(&i.to_le_bytes());
        let mib = 1 << 20;
        // Pack a: blobs of 1 MiB one after the other; pack b: two blobs 10 MiB apart; both have blob 3.
        let places: &[(&[u8], u32, u32)] = &[
            (b"a", 0, 0),
            (b"a", 1, mib),
            (b"a", 2, 2 * mib),
            (b"a", 3, 3 * mib),
            (b"b", 4, 0),
            (b"b", 5, 10 * mib),
        ];
        for (pack, blob, offset) in places {
            let blob = PackedBlob {
                kind: BlobKind::Data,
                id: name(*blob),
                offset: *offset,
                length: mib,
                raw_length: None,
            };
            builder.add(&Id::of(pack), &blob).unwrap();
        }
        let index = builder.finish().unwrap();
        let wanted = [5, 3, 1, 99, 0, 4, 1].map(name);
        let Plan { spans, missing } = plan(&index, BlobKind::Data, &wanted, 3 << 20);
        assert_eq!(missing, [3]);
        let seen: Vec<(u64, u64, Vec<Vec<u32>>)> = spans
            .into_iter()
            .map(|span| (span.start, span.end, span.items.into_iter().map(|item| item.wanted).collect()))
            .collect();
        let m = u64::from(mib);
        assert_eq!(
            seen,
            [
                (0, m, vec![vec![5]]),
                (10 * m, 11 * m, vec![vec![0]]),
                (0, 2 * m, vec![vec![4], vec![2, 6]]),
                (3 * m, 4 * m, vec![vec![1]]),
            ]
        );
    }
}
