//! What the operator counts: passes of its controllers, and the objects that they look after.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use kube::core::DeserializeGuard;
use kube::runtime::reflector::Store;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use crate::context::Kind;
use crate::series::{Labels, NAMES, Sample, Series};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Pass {
    kind: String,
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfKind {
    kind: String,
}

/// What is to be said of the objects of a kind: how many there are, how many of them cannot be read, and their numbers.
type Count = Box<dyn Fn() -> (String, usize, usize, Vec<Sample>) + Send + Sync>;

/// The numbers of this process.
pub struct Metrics {
    registry: Registry,
    passes: Family<Pass, Counter>,
    seconds: Family<OfKind, Histogram>,
    objects: Family<OfKind, Gauge>,
    unreadable: Family<OfKind, Gauge>,
    series: BTreeMap<&'static str, Family<Labels, Gauge<f64, AtomicU64>>>,
    counts: Mutex<Vec<Count>>,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut all = Registry::default();
        let registry = all.sub_registry_with_prefix("cistern");
        let passes = Family::default();
        registry.register("passes", "Passes of controllers, by how they ended", passes.clone());
        // From 1 ms to half a minute.
        let seconds = Family::new_with_constructor(
            (|| Histogram::new(exponential_buckets(0.001, 2.0, 15))) as fn() -> _,
        );
        registry.register("pass_seconds", "How long a pass took", seconds.clone());
        let objects = Family::default();
        registry.register("objects", "Objects that are looked after", objects.clone());
        let unreadable = Family::default();
        registry.register("unreadable_objects", "Objects that cannot be read", unreadable.clone());
        let series = NAMES.iter().map(|(name, help)| {
            let family: Family<Labels, Gauge<f64, AtomicU64>> = Family::default();
            all.register(*name, *help, family.clone());
            (*name, family)
        });
        let series = series.collect();
        Metrics { registry: all, passes, seconds, objects, unreadable, series, counts: Mutex::default() }
    }
}

impl Metrics {
    /// Counts a pass.
    pub(crate) fn pass(&self, kind: &str, result: &'static str, took: Duration) {
        self.passes.get_or_create(&Pass { kind: kind.to_owned(), result }).inc();
        self.seconds.get_or_create(&OfKind { kind: kind.to_owned() }).observe(took.as_secs_f64());
    }

    /// Counts the objects that a controller knows whenever the numbers are asked for.
    pub(crate) fn watch<K: Kind + Series>(&self, store: Store<DeserializeGuard<K>>) {
        let count: Count = Box::new(move || {
            let all = store.state();
            let samples =
                all.iter().filter_map(|object| object.0.as_ref().ok()).flat_map(Series::series).collect();
            let broken = all.iter().filter(|object| object.0.is_err()).count();
            (K::kind(&()).into_owned(), all.len(), broken, samples)
        });
        self.counts.lock().unwrap_or_else(PoisonError::into_inner).push(count);
    }

    /// The numbers in the text format of Prometheus.
    pub fn text(&self) -> String {
        // One answer at a time, or two would be mixed.
        let counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        self.objects.clear();
        self.unreadable.clear();
        self.series.values().for_each(Family::clear);
        for count in counts.iter() {
            let (kind, all, broken, samples) = count();
            for (name, labels, value) in samples {
                if let Some(family) = self.series.get(name) {
                    family.get_or_create(&labels).set(value);
                }
            }
            let kind = OfKind { kind };
            self.objects.get_or_create(&kind).inc_by(i64::try_from(all).unwrap_or(i64::MAX));
            self.unreadable.get_or_create(&kind).inc_by(i64::try_from(broken).unwrap_or(i64::MAX));
        }
        let mut text = String::new();
        // Writing into a string cannot fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passes_are_counted_by_how_they_ended() {
        let metrics = Metrics::default();
        metrics.pass("Snapshot", "done", Duration::from_millis(3));
        metrics.pass("Snapshot", "transient", Duration::from_millis(3));
        let text = metrics.text();
        assert!(text.contains(r#"cistern_passes_total{kind="Snapshot",result="transient"} 1"#), "{text}");
        assert!(text.contains(r#"cistern_pass_seconds_count{kind="Snapshot"} 2"#), "{text}");
    }
}
