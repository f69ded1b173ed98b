//! Makes a guest: judges what was asked for while its files are made, then commits the registry's row. What is left by a process
//! that died on the way is found by looking, and removed by `hpvm doctor`.

mod files;

use std::sync::{Mutex, PoisonError};

use hpvm_host::{Root, users};
use hpvm_model::{
    AutoStart, Entitlement, GuestConfig, GuestName, GuestNumber, GuestUuid, Label, Memory, OsType,
    Problem, Runnable, Severity, Vcpus,
};
use hpvm_plan::difference::{self, FieldChange};
use hpvm_plan::facts::HostFacts;
use hpvm_plan::judge::{Purpose, problems};
use hpvm_plan::request::{DeviceRequest, Request, apply};
use hpvm_registry::{Change, Step};

use self::files::Files;
use crate::facts::identities;
use crate::helper::{Helper, Pending};
use crate::network::lan;
use crate::stores::{Beside, HostsOwn, Looking};
use crate::vm_host::{Premises, VmHost};
use crate::{Actor, Mode, Refusal, devdb, forgotten, random};

/// What is the same for all guests that are asked for.
struct Preparation {
    helper: Helper,
    own: Pending<HostsOwn>,
}

/// The command's own.
static PREPARED: Mutex<Option<Preparation>> = Mutex::new(None);

/// Begins with what is the same whatever the options say, while these are read.
pub fn prepare() {
    *PREPARED.lock().unwrap_or_else(PoisonError::into_inner) = Some(Preparation::begun());
}

impl Preparation {
    /// What was begun, or is begun now.
    fn under_way() -> Preparation {
        let prepared = PREPARED.lock().unwrap_or_else(PoisonError::into_inner).take();
        prepared.unwrap_or_else(Preparation::begun)
    }

    fn begun() -> Preparation {
        let helper = Helper::started();
        let own = helper.begin(HostsOwn::read);
        // Nobody waits for it: who needs it looks himself where that was not done.
        let _ = helper.give(Box::new(|| _ = users::caller()));
        Preparation { helper, own }
    }
}

/// What came of it.
#[derive(Clone, Debug)]
pub struct Created {
    pub config: GuestConfig,
    /// Warnings; a dry run may bring errors, with which nothing would be made.
    pub problems: Vec<Problem>,
    /// Field by field.
    pub fields: Vec<FieldChange>,
}

/// Creates a guest called `name` as asked, the rest by default.
pub fn create(
    actor: &Actor,
    name: &GuestName,
    request: &Request,
    mode: Mode,
) -> Result<Created, Refusal> {
    let order = Order { actor, name, request, uuid: random::uuid() };
    match mode {
        Mode::Apply => {
            let allow = |host: &VmHost| judge(host, &order, order.look(&host.root), mode).map(drop);
            apply_order(Premises::found(allow)?, &order)
        }
        Mode::DryRun => try_order(&mut VmHost::open_for_guests(mode)?, &order),
    }
}

/// Who wants which guest.
struct Order<'a> {
    actor: &'a Actor,
    name: &'a GuestName,
    request: &'a Request,
    uuid: GuestUuid,
}

impl Order<'_> {
    /// Begins to look at the stores that the guest is to have.
    fn look(&self, root: &Root) -> Looking {
        let root = root.clone();
        let beside = Pending::of(move || Beside::found(HostsOwn::read(), &root));
        Looking::at(self.paths()).and_beside(beside)
    }

    fn paths(&self) -> impl Iterator<Item = &str> {
        let added = self.request.devices.iter().filter_map(|device| match device {
            DeviceRequest::Add(statement) => statement.backing.as_ref(),
            DeviceRequest::Modify(_) | DeviceRequest::Delete(_) => None,
        });
        added.chain(&self.request.layers).map(|backing| backing.path.as_str())
    }
}

fn try_order(host: &mut VmHost, order: &Order<'_>) -> Result<Created, Refusal> {
    refuse_taken(order.name, host.registry.number_of(order.name)?)?;
    let looking = order.look(&host.root);
    let Judged { config, problems, fields, .. } = judge(host, order, looking, Mode::DryRun)?;
    if !host.registry.has_file() {
        return Ok(Created { config, problems, fields });
    }
    let root = host.root.clone();
    let config = numbered(config, next_number(&host.begin()?, &root)?);
    Ok(Created { config, problems, fields })
}

/// Files cost most of a creation's time: they are made while the registry is opened and the guest is judged, and go to the disk
/// while the registry prepares what it commits after them.
fn apply_order(premises: Premises, order: &Order<'_>) -> Result<Created, Refusal> {
    let Preparation { helper, own } = Preparation::under_way();
    let (root, pristine, uuid) =
        (premises.root.clone(), premises.conf.pristine_nvram(), order.uuid);
    // What scripts ask again and again costs nothing but a look: where the name leads to a guest, no file is made before the
    // registry was asked.
    let is_named = root.guest_link(order.name.as_str()).is_symlink();
    let begin = move || {
        let around = root.clone();
        let beside = helper.begin(move || Beside::found(own.wait(), &around));
        let looking = Looking::by(&helper, order.paths()).and_beside(beside);
        Begun { looking, files: Files::begin(root, uuid, pristine, &helper) }
    };
    let (mut host, created);
    if is_named {
        host = premises.open()?;
        created = carry_out(&mut host, order, begin);
    } else {
        let begun = begin();
        host = premises.open()?;
        created = carry_out(&mut host, order, || begun);
    }
    let created = host.record_failure(order.actor, None, created);
    // The end of the process closes the registry faster than SQLite does.
    std::mem::forget(host);
    created
}

