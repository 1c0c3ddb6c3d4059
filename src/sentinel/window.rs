//! When kured reboots at all: its days, times and zone, as its own flags say them. Pure.

use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan, civil};
use std::time::Duration;

/// kured's window, of one day: kured knows none that goes past midnight.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Window {
    days: Vec<civil::Weekday>,
    start: civil::Time,
    end: civil::Time,
    zone: TimeZone,
}

impl Window {
    /// What the flags `--reboot-days`, `--start-time`, `--end-time` and `--time-zone` say; what is not given is kured's default: always, in
    /// UTC.
    ///
    /// # Errors
    /// In words, which of them cannot be understood.
    pub fn parse(
        days: Option<&str>,
        start: Option<&str>,
        end: Option<&str>,
        zone: Option<&str>,
    ) -> Result<Self, String> {
        let days = match days {
            None => vec![
                civil::Weekday::Sunday,
                civil::Weekday::Monday,
                civil::Weekday::Tuesday,
                civil::Weekday::Wednesday,
                civil::Weekday::Thursday,
                civil::Weekday::Friday,
                civil::Weekday::Saturday,
            ],
            Some(list) => {
                list.trim_matches(['[', ']']).split(',').map(|day| weekday(day.trim())).collect::<Result<_, _>>()?
            }
        };
        let at = |text: Option<&str>, default: civil::Time| text.map_or(Ok(default), time);
        let zone = match zone {
            None | Some("UTC" | "") => TimeZone::UTC,
            // The image has the zones of tzdata beside the program; the host's are not mounted.
            Some(name) => TimeZone::get(name).map_err(|error| format!("--time-zone={name}: {error}"))?,
        };
        let (start, end) = (at(start, civil::time(0, 0, 0, 0))?, at(end, civil::time(23, 59, 59, 0))?);
        Ok(Self { days, start, end, zone })
    }

    /// Whether it is open at this time and for `ahead` after it; why not, in words.
    ///
    /// # Errors
    /// Why not.
    pub fn open(&self, now: Timestamp, ahead: Duration) -> Result<(), String> {
        let later = now.checked_add(ahead).map_err(|error| error.to_string())?;
        let local = |at: Timestamp| at.to_zoned(self.zone.clone());
        let today = self.on(local(now).date());
        let Some((_, end)) = today.filter(|(start, end)| *start <= now && now <= *end) else {
            return Err(format!("kured reboots {self}, and it is {}", local(now).strftime("%A %H:%M")));
        };
        // One that is open all day goes on at midnight, if the next day is one of its days.
        let whole_day = self.start == civil::time(0, 0, 0, 0) && self.end >= civil::time(23, 59, 0, 0);
        let stays = if whole_day { self.whole_days(local(now).date(), local(later).date()) } else { later <= end };
        if stays {
            Ok(())
        } else {
            Err(format!("kured reboots {self}: that ends before kured would have looked twice"))
        }
    }

    /// From when to when it is open on a day; none when it is not one of its days. kured makes both of the day's date and the time of its
    /// flags (kured, pkg/timewindow), and Go does not say which one it takes of a time that comes twice, or never, when clocks are changed:
    /// here it is open where it is so by both.
    fn on(&self, day: civil::Date) -> Option<(Timestamp, Timestamp)> {
        let at = |time: civil::Time| self.zone.to_ambiguous_zoned(day.to_datetime(time));
        let times = || Some((at(self.start).later().ok()?.timestamp(), at(self.end).earlier().ok()?.timestamp()));
        self.days.contains(&day.weekday()).then(times).flatten()
    }

    /// Whether each day from one to another is one of its days.
    fn whole_days(&self, from: civil::Date, to: civil::Date) -> bool {
        // After a week they come again.
        from.series(1.day()).take_while(|day| *day <= to).take(7).all(|day| self.days.contains(&day.weekday()))
    }
}

impl std::fmt::Display for Window {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let days: Vec<String> = self.days.iter().map(|day| format!("{day:?}")).collect();
        let zone = self.zone.iana_name().unwrap_or("UTC");
        write!(
            f,
            "on {} from {} to {} {zone}",
            days.join(", "),
            self.start.strftime("%H:%M"),
            self.end.strftime("%H:%M")
        )
    }
}

