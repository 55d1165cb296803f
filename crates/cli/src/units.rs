//! Sizes, shares and durations as people write and read them.

use std::time::Duration;

use cistern_engine::Unused;
use cistern_repository::ReadData;

/// Reads `100`, `100K`, `1.5G`, `2TiB` as bytes (powers of 1,024, as restic does).
///
/// # Errors
/// One line that says what was expected.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = text[digits.len()..].to_ascii_lowercase();
    let shift = match unit.trim_end_matches('b').trim_end_matches('i') {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        _ => return Err(format!("unknown unit in {text:?}: use K, M, G or T")),
    };
    let number: f64 = digits.parse().map_err(|_| format!("{text:?} is no size: use 100M or 1.5G"))?;
    let bytes = number * f64::from(1u32 << (shift % 32)) * if shift >= 32 { 4_294_967_296.0 } else { 1.0 };
    if !(0.0..=9.0e18).contains(&bytes) {
        return Err(format!("{text:?} is out of range"));
    }
    Ok(bytes as u64)
}

/// Reads a time: RFC 3339, or a date with or without a time of day, in the local zone.
///
/// # Errors
/// One line that says what was expected.
pub fn parse_time(text: &str) -> Result<jiff::Timestamp, String> {
    let text = text.trim();
    let local = || text.parse::<jiff::civil::DateTime>().ok()?.to_zoned(jiff::tz::TimeZone::system()).ok();
    let time = text.parse().ok().or_else(|| Some(local()?.timestamp()));
    time.ok_or_else(|| {
        format!("{text:?} is no time: use 2026-11-01, '2026-11-01 08:30:00' or 2026-11-01T08:30:00Z")
    })
}

/// Reads `50` or `50%` as 0.5.
///
/// # Errors
/// One line that says what was expected.
pub fn parse_percent(text: &str) -> Result<f64, String> {
    let number: f64 = text
        .trim()
        .trim_end_matches('%')
        .parse()
        .map_err(|_| format!("{text:?} is no percentage: use a number from 0 to 100"))?;
    if !(0.0..=100.0).contains(&number) {
        return Err(format!("{text:?} is not between 0 and 100"));
    }
    Ok(number / 100.0)
}

/// Reads `5%`, `500M` or `unlimited`.
///
/// # Errors
/// One line that says what was expected.
pub fn parse_unused(text: &str) -> Result<Unused, String> {
    match text.trim() {
        "unlimited" => Ok(Unused::Unlimited),
        share if share.ends_with('%') => parse_percent(share).map(Unused::Share),
        size => parse_size(size).map(Unused::Bytes),
    }
}

/// Reads `2/7`, `5%` or `50G` as a part of all packs.
///
/// # Errors
/// One line that says what was expected.
pub fn parse_subset(text: &str) -> Result<ReadData, String> {
    let text = text.trim();
    if let Some((number, of)) = text.split_once('/') {
        let both = number.parse().ok().zip(of.parse().ok());
        let both = both.filter(|(number, of): &(u32, u32)| (1..=*of).contains(number));
        let (number, of) = both.ok_or_else(|| format!("{text:?} is no part: use 1/7 to 7/7"))?;
        return Ok(ReadData::Part { number, of });
    }
    let read = match text.ends_with('%') {
        true => ReadData::Share(parse_percent(text)?),
        false => ReadData::Bytes(parse_size(text)?),
    };
    match read {
        ReadData::Share(0.0) | ReadData::Bytes(0) => Err("nothing would be read".into()),
        read => Ok(read),
    }
}

/// Reads `old=new`.
///
/// # Errors
/// One line that says what was expected.
pub fn parse_pair(text: &str) -> Result<(String, String), String> {
    text.split_once('=')
        .map(|(old, new)| (old.to_owned(), new.to_owned()))
        .ok_or_else(|| format!("{text:?} has no '=': use OLD=NEW"))
}

/// `1.5 GiB`, `512 B`.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

/// `1,234,567`.
pub fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::with_capacity(digits.len() * 4 / 3);
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(c);
    }
    out
}

/// `1,234 objects`, `1 object`.
pub fn counted(number: u64, one: &str) -> String {
    let plural = match one {
        "directory" => "directories".to_owned(),
        _ if number == 1 => one.to_owned(),
        _ => format!("{one}s"),
    };
    format!("{} {}", count(number), if number == 1 { one } else { &plural })
}

/// `0:07`, `12:34`, `1:02:03`.
pub fn clock(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let (h, m, s) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    if h > 0 { format!("{h}:{m:02}:{s:02}") } else { format!("{m}:{s:02}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_restic_reads_them() {
        for (text, bytes) in
            [("100", 100), ("1k", 1024), ("1KiB", 1024), ("1.5G", 3 << 29), ("2TB", 2 << 40), ("100 ", 100)]
        {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for text in ["", "x", "1X", "-1", "1e400", "KiB"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn numbers_are_shown_in_groups() {
        assert_eq!([0, 999, 1000, 1234567].map(count), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!(
            [0, 1023, 1024, 1 << 20, 3 << 29].map(size),
            ["0 B", "1023 B", "1.0 KiB", "1.0 MiB", "1.5 GiB"]
        );
        assert_eq!(counted(1, "object"), "1 object");
        assert_eq!(counted(2, "directory"), "2 directories");
    }

    #[test]
    fn parts_shares_and_sizes_are_told_apart() {
        assert_eq!(parse_unused("5%"), Ok(Unused::Share(0.05)));
        assert_eq!(parse_unused("0"), Ok(Unused::Bytes(0)));
        assert_eq!(parse_unused("unlimited"), Ok(Unused::Unlimited));
        assert!(parse_unused("some").is_err() && parse_unused("101%").is_err());
        assert_eq!(parse_subset("2/7"), Ok(ReadData::Part { number: 2, of: 7 }));
        assert_eq!(parse_subset("2.5%"), Ok(ReadData::Share(0.025)));
        assert_eq!(parse_subset("1G"), Ok(ReadData::Bytes(1 << 30)));
        for text in ["0/7", "8/7", "1/0", "/", "0%", "0", "x", "", "1/7/2"] {
            assert!(parse_subset(text).is_err(), "{text}");
        }
    }

    #[test]
    fn percentages_have_bounds() {
        assert_eq!(parse_percent("50%"), Ok(0.5));
        assert!(parse_percent("101").is_err());
        assert!(parse_percent("NaN").is_err());
    }
}
