//! Starts a guest: judges the configuration, makes the boot record, launches.

use std::io::{self, ErrorKind, Read};
use std::path::Path;
use std::time::Instant;

use hpvm_engine::launch::{self, LaunchError, Milestones, Places};
use hpvm_engine::reservations;
use hpvm_host::names::guest_folder;
use hpvm_host::signals::{Limits, lift_limits};
use hpvm_host::{durable, fingerprint};
use hpvm_model::{
    Accelerator, AdapterKind, AvioService, GuestConfig, NicKind, Problem, Severity, chain,
};
use hpvm_plan::facts::{Engine, HostFacts, StartFacts};
use hpvm_plan::judge::{Purpose, problems};
use hpvm_plan::placement;
use hpvm_plan::record::{AgentChannel, AttachedNic, BootRecord, FORMAT, NicBoot, OptionRom};
use hpvm_registry::Step;

use crate::clone::interrupted;
use crate::facts::identities;
use crate::network::{forwards, mtu, ports, wire};
use crate::presence::Presence;
use crate::refusal::{Left, unless_interrupted};
use crate::supervise::{self, places};
use crate::vm_host::VmHost;
use crate::{Actor, Mode, Refusal, claims, console_media, devdb, facts, lost, shell_limits};

/// What came of it.
#[derive(Clone, Debug)]
pub enum Started {
    /// It runs now; warnings remain.
    Now(Vec<Problem>),
    /// It ran already.
    WasOn,
    /// A dry run: these are the problems, errors among them.
    Judged(Vec<Problem>),
}

/// Starts a guest and returns when its engine runs.
pub fn start(
    host: &mut VmHost,
    actor: &Actor,
    config: &GuestConfig,
    mode: Mode,
) -> Result<Started, Refusal> {
    let started = attempt(host, actor, config, mode);
    host.record_failure_in(mode, actor, config, started)
}

fn attempt(
    host: &mut VmHost,
    actor: &Actor,
    config: &GuestConfig,
    mode: Mode,
) -> Result<Started, Refusal> {
    let unsettled = interrupted::settle_before(host, config, mode)?;
    let (_busy, config) = host.held_in(mode, config, actor)?;
    if let Presence::On { .. } = host.presence(config.number) {
        return see_to_running(host, actor, &config, mode);
    }
    lost::refuse(host, &config)?;
    let (config, refused) = console_media::take_over(host, actor, config, mode)?;
    let _claims = match mode {
        Mode::Apply => Some(claims::claim(host, &config)?),
        Mode::DryRun => None,
    };
    let facts = host.start_facts(&config)?;
    let mut found = problems(&config, &facts, Purpose::Start);
    found.extend(unsettled);
    found.extend(refused);
    lift_limits();
    let limits = shell_limits::problems(&config, &Limits::left());
    found.extend(limits.iter().cloned());
    if mode == Mode::DryRun {
        return Ok(Started::Judged(found));
    }
    if found.iter().any(|p| p.severity == Severity::Error) {
        return Err(Refusal::Problems(found));
    }
    let machine_type = earlier_machine_type(host, &config).unwrap_or_else(|refusal| {
        let text = format!(
            "the machine it had before is not known, so it gets the newest that QEMU has: {}",
            chain(&refusal)
        );
        found.push(Problem::warning("machine", text));
        None
    });
    Step::StartClaimed.reached();
    launch(host, &config, &facts, machine_type)
        .map_err(|refusal| refusal.leaving(|| Left::Starting(config.name.clone())))
        .map_err(|refusal| with_holders(host, refusal, &config, facts))
        .map_err(|refusal| with_limits(refusal, limits))?;
    Step::StartRunning.reached();
    found.extend(of_started(host, actor, &config));
    Ok(Started::Now(found))
}

/// A guest that is on already lacks nothing afterwards that a start would have given it.
fn see_to_running(
    host: &mut VmHost,
    actor: &Actor,
    config: &GuestConfig,
    mode: Mode,
) -> Result<Started, Refusal> {
    supervise::adopt(host, config, supervise::TO_ASK)?;
    supervise::mend_reservations(host, config)?;
    if mode == Mode::Apply {
        // It runs, whether or not that can be written down.
        let _ = host.registry.record(&actor.done(Some(config), Some(config)));
    }
    Ok(Started::WasOn)
}

/// What is wrong beside a guest that runs now, if only that this cannot be written down.
fn of_started(host: &mut VmHost, actor: &Actor, config: &GuestConfig) -> Vec<Problem> {
    let recorded = host.registry.record(&actor.outcome(config, &Ok(()))).err();
    let unrecorded = recorded.map(|error| {
        let text =
            format!("the guest runs, but its start could not be recorded: {}", chain(&error));
        Problem::warning("registry", text)
    });
    let mut found: Vec<Problem> = unrecorded.into_iter().collect();
    found.extend(forwards::problems(host, config));
    found.extend(mtu::of_comers(host, &[], &config.nics));
    found.extend(wire::missing_taps(host, &[], &config.nics));
    found
}

