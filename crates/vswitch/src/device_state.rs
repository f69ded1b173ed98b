//! The virtio-net device of one peer as the vhost-user protocol builds it up (QEMU, docs/interop/vhost-user): features,
//! memory, two rings. Its conversation calls it; the forwarding thread serves the rings.
//!
//! ```text
//!   memory, size, addresses, base, kick, enabled      of both rings ──► Attach ──► forwarding thread
//!   anything that changes while it serves             ──► Detach first, change, Attach again
//! ```
//!
//! Taking the rings back and giving them again costs microseconds and no frame, so no change needs a way of its own.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight,
    VhostUserLog, VhostUserMemoryRegion, VhostUserProtocolFeatures, VhostUserShMemConfig,
    VhostUserSharedMsg, VhostUserSingleMemoryRegion, VhostUserVringAddrFlags, VhostUserVringState,
};
use vhost::vhost_user::{Error, GpuBackend, Result, VhostUserBackendReqHandlerMut};

use crate::command::{Command, NewPeer};
use crate::conversation::Settings;
use crate::event::{Event, RingFault};
use crate::features::{LOG_ALL, PROTOCOL_FEATURES};
use crate::memory::{DirtyLog, Memory, Region, RegionAddress};
use crate::ring::{Direction, Ring, RingPlace, SIZE_MAX};
use crate::switch::PortLink;

/// The rings by number (virtio 1.2, 5.1.2).
const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
/// More than any machine has DIMMs.
const REGIONS_MAX: usize = 64;

pub(crate) struct Device<'a> {
    settings: &'a Settings,
    acknowledged: u64,
    regions: Vec<Arc<Region>>,
    log: Option<Arc<DirtyLog>>,
    rings: [RingState; 2],
    /// Whether the forwarding thread has the rings, as far as it said: until it answers it may have them.
    serving: bool,
    /// What was last told of it.
    announced: bool,
    /// The guest wrote nonsense, and its driver has not begun anew.
    lost: bool,
    complaint: Option<String>,
}

#[derive(Debug, Default)]
struct RingState {
    size: u16,
    addresses: Option<Addresses>,
    base: u16,
    started: bool,
    enabled: bool,
    kick: Option<OwnedFd>,
    call: Option<OwnedFd>,
}

#[derive(Clone, Copy, Debug)]
struct Addresses {
    descriptors: u64,
    available: u64,
    used: u64,
    used_log: Option<u64>,
}

