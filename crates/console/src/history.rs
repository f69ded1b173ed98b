//! Recent output of one guest: a bounded ring of bytes, each with its place in the stream since the ring was made.
//!
//! The fan-out reads it for every session from that session's own place, so that its memory does not grow with their
//! number, and a session that comes late sees the boot. It knows nothing of sessions.

use std::collections::VecDeque;

/// What a guest's ring holds unless its owner says otherwise: the whole boot of a server, in little memory.
pub const HISTORY_BYTES: usize = 64 * 1024;

/// How far the start of a part is moved on in search of the beginning of a line.
const LINE_SEARCH_BYTES: usize = 4096;

#[derive(Debug)]
pub struct History {
    bytes: VecDeque<u8>,
    capacity: usize,
    /// The place behind the newest byte.
    end: u64,
}

impl History {
    #[must_use]
    pub fn new(capacity: usize) -> History {
        History { bytes: VecDeque::with_capacity(capacity), capacity, end: 0 }
    }

    /// Appends output; the oldest goes when there is no more room.
    pub fn push(&mut self, output: &[u8]) {
        self.end += output.len() as u64;
        let kept = &output[output.len().saturating_sub(self.capacity)..];
        let room = self.capacity - kept.len();
        self.bytes.drain(..self.bytes.len().saturating_sub(room));
        self.bytes.extend(kept);
    }

    /// The place of the oldest byte that is still here.
    #[must_use]
    pub fn start(&self) -> u64 {
        self.end - self.bytes.len() as u64
    }

    /// The place that the next byte will have.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.end
    }

    /// At most `bytes_max` bytes from `place` on. A place that is gone counts as the oldest.
    #[must_use]
    pub fn copy(&self, place: u64, bytes_max: usize) -> Vec<u8> {
        let first = self.index(place);
        self.bytes.iter().skip(first).take(bytes_max).copied().collect()
    }

    /// The place from which the last `bytes_max` bytes at most can be shown: the beginning of a line where one is near,
    /// else of an escape sequence, else of a character.
    #[must_use]
    pub fn recent(&self, bytes_max: usize) -> u64 {
        let place = self.end - self.bytes.len().min(bytes_max) as u64;
        if place == 0 { 0 } else { self.boundary(place) }
    }

    /// The first such place at or behind `place`.
    fn boundary(&self, place: u64) -> u64 {
        let first = self.index(place);
        let follows_newline =
            first.checked_sub(1).is_some_and(|before| self.bytes[before] == b'\n');
        if follows_newline {
            return place;
        }
        let near = || self.bytes.iter().skip(first).take(LINE_SEARCH_BYTES).copied();
        let skipped = near()
            .position(|byte| byte == b'\n')
            .map(|newline| newline + 1)
            .or_else(|| near().position(|byte| byte == b'\x1b'))
            .or_else(|| near().position(|byte| !is_utf8_continuation(byte)))
            .unwrap_or(0);
        self.start() + (first + skipped) as u64
    }

    fn index(&self, place: u64) -> usize {
        let index = place.saturating_sub(self.start());
        usize::try_from(index).map_or(self.bytes.len(), |index| index.min(self.bytes.len()))
    }
}

fn is_utf8_continuation(byte: u8) -> bool {
    byte & 0b1100_0000 == 0b1000_0000
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn shown(history: &History, bytes_max: usize) -> Vec<u8> {
        history.copy(history.recent(bytes_max), usize::MAX)
    }

    fn of(output: &[u8], capacity: usize) -> History {
        let mut history = History::new(capacity);
        history.push(output);
        history
    }

    #[test]
    fn the_beginning_of_the_boot_is_shown_whole() {
        assert_eq!(shown(&of(b"UEFI\r\nBdsDxe", 100), 100), b"UEFI\r\nBdsDxe");
    }

    #[test]
    fn a_part_begins_with_a_line() {
        let history = of(b"first\nsecond\nthird", 100);
        assert_eq!(shown(&history, 8), b"third");
        assert_eq!(shown(&history, 11), b"third");
        assert_eq!(
            shown(&history, 12),
            b"second\nthird",
            "at the beginning of a line nothing is skipped"
        );
    }

    #[test]
    fn what_was_pushed_out_is_cut_at_a_line_too() {
        assert_eq!(shown(&of(b"first\nsecond\nthird", 11), 100), b"third");
    }

    #[test]
    fn a_screen_without_lines_begins_with_an_escape_sequence() {
        assert_eq!(shown(&of(b"\x1b[01;01Habc\x1b[02;01Hdef", 16), 100), b"\x1b[02;01Hdef");
    }

    #[test]
    fn text_without_lines_begins_with_a_character() {
        assert_eq!(shown(&of("äöü".as_bytes(), 5), 100), "öü".as_bytes());
    }

    proptest! {
        #[test]
        fn holds_the_newest_bytes_and_no_more(
            capacity in 1_usize..200,
            pushes in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 0..20),
        ) {
            let mut history = History::new(capacity);
            let mut all = Vec::new();
            for push in pushes {
                history.push(&push);
                all.extend(push);
                let kept = all.len().min(capacity);
                prop_assert_eq!(history.end(), all.len() as u64);
                prop_assert_eq!(history.end() - history.start(), kept as u64);
                prop_assert_eq!(history.copy(0, usize::MAX), &all[all.len() - kept..]);
            }
        }

        #[test]
        fn a_part_is_the_tail_of_the_output_and_within_its_bound(
            output in prop::collection::vec(prop_oneof![Just(b'\n'), Just(0x1b), any::<u8>()], 0..300),
            capacity in 1_usize..300,
            bytes_max in 0_usize..300,
        ) {
            let history = of(&output, capacity);
            let part = shown(&history, bytes_max);
            prop_assert!(part.len() <= bytes_max.min(capacity));
            prop_assert!(output.ends_with(&part));
        }
    }
}
