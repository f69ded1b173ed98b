//! What is wrong with the backing stores of a configuration: whether each is what its storage type says, and who else has
//! it. What holds for qcow2 images alone is beside it.

use std::collections::BTreeMap;

use hpvm_model::{Bytes, DeviceKind, GuestConfig, StorageDevice, StorageType, StoreRole, quoted};

use super::{
    Finding, Findings, Weight, images, never, note, place_holders, registered, start_command, taken,
};
use crate::facts::{
    BlockFact, BlockKind, Ending, FILE_BLOCK_BYTES, FileFact, FileIdentity, HostFacts, HostUse,
    Kept, Peripheral, Sharer, Standing, Tenancy, Writable,
};
use crate::record::Sharing;

pub(super) fn judge(config: &GuestConfig, facts: &HostFacts, all: &mut Findings) {
    for device in &config.storage {
        let path = &device.backing.path;
        if device.backing.storage == StorageType::Null {
            let restricted = registered::restricted(device, facts);
            all.extend(restricted.or_else(|| place_holders::judge(config, device, facts)));
            all.extend(registered::holds_other_than_images(device, facts));
            all.extend(registered::may_have_restricted_name(device, facts));
            continue;
        }
        let others = all.len();
        let restricted = registered::restricted(device, facts);
        match facts.identity(path).and(restricted) {
            // What type it would be of is no matter then.
            Some(restricted) => all.push(restricted),
            None => store(config, device, facts, all),
        }
        all.extend(used_by_host(config, device, facts));
        // What cannot back a device at all needs no further reason.
        if all[others..].iter().all(|finding| finding.weight != Weight::Never) {
            registered::judge(config, device, facts, all);
        }
        let Some(identity) = facts.identity(path) else { continue };
        let sharing = facts.sharing(device);
        shared(config, device, sharing, facts.sharers.get(&identity), all);
    }
    images::bases_of_clones(config, facts, all);
    for device in &config.storage {
        images::layers(config, device, facts, all);
    }
}

/// Whoever has a store already is named to who comes, wherever in the guest that is.
pub(super) fn used_twice(
    config: &GuestConfig,
    before: Option<&GuestConfig>,
    facts: &HostFacts,
    all: &mut Findings,
) {
    let had_it = |device: &StorageDevice| {
        let had = before.and_then(|before| before.device_at(device.address));
        had.is_some_and(|had| had.backing == device.backing)
    };
    let (had, come): (Vec<_>, Vec<_>) = config.storage.iter().partition(|device| had_it(device));
    let mut users: BTreeMap<FileIdentity, &StorageDevice> = BTreeMap::new();
    for device in had.into_iter().chain(come) {
        let Some(path) = device.backing.store() else { continue };
        let Some(identity) = facts.identity(path) else { continue };
        let others = facts.overlaps.get(&identity).into_iter().flatten();
        let users_of_it = std::iter::once(&identity).chain(others).filter_map(|s| users.get(s));
        let mut refusing = users_of_it.filter(|user| !may_both_have(user, device, facts));
        let Some(&first) = refusing.next() else {
            users.entry(identity).or_insert(device);
            continue;
        };
        let (first_path, first_at, at) = (&first.backing.path, first.address, device.address);
        let twice = match (facts.identity(first_path) == Some(identity), had_it(first)) {
            (true, true) => format!("'{path}' backs {first_at} already"),
            (true, false) => format!("'{path}' backs both {first_at} and {at}"),
            (false, true) => {
                format!("'{path}' shares bytes with '{first_path}', which backs {first_at} already")
            }
            (false, false) => {
                format!("'{path}' for {at} shares bytes with '{first_path}' for {first_at}")
            }
        };
        let text = format!("{twice}; a backing store is used once in a guest");
        all.push(
            never(device.to_string(), text)
                .ask(one_too_many(config, device), start_command(config)),
        );
    }
}

