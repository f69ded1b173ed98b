//! Who hears whom: what a port's VLAN rule makes of a frame that comes in, and of one that would go out (IEEE 802.1Q, 8.6).
//! Pure.
//!
//! Inside the switch each frame belongs to one domain: a VLAN, or [`UNTAGGED`]. Frames never leave their domain.

use hpvm_model::{PortVlan, VlanId};

/// The domain of frames without a VLAN; no VLAN has this number.
pub(crate) const UNTAGGED: u16 = 4095;
pub(crate) const TAG_BYTES: usize = 4;
pub(crate) const VLAN_MASK: u16 = 0x0fff;

/// A rule, ready for a decision per frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Membership {
    /// One domain, whose frames carry no tag here.
    Plain(u16),
    /// Tagged frames of the VLANs whose bits are set.
    Trunk(Box<[u64; 64]>),
    /// Untagged frames as such, and tagged ones of every VLAN that a tag can name: a wire. VLAN 0 stays within the switch,
    /// since beyond it its tag would say a priority and no VLAN.
    All,
}

/// What is to be done to a frame's tag before a receiver gets it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Edit {
    Keep,
    Insert,
    Strip,
    /// The tag says no VLAN, only a priority: it gets the domain's number.
    Replace,
}

impl Membership {
    pub(crate) fn of(vlan: &PortVlan) -> Membership {
        match vlan {
            PortVlan::None => Membership::Plain(UNTAGGED),
            PortVlan::Untagged(vlan) => Membership::Plain(vlan.number()),
            PortVlan::Trunk(set) => {
                let mut bits = Box::new([0; 64]);
                for vlan in set.iter().map(VlanId::number) {
                    bits[usize::from(vlan / 64)] |= 1 << (vlan % 64);
                }
                Membership::Trunk(bits)
            }
        }
    }

    /// The domain of a frame that came in with this tag (TCI), or none if the port does not carry it. A tag of VLAN 0 says
    /// a priority and no VLAN.
    #[inline]
    pub(crate) fn admit(&self, tag: Option<u16>) -> Option<u16> {
        let vlan = tag.map_or(0, |tag| tag & VLAN_MASK);
        match self {
            Membership::Plain(domain) => (vlan == 0).then_some(*domain),
            Membership::Trunk(bits) => {
                let tag = tag?;
                has(bits, tag & VLAN_MASK).then_some(tag & VLAN_MASK)
            }
            Membership::All if vlan == 0 => Some(UNTAGGED),
            Membership::All => (vlan != UNTAGGED).then_some(vlan),
        }
    }

    /// What a frame of this domain that carries this tag becomes when it leaves here, or none if it does not.
    #[inline]
    pub(crate) fn emit(&self, domain: u16, tag: Option<u16>) -> Option<Edit> {
        let tagged = match self {
            Membership::Plain(own) => {
                if *own != domain {
                    return None;
                }
                false
            }
            Membership::Trunk(bits) => {
                if !has(bits, domain) {
                    return None;
                }
                true
            }
            Membership::All if domain == 0 => return None,
            Membership::All => domain != UNTAGGED,
        };
        Some(match (tag, tagged) {
            (None, false) => Edit::Keep,
            (None, true) => Edit::Insert,
            (Some(_), false) => Edit::Strip,
            (Some(tag), true) if tag & VLAN_MASK == domain => Edit::Keep,
            (Some(_), true) => Edit::Replace,
        })
    }
}

fn has(bits: &[u64; 64], vlan: u16) -> bool {
    vlan < UNTAGGED && bits[usize::from(vlan / 64)] & (1 << (vlan % 64)) != 0
}

/// A domain as people name it.
pub(crate) fn name(domain: u16) -> Option<VlanId> {
    VlanId::new(domain)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn rule() -> impl Strategy<Value = PortVlan> {
        let vlan = || (0u16..=4094).prop_map(|number| VlanId::new(number).expect("in range"));
        prop_oneof![
            Just(PortVlan::None),
            vlan().prop_map(PortVlan::Untagged),
            (0u16..4000, 0u16..90).prop_map(|(first, more)| {
                PortVlan::Trunk(format!("{first}-{}", first + more).parse().expect("a list"))
            }),
        ]
    }

    /// The tag on a frame after an edit.
    fn after(edit: Edit, tag: Option<u16>, domain: u16) -> Option<u16> {
        match edit {
            Edit::Keep => tag,
            Edit::Insert => Some(domain),
            Edit::Strip => None,
            Edit::Replace => tag.map(|tag| tag & 0xf000 | domain),
        }
    }

    proptest! {
        #[test]
        fn a_frame_stays_in_its_vlan(from in rule(), to in rule(), tag in prop::option::of(any::<u16>())) {
            let admitted = Membership::of(&from).admit(tag);
            let own = |rule: &PortVlan| match rule {
                PortVlan::None => Some(UNTAGGED),
                PortVlan::Untagged(vlan) => Some(vlan.number()),
                PortVlan::Trunk(_) => None,
            };
            if let (Some(domain), Some(own)) = (admitted, own(&from)) {
                prop_assert_eq!(domain, own);
                prop_assert_eq!(tag.unwrap_or(0) & 0x0fff, 0);
            }
            let Some(domain) = admitted else { return Ok(()) };
            match (Membership::of(&to).emit(domain, tag), &to) {
                (None, PortVlan::Trunk(set)) => {
                    prop_assert!(VlanId::new(domain).is_none_or(|vlan| !set.contains(vlan)));
                }
                (None, _) => prop_assert_ne!(own(&to), Some(domain)),
                (Some(edit), PortVlan::Trunk(set)) => {
                    let seen = after(edit, tag, domain).expect("a trunk has tags");
                    prop_assert_eq!(seen & 0x0fff, domain);
                    prop_assert!(set.contains(VlanId::new(domain).expect("a VLAN")));
                    prop_assert_eq!(seen & 0xf000, tag.unwrap_or(0) & 0xf000);
                }
                (Some(edit), _) => {
                    prop_assert_eq!(after(edit, tag, domain), None);
                    prop_assert_eq!(own(&to), Some(domain));
                }
            }
        }

        #[test]
        fn beyond_a_wire_a_frame_is_in_its_vlan_or_not_there(from in rule(), tag in prop::option::of(any::<u16>())) {
            let Some(domain) = Membership::of(&from).admit(tag) else { return Ok(()) };
            match Membership::All.emit(domain, tag) {
                Some(edit) => prop_assert_eq!(Membership::All.admit(after(edit, tag, domain)), Some(domain)),
                None => prop_assert_eq!(domain, 0),
            }
        }

        #[test]
        fn a_wire_gives_back_what_it_got(tag in prop::option::of(any::<u16>())) {
            let Some(domain) = Membership::All.admit(tag) else {
                prop_assert_eq!(tag.unwrap_or(0) & 0x0fff, 0x0fff);
                return Ok(());
            };
            let seen = after(Membership::All.emit(domain, tag).expect("all"), tag, domain);
            prop_assert_eq!(seen.unwrap_or(0) & 0x0fff, tag.unwrap_or(0) & 0x0fff);
        }
    }
}
