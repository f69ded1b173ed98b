//! Mirrors: copies of nodes that keep up with a guest that writes nothing, and end when they are told to.

use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::fs::fstat;
use rustix::io::{pread, pwrite};
use serde_json::{Value, json};

use super::{Answer, Arguments, Later, Machine, Refusal, done};

const PIECE_BYTES: usize = 1 << 20;

#[derive(Debug)]
pub(super) struct Job {
    id: String,
    /// The nodes it has.
    source: String,
    target: String,
    bytes: u64,
    state: State,
    ends_without_leave: bool,
    error: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Running,
    Ready,
    Pending,
    Concluded,
}

impl Machine {
    /// Whether a mirror reads this node. One that has ended has no node any more.
    pub(super) fn mirrors(&self, node: &str) -> bool {
        self.live_jobs().any(|job| job.source == node)
    }

    pub(super) fn is_written_by_mirror(&self, node: &str) -> bool {
        self.live_jobs().any(|job| job.target == node)
    }

    fn live_jobs(&self) -> impl Iterator<Item = &Job> {
        self.jobs.iter().filter(|job| job.state != State::Concluded)
    }

    pub(super) fn mirror(&mut self, arguments: &Arguments) -> Answer {
        let id = arguments.text("job-id")?.to_owned();
        let (source, target) = (arguments.text("device")?, arguments.text("target")?);
        for name in [source, target] {
            if self.node(name).is_none() {
                let text = format!("Cannot find device='{name}' nor node-name='{name}'");
                return Err(Refusal::generic(text));
            }
        }
        if self.mirrors(source) {
            // The job's filter stands between it and the guest.
            return Err(Refusal::generic("Need a root block node"));
        }
        if self.jobs.iter().any(|job| job.id == id) {
            return Err(Refusal::generic(format!("Job ID '{id}' already in use")));
        }
        let (source, target) = (source.to_owned(), target.to_owned());
        let ends_without_leave = arguments.0.get("auto-finalize") != Some(&Value::Bool(false));
        let job = Job {
            id: id.clone(),
            source,
            target,
            bytes: 0,
            state: State::Running,
            ends_without_leave,
            error: None,
        };
        self.jobs.push(job);
        match self.behaviour.mirror {
            Duration::ZERO => self.mirrored(&id),
            delay => self.after(delay, Later::Mirrored { id }),
        }
        done()
    }

    /// A mirror has copied all.
    pub(super) fn mirrored(&mut self, id: &str) {
        let Some(place) = self.jobs.iter().position(|job| job.id == id) else { return };
        let job = &self.jobs[place];
        let file = |name: &str| self.node(name).and_then(|node| self.file_of(node));
        let copied = match (file(&job.source), file(&job.target)) {
            (Some(source), Some(target)) => copy(source, target),
            _ => Err(rustix::io::Errno::BADF),
        };
        let job = &mut self.jobs[place];
        if job.state != State::Running {
            return;
        }
        match copied {
            Ok(bytes) => (job.bytes, job.state) = (bytes, State::Ready),
            Err(error) => {
                job.error = Some(std::io::Error::from(error).to_string());
                job.state = State::Concluded;
            }
        }
    }

    pub(super) fn cancel_job(&mut self, arguments: &Arguments) -> Answer {
        let id = arguments.text("device")?;
        let forced = arguments.0.get("force") == Some(&Value::Bool(true));
        let live = |job: &&mut Job| job.id == id && job.state != State::Concluded;
        let Some(job) = self.jobs.iter_mut().find(live) else {
            let text = format!("Block job '{id}' not found");
            return Err(Refusal { class: "DeviceNotActive", text });
        };
        if forced || job.state == State::Running {
            job.error = Some("Operation canceled".into());
        }
        let waits = job.state == State::Ready && !job.ends_without_leave && !forced;
        if !waits {
            job.state = State::Concluded;
            return done();
        }
        let id = job.id.clone();
        match self.behaviour.complete {
            Duration::ZERO => self.completed(&id),
            delay => self.after(delay, Later::Completed { id }),
        }
        done()
    }

    /// A mirror that was told to complete has done so.
    pub(super) fn completed(&mut self, id: &str) {
        let ready = |job: &&mut Job| job.id == id && job.state == State::Ready;
        if let Some(job) = self.jobs.iter_mut().find(ready) {
            job.state = State::Pending;
        }
    }

    pub(super) fn finalize_job(&mut self, arguments: &Arguments) -> Answer {
        let id = arguments.text("id")?;
        match self.jobs.iter_mut().find(|job| job.id == id) {
            None => Err(Refusal::generic("Job not found")),
            Some(job) if job.state == State::Pending => {
                job.state = State::Concluded;
                done()
            }
            Some(job) => Err(refused(job, "finalize")),
        }
    }

    pub(super) fn dismiss_job(&mut self, arguments: &Arguments) -> Answer {
        let id = arguments.text("id")?;
        match self.jobs.iter().find(|job| job.id == id) {
            None => Err(Refusal::generic("Job not found")),
            Some(job) if job.state == State::Concluded => {
                self.jobs.retain(|job| job.id != id);
                done()
            }
            Some(job) => Err(refused(job, "dismiss")),
        }
    }

    pub(super) fn query_jobs(&self) -> Value {
        let shown = self.jobs.iter().rev().map(|job| {
            let whole = job.bytes.max(1);
            let mut shown = json!({
                "current-progress": job.bytes, "total-progress": whole, "type": "mirror",
                "id": job.id, "status": word(job.state),
            });
            if let Some(error) = &job.error {
                shown["error"] = error.as_str().into();
            }
            shown
        });
        shown.collect()
    }
}

fn refused(job: &Job, verb: &str) -> Refusal {
    let (id, state) = (&job.id, word(job.state));
    Refusal::generic(format!("Job '{id}' in state '{state}' cannot accept command verb '{verb}'"))
}

fn word(state: State) -> &'static str {
    match state {
        State::Running => "running",
        State::Ready => "ready",
        State::Pending => "pending",
        State::Concluded => "concluded",
    }
}

fn copy(source: &OwnedFd, target: &OwnedFd) -> rustix::io::Result<u64> {
    let size = u64::try_from(fstat(source)?.st_size).unwrap_or_default();
    let mut piece = vec![0; PIECE_BYTES + 4096];
    // Descriptors may be for writing past the page cache.
    let skip = piece.as_ptr().align_offset(4096);
    let piece = &mut piece[skip..skip + PIECE_BYTES];
    let mut at = 0;
    while at < size {
        let count = pread(source, &mut *piece, at)?;
        if count == 0 {
            break;
        }
        let whole = count.next_multiple_of(4096);
        piece[count..whole].fill(0);
        pwrite(target, &piece[..whole], at)?;
        at += count as u64;
    }
    Ok(size)
}
