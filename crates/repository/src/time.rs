//! Points in time as restic's JSON has them: RFC 3339 with nanoseconds and the writer's own offset from UTC, all
//! of which a node must keep to be written again byte for byte.

use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A point in time, to the nanosecond, and the offset from UTC in which it is written.
///
/// Two of them are equal if they are written equally; compare [`instant`](Self::instant)s otherwise.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct Time {
    /// Seconds since 1970-01-01 00:00 UTC.
    pub seconds: i64,
    /// Nanoseconds after that second, below 10⁹.
    pub nanoseconds: u32,
    /// Minutes by which the writer's clock was ahead of UTC; we write 0.
    pub offset: i16,
}

/// The text is no time of RFC 3339.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a time is written as RFC 3339 says")]
pub struct ParseTimeError;

const DAY: i64 = 86_400;

impl Time {
    /// Go's zero time, 0001-01-01 00:00 UTC, which stands for "none".
    pub const ZERO: Time = Time { seconds: -62_135_596_800, nanoseconds: 0, offset: 0 };

    /// A time in UTC. Nanoseconds beyond a second are cut off.
    pub const fn new(seconds: i64, nanoseconds: u32) -> Self {
        let nanoseconds = if nanoseconds > 999_999_999 { 999_999_999 } else { nanoseconds };
        Time { seconds, nanoseconds, offset: 0 }
    }

    /// Seconds and nanoseconds, whatever the offset: what is compared to tell whether a file has changed.
    pub const fn instant(&self) -> (i64, u32) {
        (self.seconds, self.nanoseconds)
    }

    /// The nearest timestamp; jiff knows the years −9999 to 9999.
    pub fn timestamp(&self) -> Timestamp {
        let limit = if self.seconds < 0 { Timestamp::MIN } else { Timestamp::MAX };
        Timestamp::new(self.seconds, self.nanoseconds as i32).unwrap_or(limit)
    }

    /// Appends the time as Go writes it: fraction without trailing zeros, `Z` for UTC, the year held within
    /// 0 to 9999 as restic holds it.
    pub fn write(&self, out: &mut Vec<u8>) {
        let local = self.seconds.saturating_add(i64::from(self.offset) * 60);
        let (mut year, mut month, mut day) = civil(local.div_euclid(DAY));
        if !(0..=9999).contains(&year) {
            year = year.clamp(0, 9999);
            if (month, day) == (2, 29) && year == 9999 {
                (month, day) = (3, 1);
            }
        }
        let second = local.rem_euclid(DAY) as u32;
        let two = |out: &mut Vec<u8>, value: u32| {
            out.extend_from_slice(&[b'0' + (value / 10) as u8, b'0' + (value % 10) as u8]);
        };
        two(out, year as u32 / 100);
        two(out, year as u32 % 100);
        out.push(b'-');
        two(out, month);
        out.push(b'-');
        two(out, day);
        out.push(b'T');
        two(out, second / 3600);
        out.push(b':');
        two(out, second / 60 % 60);
        out.push(b':');
        two(out, second % 60);
        if self.nanoseconds > 0 {
            let mut digits = [b'0'; 10];
            digits[0] = b'.';
            let mut rest = self.nanoseconds;
            for digit in digits[1..].iter_mut().rev() {
                *digit = b'0' + (rest % 10) as u8;
                rest /= 10;
            }
            let end = digits.iter().rposition(|digit| *digit != b'0').unwrap_or(0);
            out.extend_from_slice(&digits[..=end]);
        }
        match self.offset {
            0 => out.push(b'Z'),
            offset => {
                out.push(if offset < 0 { b'-' } else { b'+' });
                let minutes = u32::from(offset.unsigned_abs());
                two(out, minutes / 60);
                out.push(b':');
                two(out, minutes % 60);
            }
        }
    }

    /// Reads a time; digits of the fraction beyond the ninth are dropped.
    pub fn parse(text: &[u8]) -> Result<Self, ParseTimeError> {
        parse(text).ok_or(ParseTimeError)
    }
}

fn parse(text: &[u8]) -> Option<Time> {
    let (fixed, mut rest) = text.split_first_chunk::<19>()?;
    let digit = |at: usize| match fixed[at] {
        digit @ b'0'..=b'9' => Some(i64::from(digit - b'0')),
        _ => None,
    };
    let two = |at: usize| Some(digit(at)? * 10 + digit(at + 1)?);
    if [fixed[4], fixed[7], fixed[10], fixed[13], fixed[16]] != *b"--T::" {
        return None;
    }
    let (year, month, day) = (two(0)? * 100 + two(2)?, two(5)?, two(8)?);
    let (hour, minute, second) = (two(11)?, two(14)?, two(17)?);
    if !(1..=12).contains(&month) || !(1..=days_in(year, month)).contains(&day) {
        return None;
    }
    if hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    let mut nanoseconds = 0;
    if let Some(fraction) = rest.strip_prefix(b".") {
        let end = fraction.iter().position(|b| !b.is_ascii_digit()).unwrap_or(fraction.len());
        if end == 0 {
            return None;
        }
        let mut unit = 100_000_000;
        for digit in &fraction[..end] {
            nanoseconds += u32::from(digit - b'0') * unit;
            unit /= 10;
        }
        rest = &fraction[end..];
    }
    let offset = match rest {
        b"Z" => 0,
        [sign @ (b'+' | b'-'), h1, h2, b':', m1, m2] => {
            let number = |a: &u8, b: &u8| {
                (a.is_ascii_digit() && b.is_ascii_digit())
                    .then(|| i16::from(a - b'0') * 10 + i16::from(b - b'0'))
            };
            let (hours, minutes) = (number(h1, h2)?, number(m1, m2)?);
            if hours > 23 || minutes > 59 {
                return None;
            }
            let offset = hours * 60 + minutes;
            if *sign == b'-' { -offset } else { offset }
        }
        _ => return None,
    };
    let seconds = days(year, month, day) * DAY + hour * 3600 + minute * 60 + second - i64::from(offset) * 60;
    Some(Time { seconds, nanoseconds, offset })
}

