//! Copies disks and firmware variables of a running guest as they are at one point in time. Called by the worker, which
//! says when that is.
//!
//! ```text
//!  begin     add-fd, blockdev-add, blockdev-mirror, for each      the guest runs, and what it writes goes to both
//!  look      query-jobs, until each mirror keeps up
//!  end       stop, block-job-cancel for each, query-jobs ─► all are complete ─► job-finalize of the variables, cont,
//!                                                                                job-finalize of each disk
//!  abandon   whatever of it there is, goes
//! ```
//!
//! A mirror is taken and not a backup job: when its target has no room it fails alone, while under a backup job the guest's
//! next write fails and the guest does not go on. The guest stands still from `stop` to `cont`; what each
//! mirror leaves is what its disk was at `stop`. What is between the two is sent at once, and costs QEMU next to nothing for
//! each disk: a complete mirror holds the I/O of its disk, and only when it is told so is it taken out of the way between the
//! two, which takes milliseconds for each. The mirror of the variables is, before `cont`: a guest that writes them waits
//! inside QEMU with all of QEMU, which then would never hear that the mirror is to go. Jobs, nodes and descriptors are found
//! by their names, so that a worker that follows one that was killed in the middle takes away what that left.

use std::os::fd::OwnedFd;
use std::time::Duration;

use hpvm_model::{StorageAddress, StorageType};
use hpvm_plan::command_line::{NVRAM_NODE, Property, device_id};
use hpvm_plan::copying::{
    DiskCopy, NVRAM_COPY, copy_id, is_of_copy, nvram_properties, target_properties,
};
use hpvm_plan::record::{Attached, Machine};
use hpvm_qmp::answer::{BlockNode, Job, JobStatus};
use hpvm_qmp::client::Client;
use hpvm_qmp::command::{
    AddFd, BlockJobCancel, BlockdevAdd, BlockdevDel, BlockdevMirror, Cont, CopyMode, JobDismiss,
    JobFinalize, MirrorSync, QueryBlock, QueryFdsets, QueryJobs, QueryNodes, QueryStatus, RemoveFd,
    Stop,
};
use hpvm_qmp::{Error as QmpError, RunState};
use tokio::time::{Instant, sleep};

use crate::devices::{names, properties};

/// Between two looks at jobs that end within milliseconds.
const LOOK_AGAIN: Duration = Duration::from_millis(1);
/// A mirror that keeps up ends as soon as its target has what the guest wrote last. Longer no guest stands still.
const ENDED: Duration = Duration::from_secs(10);
/// A job that is given up waits for what it has under way.
const ABANDONED: Duration = Duration::from_secs(20);

#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// QEMU alone closes the connection, and only by its end.
    #[error("the guest has ended in the meantime")]
    Ended,
    #[error(transparent)]
    Engine(QmpError),
    #[error("there is no disk at {0} in the running guest")]
    NoDisk(StorageAddress),
    #[error("not as many descriptors came as there is to copy")]
    Descriptors,
    #[error("the copy of {what} failed: {words}")]
    Failed { what: String, words: String },
    #[error("the copy of {0} was ended by somebody else")]
    Gone(String),
    #[error("the copies were not complete within {} s while the guest stood still", .0.as_secs())]
    Slow(Duration),
}

impl From<QmpError> for CopyError {
    fn from(error: QmpError) -> CopyError {
        match error {
            QmpError::Closed => CopyError::Ended,
            other => CopyError::Engine(other),
        }
    }
}

/// How far the copies are, in bytes; the whole grows while the guest writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    pub done: u64,
    pub whole: u64,
    pub stage: Stage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    Copies,
    /// All is copied, and what the guest writes goes to both.
    KeepsUp,
}

/// Copies under way.
#[derive(Debug)]
pub struct Copying<'a> {
    client: &'a Client,
    parts: Vec<Part>,
    targets: Targets,
}

/// What the targets are, if a copy fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Targets {
    AsTheyWere,
    /// QEMU began to write one, or never said that it did not.
    PerhapsWritten,
}

