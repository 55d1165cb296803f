//! Sealing and opening: AES-256-CTR and Poly1305-AES, as restic combines them.
//!
//! Sealed bytes are IV (16) ‖ ciphertext ‖ MAC (16). The MAC covers the ciphertext only, under the one-time
//! key `r` ‖ AES-128(`k`, IV); the IV is the whole initial counter block, big-endian
//! (<https://restic.readthedocs.io/en/stable/100_references.html#keys-encryption-and-mac>).

use std::fmt;

use aws_lc_rs::cipher::{AES_128, AES_256, EncryptingKey, EncryptionContext, UnboundCipherKey};
use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::hmac;
use poly1305::Poly1305;
use poly1305::universal_hash::{KeyInit, UniversalHash};
use zeroize::{Zeroize, Zeroizing};

use crate::{Error, Result};

/// Length of the IV in front.
pub const IV_LEN: usize = 16;
/// Length of the MAC behind.
pub const MAC_LEN: usize = 16;
/// By how much sealed bytes are longer than plain ones.
pub const OVERHEAD: usize = IV_LEN + MAC_LEN;

/// Bytes that are encrypted and then authenticated while they are in the first-level cache.
const STRIDE: usize = 8 << 10;

/// Fills `bytes` from the system's random number generator.
pub fn random(bytes: &mut [u8]) -> Result<()> {
    // Not the cipher library's own generator, which spends 40 ms on jitter when it starts.
    getrandom::fill(bytes).map_err(|_| Error::Broken("the system's random number generator failed"))
}

/// IVs for one worker, taken from the system 256 at a time; none is ever used twice.
pub struct Nonces {
    pool: Box<[u8; 256 * IV_LEN]>,
    used: usize,
}

impl Nonces {
    /// An empty pool, filled at first use.
    pub fn new() -> Self {
        let pool = Box::new([0; 256 * IV_LEN]);
        Nonces { used: pool.len(), pool }
    }

    fn take(&mut self) -> Result<[u8; IV_LEN]> {
        loop {
            if self.used == self.pool.len() {
                random(&mut self.pool[..])?;
                self.used = 0;
            }
            let nonce = *self.pool[self.used..].first_chunk().expect("the pool holds whole nonces");
            self.used += IV_LEN;
            // Readers refuse the zero IV, which is what a broken generator yields.
            if nonce != [0; IV_LEN] {
                return Ok(nonce);
            }
        }
    }
}

impl Default for Nonces {
    fn default() -> Self {
        Nonces::new()
    }
}

/// The three secrets of a key, as key files carry them.
#[derive(Clone)]
pub struct KeyParts {
    /// AES-256 key of the encryption.
    pub encrypt: [u8; 32],
    /// AES-128 key that turns an IV into half of the one-time MAC key.
    pub k: [u8; 16],
    /// The other half; stored clamped by restic 0.14, unclamped by later ones, clamped when used.
    pub r: [u8; 16],
}

impl Drop for KeyParts {
    fn drop(&mut self) {
        self.encrypt.zeroize();
        self.k.zeroize();
        self.r.zeroize();
    }
}

/// A key that seals and opens: a repository's master key, or one derived from a password.
pub struct MasterKey {
    parts: KeyParts,
    cipher: EncryptingKey,
    one_time: EncryptingKey,
    /// Poly1305 of nothing under `r` ‖ 0. Preparing `r` costs as much as a kilobyte of text, so that it is done
    /// once; the other half of the one-time key is only added at the end.
    sum: Poly1305,
}

impl MasterKey {
    /// A new random key.
    pub fn generate() -> Result<Self> {
        let mut bytes = Zeroizing::new([0; 64]);
        random(&mut bytes[..])?;
        MasterKey::from_bytes(&bytes)
    }

    /// The key whose secrets are encrypt ‖ k ‖ r, the order in which scrypt's output is used.
    pub fn from_bytes(bytes: &[u8; 64]) -> Result<Self> {
        let (encrypt, mac) = bytes.split_at(32);
        let (k, r) = mac.split_at(16);
        let copied = "the parts of 64 bytes have fixed lengths";
        MasterKey::from_parts(KeyParts {
            encrypt: encrypt.try_into().expect(copied),
            k: k.try_into().expect(copied),
            r: r.try_into().expect(copied),
        })
    }

