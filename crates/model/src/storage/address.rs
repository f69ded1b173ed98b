//! Guest addresses: `bus,device` is a PCI slot of the guest, `bus,device,target` a device behind the adapter there.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::bytes::shown;

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    #[error("'{0}' is no address; write bus,device,target such as 0,1,0")]
    Malformed(String),
    #[error("bus {0} does not exist; adapters go on buses 0 to 6")]
    Bus(u8),
    #[error("device {0} does not exist; a bus has devices 0 to 7")]
    Device(u8),
    #[error("0,3 is kept for the console; take another bus,device")]
    ConsoleSlot,
}

/// A slot of the guest's PCI platform: 8 buses of 8 devices; the function is always 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "(u8, u8)", into = "(u8, u8)")]
pub struct PciSlot {
    bus: u8,
    device: u8,
}

impl PciSlot {
    /// Where the original had its console device; never given to anything else.
    pub const CONSOLE: PciSlot = PciSlot { bus: 0, device: 3 };
    /// Buses 0 to 6 take adapters; bus 7 is reserved.
    pub const BUS_MAX: u8 = 6;
    pub const DEVICE_MAX: u8 = 7;

    pub fn new(bus: u8, device: u8) -> Result<PciSlot, AddressError> {
        match (PciSlot { bus, device }) {
            PciSlot { bus, .. } if bus > Self::BUS_MAX => Err(AddressError::Bus(bus)),
            PciSlot { device, .. } if device > Self::DEVICE_MAX => {
                Err(AddressError::Device(device))
            }
            Self::CONSOLE => Err(AddressError::ConsoleSlot),
            slot => Ok(slot),
        }
    }

    #[must_use]
    pub fn bus(self) -> u8 {
        self.bus
    }

    #[must_use]
    pub fn device(self) -> u8 {
        self.device
    }

    /// All slots that may hold an adapter, lowest first.
    pub fn all() -> impl Iterator<Item = PciSlot> {
        (0..=Self::BUS_MAX)
            .flat_map(|bus| (0..=Self::DEVICE_MAX).map(move |device| (bus, device)))
            .filter_map(|(bus, device)| PciSlot::new(bus, device).ok())
    }
}

impl TryFrom<(u8, u8)> for PciSlot {
    type Error = AddressError;
    fn try_from((bus, device): (u8, u8)) -> Result<PciSlot, AddressError> {
        PciSlot::new(bus, device)
    }
}

impl From<PciSlot> for (u8, u8) {
    fn from(slot: PciSlot) -> (u8, u8) {
        (slot.bus, slot.device)
    }
}

impl fmt::Display for PciSlot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{},{}", self.bus, self.device)
    }
}

/// A storage device's place in the guest. Whether the target exists depends on the adapter, which a statement knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct StorageAddress {
    pub slot: PciSlot,
    pub target: u8,
}

impl fmt::Display for StorageAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{},{}", self.slot, self.target)
    }
}

impl FromStr for StorageAddress {
    type Err = AddressError;
    fn from_str(text: &str) -> Result<StorageAddress, AddressError> {
        let malformed = || AddressError::Malformed(shown(text));
        let number = |part: &str| {
            let is_number = !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
            is_number.then(|| part.parse::<u8>().ok()).flatten().ok_or_else(malformed)
        };
        let parts: Vec<&str> = text.split(',').collect();
        let [bus, device, target] = parts[..] else { return Err(malformed()) };
        let slot = PciSlot::new(number(bus)?, number(device)?)?;
        Ok(StorageAddress { slot, target: number(target)? })
    }
}

impl TryFrom<String> for StorageAddress {
    type Error = AddressError;
    fn try_from(text: String) -> Result<StorageAddress, AddressError> {
        text.parse()
    }
}

impl From<StorageAddress> for String {
    fn from(address: StorageAddress) -> String {
        address.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Settles 44: the console's slot is refused with the reason, and automatic placement uses the same rule.
    #[test]
    fn the_console_slot_is_never_given_away() {
        assert_eq!(PciSlot::new(0, 3), Err(AddressError::ConsoleSlot));
        assert_eq!("0,3,0".parse::<StorageAddress>(), Err(AddressError::ConsoleSlot));
        assert!(PciSlot::all().all(|slot| slot != PciSlot::CONSOLE));
        assert_eq!(PciSlot::all().count(), 7 * 8 - 1);
    }

    #[test]
    fn addresses_are_exact() {
        assert_eq!("6,7,127".parse::<StorageAddress>().unwrap().to_string(), "6,7,127");
        for bad in [
            "", "0,0", "0,0,0,0", "7,0,0", "0,8,0", "a,b,c", "0,0,256", "-1,0,0", " 0,0,0",
            "0,0,+1",
        ] {
            assert!(bad.parse::<StorageAddress>().is_err(), "{bad:?}");
        }
    }
}
