//! Cuts a stream that arrives in pieces into blobs, copying only what spans two pieces.

use std::sync::Arc;

use bytes::{Buf, Bytes};

use crate::chunker::{Chunker, MIN};

/// Bytes of a new piece that are joined to what was left of earlier ones before a cut is looked for again.
const STEP: usize = 192 << 10;

/// The state between two pieces of one stream.
pub(crate) struct Cutter {
    chunker: Arc<Chunker>,
    /// What follows the last cut.
    rest: Rest,
    /// How much of it has been searched.
    searched: usize,
}

enum Rest {
    /// The end of one piece, or nothing.
    Whole(Bytes),
    /// Joined from several pieces.
    Joined(Vec<u8>),
}

impl Cutter {
    pub(crate) fn new(chunker: Arc<Chunker>) -> Self {
        Cutter { chunker, rest: Rest::Whole(Bytes::new()), searched: 0 }
    }

    /// Takes the next piece and yields every blob that is complete now.
    pub(crate) fn push(&mut self, mut piece: Bytes, mut emit: impl FnMut(Bytes)) {
        while !piece.is_empty() {
            let mut joined = match std::mem::replace(&mut self.rest, Rest::Whole(Bytes::new())) {
                Rest::Whole(rest) if rest.is_empty() => {
                    while let Some(cut) = self.chunker.next_cut(&piece, false) {
                        emit(piece.split_to(cut));
                    }
                    self.searched = piece.len();
                    self.rest = Rest::Whole(piece);
                    return;
                }
                Rest::Whole(rest) => {
                    let mut joined = Vec::with_capacity((rest.len() + piece.len()).clamp(MIN, 2 << 20));
                    joined.extend_from_slice(&rest);
                    joined
                }
                Rest::Joined(joined) => joined,
            };
            let before = joined.len();
            let step = STEP.max(MIN.saturating_sub(before)).min(piece.len());
            joined.extend_from_slice(&piece[..step]);
            match self.chunker.next_cut_after(&joined, self.searched, false) {
                Some(cut) => {
                    joined.truncate(cut);
                    piece.advance(cut - before);
                    emit(joined.into());
                    self.searched = 0;
                }
                None => {
                    self.searched = joined.len();
                    piece.advance(step);
                    self.rest = Rest::Joined(joined);
                }
            }
        }
    }

    /// The stream has ended: yields the last blob, if anything is left.
    pub(crate) fn finish(&mut self, mut emit: impl FnMut(Bytes)) {
        let rest = match std::mem::replace(&mut self.rest, Rest::Whole(Bytes::new())) {
            Rest::Whole(rest) => rest,
            Rest::Joined(joined) => joined.into(),
        };
        self.searched = 0;
        if !rest.is_empty() {
            emit(rest);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::polynomial::Polynomial;

    fn noise(length: usize) -> Bytes {
        let mut state = 88_172_645_463_325_252u64;
        let words = std::iter::repeat_with(|| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()
        });
        words.flatten().take(length).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn the_cuts_do_not_depend_on_the_pieces(
            length in 0usize..(12 << 20),
            sizes in prop::collection::vec(prop_oneof![1usize..70_000, 100_000usize..(5 << 20)], 1..40),
        ) {
            let chunker = Chunker::new(Polynomial(0x003D_A335_8B4D_C173));
            let mut data = noise(length);
            if length > 4 << 20 {
                // A stretch without any candidate reaches the maximum.
                data = [&data[..1 << 20], &vec![1; 9 << 20], &data[1 << 20..]].concat().into();
            }
            let (mut expected, mut rest) = (Vec::new(), &data[..]);
            while let Some(cut) = chunker.next_cut(rest, true) {
                expected.push(cut);
                rest = &rest[cut..];
            }
            let (mut cutter, mut blobs) = (Cutter::new(chunker), Vec::new());
            let (mut rest, mut sizes) = (data.clone(), sizes.iter().cycle());
            while !rest.is_empty() {
                let piece = rest.split_to(rest.len().min(*sizes.next().unwrap()));
                cutter.push(piece, |blob| blobs.push(blob));
            }
            cutter.finish(|blob| blobs.push(blob));
            prop_assert_eq!(blobs.iter().map(Bytes::len).collect::<Vec<_>>(), expected);
            prop_assert!(blobs.concat() == data);
        }
    }
}
