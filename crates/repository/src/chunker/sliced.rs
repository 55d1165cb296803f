//! The chunker's search on 32 stretches at once: a fingerprint is a linear function of bits, so that the
//! processor's bit-matrix instruction (GFNI) does what table look-ups do otherwise.
//!
//! Vector *k* holds byte *k* of 32 fingerprints, one per stretch. Shifting all fingerprints by a byte is then
//! renaming vectors, and what shifts out, what enters and what leaves the window is added by multiplying a vector
//! of bytes with 8×8 matrices. Fingerprints are kept times *x*³: of degree below 56, they fill seven bytes.
#![cfg_attr(
    target_arch = "x86_64",
    expect(unsafe_code, reason = "the bit-matrix instruction of x86 is called where the processor has it")
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

/// A bit matrix four times, as the instruction wants it for 32 bytes.
type Matrix = [u64; 4];

/// What a byte adds to a fingerprint, as matrices, one per byte of the fingerprint.
pub(super) struct Matrices {
    /// A byte that was shifted above the degree.
    overflow: [Matrix; BYTES],
    /// A byte that leaves the window.
    leaving: [Matrix; BYTES],
    /// A byte that enters; it touches the lowest two only.
    entering: [Matrix; 2],
}

impl Matrices {
    pub(super) fn new(polynomial: Polynomial) -> Self {
        // x to the power n, modulo the polynomial, times x³.
        let power = |n: u32| (0..n).fold(1u64, |f, _| Polynomial(f << 1).modulo(polynomial).0) << SCALE;
        let map = |first: u32| std::array::from_fn(|bit| power(first + bit as u32));
        let (overflow, leaving, entering) = (map(DEGREE), map(8 * WINDOW as u32), map(0));
        Matrices {
            overflow: std::array::from_fn(|byte| matrix(&overflow, byte)),
            leaving: std::array::from_fn(|byte| matrix(&leaving, byte)),
            entering: std::array::from_fn(|byte| matrix(&entering, byte)),
        }
    }
}

/// The matrix that gives byte `byte` of the sum of the images of the bits that are set. The instruction wants the
/// row of the lowest bit of the result in the highest byte.
fn matrix(images: &[u64; 8], byte: usize) -> Matrix {
    let mut rows = 0u64;
    for row in 0..8 {
        for (column, image) in images.iter().enumerate() {
            rows |= (image >> (8 * byte + row) & 1) << (8 * (7 - row) + column);
        }
    }
    [rows; 4]
}

/// Whether the processor has the instructions.
pub(super) fn available() -> bool {
    instructions::available()
}

/// Searches adjacent stretches, each given with the [`WINDOW`] bytes before it; only where [`available`]. Yields
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
    use super::{Matrices, STEP, STRETCHES};

    pub(super) fn available() -> bool {
        false
    }

    pub(super) fn first_hit(_: &Matrices, _: &[&[[u8; STEP]]; STRETCHES]) -> Option<(usize, usize)> {
        unreachable!("the processor has no such instructions")
    }
}

#[cfg(target_arch = "x86_64")]
mod instructions {
    use std::arch::x86_64::*;

    use super::{BYTES, MASK, Matrices, Matrix, SCALE, STEP, STRETCHES, WINDOW};

    const _: () = assert!(MASK == (1 << 20) - 1, "the test below looks at 20 bits");

    pub(super) fn available() -> bool {
        is_x86_feature_detected!("avx2") && is_x86_feature_detected!("gfni")
    }

    pub(super) fn first_hit(
        matrices: &Matrices,
        stretches: &[&[[u8; STEP]]; STRETCHES],
    ) -> Option<(usize, usize)> {
        assert!(available(), "the chunker asks first");
        // SAFETY: the processor has the features that the function is compiled for, as was just asserted.
        unsafe { search(matrices, stretches) }
    }

    #[target_feature(enable = "avx2,gfni")]
    fn search(matrices: &Matrices, stretches: &[&[[u8; STEP]]; STRETCHES]) -> Option<(usize, usize)> {
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
                let over = fingerprints[BYTES - 1];
                let mut next = [zero; BYTES];
                for byte in 0..BYTES {
                    let shifted = if byte > 0 { fingerprints[byte - 1] } else { zero };
                    let change = _mm256_xor_si256(
                        multiply(over, &matrices.overflow[byte]),
                        multiply(leaves, &matrices.leaving[byte]),
                    );
                    next[byte] = _mm256_xor_si256(shifted, change);
                    if let Some(entering) = matrices.entering.get(byte) {
                        next[byte] = _mm256_xor_si256(next[byte], multiply(enters, entering));
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

    #[target_feature(enable = "avx2,gfni")]
    fn multiply(bytes: __m256i, matrix: &Matrix) -> __m256i {
        // SAFETY: a matrix is 32 bytes of plain integers; the load needs no alignment.
        let matrix = unsafe { _mm256_loadu_si256(matrix.as_ptr().cast()) };
        _mm256_gf2p8affine_epi64_epi8::<0>(bytes, matrix)
    }

    /// Vector *n* of the result holds byte *n* of this step of every stretch.
    #[target_feature(enable = "avx2,gfni")]
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
