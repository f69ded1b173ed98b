//! A VM Host opened by a command: its paths, tunables and registry, and who is at work.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use hpvm_host::lock::{Busy, BusyError};
use hpvm_host::lodging::Lodging;
use hpvm_host::names::{guest_folder, run_folder};
use hpvm_host::{Root, conf::Conf, durable, process};
use hpvm_model::{GuestConfig, GuestNumber};
use hpvm_plan::record::Machine;
use hpvm_registry::{
    Access, Change, Registry, RegistryError, Selector, SwitchSelector, is_mounted_read_only,
};

use crate::folder::{self, Folder};
use crate::presence::{self, Presence};
use crate::refusal::unless_interrupted;
use crate::{Actor, Mode, Refusal, forgotten};

/// How long a command waits for another one that is changing the same guest.
pub(crate) const BUSY_BOUND: Duration = Duration::from_secs(30);
/// How long a command looks at devices again and again, because others change the registry each time. One look takes a tenth
/// of a second, or some seconds where a store does not answer.
const UNDISTURBED_BOUND: Duration = Duration::from_secs(30);

pub struct VmHost {
    pub root: Root,
    pub conf: Conf,
    pub registry: Registry,
    pub boot_id: String,
}

/// A VM Host whose registry is not open yet.
pub(crate) struct Premises {
    pub(crate) root: Root,
    pub(crate) conf: Conf,
    access: Access,
}

impl Premises {
    /// Those of the environment. Where there is no folder for them they are made once `allow`, which is shown a VM Host without
    /// anything, does not refuse.
    pub(crate) fn found(
        allow: impl FnOnce(&VmHost) -> Result<(), Refusal>,
    ) -> Result<Premises, Refusal> {
        let root = Root::from_environment()?;
        let has_registry = root.db().exists();
        if !has_registry && !root.prefix().exists() {
            allow(&Premises::at(root.clone(), Access::ReadOnly)?.open()?)?;
        }
        Premises::of(root, Access::ReadWrite, has_registry)
    }

    /// Those of the environment, for what may be a dry run: that looks also where nothing can be written, and makes no VM Host
    /// where none is.
    fn find_in(mode: Mode) -> Result<Premises, Refusal> {
        let root = Root::from_environment()?;
        root.must_be_there()?;
        let only_looks = || has_no_registry(&root) || is_mounted_read_only(&root.db());
        let access = match mode {
            Mode::DryRun if only_looks() => Access::ReadOnly,
            Mode::DryRun | Mode::Apply => Access::ReadWrite,
        };
        Premises::at(root, access)
    }

    /// Those of the environment.
    fn find(access: Access) -> Result<Premises, Refusal> {
        let root = Root::from_environment()?;
        root.must_be_there()?;
        Premises::at(root, access)
    }

    fn at(root: Root, access: Access) -> Result<Premises, Refusal> {
        let has_registry = root.db().exists();
        Premises::of(root, access, has_registry)
    }

    fn of(root: Root, access: Access, has_registry: bool) -> Result<Premises, Refusal> {
        if access == Access::ReadWrite {
            root.ensure()?;
        }
        let conf = Conf::load(&root)?;
        // An empty registry in its place would give the numbers and names of lost guests to others.
        let is_guests = |folder: &Folder| folder.file(guest_folder::IDENTITY).is_file();
        // Asked again, since another command may have made one.
        if !has_registry && !root.db().exists() && folder::all(&root).values().any(is_guests) {
            return Err(Refusal::RegistryLost(root.db()));
        }
        Ok(Premises { root, conf, access })
    }

    pub(crate) fn open(self) -> Result<VmHost, Refusal> {
        let host = self.open_as_it_is()?;
        if host.registry.has_empty_log() {
            forgotten::refuse(&host.root, &host.registry)?;
        }
        Ok(host)
    }

    fn open_as_it_is(self) -> Result<VmHost, Refusal> {
        let Premises { root, conf, access } = self;
        let registry = Registry::open(&root.db(), access)?;
        let boot_id =
            process::boot_id().map_err(Refusal::file("read", "/proc/sys/kernel/random/boot_id"))?;
        Ok(VmHost { root, conf, registry, boot_id })
    }
}

impl VmHost {
    /// Opens the VM Host of the environment.
    pub fn open(access: Access) -> Result<VmHost, Refusal> {
        Premises::find(access)?.open()
    }

    /// For what may be a dry run.
    pub fn open_in(mode: Mode) -> Result<VmHost, Refusal> {
        Premises::find_in(mode)?.open()
    }

