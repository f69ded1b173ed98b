//! Makes a guest after another: its configuration under a new identity, its firmware variables, and as asked its disks,
//! copied or linked.
//!
//! ```text
//!  claim what is read, judge, keep writers from it ─► record 'running' ─► copy each store under a name of its own ─►
//!      claim what is overwritten, judge that again ─► registry is ours: folder, variables, link, copies placed, all synced ─►
//!      commit ─► other names go ─► record 'done'
//! ```
//!
//! The registry is not held while gigabytes are copied; the source's `busy` lock is, so that nobody starts or changes it,
//! and so are locks on what is read, so that no guest that shares it writes it, and block devices that get copies.
//! A process that dies before the commit leaves a record that goes on and files named after it: [`interrupted`] undoes
//! them. After the commit the clone is whole, and what is left to do is done there too.

mod copies;
pub mod interrupted;
mod running;
mod stage;
mod standstill;
mod targets;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use hpvm_app::protocol::CopiedState;
use hpvm_host::answers;
use hpvm_host::durable::Batch;
use hpvm_host::lock::Busy;
use hpvm_host::names::guest_folder;
use hpvm_host::process;
use hpvm_model::{
    AutoStart, GuestConfig, LanBoot, Nic, PortRules, Problem, Severity, SwitchNumber,
};
use hpvm_plan::clone::{CloneRequest, Design, How, Inheritance, Place, Work, design};
use hpvm_plan::difference::{self, FieldChange};
use hpvm_plan::facts::HostFacts;
use hpvm_plan::facts::network::NetworkFacts;
use hpvm_plan::hotplug::Force;
use hpvm_plan::judge::{Purpose, problems};
use hpvm_registry::{Change, Identities, OperationId, Owner, Step, SwitchSelector};

pub use self::copies::Copied;
use self::copies::{BeingKnown, Copies, Sources};
use self::running::{Moment, Running};
pub use self::stage::{Silence, Stage};
use crate::claims::{self, Claims};
use crate::create::{next_number, serial_number};
use crate::facts::identities;
use crate::folder::{self, Folder};
use crate::network::{lan, switches};
use crate::refusal::{Left, unless_interrupted};
use crate::vm_host::VmHost;
use crate::{Actor, Mode, Refusal, company, devdb, facts, lost, random};

/// What came of it.
#[derive(Clone, Debug)]
pub struct Cloned {
    pub config: GuestConfig,
    /// Warnings; a dry run may bring errors, with which nothing would be made.
    pub problems: Vec<Problem>,
    /// Field by field, against the source.
    pub fields: Vec<FieldChange>,
    pub copied: Vec<Copied>,
}

/// What is left to tell: what else would be wrong with a store that gets no copy follows from that.
fn untold(found: &[Problem], config: &GuestConfig, of_clone: Vec<Problem>) -> Vec<Problem> {
    let refused = refused(found, config);
    let is_told = |problem: &Problem| {
        refused.contains(&problem.item) || found.iter().any(|told| told.text == problem.text)
    };
    of_clone.into_iter().filter(|problem| !is_told(problem)).collect()
}

/// What errors are about: of a device the statement and the store, whichever of them the error names.
fn refused(found: &[Problem], config: &GuestConfig) -> BTreeSet<String> {
    let errors = found.iter().filter(|problem| problem.severity == Severity::Error);
    let mut items: BTreeSet<String> = errors.map(|error| error.item.clone()).collect();
    for device in &config.storage {
        let names = [device.to_string(), device.backing.path.clone()];
        if names.iter().any(|name| items.contains(name)) {
            items.extend(names);
        }
    }
    items
}

