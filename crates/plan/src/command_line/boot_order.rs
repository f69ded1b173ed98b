//! From what the firmware tries to boot, the lowest first: disks and dvds in the order of their addresses, then NICs. A place
//! belongs to an address, so that a device has the same whether it was there at the start or came later; what has none the
//! firmware forgets at the next reset (OvmfPkg, SetBootOrderFromQemu).

use hpvm_model::StorageAddress;

/// Guests that were started by an earlier hpvm have the first numbers at devices of any address.
const DISKS: u64 = 10_000;
const NICS: u64 = 30_000;

/// Of a disk or dvd.
pub(super) fn of_device(address: StorageAddress) -> u64 {
    let slot = u64::from(address.slot.bus()) * 8 + u64::from(address.slot.device());
    DISKS + slot * 256 + u64::from(address.target)
}

/// Of the NICs, one after the other.
pub(super) fn of_nics() -> impl Iterator<Item = u64> {
    NICS..
}

#[cfg(test)]
mod tests {
    use hpvm_model::PciSlot;

    use super::*;

    #[test]
    fn places_are_in_the_order_of_addresses() {
        let addresses = PciSlot::all()
            .flat_map(|slot| (0..=u8::MAX).map(move |target| StorageAddress { slot, target }));
        let mut addresses: Vec<StorageAddress> = addresses.collect();
        addresses.sort();
        let places: Vec<u64> = addresses.into_iter().map(of_device).collect();
        assert!(places.is_sorted_by(|one, next| one < next));
        assert!(places.last() < of_nics().next().as_ref());
    }
}