/// Days since 1970-01-01 of a day of the proleptic Gregorian calendar. Years are counted from March, so that the
/// leap day comes last, in eras of 400 years = 146,097 days.
fn days(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let of_era = year.rem_euclid(400);
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

/// The inverse of [`days`]: year, month and day.
fn civil(days: i64) -> (i64, u32, u32) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let of_era = days.rem_euclid(146_097);
    let year = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let (month, next) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    (era * 400 + year + next, month as u32, day as u32)
}

fn days_in(year: i64, month: i64) -> i64 {
    match month {
        4 | 6 | 9 | 11 => 30,
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        _ => 31,
    }
}

impl Default for Time {
    fn default() -> Self {
        Time::ZERO
    }
}

impl From<Timestamp> for Time {
    fn from(timestamp: Timestamp) -> Self {
        let (mut seconds, mut nanoseconds) = (timestamp.as_second(), timestamp.subsec_nanosecond());
        if nanoseconds < 0 {
            (seconds, nanoseconds) = (seconds - 1, nanoseconds + 1_000_000_000);
        }
        Time::new(seconds, nanoseconds as u32)
    }
}

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = Vec::with_capacity(35);
        self.write(&mut text);
        f.write_str(std::str::from_utf8(&text).expect("a time is ASCII"))
    }
}

impl FromStr for Time {
    type Err = ParseTimeError;

    fn from_str(text: &str) -> Result<Self, ParseTimeError> {
        Time::parse(text.as_bytes())
    }
}

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn reads_and_writes_as_go_does() {
        for text in [
            "0001-01-01T00:00:00Z",
            "0000-02-29T23:59:59.000000001Z",
            "1969-12-31T23:59:59.5Z",
            "2024-02-29T12:30:01.123456789+05:30",
            "2026-11-22T17:43:31-11:00",
            "9999-12-31T23:59:59.999999999-23:59",
        ] {
            assert_eq!(text.parse::<Time>().unwrap().to_string(), text);
        }
        assert_eq!("0001-01-01T00:00:00Z".parse(), Ok(Time::ZERO));
        assert_eq!("2001-09-09T01:46:40Z".parse(), Ok(Time::new(1_000_000_000, 0)));
        // Written by rustic; restic would write Z.
        assert_eq!(
            "1970-01-01T00:00:00.000+00:00".parse::<Time>().unwrap().to_string(),
            "1970-01-01T00:00:00Z"
        );
        assert_eq!("1970-01-01T00:00:00.0000000019Z".parse(), Ok(Time::new(0, 1)));
    }

    #[test]
    fn what_is_no_time_is_refused() {
        for text in [
            "",
            "2024-01-01",
            "2024-01-01T00:00:00",
            "2024-13-01T00:00:00Z",
            "2023-02-29T00:00:00Z",
            "1900-02-29T00:00:00Z",
            "2024-01-01T24:00:00Z",
            "2024-01-01T00:60:00Z",
            "2024-01-01T00:00:60Z",
            "2024-01-01T00:00:00.Z",
            "2024-01-01T00:00:00+24:00",
            "2024-01-01T00:00:00+0000",
            "2024-01-01t00:00:00Z",
            "2024-01-01T00:00:00ZZ",
            "20é4-01-01T00:00:00Z",
        ] {
            assert_eq!(text.parse::<Time>(), Err(ParseTimeError), "{text}");
        }
    }

    #[test]
    fn years_beyond_four_digits_are_held_back() {
        let write = |seconds| Time::new(seconds, 5).to_string();
        assert_eq!(write(253_402_300_800), "9999-01-01T00:00:00.000000005Z");
        assert_eq!(write(253_402_300_800 + 59 * DAY), "9999-03-01T00:00:00.000000005Z");
        assert_eq!(write(-62_167_219_201), "0000-12-31T23:59:59.000000005Z");
        assert!(write(i64::MAX).starts_with("9999-") && write(i64::MIN).starts_with("0000-"));
    }

    proptest! {
        #[test]
        fn agrees_with_jiff(seconds in -62_167_219_200i64..=253_402_207_200, nanoseconds in 0u32..1_000_000_000, offset in -1439i16..1440) {
            let timestamp = Timestamp::new(seconds, nanoseconds as i32).unwrap();
            prop_assert_eq!(Time::from(timestamp), Time::new(seconds, nanoseconds));
            prop_assert_eq!(Time::from(timestamp).to_string(), timestamp.to_string());
            prop_assert_eq!(Time::new(seconds, nanoseconds).timestamp(), timestamp);
            let time = Time { seconds, nanoseconds, offset };
            let text = time.to_string();
            if !text.starts_with("0000") && !text.starts_with("9999") {
                prop_assert_eq!(text.parse(), Ok(time));
                prop_assert_eq!(text.parse::<Timestamp>().unwrap(), timestamp);
            }
        }
    }
}
