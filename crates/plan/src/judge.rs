//! What is wrong with a configuration, on this host, now. The same findings serve creating, modifying, starting and a dry
//! run; what differs is which of them refuse.

pub mod boot_disk;
mod images;
mod network;
pub mod packets;
mod place_holders;
pub mod registered;
mod stores;

use std::collections::{BTreeMap, BTreeSet};

use hpvm_model::{
    AdapterKind, Bytes, Entitlement, GuestConfig, NicKind, PciSlot, Problem, Remedy, Runnable,
    Severity, StorageAddress, StorageDevice, with_article,
};

use crate::facts::{HostFacts, Lack, Lock, Provision, StartFacts};
use crate::record::{NicBoot, Sharing};

/// What the problems are wanted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose<'a> {
    /// A change of the configuration: only what it causes refuses it.
    Change { before: Option<&'a GuestConfig> },
    /// The same of a guest that runs, which takes on at once what it can: that must be free now.
    ChangeOfRunning { before: &'a GuestConfig },
    /// A start: whatever prevents running refuses it.
    Start,
}

/// How a finding weighs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Weight {
    /// With this the guest could never run.
    Never,
    /// With this it cannot run now.
    NotNow,
    /// It can neither run with it now nor take it on: what another running guest has, or what its firmware hangs on.
    Taken,
    /// It runs, and may surprise.
    Note,
    /// It may be that something is wrong, which nobody can see: told when it comes and at a start, and not at each change after.
    Doubt,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Finding {
    weight: Weight,
    item: String,
    text: String,
    remedy: Option<Remedy>,
}

/// All problems of `config`, each once, errors first.
#[must_use]
pub fn problems(config: &GuestConfig, facts: &HostFacts, purpose: Purpose<'_>) -> Vec<Problem> {
    let before = match purpose {
        Purpose::Change { before } => before,
        Purpose::ChangeOfRunning { before } => Some(before),
        Purpose::Start => None,
    };
    let standing = before.map_or_else(Vec::new, |before| findings(before, Some(before), facts));
    let is_standing = |f: &Finding| standing.iter().any(|s| s.item == f.item && s.text == f.text);
    let mut problems: Vec<Problem> = Vec::new();
    let mut found = findings(config, before, facts);
    if purpose != Purpose::Start {
        images::images_as_raw(config, before, facts, &mut found);
        stores::folders_of_no_drive(config, before, facts, &mut found);
        stores::disks_of_removed(config, before, facts, &mut found);
        least_cycles(config, before, facts, &mut found);
    }
    if let Purpose::ChangeOfRunning { before } = purpose {
        network::comes(config, before, facts, &mut found);
    }
    for finding in found {
        if finding.weight == Weight::Doubt && is_standing(&finding) {
            continue;
        }
        let severity = match (purpose, finding.weight) {
            (Purpose::Change { .. }, Weight::Never)
            | (Purpose::ChangeOfRunning { .. }, Weight::Never | Weight::Taken)
                if !is_standing(&finding) =>
            {
                Severity::Error
            }
            (Purpose::Start, Weight::Never | Weight::NotNow | Weight::Taken) => Severity::Error,
            _ => Severity::Warning,
        };
        let Finding { item, text, remedy, .. } = finding;
        let problem = Problem { severity, item, text, remedy };
        if !problems.contains(&problem) {
            problems.push(problem);
        }
    }
    problems.sort_by_key(|p| std::cmp::Reverse(p.severity));
    problems
}

fn findings(config: &GuestConfig, before: Option<&GuestConfig>, facts: &HostFacts) -> Vec<Finding> {
    let mut all = Vec::new();
    processors(config, facts, &mut all);
    memory(config, facts, &mut all);
    places(config, facts, &mut all);
    stores::judge(config, facts, &mut all);
    stores::used_twice(config, before, facts, &mut all);
    boot_disk::judge(config, &mut all);
    locked(config, facts, &mut all);
    network::judge(config, facts, &mut all);
    scsi_adapters(config, facts, &mut all);
    if let Some(start) = &facts.start {
        provisions(config, facts, start, &mut all);
        shut(config, start, &mut all);
    }
    all
}

type Findings = Vec<Finding>;

fn never(item: impl Into<String>, text: String) -> Finding {
    Finding { weight: Weight::Never, item: item.into(), text, remedy: None }
}

fn not_now(item: impl Into<String>, text: String) -> Finding {
    Finding { weight: Weight::NotNow, item: item.into(), text, remedy: None }
}

fn taken(item: impl Into<String>, text: String) -> Finding {
    Finding { weight: Weight::Taken, item: item.into(), text, remedy: None }
}

fn note(item: impl Into<String>, text: String) -> Finding {
    Finding { weight: Weight::Note, item: item.into(), text, remedy: None }
}

fn doubt(item: impl Into<String>, text: String) -> Finding {
    Finding { weight: Weight::Doubt, item: item.into(), text, remedy: None }
}

impl Finding {
    fn ask(self, ask: impl Into<String>, command: String) -> Finding {
        Finding { remedy: Some(Remedy { ask: Some(ask.into()), command }), ..self }
    }

    fn run(self, command: String) -> Finding {
        Finding { remedy: Some(Remedy { ask: None, command }), ..self }
    }
}

fn start_command(config: &GuestConfig) -> String {
    format!("hpvmstart -P {}", config.name)
}

fn processors(config: &GuestConfig, facts: &HostFacts, all: &mut Findings) {
    let limits = facts.limits.limits(config.os.family);
    let vcpus = config.vcpus.get();
    if vcpus > limits.vcpus_max {
        let max = limits.vcpus_max;
        all.push(never(
            "vcpus",
            format!(
                "{vcpus} vCPUs are more than the {max} that {} guest can have",
                with_article(config.os.family.as_str())
            ),
        ));
    } else if vcpus > facts.processors {
        let host = facts.processors;
        all.push(
            not_now(
                "vcpus",
                format!("{vcpus} vCPUs are more than the {host} processors of this VM Host, so the guest cannot start"),
            )
            .run(format!("hpvmmodify -P {} -c {host}", config.name)),
        );
    }
    if let (Entitlement::Mhz { entitled, maximum }, Some(host)) =
        (config.entitlement, facts.processor_mhz)
    {
        let most = maximum.unwrap_or(entitled).max(entitled);
        if most > host {
            all.push(never(
                "entitlement",
                format!(
                    "an entitlement of {most} MHz is more than the {host} MHz of one processor of this VM Host"
                ),
            ));
        }
    }
}

/// Judged when it is given: the same guest may come to a faster VM Host.
fn least_cycles(
    config: &GuestConfig,
    before: Option<&GuestConfig>,
    facts: &HostFacts,
    all: &mut Findings,
) {
    let (Entitlement::Mhz { entitled, .. }, Some(host)) = (config.entitlement, facts.processor_mhz)
    else {
        return;
    };
    // Whoever changes the maximum alone has not given it.
    let had = before.map(|before| before.entitlement);
    if matches!(had, Some(Entitlement::Mhz { entitled: before, .. }) if before == entitled) {
        return;
    }
    let share = u64::from(Entitlement::MINIMUM.0) * u64::from(host);
    let least = share.div_ceil(u64::from(Entitlement::FULL.0));
    if u64::from(entitled) < least {
        all.push(never(
            "entitlement",
            format!(
                "an entitlement of {entitled} MHz is below the least of 5%, which is {least} MHz of the {host} MHz of one processor of this VM Host"
            ),
        ));
    }
}

fn memory(config: &GuestConfig, facts: &HostFacts, all: &mut Findings) {
    let limits = facts.limits.limits(config.os.family);
    let memory = config.memory.bytes();
    let guest = with_article(config.os.family.as_str());
    if memory < limits.memory_min {
        let text = format!(
            "{memory} of memory are less than the {} that {guest} guest needs",
            limits.memory_min
        );
        all.push(never("memory", text));
    }
    if memory > limits.memory_max {
        let text = format!(
            "{memory} of memory are more than the {} that {guest} guest can have",
            limits.memory_max
        );
        all.push(never("memory", text));
    } else if memory > facts.memory_total {
        let total = Bytes(facts.memory_total.as_mib() << 20);
        let text = format!(
            "{memory} of memory are more than the {total} of this VM Host, so the guest cannot start"
        );
        all.push(smaller_memory(not_now("memory", text), config, facts, facts.memory_total));
    } else if let Some(start) = &facts.start
        && memory > start.memory_available
    {
        let available = Bytes(start.memory_available.as_mib() << 20);
        let text =
            format!("{memory} of memory are not free now: this VM Host has {available} available");
        all.push(smaller_memory(not_now("memory", text), config, facts, start.memory_available));
    }
}

/// Half of what there is, or more where the guest needs more.
fn smaller_memory(
    finding: Finding,
    config: &GuestConfig,
    facts: &HostFacts,
    available: Bytes,
) -> Finding {
    let limits = facts.limits.limits(config.os.family);
    let needed = limits.memory_min_with_nics(config.nics.len());
    if available < needed {
        let ask = format!("free memory on this VM Host, or give it more: the guest needs {needed}");
        return finding.ask(ask, start_command(config));
    }
    let half = available.as_mib() / 2 / 64 * 64;
    let fits = half.max(needed.as_mib());
    finding.run(format!("hpvmmodify -P {} -r {fits}M", config.name))
}

fn places(config: &GuestConfig, facts: &HostFacts, all: &mut Findings) {
    let most = facts.limits.limits(config.os.family).storage_devices_max;
    if config.storage.len() > most {
        all.push(never(
            "storage",
            format!("{} devices are more than the {most} a guest can have", config.storage.len()),
        ));
    }
    let mut seen: BTreeMap<StorageAddress, &StorageDevice> = BTreeMap::new();
    let mut adapters: BTreeMap<PciSlot, AdapterKind> = BTreeMap::new();
    for device in &config.storage {
        let address = device.address;
        if let Some(first) = seen.insert(address, device) {
            all.push(never(
                device.to_string(),
                format!("address {address} is given to two devices; {first} has it already"),
            ));
        }
        let adapter = *adapters.entry(address.slot).or_insert(device.adapter);
        if adapter != device.adapter {
            all.push(never(
                device.to_string(),
                format!(
                    "{} is the address of {} adapter; {} device needs a bus,device of its own",
                    address.slot,
                    with_article(adapter.as_str()),
                    with_article(device.adapter.as_str())
                ),
            ));
        }
    }
    io_space(&adapters, network::emulated(config), all);
}

/// Emulated adapters take I/O ports, of which a PC has 64 KiB for all root ports together.
fn io_space(adapters: &BTreeMap<PciSlot, AdapterKind>, nics: usize, all: &mut Findings) {
    let scsi = adapters.values().filter(|kind| **kind == AdapterKind::Scsi).count();
    let emulated = scsi + nics;
    if emulated > 8 {
        all.push(note(
            "storage",
            format!("{emulated} emulated adapters (scsi, lan) slow the boot down and may run out of I/O ports; put devices on the same bus,device or use avio_stor and avio_lan"),
        ));
    }
}

fn provisions(config: &GuestConfig, facts: &HostFacts, start: &StartFacts, all: &mut Findings) {
    let command = start_command(config);
    if config.runnable == Runnable::Disabled {
        all.push(
            not_now("runnable_status", "the guest is marked not runnable".into())
                .run(format!("hpvmmodify -P {} -x runnable_status=enabled", config.name)),
        );
    }
    if let Err(reason) = &start.engine {
        all.push(not_now("engine", format!("QEMU cannot be used: {reason}")).ask(
            "install qemu-system-x86 10 or name the program in hpvmconf (HPVMQEMU)",
            command.clone(),
        ));
    }
    if let Err(reason) = &start.accelerator {
        all.push(
            not_now("accelerator", format!("the accelerator asked for cannot be used: {reason}"))
                .run(format!("HPVM_ACCEL=tcg {command}")),
        );
    }
    if let Provision { path, missing: Some(reason) } = &start.firmware {
        all.push(not_now(path, format!("the firmware '{path}' cannot be used: {reason}")).ask(
            "install package ovmf or name the file in hpvmconf (HPVMFIRMWARE)",
            command.clone(),
        ));
    }
    if let Provision { path, missing: Some(reason) } = &start.nvram {
        let text = format!("the guest's firmware variables '{path}' cannot be used: {reason}");
        all.push(match reason {
            Lack::Forbidden => not_now(path, text).ask(
                format!("have their owner do this, or give {path} to this user"),
                command.clone(),
            ),
            Lack::Unfit(_) => {
                not_now(path, text).run(format!("hpvm nvram -P {} --restore", config.name))
            }
        });
    }
    let shares = config.storage.iter().any(|d| facts.sharing(d) == Sharing::Reserved);
    if let (true, Provision { path, missing: Some(reason) }) = (shares, &start.reservation_helper) {
        all.push(
            not_now(path, format!("the program that makes reservations on shared disks '{path}' cannot be used: {reason}"))
                .ask("install qemu-system-common 10 or name the program in hpvmconf (HPVMRESERVATIONHELPER)", command.clone()),
        );
    }
    let boots_over_lan = config.nics.iter().any(|nic| {
        nic.kind == NicKind::Lan && facts.network.attach(nic).boot == NicBoot::AfterDisks
    });
    if let (true, Provision { path, missing: Some(reason) }) = (boots_over_lan, &start.lan_rom) {
        all.push(
            note(path, format!("the guest cannot boot over its lan NIC: the firmware driver '{path}' cannot be used: {reason}"))
                .ask("install package ipxe-qemu or name the file in hpvmconf (HPVMLANROM)", command),
        );
    }
}

/// A start without it would leave the guest without those disks; whoever configures them is told so at once.
fn scsi_adapters(config: &GuestConfig, facts: &HostFacts, all: &mut Findings) {
    let has_emulated = config.storage.iter().any(|d| d.adapter == AdapterKind::Scsi);
    if let (true, Provision { path, missing: Some(reason) }) = (has_emulated, &facts.option_rom) {
        all.push(
            not_now(path, format!("the firmware driver of scsi adapters '{path}' cannot be used: {reason}"))
                .ask("build it with `cargo xtask option-rom` and install it by `make install`, or name the file in hpvmconf (HPVMSCSIROM)", start_command(config)),
        );
    }
}

/// What programs that are no guests have locked: a disk, an image of a dvd, what lies under an image.
fn locked(config: &GuestConfig, facts: &HostFacts, all: &mut Findings) {
    let mut told = BTreeSet::new();
    for path in config.storage.iter().flat_map(StorageDevice::stores) {
        let Some(lock) = facts.locked.get(path).filter(|_| told.insert(path)) else { continue };
        let ask = match lock {
            Lock::Guest { guest, .. } => format!(
                "wait until '{guest}' has ended or given {path} up; `hpvm why -P {guest}` tells how it is"
            ),
            _ => format!("wait until {} has ended or given {path} up", lock.who()),
        };
        all.push(taken(path, lock.on(path)).ask(ask, start_command(config)));
    }
}

/// Where nothing can be written.
fn shut(config: &GuestConfig, start: &StartFacts, all: &mut Findings) {
    for folder in &start.shut {
        let found = not_now(&folder.path, folder.lack("a start"));
        all.push(found.ask(folder.way_out(), start_command(config)));
    }
}
