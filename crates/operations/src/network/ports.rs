//! Ports of guests that start, run and end: each is there before QEMU looks for it, and goes when the guest has.

use std::path::Path;
use std::time::{Duration, Instant};

use hpvm_host::lock::pause_for;
use hpvm_host::names::switch_folder;
use hpvm_host::removal;
use hpvm_model::{GuestConfig, GuestNumber, PortNumber, Vswitch};
use hpvm_plan::record::{AttachedNic, BootRecord, DeviceChange, Machine};
use hpvm_registry::Selector;
use hpvm_vswitchd::client;
use hpvm_vswitchd::protocol::Request;
use hpvm_vswitchd::status::PortLink;

use super::SwitchRefused;
use super::runner::Runner;
use crate::{Actor, Refusal, VmHost};

/// Gives all NICs of a guest that is about to start their ports; when one cannot have its own, none has.
pub(crate) fn open(
    host: &VmHost,
    config: &GuestConfig,
    record: &BootRecord,
) -> Result<(), Refusal> {
    let opened =
        record.nics.iter().try_for_each(|nic| Runner::claim(host, nic.switch)?.attach(config, nic));
    if opened.is_err() {
        // What led here is the thing to tell.
        let _ = close_all(host, config.number);
    }
    opened
}

/// Takes all ports of a guest that has ended. Switches that do not run have none of it, and one that runs without ports, since
/// it can serve none of those there are, ends with the last of its guests.
pub(crate) fn close_all(host: &VmHost, guest: GuestNumber) -> Result<(), Refusal> {
    let switches = host.registry.vswitches()?;
    let has_some = |switch: &Vswitch| {
        super::runner::status(host, switch.number.get()).is_some_and(|status| {
            status.ports.is_empty() || status.ports.iter().any(|port| port.number == guest)
        })
    };
    let close = |switch: Vswitch| Runner::claim(host, switch.number)?.detach(guest, None);
    // One that does not answer keeps no other's port.
    switches.into_iter().filter(has_some).map(close).fold(Ok(()), Result::and)
}

/// Takes ports that their guests have given up and nobody took from them: a guest that let a NIC go long after it was asked,
/// or that ended without a command. A guest that another command is at is left alone. What cannot be done now is done by
/// the next command.
pub fn tidy(host: &VmHost) -> Result<(), Refusal> {
    let actor = Actor::new("hpvmnet", String::new(), None);
    for switch in host.registry.vswitches()? {
        let Some(status) = super::status(host, switch.number.get()) else { continue };
        for port in status.ports {
            let Some(config) = host.registry.guest(&Selector::Number(port.number))? else {
                Runner::claim(host, switch.number)?.detach(port.number, Some(port.port))?;
                continue;
            };
            if has_port(host, &config, &switch, port.port) {
                continue;
            }
            let Ok(_busy) = host.busy_within(&config, &actor, Duration::ZERO) else { continue };
            // Looked at again now that nobody else changes it.
            if !has_port(host, &config, &switch, port.port) {
                Runner::claim(host, switch.number)?.detach(port.number, Some(port.port))?;
            }
        }
    }
    Ok(())
}

fn has_port(host: &VmHost, config: &GuestConfig, switch: &Vswitch, port: PortNumber) -> bool {
    let machine = host.machine(config);
    machine.is_some_and(|machine| {
        machine.nics.iter().any(|a| (a.switch, a.nic.port) == (switch.number, port))
    })
}

/// A QEMU that was sent away connects again after 50 ms. One that takes longer is shown as it is.
const CONNECTED_BOUND: Duration = Duration::from_millis(500);

