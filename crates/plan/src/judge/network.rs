//! What is wrong with a configuration's NICs: the places they have, the switches they name, the addresses and ports that
//! others have.

use std::collections::BTreeMap;

use hpvm_model::limits::NICS_IN_MEMORY_MIN;
use hpvm_model::{
    GuestConfig, GuestName, MacAddress, Nic, NicKind, PciSlot, SwitchState, with_article,
};

use super::{Finding, Findings, never, note, packets, taken};
use crate::facts::HostFacts;
use crate::facts::network::{LanAnswer, MacHold, MacHolder, SwitchFact};

pub(super) fn judge(config: &GuestConfig, facts: &HostFacts, all: &mut Findings) {
    let mut slots: BTreeMap<PciSlot, &Nic> = BTreeMap::new();
    let mut macs: BTreeMap<MacAddress, &Nic> = BTreeMap::new();
    room(config, facts, all);
    for nic in &config.nics {
        if let Some(adapter) = config.adapter_in(nic.slot) {
            all.push(never(
                nic.to_string(),
                format!(
                    "{} is the address of {} adapter; a NIC needs a bus,device of its own",
                    nic.slot,
                    with_article(adapter.as_str())
                ),
            ));
        }
        if slots.insert(nic.slot, nic).is_some() {
            let text = format!("address {} is given to two NICs", nic.slot);
            all.push(never(nic.to_string(), text));
        }
        if let Some(first) = macs.insert(nic.mac, nic) {
            let text = format!(
                "the NICs at {} and {} have one MAC address, {}; give one of them another, or none to have one made",
                first.slot, nic.slot, nic.mac
            );
            all.push(never(nic.to_string(), text));
        }
        if let Some(holder) = facts.network.macs.get(&nic.mac) {
            all.push(held(nic, holder, facts));
        }
        match facts.network.switches.get(&nic.vswitch) {
            Some(switch) => joined(config, nic, switch, facts, all),
            None => all.push(
                never(
                    nic.vswitch.to_string(),
                    format!("there is no virtual switch '{}'; `hpvmnet` lists them", nic.vswitch),
                )
                .run(format!("hpvmnet -c -S {}", nic.vswitch)),
            ),
        }
    }
}

/// A clone may have its source's address on purpose, and runs when the source does not. Nobody else gets one that is held.
fn held(nic: &Nic, MacHolder { who, hold }: &MacHolder, facts: &HostFacts) -> Finding {
    let (item, mac) = (nic.to_string(), nic.mac);
    match (hold, facts.start.is_some()) {
        (MacHold::Resting, true) => note(
            item,
            format!(
                "MAC address {mac} is that of {who} too; only one of the two can run at a time"
            ),
        ),
        (MacHold::Running, true) => {
            taken(item, format!("MAC address {mac} is in use by {who}, which runs"))
        }
        _ => never(
            item,
            format!("MAC address {mac} belongs to {who}; give another, or none to have one made"),
        ),
    }
}

fn joined(
    config: &GuestConfig,
    nic: &Nic,
    switch: &SwitchFact,
    facts: &HostFacts,
    all: &mut Findings,
) {
    let Nic { vswitch, port, .. } = nic;
    let same = |other: &&Nic| (&other.vswitch, other.port) == (vswitch, *port);
    // Told once, of the later one.
    if config.nics.iter().find(same).is_some_and(|first| first.slot != nic.slot) {
        let text = format!("port {port} of virtual switch '{vswitch}' is given to two NICs");
        all.push(never(nic.to_string(), text));
    }
    let holders = switch.held.get(port).map(Vec::as_slice).unwrap_or_default();
    if let Some(holder) = holders.iter().find(|holder| holder.runs) {
        let text = format!(
            "port {port} of virtual switch '{vswitch}' is in use by running guest {}; give another with portid:N",
            holder.guest
        );
        all.push(taken(nic.to_string(), text));
    }
    on_lan(nic, facts, all);
    if facts.start.is_some() {
        in_use(&config.name, nic, facts.network.attach(nic).mtu_in_guest(), switch, all);
    }
}

