//! `cargo xtask soak`: everybody at once on one repository, and some are killed; the test of that name, for longer.

use crate::process::{cargo, show};
use anyhow::Result;

/// Have many processes use one repository at once, and kill some of them
#[derive(clap::Args)]
pub struct Arguments {
    /// How long
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=1440))]
    minutes: u64,
    /// What is done when; the one of the test unless given
    #[arg(long, value_name = "S")]
    seed: Option<u64>,
}

pub fn run(arguments: &Arguments) -> Result<()> {
    let mut command = cargo();
    command.args(["test", "--package", "cistern", "--test", "cli", "--", "soak::", "--nocapture"]);
    command.env("CISTERN_SOAK_SECONDS", (arguments.minutes * 60).to_string());
    if let Some(seed) = arguments.seed {
        command.env("CISTERN_TEST_SEED", seed.to_string());
    }
    show(&mut command)
}
