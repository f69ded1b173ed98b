//! A guest on its way down by the power button: when to press, when to look, what to tell, when to give up.
//!
//! A press is lost in firmware and while a kernel comes up, and an operating system may take it before there is a program
//! that obeys; so the button is pressed again while the guest still runs. Three things are told apart at the end: nobody
//! listens to the button, somebody listens and has not taken the press, the press was taken.

use std::time::Duration;

use hpvm_app::protocol::{NotStopped, Reply};
use hpvm_qmp::PowerButton;

use super::pause::Pause;
use super::{Action, Ticket};

/// Between two looks at the button; a press is taken within milliseconds by those who take it.
const LOOK: Duration = Duration::from_secs(1);
/// A press that was lost, or waits, is repeated so often.
const PRESS_AGAIN: Duration = Duration::from_secs(3);
/// A press that was taken by a system without anybody to obey it.
const PRESS_TAKEN_AGAIN: Duration = Duration::from_secs(12);
/// So long somebody may take to come up who listens at all: several times what a slow boot takes. Longer is no boot.
const NOBODY_BOUND: Duration = Duration::from_secs(120);
/// What has changed is told so often, and what has not much less.
const TELL: Duration = Duration::from_secs(5);
const TELL_AGAIN: Duration = Duration::from_secs(30);

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Graceful {
    /// Who waits for the outcome.
    askers: Vec<Ticket>,
    deadline: Duration,
    /// Until then somebody must have listened.
    nobody_until: Duration,
    pressed_at: Option<Duration>,
    looked_at: Duration,
    told_at: Duration,
    /// What was told last.
    told: Option<Told>,
    button: Reaction,
    /// The button was read.
    was_seen: bool,
    /// Whether the look under way was made right before a press.
    look: Look,
    /// The last press came when somebody listened.
    heard: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Look {
    BeforePress,
    Between,
}

/// What became of the button so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reaction {
    NobodyListens,
    Waits,
    Taken,
}

/// What keeps the guest from its end.
#[derive(Clone, Debug, PartialEq)]
enum Told {
    Button(Reaction),
    Obstacle(Obstacle),
}

/// What keeps the guest from shutting down, whatever its operating system would do.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Obstacle {
    /// The engine holds it.
    Held(Pause),
    /// The engine answers nobody.
    Silence,
}

impl Obstacle {
    fn reason(&self) -> String {
        match self {
            Obstacle::Held(reason) => reason.to_string(),
            Obstacle::Silence => "QEMU does not answer".to_owned(),
        }
    }

