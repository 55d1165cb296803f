//! Where files are cut into blobs: a Rabin fingerprint over 64 bytes, with the repository's polynomial, so that
//! equal content is cut equally, by restic and by us.
//!
//! A cut falls after a byte where the low 20 bits of the fingerprint of the last 64 bytes are zero, if the blob
//! has at least [`MIN`] bytes then, or where it has [`MAX`]. The fingerprint depends on those 64 bytes only.
//! Hence positions can be tested in any order, and the search rolls over several stretches in one loop: each
//! step of a single one waits for a table look-up of the step before.

mod sliced;

use std::sync::Arc;

use self::sliced::Matrices;
use crate::polynomial::{DEGREE, Polynomial};

/// Bytes under the fingerprint.
pub const WINDOW: usize = 64;
/// No blob but a file's last is shorter.
pub const MIN: usize = 512 << 10;
/// No blob is longer.
pub const MAX: usize = 8 << 20;
/// A cut where these bits of the fingerprint are zero.
const MASK: u64 = (1 << 20) - 1;

/// Stretches that are searched in one loop by tables.
const LANES: usize = 6;
/// Positions in a stretch.
const STRETCH: usize = 8 << 10;
/// Most positions in each of many stretches: no power of two, or they would evict each other from the cache.
const SLICED_STRETCH: usize = (2 << 10) + 64;
/// Below this many, the bytes before each stretch weigh too much.
const SHORT_STRETCH: usize = 128;

/// Tables for one polynomial: 4 KiB, made once per repository, shared by all workers.
pub struct Chunker {
    /// What a byte contributes to the fingerprint when it leaves the window.
    out: [u64; 256],
    /// What clears the byte that is shifted above the degree, and its remainder.
    modulo: [u64; 256],
    /// The same for many stretches at once, where the processor can.
    sliced: Option<Box<Matrices>>,
}

impl Chunker {
    /// The chunker of a polynomial of degree [`DEGREE`], which [`Config::parse`](crate::config::Config::parse)
    /// makes sure of.
    pub fn new(polynomial: Polynomial) -> Arc<Self> {
        assert_eq!(polynomial.degree(), Some(DEGREE), "a chunker's polynomial has degree 53");
        let modulo = std::array::from_fn(|byte| {
            let high = (byte as u64) << DEGREE;
            high | Polynomial(high).modulo(polynomial).0
        });
        let how = sliced::available().first();
        let sliced = how.map(|how| Box::new(Matrices::new(polynomial, *how)));
        let mut chunker = Chunker { out: [0; 256], modulo, sliced };
        chunker.out = std::array::from_fn(|byte| {
            (1..WINDOW).fold(chunker.append(0, byte as u8), |fingerprint, _| chunker.append(fingerprint, 0))
        });
        Arc::new(chunker)
    }

    /// The length of the blob that `data` begins with; `data` starts at a cut. `None` asks for more data, which
    /// can only happen below [`MAX`] bytes and before the end of the file (`eof`), or says that `data` is empty.
    pub fn next_cut(&self, data: &[u8], eof: bool) -> Option<usize> {
        self.next_cut_after(data, 0, eof)
    }

    /// Like [`next_cut`](Self::next_cut), where an earlier call on the first `searched` bytes has answered `None`.
    pub fn next_cut_after(&self, data: &[u8], searched: usize, eof: bool) -> Option<usize> {
        let end = data.len().min(MAX);
        // The position `searched` itself was tested by the earlier call.
        let from = if searched < MIN { MIN } else { searched + 1 };
        match self.find(data, from, end) {
            Some(cut) => Some(cut),
            None if end == MAX => Some(MAX),
            None if eof && end > 0 => Some(end),
            None => None,
        }
    }

    /// Appends all positions in `from..=to` where a cut may fall, were it not for minimum and maximum: how one
    /// huge object is searched by several workers. A position is the number of bytes before the cut; the
    /// 64 bytes before it are looked at, so `from` is at least [`WINDOW`].
    pub fn candidates(&self, data: &[u8], mut from: usize, to: usize, found: &mut Vec<usize>) {
        while let Some(cut) = self.find(data, from, to) {
            found.push(cut);
            from = cut + 1;
        }
    }

    /// The first position in `from..=to` where the fingerprint's low bits are zero.
    fn find(&self, data: &[u8], mut from: usize, to: usize) -> Option<usize> {
        from = from.max(WINDOW);
        let to = to.min(data.len());
        if let Some(matrices) = &self.sliced
            && from < to
        {
            return self.find_sliced(matrices, data, from, to);
        }
        while from + LANES * STRETCH <= to {
            // Lane n tests the positions from + n * STRETCH .. + STRETCH.
            let stretches = data[from - WINDOW..].first_chunk().expect("`to` lies within the data");
            if let Some(offset) = self.find_in_lanes(stretches) {
                return Some(from + offset);
            }
            from += LANES * STRETCH;
        }
        self.find_alone(data, from, to)
    }

