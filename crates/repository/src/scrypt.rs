//! scrypt (RFC 7914), which turns a password into a key, with two of its parallel parts in the halves of one vector: opening
//! a repository is most of what a short command costs. More at once would be faster still, and take more memory.
//!
//! It is compared with the library's when it is used first; a difference, or a processor or parameters for which it is
//! not made, has the library do it.
#![cfg_attr(
    target_arch = "x86_64",
    expect(unsafe_code, reason = "vector instructions of x86 are called where the processor has them")
)]

use std::num::NonZeroU32;
use std::sync::OnceLock;

use aws_lc_rs::pbkdf2;
use memmap2::{Advice, MmapMut};
use zeroize::Zeroizing;

use crate::{Error, Result};

/// Memory for two parts, at most; what one alone needs is bounded by the caller.
const MEMORY: usize = 128 << 20;

/// 64 bytes from a password.
///
/// # Errors
/// [`Error::BadParameter`] if scrypt does not know such parameters.
pub(crate) fn scrypt(password: &[u8], salt: &[u8], n: u64, r: u64, p: u64) -> Result<Zeroizing<[u8; 64]>> {
    let part = usize::try_from(n.saturating_mul(r).saturating_mul(128)).unwrap_or(usize::MAX);
    if p > 1
        && part <= MEMORY / 2
        && works()
        && let Some(key) = in_pairs(password, salt, n as usize, r as usize, p as usize)
    {
        return Ok(key);
    }
    by_library(password, salt, n, r, p)
}

fn by_library(password: &[u8], salt: &[u8], n: u64, r: u64, p: u64) -> Result<Zeroizing<[u8; 64]>> {
    let refused =
        || Error::BadParameter { what: "key", detail: format!("scrypt with N = {n}, r = {r}").into() };
    let params = scrypt::Params::new(n.checked_ilog2().unwrap_or(0) as u8, r as u32, p as u32);
    let mut derived = Zeroizing::new([0; 64]);
    scrypt::scrypt(password, salt, &params.map_err(|_| refused())?, &mut derived[..])
        .map_err(|_| Error::Broken("scrypt refused parameters that were checked"))?;
    Ok(derived)
}

/// Whether the processor can, and comes to the same result as the library.
fn works() -> bool {
    static WORKS: OnceLock<bool> = OnceLock::new();
    let same = |p: u64| {
        let (password, salt) = (b"a password", b"and its salt");
        by_library(password, salt, 32, 2, p).ok() == in_pairs(password, salt, 32, 2, p as usize)
    };
    *WORKS.get_or_init(|| instructions::available() && (2..=5).all(same))
}

/// None if there is no memory for it.
fn in_pairs(password: &[u8], salt: &[u8], n: usize, r: usize, p: usize) -> Option<Zeroizing<[u8; 64]>> {
    let expand = |salt: &[u8], out: &mut [u8]| {
        pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, NonZeroU32::MIN, salt, password, out);
    };
    let part = 128 * r;
    let mut parts = Zeroizing::new(vec![0; p * part]);
    expand(salt, &mut parts);
    // Large pages, if the system can: to get small ones, one by one, would cost as much as the mixing.
    let mut room = MmapMut::map_anon(2 * part * n).ok()?;
    let _ = room.advise(Advice::HugePage);
    parts.chunks_mut(2 * part).for_each(|pair| instructions::mix(pair, n, r, &mut room));
    let mut derived = Zeroizing::new([0; 64]);
    expand(&parts, &mut derived[..]);
    Some(derived)
}

/// No such instructions are known for other processors: the library is used.
#[cfg(not(target_arch = "x86_64"))]
mod instructions {
    pub(super) fn available() -> bool {
        false
    }

    pub(super) fn mix(_: &mut [u8], _: usize, _: usize, _: &mut [u8]) {
        unreachable!("the processor has no such instructions")
    }
}

#[cfg(target_arch = "x86_64")]
mod instructions {
    use std::arch::x86_64::*;

    /// One block of 64 bytes of two parts: four rows, in each the words of the first part and then those of the second.
    type Block = [[u32; 8]; 4];
    /// One block of one part.
    type Half = [[u32; 4]; 4];
    type Rows = [__m256i; 4];

