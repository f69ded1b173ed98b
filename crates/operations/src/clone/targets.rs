//! What may be copied, and to where: judged before the first byte is written. Whether the clone can run with it is judged
//! with everything else.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::path::Path;

use hpvm_engine::media::not_kept;
use hpvm_host::identity;
use hpvm_model::{
    Backing, Bytes, DeviceKind, FileIdentity, GuestConfig, GuestName, Problem, StorageType, chain,
    quoted,
};
use hpvm_plan::clone::{Design, How, Place, Work};
use hpvm_plan::facts::{
    Below, Content, Ending, FileFact, HostFacts, Kept, Lock, Sharer, Standing, Writable,
};
use hpvm_plan::hotplug::Force;
use hpvm_plan::judge::registered::{copied, lifted_by, overwritten};
use hpvm_plan::record::Cache;

use super::running::Running;
use crate::facts::Aim;
use crate::stores::{AmongDevices, LeadsNowhere};
use crate::{Mode, Refusal, VmHost, facts as look};

/// The problems of sources and targets; `running` knows what a source that runs writes. `facts` are of the stores as they are now.
pub(super) fn judge(
    host: &VmHost,
    (source, running): (&GuestConfig, Option<&Running>),
    design: &Design,
    facts: &HostFacts,
    force: Force,
) -> Result<Vec<Problem>, Refusal> {
    if design.work.is_empty() {
        return Ok(Vec::new());
    }
    let mut problems = Vec::new();
    // Who else has the source's stores, the source itself apart.
    let others = host.facts(source, None)?;
    // What a running source writes is locked by its own engine.
    let mut still = source.clone();
    still
        .storage
        .retain(|device| running.is_none_or(|running| running.writer(&device.backing).is_none()));
    let locked = look::written_elsewhere(host, &still, &others);
    for work in &design.work {
        problems.extend(read(work, &others));
        problems.extend(changed_meanwhile(work, running, &others));
        let read_by_path = still.storage.iter().find(|device| device.backing == work.from);
        problems.extend(read_by_path.and_then(|device| copied(source, device, &others)));
        let path = &work.from.path;
        problems.extend(locked.get(path).map(|lock| written_elsewhere(path, lock)));
        problems.extend(target(host, work, facts, force));
        let device = design.config.device_at(work.address);
        problems.extend(device.and_then(|device| overwritten(&design.config, device, facts)));
    }
    problems.extend(doubles(&design.work, facts));
    // A store that is named for several devices has one owner.
    let mut told = BTreeSet::new();
    problems.retain(|problem| told.insert(problem.text.clone()));
    Ok(problems)
}

/// Two copies that would be one file or write the same bytes, by two names. What the clone's judgement sees are files that are to
/// be made, each another.
fn doubles(work: &[Work], facts: &HostFacts) -> Vec<Problem> {
    let mut seen: Vec<(Target<'_>, &Work)> = Vec::new();
    let mut problems = Vec::new();
    for work in work.iter().filter(|work| work.how != How::Overlay(Place::Own)) {
        let path = &work.to.path;
        let Some(target) = Target::of(path, facts) else { continue };
        match seen.iter().find(|(other, _)| other.overlaps(&target, facts)) {
            Some((same, other)) if other.to.path != *path => {
                let how = if *same == target { "is the same file as" } else { "shares bytes with" };
                problems.push(error(
                    path,
                    format!(
                        "'{path}' {how} '{}', which gets the copy for {}; name another",
                        other.to.path, other.address
                    ),
                ));
            }
            _ => seen.push((target, work)),
        }
    }
    problems
}

/// A file that gets a copy, whatever leads to it.
#[derive(PartialEq, Eq)]
enum Target<'a> {
    There(FileIdentity),
    ToBeMade { folder: FileIdentity, name: &'a OsStr },
}

impl Target<'_> {
    fn overlaps(&self, other: &Target<'_>, facts: &HostFacts) -> bool {
        match (self, other) {
            (Target::There(one), Target::There(other)) => facts.overlap(*one, *other),
            _ => self == other,
        }
    }

    fn of<'a>(path: &'a str, facts: &HostFacts) -> Option<Target<'a>> {
        match facts.files.get(path) {
            Some(FileFact::Regular { identity, .. }) => Some(Target::There(*identity)),
            Some(FileFact::Block(block)) => Some(Target::There(block.identity)),
            Some(FileFact::Missing) | None => {
                let path = Path::new(path);
                let folder = identity::at(path.parent()?)?;
                Some(Target::ToBeMade { folder, name: path.file_name()? })
            }
            Some(_) => None,
        }
    }
}