/// Whether a copy may wait for a store that answers nobody.
#[must_use]
pub fn stores_may_fall_silent(source: &GuestConfig, asked: &CloneRequest) -> bool {
    let read = source.storage.iter().map(|device| &device.backing);
    let written = asked.copies.iter().filter_map(|statement| statement.backing.as_ref());
    let mut stores = read.chain(written).filter_map(|backing| Some((backing, backing.store()?)));
    asked.reads_stores()
        && stores.any(|(backing, path)| match backing.is_device() {
            true => answers::device_may_fall_silent(Path::new(path)),
            false => answers::may_fall_silent(Path::new(path)),
        })
}

/// Makes a clone of `source` as asked. `watch` is told how far the copies are.
pub fn clone(
    host: &mut VmHost,
    actor: &Actor,
    source: &GuestConfig,
    asked: &CloneRequest,
    force: Force,
    mode: Mode,
    watch: &mut dyn FnMut(&Stage<'_>),
) -> Result<Cloned, Refusal> {
    let mut cloning = Cloning { host, actor, busy: None, operation: None, is_left: false, watch };
    let result = cloning.undertake(source, asked, force, mode);
    match mode {
        Mode::Apply => cloning.record_end(source, result),
        Mode::DryRun => result,
    }
}

/// A clone on its way.
struct Cloning<'a> {
    host: &'a mut VmHost,
    actor: &'a Actor,
    /// The right to read the source, kept until the end is recorded.
    busy: Option<Busy>,
    /// The record that says that it goes on, once there is one.
    operation: Option<OperationId>,
    /// It is not ended by us.
    is_left: bool,
    watch: &'a mut dyn FnMut(&Stage<'_>),
}

/// A clone that may be made.
struct Judged {
    source: GuestConfig,
    design: Design,
    identities: Identities,
    /// The files that will be other ones.
    replaced: Identities,
    facts: HostFacts,
    problems: Vec<Problem>,
    fields: Vec<FieldChange>,
    /// The source, if it runs and something of it is copied.
    running: Option<Running>,
}