    /// The same of a command about guests: where there is no registry there are none, and no VM Host is made to say so.
    pub fn open_for_guests(mode: Mode) -> Result<VmHost, Refusal> {
        match has_no_registry(&Root::from_environment()?) {
            true => VmHost::open(Access::ReadOnly),
            false => VmHost::open_in(mode),
        }
    }

    /// For a command that may be the first one on a VM Host.
    pub fn open_or_found(mode: Mode) -> Result<VmHost, Refusal> {
        match mode {
            Mode::Apply => Premises::at(Root::from_environment()?, Access::ReadWrite)?.open(),
            Mode::DryRun => VmHost::open_in(mode),
        }
    }

    /// For who finds out what is wrong with it.
    pub fn open_to_examine(access: Access) -> Result<VmHost, Refusal> {
        Premises::find(access)?.open_as_it_is()
    }

    /// For a command that ends guests: it must do so too where nothing can be written any more, and where the registry does not
    /// know all of them.
    pub fn open_to_end_guests() -> Result<VmHost, Refusal> {
        match VmHost::open_for_guests(Mode::Apply) {
            Err(Refusal::Registry(RegistryError::ReadOnlyFileSystem { .. })) => {
                VmHost::open(Access::ReadOnly)
            }
            Err(Refusal::RegistryBehind(_)) => VmHost::open_to_examine(Access::ReadWrite),
            opened => opened,
        }
    }

    /// Whether whoever asks may change it, and not only look on.
    #[must_use]
    pub fn is_ours(&self) -> bool {
        let right = rustix::fs::access(self.root.db(), rustix::fs::Access::WRITE_OK);
        right != Err(rustix::io::Errno::ACCESS)
    }

    /// All that is wrong in hpvmconf, line by line.
    #[must_use]
    pub fn conf_faults(&self) -> Vec<String> {
        self.conf.faults()
    }

    pub fn guest(&self, selector: &Selector) -> Result<GuestConfig, Refusal> {
        if let Some(guest) = self.registry.guest(selector)? {
            return Ok(guest);
        }
        self.unless_forgotten(self.registry.list()?.len())?;
        Err(Refusal::NoGuest { called: shown(selector), hint: self.meant_otherwise(selector)? })
    }

    /// Names may be digits, so a number is no name and a name no number; who mixed them up is told.
    fn meant_otherwise(&self, selector: &Selector) -> Result<Option<String>, Refusal> {
        let text = shown(selector);
        let hint = |guest: GuestConfig| match selector {
            Selector::Number(_) => format!("-P {text} is guest number {}", guest.number),
            _ => format!("-p {text} is guest '{}'", guest.name),
        };
        let other = match selector {
            Selector::Name(name) => name.as_str().parse().ok().map(Selector::Number),
            Selector::Number(_) => text.parse().ok().map(Selector::Name),
            Selector::Uuid(_) => None,
        };
        let found = other.map(|other| self.registry.guest(&other)).transpose()?.flatten();
        Ok(found.map(hint))
    }

    /// Refuses to show that there is no guest where there are folders of some.
    pub(crate) fn unless_forgotten(&self, guests_count: usize) -> Result<(), Refusal> {
        if guests_count == 0 { forgotten::refuse(&self.root, &self.registry) } else { Ok(()) }
    }

    pub fn guest_numbered(&self, number: GuestNumber) -> Result<GuestConfig, Refusal> {
        self.guest(&Selector::Number(number))
    }

    #[must_use]
    pub fn presence(&self, number: GuestNumber) -> Presence {
        presence::read(&self.root.run_dir(number.get()), &self.boot_id)
    }

    /// Whether a guest has no folder, and so nothing that could be kept of it.
    #[must_use]
    pub fn is_without_folder(&self, config: &GuestConfig) -> bool {
        self.folder(config).is_missing()
    }

    pub(crate) fn folder(&self, config: &GuestConfig) -> Folder {
        Folder::of(&self.root, config.uuid)
    }

    /// To be held while something is started that lives on, see [`Lodging`]. A VM Host in a folder has no units.
    pub(crate) fn lodging(&self) -> Option<Lodging> {
        if self.root.prefix() == Path::new("/") { Lodging::enter() } else { None }
    }

    /// The right to change one guest; others are told who has it.
    pub fn busy(&self, config: &GuestConfig, actor: &Actor) -> Result<Busy, Refusal> {
        let busy = self.busy_within(config, actor, BUSY_BOUND);
        let busy = busy.map_err(|error| self.not_busy(config, error))?;
        self.unless_renamed(config, actor)?;
        Ok(busy)
    }

    /// The same for what may be a dry run, which goes without where nobody can have it.
    pub(crate) fn busy_in(
        &self,
        mode: Mode,
        config: &GuestConfig,
        actor: &Actor,
    ) -> Result<Option<Busy>, Refusal> {
        match self.busy(config, actor) {
            Err(Refusal::Busy(BusyError::ReadOnly { .. })) if mode == Mode::DryRun => Ok(None),
            busy => busy.map(Some),
        }
    }

