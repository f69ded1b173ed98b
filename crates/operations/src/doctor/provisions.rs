//! What the VM Host has to have for its guests, and what hpvmconf says of that.

use std::path::Path;

use hpvm_model::{AdapterKind, GuestConfig};

use super::{Cure, Finding};
use crate::facts::provision;
use crate::{Refusal, VmHost};

pub(super) fn examine(host: &VmHost, findings: &mut Vec<Finding>) -> Result<(), Refusal> {
    tunables(host, findings);
    engine_and_firmware(host, findings);
    scsi_rom(host, findings)?;
    lan_rom(host, findings)
}

/// What an administrator meant to say in hpvmconf and did not.
fn tunables(host: &VmHost, findings: &mut Vec<Finding>) {
    findings.extend(host.conf.faults().into_iter().map(|text| {
        let cure = Cure::Tell("correct the line, or take it out".into());
        Finding { text, cure }
    }));
}

fn engine_and_firmware(host: &VmHost, findings: &mut Vec<Finding>) {
    if let Err(reason) = host.engine() {
        let cure = Cure::Tell("install qemu-system-x86 10 or set HPVMQEMU in hpvmconf".into());
        findings.push(Finding { text: format!("QEMU cannot be used: {reason}"), cure });
    }
    let firmware = host.conf.firmware();
    if is_missing(&firmware) {
        let text = format!("the firmware {} cannot be used", firmware.display());
        let cure = Cure::Tell("install package ovmf or set HPVMFIRMWARE in hpvmconf".into());
        findings.push(Finding { text, cure });
    }
}

/// As a start sees it.
fn is_missing(file: &Path) -> bool {
    provision(file).missing.is_some()
}

/// Asked for only where a guest has a scsi adapter, with which it does not start otherwise.
fn scsi_rom(host: &VmHost, findings: &mut Vec<Finding>) -> Result<(), Refusal> {
    let rom = host.conf.scsi_rom();
    let has_scsi = |config: &GuestConfig| {
        config.storage.iter().any(|device| device.adapter == AdapterKind::Scsi)
    };
    if is_missing(&rom)
        && let Some(guest) = host.registry.all()?.iter().find(|config| has_scsi(config))
    {
        let text = format!(
            "the firmware driver {} cannot be used, so guests with scsi adapters, such as '{}', do not start",
            rom.display(),
            guest.name
        );
        let cure =
            Cure::Tell("install hpvm's own, or name the file in hpvmconf (HPVMSCSIROM)".into());
        findings.push(Finding { text, cure });
    }
    Ok(())
}

/// Asked for only where a guest boots over a LAN: who has none of it needs no driver.
fn lan_rom(host: &VmHost, findings: &mut Vec<Finding>) -> Result<(), Refusal> {
    let switches = host.registry.vswitches()?;
    let booted_over = switches.iter().flat_map(|switch| switch.ports.values());
    let is_wanted = booted_over.into_iter().any(|rules| rules.lan_boot.is_some());
    let rom = host.conf.lan_rom();
    if is_wanted && is_missing(&rom) {
        let text = format!(
            "the firmware driver {} cannot be used, so guests cannot boot over lan NICs",
            rom.display()
        );
        let cure = Cure::Tell("install package ipxe-qemu or set HPVMLANROM in hpvmconf".into());
        findings.push(Finding { text, cure });
    }
    Ok(())
}