    fn way_out(&self) -> &'static str {
        match self {
            Obstacle::Held(reason) => reason.way_out(),
            Obstacle::Silence => "`hpvm why` tells what it may wait for, and hpvmstop -h ends it",
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Next {
    Press,
    Read,
    Tell(String),
    GiveUp(NotStopped),
}

impl Graceful {
    pub(super) fn begin(asker: Ticket, now: Duration, bound: Duration) -> Graceful {
        Graceful {
            askers: vec![asker],
            deadline: now + bound,
            nobody_until: now + NOBODY_BOUND,
            pressed_at: None,
            looked_at: now,
            told_at: now,
            told: None,
            button: Reaction::NobodyListens,
            was_seen: false,
            look: Look::Between,
            heard: false,
        }
    }

    /// Another one waits for the same outcome, within the bound of the first.
    pub(super) fn join(&mut self, asker: Ticket) {
        self.askers.push(asker);
    }

    /// The same answer for everybody.
    pub(super) fn askers_with(&self, reply: &Reply) -> Vec<(Ticket, Reply)> {
        self.askers.iter().map(|asker| (*asker, reply.clone())).collect()
    }

    pub(super) fn answer(&self, reply: &Reply, actions: &mut Vec<Action>) {
        let replies = self.askers_with(reply);
        actions.extend(replies.into_iter().map(|(asker, reply)| Action::Reply(asker, reply)));
    }

    pub(super) fn wake_at(&self) -> Duration {
        self.deadline.min(self.looked_at + LOOK)
    }

    pub(super) fn next(&mut self, now: Duration, obstacle: Option<Obstacle>) -> Vec<Next> {
        if self.button != Reaction::NobodyListens || self.heard {
            self.nobody_until = self.deadline;
        }
        if now >= self.deadline.min(self.nobody_until) {
            return vec![Next::GiveUp(self.verdict(obstacle.as_ref()))];
        }
        let mut next = Vec::new();
        if self.pressed_at.is_none_or(|at| now >= at + self.press_again()) {
            self.pressed_at = Some(now);
            self.looked_at = now;
            self.look = Look::BeforePress;
            next.extend([Next::Read, Next::Press]);
        } else if now >= self.looked_at + LOOK {
            self.looked_at = now;
            self.look = Look::Between;
            next.push(Next::Read);
        }
        let news = obstacle.map_or(Told::Button(self.button), Told::Obstacle);
        let tell_again = match (&self.told, &news) {
            (Some(told), news) if told == news => TELL_AGAIN,
            // Nothing else is of use before this is over.
            (_, Told::Obstacle(_)) => Duration::ZERO,
            _ => TELL,
        };
        if now >= self.told_at + tell_again {
            self.told_at = now;
            next.push(Next::Tell(self.sentence(now, &news)));
            self.told = Some(news);
        }
        next
    }

    /// Nobody was seen to listen to the button.
    pub(super) fn is_unheard(&self) -> bool {
        self.was_seen && self.button == Reaction::NobodyListens
    }

    pub(super) fn seen(&mut self, button: PowerButton) {
        self.was_seen = true;
        let taken_before = self.button == Reaction::Taken;
        if self.look == Look::BeforePress {
            self.heard = button.enabled;
        }
        self.button = match (button.enabled, button.pending, self.look) {
            // A system that shuts down stops listening at its end, and one that took a press has taken it.
            (false, ..) | (true, _, Look::BeforePress) if taken_before => Reaction::Taken,
            (false, ..) => Reaction::NobodyListens,
            (true, true, _) | (true, _, Look::BeforePress) => Reaction::Waits,
            (true, false, Look::Between) if self.heard => Reaction::Taken,
            (true, false, Look::Between) => {
                // Somebody listens since the last press, which was lost.
                self.pressed_at = None;
                Reaction::Waits
            }
        };
    }

    /// The guest restarted instead: from the beginning, within the same bound.
    pub(super) fn reset(&mut self, now: Duration) {
        self.button = Reaction::NobodyListens;
        self.heard = false;
        self.pressed_at = Some(now);
    }

    fn press_again(&self) -> Duration {
        match self.button {
            Reaction::NobodyListens | Reaction::Waits => PRESS_AGAIN,
            Reaction::Taken => PRESS_TAKEN_AGAIN,
        }
    }

    fn verdict(&self, obstacle: Option<&Obstacle>) -> NotStopped {
        match (obstacle, self.button) {
            (Some(obstacle), _) => {
                let (reason, way_out) = (obstacle.reason(), obstacle.way_out().to_owned());
                NotStopped::Held { reason, way_out }
            }
            (None, Reaction::NobodyListens) => NotStopped::NoOs,
            (None, Reaction::Waits) => NotStopped::NoReaction,
            (None, Reaction::Taken) => NotStopped::ShuttingDown,
        }
    }

    fn sentence(&self, now: Duration, news: &Told) -> String {
        let left = self.deadline.min(self.nobody_until).saturating_sub(now).as_secs();
        let happens = match news {
            Told::Obstacle(obstacle) => {
                let (reason, way_out) = (obstacle.reason(), obstacle.way_out());
                return format!("the guest is held: {reason}; {way_out} ({left} s left)");
            }
            Told::Button(Reaction::NobodyListens) => {
                "no operating system listens to the power button yet; it is pressed again"
            }
            Told::Button(Reaction::Waits) => {
                "the operating system has not reacted to the power button yet"
            }
            Told::Button(Reaction::Taken) => {
                "the operating system has taken the request and is shutting down"
            }
        };
        format!("{happens} ({left} s left)")
    }
}