    /// Whoever had the right to change the guest before may have given it another name.
    pub(crate) fn unless_renamed(
        &self,
        config: &GuestConfig,
        actor: &Actor,
    ) -> Result<(), Refusal> {
        if actor.called.as_ref() != Some(&config.name)
            || self.registry.number_of(&config.name)? == Some(config.number)
        {
            return Ok(());
        }
        Err(no_guest(config))
    }

    /// The right to change one guest, and the guest as it is by then: another command may have changed it since it was read.
    pub(crate) fn held(
        &self,
        config: &GuestConfig,
        actor: &Actor,
    ) -> Result<(Busy, GuestConfig), Refusal> {
        let busy = self.busy(config, actor)?;
        Ok((busy, self.as_it_is(config)?))
    }

    /// The same for what may be a dry run.
    pub(crate) fn held_in(
        &self,
        mode: Mode,
        config: &GuestConfig,
        actor: &Actor,
    ) -> Result<(Option<Busy>, GuestConfig), Refusal> {
        let busy = self.busy_in(mode, config, actor)?;
        Ok((busy, self.as_it_is(config)?))
    }

    fn as_it_is(&self, config: &GuestConfig) -> Result<GuestConfig, Refusal> {
        let now = self.registry.guest(&Selector::Uuid(config.uuid))?;
        now.ok_or_else(|| no_guest(config))
    }

    /// The socket at which a running guest's worker is asked.
    pub(crate) fn control(&self, number: GuestNumber) -> PathBuf {
        self.root.run_dir(number.get()).join(run_folder::CONTROL)
    }

    /// A guest's lock goes with its folder: that of a guest that still exists was lost.
    pub(crate) fn not_busy(&self, config: &GuestConfig, error: BusyError) -> Refusal {
        let folder = self.folder(config);
        let exists = || matches!(self.registry.guest(&Selector::Uuid(config.uuid)), Ok(Some(_)));
        match error {
            BusyError::Gone { .. } if folder.is_missing() && exists() => {
                let path = folder.path().to_owned();
                Refusal::NoFolder { name: config.name.clone(), path }
            }
            error => error.into(),
        }
    }

    /// The same for who does not wait as long.
    pub(crate) fn busy_within(
        &self,
        config: &GuestConfig,
        actor: &Actor,
        bound: Duration,
    ) -> Result<Busy, BusyError> {
        Busy::acquire(&self.folder(config).file(guest_folder::BUSY), &actor.command, bound)
    }

    /// The registry, for a change that begins now: one that was interrupted before changes nothing.
    pub(crate) fn begin(&mut self) -> Result<Change<'_>, Refusal> {
        self.registry.change_unless(unless_interrupted)
    }

    /// Decides and writes as if nobody else were at it. Devices may take seconds to look at, and meanwhile the registry is
    /// everybody's: what others have committed since has it decided anew.
    pub(crate) fn decide_and_write<T>(
        &mut self,
        decide: impl Fn(&VmHost) -> Result<T, Refusal>,
        mut write: impl FnMut(Change<'_>, &T) -> Result<(), Refusal>,
    ) -> Result<T, Refusal> {
        let deadline = Instant::now() + UNDISTURBED_BOUND;
        loop {
            let seen = self.registry.state()?;
            let decided = decide(self)?;
            let change = self.begin()?;
            if change.state()? == seen {
                write(change, &decided)?;
                return Ok(decided);
            }
            if Instant::now() > deadline {
                return Err(Refusal::Disturbed { seconds: UNDISTURBED_BOUND.as_secs() });
            }
        }
    }

    /// Leaves the record of a change that was refused or failed, and passes the outcome on. `config` is the guest it was
    /// about, if there is one. Where not even the record can be written, the refusal is still the thing to tell.
    pub fn record_failure<T>(
        &mut self,
        actor: &Actor,
        config: Option<&GuestConfig>,
        result: Result<T, Refusal>,
    ) -> Result<T, Refusal> {
        if let Err(refusal) = &result {
            let has_waited = matches!(
                refusal,
                Refusal::Interrupted { .. } | Refusal::Registry(RegistryError::Busy { .. })
            );
            if has_waited {
                let _ = self.registry.hurry();
            }
            let _ = self.registry.record(&actor.failed(config, refusal));
        }
        result
    }

    /// The same of what may be a dry run, which leaves no record.
    pub(crate) fn record_failure_in<T>(
        &mut self,
        mode: Mode,
        actor: &Actor,
        config: &GuestConfig,
        result: Result<T, Refusal>,
    ) -> Result<T, Refusal> {
        match mode {
            Mode::Apply => self.record_failure(actor, Some(config), result),
            Mode::DryRun => result,
        }
    }

    /// The boot record of a guest: what it runs on, or ran on last. Its switches have the names they have now, since a rename
    /// changes nothing of the machine.
    pub fn boot_record(&self, config: &GuestConfig) -> Result<Machine, Refusal> {
        let path = self.folder(config).file(guest_folder::BOOT_RECORD);
        let text = durable::open_regular(&path).and_then(std::io::read_to_string);
        let text = text.map_err(Refusal::file("read", &path))?;
        let mut machine =
            Machine::read(&text).map_err(|source| Refusal::Record { path, source })?;
        for attached in &mut machine.nics {
            let switch = self.registry.vswitch(&SwitchSelector::Number(attached.switch));
            if let Ok(Some(switch)) = switch {
                attached.nic.vswitch = switch.name;
            }
        }
        Ok(machine)
    }

    /// The machine of a running guest.
    #[must_use]
    pub fn machine(&self, config: &GuestConfig) -> Option<Machine> {
        self.presence(config.number).is_on().then(|| self.boot_record(config).ok()).flatten()
    }
}