impl Cloning<'_> {
    fn undertake(
        &mut self,
        source: &GuestConfig,
        asked: &CloneRequest,
        force: Force,
        mode: Mode,
    ) -> Result<Cloned, Refusal> {
        let unsettled = interrupted::settle_before(self.host, source, mode)?;
        self.busy = company::claim_to_copy(self.host, self.actor, source, mode)?;
        let mut cloned = self.attempt(source, asked, force, mode)?;
        cloned.problems.extend(unsettled);
        Ok(cloned)
    }

    fn attempt(
        &mut self,
        source: &GuestConfig,
        asked: &CloneRequest,
        force: Force,
        mode: Mode,
    ) -> Result<Cloned, Refusal> {
        // Read again under the lock: another command may have changed it since.
        let source = self.host.guest_numbered(source.number)?;
        // Until others see that it is read, no guest comes to it.
        let claims = match mode {
            Mode::Apply if asked.reads_stores() => Some(claims::claim(self.host, &source)?),
            _ => None,
        };
        let judged = self.judge(source, asked, force)?;
        let is_refused = judged.problems.iter().any(|p| p.severity == Severity::Error);
        if mode == Mode::Apply && is_refused {
            return Err(Refusal::Problems(judged.problems));
        }
        if mode == Mode::DryRun {
            let Judged { source, design, mut problems, fields, .. } = judged;
            if !is_refused {
                problems.extend(targets::bases(&source, &design, mode));
            }
            return Ok(Cloned { config: design.config, problems, fields, copied: Vec::new() });
        }
        unless_interrupted()?;
        let Judged { design, running, facts, .. } = &judged;
        let sources = Sources::open(self.host, &design.work, running.as_ref(), facts)?;
        drop(claims);
        let mut copies = Copies::over(judged.replaced.clone());
        let made = self.copy_and_make(&judged, &sources, &mut copies, force);
        let (config, copied) = made.map_err(|refusal| {
            let refusal = after_overwriting(copies.overwritten_in_vain(), refusal);
            self.leaving(copies.left_after_taking_back(), refusal)
        })?;
        let Judged { source, design, mut problems, fields, .. } = judged;
        problems.extend(copies.moment().and_then(|moment| as_after_power_failure(&source, moment)));
        problems.extend(starts_too(&config, asked));
        problems.extend(targets::bases(&source, &design, mode));
        Ok(Cloned { config, problems, fields, copied })
    }

    /// A refusal with what nobody can take back yet. Its record stays as that of a command that died, so that whoever comes
    /// when the store answers does that.
    fn leaving(&mut self, left: Vec<PathBuf>, refusal: Refusal) -> Refusal {
        if left.is_empty() {
            return refusal;
        }
        self.is_left = true;
        match refusal {
            Refusal::Interrupted { interruption, left: Left::AsItWas } => {
                Refusal::Interrupted { interruption, left: Left::Unremoved(left) }
            }
            other => other,
        }
    }

    /// All that is done.
    fn copy_and_make(
        &mut self,
        judged: &Judged,
        sources: &Sources,
        copies: &mut Copies,
        force: Force,
    ) -> Result<(GuestConfig, Vec<Copied>), Refusal> {
        self.copy(judged, sources, copies)?;
        let Judged { source, design, replaced, .. } = judged;
        let _claims = self.claim_overwritten(source, design, replaced, force)?;
        self.make(judged, sources, copies)
    }

    fn judge(
        &mut self,
        source: GuestConfig,
        asked: &CloneRequest,
        force: Force,
    ) -> Result<Judged, Refusal> {
        let host = &mut *self.host;
        let uuid = random::uuid();
        let folder = Folder::of(&host.root, uuid);
        let own_image = |address| {
            let path = folder.file(&guest_folder::image(address));
            path.to_string_lossy().into_owned()
        };
        let network = match source.nics.is_empty() && asked.request.nics.is_empty() {
            true => NetworkFacts::default(),
            false => host.network(None)?,
        };
        // Addresses that the clone shares with its source are its source's on the LAN too.
        let shared = match asked.macs {
            Inheritance::New => &[][..],
            Inheritance::Same => &source.nics,
        };
        let (design, lan) = lan::made_apart(
            host,
            shared,
            None,
            network,
            |made: &Design| &made.config,
            |network| Ok(design(&source, asked, uuid, &own_image, network, &mut random::bits)?),
        )?;
        let is_on = !design.work.is_empty() && is_on(host, &source, &design)?;
        if let Some(holder) = host.registry.number_of(&asked.name)? {
            return Err(Refusal::NameTaken { name: asked.name.clone(), number: holder });
        }
        let mut facts = host.facts(&design.config, Some(&source))?;
        facts.network.lan = lan;
        let same = shared_addresses(&source, shared, &design, &mut facts);
        let running = match is_on {
            true => Some(Running::find(host, &source, &facts)?),
            false => None,
        };
        let mut found = targets::judge(host, (&source, running.as_ref()), &design, &facts, force)?;
        let mut replaced = identities(&facts);
        replaced.retain(|path, _| is_made(&design, path));
        found.extend(targets::unshareable(host, &source, &design, &facts));
        targets::expect(&design, &mut facts);
        found.extend(variables(host, &source));
        found.extend(same);
        let standing = Purpose::Change { before: Some(&source) };
        let of_clone = problems(&design.config, &facts, standing);
        let of_clone = untold(&found, &design.config, of_clone);
        found.extend(of_clone);
        let refused = refused(&found, &design.config);
        found.extend(targets::too_small(&design, &facts, &refused));
        found.sort_by_key(|problem| std::cmp::Reverse(problem.severity));
        let fields = difference::fields(&source, &design.config, None);
        let fields = difference::with_refusals(fields, &found);
        let fields =
            difference::without_drawn(fields, Some(&source), &design.config, &asked.request);
        let identities = known(&design, &facts);
        // Of a file that will be another one nothing is written down yet; its first start does it.
        facts.registered.retain(|path, _| !is_made(&design, path));
        let problems = found;
        Ok(Judged { source, design, identities, replaced, facts, problems, fields, running })
    }

    /// From here on no guest starts with what the copies overwrite; one may have got some of it since that was judged.
    fn claim_overwritten(
        &self,
        source: &GuestConfig,
        design: &Design,
        replaced: &Identities,
        force: Force,
    ) -> Result<Option<Claims>, Refusal> {
        let is_overwritten =
            |work: &&Work| replaced.contains_key(&work.to.path) || work.to.is_device();
        let overwritten: Vec<&Work> = design.work.iter().filter(is_overwritten).collect();
        if overwritten.is_empty() {
            return Ok(None);
        }
        let mut config = design.config.clone();
        config.storage.retain(|device| overwritten.iter().any(|work| work.to == device.backing));
        let claims = claims::claim(self.host, &config)?;
        let facts = self.host.facts(&design.config, Some(source))?;
        let problems: Vec<Problem> = overwritten
            .iter()
            .flat_map(|work| targets::target(self.host, work, &facts, force))
            .collect();
        match problems.is_empty() {
            true => Ok(Some(claims)),
            false => Err(Refusal::Problems(problems)),
        }
    }

    /// Copies what is asked for; a record of it stands before the first byte is written.
    fn copy(
        &mut self,
        judged: &Judged,
        sources: &Sources,
        copies: &mut Copies,
    ) -> Result<(), Refusal> {
        let Judged { design, running, .. } = judged;
        if design.work.iter().any(|work| work.how != How::Overlay(Place::Own)) {
            let pid = i32::try_from(std::process::id()).unwrap_or_default();
            let start_time = process::start_time(pid).unwrap_or_default();
            let owner = Owner { pid, start_time, boot_id: self.host.boot_id.clone() };
            let change = self.host.begin()?;
            self.operation = Some(change.record(&self.actor.running(&design.config, owner))?);
            change.commit()?;
            Step::CloneRecorded.reached();
        }
        copies.make(self.host, &design.work, sources, running.as_ref(), self.watch)?;
        Step::CloneCopied.reached();
        Ok(())
    }

    /// Makes the clone known with all that belongs to it.
    fn make(
        &mut self,
        judged: &Judged,
        sources: &Sources,
        copies: &mut Copies,
    ) -> Result<(GuestConfig, Vec<Copied>), Refusal> {
        let Judged { source, design, facts, .. } = judged;
        let root = self.host.root.clone();
        let variables = match copies.moment() {
            Some(moment) => moment.variables(),
            None => self.host.folder(source).file(guest_folder::NVRAM),
        };
        // From here on nobody else can take the name. A device that was copied to is not as it was, so that copy is not given
        // up for a signal any more; everything else is.
        let is_overwritten = design.work.iter().any(|work| work.to.is_device());
        let change = match is_overwritten {
            true => self.host.registry.change()?,
            false => self.host.begin()?,
        };
        let being_known = BeingKnown(copies);
        let copies = &mut *being_known.0;
        if let Some(number) = change.number_of(&design.config.name)? {
            return Err(Refusal::NameTaken { name: design.config.name.clone(), number });
        }
        let number = next_number(&change, &root)?;
        let mut config = GuestConfig { number, ..design.config.clone() };
        if config.serial_number.is_empty() {
            config.serial_number = serial_number(number);
        }
        let folder = Folder::of(&root, config.uuid);
        let made = Made { folder: &folder, root: &root, config: &config, kept: false };
        let mut batch = Batch::default();
        made.files(&variables, &mut batch)?;
        copies.make_own_images(&design.work, sources, &mut batch)?;
        copies.place(&mut batch)?;
        batch.sync()?;
        // Whoever finds what tells which guest it is finds all of the guest.
        let mut batch = Batch::default();
        made.names(&mut batch)?;
        batch.sync()?;
        Step::ClonePlaced.reached();
        let mut identities = judged.identities.clone();
        identities.extend(copies.identities());
        change.insert_like(source.number, &config, &identities)?;
        let ruled = keep_port_rules(&change, source, &config)?;
        devdb::keep_identities(&change, &config, facts, devdb::Keeping::BlockDevices)?;
        for work in &design.work {
            devdb::keep_length(&change, &work.to.path, None)?;
        }
        let done = self.actor.done(None, Some(&config));
        if self.operation.is_none() {
            change.record(&done)?;
        }
        change.commit()?;
        made.keep();
        Step::CloneCommitted.reached();
        let copied = copies.settle()?;
        Step::CloneSettled.reached();
        if let Some(operation) = self.operation.take() {
            // The clone is there, whether or not that can be written down: `hpvm doctor` does it then.
            let _ = self.host.registry.finish(operation, &done);
        }
        // The texts are for people; a guest without them is whole, and the next change writes them.
        let _ = folder.write_texts(&config, None);
        for switch in ruled {
            // The registry has the rules; `hpvm doctor` writes a text that could not be written.
            let _ = switches::keep_text(self.host, switch);
        }
        Ok((config, copied))
    }

    /// One record, whatever came of it.
    fn record_end(
        &mut self,
        source: &GuestConfig,
        result: Result<Cloned, Refusal>,
    ) -> Result<Cloned, Refusal> {
        let (Err(refusal), Some(operation)) = (&result, self.operation) else {
            return self.host.record_failure(self.actor, Some(source), result);
        };
        if self.is_left {
            return result;
        }
        // The refusal is the thing to tell.
        let _ = self.host.registry.finish(operation, &self.actor.failed(Some(source), refusal));
        result
    }
}

