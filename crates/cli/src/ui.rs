//! The only place that prints: results on standard output, everything else on standard error.

use std::io::{IsTerminal, Write};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use cistern_engine::{Note, Phase, Plan, Progress, Status};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use owo_colors::OwoColorize;
use serde::Serialize;
use serde_json::{Value, json};

use crate::args::Output;
use crate::failure::Failure;
use crate::units::{clock, count, counted, size};

/// How this process speaks to its user.
pub struct Ui {
    json: bool,
    quiet: bool,
    verbose: bool,
    /// Live line on a terminal.
    bar: ProgressBar,
    started: Instant,
    yes: bool,
    pace: Mutex<Pace>,
    /// The first failed write to standard output.
    lost: Mutex<Option<std::io::Error>>,
}

/// Remembers the recent past, for rates.
struct Pace {
    last_json: Option<Instant>,
    since: Instant,
    objects: u64,
    bytes: u64,
    rate: f64,
}

impl Ui {
    /// A user interface with these settings; `yes` approves every plan.
    pub fn new(output: &Output, yes: bool) -> Self {
        let live = !output.json && !output.quiet && std::io::stderr().is_terminal();
        let target = if live { ProgressDrawTarget::stderr_with_hz(10) } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(None, target);
        bar.set_style(ProgressStyle::with_template("{wide_msg}").expect("the template is valid"));
        let now = Instant::now();
        Ui {
            json: output.json,
            quiet: output.quiet,
            verbose: output.verbose > 0,
            bar,
            started: now,
            yes,
            pace: Mutex::new(Pace { last_json: None, since: now, objects: 0, bytes: 0, rate: 0.0 }),
            lost: Mutex::new(None),
        }
    }

    /// What kept a result from reaching standard output: half a listing must not look whole.
    pub fn lost_output(&self) -> Option<Failure> {
        let error = self.lost.lock().ok()?.take()?;
        Some(Failure::io("writing to standard output".to_owned(), error))
    }

    fn wrote(&self, outcome: std::io::Result<()>) {
        match outcome {
            // A closed pipe (`| head`) is the reader's decision, not an error of ours.
            Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
                if let Ok(mut lost) = self.lost.lock() {
                    lost.get_or_insert(error);
                }
            }
            _ => (),
        }
    }

    /// Whether JSON is wanted instead of text.
    pub fn is_json(&self) -> bool {
        self.json
    }

    /// Time since the process began.
    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// One line of the result, in text mode; kept back by `--quiet` unless it is what was asked for.
    pub fn say(&self, line: impl AsRef<str>) {
        if !self.json && !self.quiet {
            self.result(line);
        }
    }

    /// One line that was asked for (a listing), also with `--quiet`.
    pub fn result(&self, line: impl AsRef<str>) {
        self.bar.suspend(|| {
            self.wrote(writeln!(anstream::stdout().lock(), "{}", line.as_ref()));
        });
    }

    /// One JSON object on a line of its own.
    pub fn object(&self, value: &impl Serialize) {
        let text = serde_json::to_string(value).expect("reports have string keys and finite numbers");
        self.bar.suspend(|| {
            self.wrote(writeln!(std::io::stdout().lock(), "{text}"));
        });
    }

    /// The JSON object that ends a verb: its report, and what that does not say.
    pub fn summary(&self, report: &impl Serialize, more: impl IntoIterator<Item = (&'static str, Value)>) {
        let mut value = serde_json::to_value(report).expect("a report has string keys");
        value["message_type"] = "summary".into();
        for (name, field) in more {
            value[name] = field;
        }
        self.object(&value);
    }

    /// Something to know that is not the result.
    pub fn note(&self, line: impl AsRef<str>) {
        if !self.json && !self.quiet {
            self.bar.suspend(|| {
                let _ = writeln!(anstream::stderr().lock(), "{}", line.as_ref());
            });
        }
    }

    /// A warning.
    pub fn warn(&self, line: impl AsRef<str>) {
        if self.json {
            let text = json!({"message_type": "warning", "message": line.as_ref()}).to_string();
            let _ = writeln!(std::io::stderr().lock(), "{text}");
        } else {
            self.bar.suspend(|| {
                let _ =
                    writeln!(anstream::stderr().lock(), "{} {}", "warning:".yellow().bold(), line.as_ref());
            });
        }
    }

    /// The end of a verb that failed: error, causes, hint.
    pub fn fail(&self, failure: &Failure) {
        self.bar.finish_and_clear();
        let text = failure.error.to_string();
        if self.json {
            let value = json!({
                "message_type": "exit_error",
                "code": failure.code,
                "class": failure.class,
                "message": text,
                "because": failure.causes(),
                "hint": failure.hint,
            });
            let _ = writeln!(std::io::stderr().lock(), "{value}");
            return;
        }
        let mut err = anstream::stderr().lock();
        let _ = writeln!(err, "{} {text}", "error:".red().bold());
        for cause in failure.causes() {
            let _ = writeln!(err, "{} {cause}", "because:".bold());
        }
        if let Some(hint) = &failure.hint {
            let _ = writeln!(err, "{} {hint}", "hint:".cyan().bold());
        }
    }

    /// A word of approval for what cannot be undone: given by `--yes`, or asked for; none if there is nobody to ask.
    pub async fn approval(&self, question: &'static str) -> Option<bool> {
        if self.yes {
            return Some(true);
        }
        if self.json || !std::io::stdin().is_terminal() {
            return None;
        }
        Some(self.confirm(question).await)
    }

    /// Asks a question on the terminal. The wait can be given up: the thread that reads stays behind.
    async fn confirm(&self, question: &'static str) -> bool {
        self.clear();
        let answer = tokio::task::spawn_blocking(move || {
            let _ = write!(anstream::stderr().lock(), "{question} [y/N] ");
            let mut answer = String::new();
            let _ = std::io::stdin().read_line(&mut answer);
            matches!(answer.trim(), "y" | "Y" | "yes")
        });
        answer.await.unwrap_or(false)
    }

    /// Takes the live line away.
    pub fn clear(&self) {
        self.bar.finish_and_clear();
    }

    /// Shows the live line, whatever the output: never JSON.
    pub fn live(&self, status: &Status) {
        let rate = self.rate(status);
        self.show(status, rate);
    }

    fn show(&self, status: &Status, rate: f64) {
        if !self.bar.is_hidden() {
            self.bar.set_message(live_line(status, self.elapsed(), rate));
        }
    }

    fn rate(&self, status: &Status) -> f64 {
        let mut pace = self.pace.lock().expect("no panic happens while the pace is held");
        let passed = pace.since.elapsed().as_secs_f64();
        if passed >= 1.0 || pace.rate == 0.0 && passed > 0.2 {
            let now = status.bytes_done.saturating_sub(pace.bytes) as f64 / passed;
            pace.rate = if pace.rate == 0.0 { now } else { 0.7 * pace.rate + 0.3 * now };
            pace.since = Instant::now();
            pace.bytes = status.bytes_done;
            pace.objects = status.objects_done;
        }
        pace.rate
    }
}