/// Who only reads images keeps nobody from them, and two paths to a shared disk are two to the disk.
fn may_both_have(one: &StorageDevice, other: &StorageDevice, facts: &HostFacts) -> bool {
    let is_shared = |device| facts.sharing(device) == Sharing::Reserved;
    let identity = |device: &StorageDevice| facts.identity(&device.backing.path);
    one.is_shared_freely() && other.is_shared_freely()
        || is_shared(one) && is_shared(other) && identity(one) != identity(other)
}

/// Which of two devices goes is the owner's to say; the command names one.
pub(super) fn one_too_many(config: &GuestConfig, device: &StorageDevice) -> String {
    format!(
        "take one of the two from the guest (`hpvmmodify -P {} -d {}`), or give it another store",
        config.name,
        quoted(&device.to_string())
    )
}

/// Whether a backing store is there and what its storage type says.
fn store(config: &GuestConfig, device: &StorageDevice, facts: &HostFacts, all: &mut Findings) {
    let StorageDevice { kind, backing, .. } = device;
    let (path, kind) = (&backing.path, kind.as_str());
    let (noun, start) = (noun(backing.storage), start_command(config));
    let fact = facts.files.get(path).unwrap_or(&FileFact::Missing);
    match (fact, backing.storage) {
        (FileFact::Missing, _) => all.push(
            never(path, format!("the {kind}'s {noun} '{path}' does not exist"))
                .ask(format!("put the {noun} back at {path}"), start),
        ),
        (FileFact::Unreadable(reason), _) => all.push(
            never(path, format!("the {kind}'s {noun} '{path}' cannot be used: {reason}"))
                .ask(format!("make {path} readable again"), start),
        ),
        (FileFact::Folder(_), StorageType::File) if device.kind == DeviceKind::Dvd => {
            all.push(never(
                path,
                format!("'{path}' is a folder; a dvd with a folder of images is written dvd:{}::null:{path}", device.adapter.as_str()),
            ));
        }
        (FileFact::Regular { size, writable, content, .. }, StorageType::Qcow2) => {
            all.extend(images::no_image(path, content));
            all.extend(images::other_depth(
                config,
                &device.backing,
                device.layers.first(),
                content,
            ));
            all.extend(not_writable(config, device, facts, *writable));
            all.extend(too_small(config, device, *size));
        }
        (FileFact::Regular { size, writable, ending, .. }, StorageType::File) => {
            all.extend(not_writable(config, device, facts, *writable));
            all.extend(too_small(config, device, *size));
            all.extend(uneven(device, facts, *size, *ending));
        }
        (FileFact::Block(block), StorageType::Disk | StorageType::Lv) => {
            all.extend(wrong_block(device, block));
            all.extend(not_writable(config, device, facts, block.writable));
            match block.kind {
                BlockKind::Optical => {}
                BlockKind::EmptyDrive => all.extend(empty_drive(device)),
                BlockKind::Volume | BlockKind::Other => {
                    all.extend(too_small(config, device, block.size));
                }
            }
        }
        (FileFact::Generic { peripheral, .. }, StorageType::Attach) => {
            all.extend(wrong_peripheral(device, *peripheral));
        }
        (other, storage) => all.push(never(path, wrong_type(path, other, storage))),
    }
}

/// A guest that writes to what the host itself uses destroys both, and one that reads it learns what is not its own. An image
/// that the host only reads is no secret.
pub(super) fn used_by_host(
    config: &GuestConfig,
    device: &StorageDevice,
    facts: &HostFacts,
) -> Option<Finding> {
    let path = &device.backing.path;
    let is_image = device.kind == DeviceKind::Dvd && device.backing.storage == StorageType::File;
    let uses = facts.used_by_host.get(path).into_iter().flatten();
    let found: Vec<&HostUse> = uses.filter(|host| !is_image || !host.is_read_only).collect();
    (!found.is_empty()).then(|| {
        let uses = found.iter().map(|host| &*host.what).collect::<Vec<_>>().join("; ");
        if let Some(name) = registered::lifted_by(path, facts) {
            return note(
                path,
                format!("'{path}' is in use by this VM Host and given to the guest all the same, since rdev:{name} says ALLOW=GUEST: {uses}"),
            );
        }
        let finding = never(
            path,
            format!("'{path}' is in use by this VM Host and is not given to a guest: {uses}"),
        );
        match ended_by(&found) {
            Some(commands) => finding.ask(
                format!("if nobody on this VM Host needs it any more, `{commands}` sets {path} free"),
                start_command(config),
            ),
            None => finding,
        }
    })
}

