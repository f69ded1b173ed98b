//! The keys by which a session that watches takes the keyboard: Ctrl-E c f. Called by `super::console` while somebody else
//! holds it; who holds it himself sends these keys to the guest like all others.

const KEYS: [u8; 3] = [0x05, b'c', b'f'];

/// How much of the sequence was typed.
#[derive(Debug, Default)]
pub(super) struct TakeOver {
    typed: usize,
}

/// What the keys of somebody who watches mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Keys {
    Take,
    /// The sequence may still become complete.
    Begun,
    /// Keys meant for the guest, which it does not get.
    Other,
}

impl TakeOver {
    pub(super) fn typed(&mut self, bytes: &[u8]) -> Keys {
        let mut keys = Keys::Begun;
        for byte in bytes {
            if byte.to_ascii_lowercase() == KEYS[self.typed] {
                self.typed += 1;
            } else {
                keys = Keys::Other;
                self.typed = usize::from(*byte == KEYS[0]);
            }
            if self.typed == KEYS.len() {
                self.typed = 0;
                return Keys::Take;
            }
        }
        keys
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sequence_takes_the_keyboard_however_it_comes() {
        assert_eq!(TakeOver::default().typed(b"\x05cf"), Keys::Take);
        assert_eq!(TakeOver::default().typed(b"\x05\x05CF"), Keys::Take);
        let mut keys = TakeOver::default();
        assert_eq!(keys.typed(b"ls\x05"), Keys::Other);
        assert_eq!(keys.typed(b"c"), Keys::Begun);
        assert_eq!(keys.typed(b"f"), Keys::Take);
        assert_eq!(keys.typed(b"f"), Keys::Other);
        assert_eq!(TakeOver::default().typed(b"\x05xcf"), Keys::Other);
    }
}
