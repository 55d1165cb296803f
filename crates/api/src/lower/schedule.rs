//! Schedules, read as a CronJob reads them: five fields or a nickname, and no zone.

use croner::Cron;
use croner::parser::{CronParser, Seconds, Year};

const NICKNAMES: [&str; 7] =
    ["@yearly", "@annually", "@monthly", "@weekly", "@daily", "@midnight", "@hourly"];
const NAMES: [&str; 19] = [
    "JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC", "SUN", "MON", "TUE",
    "WED", "THU", "FRI", "SAT",
];

/// Reads a schedule. What the controller of CronJobs does not understand (seconds, `L`, `W`, `#`, Sunday as 7, zones) is
/// refused here, or the CronJob would never run.
///
/// # Errors
/// Why it is none.
pub fn schedule(text: &str) -> Result<Cron, String> {
    let text = text.trim();
    if text.starts_with("TZ=") || text.starts_with("CRON_TZ=") {
        return Err("must not name a time zone".into());
    }
    if text.starts_with('@') {
        if !NICKNAMES.contains(&text) {
            return Err(format!(
                "{text:?} is no schedule: use five fields, or one of {}",
                NICKNAMES.join(", ")
            ));
        }
    } else {
        let fields: Vec<&str> = text.split_whitespace().collect();
        if fields.len() != 5 {
            return Err(format!(
                "must have five fields (minute, hour, day, month, weekday), and has {}",
                fields.len()
            ));
        }
        for (number, field) in fields.iter().enumerate() {
            let atoms = field.split([',', '-', '/']);
            let known = |atom: &str| {
                matches!(atom, "*" | "?")
                    || !atom.is_empty() && atom.chars().all(|c| c.is_ascii_digit())
                    || NAMES.contains(&atom.to_ascii_uppercase().as_str())
            };
            if let Some(atom) = atoms.clone().find(|atom| !known(atom)) {
                return Err(format!("{atom:?} in the field {field:?} is not understood"));
            }
            let days = field.split(',').map(|part| part.split('/').next().unwrap_or_default());
            if number == 4 && days.flat_map(|part| part.split('-')).any(|day| day == "7") {
                return Err("weekdays are 0 (Sunday) to 6".into());
            }
        }
    }
    let parser = CronParser::builder().seconds(Seconds::Disallowed).year(Year::Disallowed).build();
    parser.parse(text).map_err(|error| format!("{text:?} is no schedule: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedules_are_those_of_cron_jobs() {
        for text in [
            "*/5 * * * *",
            "0 0 1 1 *",
            "0 0 * * 0",
            "0 0 * * SUN",
            "15,45 8-18/2 * * mon-fri",
            "0 0 ? * ?",
            "@hourly",
            "@daily",
            " 0 3 * JUL 1 ",
        ] {
            assert!(schedule(text).is_ok(), "{text}: {:?}", schedule(text).err());
        }
        for text in [
            "",
            "* * * *",
            "* * * * * *",
            "60 * * * *",
            "* 24 * * *",
            "* * 0 * *",
            "* * * 13 *",
            "* * * * 7",
            "* * * * 5-7",
            "0 0 L * *",
            "0 0 15W * *",
            "0 0 * * 5#2",
            "0 0 * * 5L",
            "@reboot",
            "@every 5m",
            "TZ=UTC * * * * *",
            "CRON_TZ=UTC 0 0 * * *",
            "a * * * *",
            "*/0 * * * *",
            "5-1 * * * *",
            "1- * * * *",
        ] {
            assert!(schedule(text).is_err(), "{text}");
        }
    }
}