/// QEMU tells that it got no lock on a disk, and not who has it: a guest of another VM Host, say, started since the look.
fn with_holders(
    host: &VmHost,
    refusal: Refusal,
    config: &GuestConfig,
    mut facts: HostFacts,
) -> Refusal {
    if !matches!(refusal, Refusal::Launch(LaunchError::Engine(_))) {
        return refusal;
    }
    facts.locked = facts::locked_elsewhere(host, config, &facts);
    match facts.locked.is_empty() {
        true => refusal,
        false => Refusal::Problems(problems(config, &facts, Purpose::Start)),
    }
}

/// What a limit does to QEMU it tells as any other lack of threads or memory, if it can tell anything.
fn with_limits(refusal: Refusal, limits: Vec<Problem>) -> Refusal {
    match refusal {
        Refusal::Launch(error) if !limits.is_empty() => {
            let error = Problem::error("engine", chain(&error));
            Refusal::Problems([vec![error], limits].concat())
        }
        other => other,
    }
}

/// The machine type of earlier starts; none of a guest that never ran.
fn earlier_machine_type(host: &VmHost, config: &GuestConfig) -> Result<Option<String>, Refusal> {
    match host.boot_record(config) {
        Ok(machine) => Ok(Some(machine.base.machine_type)),
        Err(Refusal::File { source, .. }) if source.kind() == ErrorKind::NotFound => Ok(None),
        Err(refusal) => Err(refusal),
    }
}

fn launch(
    host: &mut VmHost,
    config: &GuestConfig,
    facts: &HostFacts,
    machine_type: Option<String>,
) -> Result<(), Refusal> {
    unless_interrupted()?;
    let places = places(host, config)?;
    let record = boot_record(host, config, facts, &places, machine_type)?;
    keep_ports(host, config, &record, facts)?;
    keep_identities(host, config, facts)?;
    keep_good_nvram(host, config)?;
    let lodging = host.lodging();
    let started = launch::start(&record, &places, &mut Steps { host, config, record: &record });
    drop(lodging);
    if started.is_err() {
        // What led here is the thing to tell; a port that stays is closed when the guest is cleared.
        let _ = ports::close_all(host, config.number);
    }
    started?;
    // Before it ran QEMU looked for its ports, so there is nothing to wait for.
    ports::wait_until_seen(host, &record.nics, Instant::now());
    // The texts are for people; the next change writes them again.
    let machine = hpvm_plan::record::Machine::new(record);
    let _ = host.folder(config).write_texts(config, Some(&machine));
    Ok(())
}

struct Steps<'a> {
    host: &'a VmHost,
    config: &'a GuestConfig,
    record: &'a BootRecord,
}

impl Milestones for Steps<'_> {
    fn recorded(&mut self) {
        Step::StartRecord.reached();
    }

    fn ports(&mut self) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        Ok(ports::open(self.host, self.config, self.record)?)
    }

    fn kept(&mut self) {
        Step::StartKeeper.reached();
    }
}

/// The exact machine of this boot. Machine type and ports stay what they were at earlier starts.
fn boot_record(
    host: &VmHost,
    config: &GuestConfig,
    facts: &HostFacts,
    places: &Places,
    machine_type: Option<String>,
) -> Result<BootRecord, Refusal> {
    let (engine, accelerator, avio_service) = means(facts)?;
    let nics = config.nics.iter().map(|nic| facts.network.attach(nic)).collect::<Vec<_>>();
    Ok(BootRecord {
        format: FORMAT,
        uuid: config.uuid,
        number: config.number,
        name: config.name.clone(),
        serial_number: config.serial_number.clone(),
        boot_id: host.boot_id.clone(),
        started_at: jiff::Timestamp::now().to_string(),
        machine_type: machine_type.unwrap_or_else(|| engine.machine_type()),
        engine,
        accelerator,
        vcpus: config.vcpus,
        memory: config.memory,
        firmware_code: host.conf.firmware().to_string_lossy().into_owned(),
        option_rom: option_rom(host, config)?,
        lan_rom: lan_rom(host, &nics)?,
        ports: placement::ports(config),
        storage: config.storage.iter().map(|device| facts.attach(device)).collect(),
        nics,
        agent: AgentChannel::Present,
        avio_service,
        reservations: Some(reservations::socket(places).to_string_lossy().into_owned()),
        owner: places.qemu_ids.map(|ids| ids.uid),
    })
}

