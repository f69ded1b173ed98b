//! The grammar of storage statements. What belongs elsewhere (NICs, the console) is refused by name, so that nobody takes
//! silence for success.

use std::fmt;

use super::{
    AdapterKind, AddressError, Backing, DeviceKind, StorageAddress, StorageDevice, StorageType,
};
use crate::bytes::shown;

/// What a statement is for, which decides how much of it must be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StatementForm {
    Add,
    Modify,
    Delete,
}

/// A parsed statement. What the form demands is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Statement {
    pub kind: DeviceKind,
    pub adapter: AdapterKind,
    pub address: Option<StorageAddress>,
    pub backing: Option<Backing>,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StatementError {
    #[error(
        "'{0}' is no resource statement; write device:adapter:[bus,device,target]:storage:location, such as disk:avio_stor::file:/path"
    )]
    Malformed(String),
    #[error(
        "'{0}' is no virtual device; the devices are disk, dvd, tape, changer, burner and network"
    )]
    Device(String),
    #[error(
        "hba devices share a Fibre Channel adapter by NPIV, which QEMU has not; give the LUNs as disks (disk:avio_stor::disk:/dev/disk/by-id/…)"
    )]
    HostAdapter,
    #[error(
        "'{0}' is a NIC, and here a storage device is wanted, such as disk:avio_stor:0,1,0:file:/path"
    )]
    Network(String),
    #[error("the console 'serial:com1::tty:console' comes with the guest and is never given")]
    Serial,
    #[error("'{0}' is no storage adapter; the adapters are scsi and avio_stor")]
    Adapter(String),
    #[error("'{0}' is no storage type; the types are disk, lv, file, qcow2, null and attach")]
    Storage(String),
    #[error("a {} cannot be backed by storage type {}; it takes {}", kind.as_str(), storage.as_str(), stores_of(*kind))]
    Store { kind: DeviceKind, storage: StorageType },
    #[error(transparent)]
    Address(#[from] AddressError),
    #[error("the address bus,device,target is missing, which may be empty; write {0}:…")]
    AddressLeftOut(String),
    #[error("target {target} does not exist on {}; its targets are 0 to {}", adapter.as_str(), adapter.target_max())]
    Target { adapter: AdapterKind, target: u8 },
    #[error("'{0}' is no absolute path; locations begin with '/'")]
    RelativePath(String),
    #[error("the location '{0}' has control characters")]
    ControlCharacter(String),
    #[error("the location '{0}' is longer than 4095 bytes")]
    PathTooLong(String),
    #[error("the location is missing; write what backs the device, such as {0}")]
    LocationMissing(&'static str),
    #[error(
        "-m needs the device's address, as `hpvmstatus -P NAME -d` prints it; only a dvd may be named without, where the guest has just one"
    )]
    AddressMissing,
    #[error(
        "-d needs the device's address or its backing store, as `hpvmstatus -P NAME -d` prints them"
    )]
    NothingNamed,
    #[error(
        "'{0}' is no layer; write storage:location, such as file:/path, with storage type disk, lv, file or qcow2"
    )]
    Layer(String),
}

fn stores_of(kind: DeviceKind) -> String {
    let names: Vec<&str> = kind.stores().iter().map(|storage| storage.as_str()).collect();
    match names.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{} or {last}", rest.join(", ")),
        _ => names.concat(),
    }
}

impl Statement {
    pub fn parse(text: &str, form: StatementForm) -> Result<Statement, StatementError> {
        let fields: Vec<&str> = text.splitn(5, ':').collect();
        let kind = parse_kind(fields[0], text)?;
        let [_, adapter, rest @ ..] = &fields[..] else {
            return Err(StatementError::Malformed(shown(text)));
        };
        let adapter = parse_adapter(adapter)?;
        let address = match rest.first() {
            None | Some(&"") => None,
            Some(storage) if storage.parse::<StorageType>().is_ok() => {
                return Err(StatementError::AddressLeftOut(format!(
                    "{}:{}::{storage}",
                    kind.as_str(),
                    adapter.as_str()
                )));
            }
            Some(address) => Some(parse_address(address, adapter)?),
        };
        let backing = match rest.get(1..).unwrap_or_default() {
            [] | [""] | ["", ""] => None,
            [storage, location @ ..] => {
                Some(parse_backing(kind, storage, location.first().copied())?)
            }
        };
        let statement = Statement { kind, adapter, address, backing };
        statement.require(form)?;
        Ok(statement)
    }

    fn require(&self, form: StatementForm) -> Result<(), StatementError> {
        match (form, self.address, &self.backing) {
            (StatementForm::Add | StatementForm::Modify, _, None) => {
                Err(StatementError::LocationMissing(example(self.kind, self.kind.stores()[0])))
            }
            // Most guests have one drive, and then it is clear which one is meant.
            (StatementForm::Modify, None, _) if self.kind != DeviceKind::Dvd => {
                Err(StatementError::AddressMissing)
            }
            (StatementForm::Delete, None, None) => Err(StatementError::NothingNamed),
            _ => Ok(()),
        }
    }

