//! What the device database has against a backing store: a restriction, another use it is kept for, sharing that cannot be,
//! a device that is not the one it was.

use hpvm_model::{
    AdapterKind, Backing, Choice, DeviceKind, EntryId, EntryType, GuestConfig, Likeness, Problem,
    Severity, StorageDevice, StorageType, StoreIdentity, quoted,
};

use super::{Finding, Findings, doubt, never, taken};
use crate::drives;
use crate::facts::{
    FileFact, HostFacts, NotToChoose, OtherNames, Registered, Reservations, Restriction,
};

pub(super) fn judge(
    config: &GuestConfig,
    device: &StorageDevice,
    facts: &HostFacts,
    all: &mut Findings,
) {
    let Some(known) = facts.registered.get(&device.backing.path) else { return };
    all.extend(restricted(device, facts));
    all.extend(may_have_restricted_name(device, facts));
    all.extend(kept_for_another_use(device, known));
    all.extend(shared(device, facts));
    all.extend(another_device(config, device, known));
}

/// A guest that had what lies there would read, or write, what is the VM Host's.
pub(super) fn restricted(device: &StorageDevice, facts: &HostFacts) -> Option<Finding> {
    let path = &device.backing.path;
    let why = facts.registered.get(path)?.restriction.why()?;
    Some(never(path, format!("'{path}' is restricted and is not given to a guest: {why}")))
}

/// A hard link from a restricted folder is an ordinary file elsewhere; that it may be one is all that can be seen of it.
pub(super) fn may_have_restricted_name(
    device: &StorageDevice,
    facts: &HostFacts,
) -> Option<Finding> {
    let path = &device.backing.path;
    let OtherNames { names, file, folders } = facts.registered.get(path)?.other_names.as_ref()?;
    let folders: Vec<String> = folders.iter().map(|folder| quoted(folder)).collect();
    let what = match facts.files.get(path) {
        Some(FileFact::Folder(_)) => "has an image",
        _ => "leads to a file",
    };
    let text = format!(
        "'{path}' {what} with {names} names (hard links), and what guests are kept from may be one of them: `find {} -xdev -samefile {}` tells; where it finds one, give the guest a copy",
        folders.join(" "),
        quoted(file)
    );
    Some(doubt(path, text))
}

/// Users of a guest's console choose from such a folder, and nobody asks the device database then.
pub(super) fn holds_other_than_images(
    device: &StorageDevice,
    facts: &HostFacts,
) -> Option<Finding> {
    let path = drives::folder(device).filter(|path| *path == device.backing.path)?;
    let (why, which) = match facts.registered.get(path)?.not_to_choose.as_ref()? {
        NotToChoose::Restricted { name } => {
            (format!("rdev:{name} restricts what lies below it"), "nothing restricted")
        }
        NotToChoose::HostFile { name, file } => (
            format!(
                "{name} is {file}, a file of this VM Host itself, by another name (a hard link)"
            ),
            "no file of the VM Host",
        ),
        NotToChoose::OtherUse { name, usage } => {
            let usage = usage.as_str().to_ascii_uppercase();
            (format!("gdev:{name} below it says USAGE={usage}"), "nothing but images of dvds")
        }
    };
    let text = format!(
        "'{path}' is a folder to choose images from, and {why}; give a folder that holds {which}"
    );
    Some(never(path, text))
}

/// The entry that gives guests what the VM Host uses.
#[must_use]
pub fn lifted_by<'a>(path: &str, facts: &'a HostFacts) -> Option<&'a str> {
    match &facts.registered.get(path)?.restriction {
        Restriction::Lifted { name } => Some(name),
        _ => None,
    }
}

fn kept_for_another_use(device: &StorageDevice, known: &Registered) -> Option<Finding> {
    let usage = known.usage.filter(|usage| *usage != device.kind)?;
    let (path, kind) = (&device.backing.path, device.kind.as_str());
    let text = format!(
        "'{path}' is kept for a {} (USAGE={}) and cannot back a {kind}",
        usage.as_str(),
        usage.as_str().to_ascii_uppercase()
    );
    Some(never(path, text))
}

