//! The state machine of one running guest: what happens leads to a state and to actions, and nothing is done here.
//!
//! ```text
//!             running                 stop -g
//!  Starting ──────────► Running ───────────────────► Stopping
//!     │                 │  ▲   ◄──── bound over ────── │   ▲ reset: firmware again
//!     │        held by  ▼  │ goes on                   │   │ (here and in Running)
//!     │        engine  Paused                          │
//!     │                 │                              │
//!     │   guest powers off, stop -h, QEMU was told to end: how it ends is decided
//!     ├─────────────────┴──────────► Closing ◄─────────┘
//!     │                                 │
//!     │ QEMU ends (from any state)      │ QEMU ends
//!     └────────────► Ended ◄────────────┘
//! ```
//!
//! Called by the driver alone, which feeds it [`Input`]s with the time and performs the [`Action`]s that come back. A
//! reset is no stop: the guest goes on with its firmware. A hard stop wins over everything. Requests carry a [`Ticket`];
//! each ticket gets exactly one reply, now or later.

mod closing;
mod graceful;
mod pause;
mod requests;
#[cfg(test)]
mod tests;

use std::time::Duration;

use hpvm_app::protocol::{Denial, NotStopped, Reply, StopHow};
use hpvm_app::snapshot::{Crash, Ending, Phase};
use hpvm_model::Occupant;
use hpvm_qmp::{PowerButton, RunState};

use closing::Closing;
use graceful::{Graceful, Next, Obstacle};
use pause::{Hold, Pause};

/// What needs all stores waits for so long from when one falls silent: a store that only hesitates fails no command.
pub(crate) const STORE_PATIENCE: Duration = Duration::from_secs(5);

/// What counts on the guest's devices waits for so long until they are known to be what they seem, and stay so.
pub(crate) const ORDER_PATIENCE: Duration = Duration::from_secs(10);

/// Names a request whose asker waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Ticket(pub(crate) u64);

/// Something happened.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Input {
    /// QEMU says what its machine does; that it answers is news of its own.
    Status(RunState),
    /// QEMU let a query go unanswered.
    Silent,
    /// The guest switched itself off.
    PoweredOff,
    Reset,
    /// QEMU says that it ends by somebody's signal.
    ToldToEnd(Crash),
    /// QEMU says that it ends since one of its monitors was told so.
    ToldToQuit,
    /// A disk could not be written; the engine holds the guest. Which store that is, in words.
    NoSpace(Option<String>),
    /// Who was seen to run in the guest.
    Seen(Occupant),
    /// The power button was read.
    Button(PowerButton),
    /// QEMU is gone. `words` is what it said last.
    Exited {
        crash: Crash,
        words: String,
    },
    Asked {
        ticket: Ticket,
        ask: Ask,
    },
    /// Changes are begun that nobody asks for now, since they had waited. What counts on the guest's devices waits for their end.
    ChangeBegun,
    /// The change that was begun is over.
    ChangeOver,
    /// Copies of disks and variables are made what they are to be: the guest stands still for an instant.
    CopyHolds,
    /// The copy that was begun is over.
    CopyOver,
    /// What a worker before us left half done is known, and undone.
    InOrder,
    /// `None`: all that backs disks answers.
    Stores(Option<Silence>),
    /// Only time has passed.
    Tick,
}

/// What a request asks of the machine; what else it carries stays with the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ask {
    Ping,
    Stop(StopHow),
    Idle,
    Counters,
    /// With which QEMU opens, closes or drains a store.
    Change,
    ChangeWithoutStores,
    Copy,
}

impl Ask {
    /// Whether QEMU may wait for any store of the guest with it, and the guest with QEMU.
    fn needs_stores(self) -> bool {
        matches!(self, Ask::Idle | Ask::Change | Ask::Copy)
    }

    fn changes(self) -> bool {
        matches!(self, Ask::Change | Ask::ChangeWithoutStores)
    }

    /// Whether it counts on the devices that the guest is known to have.
    fn needs_order(self) -> bool {
        self.changes() || matches!(self, Ask::Idle | Ask::Copy)
    }
}

