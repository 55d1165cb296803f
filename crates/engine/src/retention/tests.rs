use std::collections::{BTreeMap, BTreeSet};

use cistern_repository::Id;
use proptest::prelude::*;

use super::*;
use crate::snapshots::runs;
use crate::snapshots::tests::snapshot;

const DAY: i64 = 86_400;

fn policy(counts: &[(Period, Count)]) -> Policy {
    Policy { counts: counts.iter().copied().collect(), ..Policy::default() }
}

fn later() -> Timestamp {
    Timestamp::from_second(4_000_000_000).unwrap()
}

/// Ids of what is kept.
fn kept(policy: &Policy, runs: &[Run]) -> Vec<u8> {
    let verdicts = apply(policy, runs, later());
    let kept = runs.iter().zip(verdicts).filter(|(_, verdict)| verdict.keep);
    kept.flat_map(|(run, _)| run.parts.iter().map(|(id, _)| id.as_bytes()[0])).collect()
}

#[test]
fn a_run_is_kept_or_forgotten_with_all_its_parts() {
    let parts = |first: u8, second: i64, run: &str| {
        let tags = [format!("run:{run}"), "parts:2".to_owned()];
        let tags: Vec<&str> = tags.iter().map(String::as_str).collect();
        ["part-a", "part-b"].map(|part| {
            let id = first + u8::from(part == "part-b");
            snapshot(id, second + i64::from(id % 2), "a", &["/x", part], &tags)
        })
    };
    let all: Vec<_> = [parts(10, 100, "r1"), parts(20, 200, "r2"), parts(30, 300, "r3")].concat();
    let all = runs(&all);
    assert_eq!(all.len(), 3);
    assert_eq!(kept(&policy(&[(Period::Last, Count::Most(2))]), &all), [20, 21, 30, 31]);
    let groups = groups(all, GroupBy::default());
    let [(group, _)] = &groups.iter().collect::<Vec<_>>()[..] else { panic!("{groups:?}") };
    assert_eq!(group.to_string(), "host a, paths [/x]");
}

#[test]
fn runs_that_failed_push_out_none_that_succeeded() {
    let all = runs(&[
        snapshot(1, DAY, "a", &["/x"], &[]),
        snapshot(2, 2 * DAY, "a", &["/x"], &["incomplete"]),
        snapshot(3, 3 * DAY, "a", &["/x"], &["incomplete"]),
        // A part of two: the run broke off.
        snapshot(4, 400 * DAY, "a", &["/x", "part-a"], &["run:r", "parts:2"]),
    ]);
    let last = policy(&[(Period::Last, Count::Most(1))]);
    assert_eq!(kept(&last, &all), [1, 4]);
    assert_eq!(kept(&Policy { incomplete: 0, ..last.clone() }, &all), [1]);
    assert_eq!(kept(&Policy { incomplete: 2, ..last.clone() }, &all), [1, 3, 4]);
    // The age counts from the newest that succeeded.
    assert_eq!(
        kept(&Policy { within: "1d".parse().ok(), incomplete: 0, ..Policy::default() }, &all),
        [1, 2, 3, 4]
    );
    let reasons: Vec<_> = apply(&last, &all, later()).into_iter().map(|verdict| verdict.reasons).collect();
    assert_eq!(reasons[1], ["incomplete, and not the last"]);
    assert_eq!(reasons[3], ["last incomplete snapshot"]);
}

#[test]
fn no_rule_keeps_everything_and_the_future_is_not_the_newest() {
    let all =
        runs(&[snapshot(1, DAY, "a", &["/x"], &[]), snapshot(2, 900 * DAY, "a", &["/x"], &["keep", "b"])]);
    assert_eq!(kept(&Policy::default(), &all), [1, 2]);
    let within = Policy { within: "2d".parse().ok(), ..Policy::default() };
    assert_eq!(kept(&within, &all), [2]);
    let now = Timestamp::from_second(2 * DAY).unwrap();
    let verdicts = apply(&within, &all, now);
    assert!(verdicts.iter().all(|verdict| verdict.keep), "{verdicts:?}");
    let tags = Policy { tags: vec![vec!["keep".into(), "b".into()], vec!["c".into()]], ..Policy::default() };
    assert_eq!(kept(&tags, &all), [2]);
    assert_eq!(apply(&tags, &all, later())[1].reasons, ["has tags [keep, b]"]);
}