    /// The key with these secrets. Zero keys are refused, as restic refuses them.
    pub fn from_parts(parts: KeyParts) -> Result<Self> {
        if parts.encrypt == [0; 32] || parts.k == [0; 16] || parts.r == [0; 16] {
            return Err(Error::damaged("key", "a part of it is zero"));
        }
        let fails = |_| Error::Broken("a cipher refused a key of the right length");
        let cipher =
            UnboundCipherKey::new(&AES_256, &parts.encrypt).and_then(EncryptingKey::ctr).map_err(fails)?;
        let one_time =
            UnboundCipherKey::new(&AES_128, &parts.k).and_then(EncryptingKey::ecb).map_err(fails)?;
        let mut key = Zeroizing::new([0u8; 32]);
        key[..16].copy_from_slice(&parts.r); // Poly1305 clamps it.
        let sum = Poly1305::new((&*key).into());
        Ok(MasterKey { parts, cipher, one_time, sum })
    }

    /// A key for another purpose, which tells nothing about this one.
    pub(crate) fn derive(&self, purpose: &[u8]) -> Zeroizing<[u8; 32]> {
        let KeyParts { encrypt, k, r } = &self.parts;
        let mut context = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, encrypt));
        [k, r, purpose].into_iter().for_each(|part: &[u8]| context.update(part));
        let mut key = Zeroizing::new([0; 32]);
        key.copy_from_slice(context.sign().as_ref());
        key
    }

    /// The secrets, for writing them into a key file.
    pub fn parts(&self) -> &KeyParts {
        &self.parts
    }

    /// Appends sealed `plain` to `out`.
    pub fn seal_into(&self, nonces: &mut Nonces, plain: &[u8], out: &mut Vec<u8>) -> Result<()> {
        let start = out.len();
        out.reserve(plain.len() + OVERHEAD);
        out.extend_from_slice(&[0; IV_LEN]);
        out.extend_from_slice(plain);
        self.seal_in_place(nonces, out, start)
    }

    /// Seals what lies in `buf` from `start` + [`IV_LEN`] to the end: puts the IV at `start`, which is reserved
    /// for it, encrypts in place and appends the MAC.
    pub fn seal_in_place(&self, nonces: &mut Nonces, buf: &mut Vec<u8>, start: usize) -> Result<()> {
        let iv = nonces.take()?;
        let (front, text) = buf[start..].split_at_mut(IV_LEN);
        front.copy_from_slice(&iv);
        let mut mac = self.mac(&iv)?;
        let mut block = u128::from_be_bytes(iv);
        for piece in text.chunks_mut(STRIDE) {
            self.apply_stream(block, piece)?;
            block = block.wrapping_add((STRIDE / 16) as u128);
            mac.update(piece);
        }
        buf.extend_from_slice(&mac.finish());
        Ok(())
    }

    /// Checks the MAC and decrypts in place; yields the plain bytes, a part of `sealed`.
    ///
    /// Plain bytes that do not authenticate never leave: `sealed` is cleared on failure.
    pub fn open_in_place<'a>(&self, sealed: &'a mut [u8]) -> Result<&'a mut [u8]> {
        let (iv, text, tag) = parts_of(sealed)?;
        let mut mac = self.mac(iv)?;
        let mut block = u128::from_be_bytes(*iv);
        for piece in text.chunks_mut(STRIDE) {
            mac.update(piece);
            self.apply_stream(block, piece)?;
            block = block.wrapping_add((STRIDE / 16) as u128);
        }
        if verify_slices_are_equal(&mac.finish(), tag).is_err() {
            text.fill(0);
            return Err(Error::damaged("sealed data", "it does not authenticate"));
        }
        Ok(text)
    }

    /// Decrypts in place without checking the MAC: for bytes whose hash is known, and is compared before anything else
    /// looks at them.
    pub(crate) fn decrypt_in_place<'a>(&self, sealed: &'a mut [u8]) -> Result<&'a mut [u8]> {
        let (iv, text, _) = parts_of(sealed)?;
        self.apply_stream(u128::from_be_bytes(*iv), text)?;
        Ok(text)
    }

    /// As [`open_in_place`](Self::open_in_place), for sealed bytes that have to stay: appends the plain bytes to `out`.
    pub fn open_copy(&self, sealed: &[u8], out: &mut Vec<u8>) -> Result<()> {
        let damaged = |detail| Error::damaged("sealed data", detail);
        let (Some((iv, rest)), Some(length)) =
            (sealed.split_first_chunk(), sealed.len().checked_sub(OVERHEAD))
        else {
            return Err(damaged("it is shorter than its seal"));
        };
        if *iv == [0; IV_LEN] {
            return Err(damaged("its IV is zero"));
        }
        let (text, tag) = rest.split_at(length);
        let before = out.len();
        out.reserve(length);
        let mut mac = self.mac(iv)?;
        let mut block = u128::from_be_bytes(*iv);
        for piece in text.chunks(STRIDE) {
            mac.update(piece);
            let start = out.len();
            out.extend_from_slice(piece);
            self.apply_stream(block, &mut out[start..])?;
            block = block.wrapping_add((STRIDE / 16) as u128);
        }
        if verify_slices_are_equal(&mac.finish(), tag).is_err() {
            out.truncate(before);
            return Err(damaged("it does not authenticate"));
        }
        Ok(())
    }

    /// The one-time authenticator that belongs to `iv`.
    fn mac(&self, iv: &[u8; IV_LEN]) -> Result<Mac> {
        let mut pad = *iv;
        self.one_time
            .less_safe_encrypt(&mut pad, EncryptionContext::None)
            .map_err(|_| Error::Broken("AES-128 failed on one block"))?;
        Ok(Mac { state: self.sum.clone(), pad: u128::from_le_bytes(pad), tail: [0; 16], tail_len: 0 })
    }

    /// En- or decrypts `bytes` in place, of which the first is the first of counter block `block`.
    fn apply_stream(&self, block: u128, bytes: &mut [u8]) -> Result<()> {
        self.cipher
            .less_safe_encrypt(bytes, EncryptionContext::Iv128(block.to_be_bytes().into()))
            .map(|_| ())
            .map_err(|_| Error::Broken("AES-256-CTR failed"))
    }
}