/// Whether a plan needs a word of approval: it takes something away.
fn is_destructive(plan: &Plan) -> bool {
    plan.delete > 0
}

/// Whether somebody at a terminal is asked: something is replaced or taken away.
fn needs_approval(plan: &Plan) -> bool {
    plan.replace > 0 || plan.delete > 0
}

/// The plan of a restore, as lines.
pub fn plan_lines(plan: &Plan) -> Vec<String> {
    let mut lines = vec![
        format!("target      {}", plan.target),
        format!("write       {} ({})", counted(plan.write, "object"), size(plan.write_bytes)),
    ];
    if plan.replace > 0 {
        lines.push(format!("replace     {} of them", count(plan.replace)));
    }
    if plan.keep > 0 {
        lines.push(format!("keep        {} that are there already", counted(plan.keep, "object")));
    }
    if plan.delete > 0 {
        lines.push(format!("delete      {} that the snapshot does not hold", counted(plan.delete, "object")));
        lines.extend(plan.delete_first.iter().map(|key| format!("            {key}")));
        let rest = plan.delete - plan.delete_first.len() as u64;
        if rest > 0 {
            lines.push(format!("            … and {} more", count(rest)));
        }
    }
    if plan.repository_requests > 0 {
        lines.push(format!(
            "read        about {} in {} from the repository",
            size(plan.repository_bytes),
            counted(plan.repository_requests, "request")
        ));
    }
    if !plan.writer.is_empty() {
        lines.push(format!("writer      {}", plan.writer));
    }
    lines
}

