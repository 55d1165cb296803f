//! Compares a listing with what an earlier run holds, and decides for every object what becomes of it.

use std::sync::Arc;

use cistern_bucket::Entry;
use cistern_repository::Id;
use tokio::sync::mpsc;

use super::listing::Listing;
use super::past::{Past, Place};
use crate::backup::content::{Objects, Reading};
use crate::fidelity::{Layout, is_same, side_of};
use crate::parts::Bounds;
use crate::select::Select;
use crate::{Error, Meter, Result};

/// What a walk tells whoever builds the trees, in the order of the keys.
pub(crate) enum Step {
    /// A page of the listing begins.
    Page,
    /// The next object.
    Object(Box<Object>),
}

/// An object of the source.
pub(crate) struct Object {
    /// As it was listed.
    pub entry: Entry,
    /// The trees that the parent has for the directories on the object's way, if they are others than before.
    pub trail: Option<Vec<Option<Id>>>,
    /// What becomes of it.
    pub fate: Fate,
}

/// What becomes of an object.
pub(crate) enum Fate {
    /// The selection leaves it out.
    Excluded,
    /// It is as in the parent.
    Same {
        /// Its node there.
        place: Place,
        /// The node of its side file.
        side: Option<Place>,
    },
    /// It is read.
    Read {
        /// Whether the parent has it, too.
        known: bool,
        /// The running read; `None` in a dry run.
        reading: Option<Reading>,
    },
}

/// What a walk knows at its end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Walked {
    /// Objects listed.
    pub listed: u64,
    /// Objects that are meant.
    pub selected: u64,
    /// Objects that the parent has, too.
    pub known: u64,
    /// Objects listed in the range of each part of the parent.
    pub in_part: Vec<u64>,
    /// Trees of the parent that are damaged or missing.
    pub damaged: u64,
}

/// What a walk needs.
pub(crate) struct Walk {
    /// The source.
    pub listing: Listing,
    /// What an earlier run holds.
    pub past: Past,
    /// Ranges of its parts, ascending.
    pub ranges: Vec<Bounds>,
    /// The one of the last key.
    pub range: usize,
    /// Where keys lie in a snapshot.
    pub layout: Arc<Layout>,
    /// Which objects are meant.
    pub select: Select,
    /// Reads objects; `None` in a dry run.
    pub objects: Option<Arc<Objects>>,
    /// Counts for whoever watches.
    pub meter: Arc<Meter>,
}

impl Walk {
    /// Goes through the whole listing. Nobody wanting the steps any more is no error: they know why.
    ///
    /// # Errors
    /// Of the listing and of the repository.
    pub async fn run(mut self, steps: mpsc::Sender<Step>) -> Result<Walked> {
        let mut walked = Walked { in_part: vec![0; self.ranges.len()], ..Walked::default() };
        while let Some(page) = self.listing.next().await? {
            if steps.send(Step::Page).await.is_err() {
                return Ok(walked);
            }
            for entry in page {
                let object = self.object(entry, &mut walked).await?;
                if steps.send(Step::Object(Box::new(object))).await.is_err() {
                    return Ok(walked);
                }
            }
        }
        walked.damaged = self.past.damaged();
        self.meter.totals_final();
        Ok(walked)
    }

