//! The process of a switch, as a command uses it: started when the first guest wants a port, asked while guests have some,
//! gone after the last one. One command at a time does any of this to a switch.
//!
//! A process and its keeper that were both killed leave guests without a network. The next command that has anything to do
//! with the switch starts it again, with the ports of all guests that run.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{OpenOptionsExt, lchown};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use hpvm_host::launch::{Launch, LaunchError, Program};
use hpvm_host::listen::{self, listen};
use hpvm_host::lock::{self, Busy, pause_for};
use hpvm_host::names::switch_folder;
use hpvm_host::paths::{hold, make_public_folder, program};
use hpvm_host::signals::lift_limits;
use hpvm_host::supervision::{self, Supervision};
use hpvm_host::users::{self, Ids};
use hpvm_host::{durable, removal};
use hpvm_model::{GuestConfig, GuestNumber, PortNumber, SwitchNumber, Vswitch, Wire, WireNow};
use hpvm_plan::record::AttachedNic;
use hpvm_registry::{Registry, SwitchSelector};
use hpvm_vswitchd::client::{self, Asked, ClientError};
use hpvm_vswitchd::fds;
use hpvm_vswitchd::protocol::Request;
use hpvm_vswitchd::status::Status;
use hpvm_vswitchd::wanted::{Plug, WIRE_TAG, Wanted, WireKind};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;

use super::SwitchRefused;
use super::wire::{self, Opened};
use crate::supervise::lock_ids;
use crate::{Refusal, VmHost};

/// A process comes up in some milliseconds; a start that needs it is refused after this.
const UP_BOUND: Duration = Duration::from_secs(2);
/// A request is done in some milliseconds; one that meets a process on its way back waits for that.
pub(super) const ASK_BOUND: Duration = Duration::from_secs(2);
/// A process gives way once it has lived two seconds, and the next comes up like any other.
const RENEWAL_BOUND: Duration = Duration::from_secs(4);
const BUSY_BOUND: Duration = Duration::from_secs(10);

/// A command's turn at a switch: nobody else changes what it is to be, starts its process, or tells that anything. It is
/// taken before the registry's, and kept until the process knows what the registry says: so of two commands the process
/// hears the later one last.
pub(crate) struct Turn {
    number: SwitchNumber,
    folder: PathBuf,
    /// `None` where there is no registry: a dry run, which leaves nothing there, is all that there can be at the switch.
    busy: Option<Busy>,
}

impl Turn {
    /// Waits for another command that has it.
    pub(crate) fn take(host: &VmHost, number: SwitchNumber) -> Result<Turn, Refusal> {
        let folder = host.root.switch_dir(number.get());
        if !host.registry.has_file() {
            return Ok(Turn { number, folder, busy: None });
        }
        make_folder(&folder)?;
        let busy = Busy::acquire(&folder.join(switch_folder::BUSY), "hpvmnet", BUSY_BOUND)?;
        Ok(Turn { number, folder, busy: Some(busy) })
    }

    /// The switch as it is now.
    pub(crate) fn switch(&self, registry: &Registry) -> Result<Vswitch, Refusal> {
        let found = registry.vswitch(&SwitchSelector::Number(self.number))?;
        found.ok_or_else(|| SwitchRefused::Unknown(self.number.to_string()).into())
    }

    pub(crate) fn runner(self, host: &VmHost, switch: Vswitch) -> Runner<'_> {
        Runner { host, switch, folder: self.folder, _busy: self.busy }
    }
}

/// The right to start a switch's process and to change its ports.
pub(crate) struct Runner<'a> {
    pub(super) host: &'a VmHost,
    pub(crate) switch: Vswitch,
    folder: PathBuf,
    _busy: Option<Busy>,
}

