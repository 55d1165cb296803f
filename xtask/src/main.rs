//! The tasks of this workspace; `cargo xtask --help` lists them.
#![expect(clippy::print_stdout, reason = "a task talks to the person who started it")]

mod bench;
mod cluster;
mod e2e;
mod fuzz;
mod image;
mod oci;
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
    /// Install the programs that tests run
    ///
    /// restic (two versions), MinIO and moto, to compare us with; Kubernetes, Helm and a CSI driver, for the
    /// test cluster. Together they take about half an hour of two cores, once; the cluster's Debian packages
    /// are installed too.
    Tools {
        /// Install only these
        names: Vec<String>,
    },
    Fuzz(fuzz::Arguments),
    Bench(bench::Arguments),
    Soak(soak::Arguments),
    Image(image::Arguments),
    Cluster(cluster::Arguments),
    E2e(e2e::Arguments),
}

fn main() -> ExitCode {
    let result = match Arguments::parse().task {
        Task::Tools { names } => tools::install(&names),
        Task::Test(arguments) => return test::run(&arguments),
        Task::Fuzz(arguments) => fuzz::run(&arguments),
        Task::Bench(arguments) => bench::run(&arguments),
        Task::Soak(arguments) => soak::run(&arguments),
        Task::Image(arguments) => image::run(&arguments),
        Task::Cluster(arguments) => cluster::run(&arguments),
        Task::E2e(arguments) => e2e::run(&arguments),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
