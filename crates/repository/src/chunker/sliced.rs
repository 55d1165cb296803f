//! The chunker's search on 32 stretches at once: a fingerprint is a linear function of bits, so that vector instructions
//! do what table look-ups do otherwise.
//!
//! Vector *k* holds byte *k* of 32 fingerprints, one per stretch. Shifting all fingerprints by a byte is then
//! renaming vectors, and what shifts out, what enters and what leaves the window is added by multiplying a vector
//! of bytes with 8×8 matrices: by the processor's bit-matrix instruction (GFNI), or by shuffles (AVX2), which look up
//! the images of four bits each. Fingerprints are kept times *x*³: of degree below 56, they fill seven bytes.
#![cfg_attr(
    target_arch = "x86_64",
    expect(unsafe_code, reason = "vector instructions of x86 are called where the processor has them")
)]

use super::{DEGREE, MASK, Polynomial, WINDOW};

/// Stretches that are searched at once.
pub(super) const STRETCHES: usize = 32;
/// Bytes of each stretch that are transposed at once; a stretch's length is a multiple.
pub(super) const STEP: usize = 16;

/// Bytes of a fingerprint times *x*³.
const BYTES: usize = 7;
/// By what power of *x* fingerprints are multiplied.
const SCALE: u32 = 3;
const _: () = assert!(DEGREE + SCALE == 8 * BYTES as u32);

/// What a byte adds to a fingerprint, as maps to each of its bytes.
pub(super) struct Matrices {
    /// A byte that was shifted above the degree.
    overflow: [Map; BYTES],
    /// A byte that leaves the window.
    leaving: [Map; BYTES],
    /// A byte that enters; it touches the lowest two only.
    entering: [Map; 2],
    how: How,
}

/// A linear map from bytes to bytes, as each of the instructions wants it for 32 bytes.
#[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "nothing reads it there"))]
struct Map {
    /// The bit matrix, four times: the row of the lowest bit of the result is in the highest byte.
    matrix: [u64; 4],
    /// The images of the values of the lower four bits, twice.
    low: [u8; 32],
    /// The images of the values of the upper four bits, twice.
    high: [u8; 32],
}

/// The instructions that are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum How {
    /// The bit-matrix instruction.
    Matrix,
    /// Shuffles.
    Shuffle,
}

impl Matrices {
    pub(super) fn new(polynomial: Polynomial, how: How) -> Self {
        // x to the power n, modulo the polynomial, times x³.
        let power = |n: u32| (0..n).fold(1u64, |f, _| Polynomial(f << 1).modulo(polynomial).0) << SCALE;
        let images = |first: u32| std::array::from_fn(|bit| power(first + bit as u32));
        let (overflow, leaving, entering) = (images(DEGREE), images(8 * WINDOW as u32), images(0));
        Matrices {
            overflow: std::array::from_fn(|byte| Map::new(&overflow, byte)),
            leaving: std::array::from_fn(|byte| Map::new(&leaving, byte)),
            entering: std::array::from_fn(|byte| Map::new(&entering, byte)),
            how,
        }
    }
}

impl Map {
    /// The map to byte `byte` of the sum of the images of the bits that are set.
    fn new(images: &[u64; 8], byte: usize) -> Self {
        let mut rows = 0u64;
        for row in 0..8 {
            for (column, image) in images.iter().enumerate() {
                rows |= (image >> (8 * byte + row) & 1) << (8 * (7 - row) + column);
            }
        }
        let image = |value: usize| {
            let set = images.iter().enumerate().filter(|(bit, _)| value >> bit & 1 == 1);
            (set.fold(0, |sum, (_, image)| sum ^ image) >> (8 * byte)) as u8
        };
        Map {
            matrix: [rows; 4],
            low: std::array::from_fn(|i| image(i % 16)),
            high: std::array::from_fn(|i| image((i % 16) << 4)),
        }
    }
}

/// The instructions that the processor has, the fastest first.
pub(super) fn available() -> &'static [How] {
    instructions::available()
}

/// Searches adjacent stretches, each given with the [`WINDOW`] bytes before it, by instructions that are
/// [`available`]. Yields
/// the number of the first stretch that has a position where the low bits of the fingerprint are zero, and in
/// which of its steps the first of them lies. The position before a stretch's first byte is not looked at.
pub(super) fn first_hit(
    matrices: &Matrices,
    stretches: &[&[[u8; STEP]]; STRETCHES],
) -> Option<(usize, usize)> {
    instructions::first_hit(matrices, stretches)
}

#[cfg(not(target_arch = "x86_64"))]
mod instructions {
    use super::{How, Matrices, STEP, STRETCHES};

    pub(super) fn available() -> &'static [How] {
        &[]
    }

    pub(super) fn first_hit(_: &Matrices, _: &[&[[u8; STEP]]; STRETCHES]) -> Option<(usize, usize)> {
        unreachable!("the processor has no such instructions")
    }
}

#[cfg(target_arch = "x86_64")]
mod instructions {
    use std::arch::x86_64::*;

    use super::{BYTES, How, MASK, Map, Matrices, SCALE, STEP, STRETCHES, WINDOW};

    const _: () = assert!(MASK == (1 << 20) - 1, "the test below looks at 20 bits");

