//! The loop that every controller runs in: watches, one pass for each object that changed, and when to look again.
//!
//! A pass ends with a [`Requeue`] or with a [`Failure`]; what follows from a failure is decided here, once for all kinds.
//! An object that cannot be read stops nobody else's.

use std::collections::HashMap;
use std::convert::Infallible;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use cistern_bucket::Class;
use futures::StreamExt;
use jiff::Timestamp;
use kube::ResourceExt;
use kube::core::DeserializeGuard;
use kube::runtime::controller::{Action, Config, Controller};
use kube::runtime::reflector::{ObjectRef, Store};
use kube::runtime::watcher;
use tokio_util::sync::CancellationToken;

use crate::context::{Cx, Kind, warning};
use crate::series::Series;

/// Why a pass did not come to its end, named after what happens next.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The object says what cannot be done: nothing happens until it changes.
    #[error("{0}")]
    Invalid(String),
    /// Something that the object refers to is not there: its appearance wakes us, and five minutes do.
    #[error("{0}")]
    Missing(String),
    /// Somebody else is at it: we look again after this time.
    #[error("{0}")]
    Busy(String, Duration),
    /// It may well work the next time: we try again, less and less often.
    #[error("{0}")]
    Transient(String),
    /// What cannot be is: somebody has to look at it.
    #[error("{0}")]
    Broken(String),
}

impl Failure {
    /// What cannot be.
    pub fn broken(error: impl std::fmt::Display) -> Failure {
        Failure::Broken(error.to_string())
    }

    /// The word for it in metrics.
    fn name(&self) -> &'static str {
        match self {
            Failure::Invalid(_) => "invalid",
            Failure::Missing(_) => "missing",
            Failure::Busy(..) => "busy",
            Failure::Transient(_) => "transient",
            Failure::Broken(_) => "broken",
        }
    }
}

impl From<kube::Error> for Failure {
    fn from(error: kube::Error) -> Failure {
        let status = match error {
            kube::Error::Api(status) => status,
            kube::Error::SerdeError(_) | kube::Error::BuildRequest(_) => {
                return Failure::Broken(error.to_string());
            }
            error => return Failure::Transient(format!("the API server: {error}")),
        };
        let text = status.message.clone();
        match status.code {
            404 => Failure::Missing(text),
            409 => Failure::Busy(text, Duration::from_secs(1)),
            400 | 422 => Failure::Invalid(text),
            _ => Failure::Transient(text),
        }
    }
}

impl From<cistern_bucket::Error> for Failure {
    fn from(error: cistern_bucket::Error) -> Failure {
        let text = error.to_string();
        match error.class() {
            Class::Invalid => Failure::Invalid(text),
            Class::NotFound => Failure::Missing(text),
            Class::Busy => Failure::Busy(text, Duration::from_mins(1)),
            Class::Denied | Class::Incomplete | Class::Throttled | Class::Unreachable | Class::Cancelled => {
                Failure::Transient(text)
            }
            Class::Damaged | Class::Broken => Failure::Broken(text),
        }
    }
}

/// When an object is looked at again though nothing happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Requeue {
    /// When something happens; to be sure, after the time that the settings name.
    OnChange,
    /// After this time.
    After(Duration),
    /// At this time.
    At(Timestamp),
}

/// A kind with a controller.
pub trait Reconcile: Kind + Series {
    /// What else wakes an object than its own change.
    fn watches(watches: Watches<Self>) -> Watches<Self> {
        watches
    }

    /// One pass: observe, lower, decide, apply, publish.
    fn reconcile(&self, cx: &Cx) -> impl Future<Output = Result<Requeue, Failure>> + Send;
}

/// The watches of a controller while they are put together.
pub struct Watches<K: Reconcile> {
    controller: Controller<DeserializeGuard<K>>,
    cx: Arc<Cx>,
}

impl<K: Reconcile> Watches<K> {
    /// An object that belongs to another one wakes its owner.
    pub fn owned<Child: Kind>(mut self) -> Self {
        for api in self.cx.everywhere::<Child>() {
            self.controller = self.controller.owns(api, watcher::Config::default());
        }
        self
    }

