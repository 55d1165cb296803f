//! The binary as a person meets it: in a home of its own, with an environment that holds nothing else.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod append_only;
mod bad_input;
mod cluster;
mod copy;
mod directory;
mod forget;
mod home;
mod interop;
mod interrupt;
mod keys;
mod pages;
mod protect;
mod prune;
mod repair;
mod rewrite;
mod s3;
mod soak;
mod tag;
mod terminal;
mod unlock;
mod validate;