impl<'a> Device<'a> {
    pub(crate) fn new(settings: &'a Settings) -> Device<'a> {
        Device {
            settings,
            acknowledged: 0,
            regions: Vec::new(),
            log: None,
            rings: Default::default(),
            serving: false,
            announced: false,
            lost: false,
            complaint: None,
        }
    }

    /// Whether a driver has acknowledged any.
    pub(crate) fn has_features(&self) -> bool {
        self.acknowledged != 0
    }

    /// The peer is gone.
    pub(crate) fn leave(&mut self) {
        let _ = self.stop();
        self.serving = false;
        self.announce();
    }

    /// Why the peer is sent away, in words.
    pub(crate) fn complaint(&mut self, error: &Error) -> String {
        self.complaint.take().unwrap_or_else(|| error.to_string())
    }

    fn refuse<T>(&mut self, operation: &str, error: &io::Error) -> Result<T> {
        self.complaint = Some(format!("{operation}: {error}"));
        Err(Error::InvalidParam)
    }

    fn ring(&mut self, index: u32) -> Result<&mut RingState> {
        self.rings.get_mut(index as usize).ok_or(Error::InvalidParam)
    }

    /// Changes something while the rings rest, and serves them again if they can be. Fails when the forwarding thread is
    /// silent: the rings may be in use, and where they stand is not known, so the peer has to connect again.
    fn change<T>(&mut self, change: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        self.stop()?;
        let changed = change(self);
        self.serve()?;
        self.announce();
        changed
    }

    /// Takes the rings back from the forwarding thread.
    fn stop(&mut self) -> Result<()> {
        if !self.serving {
            return Ok(());
        }
        let port = self.settings.port;
        let detached = self.ask(|answer| Command::Detach(port, answer))?;
        self.serving = false;
        if let Some(detached) = detached {
            self.rings[RECEIVE].base = detached.bases.receive;
            self.rings[TRANSMIT].base = detached.bases.transmit;
            self.lost |= detached.lost;
        }
        Ok(())
    }

    /// Gives the rings to the forwarding thread, if the driver is ready.
    fn serve(&mut self) -> Result<()> {
        let ready = self.rings.iter().all(RingState::is_ready) && !self.regions.is_empty();
        if !ready || self.lost {
            return Ok(());
        }
        let peer = match self.peer() {
            Ok(peer) => peer,
            Err(fault) => {
                self.lost = true;
                let _ = self.settings.events.send(Event::Lost { port: self.settings.port, fault });
                return Ok(());
            }
        };
        let port = self.settings.port;
        self.serving = true;
        let attached = self.ask(|answer| Command::Attach(port, Box::new(peer), answer))?;
        self.serving = attached.is_ok();
        Ok(())
    }

    fn peer(&self) -> std::result::Result<NewPeer, RingFault> {
        let copy = |event: &Option<OwnedFd>| {
            event.as_ref().map(OwnedFd::try_clone).transpose().map_err(|_| RingFault::Descriptors)
        };
        let memory = Arc::new(Memory::new(self.regions.clone()));
        let ring = |index: usize, direction| {
            let state = &self.rings[index];
            let addresses = state.addresses.ok_or(RingFault::Place)?;
            let place = RingPlace {
                size: state.size,
                descriptors_user: addresses.descriptors,
                available_user: addresses.available,
                used_user: addresses.used,
                base: state.base,
                used_log: addresses.used_log,
            };
            let call = copy(&state.call)?;
            Ring::new(&place, &memory, direction, self.acknowledged, call).ok_or(RingFault::Place)
        };
        let log = self.log.clone().filter(|_| self.acknowledged & LOG_ALL != 0);
        Ok(NewPeer {
            receive: ring(RECEIVE, Direction::ToGuest)?,
            transmit: ring(TRANSMIT, Direction::FromGuest)?,
            log,
            features: self.acknowledged,
            kick: copy(&self.rings[TRANSMIT].kick)?,
            memory: Arc::clone(&memory),
        })
    }

    /// Tells what became of the rings, unless they serve as before.
    fn announce(&mut self) {
        let Settings { port, shared, events, commands, .. } = self.settings;
        shared.set_link(match (self.serving, self.lost) {
            (true, _) => PortLink::Started,
            (false, true) => PortLink::Lost,
            (false, false) => PortLink::Connected,
        });
        if self.announced == self.serving {
            return;
        }
        self.announced = self.serving;
        let event = match self.serving {
            true => Event::Started { port: *port },
            false => {
                commands.send(Command::Forget(*port));
                Event::Stopped { port: *port }
            }
        };
        let _ = events.send(event);
    }

    fn ask<T>(&mut self, command: impl FnOnce(SyncSender<T>) -> Command) -> Result<T> {
        self.settings.commands.ask(command).map_err(|silent| {
            self.complaint = Some(silent.to_string());
            Error::InvalidParam
        })
    }

    fn region(&mut self, region: &VhostUserMemoryRegion, file: &File) -> Result<Arc<Region>> {
        let address = RegionAddress {
            guest: region.guest_phys_addr,
            user: region.user_addr,
            bytes: region.memory_size,
            file_offset: region.mmap_offset,
        };
        match Region::new(address, file, self.settings.memory) {
            Ok(region) => Ok(Arc::new(region)),
            Err(error) => self.refuse("the guest's memory cannot be used", &error),
        }
    }

    /// Forgets everything about the rings, as a driver that begins anew expects.
    fn reset_rings(&mut self) {
        self.rings = Default::default();
        self.lost = false;
    }
}

impl RingState {
    fn is_ready(&self) -> bool {
        self.size > 0 && self.addresses.is_some() && self.started && self.enabled
    }
}

/// Makes sure that writing to an eventfd never waits. Whoever shares it could undo that, and then stops his own switch:
/// the process that can is the hypervisor, not the guest.
fn eventfd(file: Option<File>) -> Result<Option<OwnedFd>> {
    let Some(file) = file else { return Ok(None) };
    let flags = fcntl_getfl(&file).map_err(|_| Error::IncorrectFds)?;
    fcntl_setfl(&file, flags | OFlags::NONBLOCK).map_err(|_| Error::IncorrectFds)?;
    Ok(Some(file.into()))
}

impl VhostUserBackendReqHandlerMut for Device<'_> {
    fn set_owner(&mut self) -> Result<()> {
        Ok(())
    }

    fn reset_owner(&mut self) -> Result<()> {
        self.reset_device()
    }

    fn reset_device(&mut self) -> Result<()> {
        self.change(|device| {
            device.reset_rings();
            Ok(())
        })
    }

    fn get_features(&mut self) -> Result<u64> {
        self.settings.shared.set_features(self.settings.offered, None);
        Ok(self.settings.offered)
    }

