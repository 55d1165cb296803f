//! Retention: which Snapshots of a Repository a RetentionPolicy no longer keeps, and why.
//!
//! Counts follow restic's rules (<https://restic.readthedocs.io/en/stable/060_forget.html>) on the clock of UTC: each count
//! keeps the newest Snapshot of so many hours, days, …, and the oldest of all while its number is not used up; what one
//! count keeps is kept. Each session of a Repository is judged by itself, for each has restic repositories of its own. What
//! failed has a count of its own and pushes out nothing that succeeded.
//!
//! `maxRetentionPeriod` goes before all counts: what is older goes. Two things stay nevertheless, for a policy must not
//! empty a Repository whose backups stopped: the newest Snapshot that succeeded, and, where none ever did, the newest.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::Timestamp;
use jiff::tz::TimeZone;

use crate::kinds::retention_policy::SuccessfulSnapshots;
use crate::kinds::snapshot::SnapshotPhase;
use crate::kinds::{RetentionPolicySpec, Snapshot};

/// What retention knows of a Snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dated {
    /// Its name.
    pub name: String,
    /// When it was taken.
    pub time: Timestamp,
    /// Whether it succeeded; otherwise it failed.
    pub succeeded: bool,
}

/// A Snapshot that is no longer kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stale {
    /// Its name.
    pub name: String,
    /// Why, for a person.
    pub reason: String,
}

/// The Snapshots of one Repository that the policy no longer keeps, session by session. Those that are not over, and those
/// without a time, are left alone.
///
/// # Errors
/// `maxRetentionPeriod` is none.
pub fn stale_snapshots<'a>(
    policy: &RetentionPolicySpec,
    snapshots: impl IntoIterator<Item = &'a Snapshot>,
    now: Timestamp,
) -> Result<Vec<Stale>, PeriodError> {
    let mut sessions = BTreeMap::<_, Vec<_>>::new();
    for snapshot in snapshots {
        let status = snapshot.status.as_ref();
        let succeeded = match status.and_then(|status| status.phase) {
            Some(SnapshotPhase::Succeeded) => true,
            Some(SnapshotPhase::Failed) => false,
            _ => continue,
        };
        let (Some(name), Some(time)) = (&snapshot.metadata.name, snapshot.taken()) else { continue };
        let dated = Dated { name: name.clone(), time: time.0, succeeded };
        sessions.entry(snapshot.spec.session.as_deref()).or_default().push(dated);
    }
    let mut all = Vec::new();
    for snapshots in sessions.values() {
        all.extend(stale(policy, snapshots, now)?);
    }
    Ok(all)
}

/// The Snapshots of one session in one Repository that the policy no longer keeps, newest first. Those that are not over
/// must not be among them.
///
/// # Errors
/// `maxRetentionPeriod` is none.
pub fn stale(
    policy: &RetentionPolicySpec,
    snapshots: &[Dated],
    now: Timestamp,
) -> Result<Vec<Stale>, PeriodError> {
    let text = policy.max_retention_period.as_deref().filter(|text| !text.is_empty());
    let period = text.map(period).transpose()?;
    let mut newest_first: Vec<&Dated> = snapshots.iter().collect();
    newest_first.sort_by(|a, b| b.time.cmp(&a.time).then_with(|| b.name.cmp(&a.name)));
    let last = newest_first.iter().find(|one| one.succeeded).or(newest_first.first()).map(|one| &one.name);
    // A period that reaches back before time itself takes nothing.
    let oldest = period.and_then(|period| now.checked_sub(period).ok());
    let is_old = |one: &Dated| oldest.is_some_and(|oldest| one.time < oldest) && last != Some(&one.name);

    let (succeeded, failed): (Vec<&Dated>, Vec<&Dated>) =
        newest_first.iter().copied().filter(|one| !is_old(one)).partition(|one| one.succeeded);
    let kept_failed = policy.failed_snapshots.clone().unwrap_or_default().last;
    let mut kept = match policy.successful_snapshots.as_ref().filter(|counts| any(counts)) {
        Some(counts) => by_counts(counts, &succeeded),
        None => succeeded.iter().map(|one| one.name.as_str()).collect(),
    };
    kept.extend(failed.iter().take(usize::try_from(kept_failed).unwrap_or(0)).map(|one| one.name.as_str()));
    let reason = |one: &Dated| match one.succeeded {
        _ if is_old(one) => format!("older than {}", text.unwrap_or_default()),
        true => "no count of successful Snapshots keeps it".to_owned(),
        false => format!("failed, and not among the last {kept_failed}"),
    };
    let gone = newest_first.into_iter().filter(|one| !kept.contains(one.name.as_str()));
    Ok(gone.map(|one| Stale { name: one.name.clone(), reason: reason(one) }).collect())
}

/// Whether a count keeps anything: where none does, nobody wanted to keep nothing.
fn any(counts: &SuccessfulSnapshots) -> bool {
    rules(counts).iter().any(|(count, _)| count.unwrap_or(0) > 0)
}

