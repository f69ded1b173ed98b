//! Makes the registry anew from the guests' folders and the texts of virtual switches, and from the old registry what those do
//! not tell. Asks first what state the old one is in: what is sound is better left.

use hpvm_host::Root;
use hpvm_host::names::guest_folder;
use hpvm_model::GuestConfig;
use hpvm_registry::{Access, Found, Rebuilt, Registry, RegistryError, rehearse};

use crate::folder::{self, Folder};
use crate::network::text::{self, Text};
use crate::{Actor, Mode, Refusal, forgotten};

/// What state a registry is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// There is none.
    Missing,
    Sound,
    Damaged,
    /// Sound, and older than the guests' folders: its log was lost.
    Behind,
}

/// Looks at the registry as a rebuild would find it. One that is merely out of reach, or a newer hpvm's, is refused: a rebuild
/// would not help it.
pub fn condition(root: &Root) -> Result<Condition, Refusal> {
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

/// Makes the registry anew. A guest that has no link was removed and is kept.
pub fn rebuild(root: &Root, actor: &Actor, mode: Mode) -> Result<Rebuilt, Refusal> {
    root.must_be_there()?;
    root.ensure()?;
    let found: Vec<Found> = folder::all(root)
        .values()
        .filter_map(Folder::identity)
        .map(|config| super::found::found(root, config))
        .collect();
    let switches = text::all(root).into_iter().filter_map(|(.., text)| match text {
        Text::Switch(switch) => Some(switch),
        Text::Newer | Text::Malformed => None,
    });
    if mode == Mode::DryRun {
        return Ok(rehearse(&root.db(), found, switches)?);
    }
    let rebuilt = hpvm_registry::rebuild(&root.db(), found, switches)?;
    // The new registry is in place, whether or not that can be written down.
    let _ = Registry::open(&root.db(), Access::ReadWrite)
        .and_then(|mut registry| registry.record(&actor.done(None, None)));
    Ok(rebuilt)
}
