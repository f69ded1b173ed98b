//! The names a guest and its firmware have for a storage device, from its address alone: `bus,device,target` becomes the
//! function of the root port, the adapter behind it and the target on that.

use hpvm_model::{PciSlot, StorageAddress};

/// As the firmware prints it (UEFI 2.10, 10.6.1): `PciRoot(0x0)/Pci(0x8,0x5)/Pci(0x0,0x0)/Scsi(0x11,0x0)`.
#[must_use]
pub fn efi(address: StorageAddress) -> String {
    let (device, function) = port(address.slot);
    let target = address.target;
    format!("PciRoot(0x0)/Pci({device:#X},{function:#X})/Pci(0x0,0x0)/Scsi({target:#X},0x0)")
        .replace("0X", "0x")
}

/// The adapter as `lspci -P` prints it in the guest, whatever number the guest gave the bus behind the port: `00:08.5/00.0`.
#[must_use]
pub fn pci(slot: PciSlot) -> String {
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
        assert_eq!(efi(address), "PciRoot(0x0)/Pci(0xE,0x7)/Pci(0x0,0x0)/Scsi(0x7F,0x0)");
        assert_eq!(pci(address.slot), "00:0e.7/00.0");
    }
}