/// One line that ends all of these uses, where commands do. What several of them lie on goes last.
fn ended_by(uses: &[&HostUse]) -> Option<String> {
    let mut commands: Vec<&str> = Vec::new();
    for HostUse { ended_by, .. } in uses {
        if ended_by.is_empty() {
            return None;
        }
        commands.retain(|known| !ended_by.iter().any(|command| command == known));
        commands.extend(ended_by.iter().map(String::as_str));
    }
    Some(commands.join(" && "))
}

pub(super) fn noun(storage: StorageType) -> &'static str {
    match storage {
        StorageType::File | StorageType::Qcow2 | StorageType::Null => "file",
        StorageType::Disk => "block device",
        StorageType::Lv => "logical volume",
        StorageType::Attach => "SCSI device",
    }
}

/// What a path leads to is not what its storage type says: tells which type would be right, where there is one.
pub(super) fn wrong_type(path: &str, fact: &FileFact, storage: StorageType) -> String {
    let (found, right) = match fact {
        FileFact::Regular { .. } => ("a regular file", Some("file")),
        FileFact::Block(BlockFact { kind: BlockKind::Volume, .. }) => {
            ("a logical volume", Some("lv"))
        }
        FileFact::Block(_) => ("a block device", Some("disk")),
        FileFact::Generic { .. } => ("a generic SCSI device", Some("attach")),
        FileFact::Folder(_) => ("a folder", None),
        FileFact::Special(what) => (*what, None),
        FileFact::Missing | FileFact::Unreadable(_) => ("nothing", None),
    };
    let wanted = match storage {
        StorageType::File | StorageType::Qcow2 => "a regular file",
        StorageType::Disk => "a block device",
        StorageType::Lv => "a logical volume",
        StorageType::Attach => "a generic SCSI device such as /dev/sg0",
        StorageType::Null => "nothing",
    };
    let hint = right.map_or_else(String::new, |right| format!("; its storage type is {right}"));
    let article = if found.starts_with("a ") || found == "nothing" { "" } else { "a " };
    format!(
        "'{path}' is {article}{found}, and storage type {} needs {wanted}{hint}",
        storage.as_str()
    )
}

/// The guest has the drive all the same, and finds in it what is put there later.
fn empty_drive(device: &StorageDevice) -> Option<Finding> {
    let path = &device.backing.path;
    (device.kind == DeviceKind::Dvd).then(|| {
        note(path, format!("the drive '{path}' has no medium; the guest finds an empty drive, and the medium once there is one"))
    })
}

pub(super) fn wrong_block(device: &StorageDevice, block: &BlockFact) -> Option<Finding> {
    let path = &device.backing.path;
    let text = match (device.kind, device.backing.storage, block.kind) {
        (DeviceKind::Disk, StorageType::Lv, BlockKind::Other) => {
            format!("'{path}' is no logical volume of LVM; its storage type is disk")
        }
        (DeviceKind::Disk, _, BlockKind::Optical | BlockKind::EmptyDrive) => {
            format!("'{path}' is a drive of optical media, which a dvd can have and a disk cannot")
        }
        (DeviceKind::Dvd, _, BlockKind::Volume | BlockKind::Other) => {
            format!(
                "'{path}' is no drive of optical media; a dvd takes such a drive or an image (dvd:{}::file:/path)",
                device.adapter.as_str()
            )
        }
        _ => return None,
    };
    Some(never(path, text))
}

