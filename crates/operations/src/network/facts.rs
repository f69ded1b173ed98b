//! What decisions about NICs depend on: the switches, and what others have of them.

use std::collections::{BTreeMap, BTreeSet};

use hpvm_host::names::run_folder;
use hpvm_host::nic;
use hpvm_model::{GuestNumber, PortNumber, Vswitch, Wire};
use hpvm_plan::facts::network::{MacHold, MacHolder, NetworkFacts, PortHolder, SwitchFact};
use hpvm_plan::request::Request;
use hpvm_registry::NicRow;

use super::wire;
use crate::{Refusal, VmHost};

impl VmHost {
    /// The networks as a guest sees them that is to be made or changed. `own`: the guest's number, once it has one.
    pub(crate) fn network(&self, own: Option<GuestNumber>) -> Result<NetworkFacts, Refusal> {
        let rows = self.registry.nics()?;
        let others: Vec<&NicRow> = rows.iter().filter(|row| Some(row.number) != own).collect();
        let running = self.running_among(&others);
        let switches = self.registry.vswitches()?.into_iter();
        let switches = switches.map(|switch| {
            let features = super::status(self, switch.number.get()).and_then(|now| now.features);
            let fact = SwitchFact { features, ..fact(self, &switch, &others, &running) };
            (switch.name, fact)
        });
        let nics = nic::all().unwrap_or_default();
        let hosts = nics.iter().filter_map(|nic| {
            let who = format!("network interface {} of this VM Host", nic.name);
            Some((nic.mac?, MacHolder { who, hold: MacHold::Always }))
        });
        let guests = others.iter().map(|row| {
            let what = if row.removed { "removed guest" } else { "guest" };
            let hold = match running.contains(&row.number) {
                true => MacHold::Running,
                false => MacHold::Resting,
            };
            (row.nic.mac, MacHolder { who: format!("a NIC of {what} {}", row.guest), hold })
        });
        let folder = own.map(|own| self.root.run_dir(own.get()).join(run_folder::NETWORK));
        Ok(NetworkFacts {
            switches: switches.collect(),
            macs: hosts.chain(guests).collect(),
            lan: BTreeMap::new(),
            folder: folder.map_or_else(String::new, |f| f.to_string_lossy().into_owned()),
            features: hpvm_vswitch::FEATURES,
        })
    }

    /// The same for a request, which is understood without them when it is about none.
    pub(crate) fn network_for(
        &self,
        request: &Request,
        own: Option<GuestNumber>,
    ) -> Result<NetworkFacts, Refusal> {
        match request.nics.is_empty() {
            true => Ok(NetworkFacts::default()),
            false => self.network(own),
        }
    }

    fn running_among(&self, rows: &[&NicRow]) -> BTreeSet<GuestNumber> {
        let folders = self.run_folders();
        let numbers: BTreeSet<GuestNumber> = rows.iter().map(|row| row.number).collect();
        let runs = |number: &GuestNumber| {
            folders.contains(&number.get()) && self.presence(*number).is_on()
        };
        numbers.into_iter().filter(runs).collect()
    }
}

fn booted_over(switch: &Vswitch) -> BTreeSet<PortNumber> {
    let boots = switch.ports.iter().filter(|(_, rules)| rules.lan_boot.is_some());
    boots.map(|(port, _)| *port).collect()
}

fn fact(
    host: &VmHost,
    switch: &Vswitch,
    others: &[&NicRow],
    running: &BTreeSet<GuestNumber>,
) -> SwitchFact {
    let mut held: BTreeMap<_, Vec<PortHolder>> = BTreeMap::new();
    for row in others.iter().filter(|row| !row.removed && row.nic.vswitch == switch.name) {
        let holder = PortHolder { guest: row.guest.clone(), runs: running.contains(&row.number) };
        held.entry(row.nic.port).or_default().push(holder);
    }
    let carried = wire::carried(&switch.wire);
    let missing = match &switch.wire {
        Wire::Nic(name) if carried.is_none() => {
            Some(format!("there is no network interface {name}"))
        }
        _ => wire::forbidden(host, switch).map(|refused| refused.to_string()),
    };
    SwitchFact {
        number: switch.number,
        state: switch.state,
        features: None,
        wire_missing: missing,
        mtu: carried.and_then(|bytes| u16::try_from(bytes).ok()),
        held,
        ruled: switch.ports.keys().copied().collect(),
        booted_over: booted_over(switch),
    }
}
