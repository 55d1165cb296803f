//! Objects in buckets: any key, every attribute, on S3, in a directory or in memory.
//!
//! One trait, [`Bucket`], with the verbs that backup and restore need, and one backend per kind of
//! store. A key is bytes and is never normalised; what a store refuses is an error of kind
//! [`ErrorKind::Unsupported`] at the verb that met it, never an assumption made in advance.
//!
//! What this crate is not: it knows neither repositories nor snapshots, has never heard of
//! Kubernetes, prints nothing and reads no environment variable. Credentials, addresses and limits are
//! passed in; requests and bytes are counted in a [`Ledger`].

mod address;
mod checksum;
mod credentials;
mod directory;
mod error;
mod key;
mod ledger;
mod memory;
mod object;
mod prefixed;
mod s3;
mod transport;
mod verbs;

pub use address::Address;
pub use checksum::Verifier;
pub use credentials::{ContainerToken, Credentials};
pub use directory::{Directory, Durability};
pub use error::{Class, Error, ErrorKind, Result};
pub use key::Key;
pub use ledger::{Ledger, LedgerSnapshot, Verb};
pub use memory::{Clock, Memory};
pub use object::{Attributes, Entry, Revision, Tags};
pub use prefixed::Prefixed;
pub use s3::{S3, S3Config, Style};
#[doc(hidden)]
pub use s3::{fuzzing, parse_listing};
pub use transport::{Limits, RetryPolicy, Timeouts};
pub use verbs::{
    Body, Bucket, Capabilities, Checksums, DeleteOutcome, Get, GetOptions, ListRequest, Page, PartId, Put,
    PutOptions, Upload,
};
