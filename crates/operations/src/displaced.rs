//! Files that a running guest has as disks and that are no more what they were: deleted, moved, exchanged or cut under it. Told by
//! hpvmstatus, `hpvm why`, the doctor, and a stop of the guest, with which a deleted one is lost.

use std::collections::BTreeMap;
use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::{io, iter};

use hpvm_app::snapshot::CutImage;
use hpvm_host::{answers, identity};
use hpvm_model::{Bytes, DeviceKind, FileIdentity, GuestConfig, StorageType, quoted};
use hpvm_plan::facts::FILE_BLOCK_BYTES;
use hpvm_plan::record::{Attached, Machine};

use crate::{VmHost, devdb, lost, stores};

/// A file that the machine has as a disk, or will have at its next reset, and that is no more under its name, or no more as
/// long as it was.
pub(crate) struct Displaced {
    pub(crate) path: String,
    how: Displacement,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Displacement {
    Away { instead: Instead, own: Whereabouts },
    Shorter { now: Bytes, before: Length },
}

/// How long a file was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Length {
    /// That of a guest's own raw disk, which it can be given again.
    Disk(Bytes),
    /// That of a raw disk under those of linked clones.
    Base(Bytes),
    /// An image's, when it was opened, or when its worker last saw it so; it may have grown since.
    Image(Bytes),
}

/// What is under the file's name now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Instead {
    Nothing,
    AnotherFile,
}

/// Where the guest's own file is.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Whereabouts {
    Unknown,
    Moved {
        to: PathBuf,
    },
    /// It has no name, and is gone when nobody has it open any more.
    Deleted {
        descriptor: PathBuf,
        /// By which descriptor a shell may keep it, another one for each file.
        kept_as: usize,
    },
}

/// What a device was given.
struct Opened {
    identity: Option<FileIdentity>,
    /// If it is the file of a disk.
    length: Option<Length>,
}

pub(crate) fn displaced_files(
    host: &VmHost,
    config: &GuestConfig,
    machine: &Machine,
) -> Vec<Displaced> {
    // Lengths are asked for before the look: who extends a file does that before it is written down.
    let presence = host.presence(config.number);
    let cut = presence.snapshot().map_or(&[][..], |snapshot| &snapshot.cut_images);
    let opened: BTreeMap<&str, Opened> =
        machine.held().flat_map(|attached| opened(host, attached, cut)).collect();
    let found = stores::found(opened.keys().copied());
    let changed = found.into_iter().filter_map(|(path, found)| {
        let opened = opened.get(path.as_str())?;
        let how = displacement(opened, found)?;
        Some((path, opened.identity, how))
    });
    let mut qemu = None;
    let displaced = changed.enumerate().map(|(index, (path, identity, mut how))| {
        if let (Displacement::Away { own, .. }, Some(identity)) = (&mut how, identity)
            && let Some(pid) = *qemu.get_or_insert_with(|| lost::qemu(host, config))
        {
            let look = move || whereabouts(pid, identity, DESCRIPTORS_OF_SHELL + index);
            *own = answers::in_time(look).unwrap_or(Whereabouts::Unknown);
        }
        Displaced { path, how }
    });
    displaced.collect()
}

/// A shell's own: its input and its outputs.
const DESCRIPTORS_OF_SHELL: usize = 3;

/// What was opened for a device, by its paths.
fn opened<'a>(
    host: &VmHost,
    attached: &'a Attached,
    cut: &[CutImage],
) -> impl Iterator<Item = (&'a str, Opened)> {
    let Attached { device, identity, image_length, layers, .. } = attached;
    let own = (*identity, *image_length);
    let under = layers.iter().map(|layer| (layer.identity, layer.image_length));
    let backings = device.backings().zip(iter::once(own).chain(under));
    backings.enumerate().filter_map(move |(depth, (backing, (identity, image_length)))| {
        let path = backing.store()?;
        let length = match (device.kind, backing.storage) {
            (DeviceKind::Disk, StorageType::File) => {
                let kept = devdb::kept_length(&host.registry, path);
                kept.map(if depth == 0 { Length::Disk } else { Length::Base })
            }
            _ => image_length.map(|opened| {
                let seen = cut.iter().find(|cut| cut.path == path).map(|cut| cut.length);
                Length::Image(seen.unwrap_or(opened).max(opened))
            }),
        };
        Some((path, Opened { identity, length }))
    })
}

