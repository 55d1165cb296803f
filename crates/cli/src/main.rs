//! The one binary: parses, runs the verb, prints, exits.

mod access;
mod allocator;
mod ambient;
mod args;
mod cluster;
mod commands;
mod environment;
mod failure;
mod from;
mod listing;
mod password;
mod profile;
mod sections;
mod ui;
mod units;

use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use tokio_util::sync::CancellationToken;

use crate::args::{Cli, Command};
use crate::environment::Environment;
use crate::ui::Ui;

fn main() -> ExitCode {
    let cli = Cli::parse_from(cluster::arguments(std::env::args_os()));
    let yes = match &cli.command {
        Command::Restore(restore) => restore.yes,
        Command::Unlock(unlock) => unlock.yes,
        Command::Repair(args::Repair::Packs(repair)) => repair.yes,
        Command::Repair(args::Repair::Snapshots(repair)) => repair.yes,
        _ => false,
    };
    let ui = Arc::new(Ui::new(&cli.global.output, yes));
    // Nobody looks at what a controller prints but in its log.
    log(&cli.global.output, u8::from(matches!(cli.command, Command::Operator(_))));
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            ui.fail(&failure::Failure::io("starting the runtime".to_owned(), error));
            return ExitCode::from(1);
        }
    };
    let result = runtime.block_on(async {
        let cancel = CancellationToken::new();
        tokio::spawn(interrupts(cancel.clone(), ui.clone()));
        commands::run(cli, Environment::of_process(), ui.clone(), cancel).await
    });
    // Threads that still read from a store that hangs must not keep the process.
    runtime.shutdown_background();
    match result {
        Ok(code) => {
            ui.clear();
            match ui.lost_output() {
                None => ExitCode::from(code),
                Some(failure) => {
                    ui.fail(&failure);
                    ExitCode::from(failure.code)
                }
            }
        }
        Err(failure) => {
            ui.fail(&failure);
            ExitCode::from(failure.code)
        }
    }
}

/// The first interrupt asks the verb to stop and clean up; the second ends the process.
async fn interrupts(cancel: CancellationToken, ui: Arc<Ui>) {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut interrupt), Ok(mut terminate)) =
        (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        return;
    };
    let mut wait = async || {
        tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} }
    };
    wait().await;
    if password::end_prompt() {
        // Nothing has begun before the password is known.
        std::process::exit(130);
    }
    ui.note("stopping; interrupt again to end at once");
    cancel.cancel();
    wait().await;
    std::process::exit(130);
}

/// The log goes to standard error: warnings, and more with each `-v` and for each of `more`.
fn log(output: &args::Output, more: u8) {
    let level = match (output.quiet, output.verbose + more) {
        (true, _) => tracing::Level::ERROR,
        (false, 0) => tracing::Level::WARN,
        (false, 1) => tracing::Level::INFO,
        (false, 2) => tracing::Level::DEBUG,
        (false, _) => tracing::Level::TRACE,
    };
    let log = tracing_subscriber::fmt().with_writer(std::io::stderr).with_max_level(level).with_target(false);
    if output.json { log.json().init() } else { log.init() }
}