/// Names a period that a time lies in; two times of the same period have the same.
type Period = fn(usize, &jiff::Zoned) -> [i64; 4];

/// The counts, each with its period. `last` takes each Snapshot for a period by itself.
fn rules(counts: &SuccessfulSnapshots) -> [(Option<i32>, Period); 6] {
    fn date(t: &jiff::Zoned, parts: usize) -> [i64; 4] {
        let mut all = [t.year().into(), t.month().into(), t.day().into(), t.hour().into()];
        all[parts..].fill(0);
        all
    }
    [
        (counts.last, |number, _| [number as i64, 0, 0, 0]),
        (counts.hourly, |_, t| date(t, 4)),
        (counts.daily, |_, t| date(t, 3)),
        (counts.weekly, |_, t| {
            let week = t.date().iso_week_date();
            [week.year().into(), week.week().into(), 0, 0]
        }),
        (counts.monthly, |_, t| date(t, 2)),
        (counts.yearly, |_, t| date(t, 1)),
    ]
}

/// The names that one of the counts keeps.
fn by_counts<'a>(counts: &SuccessfulSnapshots, newest_first: &[&'a Dated]) -> BTreeSet<&'a str> {
    let mut kept = BTreeSet::new();
    for (count, period) in rules(counts) {
        let mut left = count.unwrap_or(0);
        let mut before = None;
        for (number, one) in newest_first.iter().enumerate() {
            let this = Some(period(number, &one.time.to_zoned(TimeZone::UTC)));
            let is_oldest = number + 1 == newest_first.len();
            if left > 0 && (this != before || is_oldest) {
                kept.insert(one.name.as_str());
                left -= 1;
            }
            before = this;
        }
    }
    kept
}

/// A text is no period.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no period: use numbers with the units y, mo, w, d, h, m, such as 30d12h")]
pub struct PeriodError(String);