/// Stores that do not answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Silence {
    /// Which they are, for people.
    pub(crate) words: String,
    /// When the first of them fell silent.
    pub(crate) since: Duration,
}

impl Silence {
    fn bound(&self) -> Duration {
        self.since + STORE_PATIENCE
    }

    /// Why something is not done that was put off for it; `None`: it may still be over in a moment.
    pub(crate) fn denial(&self, now: Duration) -> Option<Denial> {
        (now >= self.bound()).then(|| Denial::SilentStore { store: self.words.clone() })
    }
}

/// Something to do.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Action {
    /// The state has changed: publish it.
    Publish,
    Log(String),
    /// The start has come to its end, well or badly.
    Started(Result<(), String>),
    Reply(Ticket, Reply),
    PressButton,
    ReadButton,
    /// Let the guest go on.
    Continue,
    /// Ask QEMU to end in order: it writes out what it holds.
    Quit,
    /// End QEMU as the kernel does.
    Kill,
    BeginChange(Ticket),
    BeginCopy(Ticket),
    ReadIdle(Ticket),
    ReadCounters(Ticket),
    /// The guest has been reset: what waited for that has happened.
    AfterReset,
    /// Everything is over.
    Finish,
}

/// Whether this worker saw the guest start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    Start,
    /// Another worker was here before; what it published last, if it did.
    Adoption {
        phase: Option<Phase>,
        decided: Option<Ending>,
    },
}

#[derive(Clone, Debug, PartialEq)]
enum State {
    Starting { origin: Origin },
    Running { occupant: Occupant },
    Paused { hold: Hold, occupant: Occupant },
    Stopping { graceful: Graceful, occupant: Occupant, hold: Option<Hold> },
    Closing { closing: Closing, occupant: Occupant },
    Ended { how: Ending },
}

/// Whether anybody can tell what devices the guest has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Devices {
    Known,
    /// Its boot record cannot be used.
    Unknown,
}

/// One running guest.
#[derive(Debug)]
pub(crate) struct Machine {
    state: State,
    devices: Devices,
    /// QEMU has not answered since its last query.
    silent: bool,
    changing: Changing,
    copy: Copy,
    silent_stores: Option<Silence>,
    /// A worker before us may have left devices half changed.
    inherits: bool,
    /// That one saw an operating system, and we have not looked yet: the guest may have been reset in between.
    is_os_of_before: bool,
    put_off: Vec<PutOff>,
}

/// A request that waits until all stores answer and devices are in order; or for so long.
#[derive(Clone, Copy, Debug)]
struct PutOff {
    ticket: Ticket,
    ask: Ask,
    since: Duration,
}

/// Whether devices are being changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Changing {
    No,
    /// As somebody asked, who waits.
    AsAsked,
    /// As it was due.
    AsDue,
}

/// Whether disks and firmware variables are being copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Copy {
    None,
    UnderWay,
    /// And the guest is held for an instant.
    Holds,
}

impl Machine {
    pub(crate) fn new(origin: Origin, devices: Devices) -> Machine {
        // Until it is taken back there may be one of the worker before.
        let (copy, inherits) = match origin {
            Origin::Start => (Copy::None, false),
            Origin::Adoption { .. } => (Copy::UnderWay, true),
        };
        let is_os_of_before = origin.occupant() == Occupant::Os;
        Machine {
            state: State::Starting { origin },
            devices,
            silent: false,
            changing: Changing::No,
            copy,
            silent_stores: None,
            inherits,
            is_os_of_before,
            put_off: Vec::new(),
        }
    }

    /// What readers of the snapshot are told.
    pub(crate) fn phase(&self) -> Phase {
        match &self.state {
            State::Starting { origin: Origin::Adoption { phase: Some(phase), .. } } => {
                phase.clone()
            }
            State::Starting { .. } => Phase::Starting,
            State::Running { occupant } => Phase::Running { occupant: *occupant },
            State::Paused { hold, occupant } => {
                Phase::Paused { reason: hold.reason.to_string(), occupant: *occupant }
            }
            State::Stopping { graceful, occupant, hold } => Phase::Stopping {
                occupant: *occupant,
                held: hold.as_ref().map(|hold| hold.reason.to_string()),
                is_unheard: graceful.is_unheard(),
            },
            State::Closing { occupant, .. } => {
                Phase::Stopping { occupant: *occupant, held: None, is_unheard: false }
            }
            State::Ended { how } => Phase::Ended { how: how.clone() },
        }
    }