/// The live line: percent, counts, rate, time left, current key.
fn live_line(status: &Status, elapsed: Duration, rate: f64) -> String {
    let what = match status.phase {
        Phase::Opening => "opening",
        Phase::Planning => "planning",
        Phase::Copying => "copying",
        Phase::Sealing => "sealing",
        Phase::Verifying => "verifying",
        Phase::Done => "done",
    };
    let mut line = format!("[{}] {what}", clock(elapsed));
    if status.bytes_total > 0 && status.phase != Phase::Opening {
        let percent = status.bytes_done as f64 * 100.0 / status.bytes_total.max(1) as f64;
        line += &format!(" {}{:.1}%", if status.totals_final { "" } else { "~" }, percent.min(100.0));
    }
    if status.objects_done > 0 || status.objects_total > 0 {
        line += &format!("  {}", count(status.objects_done));
        if status.objects_total > 0 {
            line += &format!(" / {}", count(status.objects_total));
        }
        line += " objects";
    }
    if status.bytes_done > 0 {
        line += &format!("  {}", size(status.bytes_done));
    }
    if rate >= 1.0 && status.phase != Phase::Done {
        line += &format!("  {}/s", size(rate as u64));
        let left = status.bytes_total.saturating_sub(status.bytes_done);
        if status.totals_final && left > 0 {
            line += &format!("  ETA {}", clock(Duration::from_secs_f64((left as f64 / rate).min(1e7))));
        }
    }
    if status.exceptions > 0 {
        line += &format!("  {}", counted(status.exceptions, "exception"));
    }
    if !status.current.is_empty() {
        line += &format!("  {}", status.current);
    }
    line
}

#[async_trait]
impl Progress for Ui {
    fn status(&self, status: &Status) {
        let rate = self.rate(status);
        if self.json {
            {
                let mut pace = self.pace.lock().expect("no panic happens while the pace is held");
                if self.quiet || pace.last_json.is_some_and(|last| last.elapsed() < Duration::from_secs(1)) {
                    return;
                }
                pace.last_json = Some(Instant::now());
            }
            let left = status.bytes_total.saturating_sub(status.bytes_done) as f64;
            self.object(&json!({
                "message_type": "status",
                "phase": status.phase,
                "seconds_elapsed": self.elapsed().as_secs(),
                "seconds_remaining": (rate >= 1.0 && status.totals_final).then(|| (left / rate) as u64),
                "percent_done": if status.bytes_total > 0 { status.bytes_done as f64 / status.bytes_total as f64 } else { 0.0 },
                "objects_done": status.objects_done,
                "objects_total": status.objects_total,
                "bytes_done": status.bytes_done,
                "bytes_total": status.bytes_total,
                "bytes_per_second": rate as u64,
                "exceptions": status.exceptions,
                "current": status.current,
            }));
        } else {
            self.show(status, rate);
        }
    }

    fn note(&self, note: Note) {
        match note {
            Note::Info(line) => {
                if self.json {
                    if self.verbose {
                        self.object(&json!({"message_type": "info", "message": line}));
                    }
                } else {
                    Ui::note(self, line);
                }
            }
            Note::Exception(exception) => {
                if self.json {
                    let mut value = serde_json::to_value(&exception).unwrap_or(Value::Null);
                    value["message_type"] = "exception".into();
                    self.object(&value);
                } else {
                    let kind = serde_json::to_value(exception.kind).ok();
                    let kind = kind.as_ref().and_then(Value::as_str).unwrap_or("exception").to_owned();
                    self.warn(format!("{kind}: {}: {}", exception.key, exception.detail));
                }
            }
        }
    }

    async fn approve(&self, plan: &Plan) -> bool {
        if self.json {
            let mut value = serde_json::to_value(plan).unwrap_or(Value::Null);
            value["message_type"] = "plan".into();
            self.object(&value);
        } else {
            self.clear();
            // Who is asked must see what for, also with --quiet.
            let asks = !self.yes && std::io::stdin().is_terminal() && needs_approval(plan);
            for line in plan_lines(plan) {
                if asks { self.result(line) } else { self.say(line) }
            }
        }
        if self.yes {
            return true;
        }
        if self.json || !std::io::stdin().is_terminal() {
            if is_destructive(plan) {
                self.warn("the plan deletes objects, and there is nobody to ask: --yes carries it out");
            }
            return !is_destructive(plan);
        }
        !needs_approval(plan) || self.confirm("carry this out?").await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_live_line_has_percent_rate_eta_and_key() {
        let status = Status {
            phase: Phase::Copying,
            objects_done: 1234,
            objects_total: 4000,
            bytes_done: 512 << 20,
            bytes_total: 1 << 30,
            totals_final: true,
            current: "2026/a".into(),
            exceptions: 0,
        };
        assert_eq!(
            live_line(&status, Duration::from_secs(61), 64.0 * 1048576.0),
            "[1:01] copying 50.0%  1,234 / 4,000 objects  512.0 MiB  64.0 MiB/s  ETA 0:08  2026/a"
        );
        let listing = Status { totals_final: false, ..status };
        assert!(live_line(&listing, Duration::ZERO, 0.0).contains("~50.0%"));
    }
}
