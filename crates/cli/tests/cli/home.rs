//! A hermetic home directory to run the binary in, and its output with what changes from run to run replaced.

use std::ffi::OsStr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

/// A home directory with a repository's place and password.
pub struct Home {
    dir: tempfile::TempDir,
    environment: Vec<(String, String)>,
    uid: Option<u32>,
}

/// What a command left behind.
pub struct Run {
    /// Exit code.
    pub code: i32,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
    command: String,
    home: String,
}

impl Home {
    /// An empty home; the repository is the directory `repo` in it.
    pub fn new() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory can be made");
        let home = Home { dir, environment: Vec::new(), uid: None };
        let repository = home.path("repo").display().to_string();
        home.with("CISTERN_REPOSITORY", repository).with("CISTERN_PASSWORD", "geheim")
    }

    /// Sets a variable.
    pub fn with(mut self, name: &str, value: impl Into<String>) -> Self {
        self.environment.retain(|(other, _)| other != name);
        self.environment.push((name.to_owned(), value.into()));
        self
    }

    /// Removes a variable.
    pub fn without(mut self, name: &str) -> Self {
        self.environment.retain(|(other, _)| other != name);
        self
    }

    /// Runs commands as another user, who owns the home from now on.
    pub fn of_user(mut self, uid: u32) -> Self {
        self.uid = Some(uid);
        std::os::unix::fs::chown(self.dir.path(), Some(uid), Some(uid)).expect("tests run as root");
        self
    }

    /// A path in the home.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes a file, and the directories above it.
    pub fn write(&self, name: &str, contents: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().expect("a file has a parent"))
            .expect("directories can be made");
        std::fs::write(&path, contents).expect("a file can be written");
        if let Some(uid) = self.uid {
            for path in path.ancestors().take_while(|path| *path != self.dir.path()) {
                std::os::unix::fs::chown(path, Some(uid), Some(uid)).expect("tests run as root");
            }
        }
        path
    }

    /// Runs `cistern` with these arguments in the home.
    pub fn run(&self, arguments: &[impl AsRef<OsStr>]) -> Run {
        self.program(Path::new(env!("CARGO_BIN_EXE_cistern")), arguments)
    }

    /// Runs `cistern` and expects success.
    pub fn ok(&self, arguments: &[impl AsRef<OsStr>]) -> Run {
        let run = self.run(arguments);
        assert_eq!(run.code, 0, "{}\n{}\n{}", run.command, run.out, run.err);
        run
    }

    /// `cistern` with these arguments in the home, not started yet.
    pub fn command(&self, arguments: &[impl AsRef<OsStr>]) -> Command {
        self.command_of(Path::new(env!("CARGO_BIN_EXE_cistern")), arguments)
    }

    /// Any program with these arguments in the home, not started yet.
    pub fn command_of(&self, program: &Path, arguments: &[impl AsRef<OsStr>]) -> Command {
        let mut command = Command::new(program);
        command
            .args(arguments)
            .env_clear()
            .env("HOME", self.dir.path())
            .env("PATH", "/usr/local/bin:/usr/bin:/bin")
            .env("TZ", "UTC")
            .env("AWS_EC2_METADATA_DISABLED", "true")
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .current_dir(self.dir.path())
            .stdin(Stdio::null());
        if let Some(uid) = self.uid {
            command.uid(uid).gid(uid);
        }
        command
    }

    /// Runs any program in the home, with the home's environment.
    pub fn program(&self, program: &Path, arguments: &[impl AsRef<OsStr>]) -> Run {
        let output = self.command_of(program, arguments).output().expect("the program can be started");
        let [out, err] =
            [output.stdout, output.stderr].map(|said| String::from_utf8_lossy(&said).into_owned());
        self.ran(program, arguments, output.status.code(), out, err)
    }

    /// What a program left behind that was run in the home.
    pub fn ran(
        &self,
        program: &Path,
        arguments: &[impl AsRef<OsStr>],
        code: Option<i32>,
        out: String,
        err: String,
    ) -> Run {
        let shown: Vec<String> =
            arguments.iter().map(|argument| argument.as_ref().to_string_lossy().into_owned()).collect();
        let name = program.file_name().unwrap_or_default().to_string_lossy();
        Run {
            code: code.unwrap_or(-1),
            out,
            err,
            command: format!("{name} {}", shown.join(" ")),
            home: self.dir.path().display().to_string(),
        }
    }
}

impl Run {
    /// The JSON objects on standard output, one a line.
    pub fn lines(&self) -> Vec<Value> {
        self.out
            .lines()
            .map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}\n{}", self.err)))
            .collect()
    }

    /// The last JSON object: the summary.
    pub fn summary(&self) -> Value {
        let last = self.lines().pop().expect("there is a line");
        assert_eq!(last["message_type"], "summary", "{}", self.out);
        last
    }

    /// The command with everything it printed, and what differs from run to run replaced by words.
    pub fn transcript(&self) -> String {
        let mut text = format!("$ {}\n{}", self.command, self.out);
        if !self.err.is_empty() {
            text += &format!("--- standard error\n{}", self.err);
        }
        text += &format!("--- exit {}\n", self.code);
        redact(&text.replace(&self.home, "~"))
    }
}

/// Replaces what differs from run to run: ids, times of day, durations.
fn redact(text: &str) -> String {
    let rules = [
        (r"\b[0-9a-f]{64}\b", "<id>"),
        (r"\b[0-9a-f]{10}\b", "<id>"),
        (r"\b[0-9a-f]{8}\b", "<short>"),
        (r"\b\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\b", "<time>"),
        (r"\b\d+:\d\d\b", "<took>"),
    ];
    rules.iter().fold(text.to_owned(), |text, (pattern, word)| {
        regex::Regex::new(pattern).expect("the pattern is valid").replace_all(&text, *word).into_owned()
    })
}
