//! Guests and registries for tests.

#![allow(dead_code, reason = "each test file uses a part of this")]

use std::hash::{BuildHasher, Hasher, RandomState};
use std::path::PathBuf;

use hpvm_model::{
    AdapterKind, AutoStart, Backing, Bytes, DeviceKind, DiskId, Entitlement, GuestConfig,
    GuestName, GuestNumber, GuestUuid, MacAddress, Memory, Nic, NicKind, OsType, PciSlot,
    PortNumber, Runnable, StorageAddress, StorageDevice, StorageType, Vcpus,
};
use hpvm_registry::{
    Access, Change, FileIdentity, Identities, Operation, Outcome, Registry, Subject,
};
use jiff::Timestamp;

/// A folder for one test's registry; gone afterwards.
pub(crate) struct Place {
    pub(crate) folder: tempfile::TempDir,
}

impl Place {
    pub(crate) fn new() -> Place {
        Place { folder: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.folder.path().join("hpvm.db")
    }

    pub(crate) fn open(&self) -> Registry {
        Registry::open(&self.path(), Access::ReadWrite).unwrap()
    }

    pub(crate) fn reader(&self) -> Registry {
        Registry::open(&self.path(), Access::ReadOnly).unwrap()
    }
}

/// Of the standard library's hash tables, each of which has another key.
pub(crate) fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}

pub(crate) fn name(text: &str) -> GuestName {
    text.parse().unwrap()
}

pub(crate) fn number(number: u32) -> GuestNumber {
    GuestNumber::new(number).unwrap()
}

/// The number for a new guest where nothing holds one.
pub(crate) fn next_number(change: &Change<'_>) -> GuestNumber {
    change.next_number(change.highest_number().unwrap(), |_| false).unwrap()
}

/// A guest with every field filled and four devices, each field another for another number.
pub(crate) fn guest(n: u32) -> GuestConfig {
    let device = |target: u8| StorageDevice {
        kind: if target == 3 { DeviceKind::Dvd } else { DeviceKind::Disk },
        adapter: AdapterKind::AvioStor,
        address: StorageAddress { slot: PciSlot::new(0, 1).unwrap(), target },
        backing: Backing::new(StorageType::File, format!("/srv/disks/guest{n}/disk{target}.img")),
        layers: match target {
            1 => vec![Backing::new(StorageType::File, "/srv/disks/base.img")],
            _ => Vec::new(),
        },
        id: DiskId::from_random(u64::from(n) * 16 + u64::from(target)),
    };
    GuestConfig {
        uuid: GuestUuid(uuid::Uuid::from_u128(
            0x4a5e_0000_0000_4000_8000_0000_0000_0000 + u128::from(n),
        )),
        number: number(n),
        name: name(&format!("guest{n}")),
        serial_number: format!("VM02648{:03}", n % 1000),
        label: format!("the guest number {n}").parse().unwrap(),
        os: "linux:12".parse::<OsType>().unwrap(),
        vcpus: Vcpus::try_from(1 + n % 8).unwrap(),
        entitlement: Entitlement::parse_percent("12.5:50").unwrap(),
        memory: Memory::at_least(Bytes(u64::from(1 + n % 8) << 30)).unwrap(),
        auto_start: AutoStart::Auto,
        runnable: Runnable::Disabled,
        storage: (0..4).map(device).collect(),
        nics: Vec::new(),
        ports: vec![PciSlot::new(0, 0).unwrap(), PciSlot::new(0, 1).unwrap()],
    }
}

/// The same guest with a NIC.
pub(crate) fn guest_on_a_network(n: u32) -> GuestConfig {
    GuestConfig { nics: vec![nic(n)], ..guest(n) }
}

fn nic(n: u32) -> Nic {
    let [_, _, high, low] = n.to_be_bytes();
    Nic {
        kind: NicKind::AvioLan,
        slot: PciSlot::new(0, 2).unwrap(),
        mac: MacAddress::new([0x56, 0xe9, 0xe3, 0x09, high, low]),
        vswitch: "localnet".parse().unwrap(),
        port: PortNumber::new(u16::try_from(n % 512).unwrap() + 1).unwrap(),
    }
}

/// Files for all devices of a guest, none of which another guest has.
pub(crate) fn files(guest: &GuestConfig) -> Identities {
    guest
        .storage
        .iter()
        .enumerate()
        .filter_map(|(i, device)| {
            let inode = u64::from(guest.number.get()) * 1000 + i as u64;
            Some((device.backing.store()?.to_owned(), FileIdentity { device: u64::MAX, inode }))
        })
        .collect()
}

pub(crate) fn add(registry: &mut Registry, guest: &GuestConfig) {
    let change = registry.change().unwrap();
    change.insert(guest, &files(guest)).unwrap();
    change.commit().unwrap();
}

pub(crate) fn operation(guest: &GuestConfig, outcome: Outcome) -> Operation {
    Operation {
        at: Timestamp::from_millisecond(Timestamp::now().as_millisecond()).unwrap(),
        uid: 0,
        user: "root".into(),
        from: "pts/3".into(),
        command_line: format!("hpvmmodify -P {} -c 4", guest.name),
        reason: Some("more to do".into()),
        guest: Some(Subject { uuid: guest.uuid, name: guest.name.clone() }),
        before: Some(guest.clone()),
        after: Some(guest.clone()),
        outcome,
        duration: std::time::Duration::from_millis(7),
        step: None,
    }
}

/// What a process that a test starts from its own program is to do; none in the test's own process.
const ROLE: &str = "HPVM_TEST_ROLE";
const PLACE: &str = "HPVM_TEST_PLACE";

/// The role and the registry's path of this process, when a test started it to play one.
pub(crate) fn role() -> Option<(String, PathBuf)> {
    Some((std::env::var(ROLE).ok()?, std::env::var_os(PLACE)?.into()))
}

/// This test program again, to play `role` in the test function `player`.
pub(crate) fn player(player: &str, role: &str, path: &std::path::Path) -> std::process::Command {
    let mut command = std::process::Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", player, "--nocapture", "--quiet"]).env(ROLE, role).env(PLACE, path);
    command
}
