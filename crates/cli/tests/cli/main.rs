//! The binary as a person meets it: in a home of its own, with an environment that holds nothing else.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod bad_input;
mod directory;
mod forget;
mod home;
mod interop;
mod interrupt;
mod keys;
mod pages;
mod prune;
mod s3;
mod terminal;
mod unlock;
