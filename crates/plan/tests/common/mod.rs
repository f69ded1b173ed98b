//! Guests and hosts for the plan's tests: small, complete and changeable.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part")]

use std::collections::BTreeMap;

use hpvm_model::limits::LimitsTable;
use hpvm_model::*;
use hpvm_plan::facts::network::{NetworkFacts, SwitchFact};
use hpvm_plan::facts::*;
use hpvm_plan::judge::{Purpose, problems};
use hpvm_plan::record::*;

pub fn device(statement: &str) -> StorageDevice {
    let s = Statement::parse(statement, StatementForm::Add).expect("a statement of the test");
    let address = s.address.expect("with an address");
    let random = u64::from(address.slot.bus()) << 16
        | u64::from(address.slot.device()) << 8
        | u64::from(address.target);
    StorageDevice {
        kind: s.kind,
        adapter: s.adapter,
        address,
        backing: s.backing.expect("with a backing"),
        layers: Vec::new(),
        id: DiskId::from_random(random),
    }
}

pub fn guest(statements: &[&str]) -> GuestConfig {
    let mut config = GuestConfig {
        uuid: GuestUuid(uuid::Uuid::from_u128(0x58d0_3f5d_79ed_41d9_b720_17c0_97e9_e0d0)),
        number: GuestNumber::new(7).expect("a number"),
        name: "guest1".parse().expect("a name"),
        serial_number: "VM02647001".into(),
        label: Label::default(),
        os: "linux".parse().expect("a type"),
        vcpus: Vcpus::try_from(2).expect("a count"),
        entitlement: Entitlement::DEFAULT,
        memory: Memory::at_least(Bytes(2 << 30)).expect("a size"),
        auto_start: AutoStart::Manual,
        runnable: Runnable::Enabled,
        storage: statements.iter().map(|s| device(s)).collect(),
        nics: Vec::new(),
        ports: Vec::new(),
    };
    config.sort_devices();
    config
}

pub fn record(config: &GuestConfig) -> BootRecord {
    BootRecord {
        format: FORMAT,
        uuid: config.uuid,
        number: config.number,
        name: config.name.clone(),
        serial_number: config.serial_number.clone(),
        boot_id: "0f6b7a52-5d5a-4b8e-9d0b-0d6c8e3e4f10".into(),
        started_at: "2026-11-24T08:00:00Z".into(),
        engine: Engine { program: "/usr/bin/qemu-system-x86_64".into(), version: "10.0.2".into() },
        machine_type: "pc-q35-10.0".into(),
        accelerator: Accelerator::Tcg,
        vcpus: config.vcpus,
        memory: config.memory,
        firmware_code: "/usr/share/OVMF/OVMF_CODE_4M.fd".into(),
        option_rom: Some(OptionRom { path: "/run/hpvm/mpt.rom".into(), digest: "00".into() }),
        lan_rom: None,
        ports: hpvm_plan::placement::ports(config),
        storage: config.storage.iter().map(|device| attached(device, None)).collect(),
        nics: config.nics.iter().map(|nic| networks(config).attach(nic)).collect(),
        agent: AgentChannel::Present,
        avio_service: AvioService::Processor,
        reservations: Some("/run/hpvm/7/reservations".into()),
        owner: Some(1_000_007),
    }
}

pub fn attached(device: &StorageDevice, identity: Option<FileIdentity>) -> Attached {
    Attached { identity, ..Attached::of(device.clone()) }
}

/// A file that is good for every use but as an image.
pub fn regular(inode: u64, size: u64) -> FileFact {
    file_with(inode, size, Content::Other)
}

fn file_with(inode: u64, size: u64, content: Content) -> FileFact {
    let (identity, size) = (FileIdentity { device: 1, inode }, Bytes(size));
    let (writable, cache) = (Writable::Yes, Cache::Page);
    let ending = Ending::WithBlock;
    FileFact::Regular { identity, size, writable, cache, ending, content }
}

/// A host on which every file of the configuration exists and is good.
pub fn host(config: &GuestConfig) -> HostFacts {
    let files = config.storage.iter().zip(100..).filter_map(|(device, inode)| {
        let content = match device.backing.storage {
            StorageType::Qcow2 if device.layers.is_empty() => Content::Qcow2(Below::Nothing),
            StorageType::Qcow2 => Content::Qcow2(Below::Named),
            _ => Content::Other,
        };
        device.backing.store().map(|path| (path.to_owned(), file_with(inode, 1 << 30, content)))
    });
    HostFacts {
        processors: 4,
        processor_mhz: Some(2600),
        memory_total: Bytes(64 << 30),
        limits: LimitsTable::Host,
        files: files.collect(),
        doubles: BTreeMap::new(),
        overlaps: BTreeMap::new(),
        used_by_host: BTreeMap::new(),
        registered: BTreeMap::new(),
        sharers: BTreeMap::new(),
        network: networks(config),
        locked: BTreeMap::new(),
        option_rom: Provision { path: "/rom".into(), missing: None },
        start: None,
    }
}

pub fn nic(statement: &str) -> Nic {
    let s = NicStatement::parse(statement, StatementForm::Add).expect("a statement of the test");
    Nic {
        kind: s.kind,
        slot: s.slot.expect("with an address"),
        mac: s.mac.expect("with a MAC address"),
        vswitch: s.vswitch.expect("with a switch"),
        port: s.port.expect("with a port"),
    }
}

/// The same guest with NICs.
pub fn with_nics(config: GuestConfig, statements: &[&str]) -> GuestConfig {
    let mut config = GuestConfig { nics: statements.iter().map(|s| nic(s)).collect(), ..config };
    config.sort_devices();
    config
}

/// A VM Host with every switch that the configuration names, booted, and nobody else on them.
pub fn networks(config: &GuestConfig) -> NetworkFacts {
    let switch = || SwitchFact {
        features: None,
        number: SwitchNumber::new(2).expect("a number"),
        state: SwitchState::Up,
        wire_missing: None,
        mtu: None,
        held: BTreeMap::new(),
        ruled: std::collections::BTreeSet::new(),
        booted_over: std::collections::BTreeSet::new(),
    };
    NetworkFacts {
        switches: config.nics.iter().map(|nic| (nic.vswitch.clone(), switch())).collect(),
        macs: BTreeMap::new(),
        lan: BTreeMap::new(),
        folder: "/run/hpvm/7/net".into(),
        features: 0x1_5480_0000,
    }
}

/// What a start needs, all of it there.
pub fn ready() -> StartFacts {
    let provision = |path: &str| Provision { path: path.into(), missing: None };
    StartFacts {
        memory_available: Bytes(32 << 30),
        engine: Ok(Engine { program: "/usr/bin/qemu".into(), version: "10.0.2".into() }),
        accelerator: Ok(Accelerator::Tcg),
        avio_service: None,
        firmware: provision("/fw"),
        nvram: provision("/nvram"),
        lan_rom: provision("/lan-rom"),
        reservation_helper: provision("/helper"),
        shut: Vec::new(),
    }
}

pub const CREATE: Purpose<'static> = Purpose::Change { before: None };

/// What is told, as commands do.
pub fn lines(config: &GuestConfig, facts: &HostFacts, purpose: Purpose<'_>) -> Vec<String> {
    problems(config, facts, purpose).iter().map(|p| format!("{}: {}", p.severity, p.text)).collect()
}
