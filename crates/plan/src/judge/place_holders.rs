//! What keeps an empty drive, or a place holder, from being what was meant by it. It keeps nobody from starting.

use hpvm_model::{DeviceKind, GuestConfig, StorageDevice, quoted};

use super::{Finding, note};
use crate::drives;
use crate::facts::{BlockFact, BlockKind, FileFact, HostFacts, Listing};

pub(super) fn judge(
    config: &GuestConfig,
    device: &StorageDevice,
    facts: &HostFacts,
) -> Option<Finding> {
    let path = &device.backing.path;
    let fact = facts.files.get(path)?;
    let text = match device.kind {
        DeviceKind::Dvd => empty_for_good(config, device, fact)?,
        _ if *fact == FileFact::Missing => {
            format!("'{path}' does not exist; it is only a place holder, and the device is empty")
        }
        _ => return None,
    };
    Some(note(path, text))
}

/// Why nothing can be put into an empty drive at the console, and what to do.
fn empty_for_good(config: &GuestConfig, device: &StorageDevice, fact: &FileFact) -> Option<String> {
    let path = &device.backing.path;
    let modify = |storage: &str, path: &str| {
        let (name, adapter, address) = (&config.name, device.adapter.as_str(), device.address);
        let statement = format!("dvd:{adapter}:{address}:{storage}:{path}");
        format!("`hpvmmodify -P {name} -m {}`", quoted(&statement))
    };
    let what = match fact {
        FileFact::Missing if drives::folder(device).is_none() => {
            return Some(format!(
                "'{path}' does not exist; the drive is empty until this VM Host has that device and it is put in at the console"
            ));
        }
        FileFact::Missing => {
            return Some(format!(
                "'{path}' does not exist, so the drive is empty and nothing can be chosen for it; make that folder before the guest's next start, or name another: {}",
                modify("null", "FOLDER")
            ));
        }
        FileFact::Folder(Listing::Closed) => {
            return Some(format!(
                "'{path}' cannot be read by the guest's worker, so nothing can be chosen from it; `chmod a+rx {}` lets it",
                quoted(path)
            ));
        }
        FileFact::Regular { .. } => {
            return Some(format!(
                "'{path}' is a file, and storage type null takes the folder of such files, so the drive stays empty; storage type file puts it in: {}",
                modify("file", path)
            ));
        }
        FileFact::Folder(Listing::Open)
        | FileFact::Block(BlockFact { kind: BlockKind::Optical | BlockKind::EmptyDrive, .. }) => {
            return None;
        }
        FileFact::Block(_) => "is a block device and no drive of optical media".to_owned(),
        FileFact::Generic { .. } => "is a generic SCSI device".to_owned(),
        FileFact::Special(what) => format!("is a {what}"),
        FileFact::Unreadable(reason) => format!("cannot be looked at ({reason})"),
    };
    Some(format!(
        "'{path}' {what}, so the drive stays empty; name a folder of images: {}",
        modify("null", "FOLDER")
    ))
}
