//! The keeper at work: waits for ends and messages, and decides who is started again.

use std::io;

use crate::description::Description;
use crate::engine::Engine;
use crate::kept::Kept;
use crate::link::{ENGINE_PIDFD, FromWorker, LINK, ToWorker};
use crate::log::{Log, push_ending};
use crate::program::{Mapping, Program};
use crate::restarts::{Next, Restarts};
use crate::sys::{
    Fd, POLLIN, Pid, Received, Room, Wanted, close_fd, drain, ended_child, link, now_ms,
    receive_message, send_descriptor, send_message, settle, wait_for,
};

pub(crate) struct Supervisor {
    engine: Engine,
    worker: Worker,
    /// A worker said that all is written.
    finished: bool,
    /// QEMU is gone, and no worker lives to write down how it ended.
    hopeless: bool,
    app: Program,
    /// What a worker gets besides its own: the link at the front, the engine's pidfd, and once what only the first one gets.
    app_more: Vec<Mapping>,
    /// How many of these every worker gets.
    lasting: usize,
    restarts: Restarts,
    children: Fd,
    oom_kills: u64,
    kept: Kept,
    log: Log,
}

enum Worker {
    Runs { pid: Pid, link: Option<Fd>, since_ms: u64 },
    Waits { until_ms: u64 },
}

impl Supervisor {
    /// Starts QEMU, or takes over the one that runs.
    pub(crate) fn begin(description: Description) -> io::Result<Supervisor> {
        let children = settle()?;
        let oom_kills = oom_kills().unwrap_or(u64::MAX);
        let engine = Engine::begin(&description)?;
        let mut app_more = vec![Mapping { ours: -1, theirs: LINK }];
        app_more.extend(engine.pidfd.map(|ours| Mapping { ours, theirs: ENGINE_PIDFD }));
        let lasting = app_more.len();
        app_more.extend(&description.app_once);
        Ok(Supervisor {
            engine,
            worker: Worker::Waits { until_ms: 0 },
            finished: false,
            hopeless: false,
            app: description.app,
            app_more,
            lasting,
            restarts: Restarts::default(),
            children,
            oom_kills,
            kept: Kept::new(description.kept),
            log: Log(description.log),
        })
    }

    /// Until QEMU is gone and a worker has written everything, or none lives to.
    pub(crate) fn run(mut self) -> io::Result<()> {
        loop {
            self.collect();
            if self.finished && self.engine.is_over() {
                let last = match self.engine.exists() {
                    true => "the guest has ended; so does its keeper",
                    false => "the worker has done its work; its keeper ends",
                };
                self.log.say(|line| line.push(last));
                return Ok(());
            }
            if self.hopeless {
                self.log.say(|line| {
                    line.push("no worker lives to write down how the guest ended; its keeper ends");
                });
                return Ok(());
            }
            self.start_worker_if_due();
            self.wait()?;
            self.listen();
        }
    }

    /// Takes note of all that ended. Messages were read before, so a worker's last word counts although it has ended.
    fn collect(&mut self) {
        drain(self.children);
        let mut engine_ended = self.engine.look();
        let mut worker_ended = None;
        while let Some((pid, status)) = ended_child() {
            engine_ended |= self.engine.child_ended(pid, status);
            if matches!(self.worker, Worker::Runs { pid: ours, .. } if ours == pid) {
                worker_ended = Some(status);
            }
        }
        if let Some(status) = worker_ended {
            self.listen();
            self.worker_ended(status);
        }
        if engine_ended {
            self.tell_end();
            // However often it failed before: one that lives now writes down how QEMU ended.
            if let Worker::Waits { .. } = self.worker {
                self.worker = Worker::Waits { until_ms: now_ms() };
            }
        }
    }

    /// When a worker that lived so long, or none, is followed by the next. With QEMU gone the lock would only say that the guest
    /// runs: there is nothing to wait for.
    fn next(&mut self, lived_ms: u64) -> Next {
        let next = self.restarts.ended(lived_ms);
        self.hopeless |= matches!(next, Next::GivingUpFor(_)) && self.engine.status().is_some();
        next
    }

    fn worker_ended(&mut self, status: u32) {
        let Worker::Runs { pid, link, since_ms } = self.worker else { return };
        if let Some(link) = link {
            close_fd(link);
        }
        let now = now_ms();
        self.worker = Worker::Waits { until_ms: now };
        if self.finished && self.engine.is_over() {
            return;
        }
        self.finished = false;
        let next = self.next(now.saturating_sub(since_ms));
        let (Next::After(pause_ms) | Next::GivingUpFor(pause_ms)) = next;
        self.worker = Worker::Waits { until_ms: now + pause_ms };
        self.log.say(|line| {
            line.push("the worker, process ");
            line.push_number(u64::from(pid.unsigned_abs()));
            line.push(", ");
            push_ending(line, status);
            match next {
                _ if self.hopeless => line.push(" as often before"),
                Next::After(_) => line.push("; starting it again"),
                Next::GivingUpFor(_) => {
                    line.push(match self.engine.exists() {
                        true => " as often before; the guest runs unsupervised, next attempt in ",
                        false => " as often before; the switch stands still, next attempt in ",
                    });
                    line.push_number(pause_ms / 1_000);
                    line.push(" s");
                }
            }
        });
    }

