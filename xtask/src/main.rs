//! The tasks of this workspace; `cargo xtask --help` lists them.
#![expect(clippy::print_stdout, reason = "a task talks to the person who started it")]

mod bench;
mod fuzz;
mod process;
mod soak;
mod test;
mod tools;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// The tasks of this workspace.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    Test(test::Arguments),
    /// Install the programs that tests compare us with: restic (two versions), MinIO, moto
    Tools {
        /// Install only these
        names: Vec<String>,
    },
    Fuzz(fuzz::Arguments),
    Bench(bench::Arguments),
    Soak(soak::Arguments),
}

fn main() -> ExitCode {
    let result = match Arguments::parse().task {
        Task::Tools { names } => tools::install(&names),
        Task::Test(arguments) => return test::run(&arguments),
        Task::Fuzz(arguments) => fuzz::run(&arguments),
        Task::Bench(arguments) => bench::run(&arguments),
        Task::Soak(arguments) => soak::run(&arguments),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