/// Whether the guest is to be held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Runs {
    Yes,
    No,
}

/// What one mirror copies.
#[derive(Clone, Debug)]
struct Part {
    /// Of the job and of the node it writes.
    id: String,
    /// In words.
    what: String,
}

impl<'a> Copying<'a> {
    /// Nothing is copied yet.
    #[must_use]
    pub fn by(client: &'a Client) -> Copying<'a> {
        Copying { client, parts: Vec::new(), targets: Targets::AsTheyWere }
    }

    /// Begins to copy; `descriptors` are those of the disks' targets, in order, then that of the firmware variables'. After
    /// an error, as after the end, [`abandon`] takes away what is there.
    pub async fn begin(
        &mut self,
        machine: &Machine,
        disks: &[DiskCopy],
        descriptors: &mut dyn ExactSizeIterator<Item = OwnedFd>,
    ) -> Result<(), CopyError> {
        if descriptors.len() != disks.len() + 1 {
            return Err(CopyError::Descriptors);
        }
        // What a worker before us could not take away would be in the way.
        abandon(self.client).await?;
        for (copy, descriptor) in disks.iter().zip(&mut *descriptors) {
            self.disk(machine, copy, descriptor).await?;
        }
        let descriptor = descriptors.next().ok_or(CopyError::Descriptors)?;
        let part = Part { id: NVRAM_COPY.into(), what: "the firmware variables".into() };
        let source = (NVRAM_NODE.into(), MirrorSync::Full);
        self.mirror(part, source, descriptor, &nvram_properties).await
    }

    #[must_use]
    pub fn targets(&self) -> Targets {
        self.targets
    }

    async fn disk(
        &mut self,
        machine: &Machine,
        copy: &DiskCopy,
        descriptor: OwnedFd,
    ) -> Result<(), CopyError> {
        let address = copy.address;
        let attached = machine.device_at(address).ok_or(CopyError::NoDisk(address))?;
        let medium = self.medium(address).await?.ok_or(CopyError::NoDisk(address))?;
        let node = medium.node_name.ok_or(CopyError::NoDisk(address))?;
        let bytes = medium.image.virtual_size;
        let part = Part { id: copy_id(address), what: format!("the disk at {address}") };
        let wanted = |fdset| target_properties(attached, copy.target, bytes, fdset);
        self.mirror(part, (node, sync(attached)), descriptor, &wanted).await
    }

    /// What a disk of the guest reads and writes now.
    async fn medium(&self, address: StorageAddress) -> Result<Option<BlockNode>, CopyError> {
        let id = device_id(address);
        let devices = self.client.execute(&QueryBlock {}).await?;
        let device = devices.into_iter().find(|device| names(device.qdev.as_deref(), &id));
        Ok(device.and_then(|device| device.inserted))
    }

    async fn mirror(
        &mut self,
        part: Part,
        (device, sync): (String, MirrorSync),
        descriptor: OwnedFd,
        wanted: &dyn Fn(i64) -> Vec<Property>,
    ) -> Result<(), CopyError> {
        let id = &part.id;
        let add = AddFd { fdset_id: None, opaque: Some(id.clone()) };
        let added = self.client.pass(&add, descriptor).await?;
        let node = BlockdevAdd(properties(&wanted(added.fdset_id)));
        self.client.execute(&node).await?;
        let mirror = BlockdevMirror {
            job_id: id.clone(),
            device,
            target: id.clone(),
            sync,
            copy_mode: CopyMode::WriteBlocking,
            auto_finalize: false,
            auto_dismiss: false,
        };
        let began = self.client.execute(&mirror).await;
        if !matches!(began, Err(QmpError::Refused { .. })) {
            self.targets = Targets::PerhapsWritten;
        }
        began?;
        self.parts.push(part);
        Ok(())
    }

    /// How far they are; an error when one of them failed.
    pub async fn look(&self) -> Result<Progress, CopyError> {
        let jobs = self.jobs().await?;
        if let Some(ended) = jobs.iter().find(|job| job.status == JobStatus::Concluded) {
            return Err(self.failed(ended));
        }
        let keeps_up = jobs.iter().all(|job| job.status == JobStatus::Ready);
        Ok(Progress {
            done: jobs.iter().map(|job| job.current_progress).sum(),
            whole: jobs.iter().map(|job| job.total_progress).sum(),
            stage: if keeps_up { Stage::KeepsUp } else { Stage::Copies },
        })
    }

    /// Makes the copies what disks and variables are now. The guest stands still meanwhile, if it runs; for how long, is told.
    pub async fn end(&self) -> Result<Duration, CopyError> {
        let runs = match self.client.execute(&QueryStatus {}).await?.status {
            RunState::Running => Runs::Yes,
            _ => Runs::No,
        };
        let began = Instant::now();
        let complete = self.complete(runs).await;
        let (variables, disks): (Vec<&Part>, Vec<&Part>) =
            self.parts.iter().partition(|part| part.id == NVRAM_COPY);
        let mut leaves = Vec::new();
        match complete {
            Ok(()) => {
                for Part { id, .. } in variables {
                    leaves.push(self.client.send(&JobFinalize { id: id.clone() }).await);
                }
            }
            Err(_) => give_up_variables(self.client).await,
        }
        let cont = match runs {
            // Also after a stop that was not answered: it may have happened.
            Runs::Yes => Some(self.client.send(&Cont {}).await?),
            Runs::No => None,
        };
        // In the same breath: each holds the I/O of its disk until it may end.
        for Part { id, .. } in disks.into_iter().filter(|_| complete.is_ok()) {
            leaves.push(self.client.send(&JobFinalize { id: id.clone() }).await);
        }
        if let Some(cont) = cont {
            cont.answer().await?;
        }
        let held = began.elapsed();
        complete?;
        for leave in leaves {
            leave?.answer().await?;
        }
        self.until_each(&JobStatus::Concluded, self.jobs().await?).await?;
        Ok(held)
    }

    /// Has each mirror complete what it copies. The guest, if it runs, is stopped before.
    async fn complete(&self, runs: Runs) -> Result<(), CopyError> {
        let stop = match runs {
            Runs::Yes => Some(self.client.send(&Stop {}).await?),
            Runs::No => None,
        };
        let mut cancels = Vec::new();
        for Part { id, .. } in &self.parts {
            let cancel = BlockJobCancel { device: id.clone(), force: false };
            cancels.push(self.client.send(&cancel).await?);
        }
        let jobs = self.client.send(&QueryJobs {}).await?;
        if let Some(stop) = stop {
            stop.answer().await?;
        }
        for cancel in cancels {
            cancel.answer().await?;
        }
        self.until_each(&JobStatus::Pending, self.ours(&jobs.answer().await?)?).await
    }

    /// Waits until the jobs, which are `jobs` now, are all as wanted.
    async fn until_each(&self, wanted: &JobStatus, mut jobs: Vec<Job>) -> Result<(), CopyError> {
        let until = Instant::now() + ENDED;
        loop {
            if let Some(job) = jobs.iter().find(|job| job.error.is_some()) {
                return Err(self.failed(job));
            }
            if jobs.iter().all(|job| job.status == *wanted) {
                return Ok(());
            }
            if Instant::now() >= until {
                return Err(CopyError::Slow(ENDED));
            }
            sleep(LOOK_AGAIN).await;
            jobs = self.jobs().await?;
        }
    }

    /// All our jobs, each of which must be there until we dismiss it.
    async fn jobs(&self) -> Result<Vec<Job>, CopyError> {
        self.ours(&self.client.execute(&QueryJobs {}).await?)
    }

    fn ours(&self, jobs: &[Job]) -> Result<Vec<Job>, CopyError> {
        let ours = self.parts.iter().map(|part| {
            let job = jobs.iter().find(|job| job.id == part.id);
            job.cloned().ok_or_else(|| CopyError::Gone(part.what.clone()))
        });
        ours.collect()
    }

    fn failed(&self, job: &Job) -> CopyError {
        let part = self.parts.iter().find(|part| part.id == job.id);
        let what = part.map(|part| part.what.clone()).unwrap_or_default();
        let words = job.error.clone().unwrap_or_else(|| "it ended before its time".into());
        CopyError::Failed { what, words }
    }
}

/// An image over layers is copied without them, which its copy has under it too.
fn sync(attached: &Attached) -> MirrorSync {
    match attached.device.backing.storage == StorageType::Qcow2 && !attached.layers.is_empty() {
        true => MirrorSync::Top,
        false => MirrorSync::Full,
    }
}

/// Whether there was anything to take away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Left {
    Something,
    Nothing,
}

