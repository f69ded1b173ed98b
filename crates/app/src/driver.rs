//! The one owner of a running guest: feeds the machine with what happens and performs what it decides.
//!
//! Everything comes to one loop: messages of the keeper, answers and events of QEMU, requests of commands and console
//! sessions, time. Nothing in the loop waits for QEMU; what does runs as a task and comes back as news.

mod agent;
mod copying;
mod crash;
mod links;
mod media;
mod perform;
mod stores;
mod takeover;

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use hpvm_app::protocol::{Denial, Reply, Request, StopHow};
use hpvm_app::snapshot::{self, Crash, Phase, Process, SilentStore, Snapshot};
use hpvm_console::door::{DriveAddress, PowerRequest};
use hpvm_console::fanout::{SessionId, VerbAsked};
use hpvm_host::confine::{ConfineError, Confinement, Enforced};
use hpvm_host::process::{self, PidFd};
use hpvm_model::{DeviceKind, StorageDevice};
use hpvm_plan::command_line::AGENT_PORT;
use hpvm_plan::record::{AgentChannel, Consent, DeviceChange};
use hpvm_qmp::Happening;
use hpvm_qmp::client::{Events, Notice};
use hpvm_qmp::command::{QueryStatus, ReadRegisters};
use tokio::net::UnixListener;
use tokio::sync::mpsc;
use tokio::task::spawn_local;
use tokio::time::{Instant, sleep_until};

use crate::agent::Agent;
use crate::agent::watch::Watch;
use crate::changes::Changes;
use crate::console::Console;
use crate::console_log::ConsoleLog;
use crate::control::{self, Asked};
use crate::copying::Wanted;
use crate::descriptors::{Descriptors, Missing};
use crate::guest_log::{GuestLog, now};
use crate::image_folders::ImageFolders;
use crate::link::{FromKeeper, Link, ToKeeper};
use crate::machine::{Action, Ask, Input, Machine, Origin, Ticket};
use crate::monitor::{Monitor, News, next_notice};
use crate::publisher::Publisher;
use crate::recorded::Recorded;
use crate::store_watch::StoreWatch;
use crate::successor;

pub(crate) use media::OpenedImage;

/// The heartbeat, and the question whether QEMU still answers.
const BEAT: Duration = Duration::from_secs(1);
/// A question unanswered for so long means that QEMU hangs.
const SILENCE: Duration = Duration::from_secs(2);
/// A QEMU that comes up may take longer for its first word.
const FIRST_WORD: Duration = Duration::from_secs(10);
/// What costs more than a beat is done every so many beats.
const BEATS_PER_CARE: u64 = 10;
/// A keeper on a host that is short of everything may need a moment to tell that QEMU has ended, and how.
const BEATS_UNTOLD_MAX: u32 = 3;
/// Trouble that lasts is told once in so long: a disk that fails does so thousands of times a minute.
const TROUBLE_APART: Duration = Duration::from_secs(10);
/// Who runs in the guest is looked at every second at first, later every so many.
const OCCUPANT_BEATS_MAX: u64 = 10;
const MESSAGES_WAITING: usize = 16;

