//! `cistern protect`: locks what snapshots need against deletion, or tells how much of it is locked.

use cistern_engine::retention::Age;
use cistern_engine::{LockMode, Protect, ProtectReport, Report, Task};
use jiff::Timestamp;

use super::backup::requests;
use super::{Outcome, Shell};
use crate::args;
use crate::failure::Failure;
use crate::listing::local;
use crate::ui::Ui;
use crate::units::{clock, count, counted};

pub async fn run(shell: &Shell, args: args::Protect) -> Outcome {
    let task = Task::Protect(Protect {
        repository: shell.access.repository()?,
        until: match (args.until, args.lasting) {
            (Some(until), _) => Some(until),
            (None, Some(age)) => Some(end_of(age, Timestamp::now())?),
            (None, None) => None,
        },
        mode: match args.mode {
            args::LockMode::Governance => LockMode::Governance,
            args::LockMode::Compliance => LockMode::Compliance,
        },
        dry_run: args.dry_run,
    });
    let result = cistern_engine::run(&task, &shell.cx()).await;
    shell.ui.clear();
    match result {
        Ok(Report::Protect(report)) => {
            show(&shell.ui, &report);
            Ok(if report.is_whole() { 0 } else { 3 })
        }
        Ok(other) => Err(cistern_engine::Error::Broken(format!("protect reported {other:?}")).into()),
        Err(error) => Err(shell.access.failure(error)),
    }
}

/// So long from now, and on to the next full hour.
fn end_of(age: Age, now: Timestamp) -> Result<Timestamp, Failure> {
    let whole =
        |end: Timestamp| Timestamp::from_second(end.as_second().div_euclid(3_600) * 3_600 + 3_600).ok();
    let end = age.after(now).and_then(whole);
    end.ok_or_else(|| Failure::invalid(format!("nothing can be locked for {age}")))
}

fn show(ui: &Ui, report: &ProtectReport) {
    let took = report.ended.duration_since(report.started).unsigned_abs();
    if ui.is_json() {
        let more = [("whole", report.is_whole().into()), ("seconds", took.as_secs_f64().into())];
        return ui.summary(report, more);
    }
    for (kind, coverage) in &report.kinds {
        ui.say(format!("{kind:<11} {} of {} covered", count(coverage.covered), count(coverage.needed)));
    }
    if report.until.is_some() {
        let what = if report.dry_run { "would get" } else { "got" };
        ui.say(format!("locked      {} {what} a longer lock", counted(report.extended, "file")));
    }
    if let Some(end) = report.earliest_end {
        ui.say(format!("earliest    a lock ends at {}", local(&end.into())));
    }
    let bare = report.exceptions.total();
    if bare > 0 {
        ui.say(format!("unprotected {}", counted(bare, "file")));
    }
    let asked = requests(&report.repository_requests);
    if !asked.is_empty() {
        ui.say(format!("repository  {asked}"));
    }
    ui.say(match (report.dry_run, report.is_whole(), report.until) {
        (true, ..) => "dry run: nothing was locked".into(),
        (false, true, Some(until)) => {
            format!("protected   all until {} at least ({})", local(&until.into()), clock(took))
        }
        (false, true, None) => format!("protected   all that the snapshots need is locked ({})", clock(took)),
        (false, false, _) => format!(
            "incomplete  {} of {} covered ({})",
            count(report.covered),
            counted(report.needed, "file"),
            clock(took)
        ),
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_length_ends_at_the_next_full_hour() {
        let now: Timestamp = "2026-11-28T09:41:05.5Z".parse().unwrap();
        let end = |age: &str| end_of(age.parse().unwrap(), now).map(|end| end.to_string());
        assert_eq!(end("30d").unwrap(), "2026-12-28T10:00:00Z");
        assert_eq!(end("1y1m2h").unwrap(), "2027-12-28T12:00:00Z");
        assert!(end("9999y").is_err());
    }
}
