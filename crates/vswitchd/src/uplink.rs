//! What is known of the network interface behind the wire, by what the kernel tells of all interfaces. The owner of the switch
//! feeds it and does what follows; nothing here is asked or changed.
//!
//! ```text
//!              Now(ours)                Gone, or another name
//!   unknown ─────────────► here ◄──────────────────────► gone
//!      │                     │ Now(ours): another address, MTU or link        ▲
//!      └─────── AllTold, and ours was not among them ─────────────────────────┘
//! ```

use hpvm_host::nic::{Carrier, LinkNews, Nic};
use hpvm_model::InterfaceName;

/// The interface of a name, if there is to be one.
#[derive(Debug, Default)]
pub(crate) struct Uplink {
    name: Option<InterfaceName>,
    known: Known,
    asking: Asking,
    /// It was told of since the kernel was last asked for all.
    told: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum Known {
    #[default]
    Unknown,
    Here(Nic),
    Gone,
}

/// Whether the kernel is telling of all interfaces.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Asking {
    #[default]
    No,
    Once,
    /// Something was missed meanwhile.
    Again,
}

/// What is to be done about news.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    Nothing,
    /// The interface with this index is the wire. What is new about it, in words.
    Here {
        index: u32,
        news: Vec<String>,
    },
    /// There is no such interface any more; whether that is news.
    Gone {
        is_news: bool,
    },
    /// The kernel is to be asked for all interfaces.
    Ask,
}

impl Uplink {
    pub(crate) fn new(name: Option<InterfaceName>) -> Uplink {
        Uplink { name, ..Uplink::default() }
    }

    /// Another interface is to be the wire, of which nothing is known yet.
    pub(crate) fn rename(&mut self, name: Option<InterfaceName>) {
        (self.name, self.known) = (name, Known::Unknown);
    }

    /// Whether the interface is known not to be there.
    pub(crate) fn is_gone(&self) -> bool {
        self.known == Known::Gone
    }

    /// All interfaces are to be looked at anew. One question at a time: the kernel answers no second.
    pub(crate) fn look_anew(&mut self) -> Turn {
        match self.asking {
            Asking::No => {
                (self.asking, self.told) = (Asking::Once, false);
                Turn::Ask
            }
            Asking::Once | Asking::Again => {
                self.asking = Asking::Again;
                Turn::Nothing
            }
        }
    }

    /// Whether the kernel is still telling of all.
    pub(crate) fn is_asking(&self) -> bool {
        self.asking != Asking::No
    }

    pub(crate) fn hear(&mut self, news: &LinkNews) -> Turn {
        match news {
            LinkNews::Now(nic) if self.is_ours(nic) => self.is_here(nic),
            // The interface that it was has another name now, or is no Ethernet any more.
            LinkNews::Now(nic) if self.index() == Some(nic.index) => self.is_lost(),
            LinkNews::Gone { index, .. } if self.index() == Some(*index) => self.is_lost(),
            LinkNews::Now(_) | LinkNews::Gone { .. } => Turn::Nothing,
            LinkNews::Missed => self.look_anew(),
            LinkNews::AllTold => self.all_told(),
        }
    }

    fn is_ours(&self, nic: &Nic) -> bool {
        self.name.as_ref().is_some_and(|name| name.as_str() == nic.name) && nic.mac.is_some()
    }

    fn index(&self) -> Option<u32> {
        match &self.known {
            Known::Here(nic) => Some(nic.index),
            Known::Unknown | Known::Gone => None,
        }
    }

    fn is_here(&mut self, nic: &Nic) -> Turn {
        self.told = true;
        let before = std::mem::replace(&mut self.known, Known::Here(nic.clone()));
        let news = match before {
            Known::Here(before) if before.index == nic.index => differences(&before, nic),
            Known::Unknown => vec![format!("the wire is {}", in_words(nic))],
            Known::Here(_) | Known::Gone => vec![format!("the wire is back: {}", in_words(nic))],
        };
        Turn::Here { index: nic.index, news }
    }

    fn is_lost(&mut self) -> Turn {
        let is_news = self.known != Known::Gone;
        self.known = Known::Gone;
        Turn::Gone { is_news }
    }

    fn all_told(&mut self) -> Turn {
        let again = self.asking == Asking::Again;
        self.asking = Asking::No;
        match () {
            () if again => self.look_anew(),
            () if self.told || self.name.is_none() => Turn::Nothing,
            () => self.is_lost(),
        }
    }
}

fn in_words(nic: &Nic) -> String {
    let mac = nic.mac.map_or_else(String::new, |mac| format!(", MAC address {mac}"));
    format!("{} (MTU {}{mac}, {})", nic.name, nic.mtu_bytes, link(nic.carrier))
}

