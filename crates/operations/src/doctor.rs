//! Looks for leftovers and damage: registry, folders, links, `/run`, operations that nobody finished. Explains each, and
//! repairs it when asked. Every file of ours is named so that its owner can be told, so looking is enough.
//!
//! What may be a guest is never removed: a folder that says what guest it is and that nobody removed on purpose is made known
//! to the registry again. What another command is making at this moment is left alone: a repair looks again while it keeps
//! the registry, or the guest, from being changed.

mod rebuild;
mod switches;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use hpvm_host::lock::{self, Busy};
use hpvm_host::names::guest_folder;
use hpvm_host::paths::{self, Abandoned, Sockets};
use hpvm_host::{durable, process, removal};
use hpvm_model::{AdapterKind, GuestConfig, GuestNumber, GuestUuid, Vswitch};
use hpvm_plan::record::Machine;
use hpvm_registry::{
    Access, Found, Registry, RemovedGuest, Selector, Step, SwitchSelector, portable,
};

pub use rebuild::{Condition, condition, rebuild};

use crate::clone::interrupted;
use crate::folder::{self, Folder};
use crate::lost_record::Loss;
use crate::network::text;
use crate::presence::{Attention, Presence, Supervision};
use crate::stores::{self, Stores};
use crate::{Actor, Refusal, VmHost, lost, lost_record, supervise, surroundings};

/// One thing found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What it is and why it should not be so.
    pub text: String,
    pub cure: Cure,
}

/// What a repair does about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cure {
    /// A folder or file of ours that belongs to nothing.
    Remove(PathBuf),
    /// A link that is missing or leads elsewhere.
    Link(GuestConfig),
    /// The text a lost registry is rebuilt from.
    Identity(GuestConfig),
    /// The text of a virtual switch.
    SwitchText(Box<Vswitch>),
    /// A virtual switch that the registry does not know, by its text.
    EnterSwitch(Box<Vswitch>),
    /// A guest that the registry does not know and that may have been removed, by its folder.
    Enter(Box<Found>),
    /// A running guest that nobody supervises.
    Adopt(GuestConfig),
    /// A running guest whose boot record only its worker has.
    MendRecord(GuestConfig),
    /// An operation that nobody will finish.
    Settle(Box<hpvm_registry::RecordedOperation>),
    /// The administrator's to do; the command or the deed.
    Tell(String),
}

/// Looks at everything.
pub fn examine(host: &VmHost) -> Result<Vec<Finding>, Refusal> {
    let mut findings = Vec::new();
    for sentence in host.registry.check()? {
        let cure = Cure::Tell("hpvm doctor --rebuild".into());
        findings.push(Finding { text: format!("the registry is damaged: {sentence}"), cure });
    }
    for config in &host.registry.all()? {
        guest(host, config, &mut findings)?;
    }
    findings.extend(places(host)?);
    switches::examine(host, &mut findings)?;
    operations(host, &mut findings)?;
    tunables(host, &mut findings);
    provisions(host, &mut findings);
    scsi_rom(host, &mut findings)?;
    lan_rom(host, &mut findings)?;
    Ok(findings)
}

/// Looks at what lies where guests have their files: all that a repair may remove.
fn places(host: &VmHost) -> Result<Vec<Finding>, Refusal> {
    let mut findings = Vec::new();
    let guests = host.registry.all()?;
    let kept: Vec<GuestConfig> = host.registry.removed()?.into_iter().map(|r| r.config).collect();
    folders(host, &guests, &kept, &mut findings)?;
    links(host, &guests, &mut findings);
    run_folders(host, &guests, &mut findings);
    half_made(host, &mut findings);
    findings.extend(paths::abandoned().into_iter().map(abandoned));
    Ok(findings)
}

fn abandoned(folder: Abandoned) -> Finding {
    let Abandoned { run, root, sockets } = folder;
    let text = format!("{} is the run folder of {}, which is gone", run.display(), root.display());
    match sockets {
        Sockets::None => Finding { text, cure: Cure::Remove(run) },
        Sockets::Some => {
            let what = format!("see whether a guest runs there still: fuser {}/*/*", run.display());
            Finding { text, cure: Cure::Tell(what) }
        }
    }
}

