//! Compares a listing with what an earlier run holds, and decides for every object what becomes of it.

use std::sync::Arc;

use cistern_bucket::Entry;
use cistern_repository::Id;
use tokio::sync::mpsc;

use super::listing::Listing;
use super::past::{Past, Place};
use crate::backup::content::{Objects, Reading, ReadingTags};
use crate::fidelity::{Layout, is_same, lacks_tags, side_of};
use crate::parts::Bounds;
use crate::select::Select;
use crate::{Meter, Result};

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
        /// Its tags, if the parent could not read them.
        tags: Option<ReadingTags>,
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
    /// Objects listed in each of the [`ranges`](Walk::ranges).
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
    /// Ranges to count in, ascending: those of the parts of the last good run.
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
                None => {
                    let objects = self.objects.as_ref().filter(|_| lacks_tags(place.node()));
                    let tags = objects.and_then(|objects| objects.begin_tags(entry.key.clone()));
                    return Ok(Object { entry, trail, fate: Fate::Same { place, side: None, tags } });
                }
                Some(Some(side)) if self.past.is_stored(side.node()) => {
                    let fate = Fate::Same { place, side: Some(side), tags: None };
                    return Ok(Object { entry, trail, fate });
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