/// What is read must be there, and nobody may be writing it.
fn read(work: &Work, others: &HostFacts) -> Vec<Problem> {
    let path = &work.from.path;
    let Some(identity) = others.identity(path) else {
        return vec![error(
            path,
            format!("'{path}', which is to be copied, {}", state(others, path)),
        )];
    };
    let sharers = others.sharers.get(&identity).into_iter().flatten();
    let writers = sharers.filter(|sharer| sharer.writes());
    let text = |Sharer { guest, address, .. }: &Sharer| {
        format!(
            "'{path}' is in use by the running guest '{guest}' ({address}); stop that guest first"
        )
    };
    writers.map(|writer| error(path, text(writer))).collect()
}

/// What the VM Host, or a container on it, writes, no copy would have as it was at one moment. What a running source has is its
/// QEMU's to read.
fn changed_meanwhile(
    work: &Work,
    running: Option<&Running>,
    others: &HostFacts,
) -> Option<Problem> {
    let path = &work.from.path;
    let uses = others.used_by_host.get(path).into_iter().flatten();
    let writes = uses.filter(|host| !host.is_read_only).map(|host| &*host.what);
    let writes = writes.collect::<Vec<_>>().join("; ");
    if !writes.is_empty() {
        let text = format!(
            "'{path}' is in use by this VM Host, and its content may change while it is read: {writes}"
        );
        // Whoever gave it away knows that.
        return Some(match lifted_by(path, others) {
            Some(_) => Problem::warning(path.clone(), text),
            None => error(path, text),
        });
    }
    let identity = others.identity(path)?;
    let sharers = others.sharers.get(&identity).into_iter().flatten();
    let is_guests = running.is_some() || sharers.into_iter().any(Sharer::holds_it);
    let is_kept = || !others.used_by_host.contains_key(path) && lifted_by(path, others).is_none();
    (!is_guests && is_kept()).then(|| kept(path)).flatten()
}

/// What the kernel keeps for somebody who is seen by nothing else.
fn kept(path: &str) -> Option<Problem> {
    not_kept(path).err().map(|busy| error(path, chain(&busy)))
}

fn state(facts: &HostFacts, path: &str) -> String {
    match facts.files.get(path) {
        Some(FileFact::Unreadable(reason)) => format!("cannot be used: {reason}"),
        Some(FileFact::Missing) | None => "does not exist".into(),
        Some(_) => "is no file and no block device".into(),
    }
}

/// Whether a store may be written or replaced: judged before the copy, and once more before a file gives its place to it.
pub(super) fn target(host: &VmHost, work: &Work, facts: &HostFacts, force: Force) -> Vec<Problem> {
    let path = &work.to.path;
    if work.how == How::Overlay(Place::Own) {
        return Vec::new();
    }
    // Whatever else is wrong with it, it is no target.
    let owned = owners(path, facts);
    if !owned.is_empty() {
        return owned;
    }
    let mut problems = Vec::new();
    match (facts.files.get(path), work.to.storage) {
        (Some(FileFact::Missing) | None, StorageType::File | StorageType::Qcow2) => {
            problems.extend(no_folder(path).or_else(|| leads_nowhere(path)));
        }
        (Some(FileFact::Regular { size, writable, .. }), _) => {
            problems.extend(protected(path, *writable));
            if size.0 > 0 && force == Force::No {
                let text = format!("'{path}' exists and is not empty; -F has it overwritten");
                problems.push(error(path, text));
            }
            problems.extend(locked(host, path, facts));
            // Its name goes to the copy, and with the last who has it open what is in it.
            if !facts.used_by_host.contains_key(path) {
                problems.extend(kept(path));
            }
        }
        (Some(FileFact::Block(_)), _) => problems.extend(locked(host, path, facts)),
        // Another kind of thing is told by the judgement of the clone.
        _ => {}
    }
    problems
}

