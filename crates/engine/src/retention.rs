//! Which runs to keep: a pure function from a policy and a list of runs to verdicts with reasons.
//!
//! The rules are restic's (<https://restic.readthedocs.io/en/stable/060_forget.html>), applied to runs instead of
//! snapshots: a run with all its parts is kept or forgotten as a whole. Runs that did not succeed have a count of their
//! own, so that they push out none that did.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use cistern_repository::Time;
use jiff::civil::{Date, DateTime, Time as Clock};
use jiff::tz::TimeZone;
use jiff::{Span, Timestamp};
use serde::{Deserialize, Serialize};

use crate::snapshots::{Run, is_reserved};

/// What to keep. Each rule keeps for itself; what none keeps is forgotten.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Policy {
    /// How many of the newest runs, and of the newest runs of each hour, day, week, month and year.
    pub counts: BTreeMap<Period, Count>,
    /// Everything that is at most so much older than the newest run.
    pub within: Option<Age>,
    /// The newest run of each hour, day, … as long as it is at most so much older than the newest of all.
    pub periods_within: BTreeMap<Period, Age>,
    /// Everything that has all the tags of one of these lists.
    pub tags: Vec<Vec<String>>,
    /// How many of the newest runs that did not succeed.
    pub incomplete: u32,
}

impl Default for Policy {
    fn default() -> Self {
        Policy {
            counts: BTreeMap::new(),
            within: None,
            periods_within: BTreeMap::new(),
            tags: Vec::new(),
            incomplete: 1,
        }
    }
}

impl Policy {
    /// Whether no rule says anything of runs that succeeded: everything is kept then.
    pub fn is_empty(&self) -> bool {
        self.counts.values().all(|count| *count == Count::Most(0))
            && self.within.is_none()
            && self.periods_within.is_empty()
            && self.tags.is_empty()
    }
}

/// Periods of which the newest run is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Period {
    /// Every run is one by itself.
    Last,
    /// An hour of the clock.
    Hourly,
    /// A day.
    Daily,
    /// A week of ISO 8601, which begins on Monday.
    Weekly,
    /// A month.
    Monthly,
    /// A year.
    Yearly,
}

impl fmt::Display for Period {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Period::Last => "last",
            Period::Hourly => "hourly",
            Period::Daily => "daily",
            Period::Weekly => "weekly",
            Period::Monthly => "monthly",
            Period::Yearly => "yearly",
        })
    }
}

impl Period {
    /// What two runs have in common that fall into the same period. Periods are those of the clock where the run was
    /// made.
    fn of(self, run: &Run, number: usize) -> [i64; 4] {
        let local = local(&time(run));
        let (year, month) = (i64::from(local.year()), i64::from(local.month()));
        let (day, hour) = (i64::from(local.day()), i64::from(local.hour()));
        match self {
            Period::Last => [number as i64, 0, 0, 0],
            Period::Hourly => [year, month, day, hour],
            Period::Daily => [year, month, day, 0],
            Period::Weekly => {
                let week = local.date().iso_week_date();
                [week.year().into(), week.week().into(), 0, 0]
            }
            Period::Monthly => [year, month, 0, 0],
            Period::Yearly => [year, 0, 0, 0],
        }
    }
}

/// How many runs a rule keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Count {
    /// So many.
    Most(u32),
    /// All that there are.
    All,
}

/// No number of runs to keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected a number, or 'unlimited'")]
pub struct ParseCountError;

impl FromStr for Count {
    type Err = ParseCountError;

    /// A number or `unlimited`, as restic has it.
    fn from_str(text: &str) -> Result<Self, ParseCountError> {
        match text {
            "unlimited" => Ok(Count::All),
            number => number.parse().map(Count::Most).map_err(|_| ParseCountError),
        }
    }
}

/// A stretch of time: years, months, days and hours of the calendar.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Age {
    /// Years.
    pub years: u16,
    /// Months.
    pub months: u16,
    /// Days.
    pub days: u16,
    /// Hours.
    pub hours: u16,
}

/// No stretch of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected years, months, days and hours such as 1y6m14d12h")]
pub struct ParseAgeError;

impl FromStr for Age {
    type Err = ParseAgeError;

    /// Numbers with the units `y`, `m`, `d` and `h`, as restic has it: `m` is a month.
    fn from_str(text: &str) -> Result<Self, ParseAgeError> {
        let mut age = Age::default();
        let mut rest = text;
        while !rest.is_empty() {
            let end = rest.find(|c: char| !c.is_ascii_digit()).ok_or(ParseAgeError)?;
            let (number, unit) = rest.split_at(end);
            let field = match unit.as_bytes().first() {
                Some(b'y') => &mut age.years,
                Some(b'm') => &mut age.months,
                Some(b'd') => &mut age.days,
                Some(b'h') => &mut age.hours,
                _ => return Err(ParseAgeError),
            };
            *field = number.parse().map_err(|_| ParseAgeError)?;
            rest = &unit[1..];
        }
        if age == Age::default() { Err(ParseAgeError) } else { Ok(age) }
    }
}