impl fmt::Debug for MasterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MasterKey(..)")
    }
}

/// IV, ciphertext and MAC of sealed bytes.
fn parts_of(sealed: &mut [u8]) -> Result<(&[u8; IV_LEN], &mut [u8], &[u8; MAC_LEN])> {
    let damaged = |detail| Error::damaged("sealed data", detail);
    if sealed.len() < OVERHEAD {
        return Err(damaged("it is shorter than its seal"));
    }
    let (iv, rest) = sealed.split_first_chunk_mut::<IV_LEN>().expect("the length was checked");
    let (text, tag) = rest.split_last_chunk_mut::<MAC_LEN>().expect("the length was checked");
    if *iv == [0; IV_LEN] {
        return Err(damaged("its IV is zero"));
    }
    Ok((iv, text, tag))
}

/// Poly1305 over pieces, all but the last of which are whole blocks.
struct Mac {
    /// The sum so far, under the key `r` ‖ 0.
    state: Poly1305,
    /// The other half of the one-time key.
    pad: u128,
    tail: [u8; 16],
    tail_len: usize,
}

impl Mac {
    fn update(&mut self, piece: &[u8]) {
        debug_assert_eq!(self.tail_len, 0, "only the last piece may end within a block");
        let (blocks, tail) = poly1305::Block::slice_as_chunks(piece);
        self.state.update(blocks);
        self.tail[..tail.len()].copy_from_slice(tail);
        self.tail_len = tail.len();
    }

