//! The one owner of a switch: begins with what is kept and what is wanted, then does what commands ask.
//!
//! A change is written down before it is made, and what fails is taken back, so that whatever kills us the next process goes
//! on with what the commands were told. But a wire that fails is not: the switch goes on without one, as its command was told.
//! Nothing here touches a frame.

mod captures;
mod descriptors;
mod requests;
mod wire;

use std::collections::BTreeMap;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use hpvm_host::confine::{Confinement, Enforced};
use hpvm_host::lock::{ByteLock, pause_for};
use hpvm_host::names::switch_folder;
use hpvm_host::nic::LinkWatch;
use hpvm_model::{PortNumber, WireNow, chain};
use hpvm_vswitch::{Beginning, CaptureId, Clock, Event, GuestMemory, Options, PortOptions, Switch};
use hpvm_vswitchd::kept::Kept;
use hpvm_vswitchd::status::{PortNow, Status};
use hpvm_vswitchd::wanted::{Plug, Wanted};

use self::descriptors::Descriptors;
use self::requests::{Next, Refused};
use crate::control;
use crate::edition::{Edition, what_to_be};
use crate::folder::Folder;
use crate::link::Link;
use crate::log::{Log, News};
use crate::pace::{Found, Pace};
use crate::uplink::Uplink;
use crate::{Failure, FromKeeper, Input, successor};

/// Whoever asked for our end takes its answer within that.
const LAST_WORD_BOUND: Duration = Duration::from_secs(1);

/// The keeper takes a process that lived so long for a good one, and starts the next at once.
const LIFE_GOOD: Duration = Duration::from_secs(2);

/// What our successor and its keeper still open by path: the count of processes killed for memory, and users' names.
const READABLE: &[&str] = &["/proc/vmstat", "/etc/passwd"];

pub(crate) struct Daemon {
    _lock: ByteLock,
    link: Link,
    /// Copies of what the keeper holds, by tag; a successor of the keeper gets them from us.
    kept: BTreeMap<u32, OwnedFd>,
    edition: Edition,
    began: Instant,
    wanted: Wanted,
    /// What stands in the file beside what we know.
    written: Kept,
    switch: Switch,
    folder: Folder,
    log: Log,
    keeper: Option<PathBuf>,
    /// What `keeper` may lead through.
    _held: Option<OwnedFd>,
    launch: OwnedFd,
    inputs: Receiver<Input>,
    to_owner: Sender<Input>,
    /// Who asked for captures that are not over.
    askers: BTreeMap<CaptureId, UnixStream>,
    /// What the status file says.
    published: Option<Status>,
    /// The process that does NAT is to be connected to, again and again until it is there.
    awaits_nat: bool,
    /// `None`: the kernel tells nothing of interfaces.
    watch: Option<Arc<LinkWatch>>,
    uplink: Uplink,
    /// The switch has it, as far as it said.
    wire_attached: bool,
    wire_told: Option<WireNow>,
}

impl Daemon {
    pub(crate) fn begin(edition: Edition) -> Result<Daemon, Failure> {
        let descriptors = Descriptors::take()?;
        let folder = Folder::new(descriptors.folder);
        let lock = folder.lock().map_err(Failure::Folder)?.ok_or(Failure::Locked)?;
        let link = Link::new(descriptors.link);
        let mut kept = receive_kept(&link)?;
        let keeper = hpvm_host::launch::keeper_program(descriptors.keeper_program.as_ref());
        let mut log = Log::new(descriptors.log);
        let text = folder.read(switch_folder::PORTS).map_err(Failure::Folder)?;
        let (wanted, written) = what_to_be(&text, &mut log)?;
        let watch = wire::watch(&link, &mut kept, &mut log);
        confine(&folder, keeper.as_deref(), &mut log)?;
        let (switch, events) = Switch::start(Options {
            name: wanted.name.to_string(),
            state: wanted.state,
            clock: Clock::Monotonic,
            beginning: match wanted.ports.is_empty() {
                true => Beginning::AtOnce,
                false => Beginning::Together,
            },
        })?;
        let uplink = Uplink::new(wanted.interface.clone());
        let (to_owner, inputs) = channel();
        listen(&link, descriptors.control, events, &to_owner)?;
        let mut daemon = Daemon {
            _lock: lock,
            link,
            kept,
            edition,
            began: Instant::now(),
            wanted,
            written,
            switch,
            folder,
            log,
            keeper,
            _held: descriptors.keeper_program,
            launch: descriptors.launch,
            inputs,
            to_owner,
            askers: BTreeMap::new(),
            published: None,
            awaits_nat: false,
            watch,
            uplink,
            wire_attached: false,
            wire_told: None,
        };
        daemon.resume()?;
        daemon.follow_links()?;
        daemon.publish();
        if let Some(mut ready) = descriptors.ready {
            // Who waited for it may have given up.
            let _ = ready.write_all(b"running\n");
        }
        Ok(daemon)
    }

