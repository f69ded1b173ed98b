//! NICs of guests and the resource statements that describe them.
//!
//! A statement is `network:adapter:[bus,device[,mac]]:vswitch:NAME[:portid:N]`; `,,mac` gives an address on the LAN alone,
//! and the empty address field may be left out altogether (`network:lan:vswitch:NAME`).

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{MacAddress, MacError, NicKind, PortError, PortNumber, SwitchError, SwitchName};
use crate::bytes::shown;
use crate::storage::{AddressError, PciSlot, StatementForm};

/// A NIC of a guest, complete.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nic {
    pub kind: NicKind,
    pub slot: PciSlot,
    pub mac: MacAddress,
    /// By name, as the administrator knows it: it may name a switch that this VM Host has not.
    pub vswitch: SwitchName,
    pub port: PortNumber,
}

impl Nic {
    /// The whole statement of one like it that has its address drawn.
    #[must_use]
    pub fn without_mac(&self) -> String {
        let Nic { kind, slot, vswitch, port, .. } = self;
        format!("network:{}:{slot}:vswitch:{vswitch}:portid:{port}", kind.as_str())
    }
}

/// As `hpvmstatus -d` prints it, ready for `-a`, `-m` and `-d`. A.03.50 leaves the port out, later versions do not.
impl fmt::Display for Nic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Nic { kind, slot, mac, vswitch, port } = self;
        let (kind, mac) = (kind.as_str(), mac.to_string()[2..].to_ascii_uppercase());
        write!(f, "network:{kind}:{slot},0x{mac}:vswitch:{vswitch}:portid:{port}")
    }
}

/// A parsed statement. What the form demands is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NicStatement {
    pub kind: NicKind,
    pub slot: Option<PciSlot>,
    pub mac: Option<MacAddress>,
    pub vswitch: Option<SwitchName>,
    pub port: Option<PortNumber>,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NicStatementError {
    #[error(
        "'{0}' is no network statement; write network:adapter:[bus,device,mac]:vswitch:NAME, such as network:avio_lan::vswitch:localnet"
    )]
    Malformed(String),
    #[error("'{0}' is no network adapter; the adapters are lan and avio_lan")]
    Adapter(String),
    #[error(
        "'{0}' is no address of a NIC; write bus,device or bus,device,mac such as 0,1 or ,,mac"
    )]
    Place(String),
    #[error(transparent)]
    Address(#[from] AddressError),
    #[error(transparent)]
    Mac(#[from] MacError),
    #[error(transparent)]
    Switch(#[from] SwitchError),
    #[error(transparent)]
    Port(#[from] PortError),
    #[error("the virtual switch is missing; write vswitch:NAME, `hpvmnet` lists them")]
    SwitchMissing,
    #[error("-m needs the NIC's bus,device, as `hpvmstatus -P NAME -d` prints it")]
    AddressMissing,
    #[error("-d needs the NIC's bus,device, its MAC address or its virtual switch")]
    NothingNamed,
}

impl NicStatement {
    /// Whether a statement is one about a NIC; only then is [`NicStatement::parse`] to be asked.
    #[must_use]
    pub fn is_meant(text: &str) -> bool {
        text == "network" || text.starts_with("network:")
    }

    pub fn parse(text: &str, form: StatementForm) -> Result<NicStatement, NicStatementError> {
        let malformed = || NicStatementError::Malformed(shown(text));
        let fields: Vec<&str> = text.split(':').collect();
        let ["network", adapter, rest @ ..] = &fields[..] else { return Err(malformed()) };
        let kind = adapter.parse().map_err(|_| NicStatementError::Adapter(shown(adapter)))?;
        let (place, backing) = match rest {
            ["vswitch", ..] => ("", rest),
            [place, backing @ ..] => (*place, backing),
            [] => ("", rest),
        };
        let (slot, mac) = parse_place(place)?;
        let (vswitch, port) = match backing {
            [] | [""] | ["", ""] => (None, None),
            ["vswitch", name] => (Some(name.parse()?), None),
            ["vswitch", name, "portid", port] => (Some(name.parse()?), Some(port.parse()?)),
            _ => return Err(malformed()),
        };
        let statement = NicStatement { kind, slot, mac, vswitch, port };
        statement.require(form)?;
        Ok(statement)
    }

    fn require(&self, form: StatementForm) -> Result<(), NicStatementError> {
        let NicStatement { slot, mac, vswitch, .. } = self;
        match form {
            StatementForm::Add if vswitch.is_none() => Err(NicStatementError::SwitchMissing),
            StatementForm::Modify if slot.is_none() => Err(NicStatementError::AddressMissing),
            StatementForm::Delete if slot.is_none() && mac.is_none() && vswitch.is_none() => {
                Err(NicStatementError::NothingNamed)
            }
            _ => Ok(()),
        }
    }

    /// Whether this statement, given to delete or modify, means that NIC: by its place where it has one, else by its MAC
    /// address, else by its switch.
    #[must_use]
    pub fn names(&self, nic: &Nic) -> bool {
        match (self.slot, self.mac, &self.vswitch) {
            (Some(slot), _, _) => nic.slot == slot,
            (None, Some(mac), _) => nic.mac == mac,
            (None, None, Some(vswitch)) => nic.vswitch == *vswitch && nic.kind == self.kind,
            (None, None, None) => false,
        }
    }

    /// Whether all that it says is true of a NIC.
    #[must_use]
    pub fn describes(&self, nic: &Nic) -> bool {
        self.kind == nic.kind
            && self.mac.is_none_or(|mac| mac == nic.mac)
            && self.vswitch.as_ref().is_none_or(|vswitch| *vswitch == nic.vswitch)
            && self.port.is_none_or(|port| port == nic.port)
    }
}

impl fmt::Display for NicStatement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "network:{}:", self.kind.as_str())?;
        match (self.slot, self.mac) {
            (Some(slot), Some(mac)) => write!(f, "{slot},{mac}")?,
            (Some(slot), None) => write!(f, "{slot}")?,
            (None, Some(mac)) => write!(f, ",,{mac}")?,
            (None, None) => {}
        }
        self.vswitch.as_ref().map_or(Ok(()), |vswitch| write!(f, ":vswitch:{vswitch}"))?;
        self.port.map_or(Ok(()), |port| write!(f, ":portid:{port}"))
    }
}