fn wrong_peripheral(device: &StorageDevice, peripheral: Peripheral) -> Option<Finding> {
    let wanted = match device.kind {
        DeviceKind::Tape => Peripheral::Tape,
        DeviceKind::Changer => Peripheral::Changer,
        DeviceKind::Burner => Peripheral::Optical,
        DeviceKind::Disk | DeviceKind::Dvd => return None,
    };
    if peripheral == wanted {
        return None;
    }
    let found = match peripheral {
        Peripheral::Tape => "a tape".into(),
        Peripheral::Changer => "a changer".into(),
        Peripheral::Optical => "a drive of optical media".into(),
        Peripheral::Other(number) => format!("a SCSI device of type {number:#04x}"),
    };
    let (path, kind) = (&device.backing.path, device.kind.as_str());
    Some(never(path, format!("'{path}' is {found} and cannot be attached as a {kind}")))
}

fn not_writable(
    config: &GuestConfig,
    device: &StorageDevice,
    facts: &HostFacts,
    writable: Writable,
) -> Option<Finding> {
    let path = &device.backing.path;
    let is_written = device.kind == DeviceKind::Disk && !facts.is_read_only(path);
    (writable == Writable::No && is_written).then(|| {
        let (entry, attribute) =
            (quoted(&format!("gdev:{path}")), quoted(&format!("gdev:{path}:attr:READONLY=YES")));
        let text = format!(
            "'{path}' may not be written, and a disk is; where guests are only to read it, `hpvmdevmgmt -a {entry}` makes an entry for it and `hpvmdevmgmt -m {attribute}` says so"
        );
        never(path, text).ask(format!("make {path} writable"), start_command(config))
    })
}

fn too_small(config: &GuestConfig, device: &StorageDevice, size: Bytes) -> Option<Finding> {
    let (path, kind) = (&device.backing.path, device.kind.as_str());
    let least = device.kind.block_bytes();
    if size.0 >= least {
        return None;
    }
    let wanted = format!(
        "File size of: {} (bytes) for {kind} backing file: {path} must be equal to or greater than: {least} (bytes), or",
        size.0
    );
    if !device.hangs_firmware(size) {
        let text = format!("{wanted} the device may not show up in the guest when booted.");
        return Some(note(path, text));
    }
    let remedy = match (device.kind, device.backing.storage) {
        (DeviceKind::Disk, StorageType::File) => {
            format!("give the file a size (`hpvmdevmgmt -S SIZE {}`)", quoted(path))
        }
        _ => format!("give the {kind} a store of that size"),
    };
    let remedy = format!("{remedy}, or put the {kind} on an avio_stor adapter");
    let text = format!("{wanted} the guest does not boot: on scsi its firmware hangs; {remedy}");
    Some(taken(path, text).ask(remedy, start_command(config)))
}

/// Place holders that come with this change and name a folder: only a drive has something to choose from there.
pub(super) fn folders_of_no_drive(
    config: &GuestConfig,
    before: Option<&GuestConfig>,
    facts: &HostFacts,
    all: &mut Findings,
) {
    for device in comers(config, before).filter(|device| device.is_place_holder()) {
        let path = &device.backing.path;
        if let Some(FileFact::Folder(_)) = facts.files.get(path) {
            all.push(never(
                path,
                format!("'{path}' is a folder, which only a dvd can have: dvd:{}::null:{path}; a disk of storage type null is a place holder", device.adapter.as_str()),
            ));
        }
    }
}