/// What the guest will run on, as it was judged.
fn means(facts: &HostFacts) -> Result<(Engine, Accelerator, AvioService), Refusal> {
    let Some(StartFacts { engine, accelerator, avio_service, .. }) = &facts.start else {
        return Err(Refusal::Engine("nobody looked for it".into()));
    };
    let engine = engine.clone().map_err(Refusal::Engine)?;
    let accelerator = accelerator.clone().map_err(Refusal::Accelerator)?;
    Ok((engine, accelerator, avio_service.unwrap_or(AvioService::on(accelerator))))
}

/// QEMU opens the option ROM by its path, as the guest's own user, so a copy lies where that user can reach it. A guest that
/// has no VIO adapter may get one while it runs; without a ROM it then waits for the next start.
fn option_rom(host: &VmHost, config: &GuestConfig) -> Result<Option<OptionRom>, Refusal> {
    let source = host.conf.scsi_rom();
    let needs_it = config.storage.iter().any(|d| d.adapter == AdapterKind::Scsi);
    let content = match option_rom_content(&source) {
        Ok(content) => content,
        Err(_) if !needs_it => return Ok(None),
        Err(error) => return Err(Refusal::file("read", &source)(error)),
    };
    copied_rom(host, "mptsas1068.rom", &content).map(Some)
}

/// The same for lan NICs over which the guest boots; without one it boots from all else, and was told so.
fn lan_rom(host: &VmHost, nics: &[AttachedNic]) -> Result<Option<OptionRom>, Refusal> {
    let boots = |a: &AttachedNic| a.nic.kind == NicKind::Lan && a.boot == NicBoot::AfterDisks;
    if !nics.iter().any(boots) {
        return Ok(None);
    }
    match option_rom_content(&host.conf.lan_rom()) {
        Ok(content) => copied_rom(host, "e1000.rom", &content).map(Some),
        Err(_) => Ok(None),
    }
}

fn copied_rom(host: &VmHost, name: &str, content: &[u8]) -> Result<OptionRom, Refusal> {
    let path = host.root.run().join(name);
    if durable::read_regular(&path).ok().as_deref() != Some(content) {
        durable::replace_file(&path, content, 0o644)?;
    }
    let path = path.to_string_lossy().into_owned();
    Ok(OptionRom { path, digest: format!("{:016x}", fingerprint(content)) })
}

/// What is larger is no option ROM, whose size PCI gives in 512-byte blocks by one byte; be generous.
const OPTION_ROM_BYTES_MAX: u64 = 1 << 20;

fn option_rom_content(path: &Path) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    durable::open_regular(path)?.take(OPTION_ROM_BYTES_MAX + 1).read_to_end(&mut content)?;
    match content.len() as u64 <= OPTION_ROM_BYTES_MAX {
        true => Ok(content),
        false => Err(io::Error::other("it is too large for an option ROM")),
    }
}

/// A port once made for a guest is made at every later start.
fn keep_ports(
    host: &mut VmHost,
    config: &GuestConfig,
    record: &BootRecord,
    facts: &HostFacts,
) -> Result<(), Refusal> {
    if record.ports == config.ports {
        return Ok(());
    }
    let change = host.registry.change()?;
    let config = GuestConfig { ports: record.ports.clone(), ..config.clone() };
    change.update(&config, &identities(facts))?;
    change.commit()?;
    Ok(host.folder(&config).replace_identity(&config)?)
}

/// What the guest's devices have behind them: of block devices known from when it got them, but for a registry that is older than
/// that knowledge, and of files from its first start.
fn keep_identities(
    host: &mut VmHost,
    config: &GuestConfig,
    facts: &HostFacts,
) -> Result<(), Refusal> {
    if !devdb::has_to_keep(config, facts) {
        return Ok(());
    }
    let change = host.registry.change()?;
    devdb::keep_identities(&change, config, facts, devdb::Keeping::FilesToo)?;
    Ok(change.commit()?)
}

/// The variables are good at this moment, so they become the copy to go back to.
fn keep_good_nvram(host: &VmHost, config: &GuestConfig) -> Result<(), Refusal> {
    let folder = host.folder(config);
    let (now, previous) =
        (folder.file(guest_folder::NVRAM), folder.file(guest_folder::NVRAM_PREVIOUS));
    if same_content(&now, &previous) {
        return Ok(());
    }
    Ok(durable::replace_by_copy(&now, &previous, 0o600)?)
}

fn same_content(one: &Path, other: &Path) -> bool {
    matches!((durable::read_regular(one), durable::read_regular(other)), (Ok(a), Ok(b)) if a == b)
}
