//! Which guest has which address. Pure; time is told.
//!
//! Kept in memory only: a successor learns again from guests that ask to keep what they have, and from the addresses that
//! they are seen to use, before it gives one of these to somebody else.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use hpvm_model::{MacAddress, NatSubnet};

/// How long a guest has an address without asking again.
pub(crate) const LEASE: Duration = Duration::from_secs(24 * 60 * 60);
/// How long an address is kept for a guest that was offered it, or is seen to use it.
const RESERVATION: Duration = Duration::from_secs(5 * 60);
/// More than a switch has ports.
const GUESTS_MAX: u32 = 1024;

#[derive(Clone, Copy, Debug)]
struct Held {
    mac: MacAddress,
    until: Instant,
}

#[derive(Debug)]
pub(crate) struct Leases {
    subnet: NatSubnet,
    by_address: HashMap<Ipv4Addr, Held>,
    by_mac: HashMap<MacAddress, Ipv4Addr>,
}

impl Leases {
    pub(crate) fn new(subnet: NatSubnet) -> Leases {
        Leases { subnet, by_address: HashMap::new(), by_mac: HashMap::new() }
    }

    /// An address for a guest that asks for one: its own, else the one it would like, else the lowest that is free.
    pub(crate) fn offer(
        &mut self,
        mac: MacAddress,
        liked: Option<Ipv4Addr>,
        now: Instant,
    ) -> Option<Ipv4Addr> {
        let own = self.by_mac.get(&mac).copied();
        let liked = liked.filter(|address| self.may_have(mac, *address, now));
        let address = own.or(liked).or_else(|| self.lowest_free(now))?;
        self.hold(mac, address, now, RESERVATION);
        Some(address)
    }

    /// Gives a guest the address it names, if it may have it.
    pub(crate) fn take(&mut self, mac: MacAddress, address: Ipv4Addr, now: Instant) -> bool {
        let may = self.may_have(mac, address, now);
        if may {
            self.hold(mac, address, now, LEASE);
        }
        may
    }

    /// A guest uses an address, by DHCP or not. It keeps at most one so.
    pub(crate) fn seen(&mut self, mac: MacAddress, address: Ipv4Addr, now: Instant) {
        // The usual case, once for each frame.
        if self.by_mac.get(&mac) == Some(&address) {
            return;
        }
        if self.may_have(mac, address, now) {
            self.hold(mac, address, now, RESERVATION);
        }
    }

    pub(crate) fn release(&mut self, mac: MacAddress) {
        if let Some(address) = self.by_mac.remove(&mac) {
            self.by_address.remove(&address);
        }
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = (MacAddress, Ipv4Addr)> {
        self.by_mac.iter().map(|(mac, address)| (*mac, *address))
    }

    fn may_have(&self, mac: MacAddress, address: Ipv4Addr, now: Instant) -> bool {
        let free =
            self.by_address.get(&address).is_none_or(|held| held.mac == mac || held.until <= now);
        free && self.subnet.is_for_guests(address)
    }

    fn lowest_free(&self, now: Instant) -> Option<Ipv4Addr> {
        (0..self.subnet.guests_max().min(GUESTS_MAX)).find_map(|place| {
            let address = self.subnet.guest(place)?;
            self.by_address.get(&address).is_none_or(|held| held.until <= now).then_some(address)
        })
    }

    /// Never shortens what the guest has.
    fn hold(&mut self, mac: MacAddress, address: Ipv4Addr, now: Instant, length: Duration) {
        let old = self.by_mac.get(&mac).copied();
        let mut until = now + length;
        if old == Some(address) {
            until = self.by_address.get(&address).map_or(until, |held| held.until.max(until));
        }
        self.release(mac);
        if let Some(before) = self.by_address.remove(&address) {
            self.by_mac.remove(&before.mac);
        }
        if self.by_mac.len() >= GUESTS_MAX as usize {
            self.forget_the_oldest();
        }
        self.by_address.insert(address, Held { mac, until });
        self.by_mac.insert(mac, address);
    }

    fn forget_the_oldest(&mut self) {
        if let Some(held) = self.by_address.values().min_by_key(|held| held.until).copied() {
            self.release(held.mac);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn mac(number: u8) -> MacAddress {
        MacAddress::new([0x56, 0, 0, 0, 0, number])
    }

    fn address(last: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 0, 2, last)
    }

    #[test]
    fn guests_get_addresses_in_order_and_keep_them() {
        let mut leases = Leases::new(NatSubnet::default());
        let now = Instant::now();
        assert_eq!(leases.offer(mac(1), None, now), Some(address(15)));
        assert_eq!(leases.offer(mac(2), None, now), Some(address(16)));
        assert!(leases.take(mac(1), address(15), now));
        assert_eq!(leases.offer(mac(1), Some(address(99)), now), Some(address(15)));
        assert!(!leases.take(mac(2), address(15), now));
        leases.release(mac(1));
        assert_eq!(leases.offer(mac(3), None, now), Some(address(15)));
    }

    #[test]
    fn a_successor_learns_who_has_what() {
        let mut leases = Leases::new(NatSubnet::default());
        let now = Instant::now();
        leases.seen(mac(1), address(15), now);
        assert!(leases.take(mac(2), address(16), now), "a guest asks to keep its address");
        assert_eq!(leases.offer(mac(3), Some(address(16)), now), Some(address(17)));
    }

    #[test]
    fn what_was_offered_or_given_is_free_again_some_time() {
        let mut leases = Leases::new("10.0.2.0/27".parse().expect("a network"));
        let now = Instant::now();
        for number in 0..16 {
            assert_eq!(
                leases.offer(mac(number), None, now),
                (number < 16).then(|| address(15 + number))
            );
        }
        assert_eq!(leases.offer(mac(99), None, now), None, "no address is left");
        assert!(leases.take(mac(0), address(15), now));
        let later = now + RESERVATION;
        assert_eq!(leases.offer(mac(99), None, later), Some(address(16)));
    }

    proptest! {
        #[test]
        fn no_two_guests_have_one_address(
            deeds in prop::collection::vec((0u8..6, 0u8..40, 0u8..40), 1..200),
        ) {
            let mut leases = Leases::new("10.0.2.0/27".parse().expect("a network"));
            let began = Instant::now();
            for (step, (deed, who, which)) in deeds.into_iter().enumerate() {
                let now = began + Duration::from_secs(60 * step as u64);
                match deed {
                    0 | 1 => drop(leases.offer(mac(who), Some(address(which)), now)),
                    2 | 3 => drop(leases.take(mac(who), address(which), now)),
                    4 => leases.seen(mac(who), address(which), now),
                    _ => leases.release(mac(who)),
                }
                let mut addresses: Vec<_> = leases.all().map(|(_, address)| address).collect();
                addresses.sort_unstable();
                let count = addresses.len();
                addresses.dedup();
                prop_assert_eq!(addresses.len(), count);
                prop_assert_eq!(leases.by_address.len(), count);
                for (mac, address) in leases.all() {
                    prop_assert_eq!(leases.by_address[&address].mac, mac);
                    prop_assert!(leases.subnet.is_for_guests(address));
                }
            }
        }
    }
}
