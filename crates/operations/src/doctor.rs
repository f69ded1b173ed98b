//! Looks for leftovers and damage: registry, folders, links, `/run`, operations that nobody finished. Explains each, and
//! repairs it when asked. Every file of ours is named so that its owner can be told, so looking is enough.
//!
//! What may be a guest is never removed: a folder that says what guest it is and that nobody removed on purpose is made known
//! to the registry again. What another command is making or removing at this moment is left alone, and not told of: what is found
//! is looked at again while the registry is kept from being changed. A repair decides anew while it keeps the registry, or the
//! guest, from being changed.

mod found;
mod guests;
mod places;
mod provisions;
mod rebuild;
mod room;
mod switches;

use std::path::{Path, PathBuf};

use hpvm_host::lock::Busy;
use hpvm_host::names::guest_folder;
use hpvm_host::removal;
use hpvm_model::{GuestConfig, SwitchNumber, Vswitch};
use hpvm_plan::facts::Lack;
use hpvm_registry::{Access, Found, Registry, RemovedGuest, Selector, Step, SwitchSelector};

pub use rebuild::{Consent, Doubts, Rebuilding, rebuild, rehearse, why_unfound};

use crate::clone::interrupted;
use crate::folder;
use crate::forgotten::{self, Forgotten};
use crate::network::text;
use crate::network::wire::MadeTap;
use crate::{Actor, Mode, Refusal, VmHost, lost_record, nvram, supervise};

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
    /// A tap that was made for a virtual switch and is its wire no more.
    Tap(SwitchNumber, MadeTap),
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
    /// The same, where nothing of the VM Host's own is wrong.
    Note(String),
}

/// Looks at everything; where a registry has lost its log at nothing that would be judged by it.
pub fn examine(host: &VmHost) -> Result<Vec<Finding>, Refusal> {
    let mut findings = room::examine(host);
    if let Some(forgotten) = lost_with_log(host)? {
        // What a rebuild leaves out is for the administrator to read.
        let cure = Cure::Tell("hpvm doctor --rebuild".into());
        findings.push(Finding { text: forgotten.to_string(), cure });
        return Ok(findings);
    }
    for sentence in host.registry.check()? {
        let cure = Cure::Tell("hpvm doctor --rebuild".into());
        findings.push(Finding { text: format!("the registry is damaged: {sentence}"), cure });
    }
    let mut twice = Twice { host, may_hold: host.root.db().exists() };
    let configs = host.registry.all()?;
    // Before the others: whoever is alone may have ended by then, and nobody supervises the guest.
    findings.extend(guests::half_supervised(host, &configs));
    for config in &configs {
        findings.extend(twice.seen(|| guests::examine(host, config.uuid))?);
    }
    findings.extend(guests::missing_stores(host, configs)?);
    findings.extend(twice.seen(|| places::examine(host))?);
    switches::examine(host, &mut findings)?;
    findings.extend(twice.seen(|| switches::texts(host))?);
    findings.extend(twice.seen(|| operations(host))?);
    provisions::examine(host, &mut findings)?;
    if !host.is_ours() {
        let text = "this user cannot see all of this VM Host: firmware variables, sockets and locks of commands are its owner's alone";
        let cure = Cure::Note("run `hpvm doctor` as root or as its owner".into());
        findings.push(Finding { text: text.into(), cure });
    }
    Ok(findings)
}

/// Who looks again at what was found. A command that is just at it has changed a part when it is looked at first, and none or all
/// when the registry is held.
struct Twice<'a> {
    host: &'a VmHost,
    /// Not where nothing can be written, and no longer once somebody else has held the registry for too long.
    may_hold: bool,
}