    /// Gives the switch its ports back. One that we cannot serve is closed, so that QEMU, which waits for the answer of whoever
    /// takes its call, finds nobody there instead; a command opens it again for a process that can.
    fn resume(&mut self) -> Result<(), Failure> {
        for plug in self.wanted.ports.clone() {
            let added = match self.kept.get(&tag(plug.port)).map(AsFd::as_fd) {
                Some(listener) => match listener.try_clone_to_owned() {
                    Ok(listener) => self.add(&plug, listener).map_err(|e| chain(&e)),
                    Err(error) => Err(error.to_string()),
                },
                None => Err("its socket was not kept".to_owned()),
            };
            if let Err(error) = added {
                self.log.say(&format!(
                    "port {} of guest {} cannot be served: {error}",
                    plug.port, plug.guest
                ));
                self.forget(plug.port);
            }
        }
        self.close_strangers();
        self.resume_wire();
        self.write_down().map_err(Failure::Folder)
    }

    /// Closes the sockets of ports that we know nothing of.
    fn close_strangers(&mut self) {
        let is_known = |held: u32| self.wanted.ports.iter().any(|plug| tag(plug.port) == held);
        let ports = self.kept.range(..=u32::from(PortNumber::MAX)).map(|(held, _)| *held);
        let strangers: Vec<u32> = ports.filter(|held| !is_known(*held)).collect();
        for held in strangers {
            self.kept.remove(&held);
            self.link.release(held);
        }
    }

    fn add(&mut self, plug: &Plug, listener: OwnedFd) -> Result<(), Refused> {
        let lacking = plug.features.unwrap_or_default() & !self.edition.features;
        if lacking != 0 {
            return Err(Refused::Lacking(lacking));
        }
        let options = PortOptions {
            kind: plug.kind,
            listener: UnixListener::from(listener),
            mac: plug.mac,
            features: plug.features,
            memory: GuestMemory::Sealed,
            rules: plug.rules.clone(),
        };
        Ok(self.switch.add_port(plug.port, options)?)
    }

    fn forget(&mut self, port: PortNumber) {
        self.wanted.ports.retain(|plug| plug.port != port);
        self.kept.remove(&tag(port));
        self.link.release(tag(port));
    }

    fn write_down(&mut self) -> std::io::Result<()> {
        let text = self.written.rewritten(&self.wanted);
        self.folder.replace(switch_folder::PORTS, &text)
    }

    pub(crate) fn run(mut self) -> Result<(), Failure> {
        self.log.say(&format!(
            "virtual switch {} runs with {} ports",
            self.wanted.name,
            self.wanted.ports.len()
        ));
        let mut pace = Pace::from(Instant::now());
        loop {
            let input =
                self.inputs.recv_timeout(pace.due().saturating_duration_since(Instant::now()));
            if input.is_ok() {
                pace.hurry();
            }
            match input {
                Ok(Input::Asked(asked)) => match self.answer(*asked)? {
                    Next::GoOn => {}
                    Next::End => {
                        self.log.say("no guest has a port on it any more; it ends");
                        self.link.finished();
                        self.wait_for_last_word();
                        // Threads that sleep in a socket have nothing to put away.
                        std::process::exit(0);
                    }
                    Next::Renew => {
                        self.log.say("it ends; the keeper starts hpvmnetd as it is installed now");
                        self.wait_for_last_word();
                        // Frames pass until then. Who ends sooner is taken for one that cannot live.
                        pause_for(LIFE_GOOD.saturating_sub(self.began.elapsed()));
                        std::process::exit(0);
                    }
                },
                Ok(Input::Event(event)) => self.happened(&event),
                Ok(Input::Links(news)) => self.links_told(&news),
                Ok(Input::KeeperDied) => self.keeper_died(),
                Ok(Input::Answered) => {}
                Ok(Input::AskerGone(port, capture)) => {
                    let _ = self.switch.end_capture(port, capture);
                }
                Err(RecvTimeoutError::Timeout) => {}
                // We hold a sender ourselves.
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
            }
            self.tell_wire();
            if Instant::now() >= pace.due() {
                let found = self.look();
                pace.looked(Instant::now(), found);
            }
        }
    }

    fn look(&mut self) -> Found {
        let awaited_nat = self.awaits_nat;
        if awaited_nat {
            self.resume_wire();
        }
        let found = self.publish();
        self.log.cut();
        if awaited_nat { Found::News } else { found }
    }

    /// Until whoever asked for the end has his answer.
    fn wait_for_last_word(&self) {
        loop {
            match self.inputs.recv_timeout(LAST_WORD_BOUND) {
                Ok(Input::Answered) | Err(_) => return,
                Ok(_) => {}
            }
        }
    }

