//! Lines of the guest's log, put together without allocating and written in one piece each.

use crate::sys::{Fd, wall_clock_seconds, write_some};

const LINE_BYTES_MAX: usize = 512;

/// A line in the making; what does not fit is left out.
pub(crate) struct Line {
    bytes: [u8; LINE_BYTES_MAX],
    length: usize,
}

impl Line {
    pub(crate) fn new() -> Line {
        Line { bytes: [0; LINE_BYTES_MAX], length: 0 }
    }

    pub(crate) fn push(&mut self, text: &str) {
        let room = &mut self.bytes[self.length..];
        let length = text.len().min(room.len());
        room[..length].copy_from_slice(&text.as_bytes()[..length]);
        self.length += length;
    }

    pub(crate) fn push_number(&mut self, number: u64) {
        self.push_padded(number, 1);
    }

    /// A number with zeros in front, at least so many digits.
    fn push_padded(&mut self, number: u64, digits_min: usize) {
        let mut digits = [b'0'; 20];
        let mut first = digits.len();
        let mut rest = number;
        while rest > 0 || digits.len() - first < digits_min {
            first -= 1;
            digits[first] += (rest % 10) as u8;
            rest /= 10;
        }
        self.push(std::str::from_utf8(&digits[first..]).unwrap_or("?"));
    }

    /// `2026-11-24T02:31:06Z`.
    fn push_time(&mut self, seconds: u64) {
        let (year, month, day) = date(seconds / 86_400);
        self.push_padded(year, 4);
        for (before, number) in [("-", month), ("-", day)] {
            self.push(before);
            self.push_padded(number, 2);
        }
        for (before, number) in
            [("T", seconds / 3_600 % 24), (":", seconds / 60 % 60), (":", seconds % 60)]
        {
            self.push(before);
            self.push_padded(number, 2);
        }
        self.push("Z");
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

/// Where the keeper says what it did.
#[derive(Clone, Copy)]
pub(crate) struct Log(pub(crate) Option<Fd>);

impl Log {
    /// Appends one line with time and our name.
    pub(crate) fn say(self, compose: impl FnOnce(&mut Line)) {
        let Some(fd) = self.0 else { return };
        let mut line = Line::new();
        line.push_time(wall_clock_seconds());
        line.push(" hpvmkeeper: ");
        compose(&mut line);
        line.length = line.length.min(LINE_BYTES_MAX - 1);
        line.push("\n");
        write_some(fd, line.bytes());
    }
}

/// Says how a process ended.
pub(crate) fn push_ending(line: &mut Line, status: u32) {
    match (status & 0x7f, status >> 8 & 0xff) {
        (0, code) => {
            line.push("ended with status ");
            line.push_number(u64::from(code));
        }
        (signal, _) => {
            line.push("was killed by signal ");
            line.push_number(u64::from(signal));
        }
    }
}

/// Year, month and day of a day counted from 1970. Years begin in March here, so that the leap day comes last.
fn date(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn time(seconds: u64) -> String {
        let mut line = Line::new();
        line.push_time(seconds);
        String::from_utf8(line.bytes().to_vec()).expect("text")
    }

    #[test]
    fn times_are_those_of_the_calendar() {
        assert_eq!(time(0), "1970-01-01T00:00:00Z");
        assert_eq!(time(951_782_399), "2000-02-28T23:59:59Z");
        assert_eq!(time(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(time(1_735_689_599), "2024-12-31T23:59:59Z");
        assert_eq!(time(4_107_542_400), "2100-03-01T00:00:00Z");
    }

    #[test]
    fn a_line_never_outgrows_its_place() {
        let mut line = Line::new();
        for _ in 0..100 {
            line.push("0123456789");
        }
        assert_eq!(line.bytes().len(), LINE_BYTES_MAX);
    }

    #[test]
    fn endings_are_told_apart() {
        let told = |status| {
            let mut line = Line::new();
            push_ending(&mut line, status);
            String::from_utf8(line.bytes().to_vec()).expect("text")
        };
        assert_eq!(told(3 << 8), "ended with status 3");
        assert_eq!(told(0), "ended with status 0");
        assert_eq!(told(9), "was killed by signal 9");
        assert_eq!(told(0x80 | 11), "was killed by signal 11");
    }
}