impl Twice<'_> {
    fn seen(
        &mut self,
        look: impl Fn() -> Result<Vec<Finding>, Refusal>,
    ) -> Result<Vec<Finding>, Refusal> {
        let seen = look()?;
        if seen.is_empty() {
            return Ok(seen);
        }
        let open = || Registry::open(&self.host.root.db(), Access::ReadWrite).ok();
        let mut gate = self.may_hold.then(open).flatten();
        let held = gate.as_mut().and_then(|gate| gate.change().ok());
        self.may_hold = held.is_some();
        let mut again = look()?;
        again.retain(|finding| seen.iter().any(|seen| seen.text == finding.text));
        Ok(again)
    }
}

/// The guests that a registry whose log is empty has forgotten, if it has.
fn lost_with_log(host: &VmHost) -> Result<Option<Forgotten>, Refusal> {
    if !host.registry.has_empty_log() {
        return Ok(None);
    }
    match forgotten::refuse(&host.root, &host.registry) {
        Err(Refusal::RegistryBehind(forgotten)) => {
            Ok(Some(forgotten).filter(|forgotten| !forgotten.may_be_unfinished))
        }
        other => other.map(|()| None),
    }
}

fn operations(host: &VmHost) -> Result<Vec<Finding>, Refusal> {
    let mut findings = Vec::new();
    for recorded in host.registry.unfinished()? {
        if interrupted::was_interrupted(host, &recorded) {
            let text = format!("`{}` was interrupted", recorded.operation.command_line);
            findings.push(Finding { text, cure: Cure::Settle(Box::new(recorded)) });
        }
    }
    Ok(findings)
}

