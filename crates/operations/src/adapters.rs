//! The storage adapters of a guest and the disks, drives and devices behind them (its LUNs): what each is and whether it answers,
//! what it has done, and from when that is counted. Called by `hpvm gvsdmgr`.

mod reset;

use std::collections::BTreeMap;
use std::time::Duration;

use hpvm_app::client;
use hpvm_app::counters::{Counted, Counters};
use hpvm_app::protocol::{Reply, Request};
use hpvm_model::{AdapterKind, GuestConfig, PciSlot, StorageAddress, StorageDevice};
use hpvm_plan::guest_path;
use hpvm_plan::record::Sharing;

pub use reset::{ResetError, reset};

use crate::presence::{Presence, Supervision};
use crate::{Actor, Mode, Refusal, VmHost, supervise};

/// QEMU looks its counters up at once; a worker waits no longer for it.
const COUNTERS_BOUND: Duration = Duration::from_secs(10);

/// An adapter of a guest.
#[derive(Clone, Debug)]
pub struct Adapter {
    pub slot: PciSlot,
    pub kind: AdapterKind,
    /// In order of target.
    pub luns: Vec<Lun>,
}

/// What is behind one target.
#[derive(Clone, Debug)]
pub struct Lun {
    pub device: StorageDevice,
    /// By which the guest knows it (NAA, SPC-4, 7.8.6.6); `None` of what answers for itself, or may when the guest has it.
    pub naa: Option<u64>,
    pub state: LunState,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LunState {
    /// The running guest has it.
    Online,
    /// The same, and what backs it has not answered since, RFC 3339.
    Silent { since: String },
    /// The running guest gets it at its next reset.
    NextReset,
    /// The running guest gets it with its next start.
    NextStart,
    /// The guest is off.
    Off,
}

/// What the LUNs of an adapter have done, and so the adapter.
#[derive(Clone, Debug)]
pub struct Statistics {
    pub adapter: Adapter,
    /// One for each LUN of the running guest.
    pub luns: Vec<Counted>,
}

impl Adapter {
    /// Whether the running guest has it.
    #[must_use]
    pub fn is_online(&self) -> bool {
        self.luns.iter().any(|lun| matches!(lun.state, LunState::Online | LunState::Silent { .. }))
    }
}

impl Statistics {
    #[must_use]
    pub fn sum(&self) -> Counters {
        self.luns.iter().fold(Counters::default(), |sum, lun| sum.and(lun.counters))
    }
}

/// The adapters of a guest with all that is behind them: those of the running machine, and what its next reset or start brings.
#[must_use]
pub fn adapters(host: &VmHost, config: &GuestConfig) -> Vec<Adapter> {
    let machine = host.machine(config);
    let presence = host.presence(config.number);
    let silent = presence.snapshot().map(|shown| shown.silent_stores.as_slice());
    let is_on = presence.is_on();
    let running = machine.iter().flat_map(|machine| &machine.storage);
    let mut luns: Vec<Lun> = running
        .map(|attached| {
            let address = attached.device.address;
            let silent = silent.filter(|_| is_on).unwrap_or_default();
            let silent = silent.iter().find(|store| store.is_of(address));
            let state = match silent {
                Some(store) => LunState::Silent { since: store.since.clone() },
                None => LunState::Online,
            };
            let naa = guest_path::naa(&attached.device, attached.sharing);
            Lun { device: attached.device.clone(), naa, state }
        })
        .collect();
    let comes_at_reset =
        |at| machine.as_ref().is_some_and(|machine| machine.comes_at_reset(at).is_some());
    let state = |at| match is_on {
        true if comes_at_reset(at) => LunState::NextReset,
        true => LunState::NextStart,
        false => LunState::Off,
    };
    let has = |luns: &[Lun], address| luns.iter().any(|lun: &Lun| lun.device.address == address);
    for device in &config.storage {
        if !has(&luns, device.address) {
            let sharing = Sharing::to_come(device.kind, device.backing.storage);
            let naa = guest_path::naa(device, sharing);
            luns.push(Lun { device: device.clone(), naa, state: state(device.address) });
        }
    }
    luns.sort_by_key(|lun| lun.device.address);
    let mut adapters: BTreeMap<PciSlot, Adapter> = BTreeMap::new();
    for lun in luns {
        let (slot, kind) = (lun.device.address.slot, lun.device.adapter);
        adapters.entry(slot).or_insert(Adapter { slot, kind, luns: Vec::new() }).luns.push(lun);
    }
    adapters.into_values().collect()
}

/// What the LUNs of a running guest have done.
pub fn statistics(
    host: &VmHost,
    config: &GuestConfig,
    adapters: Vec<Adapter>,
) -> Result<Vec<Statistics>, Refusal> {
    let counted = ask(host, config, Vec::new())?;
    let of = |adapter: Adapter| {
        let is_its = |counted: &&Counted| {
            adapter.luns.iter().any(|lun| lun.device.address == counted.address)
        };
        let luns = counted.iter().filter(is_its).cloned().collect();
        Statistics { adapter, luns }
    };
    Ok(adapters.into_iter().map(of).collect())
}

/// Has these LUNs of a running guest counted from zero. What QEMU counts goes on: its worker keeps where it stood.
pub fn clear(
    host: &mut VmHost,
    actor: &Actor,
    config: &GuestConfig,
    luns: Vec<StorageAddress>,
    mode: Mode,
) -> Result<(), Refusal> {
    if mode == Mode::DryRun {
        return match host.presence(config.number) {
            Presence::Off { .. } => Err(Refusal::NotRunning(config.name.clone())),
            Presence::On { .. } => Ok(()),
        };
    }
    let cleared = ask(host, config, luns).map(drop);
    host.registry.record(&actor.outcome(config, &cleared))?;
    cleared
}

fn ask(
    host: &VmHost,
    config: &GuestConfig,
    from_zero: Vec<StorageAddress>,
) -> Result<Vec<Counted>, Refusal> {
    match host.presence(config.number) {
        Presence::Off { .. } => return Err(Refusal::NotRunning(config.name.clone())),
        Presence::On { supervision: Supervision::None, .. } => {
            supervise::adopt(host, config, supervise::TO_ASK)?;
        }
        Presence::On { .. } => {}
    }
    supervise::awake(host, config)?;
    let control = host.control(config.number);
    let request = Request::Counters { from_zero };
    match client::ask(&control, &request, &[], COUNTERS_BOUND, &mut |_| {})? {
        Reply::Counted { disks } => Ok(disks),
        Reply::Denied { reason } => Err(Refusal::Denied(reason)),
        Reply::Failed { error } => Err(Refusal::Uncounted(error)),
        _ => Err(Refusal::Worker(client::ClientError::Malformed)),
    }
}