    /// How the guest will have ended, when that is decided and QEMU still runs.
    pub(crate) fn decided(&self) -> Option<&Ending> {
        match &self.state {
            State::Closing { closing, .. } => Some(&closing.how),
            _ => None,
        }
    }

    pub(crate) fn is_silent(&self) -> bool {
        self.silent
    }

    /// Why the engine holds the guest, if it does.
    fn hold(&self) -> Option<&Hold> {
        match &self.state {
            State::Paused { hold, .. } => Some(hold),
            State::Stopping { hold, .. } => hold.as_ref(),
            _ => None,
        }
    }

    /// Whether anything in the guest can answer now.
    pub(crate) fn may_be_spoken_to(&self) -> bool {
        !self.silent && self.hold().is_none()
    }

    /// Whether it is worth looking who runs in the guest.
    pub(crate) fn wants_occupant(&self) -> bool {
        let occupant = match &self.state {
            State::Running { occupant } | State::Stopping { occupant, .. } => occupant,
            _ => return false,
        };
        (*occupant == Occupant::Firmware || self.is_os_of_before) && !self.silent
    }

    /// Whether that is known from a worker before us alone.
    pub(crate) fn doubts_occupant(&self) -> bool {
        self.is_os_of_before
    }

    /// Whether requests can be judged: a worker that takes over first learns how things are.
    pub(crate) fn takes_requests(&self) -> bool {
        let takes_over = matches!(self.state, State::Starting { origin: Origin::Adoption { .. } });
        !takes_over || self.silent
    }

    /// When time alone leads to something next.
    pub(crate) fn wake_at(&self) -> Option<Duration> {
        let of_stop = match &self.state {
            State::Closing { closing, .. } => Some(closing.wake_at()),
            State::Stopping { graceful, .. } => Some(graceful.wake_at()),
            _ => None,
        };
        let of_put_off = self.put_off.iter().filter_map(|waits| self.bound_of(waits));
        of_stop.into_iter().chain(of_put_off).min()
    }

    pub(crate) fn step(&mut self, now: Duration, input: Input) -> Vec<Action> {
        let mut actions = Vec::new();
        if matches!(self.state, State::Ended { .. }) {
            if let Input::Asked { ticket, .. } = input {
                requests::deny(ticket, Denial::Ended, &mut actions);
            }
            return actions;
        }
        match input {
            Input::Status(status) => self.status(now, &status, &mut actions),
            // It is on its way out, and answers nobody any more.
            Input::Silent if matches!(self.state, State::Closing { .. }) => {}
            Input::Silent => match self.decided_before() {
                // It may hang in the end that it was told to make.
                Some(how) => self.close(now, how, Vec::new(), &mut actions),
                None if self.silent => {}
                None => {
                    self.silent = true;
                    actions.push(Action::Publish);
                    actions.push(Action::Log("QEMU does not answer".into()));
                }
            },
            Input::PoweredOff => self.powered_off(now, &mut actions),
            Input::Reset => self.reset(now, &mut actions),
            Input::ToldToEnd(cause) => self.told_to_end(now, cause, &mut actions),
            Input::ToldToQuit => self.told_to_quit(now, &mut actions),
            Input::NoSpace(store) => {
                let before = self.hold().map_or(&Pause::IoError, |hold| &hold.reason);
                let reason = before.without_space_for(store);
                self.pause(now, reason, &mut actions);
            }
            Input::Seen(Occupant::Os) => self.os_seen(&mut actions),
            Input::Seen(Occupant::Firmware) if self.is_os_of_before => {
                self.reset(now, &mut actions);
            }
            Input::Seen(Occupant::Firmware) => {}
            Input::Button(button) => {
                if let State::Stopping { graceful, .. } = &mut self.state {
                    let before = graceful.is_unheard();
                    graceful.seen(button);
                    if graceful.is_unheard() != before {
                        actions.push(Action::Publish);
                    }
                }
            }
            Input::Exited { crash, words } => self.exited(&crash, words, &mut actions),
            Input::Asked { ticket, ask } => self.asked(now, ticket, ask, &mut actions),
            Input::ChangeBegun => self.changing = Changing::AsDue,
            Input::ChangeOver => {
                self.changing = Changing::No;
                self.judge_put_off(now, &mut actions);
            }
            Input::CopyHolds => self.copy = Copy::Holds,
            Input::CopyOver => self.copy = Copy::None,
            Input::InOrder => {
                self.inherits = false;
                self.judge_put_off(now, &mut actions);
            }
            Input::Stores(silent) => {
                self.silent_stores = silent;
                self.judge_put_off(now, &mut actions);
            }
            Input::Tick => {
                self.judge_put_off(now, &mut actions);
                self.tick(now, &mut actions);
            }
        }
        actions
    }

