//! What is known of the agent in the guest, and when it is worth asking. Pure: the owner tells what happened and does what
//! is due.
//!
//! ```text
//!                     guest opens the port            it answers
//!  NoChannel   Absent ────────────────────► (asking) ────────────► Answers
//!                 ▲                             │  ▲                  │ a request
//!                 │ guest closes the port       ▼  │ now and then     │ is not answered
//!                 └─────────────────────────  Silent ◄────────────────┘
//! ```
//!
//! A guest that opens and closes its port all the time is asked every ten seconds at most, and one that is silent ever more
//! rarely: what a guest does unasked costs next to nothing.

use std::time::Duration;

use hpvm_app::snapshot::Agent;

/// Between two questions, however often the guest opens its port.
const APART: Duration = Duration::from_secs(10);
/// A silent agent is asked again after this time, then after twice of it, and so on.
const FIRST_PAUSE: Duration = Duration::from_secs(60);
const LONGEST_PAUSE: Duration = Duration::from_secs(960);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Port {
    Closed,
    Open,
}

/// Whether there is news for readers of the snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Changed {
    Yes,
    No,
}

#[derive(Debug)]
pub(crate) struct Watch {
    known: Agent,
    port: Port,
    /// When to ask next.
    due: Option<Duration>,
    asked_at: Option<Duration>,
    is_asking: bool,
    pause: Duration,
}

impl Watch {
    /// `before`: what a worker before us knew.
    pub(crate) fn new(before: Agent) -> Watch {
        Watch {
            known: before,
            port: Port::Closed,
            due: None,
            asked_at: None,
            is_asking: false,
            pause: FIRST_PAUSE,
        }
    }

    pub(crate) fn known(&self) -> &Agent {
        &self.known
    }

    /// The guest has the port open, as an event or the engine itself says.
    pub(crate) fn opened(&mut self, now: Duration) {
        self.port = Port::Open;
        let earliest = self.asked_at.map_or(now, |at| now.max(at + APART));
        self.due = Some(earliest);
    }

    pub(crate) fn closed(&mut self) -> Changed {
        self.port = Port::Closed;
        self.due = None;
        self.learn(Agent::Absent)
    }

    /// Whether to ask now; who asks tells what came of it.
    pub(crate) fn begins_to_ask(&mut self, now: Duration) -> bool {
        let is_due = self.due.is_some_and(|due| due <= now) && !self.is_asking;
        if is_due {
            (self.is_asking, self.due, self.asked_at) = (true, None, Some(now));
        }
        is_due
    }

    /// The question of [`Watch::begins_to_ask`] has come to its end.
    pub(crate) fn asked(&mut self) {
        self.is_asking = false;
    }

    /// It answered a question or a request. `at`: the time for readers.
    pub(crate) fn answered(&mut self, at: String) -> Changed {
        self.pause = FIRST_PAUSE;
        match (self.port, &self.known) {
            (Port::Closed, _) | (_, Agent::Answers { .. }) => Changed::No,
            _ => self.learn(Agent::Answers { since: at }),
        }
    }

    /// It did not.
    pub(crate) fn was_silent(&mut self, now: Duration, at: String) -> Changed {
        if self.port == Port::Closed {
            return Changed::No;
        }
        self.due = Some(now + self.pause);
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        match self.known {
            Agent::Silent { .. } => Changed::No,
            _ => self.learn(Agent::Silent { since: at }),
        }
    }

    fn learn(&mut self, agent: Agent) -> Changed {
        match std::mem::replace(&mut self.known, agent) == self.known {
            true => Changed::No,
            false => Changed::Yes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> String {
        text.to_owned()
    }

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn an_agent_is_asked_when_it_comes_and_never_again_while_it_answers() {
        let mut watch = Watch::new(Agent::Absent);
        assert!(!watch.begins_to_ask(s(1)), "nobody is there");
        watch.opened(s(2));
        assert!(watch.begins_to_ask(s(2)));
        assert!(!watch.begins_to_ask(s(3)), "once");
        watch.asked();
        assert_eq!(watch.answered(at("then")), Changed::Yes);
        assert_eq!(watch.answered(at("later")), Changed::No);
        assert_eq!(watch.known(), &Agent::Answers { since: at("then") });
        assert!((3..10_000).all(|second| !watch.begins_to_ask(s(second))));
        assert_eq!(watch.closed(), Changed::Yes);
        assert_eq!(watch.known(), &Agent::Absent);
        assert_eq!(watch.answered(at("late")), Changed::No, "an answer that came after the end");
        assert_eq!(watch.known(), &Agent::Absent);
    }

    #[test]
    fn a_silent_agent_is_asked_ever_more_rarely() {
        let mut watch = Watch::new(Agent::Absent);
        watch.opened(s(0));
        let mut asked = 0;
        for second in 0..86_400 {
            if watch.begins_to_ask(s(second)) {
                asked += 1;
                watch.asked();
                watch.was_silent(s(second), at("then"));
            }
        }
        assert!((80..100).contains(&asked), "{asked} questions a day");
        assert_eq!(watch.known(), &Agent::Silent { since: at("then") });
        assert_eq!(watch.answered(at("at last")), Changed::Yes);
        assert_eq!(watch.known(), &Agent::Answers { since: at("at last") });
    }

    /// Whatever a hostile guest does with its port.
    #[test]
    fn a_port_that_flaps_is_asked_no_more_than_every_ten_seconds() {
        let mut watch = Watch::new(Agent::Absent);
        let mut asked = 0;
        for second in 0..1_000 {
            watch.closed();
            watch.opened(s(second));
            if watch.begins_to_ask(s(second)) {
                asked += 1;
                watch.asked();
                watch.was_silent(s(second), at("then"));
            }
        }
        assert_eq!(asked, 100);
    }

    #[test]
    fn a_worker_that_takes_over_keeps_since_when() {
        let mut watch = Watch::new(Agent::Answers { since: at("before") });
        watch.opened(s(0));
        assert!(watch.begins_to_ask(s(0)));
        assert_eq!(watch.answered(at("now")), Changed::No);
        assert_eq!(watch.known(), &Agent::Answers { since: at("before") });
    }
}
