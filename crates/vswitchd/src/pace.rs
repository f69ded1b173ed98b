//! When hpvmnetd looks at its ports for what nobody tells it: traffic makes no events, and guests make as many as they like. A
//! second lies between two looks, and up to four while they find nothing, so that a switch whose ports are idle costs nothing
//! that can be measured.

use std::time::{Duration, Instant};

const APART: Duration = Duration::from_secs(1);
const APART_MAX: Duration = Duration::from_secs(4);

/// What a look found since the one before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    Nothing,
    News,
}

#[derive(Debug)]
pub(crate) struct Pace {
    looked: Instant,
    apart: Duration,
}

impl Pace {
    pub(crate) fn from(now: Instant) -> Pace {
        Pace { looked: now, apart: APART }
    }

    /// When to look next.
    pub(crate) fn due(&self) -> Instant {
        self.looked + self.apart
    }

    pub(crate) fn looked(&mut self, now: Instant, found: Found) {
        let apart = match found {
            Found::Nothing => APART_MAX.min(self.apart * 2),
            Found::News => APART,
        };
        *self = Pace { looked: now, apart };
    }

    /// Something was told, which may have changed more than it says.
    pub(crate) fn hurry(&mut self) {
        self.apart = APART;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The seconds from one look to the next, of looks that found this.
    fn seconds(pace: &mut Pace, found: &[Found]) -> Vec<u64> {
        let step = |found: &Found| {
            let (due, looked) = (pace.due(), pace.looked);
            pace.looked(due, *found);
            (due - looked).as_secs()
        };
        found.iter().map(step).collect()
    }

    #[test]
    fn whoever_finds_nothing_looks_ever_less_and_each_second_when_there_is_something() {
        let mut pace = Pace::from(Instant::now());
        assert_eq!(seconds(&mut pace, &[Found::Nothing; 5]), [1, 2, 4, 4, 4]);
        assert_eq!(seconds(&mut pace, &[Found::News; 3]), [4, 1, 1]);
    }

    #[test]
    fn what_is_told_is_looked_at_a_second_after_the_last_look() {
        let mut pace = Pace::from(Instant::now());
        seconds(&mut pace, &[Found::Nothing; 3]);
        pace.hurry();
        assert_eq!(pace.due() - pace.looked, APART);
        assert_eq!(seconds(&mut pace, &[Found::Nothing; 2]), [1, 2], "and from there on");
    }
}