    fn start_worker_if_due(&mut self) {
        let Worker::Waits { until_ms } = self.worker else { return };
        if until_ms > now_ms() {
            return;
        }
        let since_ms = now_ms();
        match self.start_worker() {
            Ok((pid, link)) => {
                self.worker = Worker::Runs { pid, link: Some(link), since_ms };
                if self.engine.exists() {
                    let is_child = self.engine.is_child();
                    self.tell(ToWorker::Engine { pid: self.engine.pid, is_child });
                    self.tell_end();
                }
                self.hand_over();
            }
            Err(error) => {
                let (Next::After(pause_ms) | Next::GivingUpFor(pause_ms)) = self.next(0);
                self.worker = Worker::Waits { until_ms: since_ms + pause_ms };
                self.log.say(|line| {
                    line.push("no worker can be started: error ");
                    line.push_number(u64::from(error.raw_os_error().unwrap_or(0).unsigned_abs()));
                });
            }
        }
    }

    fn start_worker(&mut self) -> io::Result<(Pid, Fd)> {
        let (ours, theirs) = link()?;
        self.app_more[0].ours = theirs;
        let started = self.app.run(&self.app_more);
        close_fd(theirs);
        if started.is_err() {
            close_fd(ours);
        }
        let pid = started?;
        self.app_more.drain(self.lasting..).for_each(|one| close_fd(one.ours));
        Ok((pid, ours))
    }

    fn wait(&mut self) -> io::Result<()> {
        let (link, timeout_ms) = match self.worker {
            Worker::Runs { link, .. } => (link, -1),
            Worker::Waits { until_ms } => {
                let left = until_ms.saturating_sub(now_ms());
                // One more, since the clock's milliseconds are cut off.
                (None, i32::try_from(left + 1).unwrap_or(i32::MAX))
            }
        };
        // The kernel passes over a descriptor of -1.
        let watch = |fd: Option<Fd>| Wanted { fd: fd.unwrap_or(-1), events: POLLIN, happened: 0 };
        let mut wanted = [watch(Some(self.children)), watch(link), watch(self.engine.watched())];
        wait_for(&mut wanted, timeout_ms)
    }

    /// Reads what the worker says.
    fn listen(&mut self) {
        while let Worker::Runs { link: Some(link), pid, since_ms } = self.worker {
            match receive_message(link) {
                Received::Message(bytes, fd) => self.heed(FromWorker::read(bytes), fd),
                Received::Nothing => return,
                Received::Closed => {
                    close_fd(link);
                    self.worker = Worker::Runs { pid, link: None, since_ms };
                }
            }
        }
    }

    fn heed(&mut self, message: Option<FromWorker>, fd: Option<Fd>) {
        match (message, fd) {
            (Some(FromWorker::Keep { tag }), Some(fd)) => return self.kept.keep(tag, fd),
            // Nobody asked for it to be kept.
            (_, Some(fd)) => close_fd(fd),
            (_, None) => {}
        }
        match message {
            Some(FromWorker::Finished) => self.finished = true,
            Some(FromWorker::Kill) => self.engine.kill(),
            Some(FromWorker::Release { tag }) => self.kept.release(tag),
            Some(FromWorker::Keep { .. }) | None => {}
        }
    }

    /// Gives a worker what is kept for it, in packets. Beside QEMU nobody is waited for: a worker goes without what its link has
    /// no room for.
    fn hand_over(&self) {
        let Worker::Runs { link: Some(link), .. } = self.worker else { return };
        let room = if self.engine.exists() { Room::Now } else { Room::AwaitedFor };
        for (tag, fd) in self.kept.iter() {
            send_descriptor(link, &ToWorker::Kept { tag }.bytes(), fd, room);
        }
        self.tell(ToWorker::AllKept);
    }

    /// Tells the worker how QEMU ended, if it has.
    fn tell_end(&self) {
        if let Some(status) = self.engine.status() {
            self.tell(ToWorker::Exited { status, oom_kills: self.oom_kills });
        }
    }

    fn tell(&self, message: ToWorker) {
        if let Worker::Runs { link: Some(link), .. } = self.worker {
            send_message(link, &message.bytes());
        }
    }
}

/// How many processes the kernel has killed for want of memory, as a worker compares it when QEMU was killed.
fn oom_kills() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/vmstat").ok()?;
    text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.parse().ok())
}
