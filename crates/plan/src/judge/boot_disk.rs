//! Whether a guest's system can be expected to find the disk it boots from. Called by `problems` of a configuration, and by
//! `hpvm why` of a guest that stays in its firmware. What is on the disk it does not know: the OS type alone tells.

use hpvm_model::{
    AdapterKind, Backing, DeviceKind, GuestConfig, OsFamily, Remedy, StorageAddress, StorageDevice,
    quoted,
};

use super::{Finding, Findings, note};

pub(super) fn judge(config: &GuestConfig, all: &mut Findings) {
    let Some(NoDriver { disk, text, remedy }) = no_driver(config) else { return };
    all.push(Finding { remedy: Some(remedy), ..note(disk.to_string(), text) });
}

/// The disk that a guest boots from is on an adapter for which its system brings no driver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NoDriver<'a> {
    pub disk: &'a StorageDevice,
    pub text: String,
    pub remedy: Remedy,
}

/// Firmware tries disks in the order of their addresses, so the first is the one that matters.
#[must_use]
pub fn no_driver(config: &GuestConfig) -> Option<NoDriver<'_>> {
    let disk = config.storage.iter().find(|device| device.kind == DeviceKind::Disk)?;
    if disk.adapter != AdapterKind::AvioStor || brings_driver(config.os.family) {
        return None;
    }
    let (address, family) = (disk.address, config.os.family);
    Some(NoDriver {
        disk,
        text: format!(
            "the boot disk {address} is on avio_stor, for which {family} has no driver of its own: until one is installed there the guest does not get beyond its firmware or its loader"
        ),
        remedy: Remedy {
            ask: Some(format!(
                "install the driver of virtio-scsi in {family} while its disk is on scsi{}; or put the disk there for good, and start the guest anew",
                if family == OsFamily::Windows { " (vioscsi, of virtio-win)" } else { "" },
            )),
            command: move_to_scsi(config, disk),
        },
    })
}

/// All on its adapter moves with it, so that it stays the first disk, and to the same addresses where scsi has them.
fn move_to_scsi(config: &GuestConfig, disk: &StorageDevice) -> String {
    let slot = disk.address.slot;
    let target_max = AdapterKind::Scsi.target_max();
    let moved = || config.storage.iter().filter(|device| device.address.slot == slot);
    let keep_addresses = moved().all(|device| device.address.target <= target_max);
    let options = moved().zip(0..).map(|(device, target)| {
        let (kind, Backing { storage, path }) = (device.kind.as_str(), &device.backing);
        let to =
            |address: &str| quoted(&format!("{kind}:scsi:{address}:{}:{path}", storage.as_str()));
        let old = quoted(&device.to_string());
        match keep_addresses {
            true => format!("-m {}", to(&device.address.to_string())),
            false if target > target_max => format!("-d {old} -a {}", to("")),
            false => format!("-d {old} -a {}", to(&StorageAddress { slot, target }.to_string())),
        }
    });
    format!("hpvmmodify -P {} {}", config.name, options.collect::<Vec<_>>().join(" "))
}

/// Linux has had one for as long as it has been a guest anywhere; of a system that nobody named nothing is known.
fn brings_driver(family: OsFamily) -> bool {
    match family {
        OsFamily::Linux | OsFamily::Unknown => true,
        OsFamily::Windows | OsFamily::Hpux => false,
    }
}