/// Repairs one finding; gives what was done, or `None` when it is the administrator's to do. What was read before is true no more:
/// each cure decides by what is there while nobody else can change it.
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
            if !places::examine(host)?.contains(finding) {
                return Ok(Some(format!("{} is in use by now", path.display())));
            }
            remove(path)?;
            format!("removed {}", path.display())
        }
        Cure::Enter(found) => match enter(host, finding)? {
            true => format!("made it known to the registry{}", variables_of(host, actor, found)),
            false => "it is known or gone by now".into(),
        },
        Cure::Link(config) => {
            let Some((_busy, config)) = still(host, config, actor)? else {
                return Ok(Some(removed(config)));
            };
            folder::link(&host.root, &config.name, config.uuid)?;
            format!("made the link of '{}'", config.name)
        }
        Cure::Identity(config) => {
            let Some((_busy, config)) = still(host, config, actor)? else {
                return Ok(Some(removed(config)));
            };
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
        Cure::Tap(switch, tap) => switches::remove(host, *switch, tap)?,
        Cure::EnterSwitch(_) => match enter_switch(host, finding)? {
            true => "made it known to the registry".into(),
            false => "it is known or deleted by now".into(),
        },
        Cure::Adopt(config) => {
            let Some((_busy, config)) = still(host, config, actor)? else {
                return Ok(Some(removed(config)));
            };
            supervise::adopt(host, &config, supervise::TO_LOOK)?;
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
        Cure::Tell(_) | Cure::Note(_) => return Ok(None),
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

impl Finding {
    /// The cure of the same, if that is found still.
    fn now(&self, findings: Vec<Finding>) -> Option<Cure> {
        findings.into_iter().find(|finding| finding.text == self.text).map(|finding| finding.cure)
    }
}

/// The guest as it is now, and the right to change it; `None` when it was removed meanwhile.
fn still(
    host: &VmHost,
    config: &GuestConfig,
    actor: &Actor,
) -> Result<Option<(Busy, GuestConfig)>, Refusal> {
    match host.held(config, actor) {
        Err(_) if host.registry.guest(&Selector::Uuid(config.uuid))?.is_none() => Ok(None),
        held => held.map(Some),
    }
}

fn removed(config: &GuestConfig) -> String {
    format!("guest '{}' is removed by now", config.name)
}

/// As a rebuild does it, for one guest. False: it is not found any more.
fn enter(host: &VmHost, finding: &Finding) -> Result<bool, Refusal> {
    let mut gate = Registry::open(&host.root.db(), Access::ReadWrite)?;
    let change = gate.change()?;
    let Some(Cure::Enter(found)) = finding.now(places::examine(host)?) else { return Ok(false) };
    match *found {
        Found::Guest(config, identities) => change.insert(&config, &identities)?,
        Found::Removed(RemovedGuest { config, keep_until, .. }, identities) => {
            change.insert(&config, &identities)?;
            change.remove(config.number, keep_until)?;
        }
    }
    change.commit()?;
    Ok(true)
}

/// A guest that never ran, and whose variables cannot be used, gets pristine ones: its creation was interrupted before they were on
/// the disk, and they were to be nothing else. Gives what to add to what was done; what fails is found again.
fn variables_of(host: &mut VmHost, actor: &Actor, found: &Found) -> &'static str {
    let Found::Guest(config, _) = found else { return "" };
    let has_run = host.folder(config).file(guest_folder::BOOT_RECORD).exists();
    if has_run || nvram::damage(host, config).is_none_or(|lack| lack == Lack::Forbidden) {
        return "";
    }
    match nvram::replace(host, actor, config, nvram::From::Pristine, Mode::Apply) {
        Ok(_) => ", with pristine firmware variables",
        Err(_) => "",
    }
}

/// The same for a virtual switch.
fn enter_switch(host: &VmHost, finding: &Finding) -> Result<bool, Refusal> {
    let mut gate = Registry::open(&host.root.db(), Access::ReadWrite)?;
    let change = gate.change()?;
    let Some(Cure::EnterSwitch(switch)) = finding.now(switches::texts(host)?) else {
        return Ok(false);
    };
    change.enter_vswitch(&switch)?;
    change.commit()?;
    Ok(true)
}

fn remove(path: &Path) -> Result<(), Refusal> {
    removal::either(path).map_err(Refusal::file("remove", path))
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use hpvm_host::names::guest_folder;
    use hpvm_host::{Root, conf::Conf};
    use hpvm_model::GuestUuid;
    use hpvm_registry::{Identities, RegistryError};

    use super::*;
    use crate::create::blank;
    use crate::folder::Folder;

    struct Place {
        _folder: tempfile::TempDir,
        host: VmHost,
    }

    impl Place {
        fn new() -> Place {
            let folder = tempfile::tempdir().unwrap();
            let root = Root::at(folder.path()).unwrap();
            root.ensure().unwrap();
            // Whether this machine has any would be told by what a repair says.
            std::fs::create_dir_all(root.conf().parent().unwrap()).unwrap();
            std::fs::write(root.conf(), "HPVMNVRAM=/nowhere\n").unwrap();
            let conf = Conf::load(&root).unwrap();
            let registry = Registry::open(&root.db(), Access::ReadWrite).unwrap();
            let host = VmHost { root, conf, registry, boot_id: String::new() };
            Place { _folder: folder, host }
        }

        /// The folder of a guest called `web`, with its link.
        fn folder(&self) -> GuestConfig {
            let config = blank(&"web".parse().unwrap(), GuestUuid(uuid::Uuid::from_u128(7)));
            let folder = Folder::of(&self.host.root, config.uuid);
            folder.make().unwrap();
            folder.replace_identity(&config).unwrap();
            folder::link(&self.host.root, &config.name, config.uuid).unwrap();
            config
        }

        fn know(&mut self, config: &GuestConfig) {
            let change = self.host.registry.change().unwrap();
            change.insert(config, &Identities::new()).unwrap();
            change.commit().unwrap();
        }

        fn record(&mut self, before: Option<&GuestConfig>, after: Option<&GuestConfig>) {
            self.host.registry.record(&actor().done(before, after)).unwrap();
        }

        fn found(&self, word: &str) -> Vec<Finding> {
            let mut found = places::examine(&self.host).unwrap();
            found.extend(switches::texts(&self.host).unwrap());
            found.retain(|finding| finding.text.contains(word));
            found
        }

        fn repair(&mut self, finding: &Finding) -> String {
            repair(&mut self.host, &actor(), finding).unwrap().expect("no administrator's deed")
        }
    }

    fn actor() -> Actor {
        Actor::new("hpvm doctor", String::new(), None)
    }

    #[test]
    fn a_guest_that_was_purged_since_it_was_found_stays_so() {
        let mut place = Place::new();
        let config = place.folder();
        let found = place.found("does not know guest 'web'").remove(0);
        place.record(Some(&config), None);
        assert_eq!(place.repair(&found), "it is known or gone by now");
        assert_eq!(place.host.registry.all().unwrap(), []);
        // Nor does a failure since then make it a guest that was lost.
        let refused = Refusal::Running(config.name.clone());
        place.host.registry.record(&actor().failed(Some(&config), &refused)).unwrap();
        assert_eq!(place.found("does not know guest 'web'"), []);
        place.record(None, Some(&config));
        assert_eq!(place.repair(&found), "made it known to the registry");
        assert_eq!(place.host.registry.all().unwrap(), [config]);
        assert_eq!(place.repair(&found), "it is known or gone by now");
    }

    #[test]
    fn a_switch_that_was_deleted_since_it_was_found_stays_so() {
        let mut place = Place::new();
        let switch = Vswitch::new(SwitchNumber::new(5).unwrap(), "lan".parse().unwrap());
        text::write(&place.host.root, &switch).unwrap();
        let found = place.found("does not know virtual switch 'lan'").remove(0);
        text::remove(&place.host.root, &switch).unwrap();
        assert_eq!(place.repair(&found), "it is known or deleted by now");
        text::write(&place.host.root, &switch).unwrap();
        assert_eq!(place.repair(&found), "made it known to the registry");
        assert!(place.host.registry.vswitches().unwrap().contains(&switch));
    }

    #[test]
    fn nothing_is_made_for_a_guest_that_was_removed_since() {
        let mut place = Place::new();
        let config = place.folder();
        let link = place.host.root.guest_link("web");
        std::fs::remove_file(&link).unwrap();
        for cure in [Cure::Link(config.clone()), Cure::Identity(config.clone())] {
            let text = String::new();
            assert_eq!(place.repair(&Finding { text, cure }), "guest 'web' is removed by now");
        }
        assert!(link.symlink_metadata().is_err());
    }

    #[test]
    fn what_a_command_leaves_behind_on_its_way_is_not_told_of() {
        let place = Place::new();
        let config = place.folder();
        let all = || place.found("web").len() + place.found(&config.uuid.to_string()).len();
        let busy = place.host.folder(&config).file(guest_folder::BUSY);
        let at_it = Busy::acquire(&busy, "hpvmremove", std::time::Duration::ZERO).unwrap();
        assert_eq!(all(), 0);
        drop(at_it);
        assert_ne!(all(), 0);
    }

    #[test]
    fn what_is_found_once_is_not_told_of_and_the_registry_is_held_for_the_second_look() {
        let mut place = Place::new();
        let config = place.folder();
        place.know(&config);
        let looks = Cell::new(0);
        let finding = |text: &str| Finding { text: text.into(), cure: Cure::Tell(String::new()) };
        let look = || {
            looks.set(looks.get() + 1);
            if looks.get() == 1 {
                return Ok(vec![finding("lasting"), finding("passing")]);
            }
            let mut other = Registry::open(&place.host.root.db(), Access::ReadWrite)?;
            other.hurry()?;
            assert!(matches!(other.change().unwrap_err(), RegistryError::Busy { .. }));
            Ok(vec![finding("lasting"), finding("other")])
        };
        let mut twice = Twice { host: &place.host, may_hold: true };
        assert_eq!(twice.seen(look).unwrap(), [finding("lasting")]);
        assert_eq!(twice.seen(|| Ok(Vec::new())).unwrap(), []);
    }
}