/// `bus,device`, `bus,device,mac` or `,,mac`; all empty is no place at all.
fn parse_place(text: &str) -> Result<(Option<PciSlot>, Option<MacAddress>), NicStatementError> {
    let malformed = || NicStatementError::Place(shown(text));
    let (bus, device, mac) = match text.split(',').collect::<Vec<_>>()[..] {
        [""] => return Ok((None, None)),
        [bus, device] => (bus, device, ""),
        [bus, device, mac] => (bus, device, mac),
        _ => return Err(malformed()),
    };
    let number = |text: &str| -> Result<u8, NicStatementError> {
        let digits = !text.is_empty() && text.bytes().all(|digit| digit.is_ascii_digit());
        text.parse().ok().filter(|_| digits).ok_or_else(malformed)
    };
    let slot = match (bus, device) {
        ("", "") => None,
        _ => Some(PciSlot::new(number(bus)?, number(device)?)?),
    };
    let mac = match mac {
        "" => None,
        mac => Some(MacAddress::parse_for_a_guest(mac)?),
    };
    Ok((slot, mac))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn add(text: &str) -> Result<NicStatement, NicStatementError> {
        NicStatement::parse(text, StatementForm::Add)
    }

    #[test]
    fn every_form_of_a_statement_is_read() {
        let slot = |bus, device| Some(PciSlot::new(bus, device).unwrap());
        let mac = Some("0x56e9e3096a22".parse().unwrap());
        for (text, place) in [
            ("network:lan::vswitch:sw-1", (None, None)),
            ("network:lan:vswitch:sw-1", (None, None)),
            ("network:avio_lan:0,1:vswitch:sw-1", (slot(0, 1), None)),
            ("network:aviolan:1,0,0x56E9E3096A22:vswitch:sw-1", (slot(1, 0), mac)),
            ("network:lan:1,0,56-e9-e3-09-6a-22:vswitch:sw-1", (slot(1, 0), mac)),
            ("network:lan:,,0x56e9e3096a22:vswitch:sw-1", (None, mac)),
            ("network:lan:0,1,:vswitch:sw-1", (slot(0, 1), None)),
        ] {
            let statement = add(text).unwrap();
            assert_eq!((statement.slot, statement.mac), place, "{text}");
            assert_eq!(add(&statement.to_string()), Ok(statement.clone()), "{text}");
            assert_eq!(statement.vswitch.unwrap().as_str(), "sw-1", "{text}");
        }
        let port = add("network:lan::vswitch:sw:portid:8").unwrap().port;
        assert_eq!(port, PortNumber::new(8));
        for text in ["network:lan:0,1", "network:lan:0,1::", "network:lan:vswitch:sw"] {
            let read = NicStatement::parse(text, StatementForm::Delete).expect(text);
            assert_eq!(
                NicStatement::parse(&read.to_string(), StatementForm::Delete),
                Ok(read),
                "{text}"
            );
        }
    }

    #[test]
    fn malformed_statements_say_what_is_wrong() {
        for (text, word) in [
            ("network", "network statement"),
            ("network:", "no network adapter"),
            ("network:e1000::vswitch:sw", "lan and avio_lan"),
            ("network:lan", "virtual switch is missing"),
            ("network:lan::switch:sw", "network statement"),
            ("network:lan::vswitch:", "no name of a virtual switch"),
            ("network:lan::vswitch:sw:portid:0", "ports are 1 to"),
            ("network:lan::vswitch:sw:portid", "network statement"),
            ("network:lan:0:vswitch:sw", "no address of a NIC"),
            ("network:lan:0,1,2,3:vswitch:sw", "no address of a NIC"),
            ("network:lan:,1:vswitch:sw", "no address of a NIC"),
            ("network:lan:0,3:vswitch:sw", "console"),
            ("network:lan:7,0:vswitch:sw", "bus 7"),
            ("network:lan:0,1,0x0017a4112233:vswitch:sw", "locally administered"),
            ("network:lan:0,1,0x57a1b2c3d4e5:vswitch:sw", "many stations"),
        ] {
            let error = add(text).unwrap_err().to_string();
            assert!(error.contains(word), "{text:?}: {error}");
        }
        let modify = NicStatement::parse("network:lan::vswitch:sw", StatementForm::Modify);
        assert!(modify.unwrap_err().to_string().contains("-m needs"));
        let delete = NicStatement::parse("network:lan:::", StatementForm::Delete);
        assert!(delete.unwrap_err().to_string().contains("-d needs"));
    }

    proptest! {
        #[test]
        fn no_statement_panics(text in "network:\\PC{0,60}") {
            for form in [StatementForm::Add, StatementForm::Modify, StatementForm::Delete] {
                let _ = NicStatement::parse(&text, form);
            }
        }

        #[test]
        fn what_is_printed_can_be_given_back(
            bus in 0u8..7, device in 0u8..8, random: [u8; 6], port in 1u16..=512, avio: bool,
            name in "[a-zA-Z0-9_][a-zA-Z0-9_.-]{1,20}",
        ) {
            prop_assume!((bus, device) != (0, 3));
            let nic = Nic {
                kind: if avio { NicKind::AvioLan } else { NicKind::Lan },
                slot: PciSlot::new(bus, device).unwrap(),
                mac: MacAddress::for_a_guest(random),
                vswitch: name.parse().unwrap(),
                port: PortNumber::new(port).unwrap(),
            };
            for form in [StatementForm::Add, StatementForm::Modify, StatementForm::Delete] {
                let read = NicStatement::parse(&nic.to_string(), form).unwrap();
                prop_assert!(read.names(&nic));
                prop_assert_eq!(read.kind, nic.kind);
                prop_assert_eq!(read.mac, Some(nic.mac));
                prop_assert_eq!(read.vswitch.as_ref(), Some(&nic.vswitch));
                prop_assert_eq!(read.port, Some(nic.port));
            }
        }
    }
}
