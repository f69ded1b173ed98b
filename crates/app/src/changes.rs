//! One change of devices under way: its journal lines, its steps in order, its results. Called by the owner; what is done
//! with QEMU runs beside it as a task.

use std::collections::VecDeque;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::time::Duration;

use hpvm_app::protocol::ChangeResult;
use hpvm_engine::devices::{Bench, DeviceError, Performed};
use hpvm_engine::record_file::RecordFile;
use hpvm_model::{DeviceKind, PciSlot, StorageAddress, chain};
use hpvm_plan::record::{self, Attached, DeviceChange, Due, Machine, Outcome};
use hpvm_qmp::Happening;
use hpvm_qmp::client::Client;
use tokio::sync::mpsc;
use tokio::sync::oneshot::error::TryRecvError;
use tokio::task::spawn_local;

use crate::agent::Agent;
use crate::consent::{Consent, Leave};
use crate::control::Peer;
use crate::guest_log::now;
use crate::machine::Ticket;
use crate::monitor::News;

/// Happenings that a step has not looked at yet. Those it waits for come after it asked.
const HAPPENINGS_WAITING: usize = 64;

/// What a step is made with.
pub(crate) struct Means<'a> {
    pub(crate) client: Option<&'a Client>,
    pub(crate) agent: Option<&'a Agent>,
    /// How long QEMU has been running.
    pub(crate) uptime: Duration,
    pub(crate) news: mpsc::Sender<News>,
}

/// What became of a step.
#[derive(Debug)]
pub(crate) struct Made {
    pub(crate) result: Result<Performed, DeviceError>,
    /// What the guest may have lost with a disk, if that has left.
    pub(crate) loss: Option<String>,
}

/// What a request for a change carries.
#[derive(Debug, Default)]
pub(crate) struct Payload {
    pub(crate) changes: Vec<DeviceChange>,
    pub(crate) due: Due,
    pub(crate) descriptors: VecDeque<OwnedFd>,
    /// What comes, opened to see whether it answers.
    pub(crate) stores: Vec<(StorageAddress, File)>,
    /// Of a command, which may give up.
    pub(crate) peer: Option<Peer>,
}

#[derive(Debug)]
pub(crate) struct Changes {
    pub(crate) ticket: Ticket,
    queue: VecDeque<DeviceChange>,
    due: Due,
    descriptors: VecDeque<OwnedFd>,
    peer: Option<Peer>,
    results: Vec<ChangeResult>,
    /// What has to wait, and why: what needs its place waits with it.
    waits: Vec<(Place, String)>,
    /// The step under way: its number, and where what QEMU tells meanwhile goes.
    under_way: Option<(u64, mpsc::Sender<Happening>)>,
}

impl Changes {
    /// `None`: not as many descriptors came as the changes name media and layers.
    pub(crate) fn new(ticket: Ticket, payload: Payload) -> Option<Changes> {
        let Payload { changes, due, descriptors, peer, .. } = payload;
        let named: usize = changes.iter().map(DeviceChange::descriptors).sum();
        (named == descriptors.len()).then(|| Changes {
            ticket,
            queue: changes.into(),
            due,
            descriptors,
            peer,
            results: Vec::new(),
            waits: Vec::new(),
            under_way: None,
        })
    }

    /// Begins the next step; `false` when there is none left, or whoever asked gave up: he goes back from what was done.
    pub(crate) fn begin_next(&mut self, record: &mut RecordFile, means: Means<'_>) -> bool {
        if self.is_given_up() {
            return false;
        }
        let Some(change) = self.next_to_make(record.machine()) else { return false };
        let Some(client) = means.client.cloned() else {
            self.fail("the guest does not answer".into());
            return false;
        };
        // As the change finds it.
        let machine = record.machine().clone();
        // Before QEMU is asked: whatever happens to us now, the next worker knows what to look for.
        let asked = match machine.asked_before(&change) {
            Some(seq) => Ok(seq),
            None => record.asked_for(self.due, &now(), change.clone()),
        };
        let seq = match asked {
            Ok(seq) => seq,
            Err(error) => {
                self.fail(chain(&error));
                return false;
            }
        };
        let descriptors = self.descriptors.drain(..change.descriptors()).collect();
        let (sender, happenings) = mpsc::channel(HAPPENINGS_WAITING);
        self.under_way = Some((seq, sender));
        let due = self.due;
        let (agent, uptime, news) = (means.agent.cloned(), means.uptime, means.news);
        let step =
            Step { seq, change, due, descriptors, happenings, client, machine, agent, uptime };
        spawn_local(step.run(news));
        true
    }

