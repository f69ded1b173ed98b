//! What a request makes of a guest's NICs. A NIC that is not told otherwise gets the lowest slot, a MAC address that nobody
//! has, and the lowest port of its switch that nobody has and that has no rules made for another.

use hpvm_model::{GuestConfig, MacAddress, Nic, NicStatement, PortNumber, SwitchName};

use super::RequestError;
use crate::clone::Inheritance;
use crate::facts::network::NetworkFacts;
use crate::placement::place_nic;
use crate::record::Machine;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NicRequest {
    Add(NicStatement),
    Modify(NicStatement),
    Delete(NicStatement),
}

impl NicRequest {
    /// The MAC address that is asked for, if one is.
    pub(crate) fn mac(&self) -> Option<MacAddress> {
        let (NicRequest::Add(statement)
        | NicRequest::Modify(statement)
        | NicRequest::Delete(statement)) = self;
        statement.mac
    }
}

/// What leaves and what changes, before anything new is placed.
pub(super) fn settle(
    config: &mut GuestConfig,
    running: Option<&Machine>,
    requests: &[NicRequest],
    network: &NetworkFacts,
) -> Result<(), RequestError> {
    for request in requests {
        if let NicRequest::Delete(statement) = request {
            let index = match find(config, statement) {
                Ok(index) => index,
                Err(_) if is_in_machine_alone(running, statement) => continue,
                Err(error) => return Err(error),
            };
            if !statement.describes(&config.nics[index]) {
                return Err(RequestError::OtherThanSaid(config.nics[index].to_string()));
            }
            config.nics.remove(index);
        }
    }
    for request in requests {
        if let NicRequest::Modify(statement) = request {
            modify(config, statement, network)?;
        }
    }
    Ok(())
}

/// A command that was killed may have left a NIC in the running guest. To take away what the configuration has not is all that
/// is to be done then.
fn is_in_machine_alone(running: Option<&Machine>, statement: &NicStatement) -> bool {
    let is_meant = |nic: &Nic| statement.names(nic) && statement.describes(nic);
    running.is_some_and(|machine| machine.nics.iter().any(|attached| is_meant(&attached.nic)))
}

/// Whether a new NIC has its place already: those go before everything that looks for one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Placed {
    Yes,
    No,
}

pub(super) fn add(
    config: &mut GuestConfig,
    running: Option<&Machine>,
    requests: &[NicRequest],
    which: Placed,
    network: &NetworkFacts,
    random: &mut dyn FnMut() -> u64,
) -> Result<(), RequestError> {
    for request in requests {
        let NicRequest::Add(statement) = request else { continue };
        let Some(vswitch) = statement.vswitch.clone() else { continue };
        let slot = match (statement.slot, which) {
            (Some(slot), Placed::Yes) => slot,
            (None, Placed::No) => place_nic(config, running)?,
            _ => continue,
        };
        let port = match statement.port {
            Some(port) => port,
            None => free_port(config, &vswitch, network)?,
        };
        let mac = statement.mac.unwrap_or_else(|| free_mac(config, network, random));
        config.nics.push(Nic { kind: statement.kind, slot, mac, vswitch, port });
    }
    Ok(())
}

/// Makes the NICs of a clone other than those of its source: other ports of the same switches, and other addresses unless
/// they are to be the same.
pub(crate) fn renew(
    config: &mut GuestConfig,
    macs: Inheritance,
    network: &NetworkFacts,
    random: &mut dyn FnMut() -> u64,
) -> Result<(), RequestError> {
    let source = std::mem::take(&mut config.nics);
    for nic in source {
        let port = free_port(config, &nic.vswitch, network)?;
        let mac = match macs {
            Inheritance::New => free_mac(config, network, random),
            Inheritance::Same => nic.mac,
        };
        config.nics.push(Nic { port, mac, ..nic });
    }
    Ok(())
}

pub(super) fn find(config: &GuestConfig, statement: &NicStatement) -> Result<usize, RequestError> {
    let mut named = config.nics.iter().enumerate().filter(|(_, nic)| statement.names(nic));
    match (named.next(), named.next()) {
        (Some((index, _)), None) => Ok(index),
        (Some((_, nic)), Some(_)) => Err(RequestError::AmbiguousNic(nic.vswitch.clone())),
        (None, _) => Err(RequestError::NoNic(config.name.clone())),
    }
}

fn modify(
    config: &mut GuestConfig,
    statement: &NicStatement,
    network: &NetworkFacts,
) -> Result<(), RequestError> {
    let index = find(config, statement)?;
    let before = config.nics.remove(index);
    let vswitch = statement.vswitch.clone().unwrap_or_else(|| before.vswitch.clone());
    let port = match statement.port {
        Some(port) => port,
        None if vswitch == before.vswitch => before.port,
        None => free_port(config, &vswitch, network)?,
    };
    let mac = statement.mac.unwrap_or(before.mac);
    config.nics.insert(index, Nic { kind: statement.kind, slot: before.slot, mac, vswitch, port });
    Ok(())
}

/// Of a switch that is not there any port will do: the judge has more to say about it.
fn free_port(
    config: &GuestConfig,
    vswitch: &SwitchName,
    network: &NetworkFacts,
) -> Result<PortNumber, RequestError> {
    let switch = network.switches.get(vswitch);
    let is_free = |port: &PortNumber| {
        switch.is_none_or(|switch| !switch.held.contains_key(port) && !switch.ruled.contains(port))
            && config.nics.iter().all(|nic| (&nic.vswitch, nic.port) != (vswitch, *port))
    };
    (1..=PortNumber::MAX)
        .filter_map(PortNumber::new)
        .find(is_free)
        .ok_or_else(|| RequestError::NoPort(vswitch.clone()))
}

fn free_mac(
    config: &GuestConfig,
    network: &NetworkFacts,
    random: &mut dyn FnMut() -> u64,
) -> MacAddress {
    loop {
        let [bytes @ .., _, _] = random().to_be_bytes();
        let mac = MacAddress::for_a_guest(bytes);
        let is_taken = network.macs.contains_key(&mac) || config.nics.iter().any(|n| n.mac == mac);
        // Of 70 million million addresses a few thousand are taken.
        if !is_taken {
            return mac;
        }
    }
}