/// Waits until the switches have published that QEMU is connected with these NICs, so that who looks next sees them there: what
/// nobody asks for is published once a second only. One look is taken in any case.
pub(crate) fn wait_until_seen(host: &VmHost, nics: &[AttachedNic], deadline: Instant) {
    const LOOK: Duration = Duration::from_millis(5);
    for attached in nics {
        let number = attached.switch.get();
        let control = host.root.switch_dir(number).join(switch_folder::CONTROL);
        let is_connected = || {
            let status = super::status(host, number);
            let now = status.as_ref().and_then(|status| status.port(attached.nic.port));
            now.is_some_and(|now| now.link != PortLink::Absent)
        };
        let mut is_seen = is_connected();
        while !is_seen {
            let left = deadline.saturating_duration_since(Instant::now());
            let asked = client::ask(&control, &Request::Publish, &[], left.max(LOOK));
            is_seen = is_connected();
            if asked.is_err() || left.is_zero() {
                break;
            }
            if !is_seen {
                pause_for(LOOK);
            }
        }
    }
}

/// The ports of a running guest while its devices change: new ones are there before the guest is asked, and go again unless
/// the change is kept.
pub(crate) struct Changing<'a> {
    host: &'a VmHost,
    config: &'a GuestConfig,
    undo: Vec<Undo>,
}

enum Undo {
    /// A new port goes.
    Close(AttachedNic),
    /// A port that was left is taken again.
    Open { old: AttachedNic, new: AttachedNic },
}

impl<'a> Changing<'a> {
    pub(crate) fn begin(
        host: &'a VmHost,
        config: &'a GuestConfig,
        machine: Option<&Machine>,
        changes: &[DeviceChange],
    ) -> Result<Changing<'a>, Refusal> {
        let mut changing = Changing { host, config, undo: Vec::new() };
        for change in changes {
            match change {
                DeviceChange::PlugNic { attached } => {
                    changing.attach(attached)?;
                    changing.undo.push(Undo::Close(attached.clone()));
                }
                DeviceChange::MoveNic { attached } => {
                    let old = machine.and_then(|machine| machine.nic_in(attached.nic.slot));
                    if let Some(old) = old.cloned() {
                        changing.detach(&old)?;
                        changing.undo.push(Undo::Open { old, new: attached.clone() });
                    }
                    changing.attach(attached)?;
                }
                _ => {}
            }
        }
        Ok(changing)
    }

    /// The guest has taken the changes; `gone` are NICs that it let go. Those that came are seen at their ports, if they come
    /// soon.
    pub(crate) fn keep(mut self, gone: &[AttachedNic]) -> Result<(), Refusal> {
        let came = std::mem::take(&mut self.undo).into_iter().map(|undo| match undo {
            Undo::Close(new) | Undo::Open { new, .. } => new,
        });
        let came: Vec<AttachedNic> = came.collect();
        gone.iter().try_for_each(|attached| self.detach(attached))?;
        wait_until_seen(self.host, &came, Instant::now() + CONNECTED_BOUND);
        Ok(())
    }

    /// It is not known what the guest takes. Ports that it turns out not to have are taken away by [`tidy`].
    pub(crate) fn leave(mut self) {
        self.undo.clear();
    }

    fn attach(&self, attached: &AttachedNic) -> Result<(), Refusal> {
        Runner::claim(self.host, attached.switch)?.attach(self.config, attached)
    }

    fn detach(&self, attached: &AttachedNic) -> Result<(), Refusal> {
        match Runner::claim(self.host, attached.switch) {
            Err(Refusal::Switch(SwitchRefused::Unknown(_))) => {}
            claimed => claimed?.detach(self.config.number, Some(attached.nic.port))?,
        }
        // Nobody listens there now; what cannot be removed goes with the guest's folder.
        let _ = removal::file(Path::new(&attached.socket));
        Ok(())
    }
}

impl Drop for Changing<'_> {
    fn drop(&mut self) {
        // What led here is the thing to tell.
        for undo in std::mem::take(&mut self.undo).into_iter().rev() {
            match undo {
                Undo::Close(attached) => drop(self.detach(&attached)),
                Undo::Open { old, new } => {
                    let _ = self.detach(&new);
                    let _ = self.attach(&old);
                }
            }
        }
    }
}