fn guest(host: &VmHost, config: &GuestConfig, findings: &mut Vec<Finding>) -> Result<(), Refusal> {
    let folder = host.folder(config);
    let name = &config.name;
    if !folder.path().is_dir() {
        let text = format!("the folder of guest '{name}', {}, is gone", folder.path().display());
        let cure = Cure::Tell(format!("bring {} back from a backup", folder.path().display()));
        findings.push(Finding { text, cure });
        return Ok(());
    }
    if has_lost_identity(host, config)? {
        let text = format!(
            "{} does not say what the registry says",
            folder.file(guest_folder::IDENTITY).display()
        );
        findings.push(Finding { text, cure: Cure::Identity(config.clone()) });
    }
    let presence = host.presence(config.number);
    if let Presence::On { supervision: Supervision::None, .. } = presence {
        let text = format!("guest '{name}' runs and nobody supervises it");
        findings.push(Finding { text, cure: Cure::Adopt(config.clone()) });
    }
    if let Presence::On { attention: Some(attention @ Attention::NoRecord { .. }), .. } = &presence
    {
        let cure = Cure::Tell(format!("hpvmstop -P {name} -g -F && hpvmstart -P {name}"));
        findings.push(Finding { text: format!("guest '{name}' runs: {attention}"), cure });
    }
    let loss = lost_record::look(host, config, &presence);
    findings.extend(loss.map(|loss| lost_record(config, loss)));
    if let Some(pid) = lost::qemu_at_rest(host, config) {
        let text = format!(
            "guest '{name}' runs as process {pid}, and its files in /run are gone or damaged"
        );
        let cure = Cure::Tell(format!("shut it down from within, or: hpvmstop -P {name} -h -F"));
        findings.push(Finding { text, cure });
    }
    if let Some(machine) = host.machine(config) {
        let displaced = surroundings::displaced_files(&machine).into_iter();
        findings.extend(displaced.map(|file| Finding {
            text: format!("of guest '{name}': {}", file.cause()),
            cure: Cure::Tell(file.cure()),
        }));
    }
    if !presence.is_on()
        && let Some(damage) = crate::nvram::damage(host, config)
    {
        let text = format!("the firmware variables of guest '{name}' cannot be used: {damage}");
        let cure = Cure::Tell(format!("hpvm nvram -P {name} --restore"));
        findings.push(Finding { text, cure });
    }
    Ok(())
}

fn lost_record(config: &GuestConfig, loss: Loss) -> Finding {
    let name = &config.name;
    match loss {
        Loss::Mendable { why } => Finding {
            text: format!(
                "the boot record of guest '{name}', which runs, is lost, and its worker still has it: {why}"
            ),
            cure: Cure::MendRecord(config.clone()),
        },
        Loss::Final { why } => Finding {
            text: format!("the boot record of guest '{name}', which runs, is lost: {why}"),
            cure: Cure::Tell(format!("hpvmstop -P {name} -g -F && hpvmstart -P {name}")),
        },
    }
}

/// Whether the text says something else than the registry, and no command is just changing both.
fn has_lost_identity(host: &VmHost, config: &GuestConfig) -> Result<bool, Refusal> {
    let folder = host.folder(config);
    let said = identity(folder.path()).map(without_ports);
    Ok(said.as_ref() != Some(&without_ports(config.clone()))
        && matches!(lock::owner(&folder.file(guest_folder::BUSY)), Ok(None))
        && host.registry.guest(&Selector::Uuid(config.uuid))?.as_ref() == Some(config))
}

/// Ports grow at each start and are not worth rebuilding the text for.
fn without_ports(config: GuestConfig) -> GuestConfig {
    GuestConfig { ports: Vec::new(), ..config }
}

fn folders(
    host: &VmHost,
    guests: &[GuestConfig],
    kept: &[GuestConfig],
    findings: &mut Vec<Finding>,
) -> Result<(), Refusal> {
    let known: Vec<&GuestConfig> = guests.iter().chain(kept).collect();
    for (name, path) in entries(&host.root.uuids()) {
        let uuid = name.parse::<GuestUuid>().ok();
        if maker(&name).is_some() || known.iter().any(|config| Some(config.uuid) == uuid) {
            continue;
        }
        findings.push(match uuid {
            Some(_) => unknown_folder(host, &known, path)?,
            None => foreign(&path),
        });
    }
    Ok(())
}

