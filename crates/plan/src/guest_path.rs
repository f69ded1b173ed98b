//! The names a guest and its firmware have for a storage device. Its paths come from its adapter's kind and its address alone:
//! `bus,device,target` becomes the function of the root port, the adapter behind it and the target on that.
//!
//! An emulated SCSI adapter has eight ports. The targets from 8 on are those of a second one, which is the next function of
//! the same PCI device.

use hpvm_model::{AdapterKind, DeviceKind, PciSlot, StorageAddress, StorageDevice};

use crate::record::Sharing;

/// Targets of one emulated adapter (QEMU, hw/scsi/mptsas.h, MPTSAS_NUM_PORTS).
const PORTS: u8 = 8;

/// Which adapter behind a root port has a device, as the function of the PCI device there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Function {
    First,
    /// Of emulated adapters only.
    Second,
}

impl Function {
    #[must_use]
    pub fn number(self) -> u8 {
        match self {
            Function::First => 0,
            Function::Second => 1,
        }
    }
}

/// The adapter behind the port, and the target on that.
#[must_use]
pub fn place(adapter: AdapterKind, target: u8) -> (Function, u8) {
    match (adapter, target.checked_sub(PORTS)) {
        (AdapterKind::Scsi, Some(target)) => (Function::Second, target),
        _ => (Function::First, target),
    }
}

/// The number by which the guest knows the device (NAA, SPC-4, 7.8.6.6), as its agent is asked for it. `None`: the device answers
/// an inquiry for itself, as an attached one does, and a shared disk, which cluster members know each other's by.
#[must_use]
pub fn naa(device: &StorageDevice, sharing: Sharing) -> Option<u64> {
    match (device.kind, sharing) {
        (DeviceKind::Disk | DeviceKind::Dvd, Sharing::Alone | Sharing::WithHost) => {
            Some(device.id.wwn())
        }
        _ => None,
    }
}

/// As the firmware prints it (UEFI 2.10, 10.6.1): `PciRoot(0x0)/Pci(0x8,0x5)/Pci(0x0,0x0)/Scsi(0x11,0x0)`.
#[must_use]
pub fn efi(adapter: AdapterKind, address: StorageAddress) -> String {
    let (device, function) = port(address.slot);
    let (behind, target) = place(adapter, address.target);
    let behind = behind.number();
    format!(
        "PciRoot(0x0)/Pci({device:#X},{function:#X})/Pci(0x0,{behind:#X})/Scsi({target:#X},0x0)"
    )
    .replace("0X", "0x")
}

/// The adapter as `lspci -P` prints it in the guest, whatever number the guest gave the bus behind the port: `00:08.5/00.0`.
#[must_use]
pub fn pci(adapter: AdapterKind, address: StorageAddress) -> String {
    let (device, function) = port(address.slot);
    let behind = place(adapter, address.target).0.number();
    format!("00:{device:02x}.{function}/00.{behind}")
}

/// A NIC, in the same form.
#[must_use]
pub fn nic(slot: PciSlot) -> String {
    let (device, function) = port(slot);
    format!("00:{device:02x}.{function}/00.0")
}

/// Bus b's eight devices are the eight functions of PCI device 8+b.
#[must_use]
pub fn port(slot: PciSlot) -> (u8, u8) {
    (8 + slot.bus(), slot.device())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_those_of_the_port() {
        let address: StorageAddress = "6,7,127".parse().unwrap();
        let avio = AdapterKind::AvioStor;
        assert_eq!(efi(avio, address), "PciRoot(0x0)/Pci(0xE,0x7)/Pci(0x0,0x0)/Scsi(0x7F,0x0)");
        assert_eq!(pci(avio, address), "00:0e.7/00.0");
    }

    #[test]
    fn the_second_emulated_adapter_has_the_targets_from_8_on() {
        let paths = |adapter, text: &str| {
            let address: StorageAddress = text.parse().unwrap();
            (efi(adapter, address), pci(adapter, address))
        };
        for (adapter, address, function, target) in [
            (AdapterKind::Scsi, "0,2,7", 0, "0x7"),
            (AdapterKind::Scsi, "0,2,8", 1, "0x0"),
            (AdapterKind::Scsi, "0,2,14", 1, "0x6"),
            (AdapterKind::AvioStor, "0,2,9", 0, "0x9"),
        ] {
            let efi = format!("PciRoot(0x0)/Pci(0x8,0x2)/Pci(0x0,0x{function})/Scsi({target},0x0)");
            assert_eq!(paths(adapter, address), (efi, format!("00:08.2/00.{function}")));
        }
    }
}