    /// Which word of a block stands where: the diagonals, so that the quarter rounds of a round go in step.
    const WORDS: [[usize; 4]; 4] = [[0, 5, 10, 15], [4, 9, 14, 3], [8, 13, 2, 7], [12, 1, 6, 11]];

    pub(super) fn available() -> bool {
        is_x86_feature_detected!("avx2")
    }

    /// Mixes one or two parts of 128 · `r` bytes each: scryptROMix of RFC 7914. `room` is memory for it.
    pub(super) fn mix(parts: &mut [u8], n: usize, r: usize, room: &mut [u8]) {
        assert!(available(), "the caller asks first");
        // SAFETY: the processor has the features that the function is compiled for, as was just asserted.
        unsafe { mix_pair(parts, n, r, room) }
    }

    #[target_feature(enable = "avx2")]
    fn mix_pair(parts: &mut [u8], n: usize, r: usize, room: &mut [u8]) {
        let (blocks, count) = (2 * r, parts.len() / (128 * r));
        assert!(n.is_power_of_two() && (1..=2).contains(&count));
        let mut x: Vec<Block> = vec![[[0; 8]; 4]; blocks];
        let mut y = x.clone();
        for_each_word(parts, r, |part, block, row, column, word| {
            x[block][row][part * 4 + column] = u32::from_le_bytes(*word);
        });
        // The states of each part by themselves: what is read together later lies together.
        let states = n * blocks;
        let v: &mut [Half] = &mut bytemuck::cast_slice_mut(room)[..count * states];
        for at in (0..states).step_by(blocks) {
            for part in 0..count {
                for (to, from) in v[part * states + at..][..blocks].iter_mut().zip(&x) {
                    for (to, row) in to.iter_mut().zip(from) {
                        *to = row.as_chunks().0[part];
                    }
                }
            }
            mix_blocks(&mut y, |block| load(&x[block]));
            std::mem::swap(&mut x, &mut y);
        }
        for _ in 0..n {
            // The first word of a part's last block says which state; one alone is there twice.
            let state = |part: usize| {
                let number = x[blocks - 1][0][part * 4] as usize & (n - 1);
                &v[part.min(count - 1) * states + number * blocks..][..blocks]
            };
            let (first, second) = (state(0), state(1));
            mix_blocks(&mut y, |block| {
                let mut rows = load(&x[block]);
                for row in 0..4 {
                    rows[row] = _mm256_xor_si256(rows[row], both(&first[block][row], &second[block][row]));
                }
                rows
            });
            std::mem::swap(&mut x, &mut y);
        }
        for_each_word(parts, r, |part, block, row, column, word| {
            *word = x[block][row][part * 4 + column].to_le_bytes();
        });
    }

    /// Part, block, row and column of each word, and its bytes.
    fn for_each_word(
        parts: &mut [u8],
        r: usize,
        mut each: impl FnMut(usize, usize, usize, usize, &mut [u8; 4]),
    ) {
        for (part, bytes) in parts.chunks_exact_mut(128 * r).enumerate() {
            for (block, bytes) in bytes.as_chunks_mut::<64>().0.iter_mut().enumerate() {
                let words = bytes.as_chunks_mut::<4>().0;
                for (row, columns) in WORDS.iter().enumerate() {
                    for (column, word) in columns.iter().enumerate() {
                        each(part, block, row, column, &mut words[*word]);
                    }
                }
            }
        }
    }

    /// scryptBlockMix of what `input` gives for each block.
    #[target_feature(enable = "avx2")]
    fn mix_blocks(output: &mut [Block], input: impl Fn(usize) -> Rows) {
        let count = output.len();
        let mut state = input(count - 1);
        for block in 0..count {
            let next = input(block);
            for row in 0..4 {
                state[row] = _mm256_xor_si256(state[row], next[row]);
            }
            salsa20_8(&mut state);
            // Even blocks come first.
            store(&state, &mut output[block / 2 + block % 2 * (count / 2)]);
        }
    }

