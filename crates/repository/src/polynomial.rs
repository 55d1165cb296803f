//! Polynomials over GF(2) of degree below 64: what a repository's chunker divides by.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::{Error, Result};

/// Degree of a chunker's polynomial.
pub const DEGREE: u32 = 53;

/// A polynomial; bit *i* is the coefficient of *x* to the power of *i*. Written as hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct Polynomial(pub u64);

impl Polynomial {
    /// A random irreducible polynomial of degree [`DEGREE`], found by trial: about one in 53 is irreducible.
    pub fn random() -> Result<Self> {
        for _ in 0..100_000 {
            let mut bytes = [0; 8];
            crate::crypto::random(&mut bytes)?;
            // The constant term is one, or x would divide it.
            let candidate = u64::from_le_bytes(bytes) & ((1 << DEGREE) - 1) | 1 << DEGREE | 1;
            if Polynomial(candidate).is_irreducible() {
                return Ok(Polynomial(candidate));
            }
        }
        Err(Error::Broken("no irreducible polynomial was found"))
    }

    /// The degree; none for the zero polynomial.
    pub fn degree(self) -> Option<u32> {
        self.0.checked_ilog2()
    }

    /// The remainder of the division by `divisor`, which is not zero.
    pub(crate) fn modulo(self, divisor: Polynomial) -> Polynomial {
        Polynomial(reduce(u128::from(self.0), divisor.0))
    }

    /// Ben-Or's test: irreducible of degree *n*, if for no *i* up to *n*/2 it shares a factor with
    /// x^(2^i) − x.
    pub fn is_irreducible(self) -> bool {
        let Some(degree @ 1..) = self.degree() else { return false };
        let x = reduce(2, self.0);
        let mut power = x;
        for _ in 0..degree / 2 {
            power = reduce(square(power), self.0);
            if gcd(self.0, power ^ x) != 1 {
                return false;
            }
        }
        true
    }
}

/// The square: every bit moves to twice its place.
fn square(value: u64) -> u128 {
    (0..64).filter(|i| value >> i & 1 == 1).map(|i| 1u128 << (2 * i)).sum()
}

/// `value` modulo `divisor`, which is not zero.
fn reduce(mut value: u128, divisor: u64) -> u64 {
    let degree = divisor.ilog2();
    while let Some(top) = value.checked_ilog2().filter(|top| *top >= degree) {
        value ^= u128::from(divisor) << (top - degree);
    }
    value as u64
}

fn gcd(mut a: u64, mut b: u64) -> u64 {
    while b != 0 {
        (a, b) = (b, reduce(u128::from(a), b));
    }
    a
}

impl fmt::Display for Polynomial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}", self.0)
    }
}

impl FromStr for Polynomial {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        u64::from_str_radix(text, 16).map(Polynomial)
    }
}

impl Serialize for Polynomial {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Polynomial {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agrees_with_trial_division_on_every_small_polynomial() {
        for value in 0..1u64 << 11 {
            let has_divisor = (2..value)
                .filter(|d| d.ilog2() >= 1 && d.ilog2() < value.ilog2())
                .any(|d| reduce(u128::from(value), d) == 0);
            let irreducible = value > 1 && !has_divisor;
            assert_eq!(Polynomial(value).is_irreducible(), irreducible, "{value:b}");
        }
    }

    #[test]
    fn known_polynomials_of_degree_53() {
        // The example in restic's chunker, and one that x + 1 divides.
        assert!(Polynomial(0x003D_A335_8B4D_C173).is_irreducible());
        assert_eq!(Polynomial(0x003D_A335_8B4D_C173).degree(), Some(53));
        assert!(!Polynomial(0x003D_A335_8B4D_C172).is_irreducible());
        assert!(!Polynomial(1 << 53 | 1).is_irreducible());
    }

    #[test]
    fn random_ones_are_good_and_differ() {
        let (a, b) = (Polynomial::random().unwrap(), Polynomial::random().unwrap());
        assert_ne!(a, b);
        assert_eq!((a.degree(), a.is_irreducible()), (Some(53), true));
        assert_eq!(a.to_string().parse(), Ok(a));
    }
}