/// Disks that come with this change and were a removed guest's, which would come back with what is written to them now.
pub(super) fn disks_of_removed(
    config: &GuestConfig,
    before: Option<&GuestConfig>,
    facts: &HostFacts,
    all: &mut Findings,
) {
    for device in comers(config, before) {
        let path = &device.backing.path;
        let sharers = facts.identity(path).and_then(|identity| facts.sharers.get(&identity));
        for Sharer { guest, address, role, standing, .. } in sharers.into_iter().flatten() {
            if let (StoreRole::Store, Standing::Removed(Kept { number, .. })) = (role, standing) {
                let text = format!(
                    "'{path}' is also configured in guest '{guest}' ({address}), which was removed and is still kept: brought back, it would find what is written to the {} meanwhile",
                    device.kind.as_str()
                );
                all.push(note(path, text).ask(
                    format!("if nobody needs '{guest}' any more, purge what is kept of it"),
                    format!("hpvmremove -p {number} --purge"),
                ));
            }
        }
    }
}

/// What the guest did not have before, at any address.
pub(super) fn comers<'a>(
    config: &'a GuestConfig,
    before: Option<&'a GuestConfig>,
) -> impl Iterator<Item = &'a StorageDevice> {
    config.storage.iter().filter(move |device| {
        let was_there =
            |before: &GuestConfig| before.storage.iter().any(|b| b.backing == device.backing);
        !before.is_some_and(was_there)
    })
}

/// QEMU neither writes to a file that ends within a block nor makes it longer.
fn uneven(
    device: &StorageDevice,
    facts: &HostFacts,
    size: Bytes,
    ending: Ending,
) -> Option<Finding> {
    let path = &device.backing.path;
    let is_written = device.kind == DeviceKind::Disk && !facts.is_read_only(path);
    let next = size.0.next_multiple_of(FILE_BLOCK_BYTES);
    (is_written && ending == Ending::WithinBlock).then(|| {
        let text = format!(
            "'{path}' has {} bytes, which is no whole number of blocks of its file system; extended to {next} bytes it can be a disk",
            size.0
        );
        never(path, text).run(format!("hpvmdevmgmt -S {}K {}", next >> 10, quoted(path)))
    })
}

/// Nobody shares a disk in silence. A disk keeps apart who comes by different paths and nobody else (SPC-4, 5.13.1: a
/// reservation is of an I_T nexus).
fn shared_disk(path: &str, sharer: &Sharer) -> Finding {
    let Sharer { guest, address, tenancy, .. } = sharer;
    let whom = if sharer.holds_it() { "the running guest" } else { "the guest" };
    let shared = format!("'{path}' is shared with {whom} '{guest}' ({address})");
    match tenancy {
        Tenancy::SharedBySamePath => note(
            path,
            format!(
                "{shared}, by the same path: to the disk both are one, and a reservation of one does not keep the other out"
            ),
        ),
        _ => note(
            path,
            format!("{shared}, which has it by another path; reservations keep them apart"),
        ),
    }
}

/// Images of dvds are read only and shared freely, with whoever reads them too; a disk is shared if all who have it share it;
/// anything else is one running guest's.
fn shared(
    config: &GuestConfig,
    device: &StorageDevice,
    sharing: Sharing,
    sharers: Option<&Vec<Sharer>>,
    all: &mut Findings,
) {
    let path = &device.backing.path;
    for sharer in sharers.into_iter().flatten() {
        let Sharer { guest, address, role, tenancy, .. } = sharer;
        // What lies under another's disk is no disk of its own, and what a removed guest had is anybody's.
        if *role == StoreRole::Layer || sharer.standing != Standing::Present {
            continue;
        }
        if sharing == Sharing::Reserved && *tenancy != Tenancy::Alone {
            all.push(shared_disk(path, sharer));
            continue;
        }
        all.push(if sharer.holds_it() {
            taken(path, format!("'{path}' is in use by the running guest '{guest}' ({address})"))
                .ask(
                    format!("wait until '{guest}' is stopped or has given the {} up", device.kind.as_str()),
                    start_command(config),
                )
        } else {
            note(path, format!("'{path}' is also configured in guest '{guest}' ({address}); only one of the two can run at a time"))
        });
    }
}
