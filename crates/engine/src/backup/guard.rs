//! Judges what a source holds by what it held, before anything is made visible (rules.md 1.1, 1.2, 1.4).

use std::sync::atomic::Ordering::Relaxed;

use super::session::Counts;
use crate::{Backup, Error, Result};

/// Whether a source that holds so few objects is refused.
///
/// `before` is what the last good run was of, `ranges` what each of its parts was of and what there is of it `now`;
/// both count what was listed. `now` counts objects alone, while a source may not be `empty` without any.
///
/// # Errors
/// `SourceShrunk`, `SourceEmpty`.
pub(crate) fn check(
    task: &Backup,
    source_name: &str,
    before: u64,
    ranges: impl IntoIterator<Item = (u64, u64)>,
    now: u64,
    empty: bool,
) -> Result<()> {
    let shrunk = |before, now| Error::SourceShrunk { source_name: source_name.to_owned(), before, now };
    if !task.accept_shrink {
        // A share that is no number between 0 and 1 allows nothing.
        let allowed = if (0.0..=1.0).contains(&task.max_shrink) { task.max_shrink } else { 0.0 };
        let lost = before.saturating_sub(now);
        if lost as f64 > before as f64 * allowed || (before > 0 && now == 0) {
            return Err(shrunk(before, now));
        }
        if let Some((before, _)) = ranges.into_iter().find(|(before, now)| *before > 0 && *now == 0) {
            return Err(shrunk(before, 0));
        }
    }
    if empty && !task.allow_empty && !(task.accept_shrink && before > 0) {
        return Err(Error::SourceEmpty { source_name: source_name.to_owned() });
    }
    Ok(())
}

/// How many objects vanished while they were read, if that is more than may go by without a word.
pub(crate) fn too_many_vanished(counts: &Counts, listed: u64) -> Option<String> {
    let vanished = counts.vanished.load(Relaxed);
    (vanished.saturating_mul(10) > listed)
        .then(|| format!("{vanished} of {listed} objects vanished while they were read"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_that_shrank_or_is_empty_needs_a_word() {
        let half = (0.5, false, false);
        let table: [(&[u64], &[u64], (f64, bool, bool), &str); 16] = [
            (&[10], &[5], half, ""),
            (&[10], &[4], half, "10 to 4"),
            (&[10], &[4], (0.5, true, false), ""),
            (&[10], &[4], (1.0, false, false), ""),
            (&[10], &[9], (0.0, false, false), "10 to 9"),
            (&[10], &[10], (0.0, false, false), ""),
            (&[10], &[4], (f64::NAN, false, false), "10 to 4"),
            (&[10], &[0], (1.0, false, false), "10 to 0"),
            (&[10], &[0], (1.0, false, true), "10 to 0"),
            (&[10], &[0], (1.0, true, false), ""),
            (&[], &[0], half, "holds nothing"),
            (&[], &[0], (0.5, true, false), "holds nothing"),
            (&[], &[0], (0.5, false, true), ""),
            (&[10, 1], &[10, 0], half, "1 to 0"),
            (&[10, 0], &[10, 0], half, ""),
            (&[0], &[0], (0.5, false, true), ""),
        ];
        for (before, now, (max, accept, empty), expected) in table {
            let address = |text: &str| text.parse::<cistern_bucket::Address>().unwrap();
            let mut task = Backup::new(address("s3://b"), address("s3://r"), "host");
            (task.max_shrink, task.accept_shrink, task.allow_empty) = (max, accept, empty);
            let ranges = before.iter().copied().zip(now.iter().copied());
            let total: u64 = now.iter().sum();
            match check(&task, "b", before.iter().sum(), ranges, total, total == 0) {
                Ok(()) => assert_eq!(expected, "", "{before:?} {now:?}"),
                Err(error) => {
                    assert!(
                        !expected.is_empty() && error.to_string().contains(expected),
                        "{before:?} {now:?}: {error}"
                    );
                }
            }
        }
    }

    #[test]
    fn one_in_ten_may_vanish() {
        let counts = Counts::default();
        Counts::add(&counts.vanished, 2);
        assert_eq!(too_many_vanished(&counts, 20), None);
        assert!(too_many_vanished(&counts, 19).unwrap().starts_with("2 of 19"));
    }
}
