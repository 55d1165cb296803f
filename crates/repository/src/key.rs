//! Key files: the master key, sealed by a password
//! (<https://restic.readthedocs.io/en/stable/100_references.html#keys-encryption-and-mac>).

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use zeroize::{Zeroize, Zeroizing};

use crate::crypto::{KeyParts, MasterKey, Nonces, random};
use crate::scrypt::scrypt;
use crate::time::Time;
use crate::{Error, Result};

/// Most memory that a key file may ask of us: restic asks 32 to 64 MiB, rustic 128.
pub const MAX_MEMORY: u64 = 512 << 20;
/// Most work, as bytes mixed: about ten seconds.
const MAX_WORK: u64 = 4 << 30;
/// Largest N.
const MAX_N: u64 = 1 << 20;

/// What it costs to turn a password into a key: scrypt's parameters (RFC 7914). Whoever guesses passwords pays it for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KdfParams {
    /// Cost, a power of two.
    pub n: u64,
    /// Block size.
    pub r: u64,
    /// Parallelism.
    pub p: u64,
}

impl Default for KdfParams {
    /// 32 MiB and about 0.3 s of one core, as restic chooses.
    fn default() -> Self {
        KdfParams { n: 32_768, r: 8, p: 4 }
    }
}

impl KdfParams {
    /// No protection at all: for tests, which open a repository many times with a password that everybody knows.
    pub const NONE: KdfParams = KdfParams { n: 2, r: 1, p: 1 };
}

/// One way to open a repository. It holds no secret in the clear.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct KeyFile {
    /// When it was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<Time>,
    /// By whom.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub username: String,
    /// Where.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub hostname: String,
    /// How the password becomes a key: `scrypt`.
    pub kdf: String,
    /// scrypt's cost, a power of two.
    #[serde(rename = "N")]
    pub n: u64,
    /// scrypt's block size.
    pub r: u64,
    /// scrypt's parallelism.
    pub p: u64,
    /// scrypt's salt.
    pub salt: Base64,
    /// The sealed master key.
    pub data: Base64,
    /// Members of other programs.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// Bytes that JSON carries as base64.
#[derive(Clone, PartialEq, Eq)]
pub struct Base64(pub Vec<u8>);

/// The master key as JSON within a key file.
#[derive(Serialize, Deserialize)]
struct MasterJson {
    mac: MacJson,
    encrypt: Base64,
}

#[derive(Serialize, Deserialize)]
struct MacJson {
    k: Base64,
    r: Base64,
}

impl Drop for MasterJson {
    fn drop(&mut self) {
        for secret in [&mut self.mac.k, &mut self.mac.r, &mut self.encrypt] {
            secret.0.zeroize();
        }
    }
}

impl KeyFile {
    /// Seals `master` by `password`.
    pub fn create(
        master: &MasterKey,
        password: &SecretString,
        kdf: KdfParams,
        username: &str,
        hostname: &str,
        now: Time,
    ) -> Result<Self> {
        let mut salt = vec![0; 64];
        random(&mut salt)?;
        let mut file = KeyFile {
            created: Some(now),
            username: username.into(),
            hostname: hostname.into(),
            kdf: "scrypt".into(),
            n: kdf.n,
            r: kdf.r,
            p: kdf.p,
            salt: Base64(salt),
            data: Base64(Vec::new()),
            other: Map::new(),
        };
        file.check()?;
        let parts = master.parts();
        let json = MasterJson {
            mac: MacJson { k: Base64(parts.k.to_vec()), r: Base64(parts.r.to_vec()) },
            encrypt: Base64(parts.encrypt.to_vec()),
        };
        let json = Zeroizing::new(serde_json::to_vec(&json).expect("the master key has string keys only"));
        file.derive(password)?.seal_into(&mut Nonces::new(), &json, &mut file.data.0)?;
        Ok(file)
    }

    /// Opens the master key; [`Error::WrongPassword`] if the password is not this file's. Takes a good part of a
    /// second of one core: call it where that does not block others.
    pub fn open(&self, password: &SecretString) -> Result<MasterKey> {
        let derived = self.derive(password)?;
        let mut sealed = Zeroizing::new(self.data.0.clone());
        let json = derived.open_in_place(&mut sealed).map_err(|_| Error::WrongPassword { keys: 1 })?;
        let damaged = || Error::damaged("key", "it holds no master key");
        let json: MasterJson = serde_json::from_slice(json).map_err(|_| damaged())?;
        let part = |bytes: &Base64| bytes.0.as_slice().try_into().map_err(|_| damaged());
        MasterKey::from_parts(KeyParts {
            encrypt: json.encrypt.0.as_slice().try_into().map_err(|_| damaged())?,
            k: part(&json.mac.k)?,
            r: part(&json.mac.r)?,
        })
    }

