//! Numbers that look random and are the same everywhere: every generator of the testkit draws from here.

use std::fmt;

/// The environment variable that replaces the seed of every test.
pub const SEED_VARIABLE: &str = "CISTERN_TEST_SEED";

/// A seed that a failing test shows, so that it can be run again with the same data.
///
/// Hold it for as long as the test runs: when the test panics, it writes the seed to standard error.
pub struct Seed(u64);

/// The seed of this run: `default`, unless [`SEED_VARIABLE`] holds another.
///
/// # Panics
/// If the variable holds something that is no number.
pub fn seed(default: u64) -> Seed {
    match std::env::var(SEED_VARIABLE) {
        Ok(text) => Seed(text.trim().parse().expect("the seed in the environment is a number")),
        Err(_) => Seed(default),
    }
}

impl Seed {
    /// The number itself.
    pub fn value(&self) -> u64 {
        self.0
    }

    /// A generator that begins at this seed.
    pub fn random(&self) -> Random {
        Random::new(self.0)
    }
}

impl fmt::Debug for Seed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SEED_VARIABLE}={}", self.0)
    }
}

impl Drop for Seed {
    #[expect(clippy::print_stderr, reason = "a failing test has no other way to tell how to repeat it")]
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("to repeat with the same data: {self:?}");
        }
    }
}

/// A small generator (SplitMix64, <https://prng.di.unimi.it/splitmix64.c>): fast, and the same in every release.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The sequence that belongs to `seed`.
    pub fn new(seed: u64) -> Self {
        Random(seed)
    }

    /// The next 64 bits.
    pub fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// A number below `bound`, which is not 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        // The upper half of the product is uniform but for an error below 2^-32 for the bounds used here.
        ((u128::from(self.word()) * u128::from(bound)) >> 64) as u64
    }

    /// One of `items`, which are not none.
    pub fn pick<'a, T: ?Sized>(&mut self, items: &[&'a T]) -> &'a T {
        items[self.below(items.len() as u64) as usize]
    }

    /// True once in `n` times.
    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    /// Fills `bytes`.
    pub fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            chunk.copy_from_slice(&self.word().to_le_bytes()[..chunk.len()]);
        }
    }
}

/// Spreads a number over all 64 bits.
pub(crate) fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sequence_is_the_published_one_and_bounds_hold() {
        let mut random = Random::new(1_234_567);
        let first: Vec<u64> = (0..3).map(|_| random.word()).collect();
        assert_eq!(first, [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423]);
        assert!((0..10_000).all(|_| random.below(7) < 7));
    }
}