    /// Whether QEMU may wait for any store of the guest with the next step.
    pub(crate) fn needs_stores(&self) -> bool {
        self.queue.front().is_some_and(DeviceChange::touches_stores)
    }

    /// What has not been brought yet.
    pub(crate) fn media(&self) -> impl Iterator<Item = &Attached> {
        self.queue.iter().flat_map(DeviceChange::media)
    }

    /// Whether none is under way; the next one waits for its stores.
    pub(crate) fn is_between_steps(&self) -> bool {
        self.under_way.is_none()
    }

    /// Passes over what has to wait, and what has left already and was to leave later.
    fn next_to_make(&mut self, machine: &Machine) -> Option<DeviceChange> {
        loop {
            let change = self.queue.pop_front()?;
            if self.due == Due::NextReset && machine.lacks_what_leaves(&change) {
                self.results.push(ChangeResult::Done);
                continue;
            }
            let waits = self.waits.iter().find(|(place, _)| place.is_needed_by(&change));
            let Some((_, reason)) = waits else { return Some(change) };
            let reason = reason.clone();
            if let DeviceChange::DetachAdapter { slot } = change {
                self.waits.push((Place::Slot(slot), reason.clone()));
            }
            self.results.push(ChangeResult::Waits { reason });
            self.descriptors.drain(..change.descriptors());
        }
    }

    fn is_given_up(&mut self) -> bool {
        let peer = self.peer.as_mut();
        peer.is_some_and(|peer| peer.try_recv() == Err(TryRecvError::Closed))
    }

    /// What QEMU tells while a step is under way.
    pub(crate) fn heard(&self, happening: &Happening) {
        if let Some((_, happenings)) = &self.under_way {
            let _ = happenings.try_send(happening.clone());
        }
    }

    pub(crate) fn under_way(&self) -> Option<u64> {
        self.under_way.as_ref().map(|(seq, _)| *seq)
    }

    /// Notes what became of the step. What comes after a failure is not tried.
    pub(crate) fn settle(
        &mut self,
        record: &mut RecordFile,
        seq: u64,
        Made { result, loss }: Made,
    ) {
        self.under_way = None;
        let outcome = match result {
            Ok(Performed::Asked) => {
                if let Some(place) = Place::kept_by(record.machine(), seq) {
                    self.waits.push((place, "what is there has not left yet".into()));
                }
                return self.results.push(ChangeResult::Pending);
            }
            Ok(Performed::Prepared) => return self.results.push(ChangeResult::Pending),
            Ok(Performed::Done | Performed::DoneWhileHeld(_)) => Outcome::Done,
            Err(DeviceError::Waits(reason)) => {
                if let Some(place) = Place::kept_by(record.machine(), seq) {
                    self.waits.push((place, reason.clone()));
                }
                // A record that cannot be written is repaired at the next takeover, to the same.
                let _ = record.settled(&now(), seq, Outcome::Failed(reason.clone()));
                return self.results.push(ChangeResult::Waits { reason });
            }
            Err(error) => Outcome::Failed(chain(&error)),
        };
        // Done or not, the engine is as it is; a record that could not be written is repaired at the next takeover.
        let noted = record.settled(&now(), seq, outcome.clone());
        match (outcome, noted) {
            (Outcome::Done, Ok(())) => self.results.push(match loss {
                None => ChangeResult::Done,
                Some(loss) => ChangeResult::DoneUnasked { loss },
            }),
            (Outcome::Done, Err(error)) => self.fail(chain(&error)),
            (Outcome::Failed(error), _) => self.fail(error),
        }
    }