    fn status(&mut self, now: Duration, status: &RunState, actions: &mut Vec<Action>) {
        if self.silent {
            self.silent = false;
            actions.push(Action::Publish);
            actions.push(Action::Log("QEMU answers again".into()));
        }
        if let Some(how) = self.decided_before() {
            return self.close(now, how, Vec::new(), actions);
        }
        match status {
            RunState::Running => self.runs(now, actions),
            RunState::Shutdown => self.powered_off(now, actions),
            // Not yet under way, or on the way between two states: the next beat tells more.
            RunState::Prelaunch => {}
            held => {
                // What holds the guest for an instant is no pause.
                if self.changing == Changing::No && self.copy != Copy::Holds {
                    self.pause(now, Pause::of(held), actions);
                }
            }
        }
    }

    /// What the worker before had decided before it was killed.
    fn decided_before(&self) -> Option<Ending> {
        match &self.state {
            State::Starting { origin: Origin::Adoption { decided, .. } } => decided.clone(),
            _ => None,
        }
    }

    fn runs(&mut self, now: Duration, actions: &mut Vec<Action>) {
        match &mut self.state {
            State::Starting { origin } => {
                let occupant = origin.occupant();
                let line = match origin {
                    Origin::Start => "the guest is started",
                    Origin::Adoption { .. } => "supervision of the guest goes on",
                };
                // Who is told that the guest runs must find it so.
                actions.push(Action::Publish);
                actions.push(Action::Log(line.into()));
                actions.push(Action::Started(Ok(())));
                self.state = State::Running { occupant };
                return;
            }
            State::Paused { hold, .. } | State::Stopping { hold: Some(hold), .. }
                if hold.outlasts_a_try(now) =>
            {
                return;
            }
            State::Paused { occupant, .. } => {
                self.state = State::Running { occupant: *occupant };
            }
            State::Stopping { hold: hold @ Some(_), .. } => *hold = None,
            State::Running { .. }
            | State::Stopping { hold: None, .. }
            | State::Closing { .. }
            | State::Ended { .. } => return,
        }
        actions.push(Action::Log("the guest goes on".into()));
        actions.push(Action::Publish);
    }

    fn pause(&mut self, now: Duration, reason: Pause, actions: &mut Vec<Action>) {
        if self.hold().is_some_and(|told| told.covers(&reason)) {
            return;
        }
        let line = format!("the guest is held: {reason}");
        let hold = Hold::new(reason, now);
        match &mut self.state {
            State::Running { occupant } | State::Paused { occupant, .. } => {
                self.state = State::Paused { hold, occupant: *occupant };
            }
            State::Starting { origin } => {
                actions.push(Action::Publish);
                actions.push(Action::Started(Ok(())));
                self.state = State::Paused { hold, occupant: origin.occupant() };
            }
            State::Stopping { hold: told, .. } => *told = Some(hold),
            State::Closing { .. } | State::Ended { .. } => return,
        }
        actions.push(Action::Log(line));
        actions.push(Action::Publish);
    }

