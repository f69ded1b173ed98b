//! One change of devices under way: its journal lines, its steps in order, its results. Called by the owner; what is done
//! with QEMU runs beside it as a task.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use hpvm_app::protocol::{ChangeResult, media};
use hpvm_engine::devices::{Bench, DeviceError, Performed};
use hpvm_engine::record_file::RecordFile;
use hpvm_model::chain;
use hpvm_plan::record::{BootRecord, DeviceChange, Outcome};
use hpvm_qmp::Happening;
use hpvm_qmp::client::Client;
use tokio::sync::mpsc;
use tokio::task::spawn_local;

use crate::guest_log::now;
use crate::machine::Ticket;
use crate::monitor::News;

/// Happenings that a step has not looked at yet. Those it waits for come after it asked.
const HAPPENINGS_WAITING: usize = 64;

#[derive(Debug)]
pub(crate) struct Changes {
    pub(crate) ticket: Ticket,
    queue: VecDeque<DeviceChange>,
    descriptors: VecDeque<OwnedFd>,
    results: Vec<ChangeResult>,
    /// The step under way: its number, and where what QEMU tells meanwhile goes.
    under_way: Option<(u64, mpsc::Sender<Happening>)>,
}

impl Changes {
    /// `None`: not as many descriptors came as the changes name media.
    pub(crate) fn new(
        ticket: Ticket,
        changes: Vec<DeviceChange>,
        descriptors: VecDeque<OwnedFd>,
    ) -> Option<Changes> {
        (media(&changes).len() == descriptors.len()).then(|| Changes {
            ticket,
            queue: changes.into(),
            descriptors,
            results: Vec::new(),
            under_way: None,
        })
    }

    /// Begins the next step; `false` when there is none left.
    pub(crate) fn begin_next(
        &mut self,
        record: &mut RecordFile,
        client: Option<&Client>,
        base: &Rc<BootRecord>,
        news: mpsc::Sender<News>,
    ) -> bool {
        let Some(change) = self.queue.pop_front() else { return false };
        let Some(client) = client.cloned() else {
            self.fail("the guest does not answer".into());
            return false;
        };
        // Before QEMU is asked: whatever happens to us now, the next worker knows what to look for.
        let seq = match record.asked(&now(), change.clone()) {
            Ok(seq) => seq,
            Err(error) => {
                self.fail(chain(&error));
                return false;
            }
        };
        let count = media(std::slice::from_ref(&change)).len();
        let mut descriptors: VecDeque<OwnedFd> = self.descriptors.drain(..count).collect();
        let (sender, mut happenings) = mpsc::channel(HAPPENINGS_WAITING);
        self.under_way = Some((seq, sender));
        let base = Rc::clone(base);
        spawn_local(async move {
            let mut bench = Bench { client: &client, record: &base, happenings: &mut happenings };
            let result = bench.perform(seq, &change, &mut descriptors.drain(..)).await;
            let _ = news.send(News::Changed { seq, result }).await;
        });
        true
    }

    /// What QEMU tells while a step is under way.
    pub(crate) fn heard(&self, happening: &Happening) {
        if let Some((_, happenings)) = &self.under_way {
            let _ = happenings.try_send(happening.clone());
        }
    }

    pub(crate) fn is_under_way(&self, seq: u64) -> bool {
        self.under_way.as_ref().is_some_and(|(number, _)| *number == seq)
    }

    /// Notes what became of the step. What comes after a failure is not tried.
    pub(crate) fn settle(
        &mut self,
        record: &mut RecordFile,
        seq: u64,
        result: Result<Performed, DeviceError>,
    ) {
        self.under_way = None;
        let outcome = match result {
            Ok(Performed::Asked) => return self.results.push(ChangeResult::Pending),
            Ok(Performed::Done) => Outcome::Done,
            Err(error) => Outcome::Failed(chain(&error)),
        };
        // Done or not, the engine is as it is; a record that could not be written is repaired at the next takeover.
        let noted = record.settled(&now(), seq, outcome.clone());
        match (outcome, noted) {
            (Outcome::Done, Ok(())) => self.results.push(ChangeResult::Done),
            (Outcome::Done, Err(error)) => self.fail(chain(&error)),
            (Outcome::Failed(error), _) => self.fail(error),
        }
    }

    pub(crate) fn into_results(mut self) -> Vec<ChangeResult> {
        self.results.extend(self.queue.iter().map(|_| ChangeResult::Skipped));
        self.results
    }

    fn fail(&mut self, error: String) {
        self.results.push(ChangeResult::Failed { error });
        let skipped = self.queue.drain(..).map(|_| ChangeResult::Skipped);
        self.results.extend(skipped);
    }
}