#[test]
fn an_age_is_written_as_restic_writes_it() {
    for text in ["1y", "2m", "14d", "12h", "1y5m7d2h"] {
        assert_eq!(text.parse::<Age>().unwrap().to_string(), text);
    }
    assert_eq!("7d1y".parse::<Age>().unwrap().to_string(), "1y7d");
    for text in ["", "0d", "1", "d", "1w", "1d2", "-1d", "1 d", "70000y"] {
        assert_eq!(text.parse::<Age>(), Err(ParseAgeError), "{text}");
    }
}

#[test]
fn months_are_counted_as_go_counts_them() {
    let at = |text: &str| Time::parse(text.as_bytes()).unwrap();
    for (end, age, start) in [
        ("2024-03-31T10:00:00Z", "1m", "2024-03-02T10:00:00Z"),
        ("2023-03-31T10:00:00Z", "1m", "2023-03-03T10:00:00Z"),
        ("2024-02-29T10:00:00.5Z", "1y", "2023-03-01T10:00:00.5Z"),
        ("2024-01-15T01:00:00Z", "1m20d3h", "2023-11-24T22:00:00Z"),
        ("2024-01-15T01:00:00+02:00", "14m", "2022-11-15T01:00:00+02:00"),
        ("2024-01-01T00:30:00+01:00", "1d", "2023-12-31T00:30:00+01:00"),
    ] {
        let age: Age = age.parse().unwrap();
        assert_eq!(age.before(&at(end)), at(start).instant(), "{end} − {age}");
    }
    assert_eq!("65535y".parse::<Age>().unwrap().before(&at("2024-01-01T00:00:00Z")), (i64::MIN, 0));
}

#[test]
fn periods_are_those_of_the_clock_where_the_run_was_made() {
    let mut late = snapshot(2, 0, "a", &["/x"], &[]);
    // The evening of the second in UTC, the morning of the third where it was made.
    late.1.time = Time::parse(b"2024-01-03T01:00:00+03:00").unwrap();
    let mut early = snapshot(1, 0, "a", &["/x"], &[]);
    early.1.time = Time::parse(b"2024-01-02T20:00:00Z").unwrap();
    let all = runs(&[early, late]);
    assert_eq!(kept(&policy(&[(Period::Daily, Count::Most(2))]), &all), [1, 2]);
}

