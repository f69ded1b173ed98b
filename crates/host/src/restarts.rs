//! When a process that ended against its will is started again. Called by the outer hpvmnat and hpvmreserve, which each keep one;
//! hpvmkeeper, which depends on nothing, has the same rule by itself (`crates/keeper/src/restarts.rs`).

use std::time::Duration;

/// One that lived so long counts as new.
pub const SETTLED: Duration = Duration::from_secs(2);

/// How one ends that was started wrongly: as often as it is tried.
pub const STARTED_WRONGLY: u8 = 2;

/// How long is waited before each start, after so many quick ends in a row; then always the last.
const PAUSES_MS: [u64; 5] = [0, 10, 20, 40, 10_000];

/// How many ended quickly in a row.
#[derive(Debug, Default)]
pub struct QuickEnds(usize);

impl QuickEnds {
    /// How long to wait before the next start, after one that lived so long.
    pub fn pause_after(&mut self, life: Duration) -> Duration {
        if life >= SETTLED {
            self.0 = 0;
            return Duration::ZERO;
        }
        let pause_ms = PAUSES_MS[self.0.min(PAUSES_MS.len() - 1)];
        self.0 += 1;
        Duration::from_millis(pause_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quick_ends_are_answered_more_and_more_slowly() {
        let mut ends = QuickEnds::default();
        let mut pauses = |life| [(); 6].map(|()| ends.pause_after(life).as_millis());
        assert_eq!(pauses(Duration::ZERO), [0, 10, 20, 40, 10_000, 10_000]);
        assert_eq!(pauses(SETTLED), [0; 6]);
        assert_eq!(pauses(Duration::ZERO)[..2], [0, 10], "a good life forgives");
    }
}
