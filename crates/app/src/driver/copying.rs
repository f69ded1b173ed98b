//! Copies of disks and firmware variables: begun for who asked, told of, and taken away when a worker before us left them.

use hpvm_app::protocol::CopiedState;
use hpvm_engine::copying::{Left, take_back};
use hpvm_model::chain;

use super::*;
use crate::copying::{Copier, Holder, Unmade};

impl Driver {
    pub(super) fn begin_copy(&mut self, ticket: Ticket) {
        if self.stores.silence().is_some() {
            self.feed(Input::CopyOver);
            return self.feed(Input::Asked { ticket, ask: Ask::Copy });
        }
        let wanted = self.requests.copies.remove(&ticket);
        let client = self.monitor.client().cloned();
        let (Some(wanted), Some(client), Ok(known)) = (wanted, client, &self.recorded.machine)
        else {
            let error = "the guest does not answer".into();
            self.reply(ticket, Reply::NotBegun { error });
            return self.feed(Input::CopyOver);
        };
        let machine = known.file.machine().clone();
        let (holder, news) = (self.holder(), self.monitor.news());
        self.log.say("its disks and firmware variables are being copied");
        spawn_local(Copier { ticket, wanted, client, machine, holder, news }.run());
    }

    fn holder(&self) -> Holder {
        match (&self.agent, self.agent_watch.known()) {
            (Some(agent), snapshot::Agent::Answers { .. }) => Holder::Agent(agent.clone()),
            (_, snapshot::Agent::Silent { .. }) => Holder::Nobody("its agent does not answer"),
            _ => Holder::Nobody("no agent runs in it"),
        }
    }

    pub(super) fn copy_held(&mut self, held: Duration) {
        self.log.say(&format!("the guest stood still for {} ms for the copy", held.as_millis()));
    }

    pub(super) fn copied(
        &mut self,
        ticket: Ticket,
        result: Result<CopiedState, Unmade>,
        left: Option<String>,
    ) {
        let reply = match result {
            Ok(state) => {
                self.log.say(match &state {
                    CopiedState::Clean => "they are copied, with its file systems held",
                    CopiedState::AsAfterPowerFailure { .. } => {
                        "they are copied as a failure of the power would have left them"
                    }
                });
                Reply::Copied { state }
            }
            Err(unmade) => {
                let error = chain(&unmade);
                self.log.say(&format!("they are not copied: {error}"));
                match unmade {
                    Unmade::Begin(_) => Reply::NotBegun { error },
                    Unmade::Copy(_) | Unmade::GivenUp => Reply::Failed { error },
                }
            }
        };
        if let Some(reason) = left {
            self.log.say(&format!("what was made in QEMU to copy them is still there: {reason}"));
        }
        self.reply(ticket, reply);
        self.feed(Input::CopyOver);
        self.ask_status();
    }

    /// Whoever waits for the copy has heard that the worker before us is gone.
    pub(super) fn take_copies_back(&self) {
        let Some(client) = self.monitor.client().cloned() else { return };
        let news = self.monitor.news();
        spawn_local(async move {
            let taken = take_back(&client).await;
            let _ = news.send(News::CopyTakenBack(taken)).await;
        });
    }

    pub(super) fn copy_taken_back(&mut self, taken: Result<Left, hpvm_qmp::Error>) {
        match taken {
            Ok(Left::Nothing) => {}
            Ok(Left::Something) => {
                self.log.say("a copy of its disks was given up with the worker before");
            }
            Err(error) => {
                let error = chain(&error);
                self.log.say(&format!("a copy of its disks may still be under way: {error}"));
            }
        }
        self.feed(Input::CopyOver);
    }
}
