//! What the VM Host mounts, swaps on and opens when it is asked to, whether it does so now or not: what /etc/fstab, /etc/crypttab
//! and the enabled units of systemd name, and the pools that ZFS imports.
//!
//! Called by `read` and `record`. The formats are `fstab`'s, `crypttab`'s, `units`' and `zpool`'s; how all of them name a device is here.

use std::fmt;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use super::places::Places;
use super::{crypttab, fstab, names, units, zpool};

/// More than any host has.
pub(super) const LINES_MAX: usize = 4096;

/// A table that is longer says the rest to nobody.
const TABLE_BYTES_MAX: u64 = 1 << 20;

/// What a device is kept for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Purpose {
    Mount(PathBuf),
    MountReadOnly(PathBuf),
    Swap,
    /// As an encrypted volume of this name.
    Open(String),
    /// As a member of a pool of ZFS.
    Pool,
}

impl Purpose {
    /// A mount of this type, or of one of these, with these options. The file system of optical media is only read.
    pub(super) fn mount<'a>(
        at: PathBuf,
        kind: &[u8],
        mut options: impl Iterator<Item = &'a [u8]>,
    ) -> Purpose {
        let mut kinds = kind.split(|byte| *byte == b',');
        match kinds.any(|kind| kind == b"iso9660") || options.any(|option| option == b"ro") {
            true => Purpose::MountReadOnly(at),
            false => Purpose::Mount(at),
        }
    }
}

/// What a device is kept for, and who says so.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Expected {
    pub purpose: Purpose,
    /// A table by its path, a unit by its name.
    pub says: String,
}

impl Expected {
    /// Nothing is written then.
    pub(super) fn is_read_only(&self) -> bool {
        matches!(self.purpose, Purpose::MountReadOnly(_))
    }
}

impl fmt::Display for Expected {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.purpose {
            Purpose::Mount(at) => write!(out, "is to be mounted at {}", names::shown(at))?,
            Purpose::MountReadOnly(at) => {
                write!(out, "is to be mounted read-only at {}", names::shown(at))?;
            }
            Purpose::Swap => out.write_str("is to be swap space")?,
            Purpose::Pool => out.write_str("is a member of a ZFS pool of this VM Host")?,
            Purpose::Open(name) => {
                let name = names::shown(Path::new(name));
                write!(out, "is to be opened as the encrypted volume {name}")?;
            }
        }
        write!(out, ", says {}", names::shown(Path::new(&self.says)))
    }
}

/// How a device is named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Named {
    /// By a path that is the device's wherever it is.
    Path(PathBuf),
    /// By what is written on the device, which whoever has it may change: udev's link for that.
    Content(PathBuf),
}

impl Named {
    pub(super) fn path(&self) -> &Path {
        let (Self::Path(path) | Self::Content(path)) = self;
        path
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Line {
    pub(super) named: Named,
    pub(super) purpose: Purpose,
}

/// All that any of them names; of what is named twice the first is told.
pub(super) fn all(places: &Places) -> Vec<(Named, Expected)> {
    let said = |says: &str, lines: Vec<Line>| {
        let says = says.to_owned();
        lines.into_iter().map(move |Line { named, purpose }| {
            let says = says.clone();
            (named, Expected { purpose, says })
        })
    };
    let fstab = fstab::lines(&table(&places.fstab).unwrap_or_default());
    let crypttab = crypttab::lines(&table(&places.crypttab).unwrap_or_default());
    let mut all: Vec<_> = said("/etc/fstab", fstab).collect();
    all.extend(said("/etc/crypttab", crypttab));
    let pools = zpool::lines(&table(&places.zpool).unwrap_or_default());
    all.extend(said("/etc/zfs/zpool.cache", pools));
    for (name, text) in units::enabled(&places.units) {
        all.extend(said(&name, units::line(&text).into_iter().collect()));
    }
    all
}

/// A table or a unit, as far as it is read.
pub(super) fn table(path: &Path) -> Option<Vec<u8>> {
    let is_file = fs::metadata(path).is_ok_and(|found| found.is_file());
    let mut text = Vec::new();
    let file = is_file.then(|| File::open(path).ok()).flatten()?;
    file.take(TABLE_BYTES_MAX).read_to_end(&mut text).ok()?;
    Some(text)
}

/// Tags, and the folders of udev's links for them. Paths below these folders are names of the same sort.
const TAGS: [(&str, &str); 4] = [
    ("UUID", "/dev/disk/by-uuid"),
    ("LABEL", "/dev/disk/by-label"),
    ("PARTUUID", "/dev/disk/by-partuuid"),
    ("PARTLABEL", "/dev/disk/by-partlabel"),
];

/// By a path or a tag, as mount(8) reads them.
pub(super) fn named(source: &Path) -> Option<Named> {
    if source.is_absolute() {
        let is_by_content = TAGS.iter().any(|(_, folder)| source.starts_with(folder));
        let path = source.to_owned();
        return Some(if is_by_content { Named::Content(path) } else { Named::Path(path) });
    }
    let (tag, value) = source.to_str()?.split_once('=')?;
    let (_, folder) = TAGS.iter().find(|(known, _)| *known == tag)?;
    let quoted = value.strip_prefix('"').and_then(|value| value.strip_suffix('"'));
    let name = names::link_name(quoted.unwrap_or(value));
    let is_name = !matches!(name.as_str(), "" | "." | "..");
    is_name.then(|| Named::Content(Path::new(folder).join(name)))
}
