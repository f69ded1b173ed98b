//! Whether a copy that a guest's QEMU makes stands still, by what its worker shows and how far it says that the copy is. Decided
//! here without asking anybody; the clone asks, and tells whoever watches it.

use std::time::{Duration, Instant};

use hpvm_app::snapshot::{SilentStore, Snapshot};
use hpvm_host::copy::Progress;
use hpvm_host::copy::attended::WRITTEN_WITHIN;

/// What the worker shows has not answered for about a second; after one more it is told, and not that of a disk with much to do.
const LASTS: Duration = Duration::from_secs(1);
/// A worker is heard of ten times a second while QEMU answers it.
const HEARD_WITHIN: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(super) struct Standstill {
    progress: Progress,
    heard_at: Instant,
    /// Since when there is no more of it.
    moved_at: Instant,
    shown: Option<Hindrance>,
    shown_at: Instant,
    is_told: bool,
}

/// What a copy stands still for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Hindrance {
    /// The worker knows that these do not answer.
    Stores(Vec<SilentStore>),
    /// QEMU itself does not, and a store may be why.
    Engine,
    /// All answer who reads, as the stores of a frozen file system and of a pool that is full do.
    NothingWritten { seconds: u64 },
}

impl Hindrance {
    pub(super) fn shown(by: Snapshot) -> Option<Hindrance> {
        match (by.silent_stores, by.unresponsive_since) {
            (stores, _) if !stores.is_empty() => Some(Hindrance::Stores(stores)),
            (_, Some(_)) => Some(Hindrance::Engine),
            (_, None) => None,
        }
    }
}

impl Standstill {
    pub(super) fn none(now: Instant) -> Standstill {
        Standstill {
            progress: Progress { done: 0, whole: 0 },
            heard_at: now,
            moved_at: now,
            shown: None,
            shown_at: now,
            is_told: false,
        }
    }

    pub(super) fn progress(&self) -> Progress {
        self.progress
    }

    /// Why it stands still, once each time that this is known anew. `heard` is how far it is, if that was said just now; `shown`
    /// is what the worker knows.
    pub(super) fn untold(
        &mut self,
        heard: Option<Progress>,
        shown: Option<Hindrance>,
        now: Instant,
    ) -> Option<Hindrance> {
        if let Some(progress) = heard {
            if progress.done != self.progress.done {
                self.moved_at = now;
                self.is_told &= shown.is_some();
            }
            (self.progress, self.heard_at) = (progress, now);
        }
        if shown != self.shown {
            (self.shown, self.shown_at, self.is_told) = (shown, now, false);
        }
        let why = self.why(now).filter(|_| !self.is_told)?;
        self.is_told = true;
        Some(why)
    }

    fn why(&self, now: Instant) -> Option<Hindrance> {
        if self.shown.is_some() {
            let lasts = now.duration_since(self.shown_at) >= LASTS;
            return self.shown.clone().filter(|_| lasts);
        }
        // Nothing is counted while QEMU looks at a target before the copy, nor while all is copied and the guest's agent is asked.
        let is_under_way = 0 < self.progress.done && self.progress.done < self.progress.whole;
        let is_heard = now.duration_since(self.heard_at) < HEARD_WITHIN;
        let still = now.duration_since(self.moved_at.max(self.shown_at));
        let seconds = WRITTEN_WITHIN.as_secs();
        (is_under_way && is_heard && still >= WRITTEN_WITHIN)
            .then_some(Hindrance::NothingWritten { seconds })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is told when all of this is heard, a tenth of a second after each other.
    struct Play {
        standstill: Standstill,
        now: Instant,
    }

    impl Play {
        fn new() -> Play {
            let now = Instant::now();
            Play { standstill: Standstill::none(now), now }
        }

        fn told(
            &mut self,
            tenths: u32,
            done: Option<u64>,
            shown: Option<&Hindrance>,
        ) -> Vec<Hindrance> {
            let heard = done.map(|done| Progress { done, whole: 100 });
            let mut tell = || {
                self.now += Duration::from_millis(100);
                self.standstill.untold(heard, shown.cloned(), self.now)
            };
            (0..tenths).filter_map(|_| tell()).collect()
        }
    }

    const STILL: Hindrance = Hindrance::NothingWritten { seconds: 5 };

    fn silent(path: &str) -> Hindrance {
        let store = serde_json::json!({ "address": "0,1,0", "path": path, "since": "now" });
        Hindrance::Stores(vec![serde_json::from_value(store).unwrap()])
    }

    #[test]
    fn a_store_that_stays_silent_is_told_once() {
        let mut play = Play::new();
        let store = silent("/one");
        assert_eq!(play.told(9, Some(5), Some(&store)), [], "it may have much to do");
        // Whether QEMU answers or not.
        assert_eq!(play.told(9, None, Some(&store)), [silent("/one")]);
        assert_eq!(play.told(100, Some(6), Some(&store)), []);
        assert_eq!(play.told(9, Some(6), None), []);
        assert_eq!(play.told(20, None, Some(&store)), [store], "again");
        let other = silent("/other");
        assert_eq!(play.told(20, None, Some(&other)), [other]);
        assert_eq!(play.told(20, None, Some(&Hindrance::Engine)), [Hindrance::Engine]);
    }

    #[test]
    fn a_copy_that_stands_still_beside_stores_that_are_read_is_told_once() {
        let mut play = Play::new();
        assert_eq!(play.told(100, Some(0), None), [], "nothing is counted yet");
        assert_eq!(play.told(50, Some(7), None), []);
        assert_eq!(play.told(100, Some(7), None), [STILL]);
        assert_eq!(play.told(100, Some(8), None), [STILL]);
        assert_eq!(play.told(100, Some(100), None), [], "all is copied");
        let mut unheard = Play::new();
        assert_eq!(unheard.told(10, Some(7), None), []);
        assert_eq!(unheard.told(100, None, None), [], "whatever QEMU waits for, nobody says");
    }
}
