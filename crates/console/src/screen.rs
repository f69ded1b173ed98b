//! What the guest did to the user's terminal and has to be undone when its console is left: colours, a hidden cursor,
//! the other screen, mouse reports, bracketed paste. Called by `session::console`.

/// The private modes that outlive a console badly, and what undoes each.
const MODES: [(u16, &str); 13] = [
    (1, "\x1b[?1l"),
    (25, "\x1b[?25h"),
    (47, "\x1b[?47l"),
    (1047, "\x1b[?1047l"),
    (1049, "\x1b[?1049l"),
    (1000, "\x1b[?1000l"),
    (1002, "\x1b[?1002l"),
    (1003, "\x1b[?1003l"),
    (1004, "\x1b[?1004l"),
    (1005, "\x1b[?1005l"),
    (1006, "\x1b[?1006l"),
    (1015, "\x1b[?1015l"),
    (2004, "\x1b[?2004l"),
];
/// The cursor is the one mode that is normally on.
const CURSOR: u16 = 25;
const PARAMETERS_MAX: usize = 64;

/// Follows the output of a guest, however it is cut.
#[derive(Debug, Default)]
pub(crate) struct Screen {
    scan: Scan,
    parameters: Vec<u8>,
    /// For each of [`MODES`], whether it is away from its normal state.
    changed: [bool; MODES.len()],
}

#[derive(Debug, Default, Clone, Copy)]
enum Scan {
    #[default]
    Text,
    Escape,
    Control,
}

impl Screen {
    pub(crate) fn saw(&mut self, output: &[u8]) {
        for &byte in output {
            self.scan = match (self.scan, byte) {
                (_, 0x1b) => Scan::Escape,
                (Scan::Escape, b'[') => {
                    self.parameters.clear();
                    Scan::Control
                }
                // A full reset undoes all by itself.
                (Scan::Escape, b'c') => {
                    self.changed = Default::default();
                    Scan::Text
                }
                (Scan::Control, 0x20..=0x3f) if self.parameters.len() < PARAMETERS_MAX => {
                    self.parameters.push(byte);
                    Scan::Control
                }
                (Scan::Control, b'h' | b'l') => {
                    self.set_modes(byte == b'h');
                    Scan::Text
                }
                _ => Scan::Text,
            };
        }
    }

    /// What leads the terminal back, and forgets what the guest did.
    pub(crate) fn undo(&mut self) -> String {
        let changed = std::mem::take(&mut self.changed);
        self.scan = Scan::Text;
        let undone = MODES.iter().zip(changed).filter(|(_, changed)| *changed);
        undone.map(|((_, undo), _)| *undo).chain(["\x1b[0m"]).collect()
    }

    fn set_modes(&mut self, on: bool) {
        let Some(modes) = self.parameters.strip_prefix(b"?") else { return };
        for mode in modes.split(|byte| *byte == b';') {
            let number: Option<u16> =
                std::str::from_utf8(mode).ok().and_then(|mode| mode.parse().ok());
            if let Some(place) = MODES.iter().position(|(mode, _)| Some(*mode) == number) {
                self.changed[place] = on != (MODES[place].0 == CURSOR);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn after(output: &str) -> String {
        let mut screen = Screen::default();
        screen.saw(output.as_bytes());
        screen.undo()
    }

    #[test]
    fn only_what_the_guest_changed_is_undone() {
        assert_eq!(after("plain"), "\x1b[0m");
        assert_eq!(after("\x1b[?2004h$ "), "\x1b[?2004l\x1b[0m");
        assert_eq!(after("\x1b[?2004h$ \x1b[?2004l"), "\x1b[0m");
        assert_eq!(after("\x1b[?1049;1h\x1b[?25l"), "\x1b[?1l\x1b[?25h\x1b[?1049l\x1b[0m");
        assert_eq!(after("\x1b[?25l\x1bc"), "\x1b[0m");
        assert_eq!(after("\x1b[25l"), "\x1b[0m", "not a private mode");
    }

    proptest! {
        #[test]
        fn it_does_not_matter_how_output_is_cut(cut in 0_usize..30) {
            let output = b"\x1b[?1049h\x1b[?25l\x1b[1mtext";
            let (first, second) = output.split_at(cut.min(output.len()));
            let mut screen = Screen::default();
            screen.saw(first);
            screen.saw(second);
            prop_assert_eq!(screen.undo(), "\x1b[?25h\x1b[?1049l\x1b[0m");
        }
    }
}
