//! How a worker begins: what it takes from its descriptors and from the worker before it, and what it gives up before it
//! listens to anybody.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;
use std::rc::Rc;

use hpvm_app::snapshot::{self, Phase, Process, Snapshot};
use hpvm_host::confine::{Confinement, Enforced};
use hpvm_host::names::run_folder;
use hpvm_host::paths::within;
use hpvm_host::process;
use hpvm_model::StorageAddress;
use hpvm_plan::record::AgentChannel;
use tokio::net::UnixListener;
use tokio::sync::mpsc;
use tokio::task::spawn_local;
use tokio::time::Instant;

use super::counters::Zeros;
use super::due::DueChanges;
use super::links::Links;
use super::pulse::Pulse;
use super::requests::Requests;
use super::reservations::Helper;
use super::trouble::Trouble;
use super::{Driver, Failure, Inbox, Keeper, Shown};
use crate::agent::Agent;
use crate::agent::watch::Watch;
use crate::console::Console;
use crate::console_log::ConsoleLog;
use crate::control;
use crate::descriptors::Descriptors;
use crate::guest_log::{GuestLog, now};
use crate::image_folders::ImageFolders;
use crate::link::Link;
use crate::machine::{Machine, Origin};
use crate::monitor::Monitor;
use crate::publisher::Publisher;
use crate::recorded::Recorded;
use crate::store_watch::StoreWatch;
use crate::wires::Wires;

const MESSAGES_WAITING: usize = 16;

/// What a worker still opens by path, and the worker after it: the count of processes killed for memory, the name of this
/// boot of the host, and users' names.
const READABLE: &[&str] = &["/proc/vmstat", "/proc/sys/kernel/random/boot_id", "/etc/passwd"];

/// Without a record nobody knows which device a store is of.
fn watch_of(recorded: &Recorded, stores: Vec<(StorageAddress, File)>) -> StoreWatch {
    let mut watch = StoreWatch::default();
    if let Ok(known) = &recorded.machine {
        watch.add_all(known.file.machine().held(), stores);
    }
    watch
}

/// What names QEMU for this boot of the host. A worker that a confined keeper started sees nothing of it in /proc, and knows
/// its start time from the worker before.
fn name_process(pid: i32, known: Option<Process>) -> Process {
    match process::start_time(pid) {
        Some(start_time) => Process { pid, start_time },
        None => known.unwrap_or(Process { pid, start_time: 0 }),
    }
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

impl Driver {
    pub(super) fn new(
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
        // The publisher keeps the folder that the path goes through.
        let helper_socket = within(&publisher.folder(), run_folder::RESERVATIONS);
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
        let wires = Wires::new(&folder()?);
        let driver = Driver {
            machine: Machine::new(before.origin(), recorded.devices()),
            began: Instant::now(),
            link,
            keeper: Keeper::new(descriptors.keeper_program, descriptors.launch),
            monitor,
            publisher,
            log: GuestLog::new(descriptors.log),
            qemu,
            qemu_held: descriptors.qemu,
            console,
            agent: agent.transpose()?,
            agent_watch,
            console_log,
            image_folders: ImageFolders::new(
                descriptors.image_folders,
                recorded.machine.as_ref().ok().map(|known| known.file.machine()),
            ),
            store_watch: watch_of(&recorded, descriptors.stores),
            silent_stores: Vec::new(),
            reservations: Helper::at(helper_socket),
            recorded,
            zeros: Zeros::of(before.snapshot.as_ref().filter(|_| !before.is_first)),
            qemu_log: descriptors.qemu_log,
            ready: descriptors.ready,
            shown: before.shown(boot_id),
            requests: Requests::default(),
            changes: None,
            due: DueChanges::default(),
            links: Links::default(),
            wires,
            pulse: Pulse::default(),
            oom_kills: process::oom_kills().unwrap_or(u64::MAX),
            trouble: Trouble::default(),
            takes_over: !before.is_first,
            inherits: false,
            undoing: BTreeSet::new(),
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
