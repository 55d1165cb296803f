//! The whole flow on a real cluster, by manifests as users write them, waiting as users wait: with `kubectl wait`.
//!
//! Run by `cargo xtask e2e`, which makes the cluster, the image and the release. Tests run one after the other: two cores
//! hold one cluster and one Job.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod flow;
mod support;
