//! Servers, faults and hostile data for tests, benchmarks and the demo: everything that pretends.

mod external;
mod faulty;
pub mod hostile;
pub mod objects;
mod owner;
mod rule;
mod seed;
pub mod server;
mod synthetic;
pub mod tools;
mod tree;

pub use external::{External, minio, moto};
pub use faulty::{Fault, Faulty};
pub use owner::{Borrowed, Version};
pub use rule::{Request, Rule};
pub use seed::{Random, SEED_VARIABLE, Seed, seed};
pub use server::{HttpFault, Server};
pub use synthetic::Synthetic;
pub use tree::{Compare, tree_diff, tree_diff_with};
