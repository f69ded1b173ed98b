//! What is drawn by lot: each test says its seed, with which the same is drawn again.

use std::fmt;
use std::time::Duration;

/// Numbers that look random.
pub(crate) struct Lot {
    seed: u64,
    state: u64,
}

impl Lot {
    pub(crate) fn new() -> Lot {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
        let seed = u64::from(std::process::id()) << 20 | now.tv_nsec.unsigned_abs() & 0xf_ffff;
        println!("seed {seed}");
        Lot::of(seed)
    }

    pub(crate) fn of(seed: u64) -> Lot {
        Lot { seed, state: seed }
    }

    /// The next number (Knuth, MMIX).
    fn draw(&mut self) -> u32 {
        let next = self.state.wrapping_mul(6_364_136_223_846_793_005);
        self.state = next.wrapping_add(1_442_695_040_888_963_407);
        (self.state >> 32) as u32
    }

    /// A place in a list of `count`.
    pub(crate) fn index(&mut self, count: usize) -> usize {
        self.draw() as usize % count
    }

    pub(crate) fn within(&mut self, span: Duration) -> Duration {
        let span_us = u32::try_from(span.as_micros()).expect("a short time");
        Duration::from_micros(u64::from(self.draw() % span_us))
    }

    /// For a lot of its own.
    pub(crate) fn another_seed(&mut self) -> u64 {
        self.draw().into()
    }
}

/// `seed 7`, for the message of a check that fails.
impl fmt::Display for Lot {
    fn fmt(&self, text: &mut fmt::Formatter) -> fmt::Result {
        write!(text, "seed {}", self.seed)
    }
}

/// How many rounds a test of what is drawn by lot has: more of them in `make soak`.
pub(crate) fn rounds() -> u32 {
    if std::env::var_os("HPVM_SOAK").is_some() { 50 } else { 5 }
}

/// Where a moment met what it was to interrupt.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Met {
    BeforeItsWork,
    AtWork,
    AfterItsEnd,
}

/// Moments at which to interrupt something: all [`rounds`] of them, and more until one met it at work. How long it takes
/// depends on the machine, so the span from which they are drawn follows it.
pub(crate) struct Moments {
    lot: Lot,
    span: Duration,
    tried: u32,
    has_met: bool,
}

impl Moments {
    pub(crate) fn within(span: Duration) -> Moments {
        Moments { lot: Lot::new(), span, tried: 0, has_met: false }
    }

    pub(crate) fn next(&mut self) -> Option<Duration> {
        if self.has_met && self.tried >= rounds() {
            return None;
        }
        assert!(self.tried < 20 * rounds(), "{self}: none met it at work");
        self.tried += 1;
        Some(self.lot.within(self.span))
    }

    pub(crate) fn was(&mut self, met: Met) {
        match met {
            Met::BeforeItsWork => self.span = self.span * 5 / 4,
            Met::AtWork => self.has_met = true,
            Met::AfterItsEnd => self.span = self.span * 3 / 4,
        }
    }

    /// Which round this is, from 1.
    pub(crate) fn round(&self) -> u32 {
        self.tried
    }
}

/// `seed 7, round 3`.
impl fmt::Display for Moments {
    fn fmt(&self, text: &mut fmt::Formatter) -> fmt::Result {
        write!(text, "{}, round {}", self.lot, self.tried)
    }
}
