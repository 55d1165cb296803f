//! What must hold for any bytes, per parser: no panic, bounded memory, and what was read is written and read the same.
//!
//! `cargo xtask fuzz` searches for bytes that break this; `tests/seeds.rs` keeps those that once did.
//! Each target has a folder of the same name in `seeds/`, with small inputs to begin from.

mod bucket;
mod cli;
mod engine;
mod repository;

/// What is done with the bytes. It panics if they break something.
pub type Target = fn(&[u8]);

/// All targets by name.
pub const TARGETS: &[(&str, Target)] = &[
    ("bucket-address", bucket::address),
    ("bucket-credentials", bucket::credentials),
    ("bucket-deletion", bucket::deletion),
    ("bucket-error", bucket::error),
    ("bucket-fields", bucket::fields),
    ("bucket-headers", bucket::headers),
    ("bucket-listing", bucket::listing),
    ("bucket-retry-after", bucket::retry_after),
    ("bucket-retention", bucket::retention),
    ("bucket-tags", bucket::tags),
    ("bucket-token", bucket::token),
    ("cli-arguments", cli::arguments),
    ("cli-profile", cli::profile),
    ("engine-attributes", engine::attributes),
    ("engine-key", engine::key),
    ("engine-names", engine::names),
    ("engine-part", engine::part),
    ("engine-task", engine::task),
    ("repository-config", repository::config),
    ("repository-file", repository::file),
    ("repository-header", repository::header),
    ("repository-index", repository::index),
    ("repository-key", repository::key),
    ("repository-lock", repository::lock),
    ("repository-snapshot", repository::snapshot),
    ("repository-time", repository::time),
    ("repository-tree", repository::tree),
    ("repository-zstd", repository::zstd),
];

/// The target of this name.
pub fn find(name: &str) -> Option<Target> {
    TARGETS.iter().find(|(known, _)| *known == name).map(|(_, target)| *target)
}
