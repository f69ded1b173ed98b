//! When a worker that ended is started again. Pure.

/// A worker that lived this long counts as new.
const LIFE_GOOD_MS: u64 = 2_000;
/// So many quick ends in a row, and it is tried seldom.
const QUICK_ENDS_MAX: u32 = 5;
const PAUSE_FIRST_MS: u64 = 10;
const PAUSE_HOPELESS_MS: u64 = 10_000;

/// The quick ends so far.
#[derive(Default)]
pub(crate) struct Restarts {
    quick_ends: u32,
}

/// What follows an end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Start again after so many milliseconds.
    After(u64),
    /// It ends as soon as it starts. Say so, and try again after so many milliseconds.
    GivingUpFor(u64),
}

impl Restarts {
    pub(crate) fn ended(&mut self, lived_ms: u64) -> Next {
        if lived_ms >= LIFE_GOOD_MS {
            self.quick_ends = 0;
            return Next::After(0);
        }
        self.quick_ends = self.quick_ends.saturating_add(1);
        match self.quick_ends {
            1 => Next::After(0),
            few @ 2..QUICK_ENDS_MAX => Next::After(PAUSE_FIRST_MS << (few - 2)),
            _ => Next::GivingUpFor(PAUSE_HOPELESS_MS),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quick_ends_make_it_wait_and_a_good_life_forgives() {
        let mut restarts = Restarts::default();
        let quick: Vec<Next> = (0..6).map(|_| restarts.ended(5)).collect();
        assert_eq!(
            quick,
            [
                Next::After(0),
                Next::After(10),
                Next::After(20),
                Next::After(40),
                Next::GivingUpFor(10_000),
                Next::GivingUpFor(10_000)
            ]
        );
        assert_eq!(restarts.ended(2_000), Next::After(0));
        assert_eq!(restarts.ended(1_999), Next::After(0));
        assert_eq!(restarts.ended(1_999), Next::After(10));
    }
}