    /// Whether this statement, given to delete or modify, means that device: by address where it has one, else by backing.
    #[must_use]
    pub fn names(&self, device: &StorageDevice) -> bool {
        match (self.address, &self.backing) {
            (Some(address), _) => device.address == address,
            (None, Some(backing)) => device.kind == self.kind && device.backing == *backing,
            (None, None) => false,
        }
    }

    /// Whether all that it says is true of a device. What is in a drive comes and goes, also without a statement.
    #[must_use]
    pub fn describes(&self, device: &StorageDevice) -> bool {
        let is_backed_so = |backing: &Backing| *backing == device.backing;
        (self.kind, self.adapter) == (device.kind, device.adapter)
            && (self.kind == DeviceKind::Dvd || self.backing.as_ref().is_none_or(is_backed_so))
    }
}

impl fmt::Display for Statement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:", self.kind.as_str(), self.adapter.as_str())?;
        self.address.map_or(Ok(()), |address| write!(f, "{address}"))?;
        let backing = self.backing.as_ref();
        backing
            .map_or(Ok(()), |Backing { storage, path }| write!(f, ":{}:{path}", storage.as_str()))
    }
}

impl Backing {
    /// What lies under an image, as `--layer` takes it: `storage:location`.
    pub fn parse_layer(text: &str) -> Result<Backing, StatementError> {
        let malformed = || StatementError::Layer(shown(text));
        let (storage, location) = text.split_once(':').ok_or_else(malformed)?;
        let layer = parse_backing(DeviceKind::Disk, storage, Some(location))?;
        layer.store().is_some().then_some(layer.clone()).ok_or_else(malformed)
    }
}

fn parse_kind(text: &str, statement: &str) -> Result<DeviceKind, StatementError> {
    match text {
        "network" => Err(StatementError::Network(shown(statement))),
        "serial" => Err(StatementError::Serial),
        "hba" => Err(StatementError::HostAdapter),
        _ if !statement.contains(':') => Err(StatementError::Malformed(shown(statement))),
        other => other.parse().map_err(|_| StatementError::Device(shown(other))),
    }
}

fn parse_adapter(text: &str) -> Result<AdapterKind, StatementError> {
    text.parse().map_err(|_| StatementError::Adapter(shown(text)))
}

fn parse_address(text: &str, adapter: AdapterKind) -> Result<StorageAddress, StatementError> {
    let address: StorageAddress = text.parse()?;
    if address.target > adapter.target_max() {
        return Err(StatementError::Target { adapter, target: address.target });
    }
    Ok(address)
}

fn parse_backing(
    kind: DeviceKind,
    storage: &str,
    location: Option<&str>,
) -> Result<Backing, StatementError> {
    let storage: StorageType =
        storage.parse().map_err(|_| StatementError::Storage(shown(storage)))?;
    if !kind.stores().contains(&storage) {
        return Err(StatementError::Store { kind, storage });
    }
    let location = location
        .filter(|l| !l.is_empty())
        .ok_or_else(|| StatementError::LocationMissing(example(kind, storage)))?;
    if !location.starts_with('/') {
        return Err(StatementError::RelativePath(shown(location)));
    }
    if location.len() > 4095 {
        return Err(StatementError::PathTooLong(shown(location)));
    }
    if location.chars().any(char::is_control) {
        return Err(StatementError::ControlCharacter(shown(location)));
    }
    Ok(Backing::new(storage, location))
}