    /// Reads a key file.
    pub fn parse(json: &[u8]) -> Result<Self> {
        let file: KeyFile =
            serde_json::from_slice(json).map_err(|error| Error::damaged("key", error.to_string()))?;
        file.check()?;
        Ok(file)
    }

    /// The key file as JSON.
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a key file has string keys only")
    }

    /// Bounds what the file asks for, before anything is allocated.
    fn check(&self) -> Result<()> {
        let refuse = |detail: String| Err(Error::BadParameter { what: "key", detail: detail.into() });
        let KeyFile { n, r, p, .. } = *self;
        if self.kdf != "scrypt" {
            return refuse(format!("its password function is {:?}", self.kdf));
        }
        if !n.is_power_of_two()
            || !(2..=MAX_N).contains(&n)
            || !(1..=1024).contains(&r)
            || !(1..=64).contains(&p)
        {
            return refuse(format!("scrypt with N = {n}, r = {r}, p = {p}"));
        }
        let memory = 128 * n * r;
        if memory > MAX_MEMORY || memory * p > MAX_WORK {
            return refuse(format!("scrypt with N = {n}, r = {r}, p = {p} takes {} MiB", memory >> 20));
        }
        if self.salt.0.is_empty() || self.salt.0.len() > 1024 || self.data.0.len() > 4096 {
            return refuse("its salt or its data has an odd length".into());
        }
        Ok(())
    }

    /// What [`open`](Self::open) costs, as bytes mixed.
    pub(crate) fn work(&self) -> u64 {
        128 * self.n * self.r * self.p
    }

    fn derive(&self, password: &SecretString) -> Result<MasterKey> {
        let derived = scrypt(password.expose_secret().as_bytes(), &self.salt.0, self.n, self.r, self.p)?;
        MasterKey::from_bytes(&derived)
    }
}

impl fmt::Debug for Base64 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

impl Serialize for Base64 {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let text = Zeroizing::new(BASE64.encode(&self.0));
        serializer.serialize_str(&text)
    }
}

impl<'de> Deserialize<'de> for Base64 {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Zeroizing::new(String::deserialize(deserializer)?);
        BASE64.decode(&*text).map(Base64).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn password(text: &str) -> SecretString {
        SecretString::from(text)
    }

    #[test]
    fn the_password_opens_and_another_does_not() {
        let master = MasterKey::generate().unwrap();
        let file = KeyFile::create(
            &master,
            &password("päss"),
            KdfParams::default(),
            "root",
            "host",
            Time::new(1, 2),
        )
        .unwrap();
        let file = KeyFile::parse(&file.to_json()).unwrap();
        assert_eq!((file.n, file.r, file.p, file.salt.0.len()), (32_768, 8, 4, 64));
        let opened = file.open(&password("päss")).unwrap();
        assert_eq!(opened.parts().encrypt, master.parts().encrypt);
        assert_eq!((opened.parts().k, opened.parts().r), (master.parts().k, master.parts().r));
        assert!(matches!(file.open(&password("pass")), Err(Error::WrongPassword { .. })));
    }

    #[test]
    fn bombs_are_refused_before_they_go_off() {
        let good = r#"{"kdf":"scrypt","N":32768,"r":8,"p":1,"salt":"AAAA","data":"AAAA"}"#;
        KeyFile::parse(good.as_bytes()).unwrap();
        for (from, to) in [
            ("32768", "2097152"),
            ("32768", "32767"),
            ("32768", "0"),
            ("32768", "18446744073709551615"),
            ("\"r\":8", "\"r\":0"),
            ("\"r\":8", "\"r\":1000"),
            ("\"r\":8", "\"r\":18446744073709551615"),
            ("\"p\":1", "\"p\":65"),
            ("\"p\":1", "\"p\":0"),
            ("32768,\"r\":8,\"p\":1", "1048576,\"r\":4,\"p\":9"),
            ("scrypt", "argon2"),
            ("\"AAAA\"", "\"\""),
            ("\"r\":8", "\"r\":-8"),
        ] {
            let bad = good.replacen(from, to, 1);
            assert_ne!(bad, good);
            let error = KeyFile::parse(bad.as_bytes()).unwrap_err();
            assert!(matches!(error, Error::BadParameter { .. } | Error::Damaged { .. }), "{bad}: {error}");
        }
    }
}
