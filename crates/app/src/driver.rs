//! The one owner of a running guest: feeds the machine with what happens and performs what it decides.
//!
//! Everything comes to one loop: messages of the keeper, answers and events of QEMU, requests of commands and console
//! sessions, time. Nothing in the loop waits for QEMU; what does runs as a task and comes back as news.

mod agent;
mod beginning;
mod copying;
mod counters;
mod crash;
mod due;
mod engine;
mod links;
mod perform;
mod pulse;
mod requests;
mod reservations;
mod silences;
mod stores;
mod takeover;
mod trouble;
mod verbs;

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

use hpvm_app::protocol::{Denial, Reply};
use hpvm_app::snapshot::{self, Crash, Phase};
use hpvm_console::door::DriveAddress;
use hpvm_console::fanout::{SessionId, VerbAsked};
use hpvm_host::confine::ConfineError;
use hpvm_host::inherited::Missing;
use hpvm_host::keeper_link::{FromKeeper, ToKeeper};
use hpvm_host::launch;
use hpvm_model::{DeviceKind, RunState, StorageDevice};
use hpvm_plan::command_line::AGENT_PORT;
use hpvm_plan::record::{Consent, DeviceChange};
use hpvm_qmp::Happening;
use hpvm_qmp::client::{Events, Notice};
use tokio::sync::mpsc;
use tokio::task::spawn_local;
use tokio::time::{Instant, sleep_until};

use crate::agent::Agent;
use crate::agent::watch::Watch;
use crate::changes::Changes;
use crate::console::Console;
use crate::control::Asked;
use crate::descriptors::Descriptors;
use crate::guest_log::{GuestLog, now};
use crate::image_folders::ImageFolders;
use crate::link::Link;
use crate::machine::{Action, Ask, Input, Machine, Ticket};
use crate::monitor::{Journal, Monitor, News, next_notice};
use crate::publisher::Publisher;
use crate::recorded::Recorded;
use crate::successor;
use crate::wires::Wires;

use copying::LeftCopy;
use counters::Zeros;
use due::DueChanges;
use engine::Engine;
use links::Links;
use pulse::{BEAT, Pulse};
use requests::{Asker, Requests};
use reservations::Helper;
use stores::Stores;
use takeover::Takeover;
use trouble::Trouble;

pub(crate) use verbs::OpenedImage;

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

struct Driver {
    machine: Machine,
    began: Instant,
    link: Link,
    keeper: Keeper,
    monitor: Monitor,
    publisher: Publisher,
    log: GuestLog,
    recorded: Recorded,
    engine: Engine,
    console: Console,
    /// `None`: the machine has no channel for one.
    agent: Option<Agent>,
    agent_watch: Watch,
    image_folders: ImageFolders,
    stores: Stores,
    zeros: Zeros,
    reservations: Helper,
    ready: Option<File>,
    shown: Shown,
    requests: Requests,
    changes: Option<Changes>,
    due: DueChanges,
    links: Links,
    wires: Wires,
    pulse: Pulse,
    trouble: Trouble,
    takeover: Takeover,
    left_copy: LeftCopy,
    finished: bool,
}

/// What the snapshot said last, besides what the machine knows.
struct Shown {
    boot_id: String,
    phase: Phase,
    since: String,
    state: RunState,
    state_since: Option<String>,
    unresponsive_since: Option<String>,
    adoptions: u32,
}

/// What is needed to start the next keeper.
struct Keeper {
    lives: bool,
    program: Option<PathBuf>,
    /// What `program` may lead through.
    _held: Option<OwnedFd>,
    launch: OwnedFd,
}

impl Keeper {
    fn new(program: Option<OwnedFd>, description: OwnedFd) -> Keeper {
        Keeper {
            lives: true,
            program: launch::keeper_program(program.as_ref()),
            _held: program,
            launch: description,
        }
    }
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
            Some((FromKeeper::Engine { pid, is_child }, _)) => break (pid, is_child),
            Some(_) => {}
            None => return Err(Failure::NoKeeper),
        }
    };
    let (mut driver, inbox) = Driver::new(descriptors, link, pid, is_child)?;
    driver.confine()?;
    driver.run(inbox).await;
    Ok(())
}

