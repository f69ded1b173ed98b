//! What the owner learns of the agent in the guest, and when it asks.

use hpvm_plan::command_line::AGENT_CHARDEV;
use hpvm_qmp::answer::Chardev;
use hpvm_qmp::command::QueryChardev;

use super::*;
use crate::agent::watch::Changed;

impl Driver {
    /// Whether the guest has its port open: events before our connection to QEMU were told to nobody.
    pub(super) fn look_for_agent(&self) {
        if self.agent.is_some() {
            self.monitor.ask(QueryChardev {}, News::Chardevs);
        }
    }

    pub(super) fn agent_found(&mut self, chardevs: &[Chardev]) {
        if let Some(channel) = chardevs.iter().find(|chardev| chardev.label == AGENT_CHARDEV) {
            self.agent_port(channel.frontend_open);
        }
    }

    pub(super) fn agent_port(&mut self, is_open: bool) {
        match is_open {
            true => {
                self.agent_watch.opened(self.began.elapsed());
                self.greet_agent();
            }
            false => {
                let changed = self.agent_watch.closed();
                self.show_agent(changed);
            }
        }
    }

    /// Asks when it is time to, and not while QEMU lets nobody in the guest answer.
    pub(super) fn greet_agent(&mut self) {
        let Some(agent) = self.agent.clone() else { return };
        if !self.machine.may_be_spoken_to() || !self.agent_watch.begins_to_ask(self.began.elapsed())
        {
            return;
        }
        let news = self.monitor.news();
        spawn_local(async move {
            let answer = agent.greet().await;
            let _ = news.send(News::AgentGreeted(answer)).await;
        });
    }

    pub(super) fn agent_greeted(&mut self, result: &Result<(), hpvm_agent::Error>) {
        self.agent_watch.asked();
        self.agent_told(result, Watch::missed_a_question);
    }

    pub(super) fn agent_used(&mut self, result: &Result<(), hpvm_agent::Error>) {
        self.agent_told(result, Watch::was_silent);
    }

    fn agent_told(
        &mut self,
        result: &Result<(), hpvm_agent::Error>,
        unanswered: impl FnOnce(&mut Watch, Duration, String) -> Changed,
    ) {
        let (watch, elapsed) = (&mut self.agent_watch, self.began.elapsed());
        let changed = match result {
            Ok(()) => watch.answered(elapsed, now()),
            Err(error) if error.is_an_answer() => watch.answered(elapsed, now()),
            Err(hpvm_agent::Error::Busy) => {
                watch.was_busy(elapsed);
                Changed::No
            }
            // QEMU has held it meanwhile.
            Err(_) if !self.machine.may_be_spoken_to() => {
                watch.was_busy(elapsed);
                Changed::No
            }
            Err(_) => unanswered(watch, elapsed, now()),
        };
        self.show_agent(changed);
    }

    fn show_agent(&mut self, changed: Changed) {
        if changed == Changed::No {
            return;
        }
        self.log.say(match self.agent_watch.known() {
            snapshot::Agent::Answers { .. } => "the guest agent answers",
            snapshot::Agent::Silent { .. } => "the guest agent does not answer",
            snapshot::Agent::Absent | snapshot::Agent::NoChannel => "the guest agent has ended",
        });
        self.publish();
    }
}
