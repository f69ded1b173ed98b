//! How long the forwarding thread looks in vain before it sleeps. Pure; the loop brings the time.
//!
//! Looking on saves the microseconds a wake-up costs, but takes processor time from guests. So the thread looks on for
//! about as long as lately paid off (as KVM's halt polling does), never long where processors are few, and not at all
//! while somebody else wants its processor. It does not offer its processor by sched_yield(2): who yields has it back when
//! all others have used up their time, some milliseconds later, and a sleeper has it when a frame comes.

/// Looking longer than this never pays: a wake-up costs about as much.
const SPIN_NS_MAX: u64 = 50_000;
const SPIN_NS_MAX_FEW: u64 = 20_000;
const SPIN_NS_START: u64 = 5_000;
/// Up to so many processors, guests and switch are in each other's way.
const FEW_PROCESSORS: usize = 4;
/// Looking that takes so much longer than it should was interrupted: somebody else had the processor.
const INTERRUPTED_NS: u64 = 500_000;
/// How long somebody else's wish for the processor is remembered.
const CONTENDED_NS: u64 = 2_000_000;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pace {
    spin_ns: u64,
    spin_ns_max: u64,
    contended_until_ns: u64,
}

impl Pace {
    pub(crate) fn new(processors: usize) -> Pace {
        let few = processors <= FEW_PROCESSORS;
        let spin_ns_max = if few { SPIN_NS_MAX_FEW } else { SPIN_NS_MAX };
        Pace { spin_ns: spin_ns_max, spin_ns_max, contended_until_ns: 0 }
    }

    /// Whether looking on has paid off of late, so that it is worth a look at the clock.
    pub(crate) fn pays(&self) -> bool {
        self.spin_ns > 0
    }

    /// Whether to go on looking, when the last frame came at `last_ns`.
    pub(crate) fn looks_on(&self, last_ns: u64, now_ns: u64) -> bool {
        now_ns >= self.contended_until_ns && now_ns.saturating_sub(last_ns) < self.spin_ns
    }

    /// The thread slept so long until there was something.
    pub(crate) fn slept(&mut self, slept_ns: u64) {
        if slept_ns < self.spin_ns_max {
            self.spin_ns = (self.spin_ns * 2).clamp(SPIN_NS_START, self.spin_ns_max);
        } else {
            self.spin_ns /= 2;
        }
    }

    /// The thread looked some times in vain, which took so long.
    pub(crate) fn looked(&mut self, took_ns: u64, now_ns: u64) {
        if took_ns > INTERRUPTED_NS {
            self.contended_until_ns = now_ns + CONTENDED_NS;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looking_on_follows_what_paid_off() {
        let mut pace = Pace::new(2);
        assert!(pace.looks_on(0, SPIN_NS_MAX_FEW - 1));
        assert!(!pace.looks_on(0, SPIN_NS_MAX_FEW));
        for _ in 0..20 {
            pace.slept(1_000_000);
        }
        assert!(!pace.looks_on(0, 0), "long sleeps end it");
        assert!(!pace.pays());
        pace.slept(1_000);
        assert!(pace.pays());
        assert!(pace.looks_on(0, SPIN_NS_START - 1), "a short one begins it again");
        pace.looked(1_000_000, 10);
        assert!(!pace.looks_on(10, 10), "others come first");
        assert!(pace.looks_on(CONTENDED_NS + 10, CONTENDED_NS + 10));
    }
}