    pub(super) fn available() -> &'static [How] {
        match (is_x86_feature_detected!("avx2"), is_x86_feature_detected!("gfni")) {
            (true, true) => &[How::Matrix, How::Shuffle],
            (true, false) => &[How::Shuffle],
            (false, _) => &[],
        }
    }

    pub(super) fn first_hit(
        matrices: &Matrices,
        stretches: &[&[[u8; STEP]]; STRETCHES],
    ) -> Option<(usize, usize)> {
        assert!(available().contains(&matrices.how), "the chunker asks first");
        // SAFETY: the processor has the features that the functions are compiled for, as was just asserted.
        match matrices.how {
            How::Matrix => unsafe { by_matrix::search(matrices, stretches) },
            How::Shuffle => unsafe { by_shuffle::search(matrices, stretches) },
        }
    }

    /// The search, compiled for other features each time: `split` prepares a vector of bytes for `apply`, which maps
    /// it.
    macro_rules! search {
        ($features:literal) => {
            #[target_feature(enable = $features)]
            pub(super) fn search(
                matrices: &Matrices,
                stretches: &[&[[u8; STEP]]; STRETCHES],
            ) -> Option<(usize, usize)> {
                const WARM: usize = WINDOW / STEP;
                let zero = _mm256_setzero_si256();
                let low_bits = _mm256_set1_epi8((MASK >> (16 - SCALE)) as i8);
                let steps = stretches.iter().map(|stretch| stretch.len()).min().unwrap_or(0);
                // The bytes that are in the windows, by step modulo four.
                let mut window = [[zero; STEP]; WARM];
                let mut fingerprints = [zero; BYTES];
                let mut best: Option<(usize, usize)> = None;
                for step in 0..steps {
                    let enter = transpose(stretches, step);
                    let leave = std::mem::replace(&mut window[step % WARM], enter);
                    let mut least = _mm256_set1_epi8(-1);
                    for (enters, leaves) in enter.into_iter().zip(leave) {
                        let (over, leaves, enters) =
                            (split(fingerprints[BYTES - 1]), split(leaves), split(enters));
                        let mut next = [zero; BYTES];
                        for byte in 0..BYTES {
                            let shifted = if byte > 0 { fingerprints[byte - 1] } else { zero };
                            let change = _mm256_xor_si256(
                                apply(&matrices.overflow[byte], over),
                                apply(&matrices.leaving[byte], leaves),
                            );
                            next[byte] = _mm256_xor_si256(shifted, change);
                            if let Some(entering) = matrices.entering.get(byte) {
                                next[byte] = _mm256_xor_si256(next[byte], apply(entering, enters));
                            }
                        }
                        fingerprints = next;
                        // Zero in a stretch's byte if the low 20 bits of the fingerprint are zero.
                        let third = _mm256_and_si256(fingerprints[2], low_bits);
                        let low = _mm256_or_si256(_mm256_or_si256(fingerprints[0], fingerprints[1]), third);
                        least = _mm256_min_epu8(least, low);
                    }
                    let hits = _mm256_movemask_epi8(_mm256_cmpeq_epi8(least, zero)) as u32;
                    if hits != 0 && step >= WARM {
                        let first = (hits.trailing_zeros() as usize, step - WARM);
                        if best.is_none_or(|best| first < best) {
                            best = Some(first);
                        }
                        if first.0 == 0 {
                            break;
                        }
                    }
                }
                best
            }
        };
    }

    mod by_matrix {
        use super::*;

        search!("avx2,gfni");

        #[target_feature(enable = "avx2,gfni")]
        fn split(bytes: __m256i) -> __m256i {
            bytes
        }

        #[target_feature(enable = "avx2,gfni")]
        fn apply(map: &Map, bytes: __m256i) -> __m256i {
            // SAFETY: a matrix is 32 bytes of plain integers; the load needs no alignment.
            let matrix = unsafe { _mm256_loadu_si256(map.matrix.as_ptr().cast()) };
            _mm256_gf2p8affine_epi64_epi8::<0>(bytes, matrix)
        }
    }

    mod by_shuffle {
        use super::*;

        search!("avx2");

        /// The lower and the upper four bits of each byte.
        #[target_feature(enable = "avx2")]
        fn split(bytes: __m256i) -> [__m256i; 2] {
            let four_bits = _mm256_set1_epi8(0xf);
            [_mm256_and_si256(bytes, four_bits), _mm256_and_si256(_mm256_srli_epi16::<4>(bytes), four_bits)]
        }

        #[target_feature(enable = "avx2")]
        fn apply(map: &Map, [low, high]: [__m256i; 2]) -> __m256i {
            // SAFETY: both tables are 32 bytes of plain integers; the loads need no alignment.
            let tables = unsafe {
                [_mm256_loadu_si256(map.low.as_ptr().cast()), _mm256_loadu_si256(map.high.as_ptr().cast())]
            };
            _mm256_xor_si256(_mm256_shuffle_epi8(tables[0], low), _mm256_shuffle_epi8(tables[1], high))
        }
    }

    /// Vector *n* of the result holds byte *n* of this step of every stretch.
    #[target_feature(enable = "avx2")]
    fn transpose(stretches: &[&[[u8; STEP]]; STRETCHES], step: usize) -> [__m256i; STEP] {
        let load = |stretch: usize| {
            let bytes = &stretches[stretch][step];
            // SAFETY: the reference covers 16 bytes; the load needs no alignment.
            unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) }
        };
        // Sixteen rows, each of stretch n in the lower and of stretch n + 16 in the upper half; the transposition
        // is the same in both. Each of four rounds interleaves row n with row n + 8.
        let mut rows: [__m256i; STEP] =
            std::array::from_fn(|n| _mm256_set_m128i(load(n + STRETCHES / 2), load(n)));
        for _ in 0..4 {
            let mut next = rows;
            for n in 0..STEP / 2 {
                next[2 * n] = _mm256_unpacklo_epi8(rows[n], rows[n + STEP / 2]);
                next[2 * n + 1] = _mm256_unpackhi_epi8(rows[n], rows[n + STEP / 2]);
            }
            rows = next;
        }
        rows
    }
}
