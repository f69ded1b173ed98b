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

    /// Asks when it is time to.
    pub(super) fn greet_agent(&mut self) {
        let Some(agent) = self.agent.clone() else { return };
        if !self.agent_watch.begins_to_ask(self.began.elapsed()) {
            return;
        }
        let news = self.monitor.news();
        spawn_local(async move {
            let answer = agent.greet().await;
            let _ = news.send(News::AgentGreeted(answer)).await;
        });
    }

    pub(super) fn agent_told(&mut self, result: &Result<(), hpvm_agent::Error>) {
        let changed = match result {
            Ok(()) => self.agent_watch.answered(now()),
            Err(error) if error.is_an_answer() => self.agent_watch.answered(now()),
            Err(_) => self.agent_watch.was_silent(self.began.elapsed(), now()),
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