fn displacement(opened: &Opened, found: io::Result<Metadata>) -> Option<Displacement> {
    let own = Whereabouts::Unknown;
    let found = match found {
        Ok(found) => found,
        Err(error) if stores::is_absence(&error) => {
            return Some(Displacement::Away { instead: Instead::Nothing, own });
        }
        Err(_) => return None,
    };
    let (now, before) = (identity::of_store(&found)?, opened.identity?);
    if now != before {
        return Some(Displacement::Away { instead: Instead::AnotherFile, own });
    }
    let (now, before) = (Bytes(found.len()), opened.length?);
    (now < before.bytes()).then_some(Displacement::Shorter { now, before })
}

impl Length {
    fn bytes(self) -> Bytes {
        match self {
            Length::Disk(bytes) | Length::Base(bytes) | Length::Image(bytes) => bytes,
        }
    }
}

/// As QEMU's descriptors tell whoever may see them.
fn whereabouts(pid: i32, identity: FileIdentity, kept_as: usize) -> Whereabouts {
    let own = |path: &Path| {
        let file = fs::metadata(path).ok().filter(Metadata::is_file)?;
        (identity::of_store(&file) == Some(identity)).then_some(file)
    };
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let mut descriptors = descriptors.map(|entry| entry.path());
    let Some((file, descriptor)) = descriptors.find_map(|path| Some((own(&path)?, path))) else {
        return Whereabouts::Unknown;
    };
    if file.nlink() == 0 {
        return Whereabouts::Deleted { descriptor, kept_as };
    }
    let name = fs::read_link(descriptor).ok().filter(|name| own(name).is_some());
    name.map_or(Whereabouts::Unknown, |to| Whereabouts::Moved { to })
}

impl Displaced {
    /// Whether what the guest writes to it goes with the guest.
    pub(crate) fn is_deleted(&self) -> bool {
        matches!(self.how, Displacement::Away { own: Whereabouts::Deleted { .. }, .. })
    }

    pub(crate) fn cause(&self) -> String {
        let path = &self.path;
        let (instead, own) = match &self.how {
            Displacement::Shorter { now, before } => {
                let least = if matches!(before, Length::Image(_)) { "at least " } else { "" };
                let before = before.bytes();
                return format!(
                    "{path} has become shorter, {now} of {least}{before}; the guest is not told, and what it had behind the end is lost"
                );
            }
            Displacement::Away { instead, own } => (instead, own),
        };
        let is = match (instead, own) {
            (Instead::Nothing, Whereabouts::Deleted { .. }) => "was deleted",
            (Instead::Nothing, _) => "is not there any more",
            (Instead::AnotherFile, Whereabouts::Deleted { .. }) => {
                "was deleted, and is another file now"
            }
            (Instead::AnotherFile, _) => "is another file now",
        };
        let end = if self.is_deleted() { ", and then all of that is lost" } else { "" };
        format!("{path} {is}; the guest goes on with what it has open, until it ends{end}")
    }

    pub(crate) fn cure(&self) -> String {
        let path = &self.path;
        let (instead, own) = match &self.how {
            Displacement::Shorter { before: Length::Base(_) | Length::Image(_), .. } => {
                return format!(
                    "save what the guest can still read from within it, and once it is off bring {path} back from a backup"
                );
            }
            Displacement::Shorter { before: Length::Disk(before), .. } => {
                let kib = before.0.next_multiple_of(FILE_BLOCK_BYTES) >> 10;
                return format!(
                    "make it as long as before, `hpvmdevmgmt -S {kib}K {}`, and bring what was lost back from a backup",
                    quoted(path)
                );
            }
            Displacement::Away { instead, own } => (instead, own),
        };
        let aside = format!("move what is at {path} now aside");
        let back = match instead {
            Instead::Nothing => format!("move the file back to {path}"),
            Instead::AnotherFile => format!("{aside}, and the guest's file back"),
        };
        match own {
            Whereabouts::Unknown => format!(
                "{back}; if it was deleted, save what is on the disk from within the guest before that ends"
            ),
            Whereabouts::Moved { to } => format!("{back}: it is {} now", to.display()),
            Whereabouts::Deleted { descriptor, kept_as } => {
                let first = match instead {
                    Instead::Nothing => String::new(),
                    Instead::AnotherFile => format!("{aside}; "),
                };
                format!(
                    "{first}before the guest is stopped, have a shell keep its file, `exec {kept_as}<{}`, and once the guest is off have that shell copy it back, `cp --sparse=always /proc/self/fd/{kept_as} {}`",
                    descriptor.display(),
                    quoted(path)
                )
            }
        }
    }
}