    fn happened(&mut self, event: &Event) {
        let name = |wanted: &Wanted, port: PortNumber| {
            wanted.plug(port).map_or_else(String::new, |plug| format!(" (guest {})", plug.guest))
        };
        match event {
            Event::Connected { .. } | Event::Negotiated { .. } => {}
            Event::Started { port } => {
                let who = name(&self.wanted, *port);
                self.log.tell(*port, News::Up, &format!("port {port}{who} is up"));
            }
            Event::Stopped { .. } | Event::Disconnected { .. } => {}
            Event::Lost { port, fault } => {
                let who = name(&self.wanted, *port);
                self.log.tell(*port, News::Lost, &format!("port {port}{who} is lost: {fault}"));
            }
            Event::Refused { port, reason } => {
                let who = name(&self.wanted, *port);
                let text = format!("the peer of port {port}{who} was sent away: {reason}");
                self.log.tell(*port, News::Refused, &text);
            }
            Event::CaptureOver { port, capture, lost, failure } => {
                self.capture_over(*port, *capture, *lost, failure.as_deref());
            }
            Event::WireLost { reason } => self.wire_lost(reason),
        }
    }

    /// A successor takes over with the next process, so ours is done. Without one we go on forwarding.
    fn keeper_died(&mut self) {
        self.log.say("the keeper is gone");
        let Some(keeper) = &self.keeper else { return };
        let kept = self.kept.iter().map(|(tag, fd)| (*tag, fd));
        match successor::start(keeper, &self.launch, &self.folder, kept) {
            Ok(()) => {
                self.log.say("started its successor; the next process takes over");
                // Nothing is said to the old keeper or to those who wait: their connections end with us.
                std::process::exit(0);
            }
            Err(error) => {
                self.log.say(&format!("no successor can be started: {}", chain(&error)));
            }
        }
    }

    /// Writes the status when it is another than the last one. Its text is made then only: with many idle ports it is most of
    /// what a look would cost.
    fn publish(&mut self) -> Found {
        let status = self.status();
        let found = match self.published.as_ref() == Some(&status) {
            true => Found::Nothing,
            false => Found::News,
        };
        if found == Found::News
            && self.folder.replace(switch_folder::STATUS, &status.to_text()).is_ok()
        {
            self.published = Some(status);
        }
        self.tell_wire();
        found
    }

    fn status(&self) -> Status {
        let ports = self.wanted.ports.iter().filter_map(|plug| {
            let now = self.switch.port(plug.port).ok()?;
            Some(PortNow {
                port: plug.port,
                guest: plug.guest.clone(),
                number: plug.number,
                slot: plug.slot,
                kind: plug.kind,
                mac: plug.mac,
                link: now.link,
                source: now.source,
                offered: now.offered,
                acknowledged: now.acknowledged,
                counters: self.switch.counters(plug.port).ok()?,
            })
        });
        Status {
            number: self.wanted.number,
            name: self.wanted.name.clone(),
            state: self.wanted.state,
            features: Some(self.edition.features),
            ports: ports.collect(),
            wire_discards: self.switch.wire_counters().discards,
        }
    }
}

/// What the keeper holds a port's socket under.
fn tag(port: PortNumber) -> u32 {
    port.number().into()
}

fn receive_kept(link: &Link) -> Result<BTreeMap<u32, OwnedFd>, Failure> {
    let mut kept = BTreeMap::new();
    loop {
        match link.receive() {
            Some(FromKeeper::Kept { tag, fd }) => drop(kept.insert(tag, fd)),
            Some(FromKeeper::AllKept) => return Ok(kept),
            None => return Err(Failure::NoKeeper),
        }
    }
}

/// From here on only what the rest of this process needs is left to it, and to the keeper it may start.
fn confine(folder: &Folder, keeper: Option<&Path>, log: &mut Log) -> Result<(), Failure> {
    let readable: Vec<&Path> = READABLE.iter().map(Path::new).collect();
    let programs: Vec<&Path> = keeper.into_iter().chain([Path::new("/proc/self/exe")]).collect();
    let confinement = Confinement {
        ids: None,
        folder: folder.as_fd(),
        read_beneath: &[],
        read: &readable,
        execute: &programs,
    };
    if confinement.apply()? == Enforced::Not {
        log.say("the kernel has no Landlock: files are not withheld from hpvmnetd");
    }
    Ok(())
}

/// Threads that turn what comes from outside into inputs of the owner.
fn listen(
    link: &Link,
    control: UnixListener,
    events: Receiver<Event>,
    owner: &Sender<Input>,
) -> Result<(), Failure> {
    let link = link.try_clone().map_err(Failure::Thread)?;
    let (to_owner, from_events) = (owner.clone(), owner.clone());
    let from_control = owner.clone();
    spawn("keeper", move || {
        while link.receive().is_some() {}
        let _ = to_owner.send(Input::KeeperDied);
    })?;
    spawn("events", move || {
        for event in events {
            if from_events.send(Input::Event(event)).is_err() {
                return;
            }
        }
    })?;
    spawn("control", move || control::serve(&control, &from_control))
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<(), Failure> {
    let thread = std::thread::Builder::new().name(name.into()).spawn(work);
    thread.map(drop).map_err(Failure::Thread)
}