#[test]
fn groups_are_told_apart_by_what_is_asked() {
    let by = |text: &str| {
        let all = runs(&[
            snapshot(1, 1, "a", &["/x", "/y"], &["t", "u"]),
            snapshot(2, 2, "a", &["/y", "/x"], &["u", "t", "partial"]),
            snapshot(3, 3, "b", &["/x"], &["t"]),
        ]);
        groups(all, text.parse().unwrap()).keys().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(by("host,paths"), ["host a, paths [/x, /y]", "host b, paths [/x]"]);
    assert_eq!(by("tags"), ["tags [t]", "tags [t, u]"]);
    assert_eq!(by(""), ["all snapshots"]);
    assert!("host,when".parse::<GroupBy>().is_err());
}

/// A slow and independent judge, for runs in UTC: it asks of every run whether any rule wants it.
fn model(policy: &Policy, seconds: &[i64]) -> BTreeSet<usize> {
    let name = |period: Period, second: i64, i: usize| -> String {
        let format = match period {
            Period::Last => return format!("{i:06}"),
            Period::Hourly => "%Y-%m-%d %H",
            Period::Daily => "%Y-%m-%d",
            Period::Weekly => "%G-%V",
            Period::Monthly => "%Y-%m",
            Period::Yearly => "%Y",
        };
        Timestamp::from_second(second).unwrap().strftime(format).to_string()
    };
    let newest = seconds.iter().copied().max().unwrap_or(0);
    let since = |age: &Age| {
        assert_eq!((age.years, age.months), (0, 0), "the model knows days and hours");
        newest - i64::from(age.days) * DAY - i64::from(age.hours) * 3_600
    };
    let oldest = (0..seconds.len()).min_by_key(|i| seconds[*i]);
    let mut kept = BTreeSet::new();
    let mut best_of = |period: Period, most: usize, after: i64| {
        let mut newest_of: BTreeMap<String, usize> = BTreeMap::new();
        for i in (0..seconds.len()).filter(|i| seconds[*i] > after) {
            let best = newest_of.entry(name(period, seconds[i], i)).or_insert(i);
            if seconds[i] > seconds[*best] {
                *best = i;
            }
        }
        let mut chosen: Vec<usize> = newest_of.into_values().collect();
        chosen.sort_by_key(|i| Reverse(seconds[*i]));
        kept.extend(chosen.iter().take(most));
        if chosen.len() < most {
            kept.extend(oldest.filter(|i| seconds[*i] > after));
        }
    };
    for (period, count) in &policy.counts {
        let most = match count {
            Count::Most(most) => *most as usize,
            Count::All => usize::MAX,
        };
        best_of(*period, most, i64::MIN);
    }
    for (period, age) in &policy.periods_within {
        best_of(*period, usize::MAX, since(age));
    }
    kept.extend(policy.within.iter().flat_map(|age| (0..seconds.len()).filter(|i| seconds[*i] > since(age))));
    kept
}

fn any_period() -> impl Strategy<Value = Period> {
    use Period::*;
    prop::sample::select(vec![Last, Hourly, Daily, Weekly, Monthly, Yearly])
}

fn any_count() -> impl Strategy<Value = Count> {
    prop_oneof![6 => (0u32..12).prop_map(Count::Most), 1 => Just(Count::All)]
}

fn any_age() -> impl Strategy<Value = Age> {
    (0u16..900, 1u16..40).prop_map(|(days, hours)| Age { days, hours, ..Age::default() })
}

/// Seconds at any distance, many of them near to each other, no two alike.
fn any_seconds() -> impl Strategy<Value = Vec<i64>> {
    let step = prop_oneof![1i64..4_000, 1i64..(3 * DAY), 1i64..(200 * DAY)];
    prop::collection::vec(step, 1..60).prop_map(|steps| {
        let from_start = |at: &mut i64, step: i64| {
            *at += step;
            Some(*at)
        };
        steps.into_iter().scan(1_000_000_000, from_start).collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn it_judges_as_the_slow_model_does(
        seconds in any_seconds(),
        counts in prop::collection::btree_map(any_period(), any_count(), 0..4),
        periods_within in prop::collection::btree_map(any_period(), any_age(), 0..3),
        within in prop::option::weighted(0.3, any_age()),
    ) {
        let policy = Policy { counts, periods_within, within, ..Policy::default() };
        let all: Vec<Run> = (0..).zip(&seconds).map(|(i, second): (usize, &i64)| {
            let (_, snapshot) = snapshot(0, *second, "a", &["/x"], &[]);
            Run { id: None, parts: vec![(Id::of(&i.to_le_bytes()), snapshot)] }
        }).collect();
        let verdicts = apply(&policy, &all, later());
        let kept: BTreeSet<usize> = (0..all.len()).filter(|i| verdicts[*i].keep).collect();
        let expected = if policy.is_empty() { (0..all.len()).collect() } else { model(&policy, &seconds) };
        prop_assert_eq!(kept, expected);
        prop_assert!(verdicts.iter().all(|verdict| !verdict.reasons.is_empty()));
    }
}