/// Several guests may write to one disk if they can keep each other from it.
fn shared(device: &StorageDevice, facts: &HostFacts) -> Option<Finding> {
    let StorageDevice { kind, adapter, backing: Backing { storage, path }, .. } = device;
    let known = facts.registered.get(path)?;
    if known.share == Choice::No || device.is_shared_freely() {
        return None;
    }
    let reservations = match facts.files.get(path) {
        Some(FileFact::Block(block)) => block.reservations,
        _ => Reservations::Never,
    };
    let (is_disk, is_avio) = (*storage == StorageType::Disk, *adapter == AdapterKind::AvioStor);
    let why = match (kind, reservations) {
        (DeviceKind::Disk, Reservations::Hold) if is_disk && is_avio => {
            if known.read_only == Choice::No {
                return None;
            }
            "its entry says READONLY=YES too, and the members of a cluster write; take one of the two back".into()
        }
        (DeviceKind::Disk, Reservations::Hold) if is_disk => {
            format!("reservations need the adapter avio_stor; write disk:avio_stor::disk:{path}")
        }
        (DeviceKind::Disk, Reservations::HoldOnOnePath) if is_disk => ONE_PATH_OF_SEVERAL.into(),
        _ => format!(
            "a {} ({}) is one guest's alone; images of dvds are shared, and whole SCSI disks (disk:avio_stor::disk:/dev/…)",
            kind.as_str(),
            storage.as_str()
        ),
    };
    Some(never(path, format!("'{path}' is marked SHARE=YES, and {why}")))
}

/// Why a disk that multipath joins is not shared.
pub const ONE_PATH_OF_SEVERAL: &str = "it is reached by several paths: the qemu-pr-helper of this VM Host would reserve it on one of them, and a guest that writes by another were kept out by itself";

/// What a guest wrote on one device is not looked for on another, and another's content is not its to change.
pub(super) fn another_device(
    config: &GuestConfig,
    device: &StorageDevice,
    known: &Registered,
) -> Option<Finding> {
    let path = &device.backing.path;
    let text = format!("{}; the guest starts once that is accepted", change(device, known)?);
    let ask = format!("make sure that {path} is the right disk for {}", config.name);
    Some(taken(path, text).ask(ask, accepting(path)?))
}

/// In what it is not the device it was, a sentence.
fn change(device: &StorageDevice, known: &Registered) -> Option<String> {
    let found = known.found_behind(device.kind, device.backing.storage)?;
    let kept = known.kept.as_ref()?;
    let path = &device.backing.path;
    let changed = match kept.compare(found) {
        Likeness::Same | Likeness::Grown => return None,
        Likeness::Shrunk => "is smaller than it was",
        Likeness::Other => "is another device than the one the guest was given",
    };
    let StoreIdentity { size, .. } = kept;
    Some(format!("'{path}' {changed}: it was {kept} ({size}) and is {found} ({})", found.size))
}

fn accepting(path: &str) -> Option<String> {
    let entry = EntryId::new(EntryType::Guest, path).ok()?;
    Some(format!("hpvmdevmgmt -m {}", quoted(&format!("{entry}:attr:IDENTIFIER=ACCEPT"))))
}

/// The same of a device that is to be copied, or linked: a copy of another device is none of the guest's disk.
#[must_use]
pub fn copied(source: &GuestConfig, device: &StorageDevice, facts: &HostFacts) -> Option<Problem> {
    let path = &device.backing.path;
    let (change, accept) = (change(device, facts.registered.get(path)?)?, accepting(path)?);
    let text = format!(
        "{change}; if {path} is the right disk for {}, `{accept}` accepts it, and then it is copied or linked",
        source.name
    );
    Some(Problem::error(path.clone(), text))
}

/// The same of a device that a copy would overwrite, where it is not the one that is known by its path.
#[must_use]
pub fn overwritten(
    config: &GuestConfig,
    device: &StorageDevice,
    facts: &HostFacts,
) -> Option<Problem> {
    let path = &device.backing.path;
    let Some(FileFact::Block(_)) = facts.files.get(path) else { return None };
    let Finding { item, text, remedy, .. } =
        another_device(config, device, facts.registered.get(path)?)?;
    Some(Problem { severity: Severity::Error, item, text, remedy })
}
