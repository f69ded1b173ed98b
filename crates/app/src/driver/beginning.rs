//! How a worker begins: what it takes from its descriptors and from the worker before it, and what it gives up before it
//! listens to anybody.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use hpvm_app::snapshot::{self, Phase, Process, Snapshot};
use hpvm_console::fanout::VerbAsked;
use hpvm_host::confine::{Confinement, Enforced};
use hpvm_host::names::run_folder;
use hpvm_host::paths::within;
use hpvm_host::process;
use hpvm_model::{Occupant, RunState, StorageAddress};
use hpvm_plan::record::AgentChannel;
use tokio::net::UnixListener;
use tokio::sync::mpsc::{self, Receiver};
use tokio::task::spawn_local;
use tokio::time::Instant;

use super::copying::LeftCopy;
use super::counters::Zeros;
use super::due::DueChanges;
use super::engine::Engine;
use super::links::Links;
use super::pulse::Pulse;
use super::requests::Requests;
use super::reservations::Helper;
use super::stores::Stores;
use super::takeover::Takeover;
use super::trouble::Trouble;
use super::{Driver, Failure, Inbox, Keeper, Shown};
use crate::agent::Agent;
use crate::agent::watch::Watch;
use crate::console::Console;
use crate::console_log::ConsoleLog;
use crate::control::{self, Asked};
use crate::descriptors::Descriptors;
use crate::guest_log::{GuestLog, now};
use crate::image_folders::ImageFolders;
use crate::link::Link;
use crate::machine::{Machine, Origin};
use crate::monitor::Monitor;
use crate::publisher::Publisher;
use crate::recorded::Recorded;
use crate::wires::Wires;

const MESSAGES_WAITING: usize = 16;

/// What a worker still opens by path, and the worker after it: the count of processes killed for memory, the name of this
/// boot of the host, and users' names.
const READABLE: &[&str] = &["/proc/vmstat", "/proc/sys/kernel/random/boot_id", "/etc/passwd"];

/// What a worker before us left, from which this one goes on.
struct Before {
    snapshot: Option<Snapshot>,
    /// The one that hpvmstart waits for: nobody was before it.
    is_first: bool,
}

impl Before {
    /// Reads the boot record, and what the worker before us published of the same QEMU in the same boot of the host.
    fn read(record: File, publisher: &Publisher, pid: i32, is_first: bool) -> (Recorded, Before) {
        let snapshot = publisher.previous().filter(|s| s.qemu.pid == pid);
        let called = std::env::args().nth(1).unwrap_or_default();
        let recorded = Recorded::read(record, snapshot.as_ref(), &called);
        let snapshot = snapshot.filter(|s| s.boot_id == recorded.boot_id);
        (recorded, Before { snapshot, is_first })
    }

    /// What names QEMU for this boot of the host. A worker that a confined keeper started sees nothing of it in /proc, and
    /// knows its start time from the worker before.
    fn process(&self, pid: i32) -> Process {
        match (process::start_time(pid), &self.snapshot) {
            (Some(start_time), _) => Process { pid, start_time },
            (None, Some(snapshot)) => snapshot.qemu,
            (None, None) => Process { pid, start_time: 0 },
        }
    }

    fn origin(&self) -> Origin {
        match self.is_first {
            true => Origin::Start,
            false => Origin::Adoption {
                phase: self.snapshot.as_ref().map(|snapshot| snapshot.phase.clone()),
                decided: self.snapshot.as_ref().and_then(|snapshot| snapshot.decided.clone()),
            },
        }
    }

    /// The stores that the worker before us was given too, and what it said of them. Without a record nobody knows which device
    /// a store is of.
    fn stores(&self, recorded: &Recorded, files: Vec<(StorageAddress, File)>) -> Stores {
        let Ok(known) = &recorded.machine else { return Stores::default() };
        match &self.snapshot {
            _ if self.is_first => Stores::first(known.file.machine(), files),
            before => Stores::next(known.file.machine(), files, before.as_ref()),
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
            state: before.map_or(RunState::On(Occupant::Firmware), Snapshot::state),
            state_since: match (before, self.is_first) {
                (Some(snapshot), _) => snapshot.state_since.clone(),
                (None, true) => Some(now()),
                (None, false) => None,
            },
            unresponsive_since: None,
            adoptions: before.map_or(0, |s| s.adoptions) + u32::from(!self.is_first),
        }
    }
}

