//! What a person at a terminal meets: prompts, the live line, questions. `script` makes the terminal.

use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use crate::home::Home;

/// A command on a terminal of its own.
struct Terminal {
    child: Child,
    shown: String,
    more: mpsc::Receiver<Vec<u8>>,
}

impl Terminal {
    fn run(home: &Home, arguments: &[&str]) -> Terminal {
        let wanted = home.command(arguments);
        let words = std::iter::once(wanted.get_program()).chain(wanted.get_args());
        let line: Vec<String> = words.map(|word| format!("'{}'", word.to_str().unwrap())).collect();
        let mut child = Command::new("script")
            .args(["--quiet", "--return", "--flush", "--command", &line.join(" "), "/dev/null"])
            .env_clear()
            .envs(wanted.get_envs().filter_map(|(name, value)| Some((name, value?))))
            .env("SHELL", "/bin/sh")
            .env("TERM", "xterm")
            .current_dir(home.path(""))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        let mut out = child.stdout.take().unwrap();
        let (sender, more) = mpsc::channel();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(n @ 1..) = out.read(&mut buffer) {
                if sender.send(buffer[..n].to_vec()).is_err() {
                    break;
                }
            }
        });
        Terminal { child, shown: String::new(), more }
    }

    /// Waits until the terminal shows this text behind what was waited for before.
    fn expect(&mut self, text: &str) -> &mut Self {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            if let Some(at) = self.shown.find(text) {
                self.shown.drain(..at + text.len());
                return self;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            match self.more.recv_timeout(left) {
                Ok(bytes) => self.shown += &String::from_utf8_lossy(&bytes),
                Err(_) => panic!("{text:?} does not come: {:?}", self.shown),
            }
        }
    }

    fn type_in(&mut self, text: &str) -> &mut Self {
        self.child.stdin.as_mut().unwrap().write_all(text.as_bytes()).unwrap();
        self
    }

    /// The exit code, and what the terminal showed at the end.
    fn end(mut self) -> (i32, String) {
        while let Ok(bytes) = self.more.recv_timeout(Duration::from_secs(60)) {
            self.shown += &String::from_utf8_lossy(&bytes);
        }
        (self.child.wait().unwrap().code().unwrap_or(-1), self.shown)
    }
}

#[test]
fn passwords_are_asked_for_and_not_shown() {
    let home = Home::new().without("CISTERN_PASSWORD");
    let mut terminal = Terminal::run(&home, &["init"]);
    terminal.expect("enter password for the repository: ").type_in("geheim\n");
    terminal.expect("enter password again: ").type_in("anders\n");
    let (code, shown) = terminal.end();
    assert_eq!(code, 2, "{shown}");
    assert!(shown.contains("not the same") && !shown.contains("anders"), "{shown}");
    assert!(!home.path("repo/config").exists());

    let mut terminal = Terminal::run(&home, &["init"]);
    terminal.expect("enter password for the repository: ").type_in("geheim\n");
    terminal.expect("enter password again: ").type_in("geheim\n");
    let (code, shown) = terminal.end();
    assert_eq!(code, 0, "{shown}");
    assert!(shown.contains("created repository") && !shown.contains("geheim"), "{shown}");
    let home = home.with("CISTERN_PASSWORD", "geheim");
    home.ok(&["snapshots"]);

    let home = home.without("CISTERN_PASSWORD");
    let mut terminal = Terminal::run(&home, &["snapshots"]);
    terminal.expect("enter password for the repository: ").type_in("\u{3}");
    assert_eq!(terminal.end().0, 130);
}

#[test]
fn a_restore_that_replaces_is_asked_about() {
    let home = Home::new();
    home.write("data/a", "one");
    home.ok(&["init"]);
    let mut terminal = Terminal::run(&home, &["backup", "data"]);
    terminal.expect("[0:0").expect("snapshot");
    assert_eq!(terminal.end().0, 0);
    home.write("data/a", "another");

    let mut terminal = Terminal::run(&home, &["restore", "latest", "--to", "/"]);
    terminal.expect("replace     1 of them").expect("carry this out? [y/N] ").type_in("n\n");
    let (code, shown) = terminal.end();
    assert_eq!(code, 2, "{shown}");
    assert_eq!(std::fs::read(home.path("data/a")).unwrap(), b"another");

    let mut terminal = Terminal::run(&home, &["restore", "latest", "--to", "/"]);
    terminal.expect("carry this out? [y/N] ").type_in("\u{3}");
    let (code, shown) = terminal.end();
    assert_eq!(code, 130, "{shown}");
    assert_eq!(std::fs::read_dir(home.path("repo/locks")).unwrap().count(), 0);

    let mut terminal = Terminal::run(&home, &["restore", "latest", "--to", "/"]);
    terminal.expect("carry this out? [y/N] ").type_in("y\n");
    let (code, shown) = terminal.end();
    assert_eq!(code, 0, "{shown}");
    assert_eq!(std::fs::read(home.path("data/a")).unwrap(), b"one");
}

#[test]
fn a_new_password_is_asked_for_twice() {
    let home = Home::new();
    home.ok(&["init"]);
    for (again, code) in [("falsch\n", 2), ("anders\n", 0)] {
        let mut terminal = Terminal::run(&home, &["key", "passwd"]);
        terminal.expect("enter new password: ").type_in("anders\n");
        terminal.expect("enter password again: ").type_in(again);
        let (ended, shown) = terminal.end();
        assert_eq!(ended, code, "{shown}");
        assert!(!shown.contains("anders") && !shown.contains("falsch"), "{shown}");
    }
    let home = home.with("CISTERN_PASSWORD", "anders");
    let mut terminal = Terminal::run(&home, &["key", "add"]);
    terminal.expect("enter new password: ").type_in("\n");
    let (code, shown) = terminal.end();
    assert!(code == 2 && shown.contains("empty"), "{shown}");
    let mut terminal = Terminal::run(&home, &["key", "add"]);
    terminal.expect("enter new password: ").type_in("\u{3}");
    assert_eq!(terminal.end().0, 130);
    assert_eq!(home.ok(&["key", "list", "--json"]).lines()[0].as_array().unwrap().len(), 1);
    assert_eq!(std::fs::read_dir(home.path("repo/locks")).unwrap().count(), 0);
}

#[test]
fn removing_locks_that_may_be_held_is_asked_about() {
    let home = Home::new();
    home.ok(&["init"]);
    let odd = home.write(&format!("repo/locks/{}", "0".repeat(64)), "");
    for (answer, code) in [("n\n", 2), ("\u{3}", 130), ("y\n", 0)] {
        assert!(odd.exists());
        let mut terminal = Terminal::run(&home, &["unlock", "--all"]);
        terminal.expect("not stale   00000000").expect("at work? [y/N] ").type_in(answer);
        let (ended, shown) = terminal.end();
        assert_eq!(ended, code, "{shown}");
    }
    assert!(!odd.exists());
}