/// A backing of this type.
fn example(kind: DeviceKind, storage: StorageType) -> &'static str {
    match (storage, kind) {
        (StorageType::Null, DeviceKind::Dvd) => "null:/folder, a folder of images to choose from",
        (StorageType::Null, _) => "null:/path, which need not exist",
        (StorageType::Attach, _) => "attach:/dev/sg0",
        (StorageType::Lv, _) => "lv:/dev/group/volume",
        (StorageType::Qcow2, _) => "qcow2:/path",
        (StorageType::File | StorageType::Disk, _) => "file:/path",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::{DiskId, PciSlot};
    use proptest::prelude::*;

    fn add(text: &str) -> Result<Statement, StatementError> {
        Statement::parse(text, StatementForm::Add)
    }

    #[test]
    fn statements_are_read() {
        let s = add("disk:scsi::file:/a:b c").unwrap();
        assert_eq!((s.kind, s.adapter, s.address), (DeviceKind::Disk, AdapterKind::Scsi, None));
        assert_eq!(s.backing, Some(Backing::new(StorageType::File, "/a:b c")));
        let s = add("dvd:aviostor:0,1,127:null:/iso").unwrap();
        assert_eq!(s.address.unwrap().to_string(), "0,1,127");
        for (text, shown) in [
            ("disk:scsi:0,0,1", "disk:scsi:0,0,1"),
            ("disk:scsi:0,0,1::", "disk:scsi:0,0,1"),
            ("disk:scsi::file:/x", "disk:scsi::file:/x"),
        ] {
            let read = Statement::parse(text, StatementForm::Delete).unwrap();
            assert_eq!(read.to_string(), shown);
        }
    }

    #[test]
    fn malformed_statements_say_what_is_wrong() {
        for (text, word) in [
            ("", "statement"),
            ("disk", "statement"),
            ("disk:scsi", "location"),
            ("disk:ide::file:/x", "adapter"),
            ("disk:scsi::disk/dev/rdsk/x", "storage type"),
            ("disk:scsi::file:x", "absolute"),
            ("disk:aviostor:file:/x", "write disk:avio_stor::file:…"),
            ("disk:scsi::file:", "such as file:/path"),
            ("dvd:scsi::null:", "such as null:/folder, a folder of images"),
            ("dvd:scsi::null", "such as null:/folder, a folder of images"),
            ("tape:scsi", "such as attach:/dev/sg0"),
            ("disk:scsi::file:/a\nb", "control"),
            ("disk:scsi::npiv:/dev/fcd0", "storage type"),
            ("dvd:scsi::lv:/dev/vg/l", "it takes disk, file or null"),
            ("disk:scsi::attach:/dev/sg0", "disk, lv, file, qcow2 or null"),
            ("tape:scsi::file:/x", "it takes attach"),
            ("hba:avio_stor::npiv:/dev/fcd0", "NPIV"),
            ("disk:scsi:0,3,0:file:/x", "console"),
            ("disk:scsi:0,0,15:file:/x", "0 to 14"),
            ("disk:avio_stor:0,0,128:file:/x", "0 to 127"),
            ("disk:avio_stor:7,0,0:file:/x", "bus 7"),
            ("network:lan::vswitch:v", "is a NIC"),
            ("serial:com1::tty:console", "console"),
            ("floppy:scsi::file:/x", "no virtual device"),
        ] {
            let error = add(text).unwrap_err().to_string();
            assert!(error.contains(word), "{text:?}: {error}");
        }
    }

    #[test]
    fn layers_are_stores_of_disks() {
        let layer = Backing::parse_layer("file:/a:b").unwrap();
        assert_eq!(layer, Backing::new(StorageType::File, "/a:b"));
        for (text, word) in [
            ("/base.img", "no layer"),
            ("null:/base.img", "no layer"),
            ("attach:/dev/sg0", "cannot be backed"),
            ("floppy:/x", "no storage type"),
            ("file:base.img", "absolute"),
            ("file:", "location"),
        ] {
            let error = Backing::parse_layer(text).unwrap_err().to_string();
            assert!(error.contains(word), "{text:?}: {error}");
        }
    }

    /// Settles 132: each adapter takes every backing store, and what cannot be is refused when the statement is read.
    #[test]
    fn each_adapter_takes_every_store() {
        for adapter in ["scsi", "avio_stor"] {
            for kind in DeviceKind::ALL {
                for storage in StorageType::ALL {
                    let (device, store) = (kind.as_str(), storage.as_str());
                    let read = add(&format!("{device}:{adapter}::{store}:/x"));
                    assert_eq!(read.is_ok(), kind.stores().contains(&storage), "{read:?}");
                }
            }
        }
    }

    proptest! {
        #[test]
        fn no_statement_panics(text in "(disk|dvd|tape|hba|network|serial|x)?:?(scsi|avio_stor|aviostor|lan)?:?\\PC{0,30}(:file:|:null:|:attach:|:lv)?\\PC{0,20}") {
            for form in [StatementForm::Add, StatementForm::Modify, StatementForm::Delete] {
                let _ = Statement::parse(&text, form);
            }
        }

        #[test]
        fn what_is_printed_can_be_given_back(bus in 0u8..7, device in 0u8..8, any_target in 0u8..128, path in "/[ -~]{0,30}", kind in 0usize..5, store in 0usize..6, vio: bool, random: u64) {
            prop_assume!((bus, device) != (0, 3));
            let kind = DeviceKind::ALL[kind];
            // The second VIO adapter behind an address has 8 to 14.
            let target = if vio { any_target % 15 } else { any_target };
            let device = StorageDevice {
                kind,
                adapter: if vio { AdapterKind::Scsi } else { AdapterKind::AvioStor },
                address: StorageAddress { slot: PciSlot::new(bus, device).unwrap(), target },
                backing: Backing::new(kind.stores()[store % kind.stores().len()], path),
                layers: Vec::new(),
                id: DiskId::from_random(random),
            };
            let parsed = Statement::parse(&device.to_string(), StatementForm::Modify).unwrap();
            prop_assert_eq!(parsed.to_string(), device.to_string());
            prop_assert!(parsed.names(&device));
            prop_assert_eq!(parsed.backing.as_ref(), Some(&device.backing));
        }
    }
}
