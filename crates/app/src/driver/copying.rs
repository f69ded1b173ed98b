//! Copies of disks and firmware variables: begun for who asked, told of, and taken away when a worker before us left them.

use hpvm_app::protocol::CopiedState;
use hpvm_engine::copying::{Left, take_back};
use hpvm_model::chain;

use super::*;
use crate::copying::{Copier, Holder, Unmade};
use crate::store_watch::StoreWatch;

/// A copy that failed, and of which QEMU has something still.
#[derive(Default)]
pub(super) struct LeftCopy {
    /// Nobody is taking it away now.
    is_owed: bool,
    since: Option<String>,
}

impl LeftCopy {
    /// For who looks at the guest.
    pub(super) fn note(&self, targets: &StoreWatch) -> Option<String> {
        let since = self.since.as_ref()?;
        let paths: Vec<&str> = targets.paths().map(|(_, path)| path).collect();
        let written = match paths.is_empty() {
            true => "what it was copied to".to_owned(),
            false => format!("'{}'", paths.join("', '")),
        };
        Some(format!(
            "a copy of its disks has failed, and QEMU may write {written} until it answers and ends that (since {since})"
        ))
    }
}

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
        self.stores.copies = StoreWatch::of_copies(wanted.watched());
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
                let mut error = chain(&unmade);
                if let Some(silence) = self.stores.silence() {
                    error = format!("{error}; a request waits for {}", silence.words);
                }
                self.log.say(&format!("they are not copied: {error}"));
                match unmade {
                    Unmade::Begin(_) => Reply::NotBegun { error },
                    Unmade::Copy(_) | Unmade::GivenUp => Reply::Failed { error },
                }
            }
        };
        match left {
            Some(reason) => self.copy_stays(&reason),
            None => self.copy_over(),
        }
        // Whoever made the targets has them for himself by then.
        self.reply(ticket, reply);
        self.ask_status();
    }

    /// QEMU may go on writing the targets; that ends when it answers.
    fn copy_stays(&mut self, reason: &str) {
        self.left_copy.is_owed = true;
        if self.left_copy.since.is_none() {
            self.left_copy.since = Some(now());
            self.log.say(&format!(
                "what was made in QEMU to copy them is still there, and goes when QEMU answers: {reason}"
            ));
        }
        self.publish();
    }

    fn copy_over(&mut self) {
        self.stores.copies.end_of_copies();
        self.left_copy = LeftCopy::default();
        self.feed(Input::CopyOver);
    }

    /// Once a beat: what could not be taken away is, as soon as QEMU answers.
    pub(super) fn take_left_copy_back(&mut self) {
        if self.left_copy.is_owed && !self.machine.is_silent() && self.monitor.client().is_some() {
            self.left_copy.is_owed = false;
            self.take_copies_back();
        }
    }

    /// Whoever waits for the copy has heard that the worker before us is gone.
    pub(super) fn take_copies_back(&self) {
        let Some(client) = self.monitor.client().cloned() else { return };
        let news = self.monitor.news();
        spawn_local(async move {
            let (seen, taken) = take_back(&client).await;
            let _ = news.send(News::CopyTakenBack(seen, taken)).await;
        });
    }

    pub(super) fn copy_taken_back(&mut self, seen: Left, taken: Result<(), hpvm_qmp::Error>) {
        let had_failed = self.left_copy.since.is_some();
        match (taken, seen) {
            (Err(error), Left::Something) => return self.copy_stays(&chain(&error)),
            // Whether there is one is asked again.
            (Err(_), Left::Nothing) => return self.left_copy.is_owed = true,
            (Ok(()), _) if had_failed => {
                self.log.say("nothing is left in QEMU of the copy of its disks that failed");
            }
            (Ok(()), Left::Nothing) => {}
            (Ok(()), Left::Something) => {
                self.log.say("a copy of its disks was given up with the worker before");
            }
        }
        self.copy_over();
        self.publish();
    }
}
