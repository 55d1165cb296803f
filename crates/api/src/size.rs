//! Amounts in the words that statuses use: sizes, shares, speeds and Go durations.
//!
//! Sizes that are kept have binary units and three decimals and are read again; progress has decimal units, for people
//! only. Durations are those of Go (<https://pkg.go.dev/time#Duration.String>).

use std::time::Duration;

const BINARY: [(&str, u64); 4] = [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
const DECIMAL: [(&str, u64); 4] =
    [("TB", 1_000_000_000_000), ("GB", 1_000_000_000), ("MB", 1_000_000), ("KB", 1_000)];

/// `2.262 KiB`, `512 B`: how sizes are kept in a status.
pub fn size(bytes: u64) -> String {
    match BINARY.iter().find(|(_, unit)| bytes >= *unit) {
        Some((name, unit)) => format!("{:.3} {name}", bytes as f64 / *unit as f64),
        None => format!("{bytes} B"),
    }
}

/// Bytes of a size as [`size`] writes it; `None` if it is none. What was rounded stays rounded.
pub fn parse_size(text: &str) -> Option<u64> {
    let (number, name) = text.split_once(' ')?;
    if name == "B" {
        return number.parse().ok();
    }
    let (_, unit) = BINARY.iter().find(|(unit, _)| *unit == name)?;
    let number: f64 = number.parse().ok()?;
    let bytes = number * *unit as f64;
    (0.0..=u64::MAX as f64).contains(&bytes).then_some(bytes.round() as u64)
}

/// `3.073GB`, `512B`: how much of a run is done.
pub fn amount(bytes: u64) -> String {
    match DECIMAL.iter().find(|(_, unit)| bytes >= *unit) {
        Some((name, unit)) => format!("{:.3}{name}", bytes as f64 / *unit as f64),
        None => format!("{bytes}B"),
    }
}

/// `32MB/s`: bytes over the time that they took; `0B/s` before there was any.
pub fn speed(bytes: u64, elapsed: Duration) -> String {
    let seconds = elapsed.as_secs_f64();
    let rate = if seconds > 0.0 { (bytes as f64 / seconds) as u64 } else { 0 };
    match DECIMAL.iter().find(|(_, unit)| rate >= *unit) {
        Some((name, unit)) => format!("{:.0}{name}/s", rate as f64 / *unit as f64),
        None => format!("{rate}B/s"),
    }
}

/// `93.94%`: a share of a whole; of nothing, all is done.
pub fn percent(done: u64, total: u64) -> String {
    let share = if total == 0 { 1.0 } else { done as f64 / total as f64 };
    format!("{:.2}%", share * 100.0)
}

/// `1h15m0s`, `18.990025538s`, `1.5ms`: a duration as Go prints it.
pub fn go_duration(duration: Duration) -> String {
    let nanos = duration.subsec_nanos();
    let seconds = duration.as_secs();
    if seconds == 0 {
        return match nanos {
            0 => "0s".into(),
            1..1_000 => format!("{nanos}ns"),
            1_000..1_000_000 => format!("{}µs", decimal((nanos / 1_000).into(), nanos % 1_000, 3)),
            _ => format!("{}ms", decimal((nanos / 1_000_000).into(), nanos % 1_000_000, 6)),
        };
    }
    let (hours, minutes) = (seconds / 3_600, seconds / 60 % 60);
    let rest = decimal(seconds % 60, nanos, 9);
    match (hours, minutes) {
        (0, 0) => format!("{rest}s"),
        (0, _) => format!("{minutes}m{rest}s"),
        _ => format!("{hours}h{minutes}m{rest}s"),
    }
}

/// `49s`: the same in whole seconds, a half rounded up.
pub fn go_seconds(duration: Duration) -> String {
    let up = u64::from(duration.subsec_nanos() >= 500_000_000);
    go_duration(Duration::from_secs(duration.as_secs().saturating_add(up)))
}

/// A number with so many decimals, without the zeroes at the end.
fn decimal(whole: u64, fraction: u32, digits: usize) -> String {
    let text = format!("{whole}.{fraction:0digits$}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_those_that_users_know() {
        for (bytes, text) in [
            (0, "0 B"),
            (1_023, "1023 B"),
            (1_024, "1.000 KiB"),
            (2_316, "2.262 KiB"),
            (15_297, "14.938 KiB"),
            (1 << 20, "1.000 MiB"),
            (3 << 29, "1.500 GiB"),
            (5 << 40, "5.000 TiB"),
        ] {
            assert_eq!(size(bytes), text);
            let read = parse_size(text).expect("it is a size");
            assert!(read.abs_diff(bytes) <= bytes / 2_000, "{text} is read as {read}");
        }
        assert_eq!(parse_size("14.938 KiB"), Some(15_297));
        for text in ["", "12", "12KiB", "x KiB", "-1 KiB", "1.5 B", "1 PiB", "1  KiB", "inf TiB", "1e30 TiB"]
        {
            assert_eq!(parse_size(text), None, "{text:?}");
        }
    }

    #[test]
    fn progress_is_in_decimal_units() {
        assert_eq!(amount(3_073_000_000), "3.073GB");
        assert_eq!(amount(999), "999B");
        assert_eq!(speed(320_000_000, Duration::from_secs(10)), "32MB/s");
        assert_eq!(speed(100, Duration::ZERO), "0B/s");
        assert_eq!(percent(9_394, 10_000), "93.94%");
        assert_eq!(percent(0, 0), "100.00%");
    }

    #[test]
    fn durations_are_those_of_go() {
        for (nanos, text) in [
            (0, "0s"),
            (1, "1ns"),
            (1_100, "1.1µs"),
            (2_200_000, "2.2ms"),
            (18_990_025_538, "18.990025538s"),
            (60_000_000_000, "1m0s"),
            (4_500_000_000_000, "1h15m0s"),
            (3_600_500_000_000, "1h0m0.5s"),
        ] {
            let duration = Duration::from_nanos(nanos);
            assert_eq!(go_duration(duration), text);
            let read: kube::core::Duration = text.parse().expect("a duration");
            assert!(Duration::from(read).abs_diff(duration) < Duration::from_nanos(2), "{text}");
        }
    }

    #[test]
    fn sessions_have_whole_seconds() {
        assert_eq!(go_seconds(Duration::from_millis(48_500)), "49s");
        assert_eq!(go_seconds(Duration::from_millis(48_499)), "48s");
        assert_eq!(go_seconds(Duration::from_millis(200)), "0s");
        assert_eq!(go_seconds(Duration::from_secs(75)), "1m15s");
    }
}
