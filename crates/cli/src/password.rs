//! Finds the repository's password: a file, a command, the environment or a prompt, never an argument.

use std::io::{IsTerminal, Read};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStringExt;
use std::process::{Command, Stdio};
use std::sync::Mutex;

use cistern_bucket::Class;
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};
use secrecy::SecretString;
use zeroize::Zeroizing;

use crate::args::{FromRepository, Global, NewKey};
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
    let given = (global.password_file.as_deref(), global.password_command.as_deref());
    if let Some(found) = supplied(given, environment, "") {
        return found;
    }
    let missing = Failure::invalid("no password was given")
        .hint("set CISTERN_PASSWORD_FILE or --password-file; there is no terminal to ask on");
    ask("enter password for the repository: ", twice, missing)
}

/// The password of the repository that is copied from, from flags and variables of its own.
///
/// # Errors
/// As [`find`].
pub fn find_from(from: &FromRepository, environment: &Environment) -> Result<SecretString, Failure> {
    let given = (from.from_password_file.as_deref(), from.from_password_command.as_deref());
    if let Some(found) = supplied(given, environment, "FROM_") {
        return found;
    }
    let missing = Failure::invalid("no password of the repository to copy from was given")
        .hint("set CISTERN_FROM_PASSWORD_FILE or --from-password-file; there is no terminal to ask on");
    ask("enter password for the repository to copy from: ", false, missing)
}

/// The password from flags, else from the environment; `which` begins the names of its variables.
fn supplied(
    (file, command): (Option<&std::path::Path>, Option<&str>),
    environment: &Environment,
    which: &str,
) -> Option<Result<SecretString, Failure>> {
    if let Some(file) = file {
        return Some(from_file(file));
    }
    if let Some(command) = command {
        return Some(from_command(command));
    }
    if let Some((_, file)) = environment.twin(&format!("{which}PASSWORD_FILE")) {
        return Some(from_file(file.as_ref()));
    }
    if let Some((name, command)) = environment.twin(&format!("{which}PASSWORD_COMMAND")) {
        return Some(match command.into_string() {
            Ok(command) => from_command(&command),
            Err(_) => Err(Failure::invalid(format!("{name} is no text"))),
        });
    }
    let (name, password) = environment.twin(&format!("{which}PASSWORD"))?;
    // A password that is altered on its way in makes a repository that nobody opens again.
    Some(match String::from_utf8(password.into_vec()) {
        Ok(password) => Ok(SecretString::from(password)),
        Err(_) => Err(Failure::invalid(format!("the password in {name} is not UTF-8"))),
    })
}

/// The password of a new key, which the environment does not hold; asked for twice on a terminal.
///
/// # Errors
/// As [`find`].
pub fn find_new(new: &NewKey) -> Result<SecretString, Failure> {
    if let Some(file) = &new.new_password_file {
        return from_file(file);
    }
    if let Some(command) = &new.new_password_command {
        return from_command(command);
    }
    let missing = Failure::invalid("no new password was given")
        .hint("use --new-password-file or --new-password-command; there is no terminal to ask on");
    ask("enter new password: ", true, missing)
}

fn from_file(file: &std::path::Path) -> Result<SecretString, Failure> {
    let mut text = Zeroizing::new(Vec::new());
    std::fs::File::open(file)
        .and_then(|f| f.take(MAX_LENGTH + 1).read_to_end(&mut text))
        .map_err(|e| Failure::io(format!("reading the password file {}", file.display()), e))?;
    trimmed(&text).map_err(|what| Failure::invalid(format!("the password file {} {what}", file.display())))
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
    trimmed(&text).map_err(|what| Failure::invalid(format!("the output of the password command {what}")))
}

/// As restic: all of the text, without a byte order mark, and without white space around it.
fn trimmed(text: &[u8]) -> Result<SecretString, &'static str> {
    if text.len() as u64 > MAX_LENGTH {
        return Err("is too long");
    }
    let text = std::str::from_utf8(text).map_err(|_| "is not UTF-8")?;
    match text.strip_prefix('\u{feff}').unwrap_or(text).trim() {
        "" => Err("is empty"),
        password => Ok(SecretString::from(password)),
    }
}

/// How the terminal was before a prompt turned its echo off.
static PROMPTING: Mutex<Option<Termios>> = Mutex::new(None);

/// Ends a prompt that is on the terminal, and tells whether there was one.
pub fn end_prompt() -> bool {
    let before = PROMPTING.lock().ok().and_then(|mut before| before.take());
    if let Some(before) = &before {
        // Nothing is left to be done if the terminal has gone.
        let _ = tcsetattr(std::io::stdin().as_fd(), OptionalActions::Now, before);
    }
    before.is_some()
}

/// Asks on the terminal; `missing` is the answer if there is none.
fn ask(prompt: &str, twice: bool, missing: Failure) -> Result<SecretString, Failure> {
    if !std::io::stdin().is_terminal() {
        return Err(missing);
    }
    if let (Ok(before), Ok(mut kept)) = (tcgetattr(std::io::stdin().as_fd()), PROMPTING.lock()) {
        // Before the prompt is there: whoever types fast must not be shown either.
        let mut silent = before.clone();
        silent.local_modes.remove(LocalModes::ECHO);
        let _ = tcsetattr(std::io::stdin().as_fd(), OptionalActions::Now, &silent);
        *kept = Some(before);
    }
    let read = |prompt: &str| {
        rpassword::prompt_password(prompt).map(Zeroizing::new).map_err(|e| match e.kind() {
            std::io::ErrorKind::Interrupted => Failure::new(Class::Cancelled, "interrupted"),
            std::io::ErrorKind::UnexpectedEof => Failure::invalid("no password was given"),
            _ => Failure::io("asking for the password".to_owned(), e),
        })
    };
    let answer = read(prompt).and_then(|password| {
        if password.is_empty() {
            return Err(Failure::invalid("the password is empty"));
        }
        if twice && *read("enter password again: ")? != *password {
            return Err(Failure::invalid("the passwords are not the same"));
        }
        Ok(SecretString::from(password.as_str()))
    });
    end_prompt();
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_what_restic_takes_it_to_be() {
        use secrecy::ExposeSecret;
        for (text, password) in [
            (&b"geheim\n"[..], "geheim"),
            (b"  geheim\r\n\n", "geheim"),
            (b"\xef\xbb\xbfgeheim", "geheim"),
            (b"two words\nand a line", "two words\nand a line"),
        ] {
            assert_eq!(trimmed(text).unwrap().expose_secret(), password);
        }
        assert_eq!(trimmed(b" \n").unwrap_err(), "is empty");
        assert_eq!(trimmed(b"\xff").unwrap_err(), "is not UTF-8");
        assert_eq!(trimmed(&[b'x'; (64 << 10) + 1]).unwrap_err(), "is too long");
    }
}
