//! Finds the repository's password: a file, a command, the environment or a prompt, never an argument.

use std::io::{IsTerminal, Read};
use std::process::{Command, Stdio};

use secrecy::SecretString;
use zeroize::Zeroizing;

use crate::args::Global;
use crate::environment::Environment;
use crate::failure::Failure;

/// Longer passwords are a mistake: a file that is no password file.
const MAX_LENGTH: u64 = 64 << 10;

/// The password as the user supplied it, asking for it on a terminal if there is no other source;
/// `twice` asks for it again, for a new repository.
///
/// # Errors
/// An unreadable file, a failing command, or no password at all.
pub fn find(global: &Global, environment: &Environment, twice: bool) -> Result<SecretString, Failure> {
    if let Some(file) = &global.password_file {
        return from_file(file);
    }
    if let Some(command) = &global.password_command {
        return from_command(command);
    }
    if let Some(file) = environment.path(&["CISTERN_PASSWORD_FILE", "RESTIC_PASSWORD_FILE"]) {
        return from_file(&file);
    }
    if let Some(command) = environment.twin("PASSWORD_COMMAND") {
        return from_command(&command);
    }
    if let Some(password) = environment.twin("PASSWORD") {
        return Ok(SecretString::from(password));
    }
    ask(twice)
}

fn from_file(file: &std::path::Path) -> Result<SecretString, Failure> {
    let mut text = Zeroizing::new(String::new());
    std::fs::File::open(file)
        .and_then(|f| f.take(MAX_LENGTH + 1).read_to_string(&mut text))
        .map_err(|e| Failure::io(format!("reading the password file {}", file.display()), e))?;
    first_line(&text).map_err(|what| Failure::invalid(format!("the password file {} {what}", file.display())))
}

fn from_command(command: &str) -> Result<SecretString, Failure> {
    let words = shell_words::split(command)
        .map_err(|_| Failure::invalid("the password command has an open quote".to_owned()))?;
    let (program, arguments) =
        words.split_first().ok_or_else(|| Failure::invalid("the password command is empty".to_owned()))?;
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::inherit())
        .stderr(Stdio::inherit())
        .output()
        .map_err(|e| Failure::io(format!("running the password command {program}"), e))?;
    let text = Zeroizing::new(output.stdout);
    if !output.status.success() {
        return Err(Failure::invalid(format!("the password command {program} failed ({})", output.status)));
    }
    let text = std::str::from_utf8(&text)
        .map_err(|_| Failure::invalid(format!("the password command {program} printed no text")))?;
    first_line(text).map_err(|what| Failure::invalid(format!("the output of the password command {what}")))
}

/// As restic: the first line, without its end.
fn first_line(text: &str) -> Result<SecretString, &'static str> {
    let line = text.split('\n').next().unwrap_or("").trim_end_matches('\r');
    if text.len() as u64 > MAX_LENGTH {
        return Err("is too long");
    }
    if line.is_empty() { Err("is empty") } else { Ok(SecretString::from(line)) }
}

fn ask(twice: bool) -> Result<SecretString, Failure> {
    if !std::io::stdin().is_terminal() {
        return Err(Failure::invalid("no password was given".to_owned())
            .hint("set CISTERN_PASSWORD_FILE or --password-file; there is no terminal to ask on"));
    }
    let read = |prompt: &str| {
        rpassword::prompt_password(prompt)
            .map(Zeroizing::new)
            .map_err(|e| Failure::io("asking for the password".to_owned(), e))
    };
    let password = read("enter password for the repository: ")?;
    if password.is_empty() {
        return Err(Failure::invalid("the password is empty".to_owned()));
    }
    if twice && *read("enter password again: ")? != *password {
        return Err(Failure::invalid("the passwords are not the same".to_owned()));
    }
    Ok(SecretString::from(password.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_the_first_line() {
        use secrecy::ExposeSecret;
        assert_eq!(first_line("geheim\r\nmore").unwrap().expose_secret(), "geheim");
        assert!(first_line("\nx").is_err());
    }
}