/// Has commands and console sessions heard.
fn serve(
    (control, door): (std::os::unix::net::UnixListener, std::os::unix::net::UnixListener),
    console: &Console,
    run_folder: OwnedFd,
) -> io::Result<(Receiver<Asked>, Receiver<VerbAsked>)> {
    let listener = |listener: std::os::unix::net::UnixListener| {
        listener.set_nonblocking(true)?;
        UnixListener::from_std(listener)
    };
    let (control, door) = (listener(control)?, listener(door)?);
    let (requests_in, requests) = mpsc::channel(MESSAGES_WAITING);
    let (verbs_in, verbs) = mpsc::channel(MESSAGES_WAITING);
    spawn_local(control::serve(control, requests_in));
    console.serve(door, run_folder, verbs_in);
    Ok((requests, verbs))
}

impl Driver {
    pub(super) fn new(
        descriptors: Descriptors,
        link: Link,
        pid: i32,
        is_child: bool,
    ) -> Result<(Driver, Inbox), Failure> {
        let folder = || descriptors.run_folder.try_clone().map_err(Failure::Sockets);
        let publisher = Publisher::new(folder()?);
        // The publisher keeps the folder that the path goes through.
        let reservations = Helper::at(within(&publisher.folder(), run_folder::RESERVATIONS));
        let is_first = is_child && descriptors.ready.is_some();
        let (recorded, before) = Before::read(descriptors.record, &publisher, pid, is_first);
        let console = Console::new(&recorded.name, ConsoleLog::new(descriptors.console_log));
        let sockets = (descriptors.control, descriptors.door);
        let (requests, verbs) = serve(sockets, &console, folder()?).map_err(Failure::Sockets)?;
        let (news_in, news) = mpsc::channel(MESSAGES_WAITING);
        let has_channel = recorded.agent() == AgentChannel::Present;
        let driver = Driver {
            machine: Machine::new(before.origin(), recorded.devices()),
            began: Instant::now(),
            link,
            keeper: Keeper::new(descriptors.keeper_program, descriptors.launch),
            monitor: Monitor::new(folder()?, news_in),
            publisher,
            log: GuestLog::new(descriptors.log),
            engine: Engine::new(before.process(pid), descriptors.qemu, descriptors.qemu_log),
            console,
            agent: has_channel.then(|| folder().map(Agent::new)).transpose()?,
            agent_watch: Watch::new(before.agent(recorded.agent())),
            image_folders: ImageFolders::new(
                descriptors.image_folders,
                recorded.machine.as_ref().ok().map(|known| known.file.machine()),
            ),
            stores: before.stores(&recorded, descriptors.stores),
            reservations,
            zeros: Zeros::of(before.snapshot.as_ref().filter(|_| !before.is_first)),
            ready: descriptors.ready,
            shown: before.shown(recorded.boot_id.clone()),
            recorded,
            requests: Requests::default(),
            changes: None,
            due: DueChanges::default(),
            links: Links::default(),
            wires: Wires::new(&folder()?),
            pulse: Pulse::default(),
            trouble: Trouble::default(),
            takeover: Takeover::new(!before.is_first),
            left_copy: LeftCopy::default(),
            finished: false,
        };
        Ok((driver, Inbox { news, requests, verbs, events: None }))
    }

    /// From here on only what the owner needs is left to us, and to the keeper and worker we may start.
    pub(super) fn confine(&mut self) -> Result<(), Failure> {
        let readable: Vec<&Path> = READABLE.iter().map(Path::new).collect();
        let own = Path::new("/proc/self/exe");
        let programs: Vec<&Path> =
            self.keeper.program.as_deref().into_iter().chain([own]).collect();
        let folder = self.publisher.folder();
        let mut beneath = self.image_folders.all();
        beneath.extend(self.wires.folder());
        let confinement = Confinement {
            ids: None,
            folder: folder.as_fd(),
            read_beneath: &beneath,
            read: &readable,
            execute: &programs,
        };
        if confinement.apply()? == Enforced::Not {
            self.log.say("the kernel has no Landlock: files are not withheld from hpvmapp");
        }
        Ok(())
    }
}