fn differences(before: &Nic, now: &Nic) -> Vec<String> {
    let name = &now.name;
    let mut all = Vec::new();
    if let (true, Some(mac)) = (before.mac != now.mac, now.mac) {
        all.push(format!("the MAC address of {name} is {mac} now"));
    }
    if before.mtu_bytes != now.mtu_bytes {
        all.push(format!("the MTU of {name} is {} now", now.mtu_bytes));
    }
    if before.carrier != now.carrier {
        all.push(format!("{name}: {}", link(now.carrier)));
    }
    all
}

fn link(carrier: Carrier) -> &'static str {
    match carrier {
        Carrier::Up => "link up",
        Carrier::Down => "no link",
        Carrier::Off => "not set up",
    }
}

#[cfg(test)]
mod tests {
    use hpvm_host::nic::NicKind;
    use hpvm_model::MacAddress;

    use super::*;

    fn nic(index: u32, name: &str) -> Nic {
        Nic {
            index,
            name: name.to_owned(),
            kind: NicKind::Physical,
            mac: Some(MacAddress::new([2, 0, 0, 0, 0, 1])),
            mtu_bytes: 1500,
            carrier: Carrier::Up,
            master: None,
            lower: None,
            addresses: Vec::new(),
        }
    }

    fn uplink() -> Uplink {
        Uplink::new(Some("eth0".parse().expect("a name")))
    }

    fn gone(index: u32) -> LinkNews {
        LinkNews::Gone { index, name: "eth0".to_owned() }
    }

    fn news_of(turn: Turn) -> Vec<String> {
        match turn {
            Turn::Here { news, .. } => news,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_interface_goes_and_comes_under_another_index() {
        let mut uplink = uplink();
        let back = |turn| matches!(turn, Turn::Here { index: 9, .. });
        assert!(matches!(uplink.hear(&LinkNews::Now(nic(3, "eth0"))), Turn::Here { index: 3, .. }));
        assert_eq!(uplink.hear(&gone(3)), Turn::Gone { is_news: true });
        assert!(uplink.is_gone());
        assert_eq!(uplink.hear(&LinkNews::Now(nic(4, "eth1"))), Turn::Nothing);
        assert!(back(uplink.hear(&LinkNews::Now(nic(9, "eth0")))));
        assert_eq!(uplink.hear(&gone(3)), Turn::Nothing, "that was another one");
        assert!(!uplink.is_gone());
    }

    #[test]
    fn an_interface_with_another_name_is_another_one() {
        let mut uplink = uplink();
        uplink.hear(&LinkNews::Now(nic(3, "eth0")));
        assert_eq!(uplink.hear(&LinkNews::Now(nic(3, "old0"))), Turn::Gone { is_news: true });
        assert!(matches!(uplink.hear(&LinkNews::Now(nic(4, "eth0"))), Turn::Here { index: 4, .. }));
    }

    #[test]
    fn what_is_another_is_told_once() {
        let mut uplink = uplink();
        uplink.hear(&LinkNews::Now(nic(3, "eth0")));
        let other = Nic {
            mac: Some(MacAddress::new([2, 0, 0, 0, 0, 2])),
            mtu_bytes: 9000,
            carrier: Carrier::Down,
            ..nic(3, "eth0")
        };
        let told = news_of(uplink.hear(&LinkNews::Now(other.clone())));
        assert_eq!(told.len(), 3, "{told:?}");
        assert!(told.iter().any(|word| word == "eth0: no link"), "{told:?}");
        assert!(news_of(uplink.hear(&LinkNews::Now(other))).is_empty());
    }

    /// What is not among all interfaces is gone, however its end was missed.
    #[test]
    fn whoever_missed_something_looks_at_all() {
        let mut uplink = uplink();
        assert_eq!(uplink.look_anew(), Turn::Ask);
        assert_eq!(uplink.hear(&LinkNews::AllTold), Turn::Gone { is_news: true });
        uplink.hear(&LinkNews::Now(nic(3, "eth0")));
        assert_eq!(uplink.hear(&LinkNews::Missed), Turn::Ask);
        assert_eq!(uplink.hear(&LinkNews::Missed), Turn::Nothing, "the kernel is asked already");
        assert_eq!(uplink.hear(&LinkNews::AllTold), Turn::Ask, "and once more after that");
        uplink.hear(&LinkNews::Now(nic(3, "eth0")));
        assert_eq!(uplink.hear(&LinkNews::AllTold), Turn::Nothing);
        assert!(!uplink.is_asking() && !uplink.is_gone());
    }

    #[test]
    fn a_switch_without_an_interface_misses_none() {
        let mut uplink = Uplink::new(None);
        assert_eq!(uplink.look_anew(), Turn::Ask);
        assert_eq!(uplink.hear(&LinkNews::Now(nic(3, "eth0"))), Turn::Nothing);
        assert_eq!(uplink.hear(&LinkNews::AllTold), Turn::Nothing);
        assert!(!uplink.is_gone());
    }
}