impl<'a> Runner<'a> {
    /// Waits for another command that has it, and sees the switch as that one left it.
    pub(crate) fn claim(host: &'a VmHost, number: SwitchNumber) -> Result<Runner<'a>, Refusal> {
        let turn = Turn::take(host, number)?;
        let switch = turn.switch(&host.registry)?;
        Ok(turn.runner(host, switch))
    }

    /// The turn without the switch, for a command that is about to change that.
    pub(super) fn into_turn(self) -> Turn {
        Turn { number: self.switch.number, folder: self.folder, busy: self._busy }
    }

    pub(crate) fn runs(&self) -> bool {
        runs(&self.folder)
    }

    /// Starts the process if it does not run. One that cannot be brought up in time is an error that names the switch.
    pub(crate) fn ensure(&self) -> Result<(), Refusal> {
        if self.runs() {
            // Its keeper may be bringing it back at this moment.
            return self.ask(&Request::Ping, &[]).map(drop);
        }
        let plugs = self.plugs_of_running()?;
        let Vswitch { number, name, state, .. } = &self.switch;
        let mut wanted = Wanted::new(*number, name.clone(), *state);
        let wire = self.wire_as_can_be();
        (wanted.wire, wanted.interface) = (wire.kind, wire.interface.clone());
        let mut sockets = Vec::new();
        for (plug, attached, ids) in plugs {
            sockets.push((plug.port, open_socket(&attached, ids)?));
            wanted.put(plug);
        }
        self.launch(&wanted, sockets, wire)
    }

    /// Has the process replaced by one of the program that is installed now. It goes on with the same ports and wire, and QEMU
    /// connects to it by itself.
    pub(crate) fn renew(&self) -> Result<(), Refusal> {
        self.ask(&Request::Renew, &[])?;
        self.ask_until(Instant::now() + RENEWAL_BOUND, &Request::Ping, &[]).map(drop)
    }

    /// Gives guests that run the ports that the process has not: one before it may have been unable to serve them. Gives what is
    /// in the way of each.
    pub(crate) fn give_missing_ports(&self) -> Result<Vec<Refusal>, Refusal> {
        let Some(status) = self.status() else { return Ok(Vec::new()) };
        let plugs = self.plugs_of_running()?.into_iter();
        let missing = plugs.filter(|(plug, ..)| status.port(plug.port).is_none());
        let given = missing.map(|(plug, attached, ids)| {
            let socket = open_socket(&attached, ids)?;
            self.ask(&Request::Attach { plug }, &[socket.as_fd()]).map(drop)
        });
        Ok(given.filter_map(Result::err).collect())
    }

    /// Tells the process its name and the rules of its ports where it has others: by this change, or by one whose command was
    /// ended before it told them.
    pub(crate) fn tell_changes(&self) -> Result<(), Refusal> {
        let Some(status) = self.status() else { return Ok(()) };
        if status.name != self.switch.name {
            self.ask(&Request::Rename { name: self.switch.name.clone() }, &[])?;
        }
        let wanted = self.wanted();
        for port in status.ports.iter().map(|now| now.port) {
            let rules = self.switch.rules(port);
            let has = wanted.as_ref().and_then(|wanted| wanted.plug(port)).map(|plug| &plug.rules);
            if has != Some(&rules) {
                self.ask(&Request::Rules { port, rules }, &[])?;
            }
        }
        Ok(())
    }

    /// Opens the wire; what is in the way is told in the switch's log, since guests start without a wire all the same.
    fn wire_as_can_be(&self) -> Opened {
        wire::open(self.host, &self.switch).unwrap_or_else(|refusal| {
            if let Ok(mut log) = self.log() {
                let now = jiff::Timestamp::now();
                let _ = writeln!(log, "{now:.3} {}", hpvm_model::chain(&refusal));
            }
            Opened::nothing_of(&self.switch)
        })
    }

    /// Whether the process holds the tap that the switch is to have, and that is still there: another interface may have its
    /// name by now. Nobody gets a tap a second time.
    pub(crate) fn has_tap(&self) -> bool {
        matches!(self.switch.wire, Wire::Tap(_))
            && self.wanted().is_some_and(|wanted| has_wire(&wanted, &self.switch))
            && wire_now(&self.folder) == WireNow::There
    }

    /// Whether the process, if it runs, was told of the wire that the switch is to have.
    pub(super) fn was_told_wire(&self) -> bool {
        self.wanted().is_none_or(|wanted| has_wire(&wanted, &self.switch))
    }

    /// What the process goes on with when it is started again.
    fn wanted(&self) -> Option<Wanted> {
        wanted(&self.folder)
    }

    /// Gives the running process the wire that the switch is to have. Where that cannot be had, it keeps no other.
    pub(crate) fn exchange_wire(&self) -> Result<(), Refusal> {
        let opened = wire::open(self.host, &self.switch);
        if opened.is_err() && !self.was_told_wire() {
            // What is in the way of the wire is the thing to tell.
            let _ = self.hand_over(&Opened::nothing_of(&self.switch));
        }
        self.hand_over(&opened?)
    }

    fn hand_over(&self, opened: &Opened) -> Result<(), Refusal> {
        let descriptors: Vec<BorrowedFd<'_>> = opened.descriptor.iter().map(AsFd::as_fd).collect();
        let request = Request::Wire { kind: opened.kind, interface: opened.interface.clone() };
        self.ask(&request, &descriptors).map(drop)
    }

    /// Gives a guest's NIC its port. The socket is new: who connected to an old one connects again.
    pub(crate) fn attach(
        &self,
        config: &GuestConfig,
        attached: &AttachedNic,
    ) -> Result<(), Refusal> {
        self.ensure()?;
        let base = self.host.conf.uid_base()?;
        let socket = open_socket(attached, users::guest_ids(base, config.number.get()))?;
        let plug = plug(&self.switch, config, attached);
        let asked = self.ask(&Request::Attach { plug }, &[socket.as_fd()]);
        if asked.is_err() {
            // A process without a port has nothing to do.
            let _ = self.detach(config.number, Some(attached.nic.port));
        }
        asked.map(drop)
    }

    /// Takes ports from a guest, and ends the process after the last one.
    pub(crate) fn detach(
        &self,
        guest: GuestNumber,
        port: Option<PortNumber>,
    ) -> Result<(), Refusal> {
        if !self.runs() {
            return Ok(());
        }
        self.ask(&Request::Detach { guest, port }, &[])?;
        if self.wanted().is_some_and(|wanted| wanted.ports.is_empty()) {
            self.wait_until_gone();
            self.clear_away()?;
        }
        Ok(())
    }

    /// Asks the process; fine when it does not run, since then there is nobody who would have to know.
    pub(crate) fn tell(&self, request: &Request) -> Result<(), Refusal> {
        match self.runs() {
            true => self.ask(request, &[]).map(drop),
            false => Ok(()),
        }
    }

    pub(crate) fn ask(
        &self,
        request: &Request,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<Asked, Refusal> {
        self.ask_until(Instant::now() + ASK_BOUND, request, descriptors)
    }

    fn ask_until(
        &self,
        deadline: Instant,
        request: &Request,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<Asked, Refusal> {
        let control = self.folder.join(switch_folder::CONTROL);
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match client::ask(&control, request, descriptors, left.max(Duration::from_millis(1))) {
                // It was killed over the question, and its keeper starts another.
                Err(ClientError::Closed) if !left.is_zero() && self.runs() => pause(),
                Err(ClientError::Deadline(_) | ClientError::Closed) => {
                    return Err(self.not_up(ASK_BOUND));
                }
                Err(source) => {
                    let name = self.switch.name.clone();
                    return Err(SwitchRefused::Asked { name, source }.into());
                }
                Ok(asked) => return Ok(asked),
            }
        }
    }

    /// What the process published last; `None` when it does not run.
    pub(crate) fn status(&self) -> Option<Status> {
        status(self.host, self.switch.number.get())
    }

    fn not_up(&self, bound: Duration) -> Refusal {
        let log = self.host.root.switch_log(self.switch.number.get());
        SwitchRefused::NotUp {
            name: self.switch.name.clone(),
            seconds: bound.as_secs(),
            log: log.to_string_lossy().into_owned(),
        }
        .into()
    }

    /// The NICs of all guests that run on this switch, as their boot records have them.
    fn plugs_of_running(&self) -> Result<Vec<(Plug, AttachedNic, Option<Ids>)>, Refusal> {
        let base = self.host.conf.uid_base()?;
        let mut plugs = Vec::new();
        for (config, machine) in self.host.machines()? {
            for attached in machine.nics.iter().filter(|a| a.switch == self.switch.number) {
                let ids = users::guest_ids(base, config.number.get());
                plugs.push((plug(&self.switch, &config, attached), attached.clone(), ids));
            }
        }
        Ok(plugs)
    }

    fn launch(
        &self,
        wanted: &Wanted,
        sockets: Vec<(PortNumber, UnixListener)>,
        wire: Opened,
    ) -> Result<(), Refusal> {
        let base = self.host.conf.uid_base()?;
        let ids = users::switch_ids(base, self.switch.number.get());
        let path = |name: &str| self.folder.join(name);
        if let Some(Ids { uid, gid }) = ids {
            lchown(&self.folder, Some(uid), Some(gid))
                .map_err(Refusal::file("hand over", &self.folder))?;
        }
        removal::file(&path(switch_folder::STATUS))
            .map_err(Refusal::file("remove", path(switch_folder::STATUS)))?;
        durable::replace_file(&path(switch_folder::PORTS), wanted.to_text().as_bytes(), 0o644)?;
        let lock = path(switch_folder::LOCK);
        let lock = supervision::open(&lock, lock_ids(self.host, ids)?)
            .map_err(Refusal::file("open", lock))?;
        let daemon = Program { path: program("hpvmnetd")?, args: Vec::new(), ids };
        let keeper = program("hpvmkeeper")?;
        let mut launch = Launch::alone(&daemon);
        launch.lock(lock);
        launch.keep_launch(fds::LAUNCH);
        launch.app_fd(listen(&path(switch_folder::CONTROL), 0o600, None)?, fds::CONTROL);
        launch.log(self.log()?, fds::LOG);
        for (path, flags, number) in [
            (&self.folder, OFlags::DIRECTORY, fds::RUN_FOLDER),
            (&keeper, OFlags::empty(), fds::KEEPER_PROGRAM),
            (&daemon.path, OFlags::empty(), fds::PROGRAM),
        ] {
            launch.app_fd(hold(path, flags).map_err(Refusal::file("open", path))?, number);
        }
        launch.app_program_fd(fds::PROGRAM);
        for (port, socket) in sockets {
            launch.kept_fd(socket, port.number().into());
        }
        if let Some(descriptor) = wire.descriptor {
            launch.kept_fd(descriptor, WIRE_TAG);
        }
        let (ready, theirs) = io::pipe().map_err(Refusal::file("make a pipe for", &self.folder))?;
        launch.app_once_fd(theirs, fds::READY);
        let _lodging = self.host.lodging();
        lift_limits();
        let keeper = launch.spawn(&keeper).map_err(|source| self.not_kept(source))?;
        let is_up = self.wait_until_ready(ready);
        if is_up.is_err() && wanted.ports.is_empty() {
            // No guest waits for it to come up late, and the next start tries anew.
            let _ = keeper.end();
            let _ = self.clear_away();
        }
        is_up
    }

    /// Removes what a process that has ended leaves.
    fn clear_away(&self) -> Result<(), Refusal> {
        wire::end_nat(self.host, &self.switch);
        for name in [
            switch_folder::CONTROL,
            switch_folder::STATUS,
            switch_folder::PORTS,
            switch_folder::WIRE,
        ] {
            let path = self.folder.join(name);
            removal::file(&path).map_err(Refusal::file("remove", path))?;
        }
        Ok(())
    }

    fn not_kept(&self, source: LaunchError) -> Refusal {
        SwitchRefused::Keeper { name: self.switch.name.clone(), source }.into()
    }

    /// The first process says so. Of one that died before the next is asked, since a keeper tries again at once.
    fn wait_until_ready(&self, mut ready: io::PipeReader) -> Result<(), Refusal> {
        let deadline = Instant::now() + UP_BOUND;
        let timeout = Timespec::try_from(UP_BOUND).unwrap_or_default();
        let is_told = {
            let pipe = ready.as_fd();
            poll(&mut [PollFd::new(&pipe, PollFlags::IN)], Some(&timeout))
        };
        let mut said = [0; 8];
        match is_told {
            Ok(1) if ready.read(&mut said).is_ok_and(|count| count > 0) => Ok(()),
            _ => self.ask_until(deadline, &Request::Ping, &[]).map(drop),
        }
    }

    /// The keeper ends some milliseconds after the process that had no port any more.
    fn wait_until_gone(&self) {
        let deadline = Instant::now() + UP_BOUND;
        while self.runs() && Instant::now() < deadline {
            pause();
        }
    }

    /// The process reads it to cut it.
    fn log(&self) -> Result<File, Refusal> {
        let path = self.host.root.switch_log(self.switch.number.get());
        OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .mode(0o640)
            .open(&path)
            .map_err(Refusal::file("open", &path))
    }
}

/// What the process of a switch published last; `None` when it does not run.
pub(crate) fn status(host: &VmHost, number: u32) -> Option<Status> {
    let folder = host.root.switch_dir(number);
    if !runs(&folder) {
        return None;
    }
    let file = durable::open_regular(&folder.join(switch_folder::STATUS)).ok()?;
    let mut text = String::new();
    file.take(4 << 20).read_to_string(&mut text).ok()?;
    Status::read(&text)
}

/// The guests that have ports of a switch.
pub(super) fn guests_on(host: &VmHost, switch: SwitchNumber) -> BTreeSet<GuestNumber> {
    let wanted = wanted(&host.root.switch_dir(switch.get()));
    wanted.into_iter().flat_map(|wanted| wanted.ports).map(|plug| plug.number).collect()
}

/// Whether a command is at the switch.
pub(crate) fn is_being_changed(host: &VmHost, switch: &Vswitch) -> bool {
    let folder = host.root.switch_dir(switch.number.get());
    matches!(lock::owner(&folder.join(switch_folder::BUSY)), Ok(Some(_)))
}

/// What the process of a switch has otherwise than the registry, in words: the command that changed it was ended before it told
/// the process. A switch that a command is at is left alone.
pub(crate) fn untold(host: &VmHost, switch: &Vswitch) -> Result<Vec<String>, Refusal> {
    let folder = host.root.switch_dir(switch.number.get());
    let is_at_rest = matches!(lock::owner(&folder.join(switch_folder::BUSY)), Ok(None));
    let Some(wanted) = wanted(&folder).filter(|_| is_at_rest && runs(&folder)) else {
        return Ok(Vec::new());
    };
    // Whoever had it was told what the registry says by then.
    if host.registry.vswitch(&SwitchSelector::Number(switch.number))?.as_ref() != Some(switch) {
        return Ok(Vec::new());
    }
    let own = [
        (wanted.name == switch.name, "its name"),
        (wanted.state == switch.state, "its state"),
        (has_wire(&wanted, switch), "its wire"),
    ];
    let mut untold: Vec<String> =
        own.into_iter().filter(|(is_told, _)| !is_told).map(|(_, what)| what.into()).collect();
    let ports = wanted.ports.iter().filter(|plug| plug.rules != switch.rules(plug.port));
    untold.extend(ports.map(|plug| format!("the rules of port {}", plug.port)));
    Ok(untold)
}

fn has_wire(wanted: &Wanted, switch: &Vswitch) -> bool {
    let (kind, interface) = match &switch.wire {
        Wire::None => (WireKind::None, None),
        Wire::Nic(name) => (WireKind::Packets, Some(name)),
        Wire::Tap(name) => (WireKind::Tap, Some(name)),
        Wire::Nat => (WireKind::Nat, None),
    };
    (wanted.wire, wanted.interface.as_ref()) == (kind, interface)
}

/// Whether the process of a switch runs without the interface that is its wire.
pub(crate) fn lacks_wire(host: &VmHost, switch: &Vswitch) -> bool {
    let folder = host.root.switch_dir(switch.number.get());
    let has_interface = switch.wire.interface().is_some();
    has_interface && runs(&folder) && wire_now(&folder) == WireNow::Missing
}

/// The same where the interface is there, or may be: its process could not have it.
pub(crate) fn was_refused_wire(host: &VmHost, switch: &Vswitch) -> bool {
    let may_be_there = match &switch.wire {
        Wire::Nic(name) => wire::interface(name).is_some(),
        // One may be there as somebody else's.
        Wire::Tap(_) => true,
        Wire::None | Wire::Nat => false,
    };
    may_be_there && lacks_wire(host, switch)
}

/// The same of a tap.
pub(super) fn lacks_tap(host: &VmHost, switch: &Vswitch) -> bool {
    matches!(switch.wire, Wire::Tap(_)) && lacks_wire(host, switch)
}

/// What the process says of its wire. One that says nothing has nothing to complain of.
fn wire_now(folder: &Path) -> WireNow {
    let text =
        durable::open_regular(&folder.join(switch_folder::WIRE)).and_then(io::read_to_string);
    text.map_or(WireNow::There, |text| WireNow::read(&text))
}

fn wanted(folder: &Path) -> Option<Wanted> {
    let file = durable::open_regular(&folder.join(switch_folder::PORTS)).ok()?;
    Wanted::read(&io::read_to_string(file).ok()?).ok()
}

fn runs(folder: &Path) -> bool {
    match Supervision::at(&folder.join(switch_folder::LOCK)) {
        // What it publishes is there as long as it is, and longer only if it was killed.
        Ok(Supervision::Unseen) => folder.join(switch_folder::STATUS).exists(),
        supervision => supervision.is_ok_and(|supervision| supervision != Supervision::None),
    }
}

/// Whether whoever asks cannot see that the process of a switch lives, and has only what it published last.
pub(crate) fn is_unseen(host: &VmHost, switch: &Vswitch) -> bool {
    let folder = host.root.switch_dir(switch.number.get());
    let supervision = Supervision::at(&folder.join(switch_folder::LOCK));
    supervision.is_ok_and(|supervision| supervision == Supervision::Unseen) && runs(&folder)
}

fn plug(switch: &Vswitch, config: &GuestConfig, attached: &AttachedNic) -> Plug {
    let nic = &attached.nic;
    Plug {
        port: nic.port,
        guest: config.name.clone(),
        number: config.number,
        slot: nic.slot,
        kind: nic.kind,
        mac: nic.mac,
        features: attached.features,
        rules: switch.rules(nic.port),
    }
}

/// The listening socket to which a guest's QEMU connects a NIC, in a folder that its user alone may enter.
fn open_socket(attached: &AttachedNic, ids: Option<Ids>) -> Result<UnixListener, Refusal> {
    let path = Path::new(&attached.socket);
    let folder = path.parent().unwrap_or(path);
    let owner = ids.map(|Ids { gid, .. }| Ids { uid: users::effective_uid(), gid });
    listen::folder(folder, 0o750, owner).map_err(Refusal::file("make the folder", folder))?;
    Ok(listen(path, 0o660, owner)?)
}

/// `run/net` and the switch's own folder in it.
fn make_folder(folder: &Path) -> Result<(), Refusal> {
    let mut folders = folder.parent().into_iter().chain([folder]);
    folders.try_for_each(|folder| {
        make_public_folder(folder).map_err(Refusal::file("make the folder", folder))
    })
}

/// A held lock cannot be waited for without taking it, so it is looked at again, a millisecond apart.
pub(super) fn pause() {
    pause_for(Duration::from_millis(1));
}
