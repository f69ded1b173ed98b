//! What is done at each beat, whether or not anything happens: the heartbeat, the question whether QEMU still answers, and a
//! look at what nobody tells.

use std::time::Duration;

use hpvm_app::snapshot::{Crash, Phase};
use hpvm_qmp::command::{QueryStatus, ReadRegisters};
use tokio::time::Instant;

use super::Driver;
use crate::machine::Input;
use crate::monitor::News;

/// The heartbeat, and the question whether QEMU still answers. All that is looked at regularly is looked at then, so that an
/// idle worker is woken as seldom as can be; of a guest that runs QEMU is asked about each of its request queues.
pub(super) const BEAT: Duration = Duration::from_millis(900);
/// A question unanswered at the second beat after it means that QEMU hangs.
const SILENCE: Duration = Duration::from_millis(1_700);
/// One that takes longer for an answer stood still meanwhile, or hardly ran.
const AT_ONCE: Duration = Duration::from_millis(400);
/// A QEMU that comes up may take longer for its first word.
const FIRST_WORD: Duration = Duration::from_secs(10);
/// What costs more than a beat is done every so many beats.
const BEATS_PER_CARE: u64 = 10;
/// A keeper on a host that is short of everything may need a moment to tell that QEMU has ended, and how.
const BEATS_UNTOLD_MAX: u32 = 3;
/// Who runs in the guest is looked at every beat at first, later every so many.
const OCCUPANT_BEATS_MAX: u64 = 10;

/// Where the owner stands between one beat and the next.
#[derive(Default)]
pub(super) struct Pulse {
    beats: u64,
    /// When QEMU was asked for something; cleared by the answer.
    asked_at: Option<Instant>,
    /// At this beat, how the guest's requests stand.
    is_looking: bool,
    /// The state is asked for as soon as that is answered.
    wants_status: bool,
    /// The beat at which it is asked for again, if nothing wants it before.
    status_due: u64,
    looks: Looks,
    /// For so many beats QEMU has ended and its keeper has not said so.
    beats_untold: u32,
}

impl Pulse {
    /// QEMU answered, or another one does from now on.
    pub(super) fn forget_question(&mut self) {
        self.asked_at = None;
    }

    /// Whether it is asked how the guest's requests stand.
    pub(super) fn is_looking(&self) -> bool {
        self.is_looking
    }

    /// Whether this beat is one of the few at which more is done.
    pub(super) fn is_for_care(&self) -> bool {
        self.beats.is_multiple_of(BEATS_PER_CARE)
    }

    /// Whether QEMU answered what it was asked as a QEMU does that runs.
    pub(super) fn was_answered_at_once(&self) -> bool {
        self.asked_at.is_some_and(|at| at.elapsed() < AT_ONCE)
    }

    /// The guest begins anew, so who runs in it is looked at as often as at first.
    pub(super) fn guest_was_reset(&mut self) {
        self.looks = Looks { due: self.beats + 1, ..Looks::default() };
    }
}

/// When to look who runs in the guest, in beats. Each look holds a processor for a moment, so they grow rarer: by a beat
/// whenever one falls on a multiple of the longest pause.
struct Looks {
    due: u64,
    pause: u64,
}

impl Default for Looks {
    fn default() -> Looks {
        Looks { due: 0, pause: 1 }
    }
}

impl Looks {
    /// Whether one is due; then the next one has its time.
    fn are_due_at(&mut self, beat: u64) -> bool {
        if beat < self.due {
            return false;
        }
        self.due = beat + self.pause;
        if beat.is_multiple_of(OCCUPANT_BEATS_MAX) {
            self.pause = (self.pause + 1).min(OCCUPANT_BEATS_MAX);
        }
        true
    }
}

impl Driver {
    pub(super) fn beat(&mut self) {
        self.pulse.beats += 1;
        self.take_links_down();
        match self.publisher.is_behind() {
            true => self.publish(),
            false => self.publisher.beat(),
        }
        self.watch_answers();
        self.watch_stores();
        self.watch_reservations();
        self.look_if_owed();
        self.take_left_copy_back();
        self.greet_agent();
        self.look_who_runs();
        if self.pulse.is_for_care() {
            self.engine.count_oom_kills();
            self.console.bound_log();
            if !self.wires.is_told() {
                self.show_links();
            }
        }
        match self.keeper.lives {
            true => self.watch_end(),
            false => self.keeper_died(),
        }
    }

    /// Once a beat at the most. A worker that takes over does not wait for the beat: firmware may be through soon.
    pub(super) fn look_who_runs(&mut self) {
        if self.machine.wants_occupant() && self.pulse.looks.are_due_at(self.pulse.beats) {
            self.monitor.ask(ReadRegisters {}, News::Registers);
        }
    }

    /// The keeper tells how QEMU ended, at once. One that hangs tells nothing, and must not make a dead guest look alive.
    fn watch_end(&mut self) {
        if !self.engine.has_ended() {
            return;
        }
        self.pulse.beats_untold += 1;
        if self.pulse.beats_untold == BEATS_UNTOLD_MAX {
            self.log.say("QEMU has ended, and the keeper does not tell how");
            self.engine_ended(Crash::Unseen);
        }
    }

    fn watch_answers(&mut self) {
        self.pulse.is_looking = false;
        let patience = match self.shown.phase {
            Phase::Starting => FIRST_WORD,
            _ => SILENCE,
        };
        match self.pulse.asked_at {
            Some(at) if at.elapsed() >= patience => {
                self.feed(Input::Silent);
                if self.monitor.client().is_some() && at.elapsed() >= FIRST_WORD {
                    self.pulse.asked_at = None;
                    self.ask_status();
                }
            }
            Some(_) => {}
            None => self.ask(),
        }
    }

    /// How the guest's requests stand tells that QEMU answers as well. The state of a guest that runs is told by events, and asked
    /// now and then all the same.
    fn ask(&mut self) {
        self.pulse.is_looking = self.look_at_requests();
        if !self.pulse.is_looking {
            return self.ask_status();
        }
        self.pulse.asked_at = Some(Instant::now());
        self.pulse.wants_status |= self.pulse.beats >= self.pulse.status_due;
    }

    /// One question at a time: a QEMU that hangs must not find a queue when it wakes.
    pub(super) fn ask_status(&mut self) {
        match self.pulse.asked_at {
            Some(_) => self.pulse.wants_status = true,
            None => {
                self.pulse.asked_at = Some(Instant::now());
                self.pulse.wants_status = false;
                self.pulse.status_due = self.pulse.beats + BEATS_PER_CARE;
                self.monitor.ask(QueryStatus {}, News::Status);
            }
        }
    }

    /// What QEMU was asked has its answer.
    pub(super) fn answered(&mut self) {
        self.pulse.forget_question();
        if self.pulse.wants_status {
            self.ask_status();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_begin_with_every_beat_and_stay_within_their_bound() {
        for first in 1..=OCCUPANT_BEATS_MAX {
            let mut looks = Looks::default();
            let due: Vec<u64> = (first..first + 400).filter(|b| looks.are_due_at(*b)).collect();
            let pauses: Vec<u64> = due.windows(2).map(|pair| pair[1] - pair[0]).collect();
            assert_eq!((due[0], pauses[0]), (first, 1));
            assert!(pauses.is_sorted(), "{pauses:?}");
            assert!(pauses.iter().all(|pause| *pause <= OCCUPANT_BEATS_MAX), "{pauses:?}");
        }
    }
}