    async fn object(&mut self, entry: Entry, walked: &mut Walked) -> Result<Object> {
        walked.listed += 1;
        let layout = self.layout.clone();
        let below = layout.below(entry.key.as_bytes());
        let (place, moved) = self.past.find(below).await?;
        while self.ranges.get(self.range).is_some_and(|range| range.is_behind(below)) {
            self.range += 1;
        }
        if self.ranges.get(self.range).is_some_and(|range| range.contains(below)) {
            walked.in_part[self.range] += 1;
        }
        if !self.is_selected(below, &entry) {
            // The directories are told anew with the next object that is meant.
            let trail = moved.then(|| self.past.trail());
            return Ok(Object { entry, trail, fate: Fate::Excluded });
        }
        walked.selected += 1;
        self.meter.found(entry.size);
        let trail = moved.then(|| self.past.trail());
        walked.known += u64::from(place.is_some());
        let known = place.is_some();
        if let Some(place) =
            place.filter(|place| is_same(place.node(), &entry) && self.past.is_stored(place.node()))
        {
            let side = side_of(place.node());
            let found = side.as_ref().map(|name| self.past.beside(name));
            // A side file that is not there (or not stored) has taken attributes with it: they are read again.
            match found {
                None => return Ok(Object { entry, trail, fate: Fate::Same { place, side: None } }),
                Some(Some(side)) if self.past.is_stored(side.node()) => {
                    return Ok(Object { entry, trail, fate: Fate::Same { place, side: Some(side) } });
                }
                Some(_) => (),
            }
        }
        let reading = match &self.objects {
            Some(objects) => {
                self.meter.current(|| entry.key.to_string());
                Some(objects.begin(entry.clone()).await)
            }
            None => None,
        };
        Ok(Object { entry, trail, fate: Fate::Read { known, reading } })
    }

    fn is_selected(&self, below: &[u8], entry: &Entry) -> bool {
        self.select.metadata(entry.size, Some(entry.modified))
            && (self.select.takes_every_path() || self.select.object(&self.layout.shown(below)))
    }
}

/// Whether a source that lists so few objects now is refused, given what the parent had: in all, and in each of
/// its parts.
///
/// # Errors
/// `SourceShrunk`, `SourceEmpty`.
pub(crate) fn guard(
    source_name: &str,
    before: &[Option<u64>],
    walked: &Walked,
    (max_shrink, accept_shrink, allow_empty): (f64, bool, bool),
) -> Result<()> {
    let now = walked.listed;
    let shrunk = |before, now| Error::SourceShrunk { source_name: source_name.to_owned(), before, now };
    let total: u64 = before.iter().flatten().sum();
    if !accept_shrink {
        // A share that is no number between 0 and 1 allows nothing.
        let allowed = if (0.0..=1.0).contains(&max_shrink) { max_shrink } else { 0.0 };
        let lost = total.saturating_sub(now);
        if lost as f64 > total as f64 * allowed || (total > 0 && now == 0) {
            return Err(shrunk(total, now));
        }
        for (before, now) in before.iter().zip(&walked.in_part) {
            if let (Some(before @ 1..), 0) = (*before, *now) {
                return Err(shrunk(before, 0));
            }
        }
    }
    if now == 0 && !allow_empty && !(accept_shrink && total > 0) {
        return Err(Error::SourceEmpty { source_name: source_name.to_owned() });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_that_shrank_or_is_empty_needs_a_word() {
        let half = (0.5, false, false);
        let table: [(&[Option<u64>], &[u64], (f64, bool, bool), &str); 16] = [
            (&[Some(10)], &[5], half, ""),
            (&[Some(10)], &[4], half, "10 to 4"),
            (&[Some(10)], &[4], (0.5, true, false), ""),
            (&[Some(10)], &[4], (1.0, false, false), ""),
            (&[Some(10)], &[9], (0.0, false, false), "10 to 9"),
            (&[Some(10)], &[10], (0.0, false, false), ""),
            (&[Some(10)], &[4], (f64::NAN, false, false), "10 to 4"),
            (&[Some(10)], &[0], (1.0, false, false), "10 to 0"),
            (&[Some(10)], &[0], (1.0, false, true), "10 to 0"),
            (&[Some(10)], &[0], (1.0, true, false), ""),
            (&[], &[0], half, "holds nothing"),
            (&[], &[0], (0.5, true, false), "holds nothing"),
            (&[], &[0], (0.5, false, true), ""),
            (&[Some(10), Some(1)], &[10, 0], half, "1 to 0"),
            (&[Some(10), Some(0)], &[10, 0], half, ""),
            (&[None], &[0], (0.5, false, true), ""),
        ];
        for (before, now, (max, accept, empty), expected) in table {
            let walked = Walked { listed: now.iter().sum(), in_part: now.to_vec(), ..Walked::default() };
            match guard("b", before, &walked, (max, accept, empty)) {
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
}