/// Whether the source runs. What it writes cannot lie under a linked clone.
fn is_on(host: &VmHost, source: &GuestConfig, design: &Design) -> Result<bool, Refusal> {
    if !host.presence(source.number).is_on() {
        return lost::refuse(host, source).map(|()| false);
    }
    match design.work.iter().any(|work| matches!(work.how, How::Overlay(_))) {
        true => Err(Refusal::LinkOfRunning(source.name.clone())),
        false => Ok(true),
    }
}

/// A refusal with what it leaves of these devices, to which something was copied.
fn after_overwriting(devices: Vec<String>, refusal: Refusal) -> Refusal {
    if devices.is_empty() {
        return refusal;
    }
    match refusal {
        Refusal::Problems(mut problems) => {
            problems.extend(devices.into_iter().map(|path| {
                let left = Left::Overwritten(vec![path.clone()]);
                Problem::warning(path, left.to_string())
            }));
            Refusal::Problems(problems)
        }
        Refusal::Interrupted { interruption, .. } => {
            Refusal::Interrupted { interruption, left: Left::Overwritten(devices) }
        }
        other => Refusal::NotCloned { why: other.into(), overwritten: devices },
    }
}

/// Who clones a guest to try something does not expect the clone to be up after the next boot.
fn starts_too(clone: &GuestConfig, asked: &CloneRequest) -> Option<Problem> {
    (clone.auto_start == AutoStart::Auto && asked.request.auto_start.is_none()).then(|| {
        let text = format!(
            "it starts with the VM Host, as its source does; `hpvmmodify -P {} -B manual` leaves that to you",
            clone.name
        );
        Problem::warning("start_attr", text)
    })
}