/// Reads a period such as `30d12h30m`; a month has 30 days and a year 365.
///
/// # Errors
/// It is empty, has an unknown unit, lacks a number, or is too long for a number.
pub fn period(text: &str) -> Result<Duration, PeriodError> {
    let fail = || PeriodError(text.to_owned());
    let mut seconds = 0u64;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let (number, after) = rest.split_at(digits);
        let letters = after.find(|c: char| c.is_ascii_digit()).unwrap_or(after.len());
        let (unit, after) = after.split_at(letters);
        let minutes = match unit {
            "y" => 365 * 24 * 60,
            "mo" => 30 * 24 * 60,
            "w" => 7 * 24 * 60,
            "d" => 24 * 60,
            "h" => 60,
            "m" => 1,
            _ => return Err(fail()),
        };
        let number: u64 = number.parse().map_err(|_| fail())?;
        let more = number.checked_mul(minutes * 60).ok_or_else(fail)?;
        seconds = seconds.checked_add(more).ok_or_else(fail)?;
        rest = after;
    }
    if text.is_empty() {
        return Err(fail());
    }
    Ok(Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const NOW: &str = "2026-06-30T12:00:00Z";

    fn policy(value: serde_json::Value) -> RetentionPolicySpec {
        serde_json::from_value(value).expect("a policy")
    }

    /// `+2026-06-01T00` succeeded then, `-2026-06-01T00` failed; the text is also the name.
    fn dated(words: &[&str]) -> Vec<Dated> {
        let dated = |word: &&str| Dated {
            name: (*word).into(),
            time: format!("{}:00:00Z", &word[1..]).parse().expect("a time"),
            succeeded: word.starts_with('+'),
        };
        words.iter().map(dated).collect()
    }

    fn names(policy: serde_json::Value, words: &[&str]) -> Vec<String> {
        let now = NOW.parse().expect("a time");
        let stale = stale(&self::policy(policy), &dated(words), now).expect("a policy");
        stale.into_iter().map(|one| one.name).collect()
    }

    #[test]
    fn the_newest_stay_and_failures_push_out_nothing() {
        let all = ["+2026-06-01T00", "-2026-06-02T00", "+2026-06-03T00", "-2026-06-04T00", "+2026-06-05T00"];
        let last = json!({ "successfulSnapshots": { "last": 2 } });
        assert_eq!(names(last, &all), ["-2026-06-02T00", "+2026-06-01T00"]);
        let more = json!({ "successfulSnapshots": { "last": 5 }, "failedSnapshots": { "last": 2 } });
        assert!(names(more, &all).is_empty());
        let none = json!({ "successfulSnapshots": { "last": 5 }, "failedSnapshots": { "last": 0 } });
        assert_eq!(names(none, &all), ["-2026-06-04T00", "-2026-06-02T00"]);
    }

    #[test]
    fn counts_keep_the_newest_of_each_period_together() {
        let all = [
            "+2026-06-01T01",
            "+2026-06-01T02",
            "+2026-06-02T01",
            "+2026-06-02T02",
            "+2026-06-03T01",
            "+2026-06-03T02",
        ];
        let daily = json!({ "successfulSnapshots": { "daily": 2 } });
        assert_eq!(
            names(daily, &all),
            ["+2026-06-03T01", "+2026-06-02T01", "+2026-06-01T02", "+2026-06-01T01"]
        );
        let both = json!({ "successfulSnapshots": { "daily": 2, "last": 2 } });
        assert_eq!(names(both, &all), ["+2026-06-02T01", "+2026-06-01T02", "+2026-06-01T01"]);
        // A count that is not used up keeps the oldest, so that the history is as long as it can be.
        let weekly = json!({ "successfulSnapshots": { "weekly": 4 } });
        let gone = names(weekly, &all);
        assert!(!gone.contains(&"+2026-06-01T01".to_owned()) && !gone.contains(&"+2026-06-03T02".to_owned()));
        assert_eq!(gone.len(), 4);
    }

    #[test]
    fn the_period_goes_before_the_counts_but_never_takes_the_last() {
        let all = ["+2026-01-01T00", "-2026-01-02T00", "+2026-06-20T00", "-2026-06-21T00"];
        let both = json!({ "maxRetentionPeriod": "1mo", "successfulSnapshots": { "last": 9 }, "failedSnapshots": { "last": 9 } });
        assert_eq!(names(both.clone(), &all), ["-2026-01-02T00", "+2026-01-01T00"]);
        let stopped = ["+2026-01-01T00", "+2026-01-02T00", "-2026-01-03T00"];
        assert_eq!(names(both.clone(), &stopped), ["-2026-01-03T00", "+2026-01-01T00"]);
        assert_eq!(names(both, &["-2026-01-02T00", "-2026-01-03T00"]), ["-2026-01-02T00"]);
        let alone = json!({ "maxRetentionPeriod": "1mo" });
        assert_eq!(names(alone, &["+2026-06-19T00", "+2026-06-20T00"]), [""; 0]);
    }

    #[test]
    fn a_policy_without_numbers_keeps_what_succeeded() {
        let all = ["+2026-06-01T00", "+2026-06-02T00"];
        assert!(names(json!({ "successfulSnapshots": {} }), &all).is_empty());
        assert!(names(json!({ "successfulSnapshots": { "last": 0 } }), &all).is_empty());
        assert!(names(json!({ "maxRetentionPeriod": "9999999y" }), &all).is_empty());
    }

    #[test]
    fn reasons_are_for_people() {
        let policy = policy(json!({ "maxRetentionPeriod": "7d", "successfulSnapshots": { "last": 1 } }));
        let all = dated(&[
            "+2026-06-29T00",
            "+2026-06-28T00",
            "+2026-06-01T00",
            "-2026-06-28T00",
            "-2026-06-27T00",
        ]);
        let stale = stale(&policy, &all, NOW.parse().expect("a time")).expect("a policy");
        let lines: Vec<_> = stale.iter().map(|one| format!("{}: {}", one.name, one.reason)).collect();
        assert_eq!(
            lines,
            [
                "+2026-06-28T00: no count of successful Snapshots keeps it",
                "-2026-06-27T00: failed, and not among the last 1",
                "+2026-06-01T00: older than 7d",
            ]
        );
    }

    #[test]
    fn sessions_are_judged_apart_and_running_ones_left_alone() {
        let snapshot = |name: &str, session: &str, phase: &str| -> Snapshot {
            let value = json!({
                "metadata": { "name": name, "creationTimestamp": "2026-06-01T00:00:00Z" },
                "spec": { "repository": "r", "session": session },
                "status": { "phase": phase, "snapshotTime": format!("2026-06-0{}T00:00:00Z", &name[1..]) },
            });
            let mut value = value;
            value["apiVersion"] = json!("storage.kubestash.com/v1alpha1");
            value["kind"] = json!("Snapshot");
            serde_json::from_value(value).expect("a Snapshot")
        };
        let all = [
            snapshot("a1", "hourly", "Succeeded"),
            snapshot("a2", "hourly", "Succeeded"),
            snapshot("b1", "daily", "Succeeded"),
            snapshot("a3", "hourly", "Running"),
            snapshot("a4", "hourly", "Pending"),
        ];
        let policy = policy(json!({ "successfulSnapshots": { "last": 1 } }));
        let stale = stale_snapshots(&policy, &all, NOW.parse().expect("a time")).expect("a policy");
        assert_eq!(stale.iter().map(|one| one.name.as_str()).collect::<Vec<_>>(), ["a1"]);
    }

    #[test]
    fn periods_have_units() {
        for (text, minutes) in [
            ("30d12h30m", 30 * 1440 + 750),
            ("1mo", 43_200),
            ("1m", 1),
            ("1y2mo", 525_600 + 86_400),
            ("2w", 20_160),
        ] {
            assert_eq!(period(text), Ok(Duration::from_secs(minutes * 60)), "{text}");
        }
        for text in
            ["", "1", "d", "1s", "1.5d", "-1d", "1d ", "1dd", "99999999999999999999y", "9999999999999999y"]
        {
            assert!(period(text).is_err(), "{text:?}");
        }
    }
}