    /// Another object wakes those that `names` gives, as pairs of namespace and name.
    pub fn on<Other: Kind>(mut self, names: fn(&Other) -> Vec<(String, String)>) -> Self {
        for api in self.cx.everywhere::<DeserializeGuard<Other>>() {
            self.controller = self.controller.watches(api, watcher::Config::default(), move |other| {
                let names = other.0.as_ref().map(names).unwrap_or_default();
                names.into_iter().map(|(namespace, name)| ObjectRef::new(&name).within(&namespace))
            });
        }
        self
    }

    /// Another object wakes all those that refer to it.
    pub fn referred<Other: Kind>(mut self, refers: fn(&K, &Other) -> bool) -> Self {
        let store = self.controller.store();
        for api in self.cx.everywhere::<DeserializeGuard<Other>>() {
            let store = store.clone();
            self.controller = self.controller.watches(api, watcher::Config::default(), move |other| {
                let Ok(other) = &other.0 else { return Vec::new() };
                let all = store.state();
                let awake = all.iter().filter(|this| this.0.as_ref().is_ok_and(|this| refers(this, other)));
                awake.map(|this| ObjectRef::from_obj(&**this)).collect()
            });
        }
        self
    }
}

/// Runs the controllers of a kind, one for each namespace that we look after or one for all, until `cancel` fires and the
/// passes that have begun are over.
pub async fn run<K: Reconcile>(cx: Arc<Cx>, cancel: CancellationToken) {
    let apis = cx.everywhere::<DeserializeGuard<K>>();
    let running = apis.into_iter().map(|api| {
        let controller = Controller::new(api, watcher::Config::default());
        let controller = controller.with_config(Config::default().concurrency(16));
        let Watches { controller, .. } = K::watches(Watches { controller, cx: cx.clone() });
        let controller = controller.graceful_shutdown_on(cancel.clone().cancelled_owned());
        let store = controller.store();
        cx.metrics().watch(store.clone());
        let this = Arc::new(Passes { cx: cx.clone(), store, failures: Mutex::default() });
        controller
            .run(
                |object, this: Arc<Passes<K>>| async move { Ok::<_, Infallible>(this.pass(&object).await) },
                |_, never, _| match *never {},
                this,
            )
            .for_each(|outcome| async {
                // What an object's pass met is told there; what is left are the watches themselves, which go on.
                match outcome {
                    Ok(_) | Err(kube::runtime::controller::Error::ObjectNotFound(_)) => {}
                    Err(error) => {
                        tracing::warn!(kind = %K::kind(&()), %error, "a watch was interrupted");
                    }
                }
            })
    });
    futures::future::join_all(running).await;
}

/// The passes of one kind, and how often each object failed in a row.
struct Passes<K: Reconcile> {
    cx: Arc<Cx>,
    store: Store<DeserializeGuard<K>>,
    failures: Mutex<HashMap<ObjectRef<DeserializeGuard<K>>, u32>>,
}

impl<K: Reconcile> Passes<K> {
    async fn pass(&self, guarded: &DeserializeGuard<K>) -> Action {
        let kind = K::kind(&());
        let (namespace, name) = (guarded.namespace().unwrap_or_default(), guarded.name_any());
        let began = Instant::now();
        let outcome = match &guarded.0 {
            Ok(object) => object.reconcile(&self.cx).await,
            Err(broken) => Err(Failure::Invalid(format!("the object cannot be read: {}", broken.error))),
        };
        let word = outcome.as_ref().err().map_or("done", Failure::name);
        self.cx.metrics().pass(&kind, word, began.elapsed());
        let times = self.count(guarded, matches!(outcome, Err(Failure::Transient(_) | Failure::Broken(_))));
        let failure = match outcome {
            Ok(requeue) => {
                tracing::debug!(%kind, namespace, name, ?requeue, took = ?began.elapsed(), "looked at");
                return after(requeue, self.cx.now(), self.cx.settings().resync);
            }
            Err(failure) => failure,
        };
        let loud = match &failure {
            Failure::Broken(_) => {
                tracing::error!(%kind, namespace, name, error = %failure, "what cannot be is");
                true
            }
            Failure::Transient(_) => {
                tracing::warn!(%kind, namespace, name, error = %failure, times, "a pass failed and is tried again");
                times == 3
            }
            Failure::Invalid(_) => {
                tracing::warn!(%kind, namespace, name, error = %failure, "an object cannot be used as it is");
                true
            }
            Failure::Missing(_) | Failure::Busy(..) => {
                tracing::info!(%kind, namespace, name, error = %failure, "an object has to wait");
                false
            }
        };
        if let (true, Ok(object)) = (loud, &guarded.0) {
            self.cx.announce(object, warning(reason(&failure), "Reconcile", failure.to_string())).await;
        }
        retry(&failure, times, rand::random())
    }