/// Devices that are too small for their copies, but for those that are refused anyhow.
pub(super) fn too_small(
    design: &Design,
    facts: &HostFacts,
    refused: &BTreeSet<String>,
) -> Vec<Problem> {
    let too_small = |Work { from, to, .. }: &Work| {
        let Some(FileFact::Block(block)) = facts.files.get(&to.path) else { return None };
        let wanted = size(facts, &from.path)?;
        let text = format!(
            "'{}' has {} bytes, and '{}' to be copied there has {}; name a larger device",
            to.path, block.size.0, from.path, wanted.0
        );
        (block.size < wanted).then(|| error(&to.path, text))
    };
    let copies = design.work.iter().filter(|work| work.how != How::Overlay(Place::Own));
    copies.filter(|work| !refused.contains(&work.to.path)).filter_map(too_small).collect()
}

/// Whose it is already.
fn owners(path: &str, facts: &HostFacts) -> Vec<Problem> {
    let identity = facts.identity(path);
    let sharers = identity.and_then(|identity| facts.sharers.get(&identity)).into_iter().flatten();
    let text = |Sharer { guest, address, standing, .. }: &Sharer| {
        let belongs = format!("'{path}' belongs to guest '{guest}' ({address})");
        match standing {
            Standing::Present => format!("{belongs} and is not overwritten"),
            Standing::Removed(Kept { number, .. }) => format!(
                "{belongs}, which was removed and is still kept, and is not overwritten; `hpvmremove -p {number} --purge` gives that guest up"
            ),
        }
    };
    sharers.map(|sharer| error(path, text(sharer))).collect()
}

/// Its owner would replace what he lets nobody change.
fn protected(path: &str, writable: Writable) -> Option<Problem> {
    let text = || {
        format!(
            "'{path}' may not be written and is not overwritten; `chmod u+w {}` allows that",
            quoted(path)
        )
    };
    (writable == Writable::No).then(|| error(path, text()))
}

fn locked(host: &VmHost, path: &str, facts: &HostFacts) -> Option<Problem> {
    let (_, lock) = look::locked(host, [path], facts, Aim::Write).pop_first()?;
    Some(error(path, lock.on(path)))
}

pub(super) fn written_elsewhere(path: &str, lock: &Lock) -> Problem {
    error(path, format!("{}, and its content may change while it is read", lock.on(path)))
}

fn no_folder(path: &str) -> Option<Problem> {
    let folder = Path::new(path).parent().unwrap_or(Path::new("/"));
    let Some(real) = folder.canonicalize().ok().filter(|real| real.is_dir()) else {
        return Some(error(path, format!("there is no folder {} for '{path}'", folder.display())));
    };
    AmongDevices::is(Path::new(path), &real).map(|among| error(path, among.to_string()))
}

fn leads_nowhere(path: &str) -> Option<Problem> {
    LeadsNowhere::is(Path::new(path)).map(|link| error(path, link.to_string()))
}

/// Images that are their guest's alone, and which the clone would share: it could never start.
pub(super) fn unshareable(
    host: &VmHost,
    source: &GuestConfig,
    design: &Design,
    facts: &HostFacts,
) -> Vec<Problem> {
    let own: BTreeSet<&str> = host.own_images(source).collect();
    let is_refused = |path: &str| {
        facts.registered.get(path).is_some_and(|known| known.restriction.why().is_some())
    };
    let devices = design.config.storage.iter().filter(|device| {
        let path = device.backing.path.as_str();
        own.contains(path) && is_refused(path)
    });
    let clone = &design.config.name;
    // What lies under an image is only read, while a guest that runs writes it.
    let linked = match host.presence(source.number).is_on() {
        true => String::new(),
        false => format!("--linked gives '{clone}' an image over it, and "),
    };
    devices
        .map(|device| {
            let Backing { storage, path } = &device.backing;
            let text = format!(
                "'{path}' lies in the folder of '{}' and is that guest's alone; {linked}-b disk:{}:{}:{}:/PATH gives '{clone}' a copy",
                source.name, device.adapter.as_str(), device.address, storage.as_str(),
            );
            error(path, text)
        })
        .collect()
}

/// What can only be read once the clone is there; better told then than when another guest cannot start for it.
pub(super) fn bases(source: &GuestConfig, design: &Design, mode: Mode) -> Vec<Problem> {
    let told = design.work.iter().filter_map(|work| {
        let device = design.config.device_at(work.address);
        let layers = device.map_or(&[][..], |device| &device.layers);
        base(work, source, design, mode)
            .or_else(|| half_copy(work, layers, &design.config.name, mode))
    });
    told.collect()
}

