//! The whole repository, from the writer to the reader: against a model, against stock restic, killed at every
//! write, with every request failing in turn, and made by somebody who means harm.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod broken;
mod crash;
mod damage;
mod faults;
mod interop;
mod keys;
mod locks;
mod mapped;
mod prune;
mod repair;
mod support;
mod writer;