    /// As [`find`](Self::find), on many stretches at once.
    fn find_sliced(&self, matrices: &Matrices, data: &[u8], mut from: usize, to: usize) -> Option<usize> {
        // The first position by itself, so that each stretch begins behind one that was looked at.
        if self.fingerprint(&data[from - WINDOW..from]) & MASK == 0 {
            return Some(from);
        }
        loop {
            let length = ((to - from) / sliced::STRETCHES).min(SLICED_STRETCH) / sliced::STEP * sliced::STEP;
            if length < SHORT_STRETCH {
                return self.find_alone(data, from, to);
            }
            let stretches = std::array::from_fn(|n| {
                let start = from + n * length;
                data[start - WINDOW..start + length].as_chunks().0
            });
            if let Some((stretch, step)) = sliced::first_hit(matrices, &stretches) {
                let start = from + stretch * length + step * sliced::STEP;
                let found = self.find_alone(data, start + 1, start + sliced::STEP);
                debug_assert!(found.is_some(), "the tables confirm the hit");
                return found;
            }
            from += sliced::STRETCHES * length;
        }
    }

    /// As [`find`](Self::find), one position after the other.
    fn find_alone(&self, data: &[u8], from: usize, to: usize) -> Option<usize> {
        if from > to {
            return None;
        }
        let mut fingerprint = self.fingerprint(&data[from - WINDOW..from]);
        if fingerprint & MASK == 0 {
            return Some(from);
        }
        self.roll(&mut fingerprint, &data[from - WINDOW..to]).map(|steps| from + steps)
    }

    /// Rolls `fingerprint`, which stands for the first 64 bytes of `bytes`, to the first place where its low bits
    /// are zero; yields the number of steps.
    fn roll(&self, fingerprint: &mut u64, bytes: &[u8]) -> Option<usize> {
        let incoming = &bytes[WINDOW..];
        for (step, (leaves, enters)) in bytes.iter().zip(incoming).enumerate() {
            *fingerprint = self.slide(*fingerprint, *leaves, *enters);
            if *fingerprint & MASK == 0 {
                return Some(step + 1);
            }
        }
        None
    }

    /// The first hit in six adjacent stretches, given with the 64 bytes before them; relative to the first.
    #[inline(never)]
    fn find_in_lanes(&self, bytes: &[u8; WINDOW + LANES * STRETCH]) -> Option<usize> {
        let mut fingerprints: [u64; LANES] =
            std::array::from_fn(|lane| self.fingerprint(&bytes[lane * STRETCH..lane * STRETCH + WINDOW]));
        let hit = |fingerprints: &[u64; LANES]| fingerprints.iter().any(|f| f & MASK == 0);
        let mut step = 0;
        while !hit(&fingerprints) {
            if step >= STRETCH - 1 {
                return None;
            }
            for (lane, fingerprint) in fingerprints.iter_mut().enumerate() {
                let at = lane * STRETCH + step;
                *fingerprint = self.slide(*fingerprint, bytes[at], bytes[at + WINDOW]);
            }
            step += 1;
        }
        // Lanes before the one that hit may hit later in their own stretch, which is earlier in the data.
        for (lane, fingerprint) in fingerprints.iter_mut().enumerate() {
            let start = lane * STRETCH;
            let steps = if *fingerprint & MASK == 0 {
                Some(0)
            } else {
                self.roll(fingerprint, &bytes[start + step..start + WINDOW + STRETCH - 1])
            };
            if let Some(steps) = steps {
                return Some(start + step + steps);
            }
        }
        unreachable!("a lane has hit")
    }

    /// The fingerprint of 64 bytes.
    fn fingerprint(&self, window: &[u8]) -> u64 {
        window.iter().fold(0, |fingerprint, byte| self.append(fingerprint, *byte))
    }

    #[inline(always)]
    fn slide(&self, fingerprint: u64, leaves: u8, enters: u8) -> u64 {
        self.append(fingerprint ^ self.out[leaves as usize], enters)
    }

    #[inline(always)]
    fn append(&self, fingerprint: u64, byte: u8) -> u64 {
        let top = (fingerprint >> (DEGREE - 8)) as u8;
        (fingerprint << 8 | u64::from(byte)) ^ self.modulo[top as usize]
    }
}

