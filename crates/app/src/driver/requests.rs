//! Requests under way, of commands and of console sessions: who waits for the replies, and what came with each.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::time::Duration;

use hpvm_app::protocol::{ChangeResult, Reply, Request};
use hpvm_app::snapshot::{Ending, Phase};
use hpvm_console::door::Ended;
use hpvm_console::fanout::SessionId;
use hpvm_host::keeper_link::ToKeeper;
use hpvm_model::StorageAddress;
use hpvm_plan::record::{DeviceChange, Due};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::Driver;
use super::verbs::Medium;
use crate::changes::Payload;
use crate::control::{Asked, Peer};
use crate::copying::Wanted;
use crate::machine::{Ask, Input, Ticket};

/// How long the end waits for those who asked to take their answer.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// Where replies to a ticket go.
pub(super) enum Asker {
    Control(mpsc::Sender<Reply>),
    Session(SessionId),
}

#[derive(Default)]
pub(super) struct Requests {
    last: u64,
    askers: HashMap<Ticket, Asker>,
    /// Connections on which the last word is on its way.
    answered: Vec<mpsc::Sender<Reply>>,
    pub(super) payloads: HashMap<Ticket, Payload>,
    /// Of console sessions, of which no payload is made before their turn.
    pub(super) media: HashMap<Ticket, Medium>,
    pub(super) copies: HashMap<Ticket, Wanted>,
    /// Whose counters begin anew.
    pub(super) from_zero: HashMap<Ticket, Vec<StorageAddress>>,
}

impl Requests {
    /// A name for a request that begins.
    pub(super) fn ticket(&mut self, asker: Asker) -> Ticket {
        self.last += 1;
        let ticket = Ticket(self.last);
        self.askers.insert(ticket, asker);
        ticket
    }

    fn end(&mut self, ticket: Ticket) {
        self.answered.retain(|replies| !replies.is_closed());
        if let Some(Asker::Control(replies)) = self.askers.remove(&ticket) {
            self.answered.push(replies);
        }
        self.payloads.remove(&ticket);
        self.media.remove(&ticket);
        self.copies.remove(&ticket);
        self.from_zero.remove(&ticket);
    }
}

impl Driver {
    pub(super) fn requested(&mut self, asked: Asked) {
        let ticket = self.requests.ticket(Asker::Control(asked.replies.clone()));
        let ask = match asked.request {
            Request::Ping => Ask::Ping,
            Request::Stop { how } => Ask::Stop(how),
            Request::Idle => Ask::Idle,
            Request::Counters { from_zero } => {
                self.requests.from_zero.insert(ticket, from_zero);
                Ask::Counters
            }
            Request::Change { changes, watched } => {
                let (descriptors, peer) = (asked.descriptors, asked.peer);
                self.keep_changes(ticket, (changes, watched), Due::Now, descriptors, peer)
            }
            Request::AtReset { changes, watched } => {
                let (descriptors, peer) = (asked.descriptors, asked.peer);
                self.keep_changes(ticket, (changes, watched), Due::NextReset, descriptors, peer)
            }
            Request::Copy { disks, targets } => {
                let Asked { descriptors, replies, peer, .. } = asked;
                let wanted = Wanted { disks, targets, descriptors, replies, peer };
                self.requests.copies.insert(ticket, wanted);
                Ask::Copy
            }
        };
        self.feed(Input::Asked { ticket, ask });
    }

    /// Keeps what came with a request until its turn.
    fn keep_changes(
        &mut self,
        ticket: Ticket,
        (changes, watched): (Vec<DeviceChange>, Vec<StorageAddress>),
        due: Due,
        mut descriptors: VecDeque<OwnedFd>,
        peer: Peer,
    ) -> Ask {
        let media = changes.iter().map(DeviceChange::descriptors).sum::<usize>();
        let stores = descriptors.split_off(media.min(descriptors.len()));
        let stores = watched.into_iter().zip(stores.into_iter().map(File::from)).collect();
        let payload = Payload { changes, due, descriptors, stores, peer: Some(peer) };
        let ask = match payload.changes.iter().any(DeviceChange::touches_stores) {
            true => Ask::Change,
            false => Ask::ChangeWithoutStores,
        };
        self.requests.payloads.insert(ticket, payload);
        ask
    }

    pub(super) fn reply(&mut self, ticket: Ticket, reply: Reply) {
        let is_last = reply.is_last();
        match self.requests.askers.get(&ticket) {
            // A command that does not read its answer, or is gone, loses it.
            Some(Asker::Control(replies)) => drop(replies.try_send(reply)),
            Some(Asker::Session(session)) if is_last => {
                self.console.verb_done(*session, in_words(reply));
            }
            Some(Asker::Session(_)) | None => {}
        }
        if is_last {
            self.requests.end(ticket);
        }
    }

    /// The guest has ended and that is published: everybody who still waits hears it, then the keeper.
    pub(super) async fn farewell(&mut self) {
        let waiting: Vec<Ticket> = self.requests.askers.keys().copied().collect();
        for ticket in waiting {
            let error = "the guest has ended in the meantime".into();
            self.reply(ticket, Reply::Failed { error });
        }
        let how = match &self.shown.phase {
            Phase::Ended { how: Ending::PoweredOff | Ending::StoppedGracefully } => Ended::ShutDown,
            Phase::Ended { how: Ending::StoppedHard } => Ended::Stopped,
            _ => Ended::Crashed,
        };
        self.console.guest_ended(how).await;
        let _ = timeout(LAST_WORDS, async {
            for replies in &self.requests.answered {
                replies.closed().await;
            }
        })
        .await;
        self.link.send(ToKeeper::Finished);
    }
}

fn failed(result: ChangeResult) -> Option<String> {
    match result {
        ChangeResult::Failed { error } | ChangeResult::Waits { reason: error } => Some(error),
        ChangeResult::Done
        | ChangeResult::DoneUnasked { .. }
        | ChangeResult::Pending
        | ChangeResult::Skipped => None,
    }
}

/// A reply as a session's verb hears it.
fn in_words(reply: Reply) -> Result<String, String> {
    match reply {
        Reply::Done => Ok("done".into()),
        Reply::Already { text } | Reply::Progress { text } => Ok(text),
        Reply::Denied { reason } => Err(reason.to_string()),
        Reply::Failed { error } | Reply::NotBegun { error } => Err(error),
        Reply::NotStopped { why } => Err(why.to_string()),
        Reply::Held { by } => Err(format!("killed, and held by {by} until that answers")),
        Reply::Changed { results } => {
            results.into_iter().find_map(failed).map_or(Ok("done".into()), Err)
        }
        Reply::Idle { .. }
        | Reply::Counted { .. }
        | Reply::Copying { .. }
        | Reply::Copied { .. } => Err("not a verb of a session".into()),
    }
}