/// What a running guest is to get now: NICs that it had not, or that go to another switch.
pub(super) fn comes(
    config: &GuestConfig,
    before: &GuestConfig,
    facts: &HostFacts,
    all: &mut Findings,
) {
    for nic in config.nics.iter().filter(|nic| !before.nics.contains(nic)) {
        let Some(switch) = facts.network.switches.get(&nic.vswitch) else { continue };
        let is_it = |old: &&Nic| (old.slot, old.kind, old.mac) == (nic.slot, nic.kind, nic.mac);
        // The guest was told when it got the NIC, and is told no more.
        let told = before.nics.iter().find(is_it).unwrap_or(nic);
        in_use(&config.name, nic, facts.network.attach(told).mtu_in_guest(), switch, all);
    }
}

/// What the guest meets at its switch as soon as it uses the NIC, which it takes to carry so many bytes.
fn in_use(
    guest: &GuestName,
    nic: &Nic,
    mtu_in_guest: u16,
    switch: &SwitchFact,
    all: &mut Findings,
) {
    let vswitch = &nic.vswitch;
    if switch.state == SwitchState::Halted {
        let text =
            format!("virtual switch '{vswitch}' is halted, so the NIC at {} has no link", nic.slot);
        all.push(note(vswitch.as_str(), text).run(format!("hpvmnet -S {vswitch} -b")));
    } else if let Some(reason) = &switch.wire_missing {
        let text = format!(
            "virtual switch '{vswitch}' has no wire now: {reason}; the NIC at {} has no link until there is",
            nic.slot
        );
        all.push(note(vswitch.as_str(), text));
    }
    let differ =
        |carried| packets::beside_the_wire(vswitch, u32::from(carried), guest, nic, mtu_in_guest);
    if let Some(text) = switch.mtu.and_then(differ) {
        all.push(note(nic.to_string(), text));
    }
}

/// A system that has too little memory for its NICs boots without some of them, and says so nowhere but in its log.
fn room(config: &GuestConfig, facts: &HostFacts, all: &mut Findings) {
    let (nics, memory) = (config.nics.len(), config.memory.bytes());
    let needed = facts.limits.limits(config.os.family).memory_min_with_nics(nics);
    if nics > NICS_IN_MEMORY_MIN && memory < needed {
        let text = format!(
            "{nics} NICs need {needed} of memory, and the guest has {memory}; it may boot without some of them"
        );
        let command = format!("hpvmmodify -P {} -r {}M", config.name, needed.as_mib());
        all.push(note("memory", text).run(command));
    }
}

/// What the LAN behind a NIC's switch told of its address.
fn on_lan(nic: &Nic, facts: &HostFacts, all: &mut Findings) {
    let Nic { vswitch, mac, .. } = nic;
    let finding = match facts.network.lan.get(&(vswitch.clone(), *mac)) {
        None => return,
        Some(LanAnswer::InUse) if facts.start.is_some() => {
            taken(nic.to_string(), format!("Guest MAC address for switch {vswitch} is in use."))
        }
        Some(LanAnswer::InUse) => never(
            nic.to_string(),
            format!(
                "MAC address {mac} belongs to a station on the LAN of virtual switch '{vswitch}'; give another, or none to have one made"
            ),
        ),
        Some(LanAnswer::AnswersForAll) => note(
            vswitch.as_str(),
            format!(
                "something on the LAN of virtual switch '{vswitch}' answers for every MAC address, so nobody knows whether those of guests are in use there; HPVMACADDRFRAMES=0 in hpvmconf leaves that question out"
            ),
        ),
        Some(LanAnswer::Unknown(reason)) => note(
            vswitch.as_str(),
            format!(
                "whether MAC addresses are in use on the LAN of virtual switch '{vswitch}' could not be found out: {reason}"
            ),
        ),
    };
    all.push(finding);
}

/// How many emulated cards a configuration has: each takes I/O ports, as emulated adapters do.
pub(super) fn emulated(config: &GuestConfig) -> usize {
    config.nics.iter().filter(|nic| nic.kind == NicKind::Lan).count()
}