/// What no command of ours makes is not ours to remove.
fn foreign(path: &Path) -> Finding {
    Finding {
        text: format!("{} is not made by hpvm", path.display()),
        cure: Cure::Tell("move it to another place".into()),
    }
}

/// A folder in `uuids` that the registry does not know.
fn unknown_folder(
    host: &VmHost,
    known: &[&GuestConfig],
    path: PathBuf,
) -> Result<Finding, Refusal> {
    let shown = path.display();
    let has_run = path.join(guest_folder::BOOT_RECORD).exists();
    let Some(config) = identity(&path) else {
        let text = format!("{shown} belongs to no guest: its creation or removal was interrupted");
        return Ok(match has_run {
            false => Finding { text, cure: Cure::Remove(path) },
            true => Finding {
                text: format!(
                    "{shown} is the folder of a guest, and its {} is unusable",
                    guest_folder::IDENTITY
                ),
                cure: Cure::Tell(format!(
                    "bring {shown}/{} back from a backup",
                    guest_folder::IDENTITY
                )),
            },
        });
    };
    let name = &config.name;
    if was_removed(host, config.uuid)? {
        let text = format!("{shown} is left of the removed guest '{name}'");
        return Ok(Finding { text, cure: Cure::Remove(path) });
    }
    let found = found(&host.root, config.clone());
    let is_live = matches!(found, Found::Guest(..));
    let contradicts = |other: &&&GuestConfig| {
        other.number == config.number || is_live && other.name == config.name
    };
    Ok(match (known.iter().find(contradicts), has_run) {
        (None, _) => Finding {
            text: format!("the registry does not know guest '{name}', whose folder is {shown}"),
            cure: Cure::Enter(Box::new(found)),
        },
        (Some(_), false) => Finding {
            text: format!("{shown} is left of an interrupted creation of '{name}'"),
            cure: Cure::Remove(path),
        },
        (Some(other), true) => Finding {
            text: format!(
                "{shown} is the folder of a guest '{name}' whose number {} or name '{}' has now",
                config.number, other.name
            ),
            cure: Cure::Tell(format!("move {shown} to another place if nobody misses it")),
        },
    })
}

/// What a folder says about the guest it belongs to.
fn identity(folder: &Path) -> Option<GuestConfig> {
    portable::read(&std::fs::read_to_string(folder.join(guest_folder::IDENTITY)).ok()?).ok()
}

/// Whether the last thing the registry remembers of this guest is its removal.
fn was_removed(host: &VmHost, uuid: GuestUuid) -> Result<bool, Refusal> {
    let last = host.registry.operations(Some(uuid), 1)?;
    Ok(last.iter().any(|o| o.operation.before.is_some() && o.operation.after.is_none()))
}

fn links(host: &VmHost, guests: &[GuestConfig], findings: &mut Vec<Finding>) {
    let entered: Vec<GuestUuid> = findings.iter().filter_map(Finding::enters).collect();
    let mut wanted: BTreeMap<&str, &GuestConfig> =
        guests.iter().map(|config| (config.name.as_str(), config)).collect();
    for (name, path) in entries(&host.root.guests()) {
        match wanted.remove(name.as_str()) {
            Some(config) if folder::leads_to(&path, config.uuid) => {}
            Some(config) => {
                let text = format!("{} does not lead to the guest's folder", path.display());
                findings.push(Finding { text, cure: Cure::Link(config.clone()) });
            }
            None if maker(&name).is_some() => {}
            None if entered.iter().any(|uuid| folder::leads_to(&path, *uuid)) => {}
            None if !folder::is_ours(&path) => findings.push(foreign(&path)),
            None => {
                let text = format!("{} is the name of no guest", path.display());
                findings.push(Finding { text, cure: Cure::Remove(path) });
            }
        }
    }
    for config in wanted.into_values() {
        let link = host.root.guest_link(config.name.as_str());
        let text = format!("the link {} is missing", link.display());
        findings.push(Finding { text, cure: Cure::Link(config.clone()) });
    }
}

