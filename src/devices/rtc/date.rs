//! The clock's registers as a date.

/// Bits of register B.
pub(super) const HOURS_24: u8 = 2;
const BINARY: u8 = 4;
/// In the hours, of a clock that counts to 12.
const AFTERNOON: u8 = 0x80;

const DAY: i64 = 86_400;
/// Seconds, minutes, hours, day of the week (1 is Sunday), day, month, year, century.
const PLACES: [usize; 8] = [0, 2, 4, 6, 7, 8, 9, super::CENTURY];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Date {
    year: i64,
    month: i64,
    day: i64,
    /// Of the day.
    second: i64,
}

impl std::fmt::Display for Date {
    /// As people sort it: `2026-11-29 13:04:05`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Date { year, month, day, second } = self;
        let (hour, minute) = (second / 3600, second / 60 % 60);
        write!(f, "{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{:02}", second % 60)
    }
}

impl Date {
    /// From seconds since 1970. (Years that begin in March, in eras of 400, have no special cases.)
    pub(crate) fn of(seconds: i64) -> Date {
        let days = seconds.div_euclid(DAY) + 719_468;
        let (era, of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
        let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
        let of_year = of_era - (365 * year + year / 4 - year / 100);
        let from_march = (5 * of_year + 2) / 153;
        let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
        Date {
            year: year + era * 400 + i64::from(month <= 2),
            month,
            day: of_year - (153 * from_march + 2) / 5 + 1,
            second: seconds.rem_euclid(DAY),
        }
    }

    /// Seconds since 1970; `None` if there is no such date.
    pub(super) fn seconds(self) -> Option<i64> {
        let Date { year, month, day, second } = self;
        if !(1..=12).contains(&month) || !(1..=31).contains(&day) || !(0..DAY).contains(&second) {
            return None;
        }
        let year = year - i64::from(month <= 2);
        let (era, of_era) = (year.div_euclid(400), year.rem_euclid(400));
        let from_march = (month + 9) % 12;
        let of_year = (153 * from_march + 2) / 5 + day - 1;
        let days = era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468;
        Some(days * DAY + second)
    }

    /// Puts it into the registers, in the form that register B asks for.
    pub(super) fn write(self, mode: u8, cmos: &mut [u8; 128]) {
        let weekday = self.seconds().map_or(0, |s| (s.div_euclid(DAY) + 4).rem_euclid(7)) + 1;
        let hour = self.second / 3600;
        let shown = if mode & HOURS_24 != 0 { hour } else { (hour + 11) % 12 + 1 };
        let (seconds, minutes) = (self.second % 60, self.second / 60 % 60);
        let (century, year) = (self.year / 100, self.year % 100);
        let values = [seconds, minutes, shown, weekday, self.day, self.month, year, century];
        for (at, value) in PLACES.into_iter().zip(values) {
            let value = value as u8;
            // The century is always in decimal digits.
            let binary = mode & BINARY != 0 && at != super::CENTURY;
            cmos[at] = if binary { value } else { ((value / 10) << 4) | (value % 10) };
        }
        if mode & HOURS_24 == 0 && hour >= 12 {
            cmos[4] |= AFTERNOON;
        }
    }

    /// What the registers say, sense or nonsense.
    pub(super) fn read(mode: u8, cmos: &[u8; 128]) -> Date {
        let value = |at: usize, byte: u8| match mode & BINARY != 0 && at != super::CENTURY {
            true => i64::from(byte),
            false => i64::from(byte >> 4) * 10 + i64::from(byte & 15),
        };
        let of = |at: usize| value(at, cmos[at]);
        let hour = match mode & HOURS_24 {
            0 => {
                value(4, cmos[4] & !AFTERNOON) % 12 + if cmos[4] & AFTERNOON != 0 { 12 } else { 0 }
            }
            _ => of(4),
        };
        Date {
            year: of(super::CENTURY) * 100 + of(9),
            month: of(8),
            day: of(7),
            second: hour * 3600 + of(2) * 60 + of(0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_go_both_ways_through_every_mode() {
        for seconds in [0, 951_782_399, 951_782_400, 1_795_392_000, 4_102_444_799, 1_709_210_096] {
            for mode in [0, HOURS_24, BINARY, HOURS_24 | BINARY] {
                let mut cmos = [0; 128];
                Date::of(seconds).write(mode, &mut cmos);
                assert_eq!(Date::read(mode, &cmos).seconds(), Some(seconds), "{mode}");
            }
        }
        let leap = Date::of(951_782_400);
        assert_eq!((leap.year, leap.month, leap.day), (2000, 2, 29));
    }

    #[test]
    fn there_is_no_thirteenth_month() {
        let mut cmos = [0; 128];
        cmos[8] = 0x13;
        cmos[7] = 1;
        assert_eq!(Date::read(HOURS_24, &cmos).seconds(), None);
    }
}
