//! What is wrong with qcow2 images of a configuration: what they hold, what lies under them, and what is the base of others.

use hpvm_model::{
    Backing, DeviceKind, GuestConfig, GuestNumber, StorageDevice, StorageType, StoreRole, quoted,
};

use super::stores::{comers, noun, one_too_many, used_by_host, wrong_block, wrong_type};
use super::{Finding, Findings, never, note, registered, start_command, taken};
use crate::facts::{Below, Content, FileFact, HostFacts, Kept, Sharer, Standing};

pub(super) fn no_image(path: &str, content: &Content) -> Option<Finding> {
    let text = match content {
        Content::Qcow2(_) | Content::Unread => return None,
        Content::Unusable(why) => format!("the image '{path}' cannot be used: {why}"),
        Content::Other => format!("'{path}' is no qcow2 image; its storage type is file"),
    };
    Some(never(path, text))
}

/// What an image's header names could be anything: QEMU is told what lies below by the configuration, or nothing does. Where the
/// two do not agree on whether anything does, the guest would find other data than it has.
pub(super) fn other_depth(
    config: &GuestConfig,
    image: &Backing,
    below: Option<&Backing>,
    content: &Content,
) -> Option<Finding> {
    let path = &image.path;
    match (content, below) {
        (Content::Qcow2(Below::Named), None) => Some(never(
            path,
            format!(
                "'{path}' needs a backing file, and an image given to a guest has to stand alone, unless --layer says what lies below; `qemu-img convert -O qcow2` makes a copy that does"
            ),
        )),
        (Content::Qcow2(Below::Nothing), Some(Backing { storage, path: base })) => {
            let format = if *storage == StorageType::Qcow2 { "qcow2" } else { "raw" };
            let text = format!(
                "'{path}' says that nothing lies below it, and was given with --layer over '{base}', which the guest would find wherever the image holds nothing; an image that stands alone is added without --layer, and `qemu-img rebase -u -F {format} -b {} {}` says in one that belongs over it what lies below",
                quoted(base),
                quoted(path)
            );
            Some(never(path, text).ask(
                "give the guest the image without --layer, or say in the image what lies below",
                start_command(config),
            ))
        }
        _ => None,
    }
}

/// Disks that come with this change, raw, on files that hold an image: told, since the one who names such a file has most likely
/// mistaken its type. Of those there were, a guest may have written that into its disk.
pub(super) fn images_as_raw(
    config: &GuestConfig,
    before: Option<&GuestConfig>,
    facts: &HostFacts,
    all: &mut Findings,
) {
    let raw = (DeviceKind::Disk, StorageType::File);
    let comes =
        comers(config, before).filter(|device| (device.kind, device.backing.storage) == raw);
    for path in comes.map(|device| &device.backing.path) {
        if let Some(FileFact::Regular {
            content: Content::Qcow2(_) | Content::Unusable(_), ..
        }) = facts.files.get(path)
        {
            all.push(note(
                path,
                format!("'{path}' holds a qcow2 image, and storage type file gives the guest the image itself as its disk: what it writes destroys the image; storage type qcow2 gives it the disk that is in it"),
            ));
        }
    }
}