    fn finish(self) -> [u8; MAC_LEN] {
        let sum = self.state.compute_unpadded(&self.tail[..self.tail_len]);
        // The last step of Poly1305 adds the pad modulo 2^128.
        u128::from_le_bytes(sum.into()).wrapping_add(self.pad).to_le_bytes()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key() -> MasterKey {
        MasterKey::from_bytes(&std::array::from_fn(|i| i as u8 + 1)).unwrap()
    }

    /// Values that Go's crypto/aes, and Poly1305 written with its big integers, gave for this key, IV and text.
    #[test]
    fn opens_what_an_independent_implementation_sealed() {
        for (length, digest) in GO_VECTORS {
            let plain: Vec<u8> = (0..*length).map(|i| (i % 251) as u8).collect();
            let iv: [u8; 16] = std::array::from_fn(|i| 0xf0 + i as u8);
            let mut nonces = Nonces { pool: Box::new([0; 4096]), used: 0 };
            nonces.pool[..16].copy_from_slice(&iv);
            let mut sealed = Vec::new();
            key().seal_into(&mut nonces, &plain, &mut sealed).unwrap();
            assert_eq!(sealed.len(), length + OVERHEAD);
            assert_eq!(crate::Id::of(&sealed).to_string(), *digest, "{length}");
            let mut copy = vec![1, 2, 3];
            copy.clear();
            key().open_copy(&sealed, &mut copy).unwrap();
            assert_eq!(copy, plain);
            assert_eq!(key().open_in_place(&mut sealed).unwrap(), plain);
        }
    }

    /// Length, SHA-256 of the sealed bytes.
    const GO_VECTORS: &[(usize, &str)] = &[
        (0, "c5c858f64a85aab9d73b8cfff58eaf569da4ecf9f65f8b9a46eb7c60e30f2bf9"),
        (1, "4af0c15401315cbd39db7de70a87b2be1bae3392331d3b22e15bbb9eee6f639d"),
        (15, "83bbe6dce656eb05f4f70919288c5b2a04f8dfe57733dbc2085f6786ddc8e07f"),
        (16, "6b529cf44a1ad02a1f32940ec407f3930d63d5374e0da070828ab8425f10302a"),
        (17, "d732b7f1e305f5855d35d59b6bdca993cae91fd4ec8c1724a7115b0416bd61bf"),
        (100, "9e701c38818027d7032e63452ce5ab17cb7288dc5ff2305d22af046606d01eb2"),
        (8191, "24d74ac4291825b349c8569589d6097adb1d3cdbc1b796c5998c6c7ba42ee28e"),
        (8192, "1f7b73cd8a38f402921d4f52482e6b86be1eeae9857188924f65d651e033361e"),
        (8193, "3ab8038d264d5700217c271b028bebe852ce7febbe5e63a4f65eba47f3975e48"),
        (70000, "d9b6e0a1cabb567555d97e1c544b9dd82ebe88b14131c8f469e3427b1142e691"),
    ];

    proptest! {
        #[test]
        fn every_flipped_bit_is_noticed(length in 0usize..40_000, bit in any::<prop::sample::Index>()) {
            let plain: Vec<u8> = (0..length).map(|i| (i * 7 % 253) as u8).collect();
            let mut sealed = vec![9, 9];
            key().seal_into(&mut Nonces::new(), &plain, &mut sealed).unwrap();
            let mut sealed = sealed.split_off(2);
            let bit = bit.index(sealed.len() * 8);
            sealed[bit / 8] ^= 1 << (bit % 8);
            let mut copy = Vec::new();
            prop_assert!(key().open_copy(&sealed, &mut copy).is_err() && copy.is_empty());
            let error = key().open_in_place(&mut sealed).unwrap_err();
            prop_assert_eq!(error.class(), cistern_bucket::Class::Damaged);
            prop_assert!(sealed[IV_LEN..sealed.len() - MAC_LEN].iter().all(|&b| b == 0));
        }
    }

    #[test]
    fn nonces_differ_and_zero_is_skipped() {
        let mut nonces = Nonces::new();
        let taken: std::collections::HashSet<_> = (0..1000).map(|_| nonces.take().unwrap()).collect();
        assert_eq!(taken.len(), 1000);
        let mut nonces = Nonces { pool: Box::new([0; 4096]), used: 4096 - 16 };
        assert_ne!(nonces.take().unwrap(), [0; 16]);
    }

    #[test]
    fn zero_keys_and_short_input_are_refused_and_debug_is_mute() {
        assert!(MasterKey::from_bytes(&[0; 64]).is_err());
        let mut bytes = [1; 64];
        bytes[48..].fill(0);
        assert!(MasterKey::from_bytes(&bytes).is_err());
        assert!(key().open_in_place(&mut [1; 31]).is_err());
        assert!(key().open_in_place(&mut [0; 32]).is_err());
        assert!(key().open_copy(&[1; 31], &mut Vec::new()).is_err());
        assert!(key().open_copy(&[0; 32], &mut Vec::new()).is_err());
        assert_eq!(format!("{:?}", key()), "MasterKey(..)");
    }
}