fn as_after_power_failure(source: &GuestConfig, moment: &Moment) -> Option<Problem> {
    let CopiedState::AsAfterPowerFailure { why } = &moment.state else { return None };
    let text = format!(
        "the disks of the running guest '{}' are copied as a failure of the power would leave them, all at one moment: {why}",
        source.name
    );
    Some(Problem::warning(source.name.to_string(), text))
}

/// The clone is to have these NICs' addresses, so that nobody finds fault with it; whoever asked is told what it means.
fn shared_addresses(
    source: &GuestConfig,
    shared: &[Nic],
    design: &Design,
    facts: &mut HostFacts,
) -> Vec<Problem> {
    let is_kept = |nic: &&Nic| shared.iter().any(|theirs| theirs.mac == nic.mac);
    let kept = design.config.nics.iter().filter(is_kept);
    kept.map(|nic| {
        facts.network.macs.remove(&nic.mac);
        let text = format!(
            "MAC address {} is also that of guest '{}', so only one of the two can run at a time",
            nic.mac, source.name
        );
        Problem::warning(nic.to_string(), text)
    })
    .collect()
}

/// The identities of the stores that are there already; those that are made tell theirs when they are.
fn known(design: &Design, facts: &HostFacts) -> Identities {
    let mut known = identities(facts);
    known.retain(|path, _| !is_made(design, path));
    known
}