/// What goes on beside the command.
struct Begun {
    looking: Looking,
    files: Files,
}

fn carry_out(
    host: &mut VmHost,
    order: &Order<'_>,
    begin: impl FnOnce() -> Begun,
) -> Result<Created, Refusal> {
    refuse_taken(order.name, host.registry.number_of(order.name)?)?;
    let Begun { looking, mut files } = begin();
    let Judged { config, problems, fields, facts } = judge(host, order, looking, Mode::Apply)?;
    let root = host.root.clone();
    let change = host.begin()?;
    // Looked at again when nobody else can take it.
    refuse_taken(order.name, change.number_of(order.name)?)?;
    let config = numbered(config, next_number(&change, &root)?);
    let settle = |files: &mut Files| {
        files.decide(&config)?;
        prepare_rows(&change, order.actor, &config, &facts)?;
        files.sync()
    };
    // The registry is held until nothing is left that another command could take for a guest.
    let draft = match settle(&mut files) {
        Ok(draft) => draft,
        Err(refusal) => {
            drop(files);
            return Err(refusal);
        }
    };
    change.commit()?;
    draft.keep();
    Step::CreateCommitted.reached();
    Ok(Created { config, problems, fields })
}

fn refuse_taken(name: &GuestName, holder: Option<GuestNumber>) -> Result<(), Refusal> {
    let taken = |number| Err(Refusal::NameTaken { name: name.clone(), number });
    holder.map_or(Ok(()), taken)
}

/// A guest that may be made, but for its number; in a dry run also one that may not.
struct Judged {
    config: GuestConfig,
    problems: Vec<Problem>,
    fields: Vec<FieldChange>,
    facts: HostFacts,
}

fn judge(
    host: &VmHost,
    order: &Order<'_>,
    looking: Looking,
    mode: Mode,
) -> Result<Judged, Refusal> {
    let Order { name, request, uuid, .. } = *order;
    let network = host.network_for(request, None)?;
    let (config, lan) = lan::made_apart(
        host,
        &[],
        None,
        network,
        |made| made,
        |network| Ok(apply(&blank(name, uuid), None, request, network, &mut random::bits)?),
    )?;
    let mut facts = host.facts_of_new(&config, looking.stores_of(&config))?;
    facts.network.lan = lan;
    let problems = problems(&config, &facts, Purpose::Change { before: None });
    let fields = difference::with_refusals(difference::created(&config), &problems);
    let fields = difference::without_drawn(fields, None, &config, request);
    if mode == Mode::Apply && problems.iter().any(|p| p.severity == Severity::Error) {
        return Err(Refusal::Problems(problems));
    }
    Ok(Judged { config, problems, fields, facts })
}

/// The number for a new guest. One whose run folder is there is left alone: where the registry lost a guest, that may run.
pub(crate) fn next_number(change: &Change<'_>, root: &Root) -> Result<GuestNumber, Refusal> {
    let highest = change.highest_number()?;
    if highest.is_none() {
        forgotten::refuse_held(root, change)?;
    }
    Ok(change.next_number(highest, |number| root.run_dir(number.get()).exists())?)
}

fn numbered(config: GuestConfig, number: GuestNumber) -> GuestConfig {
    GuestConfig { number, serial_number: serial_number(number), ..config }
}

/// What the registry will have of the guest, once it is committed.
fn prepare_rows(
    change: &Change<'_>,
    actor: &Actor,
    config: &GuestConfig,
    facts: &HostFacts,
) -> Result<(), Refusal> {
    change.insert(config, &identities(facts))?;
    devdb::keep_identities(change, config, facts, devdb::Keeping::BlockDevices)?;
    change.record(&actor.done(None, Some(config)))?;
    Ok(())
}

/// What a guest is of which nothing else is said. A.03.50 had the same for all types.
#[derive(Debug)]
pub struct Defaults {
    pub os: OsType,
    pub vcpus: Vcpus,
    pub entitlement: Entitlement,
    pub memory: Memory,
    pub auto_start: AutoStart,
}

pub const DEFAULTS: Defaults = Defaults {
    os: OsType::UNKNOWN,
    vcpus: Vcpus::ONE,
    entitlement: Entitlement::DEFAULT,
    memory: Memory::DEFAULT,
    auto_start: AutoStart::Manual,
};

pub(crate) fn blank(name: &GuestName, uuid: GuestUuid) -> GuestConfig {
    let Defaults { os, vcpus, entitlement, memory, auto_start } = DEFAULTS;
    GuestConfig {
        uuid,
        // The number is given when the registry is ours to write; until then the least stands for it.
        number: GuestNumber::FIRST,
        name: name.clone(),
        serial_number: String::new(),
        label: Label::default(),
        os,
        vcpus,
        entitlement,
        memory,
        auto_start,
        runnable: Runnable::Enabled,
        storage: Vec::new(),
        nics: Vec::new(),
        ports: Vec::new(),
    }
}

/// `VM`, year less 2000, week, and the guest's number: VM02648007 was made in week 48 of 2026.
pub(crate) fn serial_number(number: GuestNumber) -> String {
    let week = jiff::Timestamp::now().to_zoned_datetime(jiff::tz::TimeZone::UTC).iso_week_date();
    let year = i32::from(week.year()) - 2000;
    format!("VM{year:03}{:02}{:03}", week.week(), number.get() % 1000)
}