impl Driver {
    async fn run(&mut self, mut inbox: Inbox) {
        if let Some(reason) = self.recorded.damage() {
            self.log.say(&format!("the guest is supervised without its boot record: {reason}"));
        }
        self.tell_machine_of_stores();
        self.publish();
        let mut next_beat = Instant::now() + BEAT;
        while !self.finished {
            self.go_on_when_read();
            let own = self.machine.wake_at().map(|at| self.began + at);
            let wake = own.into_iter().chain(self.stores.wake_at()).fold(next_beat, Instant::min);
            tokio::select! {
                message = self.link.receive(), if self.keeper.lives => match message {
                    Some((message, beside)) => self.keeper_said(message, beside),
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
                () = self.wires.changed() => self.show_links(),
                () = sleep_until(wake) => {
                    if Instant::now() >= next_beat {
                        next_beat = Instant::now() + BEAT;
                        self.beat();
                    }
                    self.read_stores_if_due();
                    self.feed(Input::Tick);
                }
            }
        }
        // Who asked too late hears that too.
        while let Ok(asked) = inbox.requests.try_recv() {
            self.requested(asked);
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

    fn keeper_said(&mut self, message: FromKeeper, beside: Option<OwnedFd>) {
        match message {
            FromKeeper::Engine { .. } => {}
            FromKeeper::Kept { tag } => self.store_kept(tag, beside),
            FromKeeper::AllKept => self.all_stores_kept(),
            FromKeeper::Exited { wait_status, oom_kills } => {
                self.engine_ended(self.engine.judge(wait_status, oom_kills));
            }
        }
    }

    fn connected(&mut self) {
        self.pulse.forget_question();
        self.ask_status();
        self.look_for_agent();
        self.show_links();
        self.take_over();
        self.due_over_if_qemu_was_missing();
    }

    fn news(&mut self, news: News) {
        match news {
            News::Connected(..) => {}
            News::Status(answer) => {
                if let Ok(status) = answer {
                    self.stores.qemu_answered();
                    self.feed(Input::Status(status.status));
                    if self.machine.doubts_occupant() {
                        self.look_who_runs();
                    }
                }
                self.answered();
            }
            News::Registers(Ok(registers)) => {
                self.feed(Input::Seen(registers.occupant()));
            }
            News::Button(Ok(button)) => self.feed(Input::Button(button)),
            News::Registers(Err(_)) | News::Button(Err(_)) => {}
            News::Idle(ticket, answer) => self.idle_known(ticket, answer),
            News::Counted(ticket, told) => self.counted(ticket, told),
            News::Requests { look, told } => self.requests_told(look, told),
            News::Present { journal, answer } => self.looked(journal, answer),
            News::Changed { seq, made } => self.step_over(seq, made),
            News::Undone { seq } => self.undone(seq),
            News::DueMade { seq, result } => self.due_made(seq, result),
            News::DuePlaceFree { slot } => self.due_place_free(slot),
            News::DueOver => self.due_over(),
            News::DueTooLate => self.due_too_late(),
            News::Chardevs(Ok(chardevs)) => self.agent_found(&chardevs),
            News::Chardevs(Err(_)) => {}
            News::AgentGreeted(result) => self.agent_greeted(&result),
            News::AgentUsed(result) => self.agent_used(&result),
            News::Drives(session, drives) => self.drives_seen(session, drives),
            News::ImageOpened(opened) => self.image_opened(opened),
            News::CopyHolds => self.feed(Input::CopyHolds),
            News::CopyHeld(held) => self.copy_held(held),
            News::Copied { ticket, result, left } => self.copied(ticket, result, left),
            News::CopyTakenBack(seen, taken) => self.copy_taken_back(seen, taken),
            News::Reservations { answers } => self.reservations_asked(answers),
        }
    }

    fn happened(&mut self, happening: &Happening) {
        if let Some(changes) = &self.changes {
            changes.heard(happening);
        }
        match happening {
            Happening::Shutdown(shutdown) if shutdown.guest => self.feed(Input::PoweredOff),
            Happening::Shutdown(shutdown) if shutdown.is_by_monitor() => {
                self.monitor.qemu_ends();
                self.feed(Input::ToldToQuit);
            }
            Happening::Shutdown(shutdown) => {
                self.monitor.qemu_ends();
                let (reason, words) = (shutdown.reason.clone(), self.engine.words_of_signal());
                self.feed(Input::ToldToEnd(Crash::Told { reason, words }));
            }
            Happening::Reset(_) => {
                self.pulse.guest_was_reset();
                self.stores.requests.guest_was_reset();
                self.feed(Input::Reset);
            }
            Happening::Stopped | Happening::Resumed => self.ask_status(),
            Happening::BlockIoError(error) if error.no_space == Some(true) => {
                let store = self.store_behind(&error.qom_path);
                if let Some(store) = &store {
                    self.stores.requests.answered(store.address.slot);
                }
                self.feed(Input::NoSpace(store.map(|store| store.to_string())));
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
}
