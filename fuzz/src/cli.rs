//! What people write on a command line and into files. The command line is a program, not a library: its parsers are
//! compiled here once more.

#[path = "../../crates/cli/src/sections.rs"]
mod sections;
#[path = "../../crates/cli/src/units.rs"]
#[expect(dead_code, reason = "what only prints is not used here")]
mod units;

use cistern_engine::{SnapshotSelector, resolve};

/// A profile file; what is wrong with it is told without its contents.
pub fn profile(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Err(why) = sections::parse(text) {
        assert!(why.strip_prefix("line ").is_some_and(|line| line.parse::<u64>().is_ok()), "{why}");
    }
}

/// Sizes, shares, times, pairs, and names of snapshots.
pub fn arguments(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(bytes) = units::parse_size(text) {
        assert!(units::parse_size(&bytes.to_string()).is_ok());
        units::size(bytes);
        units::count(bytes);
    }
    if let Ok(share) = units::parse_percent(text) {
        assert!((0.0..=1.0).contains(&share));
    }
    if let Ok(time) = units::parse_time(text) {
        assert_eq!(units::parse_time(&time.to_string()), Ok(time));
    }
    if let Ok((old, new)) = units::parse_pair(text) {
        assert_eq!(format!("{old}={new}"), text);
    }
    let selector = SnapshotSelector { name: text.into(), ..SnapshotSelector::default() };
    assert!(resolve(&[], &selector).is_err(), "there is no snapshot");
}