/// Chooses the blob that begins at `start` from sorted [`candidates`](Chunker::candidates), all positions counted
/// from the object's beginning: yields its end. Everything before `searched` has been searched; `eof` says that
/// the object ends there. `None` asks for more.
pub fn choose_cut(start: u64, candidates: &[u64], searched: u64, eof: bool) -> Option<u64> {
    let (min, max) = (start + MIN as u64, start + MAX as u64);
    let first = candidates.partition_point(|cut| *cut < min);
    match candidates.get(first) {
        Some(cut) if *cut <= max.min(searched) => Some(*cut),
        _ if searched >= max => Some(max),
        _ if eof && searched > start => Some(searched),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const POLYNOMIAL: Polynomial = Polynomial(0x003D_A335_8B4D_C173);

    /// The definition, byte by byte with a ring of 64, as restic's chunker is described; slow and plain.
    fn reference(polynomial: Polynomial, data: &[u8]) -> Vec<usize> {
        let times_x8 = |f: u64, byte: u8| {
            (0..8).rev().fold(f, |f, bit| {
                let f = f << 1 | u64::from(byte >> bit & 1);
                if f >> DEGREE & 1 == 1 { f ^ polynomial.0 } else { f }
            })
        };
        let leaving: Vec<u64> =
            (0..=255u8).map(|b| (1..WINDOW).fold(times_x8(0, b), |f, _| times_x8(f, 0))).collect();
        let (mut cuts, mut start) = (Vec::new(), 0);
        while start < data.len() {
            let (mut ring, mut at, mut f) = ([0u8; WINDOW], 1, times_x8(0, 1));
            ring[0] = 1;
            let mut length = 0;
            for (i, byte) in data[start..].iter().enumerate() {
                length += 1;
                // Nothing before the minimum less the window is looked at.
                if i < MIN - WINDOW {
                    continue;
                }
                f = times_x8(f ^ leaving[ring[at] as usize], *byte);
                ring[at] = *byte;
                at = (at + 1) % WINDOW;
                if length >= MIN && (f & MASK == 0 || length >= MAX) {
                    break;
                }
            }
            cuts.push(length);
            start += length;
        }
        cuts
    }

    fn noise(seed: u64, length: usize) -> Vec<u8> {
        let mut state = seed | 1;
        std::iter::repeat_with(|| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()
        })
        .flatten()
        .take(length)
        .collect()
    }

    /// In every way that the processor has: with each of its instructions, and with tables only.
    fn every_way(polynomial: Polynomial) -> Vec<Chunker> {
        let chunker = |sliced| Chunker { sliced, ..Arc::into_inner(Chunker::new(polynomial)).unwrap() };
        let by = |how: &sliced::How| chunker(Some(Box::new(Matrices::new(polynomial, *how))));
        sliced::available().iter().map(by).chain([chunker(None)]).collect()
    }

    fn all_cuts(chunker: &Chunker, data: &[u8]) -> Vec<usize> {
        let (mut cuts, mut rest) = (Vec::new(), data);
        while let Some(cut) = chunker.next_cut(rest, true) {
            cuts.push(cut);
            rest = &rest[cut..];
        }
        cuts
    }

    #[test]
    fn cuts_equal_the_definition() {
        let text: Vec<u8> =
            (0..600_000).flat_map(|i: u64| format!("{i} line {}\n", i * i % 977).into_bytes()).collect();
        let mut gaps = noise(3, 12 << 20);
        gaps[2 << 20..11 << 20].fill(7);
        for (name, data) in [
            ("empty", vec![]),
            ("one", vec![1]),
            ("just the minimum", noise(1, MIN)),
            ("one more", noise(1, MIN + 1)),
            ("zeros", vec![0; 17 << 20]),
            ("ones", vec![1; (8 << 20) + 5]),
            ("random", noise(2, 24 << 20)),
            ("text", text),
            ("random, constant, random", gaps),
        ] {
            for chunker in every_way(POLYNOMIAL) {
                assert_eq!(all_cuts(&chunker, &data), reference(POLYNOMIAL, &data), "{name}");
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(12))]
        #[test]
        fn cuts_equal_the_definition_for_any_polynomial(seed in any::<u64>(), length in 0usize..6 << 20, period in 1usize..3_000_000) {
            let polynomial = Polynomial::random().unwrap();
            let unit = noise(seed, period);
            let data: Vec<u8> = unit.iter().copied().cycle().take(length).collect();
            let expected = reference(polynomial, &data);
            let chunkers = every_way(polynomial);
            for chunker in &chunkers {
                prop_assert_eq!(&all_cuts(chunker, &data), &expected);
            }

            // The same by candidates, found piecewise.
            let (mut found, mut from) = (Vec::new(), WINDOW);
            while from <= length {
                let to = (from + 1_000_003).min(length);
                chunkers[0].candidates(&data, from, to, &mut found);
                from = to + 1;
            }
            let found: Vec<u64> = found.into_iter().map(|cut| cut as u64).collect();
            let (mut cuts, mut start) = (Vec::new(), 0);
            while let Some(end) = choose_cut(start, &found, length as u64, true) {
                cuts.push((end - start) as usize);
                start = end;
            }
            prop_assert_eq!(cuts, expected);
        }
    }

    #[test]
    fn asking_for_more_data_changes_no_cut() {
        let (chunker, data) = (Chunker::new(POLYNOMIAL), noise(9, 20 << 20));
        let (mut cuts, mut start) = (Vec::new(), 0);
        while start < data.len() {
            let (mut end, mut searched) = (start, 0);
            cuts.push(loop {
                end = (end + 300_001).min(data.len());
                match chunker.next_cut_after(&data[start..end], searched, end == data.len()) {
                    Some(cut) => break cut,
                    None => searched = end - start,
                }
            });
            start += cuts[cuts.len() - 1];
        }
        assert_eq!(cuts, all_cuts(&chunker, &data));
    }
}
