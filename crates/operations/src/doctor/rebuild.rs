//! Makes the registry anew from the guests' folders and the texts of virtual switches, and from the old registry what those do
//! not tell. Asks first what state the old one is in: what is sound is better left.

use hpvm_host::Root;
use hpvm_host::names::guest_folder;
use hpvm_model::GuestConfig;
use hpvm_registry::{
    Access, Rebuild, Rebuilt, Registry, RegistryError, Sources, is_mounted_read_only,
};

use crate::folder::{self, Folder};
use crate::network::text::{self, Text};
use crate::{Actor, Refusal, forgotten};

/// What state a registry is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Condition {
    /// There is none.
    Missing,
    Sound,
    Damaged,
    /// Sound, and older than the guests' folders: its log was lost.
    Behind,
}

/// Looks at the registry as a rebuild would find it. One that is merely out of reach, or a newer hpvm's, is refused: a rebuild
/// would not help it.
fn condition(root: &Root) -> Result<Condition, Refusal> {
    let path = root.db();
    if std::fs::symlink_metadata(&path).is_err() {
        return Ok(Condition::Missing);
    }
    let examined = Registry::open(&path, Access::ReadOnly).and_then(|registry| {
        registry.all()?;
        registry.removed()?;
        registry.check().map(|findings| (registry, findings))
    });
    match examined {
        Ok((registry, findings)) if findings.is_empty() => {
            Ok(match registry.has_empty_log() && forgotten::look(root, &registry)?.is_some() {
                false => Condition::Sound,
                true => Condition::Behind,
            })
        }
        Ok(_) => Ok(Condition::Damaged),
        Err(RegistryError::Damaged { .. } | RegistryError::Sql { .. }) => Ok(Condition::Damaged),
        Err(error) => Err(error.into()),
    }
}

/// Why a guest that the old registry knows is not found in any folder.
#[must_use]
pub fn why_unfound(root: &Root, config: &GuestConfig) -> String {
    let folder = Folder::of(root, config.uuid);
    match folder.is_missing() {
        true => format!("its folder {} is missing", folder.path().display()),
        false => format!("{} is unusable", folder.file(guest_folder::IDENTITY).display()),
    }
}

/// What somebody has to agree to before a registry is replaced. By default there is nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Doubts {
    pub is_sound: bool,
    /// The guests that only the old registry knows.
    pub unfound: Vec<GuestConfig>,
}

impl Doubts {
    fn of(condition: Condition, would: &Rebuilt) -> Doubts {
        Doubts { is_sound: condition == Condition::Sound, unfound: would.unfound.clone() }
    }

    fn are_among(&self, others: &Doubts) -> bool {
        let is_known = |guest: &GuestConfig| others.unfound.iter().any(|o| o.uuid == guest.uuid);
        self.is_sound <= others.is_sound && self.unfound.iter().all(is_known)
    }
}

/// What was agreed to.
#[derive(Clone, Debug)]
pub enum Consent {
    To(Doubts),
    ToAll,
}

/// How a rebuild ended.
#[derive(Debug)]
pub enum Rebuilding {
    Done(Rebuilt),
    /// Nothing was changed: these are to be agreed to first.
    Doubtful(Doubts),
}

/// Makes the registry anew. A guest that has no link was removed and is kept.
///
/// What is found holds: the old registry is held meanwhile, and nobody is asked anything then. So who agreed comes again, and
/// what it is by then is looked at anew, since guests may have been made, and folders brought back, while somebody thought.
pub fn rebuild(root: &Root, actor: &Actor, consent: &Consent) -> Result<Rebuilding, Refusal> {
    let condition = condition(root)?;
    root.must_be_there()?;
    root.ensure()?;
    let is_wanted = |would: &Rebuilt| match consent {
        Consent::ToAll => true,
        Consent::To(agreed) => Doubts::of(condition, would).are_among(agreed),
    };
    match hpvm_registry::rebuild(&root.db(), || sources(root), is_wanted)? {
        Rebuild::NotWanted(would) => Ok(Rebuilding::Doubtful(Doubts::of(condition, &would))),
        Rebuild::Done(rebuilt) => {
            // The new registry is in place, whether or not that can be written down.
            let _ = Registry::open(&root.db(), Access::ReadWrite)
                .and_then(|mut registry| registry.record(&actor.done(None, None)));
            Ok(Rebuilding::Done(rebuilt))
        }
    }
}

/// What [`rebuild()`] would do.
pub fn rehearse(root: &Root) -> Result<Rebuilt, Refusal> {
    condition(root)?;
    root.must_be_there()?;
    let is_none_yet = matches!(root.uuids().try_exists(), Ok(false));
    if !is_none_yet && !is_mounted_read_only(&root.db()) {
        root.ensure()?;
    }
    Ok(hpvm_registry::rehearse(&root.db(), sources(root))?)
}

fn sources(root: &Root) -> Sources {
    let said = folder::all(root).into_values().filter_map(|folder| folder.identity());
    let switches = text::all(root).into_iter().filter_map(|(.., text)| match text {
        Text::Switch(switch) => Some(switch),
        Text::Newer | Text::Malformed => None,
    });
    Sources {
        guests: said.map(|config| super::found::found(root, config)).collect(),
        switches: switches.collect(),
    }
}
