//! What is known of the agent in the guest, and when it is worth asking. Pure: the owner tells what happened and does what
//! is due.
//!
//! ```text
//!                     guest opens the port            it answers
//!  NoChannel   Absent ────────────────────► (asking) ────────────► Answers ◄─┐
//!                 ▲                             │  ▲                  │  │   │ once a minute
//!                 │ guest closes the port       ▼  │ now and then     │  └───┘
//!                 └─────────────────────────  Silent ◄────────────────┘
//!                                                       a request is not answered, or two such questions in a row
//! ```
//!
//! A kernel that panics or hangs leaves the port open, so that an agent that answers is asked again. It is believed to be
//! silent at the second question: a guest may be busy for a moment.
//!
//! A guest that opens and closes its port all the time is asked every ten seconds at most, and one that is silent ever more
//! rarely: what a guest does unasked costs next to nothing.

use std::time::Duration;

use hpvm_app::snapshot::Agent;

/// Between two questions, however often the guest opens its port.
const APART: Duration = Duration::from_secs(10);
/// Between two questions to one that answers: what it costs an idle guest cannot be measured.
const AGAIN: Duration = Duration::from_secs(60);
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
    /// When it left a question unanswered that did for nothing but to ask, having answered until then.
    doubted_since: Option<String>,
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
            doubted_since: None,
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
        self.doubted_since = None;
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

    /// The question of [`Watch::begins_to_ask`] has come to its end; what came of it is told next.
    pub(crate) fn asked(&mut self) {
        self.is_asking = false;
    }

    /// It is at an earlier request of ours.
    pub(crate) fn was_busy(&mut self, now: Duration) {
        self.ask_again(now);
    }

    /// It answered a question or a request. `at`: the time for readers.
    pub(crate) fn answered(&mut self, now: Duration, at: String) -> Changed {
        self.pause = FIRST_PAUSE;
        self.doubted_since = None;
        self.ask_again(now);
        match (self.port, &self.known) {
            (Port::Closed, _) | (_, Agent::Answers { .. }) => Changed::No,
            _ => self.learn(Agent::Answers { since: at }),
        }
    }

    /// It did not answer a question.
    pub(crate) fn missed_a_question(&mut self, now: Duration, at: String) -> Changed {
        let is_believed = matches!(self.known, Agent::Answers { .. }) && self.port == Port::Open;
        if is_believed && self.doubted_since.is_none() {
            self.doubted_since = Some(at);
            self.due = Some(now + APART);
            return Changed::No;
        }
        self.was_silent(now, at)
    }

    /// It did not answer a request.
    pub(crate) fn was_silent(&mut self, now: Duration, at: String) -> Changed {
        let since = self.doubted_since.take().unwrap_or(at);
        if self.port == Port::Closed {
            return Changed::No;
        }
        self.due = Some(now + self.pause);
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        match self.known {
            Agent::Silent { .. } => Changed::No,
            _ => self.learn(Agent::Silent { since }),
        }
    }

    fn ask_again(&mut self, now: Duration) {
        if self.port == Port::Open {
            self.due = Some(now + AGAIN);
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
    fn an_agent_is_asked_when_it_comes_and_once_a_minute_while_it_answers() {
        let mut watch = Watch::new(Agent::Absent);
        assert!(!watch.begins_to_ask(s(1)), "nobody is there");
        watch.opened(s(2));
        assert!(watch.begins_to_ask(s(2)));
        assert!(!watch.begins_to_ask(s(3)), "once");
        watch.asked();
        assert_eq!(watch.answered(s(3), at("then")), Changed::Yes);
        assert_eq!(watch.answered(s(3), at("later")), Changed::No);
        assert_eq!(watch.known(), &Agent::Answers { since: at("then") });
        let mut asked = 0;
        for second in 3..3_603 {
            if watch.begins_to_ask(s(second)) {
                asked += 1;
                watch.asked();
                assert_eq!(watch.answered(s(second), at("later")), Changed::No);
            }
        }
        assert_eq!(asked, 59, "in an hour");
        assert_eq!(watch.closed(), Changed::Yes);
        assert_eq!(watch.known(), &Agent::Absent);
        let late = watch.answered(s(3_603), at("late"));
        assert_eq!(late, Changed::No, "an answer that came after the end");
        assert_eq!(watch.known(), &Agent::Absent);
        assert!((3_603..10_000).all(|second| !watch.begins_to_ask(s(second))));
    }

    /// Its kernel panicked, say, which closes no port.
    #[test]
    fn an_agent_that_falls_silent_is_known_to_be_so_within_two_minutes() {
        let mut watch = Watch::new(Agent::Absent);
        watch.opened(s(0));
        let mut asked = Vec::new();
        let mut known_at = None;
        for second in 0..240 {
            if watch.begins_to_ask(s(second)) {
                asked.push(second);
                watch.asked();
                match second {
                    0..100 => watch.answered(s(second), at("then")),
                    _ => watch.missed_a_question(s(second), second.to_string()),
                };
            }
            if matches!(watch.known(), Agent::Silent { .. }) {
                known_at.get_or_insert(second);
            }
        }
        assert_eq!(asked, [0, 60, 120, 130, 190], "and then ever more rarely");
        assert_eq!(known_at, Some(130));
        assert_eq!(
            watch.known(),
            &Agent::Silent { since: at("120") },
            "the first it did not answer"
        );
        assert_eq!(watch.answered(s(240), at("at last")), Changed::Yes);
    }

    #[test]
    fn one_question_that_a_busy_guest_misses_is_no_silence() {
        let mut watch = Watch::new(Agent::Absent);
        watch.opened(s(0));
        watch.answered(s(0), at("then"));
        assert_eq!(watch.missed_a_question(s(60), at("once")), Changed::No);
        assert_eq!(watch.answered(s(70), at("later")), Changed::No);
        assert_eq!(watch.missed_a_question(s(130), at("once more")), Changed::No);
        watch.was_busy(s(135));
        assert_eq!(watch.known(), &Agent::Answers { since: at("then") });
        assert_eq!(watch.was_silent(s(140), at("a request")), Changed::Yes);
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
        assert_eq!(watch.answered(s(86_400), at("at last")), Changed::Yes);
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
        assert_eq!(watch.answered(s(0), at("now")), Changed::No);
        assert_eq!(watch.known(), &Agent::Answers { since: at("before") });
    }
}