    fn set_features(&mut self, features: u64) -> Result<()> {
        let offered = self.settings.offered;
        if features & !offered != 0 {
            self.complaint = Some(format!("features {:#x} were not offered", features & !offered));
            return Err(Error::FeatureMismatch);
        }
        self.change(|device| {
            let news = (device.acknowledged ^ features) & !LOG_ALL != 0;
            device.acknowledged = features;
            if features & PROTOCOL_FEATURES == 0 {
                device.rings.iter_mut().for_each(|ring| ring.enabled = true);
            }
            if news {
                let Settings { port, shared, events, .. } = device.settings;
                shared.set_features(offered, Some(features));
                let acknowledged = features & !LOG_ALL;
                let _ = events.send(Event::Negotiated { port: *port, offered, acknowledged });
            }
            Ok(())
        })
    }

    fn set_mem_table(
        &mut self,
        regions: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _postcopy_listening: Option<bool>,
    ) -> Result<Option<Vec<u64>>> {
        self.change(|device| {
            device.regions.clear();
            for (region, file) in regions.iter().zip(&files) {
                let region = device.region(region, file)?;
                device.regions.push(region);
            }
            Ok(None)
        })
    }

    fn set_vring_num(&mut self, index: u32, size: u32) -> Result<()> {
        let size = u16::try_from(size).map_err(|_| Error::InvalidParam)?;
        if !size.is_power_of_two() || size > SIZE_MAX {
            return Err(Error::InvalidParam);
        }
        self.change(|device| {
            device.ring(index)?.size = size;
            Ok(())
        })
    }

    fn set_vring_addr(
        &mut self,
        index: u32,
        flags: VhostUserVringAddrFlags,
        descriptors: u64,
        used: u64,
        available: u64,
        log: u64,
    ) -> Result<()> {
        let logged = flags.contains(VhostUserVringAddrFlags::VHOST_VRING_F_LOG);
        let used_log = logged.then_some(log);
        self.change(|device| {
            let addresses = Addresses { descriptors, available, used, used_log };
            device.ring(index)?.addresses = Some(addresses);
            Ok(())
        })
    }

    fn set_vring_base(&mut self, index: u32, base: u32) -> Result<()> {
        let base = u16::try_from(base).map_err(|_| Error::InvalidParam)?;
        self.change(|device| {
            device.ring(index)?.base = base;
            Ok(())
        })
    }

    fn get_vring_base(&mut self, index: u32) -> Result<VhostUserVringState> {
        self.change(|device| {
            let ring = device.ring(index)?;
            ring.started = false;
            let base = u32::from(ring.base);
            ring.kick = None;
            ring.call = None;
            if device.rings.iter().all(|ring| !ring.started) {
                device.lost = false;
            }
            Ok(VhostUserVringState::new(index, base))
        })
    }

    fn set_vring_kick(&mut self, index: u8, file: Option<File>) -> Result<()> {
        let kick = eventfd(file)?;
        self.change(|device| {
            let ring = device.ring(index.into())?;
            ring.kick = kick;
            ring.started = true;
            Ok(())
        })
    }

    fn set_vring_call(&mut self, index: u8, file: Option<File>) -> Result<()> {
        let call = eventfd(file)?;
        self.change(|device| {
            device.ring(index.into())?.call = call;
            Ok(())
        })
    }

    fn set_vring_err(&mut self, _index: u8, _file: Option<File>) -> Result<()> {
        Ok(())
    }

    fn get_protocol_features(&mut self) -> Result<VhostUserProtocolFeatures> {
        Ok(VhostUserProtocolFeatures::LOG_SHMFD
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::RESET_DEVICE
            | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS)
    }

    fn set_protocol_features(&mut self, _features: u64) -> Result<()> {
        Ok(())
    }

    fn get_queue_num(&mut self) -> Result<u64> {
        Ok(self.rings.len() as u64)
    }

    fn set_vring_enable(&mut self, index: u32, enable: bool) -> Result<()> {
        self.change(|device| {
            device.ring(index)?.enabled = enable;
            Ok(())
        })
    }

    fn get_max_mem_slots(&mut self) -> Result<u64> {
        Ok(REGIONS_MAX as u64)
    }

    fn add_mem_region(
        &mut self,
        region: &VhostUserSingleMemoryRegion,
        file: File,
        _postcopy_listening: Option<bool>,
    ) -> Result<Option<u64>> {
        if self.regions.len() >= REGIONS_MAX {
            return Err(Error::InvalidParam);
        }
        self.change(|device| {
            let region = device.region(region, &file)?;
            device.regions.push(region);
            Ok(None)
        })
    }