    #[target_feature(enable = "avx2")]
    fn salsa20_8(rows: &mut Rows) {
        let before = *rows;
        /// One quarter round of all columns: `$to` ^= (`$a` + `$b`) <<< `$by`.
        macro_rules! quarter {
            ($to:literal $a:literal $b:literal $by:literal) => {
                let sum = _mm256_add_epi32(rows[$a], rows[$b]);
                rows[$to] = _mm256_xor_si256(rows[$to], _mm256_slli_epi32::<$by>(sum));
                rows[$to] = _mm256_xor_si256(rows[$to], _mm256_srli_epi32::<{ 32 - $by }>(sum));
            };
        }
        for _ in 0..4 {
            quarter!(1 0 3 7);
            quarter!(2 1 0 9);
            quarter!(3 2 1 13);
            quarter!(0 3 2 18);
            // The diagonals of the columns become those of the rows, and back.
            rows[1] = _mm256_shuffle_epi32::<0x93>(rows[1]);
            rows[2] = _mm256_shuffle_epi32::<0x4e>(rows[2]);
            rows[3] = _mm256_shuffle_epi32::<0x39>(rows[3]);
            quarter!(3 0 1 7);
            quarter!(2 3 0 9);
            quarter!(1 2 3 13);
            quarter!(0 1 2 18);
            rows[1] = _mm256_shuffle_epi32::<0x39>(rows[1]);
            rows[2] = _mm256_shuffle_epi32::<0x4e>(rows[2]);
            rows[3] = _mm256_shuffle_epi32::<0x93>(rows[3]);
        }
        for (row, before) in rows.iter_mut().zip(before) {
            *row = _mm256_add_epi32(*row, before);
        }
    }

    #[target_feature(enable = "avx2")]
    fn load(block: &Block) -> Rows {
        let mut rows = [_mm256_setzero_si256(); 4];
        for (to, row) in rows.iter_mut().zip(block) {
            // SAFETY: a row is 32 bytes of plain integers; the load needs no alignment.
            *to = unsafe { _mm256_loadu_si256(row.as_ptr().cast()) };
        }
        rows
    }

    #[target_feature(enable = "avx2")]
    fn store(rows: &Rows, block: &mut Block) {
        for (row, to) in rows.iter().zip(block) {
            // SAFETY: a row is 32 bytes of plain integers; the store needs no alignment.
            unsafe { _mm256_storeu_si256(to.as_mut_ptr().cast(), *row) };
        }
    }

    /// A row of two parts.
    #[target_feature(enable = "avx2")]
    fn both(first: &[u32; 4], second: &[u32; 4]) -> __m256i {
        // SAFETY: each half is 16 bytes of plain integers; the loads need no alignment.
        let (first, second) =
            unsafe { (_mm_loadu_si128(first.as_ptr().cast()), _mm_loadu_si128(second.as_ptr().cast())) };
        _mm256_set_m128i(second, first)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// RFC 7914, section 12.
    #[test]
    fn it_is_the_scrypt_of_the_standard() {
        let cases: [(&str, &str, u64, u64, u64, &str); 2] = [
            (
                "password",
                "NaCl",
                1024,
                8,
                16,
                "fdbabe1c9d3472007856e7190d01e9fe7c6ad7cbc8237830e77376634b3731622eaf30d92e22a3886ff109279d9830da\
                 c727afb94a83ee6d8360cbdfa2cc0640",
            ),
            (
                "",
                "",
                16,
                1,
                1,
                "77d6576238657b203b19ca42c18a0497f16b4844e3074ae8dfdffa3fede21442fcd0069ded0948f8326a753a0fc81f17\
                 e8d3e0fb2e0d3628cf35e20c38d18906",
            ),
        ];
        for (password, salt, n, r, p, expected) in cases {
            let key = scrypt(password.as_bytes(), salt.as_bytes(), n, r, p).unwrap();
            assert_eq!(hex::encode(&key[..]), expected);
        }
    }

    #[test]
    fn it_works_where_the_processor_can() {
        assert_eq!(works(), instructions::available());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]
        #[test]
        fn it_is_the_same_as_the_library_s(
            password in prop::collection::vec(any::<u8>(), 0..100), salt in prop::collection::vec(any::<u8>(), 1..80),
            log_n in 1u32..11, r in 1u64..20, p in 1u64..11,
        ) {
            let n = 1 << log_n;
            let expected = by_library(&password, &salt, n, r, p).unwrap();
            prop_assert_eq!(&scrypt(&password, &salt, n, r, p).unwrap()[..], &expected[..]);
            if instructions::available() {
                let own = in_pairs(&password, &salt, n as usize, r as usize, p as usize).unwrap();
                prop_assert_eq!(&own[..], &expected[..]);
            }
        }
    }
}