/// Who links a guest's disks cannot start it any more.
fn base(work: &Work, source: &GuestConfig, design: &Design, mode: Mode) -> Option<Problem> {
    let (from, source, clone) = (&work.from.path, &source.name, &design.config.name);
    let text = match mode {
        Mode::Apply => format!(
            "'{from}' is only read from now on: '{source}' cannot be started while its linked clone '{clone}' is there"
        ),
        Mode::DryRun => format!(
            "'{from}' would be only read from then on: '{source}' could not be started while its linked clone '{clone}' is there"
        ),
    };
    matches!(work.how, How::Overlay(_)).then(|| Problem::warning(from.clone(), text))
}

/// A copy of an image over another is over that other too, which then serves two.
fn half_copy(work: &Work, layers: &[Backing], clone: &GuestName, mode: Mode) -> Option<Problem> {
    let below: Vec<String> = layers.iter().map(|layer| format!("'{}'", layer.path)).collect();
    let (from, below) = (&work.from.path, below.join(" on "));
    let text = match mode {
        Mode::Apply => format!(
            "the copy has what '{from}' has itself, and builds on {below} too, which is only read from now on: a guest with that as a disk cannot be started while '{clone}' is there"
        ),
        Mode::DryRun => format!(
            "the copy would have what '{from}' has itself, and build on {below} too, which would be only read from then on: a guest with that as a disk could not be started while '{clone}' is there"
        ),
    };
    (work.how == How::Copy && !layers.is_empty())
        .then(|| Problem::warning(work.to.path.clone(), text))
}

/// Puts in place of what is not there yet what will be.
pub(super) fn expect(design: &Design, facts: &mut HostFacts) {
    for (number, work) in (0..).zip(&design.work) {
        let path = &work.to.path;
        let is_to_be_made = matches!(work.to.storage, StorageType::File | StorageType::Qcow2)
            && matches!(
                facts.files.get(path),
                Some(FileFact::Missing | FileFact::Regular { .. }) | None
            );
        if !is_to_be_made {
            continue;
        }
        let copied = (work.how == How::Copy).then(|| size(facts, &work.from.path)).flatten();
        let size = copied.unwrap_or(Bytes(DeviceKind::Disk.block_bytes()));
        // Of no file system there is.
        let identity = FileIdentity { device: u64::MAX, inode: number };
        let (writable, cache) = (Writable::Yes, Cache::Page);
        let content = match work.to.storage {
            StorageType::Qcow2 => {
                let device = design.config.device_at(work.address);
                let is_alone = device.is_none_or(|device| device.layers.is_empty());
                Content::Qcow2(if is_alone { Below::Nothing } else { Below::Named })
            }
            _ => Content::Other,
        };
        let ending = Ending::WithBlock;
        let expected = FileFact::Regular { identity, size, writable, cache, ending, content };
        facts.files.insert(path.clone(), expected);
    }
}

/// `None`: it is no store, or does not answer, as the look at what is read tells.
fn size(facts: &HostFacts, path: &str) -> Option<Bytes> {
    match facts.files.get(path)? {
        FileFact::Regular { size, .. } => Some(*size),
        FileFact::Block(block) => Some(block.size),
        _ => None,
    }
}

fn error(path: &str, text: String) -> Problem {
    Problem::error(path.to_owned(), text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_of_a_linked_disk_is_told_to_be_none_in_full() {
        let image = |path| Backing::new(StorageType::Qcow2, path);
        let (from, to) = (image("/vm/linked"), image("/vm/copy"));
        let address = "0,0,0".parse().unwrap();
        let copy = Work { address, from, to, how: How::Copy };
        let clone = "new".parse().unwrap();
        assert_eq!(half_copy(&copy, &[], &clone, Mode::Apply), None, "it stands alone");
        let base = [Backing::new(StorageType::File, "/vm/base")];
        let told = half_copy(&copy, &base, &clone, Mode::Apply).unwrap().text;
        assert!(told.contains("builds on '/vm/base' too"), "{told}");
        let linked = Work { how: How::Overlay(Place::Own), ..copy };
        assert_eq!(
            half_copy(&linked, &base, &clone, Mode::Apply),
            None,
            "--linked has its own warning"
        );
    }
}