/// What lies under an image must be there and be a guest's to read, and nobody may write to it.
pub(super) fn layers(
    config: &GuestConfig,
    device: &StorageDevice,
    facts: &HostFacts,
    all: &mut Findings,
) {
    for (place, backing @ Backing { storage, path }) in device.layers.iter().enumerate() {
        let (noun, start) = (noun(*storage), start_command(config));
        let alone =
            StorageDevice { backing: backing.clone(), layers: Vec::new(), ..device.clone() };
        all.extend(registered::restricted(&alone, facts));
        all.extend(registered::may_have_restricted_name(&alone, facts));
        all.extend(used_by_host(config, &alone, facts));
        let known = facts.registered.get(path);
        all.extend(known.and_then(|known| registered::another_device(config, &alone, known)));
        match facts.files.get(path).unwrap_or(&FileFact::Missing) {
            FileFact::Missing => all.push(
                never(path, format!("the {noun} '{path}', on which the disk {} is built, does not exist", device.address))
                    .ask(format!("put the {noun} back at {path}"), start),
            ),
            FileFact::Unreadable(reason) => all.push(
                never(path, format!("the {noun} '{path}', on which the disk {} is built, cannot be used: {reason}", device.address))
                    .ask(format!("make {path} readable again"), start),
            ),
            FileFact::Regular { content, .. } if *storage == StorageType::Qcow2 => {
                all.extend(no_image(path, content));
                let below = device.layers.get(place + 1);
                all.extend(other_depth(config, backing, below, content));
            }
            FileFact::Regular { .. } if *storage == StorageType::File => {}
            FileFact::Block(block) if matches!(storage, StorageType::Disk | StorageType::Lv) => {
                all.extend(wrong_block(&alone, block));
            }
            other => all.push(never(path, wrong_type(path, other, *storage))),
        }
        let is_of_layer = |other: &&StorageDevice| {
            let store = other.backing.store().and_then(|path| facts.identity(path));
            let stores = facts.identity(path).zip(store);
            stores.is_some_and(|(layer, store)| facts.overlap(layer, store))
        };
        let mut writers = config.storage.iter().filter(|other| !other.is_shared_freely());
        let own = writers.find(is_of_layer);
        if let Some(own) = own {
            let text = format!(
                "'{path}', on which the disk {} is built, is the guest's disk at {} too, which would write to it",
                device.address, own.address
            );
            all.push(never(path, text).ask(one_too_many(config, own), start_command(config)));
        }
        let sharers = facts.identity(path).and_then(|identity| facts.sharers.get(&identity));
        let writer = sharers.into_iter().flatten().find(|sharer| sharer.writes());
        if let Some(Sharer { guest, address, .. }) = writer {
            let text = format!(
                "'{path}', on which the disk {} is built, is in use by the running guest '{guest}' ({address})",
                device.address
            );
            all.push(taken(path, text).ask(format!("stop '{guest}'"), start_command(config)));
        }
    }
}

/// What linked clones are built on is never written again while they are there. What is kept of removed ones can be purged, each
/// once nothing lies over its images any more; but that is of no use while another clone stays, which is its owner's.
pub(super) fn bases_of_clones(config: &GuestConfig, facts: &HostFacts, all: &mut Findings) {
    let devices =
        config.storage.iter().filter(|device| device.backing.storage != StorageType::Null);
    let mut clones: Vec<(&str, &Sharer)> = devices
        .flat_map(|device| {
            let path = device.backing.path.as_str();
            let sharers = facts.identity(path).and_then(|identity| facts.sharers.get(&identity));
            sharers.into_iter().flatten().map(move |sharer| (path, sharer))
        })
        .filter(|(_, sharer)| sharer.role == StoreRole::Layer)
        .collect();
    let kept: Vec<&Kept> = clones.iter().filter_map(|(_, clone)| clone.standing.kept()).collect();
    let purges = purges(&kept);
    let turn = |clone: &Sharer| {
        let kept = clone.standing.kept()?;
        purges.iter().position(|number| *number == kept.number)
    };
    clones.sort_by_key(|(_, clone)| (clone.standing.kept().is_some(), turn(clone)));
    let some_stay = clones.iter().any(|(_, clone)| turn(clone).is_none());
    for (path, Sharer { guest, address, standing, .. }) in clones {
        let kept = match standing {
            Standing::Present => "",
            Standing::Removed(_) => ", which was removed and is still kept,",
        };
        let text = format!(
            "'{path}' is the base of the linked clone '{guest}' ({address}){kept} and must not be written"
        );
        let found = taken(path, text);
        all.push(match standing {
            Standing::Removed(Kept { number, .. }) if !some_stay => found.ask(
                format!("if nobody needs '{guest}' any more, purge what is kept of it"),
                format!("hpvmremove -p {number} --purge"),
            ),
            _ => found.ask(
                format!("wait until no linked clone is built on '{path}' any more, or give '{}' a copy of it or another disk", config.name),
                start_command(config),
            ),
        });
    }
}

/// Those of them that can be purged, one after the other.
fn purges(kept: &[&Kept]) -> Vec<GuestNumber> {
    let mut purged: Vec<GuestNumber> = Vec::new();
    let can_be = |kept: &Kept, purged: &[GuestNumber]| {
        !purged.contains(&kept.number) && kept.needed_by.iter().all(|over| purged.contains(over))
    };
    while let Some(next) = kept.iter().find(|kept| can_be(kept, &purged)) {
        purged.push(next.number);
    }
    purged
}
