//! Questions about snapshots that change nothing: what they hold, where a key is, what differs, what it costs.

mod diff;
mod find;
mod stats;
mod walk;

pub use diff::{Change, ChangeKind, DiffStats, diff};
pub use find::{find, locate};
pub use stats::{Stats, stats};
pub use walk::{Next, walk};