impl Finding {
    /// The guest that becomes known by the repair.
    fn enters(&self) -> Option<GuestUuid> {
        self.entered().map(|config| config.uuid)
    }

    fn entered(&self) -> Option<&GuestConfig> {
        match &self.cure {
            Cure::Enter(found) => match found.as_ref() {
                Found::Guest(config, _) => Some(config),
                Found::Removed(removed, _) => Some(&removed.config),
            },
            _ => None,
        }
    }
}

fn run_folders(host: &VmHost, guests: &[GuestConfig], findings: &mut Vec<Finding>) {
    let entered: Vec<u32> =
        findings.iter().filter_map(Finding::entered).map(|config| config.number.get()).collect();
    for number in host.run_folders() {
        if guests.iter().any(|config| config.number.get() == number) || entered.contains(&number) {
            continue;
        }
        let path = host.root.run_dir(number);
        let presence = GuestNumber::new(number).map(|n| host.presence(n)).filter(Presence::is_on);
        findings.push(match presence {
            None => {
                let text = format!("{} belongs to no guest", path.display());
                Finding { text, cure: Cure::Remove(path) }
            }
            Some(presence) => {
                let text = format!("a guest with number {number} runs, and no folder says which");
                let pid = presence.snapshot().map(|s| s.qemu.pid.to_string());
                let pid = pid.unwrap_or_else(|| format!("of QEMU in {}", path.display()));
                Finding { text, cure: Cure::Tell(format!("end process {pid} if nobody misses it")) }
            }
        });
    }
}

/// Files under the name they have while they are made, whose maker is gone.
fn half_made(host: &VmHost, findings: &mut Vec<Finding>) {
    let mut folders: Vec<PathBuf> =
        entries(&host.root.uuids()).into_iter().map(|(_, path)| path).collect();
    folders.extend(host.root.db().parent().map(Path::to_owned));
    folders.extend([host.root.uuids(), host.root.guests(), host.root.common()]);
    folders.push(host.root.run().to_owned());
    for (name, path) in folders.iter().flat_map(|folder| entries(folder)) {
        if maker(&name).is_some_and(|pid| process::start_time(pid).is_none()) {
            let text = format!("{} was never finished: who made it was killed", path.display());
            findings.push(Finding { text, cure: Cure::Remove(path) });
        }
    }
}

/// The process that makes a file, when its name says that it is not finished: `.NAME.PID.COUNT.new` of `host::durable`, and
/// `hpvm.db.new-PID-COUNT` of the registry with the log beside it.
fn maker(name: &str) -> Option<i32> {
    let numbers = |pid: &str, count: &str| {
        count.parse::<u32>().ok()?;
        pid.parse::<i32>().ok()
    };
    if let Some((_, made)) = name.split_once(".db.new-") {
        let (pid, rest) = made.split_once('-')?;
        return numbers(pid, rest.split_once('-').map_or(rest, |(count, _)| count));
    }
    let made = name.strip_prefix('.')?.strip_suffix(".new")?;
    let (rest, count) = made.rsplit_once('.')?;
    let (_, pid) = rest.rsplit_once('.')?;
    numbers(pid, count)
}

fn operations(host: &VmHost, findings: &mut Vec<Finding>) -> Result<(), Refusal> {
    for recorded in host.registry.unfinished()? {
        if interrupted::was_interrupted(host, &recorded) {
            let text = format!("`{}` was interrupted", recorded.operation.command_line);
            findings.push(Finding { text, cure: Cure::Settle(Box::new(recorded)) });
        }
    }
    Ok(())
}

/// What an administrator meant to say in hpvmconf and did not.
fn tunables(host: &VmHost, findings: &mut Vec<Finding>) {
    findings.extend(host.conf.faults().into_iter().map(|text| {
        let cure = Cure::Tell("correct the line, or take it out".into());
        Finding { text, cure }
    }));
}