/// Also for who could make one. What cannot be looked at may be there.
fn has_no_registry(root: &Root) -> bool {
    matches!(root.db().try_exists(), Ok(false))
}

fn shown(selector: &Selector) -> String {
    match selector {
        Selector::Name(name) => name.to_string(),
        Selector::Number(number) => number.to_string(),
        Selector::Uuid(uuid) => uuid.to_string(),
    }
}

/// It was there a moment ago.
fn no_guest(config: &GuestConfig) -> Refusal {
    Refusal::NoGuest { called: config.name.to_string(), hint: None }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use hpvm_model::{EntryId, EntryType, GuestName, GuestUuid};
    use hpvm_registry::{Entry, Identities};

    use super::*;
    use crate::create::blank;

    fn empty_host(folder: &Path) -> VmHost {
        let root = Root::at(folder).unwrap();
        let conf = Conf::load(&root).unwrap();
        let registry = Registry::open(&root.db(), Access::ReadWrite).unwrap();
        VmHost { root, conf, registry, boot_id: String::new() }
    }

    #[test]
    fn a_guest_that_got_another_name_is_not_meant_by_the_one_it_had() {
        let folder = tempfile::tempdir().unwrap();
        let mut host = empty_host(folder.path());
        let [web, site]: [GuestName; 2] = ["web", "site"].map(|name| name.parse().unwrap());
        let had = blank(&web, GuestUuid(uuid::Uuid::nil()));
        let has = GuestConfig { name: site.clone(), ..had.clone() };
        let change = host.registry.change().unwrap();
        change.insert(&has, &Identities::default()).unwrap();
        change.commit().unwrap();
        let actor = || Actor::new("hpvmmodify", String::new(), None);
        let check = |config: &GuestConfig, name| {
            host.unless_renamed(config, &actor().calling(name)).map_err(|e| e.to_string())
        };
        let none = "No Guest by that name or number: 'web'; `hpvmstatus` lists the guests".into();
        assert_eq!(check(&had, Some(&web)), Err(none));
        assert_eq!(check(&had, None), Ok(()), "who calls it by its number means it still");
        assert_eq!(check(&has, Some(&site)), Ok(()));
    }

    #[test]
    fn what_others_change_meanwhile_is_decided_upon_too() {
        let folder = tempfile::tempdir().unwrap();
        let mut host = empty_host(folder.path());
        let entry = |name: &str| {
            Entry::by_hand(EntryId::new(EntryType::Restricted, name).unwrap(), name.into())
        };
        let looks = Cell::new(0);
        let decide = |host: &VmHost| {
            let known = host.registry.entries()?.len();
            looks.set(looks.get() + 1);
            if looks.get() == 1 {
                let mut other = Registry::open(&host.root.db(), Access::ReadWrite)?;
                let change = other.change()?;
                change.put_entry(&entry("/other"))?;
                change.commit()?;
            }
            Ok(known)
        };
        let write = |change: Change<'_>, known: &usize| {
            assert_eq!(change.entries()?.len(), *known, "what was decided upon holds");
            change.put_entry(&entry("/ours"))?;
            Ok(change.commit()?)
        };
        assert_eq!(host.decide_and_write(decide, write).unwrap(), 1);
        assert_eq!(looks.get(), 2);
        assert_eq!(host.decide_and_write(decide, write).unwrap(), 2, "one's own change is none");
        assert_eq!(looks.get(), 3);
    }
}
