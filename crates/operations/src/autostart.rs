//! What happens once when the VM Host boots: guests that run without supervision are taken over, what the VM Host uses itself
//! is listed, guests made with `-B auto` are started, and removed guests that are over their time are cleared. A guest that
//! was started since the host's boot is left as it is, running or ended, so that a restart of the product changes no guest.

use hpvm_engine::launch::LaunchError;
use hpvm_model::{AutoStart, Choice, GuestConfig, GuestName, SwitchName};
use hpvm_plan::record::Machine;

use crate::devdb::host_devices::{Scan, update};
use crate::network::switches::revive;
use crate::network::{SwitchRefused, ports};
use crate::presence::Presence;
use crate::remove::{self, Cleared};
use crate::start::{Started, start};
use crate::{Actor, Mode, Refusal, VmHost};

/// What became of each guest that starts with the VM Host, and of those that run and could not be taken over.
#[derive(Debug)]
pub struct Autostarted {
    pub guests: Vec<(GuestName, Result<Started, Refusal>)>,
    /// Those that would start, were off, and are left so.
    pub passed_over: Vec<(GuestName, PassedOver)>,
    /// Virtual switches that guests run on and that could not be brought back.
    pub switches: Vec<(SwitchName, Refusal)>,
    pub cleared: Vec<Cleared>,
    /// What of the rest could not be done, and why.
    pub undone: Vec<(Chore, Refusal)>,
}

/// Why a guest that starts with the VM Host is left off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PassedOver {
    /// It was started since the VM Host booted, and what became of it was decided.
    StartedBefore,
    /// No guest is started (HPVMENABLE).
    Disabled,
}

/// What is done beside the starts, and keeps no guest off when it cannot be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chore {
    /// Taking over guests that run without supervision.
    TakeOver,
    /// Bringing back switches that guests run on.
    Revive,
    /// Taking ports that their guests have given up.
    Tidy,
    /// Listing what the VM Host uses itself.
    List,
    /// Clearing removed guests that are over their time.
    Purge,
}

/// Starts what is to be started. One guest that cannot start does not keep the others off; one whose switch did not come up in
/// time is tried once more after them.
pub fn autostart(host: &mut VmHost, actor: &Actor, mode: Mode) -> Result<Autostarted, Refusal> {
    let enabled = host.conf.enabled()?;
    let (mut guests, mut switches, mut cleared) = (Vec::new(), Vec::new(), Vec::new());
    let (mut passed_over, mut waits) = (Vec::new(), Vec::new());
    let mut undone = Vec::new();
    let mut done = |chore, result: Result<(), Refusal>| {
        undone.extend(result.err().map(|refusal| (chore, refusal)));
    };
    if mode == Mode::Apply {
        let taken_over = host.adopt_orphans().map(|left| {
            guests.extend(left.into_iter().map(|(name, refusal)| (name, Err(refusal))));
        });
        done(Chore::TakeOver, taken_over);
        done(Chore::Revive, revive(host).map(|left| switches = left));
        done(Chore::Tidy, ports::tidy(host));
    }
    done(Chore::List, list_host_devices(host, actor, mode));
    for summary in host.registry.list()? {
        if summary.auto_start == AutoStart::Manual {
            continue;
        }
        let config = match host.guest_numbered(summary.number) {
            Ok(config) => config,
            Err(Refusal::NoGuest { .. }) => continue,
            Err(refusal) => {
                guests.push((summary.name, Err(refusal)));
                continue;
            }
        };
        if host.presence(config.number).is_on() {
            continue;
        }
        match (enabled, was_started(host, &config)) {
            (false, _) => passed_over.push((summary.name, PassedOver::Disabled)),
            (true, true) => passed_over.push((summary.name, PassedOver::StartedBefore)),
            (true, false) => {
                let started = start(host, actor, &config, mode);
                if started.as_ref().is_err_and(lacks_switch) {
                    waits.push((guests.len(), config));
                }
                guests.push((summary.name, started));
            }
        }
    }
    // While all else came up with the VM Host, a switch's process may have been slow.
    for (place, config) in waits {
        guests[place].1 = start(host, actor, &config, mode);
    }
    if mode == Mode::Apply {
        done(Chore::Purge, remove::purge_due(host, actor).map(|all| cleared = all));
    }
    Ok(Autostarted { guests, passed_over, switches, cleared, undone })
}

/// Whether it did not start since the process of a switch was not up in time.
fn lacks_switch(refusal: &Refusal) -> bool {
    let Refusal::Launch(LaunchError::Ports(refusal)) = refusal else { return false };
    matches!(refusal.downcast_ref(), Some(Refusal::Switch(SwitchRefused::NotUp { .. })))
}

/// Nothing depends on the list but what was read of devices at rest, so guests start without it too.
fn list_host_devices(host: &mut VmHost, actor: &Actor, mode: Mode) -> Result<(), Refusal> {
    if host.registry.hostrdev_at_start()? == Choice::Yes {
        update(host, actor, Scan::Known, mode)?;
    }
    Ok(())
}

/// Whether the guest has run since the host's boot. What became of it then was decided: by the administrator, by itself, or by
/// a crash that would only happen again. A start that was cut short leaves a record, and nothing ran that could say how it
/// ended.
fn was_started(host: &VmHost, config: &GuestConfig) -> bool {
    let has_run = matches!(host.presence(config.number), Presence::Off { last: Some(_) });
    let is_of_this_boot = |machine: Machine| machine.base.boot_id == host.boot_id;
    has_run && host.boot_record(config).is_ok_and(is_of_this_boot)
}
