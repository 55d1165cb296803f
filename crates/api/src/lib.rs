//! The custom resources of Cistern: kinds, names, labels, conditions, and how they become tasks of the engine.
//!
//! This crate knows words only. It holds no client, reads no file and changes nothing.

pub mod backend;
pub mod catalogue;
pub mod condition;
pub mod document;
pub mod job;
pub mod kinds;
pub mod labels;
pub mod lower;
pub mod name;
pub mod phase;
pub mod problem;
pub mod retention;
pub mod schema;
pub mod size;
pub mod substitute;
pub mod usage;
pub mod validate;
pub mod world;