/// As kured spells days: a number from Sunday, or a name of two letters, three, or all.
fn weekday(text: &str) -> Result<civil::Weekday, String> {
    let small = text.to_lowercase();
    let names = ["sunday", "monday", "tuesday", "wednesday", "thursday", "friday", "saturday"];
    let by_number = small.parse::<usize>().ok().filter(|number| *number < names.len());
    let by_name =
        || names.iter().position(|name| small == *name || (matches!(small.len(), 2 | 3) && name.starts_with(&small)));
    let number = by_number.or_else(by_name).and_then(|number| i8::try_from(number).ok());
    number
        .and_then(|number| civil::Weekday::from_sunday_zero_offset(number).ok())
        .ok_or_else(|| format!("--reboot-days has `{text}`"))
}

/// As kured spells times: `15:04`, `15:04:05`, `03:04pm`, `15` or `03pm`.
fn time(text: &str) -> Result<civil::Time, String> {
    let small = text.trim().to_lowercase();
    let (digits, noon) = match (small.strip_suffix("pm"), small.strip_suffix("am")) {
        (Some(rest), _) => (rest, Some(12)),
        (None, Some(rest)) => (rest, Some(0)),
        (None, None) => (small.as_str(), None),
    };
    let parts: Result<Vec<i8>, _> = digits.split(':').map(str::parse).collect();
    let wrong = || format!("`{text}` is no time of day that kured knows");
    let (hour, minute, second) = match parts.map_err(|_| wrong())?.as_slice() {
        [hour] => (*hour, 0, 0),
        [hour, minute] => (*hour, *minute, 0),
        [hour, minute, second] => (*hour, *minute, *second),
        _ => return Err(wrong()),
    };
    let hour = match noon {
        None => hour,
        Some(add) if (1..=12).contains(&hour) => hour % 12 + add,
        Some(_) => return Err(wrong()),
    };
    civil::Time::new(hour, minute, second, 0).map_err(|_| wrong())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn a_window_is_read_as_kured_reads_it() {
        let rows = [
            // days, start, end, when (2026-11-27 is a Friday), ahead in minutes, open
            (None, None, None, "2026-11-27T10:00:00Z", 30, true),
            (None, None, None, "2026-11-27T23:58:00Z", 30, true),
            (Some("mon,tue,wed,thu,fri"), None, None, "2026-11-27T23:58:00Z", 30, false),
            (Some("mo,fr"), Some("2:00"), Some("5:00"), "2026-11-27T02:30:00Z", 30, true),
            (Some("mo,fr"), Some("2:00"), Some("5:00"), "2026-11-27T04:45:00Z", 30, false),
            (Some("mo,fr"), Some("2:00"), Some("5:00"), "2026-11-27T01:50:00Z", 30, false),
            (Some("mo,fr"), Some("2am"), Some("05:00am"), "2026-11-27T05:01:00Z", 1, false),
            (Some("4"), Some("2"), Some("5"), "2026-11-27T02:30:00Z", 30, false),
            (Some("5"), Some("02pm"), Some("11:30pm"), "2026-11-27T23:10:00Z", 10, true),
            (Some("[Saturday]"), None, None, "2026-11-27T10:00:00Z", 1, false),
        ];
        for (days, start, end, now, ahead, open) in rows {
            let window = Window::parse(days, start, end, None).unwrap();
            let answer = window.open(at(now), Duration::from_secs(ahead * 60));
            assert_eq!(answer.is_ok(), open, "{days:?} {start:?} {end:?} {now}: {answer:?}");
        }
    }

    /// Clocks in Berlin go from 02:00 to 03:00 on 2026-03-29 (01:00 UTC), a Sunday, and from 03:00 back to 02:00 on 2026-10-25 (01:00 UTC).
    #[test]
    fn a_window_is_of_its_zone_also_when_clocks_are_changed() {
        let rows = [
            // zone, days, start, end, when, ahead in minutes, open
            ("Europe/Berlin", None, "2:00", "5:00", "2026-01-15T01:00:00Z", 30, true),
            ("Europe/Berlin", None, "2:00", "5:00", "2026-01-15T00:59:00Z", 30, false),
            ("Europe/Berlin", None, "2:00", "5:00", "2026-07-15T00:00:00Z", 30, true),
            ("Europe/Berlin", None, "2:00", "5:00", "2026-07-15T02:40:00Z", 30, false),
            // It is Sunday there, and still Saturday in Greenwich; and the other way round.
            ("Europe/Berlin", Some("sun"), "0:00", "5:00", "2026-01-17T23:30:00Z", 30, true),
            ("America/New_York", Some("sun"), "0:00", "5:00", "2026-01-18T04:30:00Z", 30, false),
            ("America/New_York", Some("sat"), "20:00", "23:59", "2026-01-18T04:10:00Z", 30, true),
            ("Asia/Kolkata", None, "2:00", "5:00", "2026-01-15T20:30:00Z", 30, true),
            ("Asia/Kolkata", None, "2:00", "5:00", "2026-01-15T20:29:00Z", 30, false),
            // Clocks are put on in the middle of it: three hours by the clock are two.
            ("Europe/Berlin", None, "1:00", "4:00", "2026-03-29T00:00:00Z", 120, true),
            ("Europe/Berlin", None, "1:00", "4:00", "2026-03-29T00:30:00Z", 120, false),
            // It begins at a time that is not there: not before the one an hour later.
            ("Europe/Berlin", None, "2:30", "5:00", "2026-03-29T01:10:00Z", 30, false),
            ("Europe/Berlin", None, "2:30", "5:00", "2026-03-29T01:30:00Z", 30, true),
            // All of it is not there.
            ("Europe/Berlin", None, "2:10", "2:50", "2026-03-29T00:20:00Z", 1, false),
            ("Europe/Berlin", None, "2:10", "2:50", "2026-03-29T01:20:00Z", 1, false),
            // Clocks are put back in the middle of it: three hours by the clock are four.
            ("Europe/Berlin", None, "1:00", "4:00", "2026-10-24T23:00:00Z", 240, true),
            ("Europe/Berlin", None, "1:00", "4:00", "2026-10-24T23:30:00Z", 240, false),
            // It ends at a time that comes twice: at the first; and begins at the second.
            ("Europe/Berlin", None, "1:00", "2:30", "2026-10-25T00:20:00Z", 10, true),
            ("Europe/Berlin", None, "1:00", "2:30", "2026-10-25T00:20:00Z", 50, false),
            ("Europe/Berlin", None, "1:00", "2:30", "2026-10-25T01:10:00Z", 10, false),
            ("Europe/Berlin", None, "2:30", "4:00", "2026-10-25T00:40:00Z", 10, false),
            ("Europe/Berlin", None, "2:30", "4:00", "2026-10-25T01:30:00Z", 10, true),
            // Of no times it is open through the change, and over midnight.
            ("Europe/Berlin", None, "0:00", "23:59:59", "2026-10-25T00:30:00Z", 60, true),
            ("Europe/Berlin", Some("sun"), "0:00", "23:59:59", "2026-10-25T22:30:00Z", 60, false),
            ("Europe/Berlin", Some("sun,mon"), "0:00", "23:59:59", "2026-10-25T22:30:00Z", 60, true),
            // Two periods that are longer than a day reach over one that is none of its days.
            ("Europe/Berlin", Some("mon,wed"), "0:00", "23:59:59", "2026-01-19T12:00:00Z", 2 * 24 * 60, false),
            ("Europe/Berlin", Some("mon,tue,wed"), "0:00", "23:59:59", "2026-01-19T12:00:00Z", 2 * 24 * 60, true),
            // Where midnight itself is not there.
            ("Africa/Cairo", None, "0:00", "2:00", "2026-04-23T22:10:00Z", 10, true),
        ];
        for (zone, days, start, end, now, ahead, open) in rows {
            let window = Window::parse(days, Some(start), Some(end), Some(zone)).unwrap();
            let answer = window.open(at(now), Duration::from_secs(ahead * 60));
            assert_eq!(answer.is_ok(), open, "{zone} {days:?} {start} {end} {now}: {answer:?}");
        }
        let window = Window::parse(Some("sun"), Some("2:00"), Some("5:00"), Some("Europe/Berlin")).unwrap();
        assert_eq!(
            window.open(at("2026-01-17T23:30:00Z"), Duration::ZERO).unwrap_err(),
            "kured reboots on Sunday from 02:00 to 05:00 Europe/Berlin, and it is Sunday 00:30"
        );
    }

    #[test]
    fn what_cannot_be_understood_is_named() {
        for (days, start, zone, word) in [
            (Some("mon,someday"), None, None, "someday"),
            (Some("7"), None, None, "`7`"),
            (None, Some("25:00"), None, "25:00"),
            (None, Some("13pm"), None, "13pm"),
            (None, None, Some("Mars/Olympus"), "Mars/Olympus"),
        ] {
            let why = Window::parse(days, start, None, zone).unwrap_err();
            assert!(why.contains(word), "{why}");
        }
    }
}
