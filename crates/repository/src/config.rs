//! The config of a repository: its format version, its identity and its chunker's polynomial
//! (<https://restic.readthedocs.io/en/stable/100_references.html#repository-layout>).

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::polynomial::{DEGREE, Polynomial};
use crate::{Error, Id, Result};

/// The format version that this program reads and writes.
pub const VERSION: u32 = 2;

/// A repository's config, written once when it is created.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Config {
    /// The format version.
    pub version: u32,
    /// A random id, by which clients tell repositories apart.
    pub id: Id,
    /// What the chunker divides by.
    pub chunker_polynomial: Polynomial,
    /// Members of other programs.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

impl Config {
    /// The config of a new repository, with `polynomial` if it is to cut as another one does.
    pub fn create(polynomial: Option<Polynomial>) -> Result<Self> {
        let chunker_polynomial = match polynomial {
            Some(polynomial) => polynomial,
            None => Polynomial::random()?,
        };
        let config = Config { version: VERSION, id: Id::random()?, chunker_polynomial, other: Map::new() };
        config.check()?;
        Ok(config)
    }

    /// Reads and checks a config.
    pub fn parse(json: &[u8]) -> Result<Self> {
        // The version first: a newer one may have other members.
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }
        let damaged = |error: serde_json::Error| Error::damaged("config", error.to_string());
        let Version { version } = serde_json::from_slice(json).map_err(damaged)?;
        match version {
            VERSION => (),
            1 => {
                let advice = "upgrade it with: restic migrate upgrade_repo_v2";
                return Err(Error::UnsupportedVersion { version, advice });
            }
            _ => {
                let advice = "a newer program wrote it: use a newer Cistern";
                return Err(Error::UnsupportedVersion { version, advice });
            }
        }
        let config: Config = serde_json::from_slice(json).map_err(damaged)?;
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<()> {
        let polynomial = self.chunker_polynomial;
        if polynomial.degree() != Some(DEGREE) || !polynomial.is_irreducible() {
            let detail = format!("{polynomial} is no irreducible polynomial of degree {DEGREE}");
            return Err(Error::damaged("config", detail));
        }
        Ok(())
    }

    /// Whether we may write: rustic can be told to cut files in another way, which we would not follow.
    pub fn check_writable(&self) -> Result<()> {
        let foreign = ["chunker", "chunk_size", "chunk_min_size", "chunk_max_size"];
        match foreign.iter().find(|name| self.other.get(**name).is_some_and(|value| !value.is_null())) {
            None => Ok(()),
            Some(name) => Err(Error::ReadOnly {
                detail: format!("its config sets {name}, a parameter of rustic that would be ignored").into(),
            }),
        }
    }

    /// The config as JSON.
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a config has string keys only")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "5956a3f67a6230d4a92cefb29529f10196c7d92582ec305fd71ff6d331d6271b";

    fn parse(json: &str) -> Result<Config> {
        Config::parse(json.replace("ID", ID).as_bytes())
    }

    #[test]
    fn a_new_config_reads_back_and_is_written_as_restic_writes_it() {
        let config = Config::create(None).unwrap();
        assert_eq!(Config::parse(&config.to_json()).unwrap(), config);
        let json = r#"{"version":2,"id":"ID","chunker_polynomial":"3da3358b4dc173"}"#;
        let config = parse(json).unwrap();
        assert_eq!(config.to_json(), json.replace("ID", ID).as_bytes());
        config.check_writable().unwrap();
        assert_eq!(
            Config::create(Some(config.chunker_polynomial)).unwrap().chunker_polynomial,
            config.chunker_polynomial
        );
    }

    #[test]
    fn other_versions_say_so_whatever_else_they_hold() {
        let old = parse(r#"{"version":1,"id":"ID","chunker_polynomial":"3da3358b4dc173"}"#).unwrap_err();
        assert!(old.to_string().contains("version 1") && old.to_string().contains("migrate"), "{old}");
        let new = parse(r#"{"version":3,"shape":"unknown"}"#).unwrap_err();
        assert!(matches!(new, Error::UnsupportedVersion { version: 3, .. }));
    }

    #[test]
    fn a_reducible_polynomial_is_damage() {
        for polynomial in
            ["3da3358b4dc172", "0", "7", "ffffffffffffffff", "x", "3da3358b4dc1733da3358b4dc173"]
        {
            let json = r#"{"version":2,"id":"ID","chunker_polynomial":"POL"}"#.replace("POL", polynomial);
            assert!(matches!(parse(&json), Err(Error::Damaged { .. })), "{polynomial}");
        }
    }

    #[test]
    fn parameters_of_rustic_forbid_writing_and_are_kept() {
        let json = r#"{"version":2,"id":"ID","chunker_polynomial":"3da3358b4dc173","chunker":"fixed_size","compression":3}"#;
        let config = parse(json).unwrap();
        assert!(matches!(config.check_writable(), Err(Error::ReadOnly { .. })));
        assert_eq!(config.to_json(), json.replace("ID", ID).as_bytes());
        parse(r#"{"version":2,"id":"ID","chunker_polynomial":"3da3358b4dc173","compression":3}"#)
            .unwrap()
            .check_writable()
            .unwrap();
    }
}