    fn remove_mem_region(&mut self, region: &VhostUserSingleMemoryRegion) -> Result<()> {
        self.change(|device| {
            device.regions.retain(|held| {
                let address = held.address();
                (address.guest, address.user, address.bytes)
                    != (region.guest_phys_addr, region.user_addr, region.memory_size)
            });
            Ok(())
        })
    }

    fn set_log_base(&mut self, log: &VhostUserLog, file: File) -> Result<()> {
        let (offset, bytes) = (log.mmap_offset, log.mmap_size);
        self.change(|device| {
            match DirtyLog::new(&file, offset, bytes, device.settings.memory) {
                Ok(log) => device.log = Some(Arc::new(log)),
                Err(error) => device.refuse("the dirty log cannot be used", &error)?,
            }
            Ok(())
        })
    }

    // What follows belongs to protocol features that were not offered.

    fn get_config(&mut self, _: u32, _: u32, _: VhostUserConfigFlags) -> Result<Vec<u8>> {
        Err(Error::InvalidOperation("no configuration space"))
    }

    fn set_config(&mut self, _: u32, _: &[u8], _: VhostUserConfigFlags) -> Result<()> {
        Err(Error::InvalidOperation("no configuration space"))
    }

    fn set_gpu_socket(&mut self, _: GpuBackend) -> Result<()> {
        Err(Error::InvalidOperation("no display"))
    }

    fn get_shared_object(&mut self, _: VhostUserSharedMsg) -> Result<File> {
        Err(Error::InvalidOperation("no shared objects"))
    }

    fn get_inflight_fd(&mut self, _: &VhostUserInflight) -> Result<(VhostUserInflight, File)> {
        Err(Error::InvalidOperation("chains are used in order"))
    }

    fn set_inflight_fd(&mut self, _: &VhostUserInflight, _: File) -> Result<()> {
        Err(Error::InvalidOperation("chains are used in order"))
    }

    fn set_device_state_fd(
        &mut self,
        _: VhostTransferStateDirection,
        _: VhostTransferStatePhase,
        _: File,
    ) -> Result<Option<File>> {
        Err(Error::InvalidOperation("no state beside the rings"))
    }

    fn check_device_state(&mut self) -> Result<()> {
        Err(Error::InvalidOperation("no state beside the rings"))
    }

    fn get_shmem_config(&mut self) -> Result<VhostUserShMemConfig> {
        Err(Error::InvalidOperation("no shared memory of the device"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::Commands;
    use crate::options::GuestMemory;
    use std::os::unix::net::UnixListener;
    use std::sync::mpsc;

    /// Of a switch whose forwarding thread has ended.
    fn settings() -> Settings {
        let folder = tempfile::tempdir().expect("a folder");
        let (commands, _) = Commands::new().expect("a bell");
        Settings {
            switch: "test".into(),
            port: hpvm_model::PortNumber::new(1).expect("a port's number"),
            listener: UnixListener::bind(folder.path().join("port")).expect("a socket"),
            offered: crate::FEATURES,
            memory: GuestMemory::Trusted,
            shared: Arc::default(),
            commands,
            events: mpsc::channel().0,
        }
    }

    #[test]
    fn nobody_is_told_where_rings_stand_that_were_not_given_back() {
        let settings = settings();
        let mut device = Device { serving: true, ..Device::new(&settings) };
        let told = device.get_vring_base(0).map(drop).expect_err("it may be in use");
        assert!(device.complaint(&told).contains("did not answer"));
        assert!(device.serving, "as long as nothing else is known");
        assert!(device.set_vring_enable(0, true).is_err());
        device.leave();
        assert!(!device.serving);
    }

    #[test]
    fn rings_that_may_be_taken_yet_have_to_be_given_back() {
        const BYTES: u64 = 0x1000;
        let settings = settings();
        let file = tempfile::tempfile().expect("a file");
        file.set_len(BYTES).expect("its length");
        let address = RegionAddress { guest: 0, user: 0, bytes: BYTES, file_offset: 0 };
        let region = Region::new(address, &file, settings.memory).expect("a region");
        let ring = |start| RingState {
            size: 2,
            addresses: Some(Addresses {
                descriptors: start,
                available: start + 0x100,
                used: start + 0x200,
                used_log: None,
            }),
            started: true,
            ..RingState::default()
        };
        let mut device = Device {
            regions: vec![Arc::new(region)],
            rings: [RingState { enabled: true, ..ring(0) }, ring(0x800)],
            ..Device::new(&settings)
        };
        assert!(device.set_vring_enable(1, true).is_err());
        assert!(device.serving);
    }
}
