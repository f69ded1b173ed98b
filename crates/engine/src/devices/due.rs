//! Changes that wait for the guest's reset: what they need is taken when they are told, so that a store that is to come is the
//! guest's from then on, whoever of us dies; the devices themselves come and go at the reset.

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;

use hpvm_model::StorageAddress;
use hpvm_plan::command_line::{adapter_at, device_id, layer_id, node_id};
use hpvm_plan::guest_path::Function;
use hpvm_plan::record::{AdapterPresence, Attached, DeviceChange, Machine};
use hpvm_qmp::client::Client;
use hpvm_qmp::command::{DeviceDel, ReadRegisters};
use hpvm_qmp::{Occupant, deadline};

use super::media::is_node_of;
use super::present::{self, Present};
use super::{Attach, Bench, DeviceError, Performed};

/// The nodes that are open already and in no device yet.
pub(super) fn spared(machine: &Machine) -> BTreeSet<String> {
    let waits = machine.waiting().filter_map(|pending| match &pending.change {
        DeviceChange::Attach { devices, .. } => Some((pending.seq, devices)),
        _ => None,
    });
    waits.flat_map(|(seq, devices)| nodes(seq, devices)).collect()
}

fn nodes(seq: u64, devices: &[Attached]) -> Vec<String> {
    let of = |attached: &Attached| {
        let address = attached.device.address;
        let layers = (0..attached.layers.len()).map(move |place| layer_id(address, place));
        layers.chain([node_id(address, seq)]).collect::<Vec<_>>()
    };
    devices.iter().flat_map(of).collect()
}

/// Whether no operating system runs in the guest: it was reset, and that was not long ago.
pub async fn is_in_firmware(client: &Client) -> bool {
    let registers = client.execute(&ReadRegisters {}).await;
    registers.is_ok_and(|registers| registers.occupant() == Occupant::Firmware)
}

impl Bench<'_> {
    /// Takes what a change needs that is made later.
    pub async fn prepare(
        &mut self,
        seq: u64,
        change: &DeviceChange,
        descriptors: &mut dyn Iterator<Item = OwnedFd>,
    ) -> Result<Performed, DeviceError> {
        if let DeviceChange::Attach { slot, kind, adapter, devices } = change {
            let attach = Attach { seq, slot: *slot, kind: *kind, adapter: *adapter, devices };
            if let Err(error) = self.add_media(&attach, descriptors).await {
                self.let_media_go(seq, devices).await;
                return Err(error);
            }
        }
        Ok(Performed::Prepared)
    }

    /// Makes a change that was prepared. What an adapter is to come with had to be told before it was known whether it would be
    /// there.
    pub async fn perform_prepared(
        &mut self,
        seq: u64,
        change: &DeviceChange,
    ) -> Result<Performed, DeviceError> {
        match change {
            DeviceChange::Detach { address, .. } => self.leave(*address).await,
            DeviceChange::Attach { slot, kind, devices, .. } => {
                let adapter = self.machine.presence(*slot);
                let attach = Attach { seq, slot: *slot, kind: *kind, adapter, devices };
                self.attach_prepared(&attach).await
            }
            _ => Ok(Performed::Done),
        }
    }

    /// Takes a device out of a guest in which nobody has it; one that is gone already has left. What takes its place keeps its
    /// node.
    async fn leave(&mut self, address: StorageAddress) -> Result<Performed, DeviceError> {
        let id = device_id(address);
        if present::ask(self.client).await?.devices.contains(&id) {
            self.client.execute(&DeviceDel { id: id.clone() }).await?;
            self.until_absent(&id, deadline::DEVICE_DELETED).await;
            if present::ask(self.client).await?.devices.contains(&id) {
                return Err(DeviceError::StillThere(address));
            }
        }
        self.discard_media_of_left(address).await;
        Ok(Performed::Done)
    }

    /// What a worker that died over it has plugged in already is taken as it is.
    async fn attach_prepared(&mut self, attach: &Attach<'_>) -> Result<Performed, DeviceError> {
        let mut present = present::ask(self.client).await?;
        let is_there = |present: &Present, function| {
            present.devices.contains(&adapter_at(attach.slot, function))
        };
        if attach.adapter == AdapterPresence::New && !is_there(&present, Function::First) {
            // Of the old one the second function may leave last.
            let second = adapter_at(attach.slot, Function::Second);
            self.until_absent(&second, deadline::DEVICE_DELETED).await;
            present = present::ask(self.client).await?;
        }
        let is_taken = |attached: &&Attached| {
            let id = device_id(attached.device.address);
            let is_ours = present.media.get(&id) == attach.node_of(attached).as_ref();
            self.machine.device_at(attached.device.address).is_some()
                || present.devices.contains(&id) && !is_ours
        };
        if let Some(taken) = attach.devices.iter().find(is_taken) {
            self.let_media_go(attach.seq, attach.devices).await;
            return Err(DeviceError::StillThere(taken.device.address));
        }
        let plugged = self.plug_as_needed(attach, &present).await;
        if plugged.is_err() {
            self.spare_no_more(attach.seq, attach.devices);
            self.undo_attach(attach.slot, attach.adapter, attach.devices).await;
        }
        plugged
    }

    /// Closes what was opened for devices that do not come.
    async fn let_media_go(&mut self, seq: u64, devices: &[Attached]) {
        self.spare_no_more(seq, devices);
        for attached in devices {
            self.discard_unused_media(attached.device.address).await;
        }
    }

    fn spare_no_more(&mut self, seq: u64, devices: &[Attached]) {
        for name in nodes(seq, devices) {
            self.spared.remove(&name);
        }
    }

    /// What waits at this address waits no more.
    pub(super) async fn take_back(&mut self, address: StorageAddress) {
        self.spared.retain(|name| !is_node_of(name, address));
        self.discard_unused_media(address).await;
    }
}