/// Why a worker cannot begin its work. The keeper tries again.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error("the event loop cannot be made")]
    Runtime(#[source] io::Error),
    #[error(transparent)]
    Descriptors(#[from] Missing),
    #[error("the descriptors from the keeper cannot be used")]
    Sockets(#[source] io::Error),
    #[error("another worker looks after this guest")]
    Locked,
    #[error("the keeper is gone before it said which QEMU it keeps")]
    NoKeeper,
    #[error(transparent)]
    Confine(#[from] ConfineError),
}

/// Where replies to a ticket go.
enum Asker {
    Control(mpsc::Sender<Reply>),
    Session(SessionId),
}

/// What a request for a change carries.
type Payload = (Vec<DeviceChange>, VecDeque<OwnedFd>);

struct Driver {
    machine: Machine,
    began: Instant,
    link: Link,
    keeper: Keeper,
    monitor: Monitor,
    publisher: Publisher,
    log: GuestLog,
    recorded: Recorded,
    qemu: Process,
    /// `None` when it had ended before its keeper came.
    qemu_held: Option<PidFd>,
    console: Console,
    /// `None`: the machine has no channel for one.
    agent: Option<Agent>,
    agent_watch: Watch,
    console_log: Rc<ConsoleLog>,
    image_folders: ImageFolders,
    store_watch: StoreWatch,
    silent_stores: Vec<SilentStore>,
    qemu_log: File,
    ready: Option<File>,
    shown: Shown,
    askers: HashMap<Ticket, Asker>,
    /// Connections on which the last word is on its way.
    answered: Vec<mpsc::Sender<Reply>>,
    payloads: HashMap<Ticket, Payload>,
    changes: Option<Changes>,
    copies: HashMap<Ticket, Wanted>,
    links: links::Links,
    next_ticket: u64,
    beats: u64,
    /// When the state was asked for; cleared by the answer.
    asked_at: Option<Instant>,
    occupant_due: u64,
    occupant_pause: u64,
    oom_kills: u64,
    /// For so many beats QEMU has ended and its keeper has not said so.
    beats_untold: u32,
    trouble_told_at: Option<Instant>,
    /// The last trouble, for the snapshot.
    trouble: Option<String>,
    /// A worker before us may have left things half done.
    takes_over: bool,
    finished: bool,
}

/// What the snapshot said last, besides what the machine knows.
struct Shown {
    boot_id: String,
    phase: Phase,
    since: String,
    unresponsive_since: Option<String>,
    adoptions: u32,
}

/// What a worker before us left, from which this one goes on.
struct Before {
    snapshot: Option<Snapshot>,
    /// The one that hpvmstart waits for: nobody was before it.
    is_first: bool,
}

impl Before {
    fn origin(&self) -> Origin {
        match self.is_first {
            true => Origin::Start,
            false => Origin::Adoption {
                phase: self.snapshot.as_ref().map(|snapshot| snapshot.phase.clone()),
                decided: self.snapshot.as_ref().and_then(|snapshot| snapshot.decided.clone()),
            },
        }
    }

    fn agent(&self, channel: AgentChannel) -> snapshot::Agent {
        match (channel, &self.snapshot) {
            (AgentChannel::Absent, _) => snapshot::Agent::NoChannel,
            (AgentChannel::Present, Some(Snapshot { agent, .. })) if !self.is_first => {
                agent.clone()
            }
            (AgentChannel::Present, _) => snapshot::Agent::Absent,
        }
    }

    fn shown(&self, boot_id: String) -> Shown {
        let before = self.snapshot.as_ref();
        Shown {
            boot_id,
            phase: before.map_or(Phase::Starting, |snapshot| snapshot.phase.clone()),
            since: before.map_or_else(now, |snapshot| snapshot.since.clone()),
            unresponsive_since: None,
            adoptions: before.map_or(0, |s| s.adoptions) + u32::from(!self.is_first),
        }
    }
}

/// What is needed to start the next keeper.
struct Keeper {
    lives: bool,
    program: Option<PathBuf>,
    /// What `program` may lead through.
    _held: Option<OwnedFd>,
    launch: OwnedFd,
}

/// What comes from other tasks.
struct Inbox {
    news: mpsc::Receiver<News>,
    requests: mpsc::Receiver<Asked>,
    verbs: mpsc::Receiver<VerbAsked>,
    events: Option<Events>,
}

/// The whole work of a worker.
pub(crate) async fn work(descriptors: Descriptors) -> Result<(), Failure> {
    let lock = successor::take_worker_lock(&descriptors.run_folder).await;
    let Some(_lock) = lock.map_err(Failure::Sockets)? else { return Err(Failure::Locked) };
    let link = Link::new(descriptors.link.try_clone().map_err(Failure::Sockets)?);
    let link = link.map_err(Failure::Sockets)?;
    let (pid, is_child) = loop {
        match link.receive().await {
            Some(FromKeeper::Engine { pid, is_child }) => break (pid, is_child),
            Some(FromKeeper::Exited { .. }) => {}
            None => return Err(Failure::NoKeeper),
        }
    };
    let (mut driver, inbox) = Driver::new(descriptors, link, pid, is_child)?;
    driver.confine()?;
    driver.run(inbox).await;
    Ok(())
}

/// What a worker still opens by path, and the worker after it: the count of processes killed for memory, the name of this
/// boot of the host, and users' names.
const READABLE: &[&str] = &["/proc/vmstat", "/proc/sys/kernel/random/boot_id", "/etc/passwd"];

/// What names QEMU for this boot of the host. A worker that a confined keeper started sees nothing of it in /proc, and knows
/// its start time from the worker before.
fn name_process(pid: i32, known: Option<Process>) -> Process {
    match process::start_time(pid) {
        Some(start_time) => Process { pid, start_time },
        None => known.unwrap_or(Process { pid, start_time: 0 }),
    }
}

impl Driver {
    fn new(
        descriptors: Descriptors,
        link: Link,
        pid: i32,
        is_child: bool,
    ) -> Result<(Driver, Inbox), Failure> {
        let folder = || descriptors.run_folder.try_clone().map_err(Failure::Sockets);
        let listener = |listener: std::os::unix::net::UnixListener| {
            listener.set_nonblocking(true)?;
            UnixListener::from_std(listener)
        };
        let publisher = Publisher::new(folder()?);
        let previous = publisher.previous().filter(|s| s.qemu.pid == pid);
        let called = std::env::args().nth(1).unwrap_or_default();
        let recorded = Recorded::read(descriptors.record, previous.as_ref(), &called);
        let boot_id = recorded.boot_id.clone();
        let before = Before {
            snapshot: previous.filter(|s| s.boot_id == boot_id),
            is_first: is_child && descriptors.ready.is_some(),
        };
        let qemu = name_process(pid, before.snapshot.as_ref().map(|snapshot| snapshot.qemu));
        let console_log = Rc::new(ConsoleLog::new(descriptors.console_log));
        let console = Console::new(&recorded.name, Rc::clone(&console_log));
        let (news_in, news) = mpsc::channel(MESSAGES_WAITING);
        let (requests_in, requests) = mpsc::channel(MESSAGES_WAITING);
        let (verbs_in, verbs) = mpsc::channel(MESSAGES_WAITING);
        let control = listener(descriptors.control).map_err(Failure::Sockets)?;
        let door = listener(descriptors.door).map_err(Failure::Sockets)?;
        let monitor = Monitor::new(folder()?, news_in);
        let agent = (recorded.agent() == AgentChannel::Present).then(|| folder().map(Agent::new));
        let agent_watch = Watch::new(before.agent(recorded.agent()));
        spawn_local(control::serve(control, requests_in));
        console.serve(door, folder()?, verbs_in);
        let mut store_watch = StoreWatch::default();
        for (address, file) in descriptors.stores {
            store_watch.add(address, file);
        }
        let driver = Driver {
            machine: Machine::new(before.origin(), recorded.devices()),
            began: Instant::now(),
            link,
            keeper: Keeper {
                lives: true,
                program: successor::keeper_program(descriptors.keeper_program.as_ref()),
                _held: descriptors.keeper_program,
                launch: descriptors.launch,
            },
            monitor,
            publisher,
            log: GuestLog::new(descriptors.log),
            recorded,
            qemu,
            qemu_held: descriptors.qemu,
            console,
            agent: agent.transpose()?,
            agent_watch,
            console_log,
            image_folders: ImageFolders::new(descriptors.image_folders),
            store_watch,
            silent_stores: Vec::new(),
            qemu_log: descriptors.qemu_log,
            ready: descriptors.ready,
            shown: before.shown(boot_id),
            askers: HashMap::new(),
            answered: Vec::new(),
            payloads: HashMap::new(),
            changes: None,
            copies: HashMap::new(),
            links: links::Links::default(),
            next_ticket: 0,
            beats: 0,
            asked_at: None,
            occupant_due: 0,
            occupant_pause: 1,
            oom_kills: process::oom_kills().unwrap_or(u64::MAX),
            beats_untold: 0,
            trouble_told_at: None,
            trouble: None,
            takes_over: !before.is_first,
            finished: false,
        };
        Ok((driver, Inbox { news, requests, verbs, events: None }))
    }

    /// From here on only what the rest of this file needs is left to us, and to the keeper and worker we may start.
    fn confine(&mut self) -> Result<(), Failure> {
        let readable: Vec<&Path> = READABLE.iter().map(Path::new).collect();
        let own = Path::new("/proc/self/exe");
        let programs: Vec<&Path> =
            self.keeper.program.as_deref().into_iter().chain([own]).collect();
        let folder = self.publisher.folder();
        let image_folders = self.image_folders.all();
        let confinement = Confinement {
            ids: None,
            folder: folder.as_fd(),
            read_beneath: &image_folders,
            read: &readable,
            execute: &programs,
        };
        if confinement.apply()? == Enforced::Not {
            self.log.say("the kernel has no Landlock: files are not withheld from hpvmapp");
        }
        Ok(())
    }

    async fn run(&mut self, mut inbox: Inbox) {
        if let Some(reason) = self.recorded.damage() {
            self.log.say(&format!("the guest is supervised without its boot record: {reason}"));
        }
        self.publish();
        let mut next_beat = Instant::now() + BEAT;
        while !self.finished {
            let wake =
                self.machine.wake_at().map_or(next_beat, |at| next_beat.min(self.began + at));
            tokio::select! {
                message = self.link.receive(), if self.keeper.lives => match message {
                    Some(message) => self.keeper_said(message),
                    None => self.keeper_died(),
                },
                Some(news) = inbox.news.recv() => match news {
                    News::Connected(client, events) => {
                        self.monitor.connected(client);
                        inbox.events = Some(events);
                        self.connected();
                    }
                    news => self.news(news),
                },
                notice = next_notice(&mut inbox.events) => match notice {
                    Some(Notice::Event(event)) => self.happened(&event.happening()),
                    Some(Notice::Lost(_)) => self.connected(),
                    None => {
                        inbox.events = None;
                        self.monitor.lost();
                    }
                },
                Some(asked) = inbox.requests.recv(), if self.machine.takes_requests() => self.requested(asked),
                Some(asked) = inbox.verbs.recv(), if self.machine.takes_requests() => self.verb_asked(asked),
                () = sleep_until(wake) => {
                    if Instant::now() >= next_beat {
                        next_beat = Instant::now() + BEAT;
                        self.beat();
                    }
                    self.feed(Input::Tick);
                }
            }
        }
        self.farewell().await;
    }

    /// Gives the machine an input and performs what follows.
    fn feed(&mut self, input: Input) {
        let actions = self.machine.step(self.began.elapsed(), input);
        for action in actions {
            self.perform(action);
        }
    }

    fn keeper_said(&mut self, message: FromKeeper) {
        match message {
            FromKeeper::Engine { .. } => {}
            FromKeeper::Exited { wait_status, oom_kills } => {
                let before = self.oom_kills.min(oom_kills);
                let oom_kills = crash::OomKills { before, now: process::oom_kills().ok() };
                self.engine_ended(crash::judge(wait_status, oom_kills));
            }
        }
    }

    fn connected(&mut self) {
        self.asked_at = None;
        self.ask_status();
        self.look_for_agent();
        self.show_links();
        if std::mem::take(&mut self.takes_over) {
            self.look_at_devices();
            self.take_copies_back();
        }
    }

    /// One question at a time: a QEMU that hangs must not find a queue when it wakes.
    fn ask_status(&mut self) {
        if self.asked_at.is_none() {
            self.asked_at = Some(Instant::now());
            self.monitor.ask(QueryStatus {}, News::Status);
        }
    }

    fn news(&mut self, news: News) {
        match news {
            News::Connected(..) => {}
            News::Status(answer) => {
                self.asked_at = None;
                if let Ok(status) = answer {
                    self.feed(Input::Status(status.status));
                }
            }
            News::Registers(Ok(registers)) => {
                self.feed(Input::Seen(registers.occupant()));
            }
            News::Button(Ok(button)) => self.feed(Input::Button(button)),
            News::Registers(Err(_)) | News::Button(Err(_)) => {}
            News::Idle(ticket, answer) => self.idle_known(ticket, answer),
            News::Present(answer) => {
                if let Ok(present) = answer {
                    self.repair(&present);
                }
            }
            News::Changed { seq, result } => self.step_over(seq, result),
            News::Undone { seq } => self.undone(seq),
            News::Chardevs(Ok(chardevs)) => self.agent_found(&chardevs),
            News::Chardevs(Err(_)) => {}
            News::AgentGreeted(result) => {
                self.agent_watch.asked();
                self.agent_told(&result);
            }
            News::AgentUsed(result) => self.agent_told(&result),
            News::Drives(session, drives) => self.drives_seen(session, drives),
            News::ImageOpened(opened) => self.image_opened(opened),
            News::CopyHolds => self.feed(Input::CopyHolds),
            News::CopyHeld(held) => self.copy_held(held),
            News::Copied { ticket, result, left } => self.copied(ticket, result, left),
            News::CopyTakenBack(result) => self.copy_taken_back(result),
            News::StoresAsked => self.look_at_stores(),
        }
    }

    fn happened(&mut self, happening: &Happening) {
        if let Some(changes) = &self.changes {
            changes.heard(happening);
        }
        match happening {
            Happening::Shutdown(shutdown) if shutdown.guest => self.feed(Input::PoweredOff),
            Happening::Shutdown(shutdown) => {
                let reason = &shutdown.reason;
                self.log.say(&format!("QEMU was told to end: {reason}"));
            }
            Happening::Reset(_) => {
                self.occupant_pause = 1;
                self.occupant_due = self.beats + 1;
                self.feed(Input::Reset);
            }
            Happening::Stopped | Happening::Resumed => self.ask_status(),
            Happening::BlockIoError(error) if error.no_space == Some(true) => {
                self.feed(Input::NoSpace);
            }
            Happening::BlockIoError(error) => {
                let node = error.node_name.as_deref().unwrap_or("a disk");
                let (operation, reason) = (&error.operation, &error.reason);
                self.tell_trouble(&format!("{node}: {operation} failed: {reason}"));
            }
            Happening::ImageCorrupted(told) => {
                let message = &told.message;
                self.tell_trouble(&format!("a disk image is corrupt: {message}"));
            }
            Happening::Panicked(_) => self.log.say("the operating system panicked"),
            Happening::DeviceDeleted(deleted) => {
                if let Some(id) = &deleted.device {
                    self.let_go(id);
                }
            }
            Happening::UnplugRefused(refused) => {
                if let Some(id) = &refused.device {
                    self.refused_to_let_go(id);
                }
            }
            Happening::SocketConnected(socket) => self.socket_connected(&socket.netdev_id),
            Happening::SocketBroken(socket) => self.socket_broken(&socket.netdev_id),
            Happening::PortChanged(port) if port.id == AGENT_PORT => self.agent_port(port.open),
            Happening::PortChanged(_)
            | Happening::PowerButtonPressed
            | Happening::Suspended
            | Happening::Woken
            | Happening::TrayMoved(_)
            | Happening::Watchdog(_)
            | Happening::MemoryFailure(_)
            | Happening::ClockChanged(_)
            | Happening::Other => {}
        }
    }

    /// A disk or the keeper's succession fails: for the log, and for who looks at the guest.
    fn tell_trouble(&mut self, sentence: &str) {
        if self.trouble_told_at.is_none_or(|at| at.elapsed() >= TROUBLE_APART) {
            self.trouble_told_at = Some(Instant::now());
            self.log.say(sentence);
            self.trouble = Some(format!("{} (at {})", sentence, now()));
            self.publish();
        }
    }

    fn requested(&mut self, asked: Asked) {
        let ticket = self.ticket(Asker::Control(asked.replies.clone()));
        let ask = match asked.request {
            Request::Ping => Ask::Ping,
            Request::Stop { how } => Ask::Stop(how),
            Request::Idle => Ask::Idle,
            Request::Change { changes, watched } => {
                let mut descriptors = asked.descriptors;
                let media = changes.iter().flat_map(DeviceChange::media).count();
                let stores = descriptors.split_off(media.min(descriptors.len()));
                self.payloads.insert(ticket, (changes, descriptors));
                for (address, store) in watched.into_iter().zip(stores) {
                    self.store_watch.add(address, store.into());
                }
                Ask::Change
            }
            Request::Copy { disks } => {
                let Asked { descriptors, replies, peer, .. } = asked;
                self.copies.insert(ticket, Wanted { disks, descriptors, replies, peer });
                Ask::Copy
            }
        };
        self.feed(Input::Asked { ticket, ask });
    }

    fn ticket(&mut self, asker: Asker) -> Ticket {
        self.next_ticket += 1;
        let ticket = Ticket(self.next_ticket);
        self.askers.insert(ticket, asker);
        ticket
    }

    fn beat(&mut self) {
        self.beats += 1;
        match self.publisher.is_behind() {
            true => self.publish(),
            false => self.publisher.beat(),
        }
        self.watch_answers();
        self.watch_stores();
        self.greet_agent();
        if self.machine.wants_occupant() && self.beats >= self.occupant_due {
            self.occupant_due = self.beats + self.occupant_pause;
            if self.beats.is_multiple_of(OCCUPANT_BEATS_MAX) {
                self.occupant_pause = (self.occupant_pause + 1).min(OCCUPANT_BEATS_MAX);
            }
            self.monitor.ask(ReadRegisters {}, News::Registers);
        }
        if self.beats.is_multiple_of(BEATS_PER_CARE) {
            // Seen often, the count tells our own QEMU's end from that of others.
            self.oom_kills = process::oom_kills().unwrap_or(self.oom_kills);
            // What cannot be cut now is tried again.
            let _ = self.console_log.bound();
        }
        match self.keeper.lives {
            true => self.watch_end(),
            false => self.keeper_died(),
        }
    }

    /// The keeper tells how QEMU ended, at once. One that hangs tells nothing, and must not make a dead guest look alive.
    fn watch_end(&mut self) {
        let has_ended = |qemu: &PidFd| qemu.wait_exit(Duration::ZERO).unwrap_or(false);
        if !self.qemu_held.as_ref().is_some_and(has_ended) {
            return;
        }
        self.beats_untold += 1;
        if self.beats_untold == BEATS_UNTOLD_MAX {
            self.log.say("QEMU has ended, and the keeper does not tell how");
            self.engine_ended(Crash::Unseen);
        }
    }

    fn watch_answers(&mut self) {
        let patience = match self.shown.phase {
            Phase::Starting => FIRST_WORD,
            _ => SILENCE,
        };
        match self.asked_at {
            Some(at) if at.elapsed() >= patience => {
                self.feed(Input::Silent);
                if self.monitor.client().is_some() && at.elapsed() >= FIRST_WORD {
                    self.asked_at = None;
                    self.ask_status();
                }
            }
            Some(_) => {}
            None => self.ask_status(),
        }
    }
}