    pub(crate) fn into_results(mut self) -> Vec<ChangeResult> {
        self.results.extend(self.queue.iter().map(|_| ChangeResult::Skipped));
        self.results
    }

    pub(crate) fn fail(&mut self, error: String) {
        self.results.push(ChangeResult::Failed { error });
        let skipped = self.queue.drain(..).map(|_| ChangeResult::Skipped);
        self.results.extend(skipped);
    }
}

/// Where something is that has not left.
#[derive(Debug)]
enum Place {
    Slot(PciSlot),
    Address(StorageAddress),
}

impl Place {
    /// By a change that is not done.
    fn kept_by(machine: &Machine, seq: u64) -> Option<Place> {
        let pending = machine.pending.iter().find(|pending| pending.seq == seq)?;
        match &pending.change {
            DeviceChange::DetachAdapter { slot } => Some(Place::Slot(*slot)),
            DeviceChange::Detach { address, .. } => Some(Place::Address(*address)),
            _ => None,
        }
    }

    /// What waits to leave an adapter would go with that, and with what the guest has not written.
    fn is_needed_by(&self, change: &DeviceChange) -> bool {
        match (self, change) {
            (Place::Slot(kept), DeviceChange::Attach { slot, .. }) => kept == slot,
            (Place::Address(kept), DeviceChange::Attach { devices, .. }) => {
                devices.iter().any(|comes| comes.device.address == *kept)
            }
            (Place::Address(kept), DeviceChange::DetachAdapter { slot }) => kept.slot == *slot,
            _ => false,
        }
    }
}

/// One change on its way, as a task of its own.
struct Step {
    seq: u64,
    change: DeviceChange,
    due: Due,
    descriptors: VecDeque<OwnedFd>,
    happenings: mpsc::Receiver<Happening>,
    client: Client,
    machine: Machine,
    agent: Option<Agent>,
    uptime: Duration,
}

impl Step {
    async fn run(mut self, news: mpsc::Sender<News>) {
        let made = match self.consent(&news).await {
            Ok(Leave::LetGo) => Made { result: self.make().await, loss: None },
            Ok(Leave::Unasked { loss }) => Made { result: self.make().await, loss: Some(loss) },
            Err(error) => Made { result: Err(error), loss: None },
        };
        let _ = news.send(News::Changed { seq: self.seq, made }).await;
    }

    async fn make(&mut self) -> Result<Performed, DeviceError> {
        let mut bench = Bench::of(&self.client, &self.machine, &mut self.happenings);
        let mut descriptors = self.descriptors.drain(..);
        match self.due {
            Due::Now => bench.perform(self.seq, &self.change, &mut descriptors).await,
            Due::NextReset => bench.prepare(self.seq, &self.change, &mut descriptors).await,
        }
    }

    /// Most changes need none, or whoever planned them has it; at a reset nobody is asked.
    async fn consent(&mut self, news: &mpsc::Sender<News>) -> Result<Leave, DeviceError> {
        let (Due::Now, DeviceChange::Detach { address, consent: record::Consent::OfGuest }) =
            (self.due, &self.change)
        else {
            return Ok(Leave::LetGo);
        };
        let attached = self.machine.device_at(*address);
        if attached.is_some_and(|attached| attached.device.kind == DeviceKind::Dvd) {
            let mut bench = Bench::of(&self.client, &self.machine, &mut self.happenings);
            return bench.unlock(*address).await.map(|()| Leave::LetGo);
        }
        let consent = Consent {
            agent: self.agent.as_ref(),
            client: &self.client,
            machine: &self.machine,
            uptime: self.uptime,
        };
        let (result, agent) = consent.obtain(*address).await;
        if let Some(used) = agent {
            let _ = news.send(News::AgentUsed(used)).await;
        }
        result
    }
}