fn provisions(host: &VmHost, findings: &mut Vec<Finding>) {
    if let Err(reason) = host.engine() {
        let cure = Cure::Tell("install qemu-system-x86 10 or set HPVMQEMU in hpvmconf".into());
        findings.push(Finding { text: format!("QEMU cannot be used: {reason}"), cure });
    }
    let firmware = host.conf.firmware();
    if !matches!(stores::plain_file(&firmware), hpvm_plan::facts::FileFact::Regular { .. }) {
        let text = format!("the firmware {} cannot be used", firmware.display());
        let cure = Cure::Tell("install package ovmf or set HPVMFIRMWARE in hpvmconf".into());
        findings.push(Finding { text, cure });
    }
}

/// Asked for only where a guest has a scsi adapter, with which it does not start otherwise.
fn scsi_rom(host: &VmHost, findings: &mut Vec<Finding>) -> Result<(), Refusal> {
    let rom = host.conf.scsi_rom();
    let has_scsi = |config: &GuestConfig| {
        config.storage.iter().any(|device| device.adapter == AdapterKind::Scsi)
    };
    if !matches!(stores::plain_file(&rom), hpvm_plan::facts::FileFact::Regular { .. })
        && let Some(guest) = host.registry.all()?.iter().find(|config| has_scsi(config))
    {
        let text = format!(
            "the firmware driver {} cannot be used, so guests with scsi adapters, such as '{}', do not start",
            rom.display(),
            guest.name
        );
        let cure =
            Cure::Tell("install hpvm's own, or name the file in hpvmconf (HPVMSCSIROM)".into());
        findings.push(Finding { text, cure });
    }
    Ok(())
}

/// Asked for only where a guest boots over a LAN: who has none of it needs no driver.
fn lan_rom(host: &VmHost, findings: &mut Vec<Finding>) -> Result<(), Refusal> {
    let switches = host.registry.vswitches()?;
    let booted_over = switches.iter().flat_map(|switch| switch.ports.values());
    let is_wanted = booted_over.into_iter().any(|rules| rules.lan_boot.is_some());
    let rom = host.conf.lan_rom();
    if is_wanted && !matches!(stores::plain_file(&rom), hpvm_plan::facts::FileFact::Regular { .. })
    {
        let text = format!(
            "the firmware driver {} cannot be used, so guests cannot boot over lan NICs",
            rom.display()
        );
        let cure = Cure::Tell("install package ipxe-qemu or set HPVMLANROM in hpvmconf".into());
        findings.push(Finding { text, cure });
    }
    Ok(())
}

fn entries(folder: &Path) -> Vec<(String, PathBuf)> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut entries: Vec<(String, PathBuf)> = entries
        .map(|entry| (entry.file_name().to_string_lossy().into_owned(), entry.path()))
        .collect();
    entries.sort();
    entries
}

/// Repairs one finding; gives what was done, or `None` when it is the administrator's to do.
pub fn repair(
    host: &mut VmHost,
    actor: &Actor,
    finding: &Finding,
) -> Result<Option<String>, Refusal> {
    let done = match &finding.cure {
        Cure::Remove(path) => {
            // Whoever makes a guest holds the registry from before its folder has the guest's name until it is known.
            let mut gate = Registry::open(&host.root.db(), Access::ReadWrite)?;
            let _held = gate.change()?;
            if !places(host)?.contains(finding) {
                return Ok(Some(format!("{} is in use by now", path.display())));
            }
            remove(path)?;
            format!("removed {}", path.display())
        }
        Cure::Enter(found) => {
            enter(host, found)?;
            "made it known to the registry".into()
        }
        Cure::Link(config) => {
            let (_busy, config) = held(host, actor, config)?;
            folder::link(&host.root, &config.name, config.uuid)?;
            format!("made the link of '{}'", config.name)
        }
        Cure::Identity(config) => {
            let (_busy, config) = held(host, actor, config)?;
            host.folder(&config).replace_identity(&config)?;
            format!("wrote the identity of '{}'", config.name)
        }
        Cure::SwitchText(switch) => {
            // Nobody changes it while it is written down.
            let selector = SwitchSelector::Number(switch.number);
            let change = host.registry.change()?;
            let Some(switch) = change.vswitch(&selector)? else {
                return Ok(Some(format!("virtual switch '{}' is removed by now", switch.name)));
            };
            text::write(&host.root, &switch)?;
            format!("wrote the text of virtual switch '{}'", switch.name)
        }
        Cure::EnterSwitch(switch) => {
            let change = host.registry.change()?;
            change.enter_vswitch(switch)?;
            change.commit()?;
            "made it known to the registry".into()
        }
        Cure::Adopt(config) => {
            let _busy = host.busy(config, actor)?;
            supervise::adopt(host, config)?;
            format!("took '{}' over", config.name)
        }
        Cure::MendRecord(config) => {
            lost_record::mend(host, actor, config)?;
            format!("wrote the boot record of '{}' again", config.name)
        }
        Cure::Settle(recorded) => {
            interrupted::settle(host, recorded)?;
            "brought it to its end, or took back what it had made".into()
        }
        Cure::Tell(_) => return Ok(None),
    };
    Step::DoctorCleaned.reached();
    Ok(Some(done))
}