/// Whether a path is to be another file than it is now.
fn is_made(design: &Design, path: &str) -> bool {
    design.work.iter().any(|work| work.to.path == path && !work.to.is_device())
}

fn variables(host: &VmHost, source: &GuestConfig) -> Option<Problem> {
    let path = host.folder(source).file(guest_folder::NVRAM);
    let reason = facts::variables(&path, &host.conf.pristine_nvram()).missing?;
    let path = path.to_string_lossy().into_owned();
    let text = format!(
        "the firmware variables '{path}' of '{0}' cannot be copied: {reason}; `hpvm nvram -P {0} --restore` brings good ones back, or new ones where there are none",
        source.name
    );
    Some(Problem::error(path, text))
}

/// What was made for a clone the registry does not know yet: goes again unless it is kept.
struct Made<'a> {
    folder: &'a Folder,
    root: &'a hpvm_host::Root,
    config: &'a GuestConfig,
    kept: bool,
}

impl Made<'_> {
    fn files(&self, variables: &Path, batch: &mut Batch) -> Result<(), Refusal> {
        self.folder.make()?;
        Step::CloneFolder.reached();
        self.folder.make_nvram(variables, batch)?;
        Step::CloneNvram.reached();
        Ok(())
    }

    fn names(&self, batch: &mut Batch) -> Result<(), Refusal> {
        self.folder.make_identity(self.config, batch)?;
        Ok(self.folder.make_link(self.root, self.config, batch)?)
    }

    fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for Made<'_> {
    fn drop(&mut self) {
        if !self.kept {
            // What cannot be removed now is found by `hpvm doctor`; the error that led here is the one to tell.
            let _ = folder::unlink(self.root, &self.config.name, self.config.uuid);
            let _ = self.folder.remove();
        }
    }
}

/// A clone's ports have the rules of its source's, so that a guest of a VLAN has no clone outside of it. What was said about
/// one guest alone, its IP addresses and where its frames are copied, is not taken over. Gives the switches that have more
/// rules by it.
fn keep_port_rules(
    change: &Change<'_>,
    source: &GuestConfig,
    clone: &GuestConfig,
) -> Result<BTreeSet<SwitchNumber>, Refusal> {
    let mut ruled = BTreeSet::new();
    for nic in &clone.nics {
        let Some(from) = source.nic_in(nic.slot).filter(|from| from.vswitch == nic.vswitch) else {
            continue;
        };
        let selector = SwitchSelector::Name(nic.vswitch.clone());
        let Some(mut switch) = change.vswitch(&selector)? else { continue };
        if from.port != nic.port && !switch.ports.contains_key(&nic.port) {
            let rules = switch.rules(from.port);
            // A boot profile has an address too.
            let lan_boot = rules.lan_boot.filter(|boot| *boot == LanBoot::Dhcp);
            let rules = PortRules { addresses: Vec::new(), mirror: None, lan_boot, ..rules };
            switch.set_rules(nic.port, rules);
            change.update_vswitch(&switch)?;
            ruled.insert(switch.number);
        }
    }
    Ok(ruled)
}
