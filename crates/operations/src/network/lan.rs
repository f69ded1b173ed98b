//! Asks the LAN behind a switch whether somebody there has the MAC address that a guest is to get. Creating, changing, cloning
//! and starting a guest do; what follows from an answer is decided with everything else that is known.

use std::collections::{BTreeMap, BTreeSet};

use hpvm_host::nic::probe::{self, Question, Verdict};
use hpvm_model::{GuestConfig, MacAddress, Nic, PortVlan, SwitchName, VlanId, Wire, chain};
use hpvm_plan::facts::network::{LanAnswer, MacHold, MacHolder, NetworkFacts};
use hpvm_plan::record::{AttachedNic, Machine};

use super::wire;
use crate::{Refusal, VmHost};

/// How often addresses are drawn before it is said that those drawn are in use.
const DRAWS_MAX: usize = 3;

/// A trunk is asked for in so many of its VLANs, the lowest: each question is frames for all who are there.
const TRUNK_VLANS_MAX: usize = 16;

/// By switch and address.
pub(crate) type Answers = BTreeMap<(SwitchName, MacAddress), LanAnswer>;

/// A NIC to ask for, with the interface and the VLAN by which its frames will go.
struct Asked<'a> {
    nic: &'a Nic,
    interface: hpvm_host::nic::Nic,
    vlan: Option<VlanId>,
}

/// What the LANs tell of the addresses of all these NICs, which are asked for at once. Switches that are joined to no LAN are
/// not asked, nor is anybody when the administrator does not want it.
pub(crate) fn ask<'a>(
    host: &VmHost,
    nics: impl IntoIterator<Item = &'a Nic>,
) -> Result<Answers, Refusal> {
    let nics: Vec<&Nic> = nics.into_iter().collect();
    let rounds = host.conf.mac_probe_rounds()?;
    if nics.is_empty() || rounds == 0 {
        return Ok(Answers::new());
    }
    let switches = host.registry.vswitches()?;
    let asked: Vec<Asked> = nics
        .into_iter()
        .filter_map(|nic| {
            let switch = switches.iter().find(|switch| switch.name == nic.vswitch)?;
            let Wire::Nic(name) = &switch.wire else { return None };
            let interface = wire::interface(name)?;
            let vlans = vlans(&switch.rules(nic.port).vlan).into_iter();
            Some(vlans.map(move |vlan| Asked { nic, interface: interface.clone(), vlan }))
        })
        .flatten()
        .collect();
    let questions: Vec<Question> = asked
        .iter()
        .map(|Asked { nic, interface, vlan }| Question {
            nic: interface,
            mac: nic.mac,
            vlan: *vlan,
        })
        .collect();
    let answers: Vec<Option<LanAnswer>> = match probe::ask(&questions, rounds) {
        Ok(verdicts) => verdicts.into_iter().map(answer).collect(),
        Err(error) => vec![Some(LanAnswer::Unknown(chain(&error))); asked.len()],
    };
    let named = asked
        .iter()
        .zip(answers)
        .filter_map(|(asked, answer)| Some(((asked.nic.vswitch.clone(), asked.nic.mac), answer?)));
    Ok(named.collect())
}

/// In which VLANs a port's guest is heard, `None` being none.
fn vlans(vlan: &PortVlan) -> Vec<Option<VlanId>> {
    match vlan {
        PortVlan::None => vec![None],
        PortVlan::Untagged(vlan) => vec![Some(*vlan)],
        PortVlan::Trunk(set) => set.iter().take(TRUNK_VLANS_MAX).map(Some).collect(),
    }
}

fn answer(verdict: Verdict) -> Option<LanAnswer> {
    match verdict {
        Verdict::Free | Verdict::NotAsked => None,
        Verdict::InUse => Some(LanAnswer::InUse),
        Verdict::EverythingAnswers => Some(LanAnswer::AnswersForAll),
    }
}

/// Has a configuration made, and once more with other addresses as long as the LAN has those that were drawn. An address that
/// was asked for stays as it is, and its answer is that of the LAN. NICs that the guest has already are not asked for; nor are
/// those of a running guest that go to another switch, since they would answer themselves where the LANs are one, nor addresses
/// of which the VM Host knows itself who has them.
pub(crate) fn made_apart<T>(
    host: &VmHost,
    before: &[Nic],
    running: Option<&Machine>,
    mut network: NetworkFacts,
    config_of: impl Fn(&T) -> &GuestConfig,
    mut make: impl FnMut(&NetworkFacts) -> Result<T, Refusal>,
) -> Result<(T, Answers), Refusal> {
    let known: BTreeSet<MacAddress> = network.macs.keys().copied().collect();
    let is_new = |nic: &&Nic| {
        let answers = |attached: &AttachedNic| attached.nic.mac == nic.mac;
        !before.iter().any(|old| (&old.vswitch, old.mac) == (&nic.vswitch, nic.mac))
            && !running.is_some_and(|machine| machine.nics.iter().any(answers))
            && !known.contains(&nic.mac)
    };
    let mut draws = 1;
    loop {
        let made = make(&network)?;
        let answers = ask(host, config_of(&made).nics.iter().filter(is_new))?;
        let before = network.macs.len();
        for ((switch, mac), answer) in &answers {
            if *answer == LanAnswer::InUse {
                let holder = format!("a station on the LAN of virtual switch '{switch}'");
                network
                    .macs
                    .entry(*mac)
                    .or_insert(MacHolder { who: holder, hold: MacHold::Always });
            }
        }
        if network.macs.len() == before || draws == DRAWS_MAX {
            return Ok((made, answers));
        }
        draws += 1;
    }
}