impl TryFrom<String> for Age {
    type Error = ParseAgeError;

    fn try_from(text: String) -> Result<Self, ParseAgeError> {
        text.parse()
    }
}

impl From<Age> for String {
    fn from(age: Age) -> String {
        age.to_string()
    }
}

impl fmt::Display for Age {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [(self.years, 'y'), (self.months, 'm'), (self.days, 'd'), (self.hours, 'h')];
        units.iter().filter(|(n, _)| *n > 0).try_for_each(|(n, unit)| write!(f, "{n}{unit}"))
    }
}

impl Age {
    /// So much after `start`, by the calendar of UTC; none beyond the end of all time.
    pub fn after(self, start: Timestamp) -> Option<Timestamp> {
        let span = Span::new()
            .years(i64::from(self.years).min(10_000))
            .months(self.months)
            .days(self.days)
            .hours(self.hours);
        let end = start.to_zoned(TimeZone::UTC).checked_add(span).ok()?;
        Some(end.timestamp())
    }

    /// So much before `end`, by its own calendar. A day that the month does not have falls into the next month, as in
    /// Go's `AddDate`, which restic uses. Before all time is the beginning of it.
    fn before(self, end: &Time) -> (i64, u32) {
        let local = local(end);
        let months = i64::from(local.year()) * 12 + i64::from(local.month())
            - 1
            - i64::from(self.years) * 12
            - i64::from(self.months);
        let year = i16::try_from(months.div_euclid(12)).unwrap_or(i16::MIN);
        let date = Date::new(year, months.rem_euclid(12) as i8 + 1, 1).and_then(|first| {
            first.checked_add(Span::new().days(i64::from(local.day()) - 1 - i64::from(self.days)))
        });
        let moment = date.and_then(|date| {
            let clock = Clock::new(local.hour(), local.minute(), local.second(), 0)?;
            date.to_datetime(clock).to_zoned(TimeZone::UTC)
        });
        let Ok(moment) = moment else { return (i64::MIN, 0) };
        let seconds =
            moment.timestamp().as_second() - i64::from(end.offset) * 60 - i64::from(self.hours) * 3_600;
        (seconds, end.nanoseconds)
    }
}

/// What becomes of a run, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// Whether it is kept.
    pub keep: bool,
    /// The rules that keep it, or why it is forgotten.
    pub reasons: Vec<String>,
}

/// Judges runs of one source, each with all its parts, in any order. The verdicts come in the order of the runs. `now`
/// tells which runs are of the future: they do not count as the newest one, from which ages are counted.
pub fn apply(policy: &Policy, runs: &[Run], now: Timestamp) -> Vec<Verdict> {
    let mut kept_because: Vec<Vec<String>> = vec![Vec::new(); runs.len()];
    let mut newest_first: Vec<usize> = (0..runs.len()).collect();
    newest_first.sort_by_key(|i| Reverse(runs[*i].instant()));
    let (succeeded, other): (Vec<usize>, Vec<usize>) =
        newest_first.iter().partition(|i| runs[**i].succeeded());
    if policy.is_empty() {
        kept_because.iter_mut().for_each(|reasons| reasons.push("no rule is given".into()));
    } else {
        by_tags(policy, runs, &mut kept_because);
        let now = (now.as_second(), now.subsec_nanosecond().unsigned_abs());
        let past = |order: &[usize]| order.iter().map(|i| time(&runs[*i])).find(|time| time.instant() <= now);
        // A run that failed must not let the others grow old.
        if let Some(newest) = past(&succeeded).or_else(|| past(&other)) {
            by_age(policy, runs, &newest, &mut kept_because);
            by_periods_within(policy, runs, &succeeded, &newest, &mut kept_because);
        }
        by_counts(policy, runs, &succeeded, &mut kept_because);
        for i in other.iter().take(policy.incomplete as usize) {
            kept_because[*i].push("last incomplete snapshot".into());
        }
    }
    let verdict = |(run, reasons): (&Run, Vec<String>)| match reasons.is_empty() {
        false => Verdict { keep: true, reasons },
        true if run.succeeded() => Verdict { keep: false, reasons: vec!["no rule keeps it".into()] },
        true => Verdict { keep: false, reasons: vec!["incomplete, and not the last".into()] },
    };
    runs.iter().zip(kept_because).map(verdict).collect()
}

fn by_tags(policy: &Policy, runs: &[Run], kept_because: &mut [Vec<String>]) {
    for (run, reasons) in runs.iter().zip(kept_because) {
        let has = |tag: &String| run.parts.iter().any(|(_, snapshot)| snapshot.tags.contains(tag));
        for list in policy.tags.iter().filter(|list| list.iter().all(has)) {
            reasons.push(format!("has tags [{}]", list.join(", ")));
        }
    }
}

fn by_age(policy: &Policy, runs: &[Run], newest: &Time, kept_because: &mut [Vec<String>]) {
    let Some(age) = policy.within else { return };
    let since = age.before(newest);
    for (run, reasons) in runs.iter().zip(kept_because) {
        if run.instant() > since {
            reasons.push(format!("within {age}"));
        }
    }
}

