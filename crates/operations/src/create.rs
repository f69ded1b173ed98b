//! Makes a guest: its folder with firmware variables, the link, then the registry's row, in an order that survives a power
//! cut at any point. What is left by a process that died on the way is found by looking, and removed by `hpvm doctor`.

use hpvm_host::durable::Batch;
use hpvm_model::{
    AutoStart, Entitlement, GuestConfig, GuestName, GuestNumber, GuestUuid, Label, Memory, OsType,
    Problem, Runnable, Severity, Vcpus,
};
use hpvm_plan::difference::{self, FieldChange};
use hpvm_plan::facts::HostFacts;
use hpvm_plan::judge::{Purpose, problems};
use hpvm_plan::request::{Request, apply};
use hpvm_registry::{Change, Step};

use crate::folder::{self, Folder};
use crate::network::lan;
use crate::vm_host::{VmHost, identities, random};
use crate::{Actor, Mode, Refusal, devdb};

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
    host: &mut VmHost,
    actor: &Actor,
    name: &GuestName,
    request: &Request,
    mode: Mode,
) -> Result<Created, Refusal> {
    let result = attempt(host, actor, name, request, mode);
    match mode {
        Mode::Apply => host.record_failure(actor, None, result),
        Mode::DryRun => result,
    }
}

fn attempt(
    host: &mut VmHost,
    actor: &Actor,
    name: &GuestName,
    request: &Request,
    mode: Mode,
) -> Result<Created, Refusal> {
    let network = host.network_for(request, None)?;
    let (config, lan) = lan::made_apart(
        host,
        &[],
        network,
        |made| made,
        |network| Ok(apply(&blank(name), None, request, network, &mut random)?),
    )?;
    let mut facts = host.facts(&config, None)?;
    facts.network.lan = lan;
    let problems = problems(&config, &facts, Purpose::Change { before: None });
    let fields = difference::with_refusals(difference::created(&config), &problems);
    if mode == Mode::Apply && problems.iter().any(|p| p.severity == Severity::Error) {
        return Err(Refusal::Problems(problems));
    }
    let pristine = host.conf.pristine_nvram();
    let root = host.root.clone();
    let change = host.begin()?;
    if let Some(holder) = change.number_of(name)? {
        return Err(Refusal::NameTaken { name: name.clone(), number: holder });
    }
    let number = change.next_number()?;
    let config = GuestConfig { number, serial_number: serial_number(number), ..config };
    if mode == Mode::DryRun {
        return Ok(Created { config, problems, fields });
    }
    let folder = Folder::of(&root, config.uuid);
    let made = Made { folder: &folder, root: &root, config: &config, committed: false };
    // The files are synced while the registry prepares what it commits after them.
    std::thread::scope(|scope| {
        let files = scope.spawn(|| made.files(&pristine));
        let prepared = prepare(&change, actor, &config, &facts);
        files.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        prepared
    })?;
    change.commit()?;
    made.keep();
    Step::CreateCommitted.reached();
    // The texts are for people; a guest without them is whole, and the next change writes them.
    let _ = folder.write_texts(&config, None);
    Ok(Created { config, problems, fields })
}

/// What the registry will have of the guest, once it is committed.
fn prepare(
    change: &Change<'_>,
    actor: &Actor,
    config: &GuestConfig,
    facts: &HostFacts,
) -> Result<(), Refusal> {
    change.insert(config, &identities(facts))?;
    devdb::keep_identities(change, config, facts)?;
    change.record(&actor.done(None, Some(config)))?;
    Ok(())
}

/// What was made for a guest the registry does not know yet: goes again unless it is kept.
struct Made<'a> {
    folder: &'a Folder,
    root: &'a hpvm_host::Root,
    config: &'a GuestConfig,
    committed: bool,
}

impl Made<'_> {
    fn files(&self, pristine: &std::path::Path) -> Result<(), Refusal> {
        let mut batch = Batch::default();
        self.folder.make(&mut batch)?;
        Step::CreateFolder.reached();
        self.folder.make_nvram(pristine, &mut batch)?;
        Step::CreateNvram.reached();
        self.folder.make_identity(self.config, &mut batch)?;
        self.folder.make_link(self.root, self.config, &mut batch)?;
        Step::CreateLink.reached();
        Ok(batch.sync()?)
    }

    fn keep(mut self) {
        self.committed = true;
    }
}

impl Drop for Made<'_> {
    fn drop(&mut self) {
        if !self.committed {
            // What cannot be removed now is found by `hpvm doctor`; the error that led here is the one to tell.
            let _ = folder::unlink(self.root, &self.config.name);
            let _ = self.folder.remove();
        }
    }
}

fn blank(name: &GuestName) -> GuestConfig {
    GuestConfig {
        uuid: GuestUuid(uuid::Uuid::new_v4()),
        // The number is given when the registry is ours to write; until then the least stands for it.
        number: GuestNumber::FIRST,
        name: name.clone(),
        serial_number: String::new(),
        label: Label::default(),
        os: OsType::UNKNOWN,
        vcpus: Vcpus::ONE,
        entitlement: Entitlement::DEFAULT,
        memory: Memory::DEFAULT,
        auto_start: AutoStart::Manual,
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
