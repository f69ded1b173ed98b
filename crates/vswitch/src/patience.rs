//! How long senders are held back for a receiver that has no room. Pure; the loop brings the time.
//!
//! A receiver that is only busy makes room within a time that a sender's ring bridges, and no frame is lost. So it is waited
//! for, out of a store of patience that fills slowly: what a receiver that takes nothing costs those who send to it is a
//! bounded share of their time, whatever it does. Where none is left, frames are lost.

/// As long as it may take a guest to have a processor again that another thread had.
const LEFT_NS_MAX: i64 = 8_000_000;
/// So much time passes for one of patience.
const FILL_SHARE: i64 = 8;

/// What is left of the patience with a receiver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Patience {
    /// Less than nothing where the end was noticed late: that has to be filled up too.
    left_ns: i64,
    /// When that was so.
    seen_ns: u64,
    waits: Waits,
}

/// Whether somebody waits for the receiver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Waits {
    Somebody,
    Nobody,
}

impl Patience {
    pub(crate) const WHOLE: Patience =
        Patience { left_ns: LEFT_NS_MAX, seen_ns: 0, waits: Waits::Nobody };

    /// It has no room now. Returns whether it is waited for.
    pub(crate) fn lasts(&mut self, now_ns: u64) -> bool {
        self.pass(now_ns);
        let is_left = self.left_ns > 0;
        self.waits = if is_left { Waits::Somebody } else { Waits::Nobody };
        is_left
    }

    /// It took all it was given.
    pub(crate) fn took_all(&mut self, now_ns: u64) {
        self.pass(now_ns);
        self.waits = Waits::Nobody;
    }

    #[inline]
    pub(crate) fn is_tried(&self) -> bool {
        self.waits == Waits::Somebody
    }

    fn pass(&mut self, now_ns: u64) {
        let passed_ns = i64::try_from(now_ns.saturating_sub(self.seen_ns)).unwrap_or(i64::MAX);
        self.left_ns = match self.waits {
            Waits::Somebody => self.left_ns.saturating_sub(passed_ns),
            Waits::Nobody => self.left_ns.saturating_add(passed_ns / FILL_SHARE).min(LEFT_NS_MAX),
        };
        self.seen_ns = now_ns;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MAX: u64 = LEFT_NS_MAX as u64;

    #[test]
    fn who_takes_nothing_is_waited_for_once() {
        let mut patience = Patience::WHOLE;
        assert!(patience.lasts(7));
        assert!(patience.lasts(6 + MAX));
        assert!(!patience.lasts(7 + MAX));
        assert!(!patience.lasts(7 + MAX));
        assert!(patience.lasts(7 + MAX + 800), "and a little again later");
        assert!(!patience.lasts(7 + MAX + 900));
    }

    #[test]
    fn who_takes_all_in_time_is_waited_for_again_and_again() {
        let mut patience = Patience::WHOLE;
        for round in 0..100 {
            let begin = round * 10 * MAX;
            assert!(patience.lasts(begin));
            assert!(patience.lasts(begin + MAX - 1));
            patience.took_all(begin + MAX - 1);
        }
    }

    proptest! {
        /// Whatever a receiver does and whenever it is looked at, senders wait no more than the share.
        #[test]
        fn what_a_receiver_costs_is_bounded(
            steps in prop::collection::vec((any::<bool>(), 0u64..2_000_000), 1..500),
        ) {
            let (mut patience, mut now_ns, mut waited_ns) = (Patience::WHOLE, 0, 0);
            let mut longest_ns = 0;
            for (takes, passed_ns) in steps {
                now_ns += passed_ns;
                if patience.is_tried() {
                    waited_ns += passed_ns;
                    longest_ns = longest_ns.max(passed_ns);
                }
                match takes {
                    true => patience.took_all(now_ns),
                    false => drop(patience.lasts(now_ns)),
                }
            }
            // That nothing is left may be noticed late.
            prop_assert!(waited_ns <= MAX + now_ns / FILL_SHARE as u64 + longest_ns);
        }
    }
}