fn by_counts(policy: &Policy, runs: &[Run], newest_first: &[usize], kept_because: &mut [Vec<String>]) {
    for (period, count) in &policy.counts {
        let most = match count {
            Count::Most(most) => *most as usize,
            Count::All => usize::MAX,
        };
        for (i, reason) in newest_of_each(*period, runs, newest_first).take(most) {
            kept_because[i].push(reason);
        }
    }
}

fn by_periods_within(
    policy: &Policy,
    runs: &[Run],
    newest_first: &[usize],
    newest: &Time,
    kept_because: &mut [Vec<String>],
) {
    for (period, age) in &policy.periods_within {
        let since = age.before(newest);
        let is_within = |(i, _): &(usize, String)| runs[*i].instant() > since;
        for (i, reason) in newest_of_each(*period, runs, newest_first).take_while(is_within) {
            kept_because[i].push(format!("{reason} within {age}"));
        }
    }
}

/// The newest run of each period, and the oldest of all, which makes the history as long as it can be; with the reason.
fn newest_of_each<'a>(
    period: Period,
    runs: &'a [Run],
    newest_first: &'a [usize],
) -> impl Iterator<Item = (usize, String)> + 'a {
    let mut before = None;
    newest_first.iter().enumerate().filter_map(move |(number, i)| {
        let this = Some(period.of(&runs[*i], number));
        let is_new = this != before;
        before = this;
        let is_oldest = number + 1 == newest_first.len();
        let oldest = if is_new { "" } else { "oldest " };
        (is_new || is_oldest).then(|| (*i, format!("{oldest}{period} snapshot")))
    })
}

/// By what runs are told apart before a policy is applied to each group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GroupBy {
    /// By host.
    pub host: bool,
    /// By paths: those of the source, whatever its parts are.
    pub paths: bool,
    /// By tags, but for those that say something about the run itself.
    pub tags: bool,
}

impl Default for GroupBy {
    fn default() -> Self {
        GroupBy { host: true, paths: true, tags: false }
    }
}

/// No list of `host`, `paths` and `tags`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected some of host, paths and tags, separated by commas, or nothing")]
pub struct ParseGroupByError;

impl FromStr for GroupBy {
    type Err = ParseGroupByError;

    fn from_str(text: &str) -> Result<Self, ParseGroupByError> {
        let mut by = GroupBy { host: false, paths: false, tags: false };
        for word in text.split(',').map(str::trim).filter(|word| !word.is_empty()) {
            match word {
                "host" | "hosts" => by.host = true,
                "path" | "paths" => by.paths = true,
                "tag" | "tags" => by.tags = true,
                _ => return Err(ParseGroupByError),
            }
        }
        Ok(by)
    }
}

/// What the runs of a group have in common.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Group {
    /// Their host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// Their paths.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub paths: Option<Vec<String>>,
    /// Their tags.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tags: Option<Vec<String>>,
}

impl fmt::Display for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let texts = [
            self.host.as_ref().map(|host| format!("host {host}")),
            self.paths.as_ref().map(|paths| format!("paths [{}]", paths.join(", "))),
            self.tags.as_ref().map(|tags| format!("tags [{}]", tags.join(", "))),
        ];
        let texts: Vec<String> = texts.into_iter().flatten().collect();
        f.write_str(if texts.is_empty() { "all snapshots" } else { "" })?;
        f.write_str(&texts.join(", "))
    }
}

/// Sorts runs into groups.
pub fn groups(runs: Vec<Run>, by: GroupBy) -> BTreeMap<Group, Vec<Run>> {
    let mut groups: BTreeMap<Group, Vec<Run>> = BTreeMap::new();
    for run in runs {
        groups.entry(group_of(&run, by)).or_default().push(run);
    }
    groups
}

fn group_of(run: &Run, by: GroupBy) -> Group {
    let (_, first) = &run.parts[0];
    let sorted = |texts: Vec<String>| {
        let mut texts = texts;
        texts.sort_unstable();
        texts
    };
    let is_users = |tag: &&String| !is_reserved(tag);
    Group {
        host: by.host.then(|| first.hostname.clone()),
        paths: by.paths.then(|| sorted(run.source_paths().to_vec())),
        tags: by.tags.then(|| sorted(first.tags.iter().filter(is_users).cloned().collect())),
    }
}

/// When the newest part of a run was begun.
fn time(run: &Run) -> Time {
    let times = run.parts.iter().map(|(_, snapshot)| snapshot.time);
    times.max_by_key(Time::instant).unwrap_or(Time::ZERO)
}

/// What the clock showed where a time was written.
fn local(time: &Time) -> DateTime {
    let shifted = Time { seconds: time.seconds.saturating_add(i64::from(time.offset) * 60), ..*time };
    shifted.timestamp().to_zoned(TimeZone::UTC).datetime()
}

#[cfg(test)]
mod tests;