impl Left {
    fn note(&mut self, is_there: bool) {
        if is_there {
            *self = Left::Something;
        }
    }
}

/// Ends all copies as they are and takes away what was made for them in the engine. Does no harm where there is nothing.
pub async fn abandon(client: &Client) -> Result<(), QmpError> {
    abandon_seen(client, &mut Left::Nothing).await
}

async fn abandon_seen(client: &Client, seen: &mut Left) -> Result<(), QmpError> {
    end_all(client, seen).await?;
    let nodes = client.execute(&QueryNodes { flat: true }).await?;
    let nodes: Vec<String> =
        nodes.into_iter().filter_map(|node| node.node_name).filter(|n| is_of_copy(n)).collect();
    seen.note(!nodes.is_empty());
    for node_name in nodes {
        client.execute(&BlockdevDel { node_name }).await?;
    }
    for set in client.execute(&QueryFdsets {}).await? {
        if set.fds.iter().any(|fd| fd.opaque.as_deref().is_some_and(is_of_copy)) {
            client.execute(&RemoveFd { fdset_id: set.fdset_id }).await?;
        }
    }
    Ok(())
}

async fn end_all(client: &Client, seen: &mut Left) -> Result<(), QmpError> {
    let until = Instant::now() + ABANDONED;
    let mut asked: Vec<String> = Vec::new();
    loop {
        let jobs = client.execute(&QueryJobs {}).await?;
        let ours: Vec<Job> = jobs.into_iter().filter(|job| is_of_copy(&job.id)).collect();
        seen.note(!ours.is_empty());
        let still = ours.iter().filter(|job| job.status != JobStatus::Concluded);
        let still: Vec<String> = still.map(|job| job.id.clone()).collect();
        if still.is_empty() || Instant::now() >= until {
            for job in &ours {
                client.execute(&JobDismiss { id: job.id.clone() }).await?;
            }
            return Ok(());
        }
        for id in still.into_iter().filter(|id| !asked.contains(id)).collect::<Vec<_>>() {
            // It may have ended since.
            let _ = client.execute(&BlockJobCancel { device: id.clone(), force: true }).await;
            asked.push(id);
        }
        sleep(LOOK_AGAIN).await;
    }
}

/// Lets a guest go on that a worker before us held for a copy, and takes the copy away. What was seen of one is told also when
/// not all of it could be taken away.
pub async fn take_back(client: &Client) -> (Left, Result<(), QmpError>) {
    let mut seen = Left::Nothing;
    let taken = take_back_seen(client, &mut seen).await;
    (seen, taken)
}

async fn take_back_seen(client: &Client, seen: &mut Left) -> Result<(), QmpError> {
    let jobs = client.execute(&QueryJobs {}).await?;
    let has_copy = jobs.iter().any(|job| is_of_copy(&job.id));
    seen.note(has_copy);
    let is_held = client.execute(&QueryStatus {}).await?.status == RunState::Paused;
    if is_held && has_copy {
        give_up_variables(client).await;
        client.execute(&Cont {}).await?;
    }
    abandon_seen(client, seen).await
}

/// Has the mirror of the variables hold nothing any more, if there is one, before the guest goes on.
async fn give_up_variables(client: &Client) {
    let cancel = BlockJobCancel { device: NVRAM_COPY.into(), force: true };
    // Refused where there is none, or where it has ended.
    let _ = client.execute(&cancel).await;
}