    fn powered_off(&mut self, now: Duration, actions: &mut Vec<Action>) {
        match &self.state {
            State::Closing { .. } | State::Ended { .. } => {}
            State::Stopping { graceful, .. } => {
                let waiting = graceful.askers_with(&Reply::Done);
                self.close(now, Ending::StoppedGracefully, waiting, actions);
            }
            State::Starting { .. } | State::Running { .. } | State::Paused { .. } => {
                self.close(now, Ending::PoweredOff, Vec::new(), actions);
            }
        }
    }

    /// By somebody else; what we decided holds.
    fn told_to_end(&mut self, now: Duration, cause: Crash, actions: &mut Vec<Action>) {
        let (how, waiting) = match &self.state {
            State::Closing { .. } | State::Ended { .. } => return,
            State::Starting { origin: Origin::Start } => {
                (Ending::FailedToStart { error: cause.to_string() }, Vec::new())
            }
            State::Stopping { graceful, .. } => {
                let waiting = graceful.askers_with(&lost(&cause));
                (Ending::Crashed { cause }, waiting)
            }
            State::Starting { .. } | State::Running { .. } | State::Paused { .. } => {
                let how = self.decided_before().unwrap_or(Ending::Crashed { cause });
                (how, Vec::new())
            }
        };
        self.silent = false;
        self.close(now, how, waiting, actions);
    }

    /// If not by us, by a hard stop that took us for hanging: nobody else uses the second monitor.
    fn told_to_quit(&mut self, now: Duration, actions: &mut Vec<Action>) {
        if matches!(self.state, State::Closing { .. } | State::Ended { .. }) {
            return;
        }
        self.silent = false;
        match self.decided_before() {
            Some(how) => self.close(now, how, Vec::new(), actions),
            None => self.end_hard(now, Vec::new(), actions),
        }
    }

    /// From here on QEMU is on its way out and the reason is known.
    ///
    /// A guest that shut down may wait for QEMU to write out what it holds. A hard stop does not: disks are raw files, so
    /// what the guest was told to be written is in the host's page cache, which survives the process, and SIGKILL ends it
    /// soonest.
    fn close(
        &mut self,
        now: Duration,
        how: Ending,
        waiting: Vec<(Ticket, Reply)>,
        actions: &mut Vec<Action>,
    ) {
        let occupant = self.occupant();
        actions.push(match how {
            Ending::StoppedHard => Action::Kill,
            _ => Action::Quit,
        });
        actions.push(Action::Log(match &how {
            Ending::StoppedHard => "the guest is stopped hard".into(),
            Ending::StoppedGracefully | Ending::PoweredOff => {
                "the guest has switched itself off".into()
            }
            how => how.to_string(),
        }));
        actions.push(Action::Publish);
        self.state = State::Closing { closing: Closing::begin(how, now, waiting), occupant };
    }

    fn occupant(&self) -> Occupant {
        match &self.state {
            State::Starting { origin } => origin.occupant(),
            State::Running { occupant }
            | State::Paused { occupant, .. }
            | State::Stopping { occupant, .. }
            | State::Closing { occupant, .. } => *occupant,
            State::Ended { .. } => Occupant::Firmware,
        }
    }

    fn reset(&mut self, now: Duration, actions: &mut Vec<Action>) {
        self.is_os_of_before = false;
        match &mut self.state {
            State::Running { occupant } | State::Paused { occupant, .. } => {
                *occupant = Occupant::Firmware;
            }
            State::Stopping { occupant, graceful, .. } => {
                *occupant = Occupant::Firmware;
                graceful.reset(now);
            }
            State::Starting { .. } => return actions.push(Action::AfterReset),
            State::Closing { .. } | State::Ended { .. } => return,
        }
        actions.push(Action::Log("the guest restarts".into()));
        actions.push(Action::AfterReset);
        actions.push(Action::Publish);
    }

