//! The tables at the end of a benchmark: medians, spread, and the bar that each ratio is held against.

use super::{Measurement, Operation, Peer};

/// The ratio that Cistern promises to stay below, per data set and operation (README, "How fast").
fn bar(set: &str, operation: Operation) -> Option<f64> {
    match (operation, set) {
        (Operation::First, "random") => Some(0.5),
        (Operation::First, "text") => Some(0.55),
        (Operation::First, "small") => Some(0.4),
        // Over a few large files it is nothing but opening the repository, whose key is as dear for both.
        (Operation::Unchanged, "small") => Some(0.3),
        (Operation::Restore, "random" | "text" | "small") => Some(0.6),
        (Operation::Check | Operation::Prune, "random" | "text" | "small") => Some(0.5),
        _ => None,
    }
}

/// Prints CPU seconds and memory of both, and the ratio of each round's pair.
pub fn ratios(all: &[Measurement]) {
    println!();
    println!(
        "Cistern against restic: CPU seconds (user + system, children included), peak memory in MiB; medians."
    );
    println!("Ratio: median of the rounds' pairs, with the smallest and the largest.");
    println!();
    println!(
        "| set    | operation | cistern | restic | ratio             | bar  |    | MiB cistern | MiB restic |"
    );
    println!(
        "| ------ | --------- | ------: | -----: | ----------------- | ---- | -- | ----------: | ---------: |"
    );
    for (set, operation) in keys(all) {
        let of = |peer| pick(all, set, operation, peer);
        let (ours, theirs) = (of(Peer::Cistern), of(Peer::Restic));
        let median_of = |runs: &[&Measurement], value: fn(&Measurement) -> f64| {
            median(runs.iter().map(|run| value(run)).collect()).1
        };
        let pairs = ours.iter().zip(&theirs).map(|(a, b)| a.cost.cpu / b.cost.cpu.max(1e-6)).collect();
        let (low, ratio, high) = median(pairs);
        let (limit, verdict) = match bar(set, operation) {
            Some(bar) => (format!("{bar:.2}"), if ratio <= bar { "ok" } else { "NO" }),
            None => (String::new(), ""),
        };
        let name = format!("{operation:?}").to_lowercase();
        println!(
            "| {set:6} | {name:9} | {:7.2} | {:6.2} | {ratio:.2} ({low:.2} – {high:.2}) | {limit:4} | {verdict:2} | {:11.0} | {:10.0} |",
            median_of(&ours, |run| run.cost.cpu),
            median_of(&theirs, |run| run.cost.cpu),
            median_of(&ours, |run| run.cost.rss as f64 / (1 << 20) as f64),
            median_of(&theirs, |run| run.cost.rss as f64 / (1 << 20) as f64),
        );
    }
}

/// Prints peak memory per operation.
pub fn memory(all: &[Measurement]) {
    println!();
    println!("| set    | operation | MiB peak | s CPU  |");
    println!("| ------ | --------- | -------: | -----: |");
    for run in all {
        let name = format!("{:?}", run.operation).to_lowercase();
        println!("| {:6} | {name:9} | {:8} | {:6.2} |", run.set, run.cost.rss >> 20, run.cost.cpu);
    }
}

/// Sets and operations in the order of their first run.
fn keys(all: &[Measurement]) -> Vec<(&'static str, Operation)> {
    let mut keys = Vec::new();
    for run in all {
        if !keys.contains(&(run.set, run.operation)) {
            keys.push((run.set, run.operation));
        }
    }
    keys
}

/// The runs of one kind, in the order of rounds.
fn pick<'a>(all: &'a [Measurement], set: &str, operation: Operation, peer: Peer) -> Vec<&'a Measurement> {
    all.iter().filter(|run| run.set == set && run.operation == operation && run.peer == peer).collect()
}

/// Smallest, median and largest; the median of an even number is the mean of the middle two.
fn median(mut values: Vec<f64>) -> (f64, f64, f64) {
    values.sort_by(f64::total_cmp);
    let (Some(low), Some(high)) = (values.first(), values.last()) else {
        return (f64::NAN, f64::NAN, f64::NAN);
    };
    let middle = values.len() / 2;
    let median =
        if values.len() % 2 == 1 { values[middle] } else { (values[middle - 1] + values[middle]) / 2.0 };
    (*low, median, *high)
}

#[cfg(test)]
mod tests {
    use super::median;

    #[test]
    fn the_median_is_the_middle_whatever_the_order() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), (1.0, 2.0, 3.0));
        assert_eq!(median(vec![4.0, 1.0, 3.0, 2.0]), (1.0, 2.5, 4.0));
        assert!(median(Vec::new()).1.is_nan());
    }
}
