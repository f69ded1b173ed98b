//! What a client does to earlier output before it shows it: it must not act on the terminal a second time, it must join
//! what was seen before a reconnection, and it should end where the live console goes on. Called by `session::console`.

/// A last line longer than this is no prompt but a screen.
const LAST_LINE_BYTES_MAX: usize = 512;
/// Of what was seen last, so much is looked for in the history after a reconnection.
const OVERLAP_BYTES: usize = 1024;

/// Earlier output without the sequences a terminal answers. Their answers would reach the guest as if typed, long after
/// it stopped waiting for them.
pub(crate) fn without_queries(output: &[u8]) -> Vec<u8> {
    let mut kept = Vec::with_capacity(output.len());
    let mut rest = output;
    while let Some(&byte) = rest.first() {
        let skipped = query_length(rest);
        if skipped == 0 {
            kept.push(byte);
        }
        rest = &rest[skipped.max(1)..];
    }
    kept
}

/// The length of the question to the terminal at the start of `output`, 0 when there is none.
fn query_length(output: &[u8]) -> usize {
    match output {
        // ENQ, and DECID.
        [0x05, ..] => 1,
        [0x1b, b'Z', ..] => 2,
        [0x1b, b'[', sequence @ ..] => {
            let parameters =
                sequence.iter().take_while(|byte| (0x20..0x40).contains(*byte)).count();
            let asks = match sequence.get(parameters) {
                // Device attributes, in all three forms.
                Some(b'c') => true,
                // Status, the cursor's place, and their private forms.
                Some(b'n') => true,
                // Mode requests end in `$p`, terminal parameters in `x`, window reports in `t`.
                Some(b'p') => sequence[..parameters].ends_with(b"$"),
                Some(b'x' | b't') => true,
                // The terminal's name and version.
                Some(b'q') => sequence.starts_with(b">"),
                _ => false,
            };
            if asks { 2 + parameters + 1 } else { 0 }
        }
        // Status strings (DECRQSS, XTGETTCAP) and questions for colours end with a terminator.
        [0x1b, b'P', b'$' | b'+', b'q', ..] => terminated(output),
        [0x1b, b']', ..] => {
            let length = terminated(output);
            let text = &output[..length];
            let asks = text.strip_suffix(b"\x07").or_else(|| text.strip_suffix(b"\x1b\\"));
            if asks.is_some_and(|text| text.ends_with(b"?")) { length } else { 0 }
        }
        _ => 0,
    }
}

/// The length of a string sequence with its terminator, BEL or ST; 0 when it has none here.
fn terminated(output: &[u8]) -> usize {
    let bell = output.iter().position(|byte| *byte == 0x07).map(|place| place + 1);
    let string_terminator =
        output.windows(2).position(|pair| pair == b"\x1b\\").map(|place| place + 2);
    match (bell, string_terminator) {
        (Some(bell), Some(other)) => bell.min(other),
        (found, None) | (None, found) => found.unwrap_or(0),
    }
}

/// Splits earlier output before its last, unfinished line: a prompt that waits belongs to the live console.
pub(crate) fn split_last_line(output: &[u8]) -> (&[u8], &[u8]) {
    let line_start =
        output.iter().rposition(|byte| *byte == b'\n').map_or(0, |newline| newline + 1);
    if output.len() - line_start > LAST_LINE_BYTES_MAX {
        return (output, &[]);
    }
    output.split_at(line_start)
}

/// The end of the output seen so far, by which a new history is joined to it.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    tail: Vec<u8>,
}

impl Seen {
    pub(crate) fn push(&mut self, output: &[u8]) {
        self.tail.extend_from_slice(output);
        self.tail.drain(..self.tail.len().saturating_sub(OVERLAP_BYTES));
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.tail.is_empty()
    }

    /// What of a history was not seen yet; `None` when the two do not meet.
    pub(crate) fn unseen<'a>(&self, history: &'a [u8]) -> Option<&'a [u8]> {
        if self.tail.is_empty() {
            return None;
        }
        let place = history.windows(self.tail.len()).rposition(|part| part == self.tail)?;
        Some(&history[place + self.tail.len()..])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn questions_to_the_terminal_are_not_asked_again() {
        for question in [
            "\x05",
            "\x1bZ",
            "\x1b[c",
            "\x1b[0c",
            "\x1b[>c",
            "\x1b[6n",
            "\x1b[5n",
            "\x1b[?6n",
            "\x1b[18t",
            "\x1b[?2004$p",
            "\x1b[>0q",
            "\x1bP+q544e\x1b\\",
            "\x1bP$qm\x1b\\",
            "\x1b]11;?\x07",
            "\x1b]10;?\x1b\\",
        ] {
            let output = format!("before{question}after");
            assert_eq!(without_queries(output.as_bytes()), b"beforeafter", "{question:?}");
        }
    }

    #[test]
    fn everything_else_stays() {
        for text in [
            "plain\r\n",
            "\x1b[1;31mred\x1b[0m",
            "\x1b[2J\x1b[01;01H",
            "\x1b]0;title\x07",
            "\x1b[?25l",
            "\x1b[!p",
            "\x1b[",
            "\x1b",
            "\x1b]11;?",
            "\x1b[2 q",
            "grüße",
        ] {
            assert_eq!(without_queries(text.as_bytes()), text.as_bytes(), "{text:?}");
        }
    }

    #[test]
    fn a_waiting_prompt_goes_to_the_live_console() {
        assert_eq!(split_last_line(b"boot\r\nlogin: "), (&b"boot\r\n"[..], &b"login: "[..]));
        assert_eq!(split_last_line(b"boot\r\n"), (&b"boot\r\n"[..], &b""[..]));
        let screen = [b'x'; LAST_LINE_BYTES_MAX + 1];
        assert_eq!(split_last_line(&screen), (&screen[..], &b""[..]));
    }

    #[test]
    fn histories_that_do_not_meet_are_told_apart() {
        let mut seen = Seen::default();
        assert_eq!(seen.unseen(b"anything"), None);
        seen.push(b"another boot");
        assert_eq!(seen.unseen(b"this boot"), None);
    }

    proptest! {
        #[test]
        fn any_output_passes(output in prop::collection::vec(any::<u8>(), 0..300)) {
            prop_assert!(without_queries(&output).len() <= output.len());
        }

        #[test]
        fn a_new_history_goes_on_where_the_old_output_ended(
            before in prop::collection::vec(any::<u8>(), 32..3000),
            after in prop::collection::vec(any::<u8>(), 0..200),
        ) {
            let mut seen = Seen::default();
            seen.push(&before);
            let history = [&before[..], &after].concat();
            // 32 random bytes do not come twice.
            prop_assert_eq!(seen.unseen(&history), Some(&after[..]));
        }
    }
}