/// Leaves the record of repairs, which failed if one of them did. They are done, whether or not that can be written down.
pub fn record(host: &mut VmHost, actor: &Actor, failed: Option<&Refusal>) {
    let operation = match failed {
        Some(refusal) => actor.failed(None, refusal),
        None => actor.done(None, None),
    };
    let _ = host.registry.record(&operation);
}

/// The guest as the registry has it now, and nobody changes it.
fn held(host: &VmHost, actor: &Actor, found: &GuestConfig) -> Result<(Busy, GuestConfig), Refusal> {
    let busy = host.busy(found, actor)?;
    Ok((busy, host.guest(&Selector::Uuid(found.uuid))?))
}

/// As a rebuild does it, for one guest.
fn enter(host: &mut VmHost, found: &Found) -> Result<(), Refusal> {
    let change = host.registry.change()?;
    match found {
        Found::Guest(config, identities) => change.insert(config, identities)?,
        Found::Removed(RemovedGuest { config, keep_until, .. }, identities) => {
            change.insert(config, identities)?;
            change.remove(config.number, *keep_until)?;
        }
    }
    Ok(change.commit()?)
}

fn remove(path: &Path) -> Result<(), Refusal> {
    let is_folder = std::fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_dir());
    let removed = if is_folder { removal::folder(path) } else { removal::file(path) };
    removed.map_err(Refusal::file("remove", path))
}

fn found(root: &hpvm_host::Root, config: GuestConfig) -> Found {
    let config = with_ports(root, config);
    let stores = Stores::look(std::iter::once(&config));
    let identities = crate::vm_host::identities_of(&stores.files);
    if folder::leads_to(&root.guest_link(config.name.as_str()), config.uuid) {
        return Found::Guest(config, identities);
    }
    let now = jiff::Timestamp::now();
    let removed = RemovedGuest { config, removed_at: now, keep_until: now + KEEP_FOUND };
    Found::Removed(removed, identities)
}

/// A start makes ports for a guest and tells the boot record of them, not the text.
fn with_ports(root: &hpvm_host::Root, config: GuestConfig) -> GuestConfig {
    let path = Folder::of(root, config.uuid).file(guest_folder::BOOT_RECORD);
    let text = durable::open_regular(&path).and_then(std::io::read_to_string);
    let machine = text.ok().and_then(|text| Machine::read(&text).ok());
    match machine {
        Some(machine) if machine.base.uuid == config.uuid => {
            GuestConfig { ports: machine.base.ports, ..config }
        }
        _ => config,
    }
}

/// A guest without a link is kept a week from the rebuild on when nobody knows any more when it was removed.
const KEEP_FOUND: jiff::SignedDuration = jiff::SignedDuration::from_hours(7 * 24);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_maker_of_a_half_made_file_is_told_by_its_name() {
        assert_eq!(maker(".web.412.0.new"), Some(412));
        assert_eq!(maker(".web.example.com.412.17.new"), Some(412));
        assert_eq!(maker("hpvm.db.new-412-0"), Some(412));
        assert_eq!(maker("hpvm.db.new-412-0-wal"), Some(412));
        for made in ["web", "web.412.0.new", ".web.new", ".web.x.0.new", "hpvm.db", "hpvm.db-wal"] {
            assert_eq!(maker(made), None, "{made}");
        }
    }
}
