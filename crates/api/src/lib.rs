//! The custom resources of Cistern: kinds, names, labels, conditions, and how they become tasks of the engine.
//!
//! This crate knows words only. It holds no client, reads no file and changes nothing.

pub mod backend;
pub mod condition;
pub mod job;
pub mod kinds;
pub mod labels;
pub mod name;
