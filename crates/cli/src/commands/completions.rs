//! `cistern completions` and `cistern man`: generated from the command line's own definition.

use std::io::Write;

use clap::CommandFactory;

use super::Outcome;
use crate::args::{Cli, Completions};
use crate::failure::Failure;

/// Prints the completions for a shell.
pub fn shell(args: Completions) -> Outcome {
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "cistern", &mut text);
    print(&text)
}

/// Prints the manual: the page of the program, followed by one section per verb.
pub fn manual() -> Outcome {
    let mut text = Vec::new();
    let mut command = Cli::command();
    command.build();
    let failed = |e| Failure::io("rendering the manual".to_owned(), e);
    clap_mangen::Man::new(command.clone()).render(&mut text).map_err(failed)?;
    sections(&command, "CISTERN", &mut text).map_err(failed)?;
    print(&text)
}

/// One section per verb of `command`, and per verb of these.
fn sections(command: &clap::Command, above: &str, text: &mut Vec<u8>) -> std::io::Result<()> {
    for verb in command.get_subcommands().filter(|verb| !verb.is_hide_set()) {
        let page = clap_mangen::Man::new(verb.clone());
        let title = format!("{above} {}", verb.get_name().to_uppercase());
        writeln!(text, ".SH \"{title}\"")?;
        page.render_description_section(text)?;
        page.render_synopsis_section(text)?;
        page.render_options_section(text)?;
        page.render_extra_section(text)?;
        sections(verb, &title, text)?;
    }
    Ok(())
}

fn print(text: &[u8]) -> Outcome {
    match std::io::stdout().write_all(text) {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Failure::io("writing to standard output".to_owned(), e))
        }
        _ => Ok(0),
    }
}
