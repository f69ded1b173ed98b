//! The switch's wire: had back by whoever comes after a process that was killed, exchanged by commands, and kept on the
//! interface of its name by what the kernel tells, whatever becomes of that: gone and back, another card, another address.
//!
//! A tap whose interface was deleted is gone for good, since a new one takes rights that this process has not; the next boot
//! of the switch brings it.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use hpvm_host::names::switch_folder;
use hpvm_host::nic::wire::{follow, followed};
use hpvm_host::nic::{LinkNews, LinkWatch};
use hpvm_host::paths::within;
use hpvm_model::{InterfaceName, WireNow, chain};
use hpvm_vswitch::{PacketWire, Switch, TapWire, WireOptions};
use hpvm_vswitchd::wanted::{WATCH_TAG, WIRE_TAG, Wanted, WireKind};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{Daemon, Refused, spawn};
use crate::link::Link;
use crate::log::Log;
use crate::uplink::Turn;
use crate::{Failure, Input};

/// The kernel tells of all interfaces in some milliseconds. A switch begins without knowing when it does not.
const ALL_TOLD_BOUND: Duration = Duration::from_secs(1);

/// The socket at which the kernel tells of interfaces: what the keeper kept, or a new one, which it keeps from now on.
pub(super) fn watch(
    link: &Link,
    kept: &mut BTreeMap<u32, OwnedFd>,
    log: &mut Log,
) -> Option<Arc<LinkWatch>> {
    let opened = match kept.get(&WATCH_TAG) {
        Some(socket) => socket.try_clone().map(LinkWatch::of).map_err(|error| error.to_string()),
        None => LinkWatch::new().map_err(|error| chain(&error)),
    };
    match opened {
        Ok(watch) => {
            let copy = watch.as_fd().try_clone_to_owned().ok();
            // One that is not kept is missed by a process that may open none, and by no other.
            if let Some(copy) = copy.filter(|copy| link.keep(WATCH_TAG, copy.as_fd()).is_ok()) {
                kept.insert(WATCH_TAG, copy);
            }
            Some(Arc::new(watch))
        }
        Err(why) => {
            log.say(&format!("what becomes of network interfaces is not told: {why}"));
            None
        }
    }
}

impl Daemon {
    /// A wire that cannot be had back is lost like one whose interface is gone; the next boot of the switch brings it.
    pub(super) fn resume_wire(&mut self) {
        let kind = self.wanted.wire;
        let kept = self.kept.get(&WIRE_TAG).and_then(|fd| fd.try_clone().ok());
        if let Err(error) = self.attach_wire(kind, kept) {
            self.log.say(&format!("the wire cannot be had back: {}", chain(&error)));
        }
    }

    fn attach_wire(&mut self, kind: WireKind, fd: Option<OwnedFd>) -> Result<(), Refused> {
        self.awaits_nat = false;
        self.wire_attached = false;
        let wire: WireOptions = match kind {
            WireKind::None => return Ok(()),
            WireKind::Packets => {
                let socket = fd.ok_or(Refused::Alone)?;
                // Until its interface is there.
                if followed(socket.as_fd()).is_ok_and(|index| index.is_none()) {
                    return Ok(());
                }
                WireOptions::Device(Box::new(PacketWire::new(socket)))
            }
            WireKind::Tap => WireOptions::Device(Box::new(TapWire::new(fd.ok_or(Refused::Alone)?))),
            WireKind::Nat => {
                let socket = within(&self.folder.as_fd(), switch_folder::NAT);
                match UnixStream::connect(socket) {
                    Ok(stream) => WireOptions::Stream(stream),
                    Err(_) => {
                        self.awaits_nat = true;
                        return Ok(());
                    }
                }
            }
        };
        self.switch.attach_wire(wire)?;
        self.wire_attached = true;
        Ok(())
    }

    /// Exchanges the wire. What the keeper holds of the old one goes, also when the new one cannot be had.
    pub(super) fn change_wire(
        &mut self,
        kind: WireKind,
        interface: Option<InterfaceName>,
        fd: Option<OwnedFd>,
    ) -> Result<(), Refused> {
        let wish = |wanted: &mut Wanted| {
            wanted.wire = kind;
            wanted.interface = interface;
        };
        self.change(wish, Switch::detach_wire)?;
        (self.awaits_nat, self.wire_attached) = (false, false);
        self.kept.remove(&WIRE_TAG);
        self.link.release(WIRE_TAG);
        let kept = fd.as_ref().map_or(Ok(()), |fd| self.keep_wire(fd).map_err(Refused::Keep));
        let attached = kept.and_then(|()| self.attach_wire(kind, fd));
        self.uplink.rename(self.wanted.interface.clone());
        let turn = self.uplink.look_anew();
        self.follow(turn);
        attached
    }

    fn keep_wire(&mut self, fd: &OwnedFd) -> std::io::Result<()> {
        self.link.keep(WIRE_TAG, fd.as_fd())?;
        self.kept.insert(WIRE_TAG, fd.try_clone()?);
        Ok(())
    }