    fn os_seen(&mut self, actions: &mut Vec<Action>) {
        self.is_os_of_before = false;
        if let State::Running { occupant } | State::Stopping { occupant, .. } = &mut self.state
            && *occupant == Occupant::Firmware
        {
            *occupant = Occupant::Os;
            actions.push(Action::Log("an operating system runs in the guest".into()));
            actions.push(Action::Publish);
        }
    }

    fn exited(&mut self, crash: &Crash, words: String, actions: &mut Vec<Action>) {
        let ended = Ending::Crashed { cause: crash.clone() };
        let placeholder = State::Ended { how: ended.clone() };
        let how = match std::mem::replace(&mut self.state, placeholder) {
            State::Starting { origin: Origin::Start } => {
                let words = if words.is_empty() { crash.to_string() } else { words };
                actions.push(Action::Started(Err(words.clone())));
                Ending::FailedToStart { error: words }
            }
            State::Starting { origin: Origin::Adoption { decided: Some(how), .. } } => how,
            State::Stopping { graceful, .. } => {
                graceful.answer(&lost(crash), actions);
                ended
            }
            State::Closing { closing, .. } => {
                // Whoever waits for the start is told when it has come to its end.
                if let Ending::FailedToStart { error } = &closing.how {
                    actions.push(Action::Started(Err(error.clone())));
                }
                for (ticket, reply) in closing.waiting {
                    actions.push(Action::Reply(ticket, reply));
                }
                closing.how
            }
            _ => ended,
        };
        // The end is published before anybody is told of it, so that who is told finds it so.
        let mut told = std::mem::take(actions);
        actions.push(Action::Log(how.to_string()));
        self.silent = false;
        self.state = State::Ended { how };
        actions.push(Action::Publish);
        actions.append(&mut told);
        for waits in self.put_off.drain(..) {
            requests::deny(waits.ticket, Denial::Ended, actions);
        }
        actions.push(Action::Finish);
    }

    fn tick(&mut self, now: Duration, actions: &mut Vec<Action>) {
        if self.changing == Changing::No
            && let State::Paused { hold, .. } | State::Stopping { hold: Some(hold), .. } =
                &mut self.state
            && hold.is_tried(now)
        {
            actions.push(Action::Continue);
        }
        match &mut self.state {
            State::Stopping { graceful, occupant, hold } => {
                let (occupant, hold) = (*occupant, hold.clone());
                let obstacle = match &hold {
                    Some(hold) => Some(Obstacle::Held(hold.reason.clone())),
                    None => self.silent.then_some(Obstacle::Silence),
                };
                for next in graceful.next(now, obstacle) {
                    match next {
                        Next::Press => actions.push(Action::PressButton),
                        Next::Read => actions.push(Action::ReadButton),
                        Next::Tell(text) => graceful.answer(&Reply::Progress { text }, actions),
                        Next::GiveUp(why) => {
                            actions.push(Action::Log(not_stopped(&why)));
                            actions.push(Action::Publish);
                            graceful.answer(&Reply::NotStopped { why }, actions);
                            self.state = match hold {
                                Some(hold) => State::Paused { hold, occupant },
                                None => State::Running { occupant },
                            };
                            break;
                        }
                    }
                }
            }
            State::Closing { closing, .. } => {
                let silent_stores = self.silent_stores.as_ref();
                closing.tick(now, silent_stores.map(|silence| silence.words.as_str()), actions);
            }
            State::Starting { .. }
            | State::Running { .. }
            | State::Paused { .. }
            | State::Ended { .. } => {}
        }
    }
}

impl Origin {
    fn occupant(&self) -> Occupant {
        match self {
            Origin::Adoption {
                phase:
                    Some(
                        Phase::Running { occupant }
                        | Phase::Paused { occupant, .. }
                        | Phase::Stopping { occupant, .. },
                    ),
                ..
            } => *occupant,
            _ => Occupant::Firmware,
        }
    }
}

/// To who waited for the guest's own end.
fn lost(crash: &Crash) -> Reply {
    Reply::Failed { error: format!("{crash} while the guest was shutting down") }
}

fn not_stopped(why: &NotStopped) -> String {
    format!("the guest was asked to shut down and still runs: {why}")
}