    /// Counts how often the object failed in a row.
    fn count(&self, object: &DeserializeGuard<K>, failed: bool) -> u32 {
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        let name = ObjectRef::from_obj(object);
        if !failed {
            failures.remove(&name);
            return 0;
        }
        // Objects that are gone are not remembered.
        failures.retain(|name, _| self.store.get(name).is_some());
        let times = failures.entry(name).or_default();
        *times += 1;
        *times
    }
}

fn reason(failure: &Failure) -> &'static str {
    match failure {
        Failure::Invalid(_) => "InvalidSpec",
        Failure::Missing(_) => "NotFound",
        Failure::Busy(..) => "Busy",
        Failure::Transient(_) => "TryingAgain",
        Failure::Broken(_) => "InternalError",
    }
}

fn after(requeue: Requeue, now: Timestamp, resync: Duration) -> Action {
    let wait = match requeue {
        Requeue::OnChange => resync,
        Requeue::After(time) => time,
        Requeue::At(time) => {
            // A moment later than it says, or we would be there before it.
            Duration::try_from(time.duration_since(now)).unwrap_or_default() + Duration::from_millis(50)
        }
    };
    Action::requeue(wait.min(resync))
}

/// When a pass that failed the `times`-th time in a row is tried again; `random` spreads those that failed together.
fn retry(failure: &Failure, times: u32, random: f64) -> Action {
    match failure {
        Failure::Invalid(_) => Action::await_change(),
        Failure::Missing(_) => Action::requeue(Duration::from_mins(5)),
        Failure::Busy(_, wait) => Action::requeue(*wait),
        Failure::Transient(_) => Action::requeue(back_off(times, random)),
        Failure::Broken(_) => Action::requeue(Duration::from_mins(10)),
    }
}

/// Five seconds, doubled with each failure up to ten minutes, of which up to a fifth is left to chance.
fn back_off(times: u32, random: f64) -> Duration {
    let doubled = Duration::from_secs(5) * 2_u32.pow(times.saturating_sub(1).min(7));
    doubled.min(Duration::from_mins(10)).mul_f64(1.0 - 0.2 * random.clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_tried_again_by_their_kind() {
        let table = [
            (Failure::Invalid(String::new()), 1, Action::await_change()),
            (Failure::Missing(String::new()), 1, Action::requeue(Duration::from_mins(5))),
            (
                Failure::Busy(String::new(), Duration::from_secs(7)),
                1,
                Action::requeue(Duration::from_secs(7)),
            ),
            (Failure::Transient(String::new()), 1, Action::requeue(Duration::from_secs(5))),
            (Failure::Transient(String::new()), 3, Action::requeue(Duration::from_secs(20))),
            (Failure::Transient(String::new()), 90, Action::requeue(Duration::from_mins(10))),
            (Failure::Broken(String::new()), 1, Action::requeue(Duration::from_mins(10))),
        ];
        for (failure, times, action) in table {
            assert_eq!(retry(&failure, times, 0.0), action, "{failure:?} {times}");
        }
        assert_eq!(back_off(1, 1.0), Duration::from_secs(4));
    }

    #[test]
    fn the_next_look_is_never_later_than_the_resync() {
        let now = Timestamp::UNIX_EPOCH;
        let hour = Duration::from_hours(1);
        assert_eq!(after(Requeue::OnChange, now, hour), Action::requeue(hour));
        assert_eq!(after(Requeue::After(Duration::from_hours(2)), now, hour), Action::requeue(hour));
        let soon = now + jiff::SignedDuration::from_secs(3);
        assert_eq!(after(Requeue::At(soon), now, hour), Action::requeue(Duration::from_millis(3050)));
        assert_eq!(after(Requeue::At(now), soon, hour), Action::requeue(Duration::from_millis(50)));
    }

    #[test]
    fn the_api_server_s_answers_are_classes() {
        let answer = |code| {
            let status = kube::core::Status { code, ..kube::core::Status::failure("why", "because") };
            Failure::from(kube::Error::Api(Box::new(status))).name()
        };
        assert_eq!(
            [404, 409, 422, 403, 500, 429].map(answer),
            ["missing", "busy", "invalid", "transient", "transient", "transient"]
        );
    }
}
