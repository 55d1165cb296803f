//! Compares a listing with what an earlier run holds, and decides for every object what becomes of it: for each
//! repository by itself, so that what several of them do not have is read once for all of them.

use std::sync::Arc;

use cistern_bucket::{Entry, Tags};
use cistern_repository::Id;
use tokio::sync::{mpsc, oneshot};

use super::listing::Listing;
use super::past::{Past, Place};
use crate::backup::content::{Objects, Read, Reading};
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
        tags: Option<Reading<Option<Tags>>>,
    },
    /// It is read.
    Read {
        /// Whether the parent has it, too.
        known: bool,
        /// The running read; `None` in a dry run.
        reading: Option<Reading<Read>>,
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
    /// Where keys lie in a snapshot.
    pub layout: Arc<Layout>,
    /// Which objects are meant.
    pub select: Select,
    /// Reads objects; `None` in a dry run.
    pub objects: Option<Arc<Objects>>,
    /// The repositories, with the numbers that [`Objects`] knows them by; those that left are `None`.
    pub destinations: Vec<Option<Destination>>,
}

/// What a walk has to do with one repository.
pub(crate) struct Destination {
    /// What an earlier run holds.
    pub past: Past,
    /// Ranges to count in, ascending: those of the parts of the last good run.
    pub ranges: Vec<Bounds>,
    /// The one of the last key.
    pub range: usize,
    /// Counts for whoever watches.
    pub meter: Arc<Meter>,
    /// What is known so far.
    pub walked: Walked,
    /// Who builds the trees.
    pub steps: mpsc::Sender<Step>,
    /// Who waits for the end, and hears of it before the steps end.
    pub verdict: oneshot::Sender<Result<Walked>>,
}

/// What becomes of an object in one repository, before anything is read.
struct Judged {
    trail: Option<Vec<Option<Id>>>,
    what: What,
}

enum What {
    Excluded,
    Same { place: Place, side: Option<Place>, lacks_tags: bool },
    Read { known: bool },
}

impl Walk {
    /// Goes through the whole listing, for as long as a repository wants to know of it.
    pub async fn run(mut self) {
        let outcome = self.go().await;
        let left: Vec<_> = self.destinations.drain(..).flatten().collect();
        let errors = match outcome {
            Ok(()) => Vec::new(),
            Err(error) => error.for_all(left.len()),
        };
        let mut errors = errors.into_iter();
        for mut destination in left {
            match errors.next() {
                Some(error) => destination.leave(Err(error)),
                None => {
                    destination.walked.damaged = destination.past.damaged();
                    destination.meter.totals_final();
                    destination.leave(Ok(()));
                }
            }
        }
    }

    async fn go(&mut self) -> Result<()> {
        while let Some(page) = self.listing.next().await? {
            self.tell(|_| Some(Step::Page)).await;
            if self.destinations.iter().all(Option::is_none) {
                return Ok(());
            }
            let mut judged = Vec::new();
            for entry in page {
                self.object(entry, &mut judged).await;
            }
        }
        Ok(())
    }

    /// Gives each repository its step. One that does not want it any more knows why.
    async fn tell(&mut self, mut step: impl FnMut(usize) -> Option<Step>) {
        for (i, place) in self.destinations.iter_mut().enumerate() {
            if let Some(destination) = place
                && let Some(step) = step(i)
                && destination.steps.send(step).await.is_err()
                && let Some(destination) = place.take()
            {
                destination.leave(Ok(()));
            }
        }
    }

    async fn object(&mut self, entry: Entry, judged: &mut Vec<Option<Judged>>) {
        let layout = self.layout.clone();
        let below = layout.below(entry.key.as_bytes());
        let selected = self.is_selected(below, &entry);
        judged.clear();
        for place in &mut self.destinations {
            judged.push(match place {
                None => None,
                Some(destination) => match destination.judge(below, &entry, selected).await {
                    Ok(one) => Some(one),
                    Err(error) => {
                        if let Some(destination) = place.take() {
                            destination.leave(Err(error));
                        }
                        None
                    }
                },
            });
        }
        let those = |judged: &[Option<Judged>], wanted: fn(&What) -> bool| -> Vec<usize> {
            let numbered = judged.iter().enumerate();
            numbered
                .filter(|(_, one)| one.as_ref().is_some_and(|one| wanted(&one.what)))
                .map(|(i, _)| i)
                .collect()
        };
        let readers = those(judged, |what| matches!(what, What::Read { .. }));
        let without_tags = those(judged, |what| matches!(what, What::Same { lacks_tags: true, .. }));
        let (mut readings, mut tags) = (Vec::new().into_iter(), Vec::new().into_iter());
        if let Some(objects) = &self.objects {
            if !readers.is_empty() {
                for destination in readers.iter().filter_map(|i| self.destinations[*i].as_ref()) {
                    destination.meter.current(|| entry.key.to_string());
                }
                readings = objects.begin(entry.clone(), readers).await.into_iter();
            }
            if !without_tags.is_empty() {
                tags = objects.begin_tags(entry.key.clone(), without_tags).into_iter();
            }
        }
        self.tell(|i| {
            let Judged { trail, what } = judged.get_mut(i)?.take()?;
            let fate = match what {
                What::Excluded => Fate::Excluded,
                What::Same { place, side, lacks_tags } => {
                    Fate::Same { place, side, tags: if lacks_tags { tags.next() } else { None } }
                }
                What::Read { known } => Fate::Read { known, reading: readings.next() },
            };
            Some(Step::Object(Box::new(Object { entry: entry.clone(), trail, fate })))
        })
        .await;
    }

    fn is_selected(&self, below: &[u8], entry: &Entry) -> bool {
        self.select.metadata(entry.size, Some(entry.modified))
            && (self.select.takes_every_path() || self.select.object(&self.layout.shown(below)))
    }
}

impl Destination {
    /// Says how it ended, before the steps end.
    fn leave(self, outcome: Result<()>) {
        // Nobody minds if they have gone already.
        let _ = self.verdict.send(outcome.map(|()| self.walked));
    }

    async fn judge(&mut self, below: &[u8], entry: &Entry, selected: bool) -> Result<Judged> {
        self.walked.listed += 1;
        let (place, moved) = self.past.find(below).await?;
        while self.ranges.get(self.range).is_some_and(|range| range.is_behind(below)) {
            self.range += 1;
        }
        if self.ranges.get(self.range).is_some_and(|range| range.contains(below)) {
            self.walked.in_part[self.range] += 1;
        }
        let trail = moved.then(|| self.past.trail());
        if !selected {
            return Ok(Judged { trail, what: What::Excluded });
        }
        self.walked.selected += 1;
        self.meter.found(entry.size);
        self.walked.known += u64::from(place.is_some());
        let known = place.is_some();
        if let Some(place) =
            place.filter(|place| is_same(place.node(), entry) && self.past.is_stored(place.node()))
        {
            let side = side_of(place.node());
            let found = side.as_ref().map(|name| self.past.beside(name));
            // A side file that is not there (or not stored) has taken attributes with it: they are read again.
            match found {
                None => {
                    let lacks_tags = lacks_tags(place.node());
                    return Ok(Judged { trail, what: What::Same { place, side: None, lacks_tags } });
                }
                Some(Some(side)) if self.past.is_stored(side.node()) => {
                    let what = What::Same { place, side: Some(side), lacks_tags: false };
                    return Ok(Judged { trail, what });
                }
                Some(_) => (),
            }
        }
        Ok(Judged { trail, what: What::Read { known } })
    }
}
