//! What lies where guests have their files and belongs to none: folders, links, what was never finished.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use hpvm_host::names::guest_folder;
use hpvm_host::paths::{self, Abandoned, Sockets};
use hpvm_host::{durable, process};
use hpvm_model::{GuestConfig, GuestNumber, GuestUuid};
use hpvm_registry::Found;

use super::found::found;
use super::{Cure, Finding};
use crate::folder::{self, Folder};
use crate::presence::Presence;
use crate::{Refusal, VmHost, forgotten};

/// Looks at what lies where guests have their files: all that a repair may remove.
pub(super) fn examine(host: &VmHost) -> Result<Vec<Finding>, Refusal> {
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

fn folders(
    host: &VmHost,
    guests: &[GuestConfig],
    kept: &[GuestConfig],
    findings: &mut Vec<Finding>,
) -> Result<(), Refusal> {
    let known: Vec<&GuestConfig> = guests.iter().chain(kept).collect();
    for (name, path) in entries(&host.root.uuids()) {
        let uuid = folder::owner(&name);
        if maker(&name).is_some() || known.iter().any(|config| Some(config.uuid) == uuid) {
            continue;
        }
        let folder = uuid.map(|uuid| Folder::of(&host.root, uuid));
        // The registry forgets a guest before its folder goes.
        if folder.as_ref().is_some_and(Folder::is_being_changed) {
            continue;
        }
        findings.push(match folder {
            Some(folder) => unknown_folder(host, &known, &folder)?,
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
    folder: &Folder,
) -> Result<Finding, Refusal> {
    let (path, shown) = (folder.path().to_owned(), folder.path().display());
    let has_run = folder.file(guest_folder::BOOT_RECORD).exists();
    let is_whole = folder.may_be_whole();
    let Some(config) = folder.identity() else {
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
    if forgotten::was_removed(&host.registry, config.uuid)? {
        let text = format!("{shown} is left of the removed guest '{name}'");
        return Ok(Finding { text, cure: Cure::Remove(path) });
    }
    let found = found(&host.root, config.clone());
    let is_live = matches!(found, Found::Guest(..));
    let contradicts = |other: &&&GuestConfig| {
        other.number == config.number || is_live && other.name == config.name
    };
    Ok(match (known.iter().find(contradicts), is_whole) {
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
            // The registry forgets a name before it goes.
            None if folder::led_to(&host.root, &path).is_some_and(|f| f.is_being_changed()) => {}
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

/// Files under the name they have while they are made, whose maker is gone. Those in a folder that goes go with it.
fn half_made(host: &VmHost, findings: &mut Vec<Finding>) {
    let goes = |path: &Path| {
        findings.iter().any(|finding| matches!(&finding.cure, Cure::Remove(gone) if gone == path))
    };
    let guests = entries(&host.root.uuids()).into_iter().map(|(_, path)| path);
    let mut folders: Vec<PathBuf> = guests.filter(|path| !goes(path)).collect();
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
    if let Some((_, made)) = name.split_once(".db.new-") {
        let (pid, rest) = made.split_once('-')?;
        let count = rest.split_once('-').map_or(rest, |(count, _)| count);
        return count.parse::<u32>().ok().and_then(|_| pid.parse().ok());
    }
    durable::made_for(name).map(|(_, pid)| pid)
}

fn entries(folder: &Path) -> Vec<(String, PathBuf)> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut entries: Vec<(String, PathBuf)> = entries
        .map(|entry| (entry.file_name().to_string_lossy().into_owned(), entry.path()))
        .collect();
    entries.sort();
    entries
}

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