    /// Looks at all interfaces once, then hears what becomes of them.
    pub(super) fn follow_links(&mut self) -> Result<(), Failure> {
        let Some(watch) = self.watch.clone() else { return Ok(()) };
        let turn = self.uplink.look_anew();
        self.follow(turn);
        let deadline = Instant::now() + ALL_TOLD_BOUND;
        while self.uplink.is_asking() {
            let left = deadline.saturating_duration_since(Instant::now());
            let left = Timespec::try_from(left).unwrap_or_default();
            if !matches!(poll(&mut [PollFd::new(&*watch, PollFlags::IN)], Some(&left)), Ok(1..)) {
                self.log.say("the kernel is slow in telling its network interfaces");
                break;
            }
            match watch.read() {
                Ok(news) => self.links_told(&news),
                Err(error) => {
                    self.log.say(&chain(&error));
                    break;
                }
            }
        }
        let owner = self.to_owner.clone();
        spawn("links", move || hear(&watch, &owner))
    }

    pub(super) fn links_told(&mut self, news: &[LinkNews]) {
        for news in news {
            let turn = self.uplink.hear(news);
            self.follow(turn);
        }
    }

    fn follow(&mut self, turn: Turn) {
        match turn {
            Turn::Nothing => {}
            Turn::Ask => {
                if let Some(Err(error)) = self.watch.as_ref().map(|watch| watch.ask_for_all()) {
                    self.log.say(&chain(&error));
                }
            }
            Turn::Here { index, news } => {
                news.iter().for_each(|news| self.log.say(news));
                if self.wanted.wire == WireKind::Packets {
                    match self.use_interface(index) {
                        // It is on its way out, as is told next.
                        Err(Refused::Follow(error)) if is_no_device(&error) => {}
                        Err(error) => {
                            self.log.say(&format!("the wire cannot be had: {}", chain(&error)));
                        }
                        Ok(()) => {}
                    }
                }
            }
            Turn::Gone { is_news } => {
                if is_news {
                    self.log.say("the interface of the wire is not there");
                }
                // A switch whose thread is silent says so to the next command.
                let _ = self.switch.detach_wire();
                self.wire_attached = false;
            }
        }
    }

    /// Makes the packet socket that of the interface with this index, if it is another's or nobody's.
    fn use_interface(&mut self, index: u32) -> Result<(), Refused> {
        let Some(socket) = self.kept.get(&WIRE_TAG) else { return Ok(()) };
        let is_its = followed(socket.as_fd()).map_err(Refused::Follow)? == Some(index);
        if is_its && self.wire_attached {
            return Ok(());
        }
        if !is_its {
            follow(socket.as_fd(), index).map_err(Refused::Follow)?;
        }
        let copy = socket.try_clone().map_err(Refused::Follow)?;
        // Stations beyond another card are elsewhere.
        self.switch.detach_wire()?;
        self.attach_wire(WireKind::Packets, Some(copy))
    }

    /// The switch had an error from its wire. The word may be late, and be about one before this: so all is looked at anew.
    pub(super) fn wire_lost(&mut self, reason: &str) {
        self.awaits_nat = self.wanted.wire == WireKind::Nat;
        self.wire_attached = false;
        if !self.uplink.is_gone() {
            self.log.say(&format!("the wire is gone: {reason}"));
        }
        if self.wanted.wire == WireKind::Packets {
            let turn = self.uplink.look_anew();
            self.follow(turn);
        }
    }

    /// A process that does NAT is replaced within milliseconds, which no guest needs to see.
    fn wire_now(&self) -> WireNow {
        match self.wanted.wire {
            WireKind::Packets if self.uplink.is_gone() || !self.kept.contains_key(&WIRE_TAG) => {
                WireNow::Missing
            }
            WireKind::Tap if self.uplink.is_gone() || !self.wire_attached => WireNow::Missing,
            _ => WireNow::There,
        }
    }

    /// Tells guests' workers, when it is another than before.
    pub(super) fn tell_wire(&mut self) {
        let now = self.wire_now();
        if self.wire_told != Some(now)
            && self.folder.replace(switch_folder::WIRE, now.to_text()).is_ok()
        {
            self.wire_told = Some(now);
        }
    }
}

fn is_no_device(error: &std::io::Error) -> bool {
    error.raw_os_error() == Some(rustix::io::Errno::NODEV.raw_os_error())
}

/// Tells the owner what the kernel tells, as long as both are there.
fn hear(watch: &LinkWatch, owner: &Sender<Input>) {
    loop {
        // Without a bound: there may never be news. An interrupted wait finds none.
        let _ = poll(&mut [PollFd::new(watch, PollFlags::IN)], None);
        match watch.read() {
            Ok(news) if news.is_empty() => {}
            Ok(news) => match owner.send(Input::Links(news)) {
                Ok(()) => {}
                Err(_) => return,
            },
            Err(_) => return,
        }
    }
}
