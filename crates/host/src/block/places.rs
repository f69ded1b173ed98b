//! Where the kernel's facts are read: this machine's own /sys, /proc and /dev, or a recording of another's.
//!
//! Called by whoever reads [`Blocks`](super::Blocks). A recording is a folder as `record` writes it:
//!
//! ```text
//! sys/  proc/     the files that were read, and the links between them
//! fstab           /etc/fstab
//! crypttab        /etc/crypttab
//! zpool.cache     /etc/zfs/zpool.cache
//! units/          the enabled units of systemd
//! udev/           what udev wrote of each device
//! leads           one path a line and what it led to there: `block 8:1 PATH` or `file DEVICE INODE MOUNT PATH`
//! ```

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use hpvm_model::FileIdentity;

use super::lead::{self, FileLead, Lead};
use super::names;

/// The roots to read from.
#[derive(Clone, Debug)]
pub struct Places {
    pub sysfs: PathBuf,
    pub proc: PathBuf,
    pub dev: PathBuf,
    /// The table of what is mounted on demand.
    pub fstab: PathBuf,
    /// That of encrypted volumes.
    pub crypttab: PathBuf,
    /// That of the pools that ZFS imports when the machine starts.
    pub zpool: PathBuf,
    /// The administrator's units of systemd.
    pub units: PathBuf,
    /// udev's records, a file `bMAJOR:MINOR` for each device.
    pub udev: PathBuf,
    pub leads: Leads,
}

/// How paths that the kernel names are followed.
#[derive(Clone, Debug)]
pub enum Leads {
    Live,
    Recorded(BTreeMap<PathBuf, Lead>),
}

impl Default for Places {
    /// This machine.
    fn default() -> Self {
        Self {
            sysfs: "/sys".into(),
            proc: "/proc".into(),
            dev: "/dev".into(),
            fstab: "/etc/fstab".into(),
            crypttab: "/etc/crypttab".into(),
            zpool: "/etc/zfs/zpool.cache".into(),
            units: "/etc/systemd/system".into(),
            udev: "/run/udev/data".into(),
            leads: Leads::Live,
        }
    }
}

impl Places {
    /// A recording, or a tree made to look like one.
    pub fn recorded(folder: &Path) -> io::Result<Self> {
        let leads = fs::read(folder.join("leads"))?;
        Ok(Self {
            sysfs: folder.join("sys"),
            proc: folder.join("proc"),
            dev: folder.join("dev"),
            fstab: folder.join("fstab"),
            crypttab: folder.join("crypttab"),
            zpool: folder.join("zpool.cache"),
            units: folder.join("units"),
            udev: folder.join("udev"),
            leads: Leads::Recorded(leads.split(|byte| *byte == b'\n').filter_map(parse).collect()),
        })
    }

    /// What `path` leads to.
    pub fn lead(&self, path: &Path) -> io::Result<Lead> {
        match &self.leads {
            Leads::Live => lead::live(self, path),
            Leads::Recorded(leads) => {
                leads.get(path).cloned().ok_or_else(|| io::ErrorKind::NotFound.into())
            }
        }
    }
}

fn parse(line: &[u8]) -> Option<(PathBuf, Lead)> {
    let mut words = line.split(|byte| *byte == b' ');
    let mut text = || std::str::from_utf8(words.next()?).ok();
    let lead = match text()? {
        "block" => Lead::Block(text()?.parse().ok()?),
        "file" => {
            let device = text()?.parse().ok()?;
            let inode = text()?.parse().ok()?;
            let mount = text()?.parse().ok();
            Lead::File(FileLead { identity: FileIdentity { device, inode }, mount })
        }
        _ => return None,
    };
    Some((names::unescaped(words.next()?), lead))
}

/// The line of a recording that [`parse`] reads; `None` for what nobody asks a recording for.
pub(super) fn line(path: &Path, lead: &Lead) -> Option<Vec<u8>> {
    let mut line = match lead {
        Lead::Block(number) => format!("block {number} "),
        Lead::File(FileLead { identity, mount }) => {
            let mount = mount.map_or_else(|| "-".to_owned(), |mount| mount.to_string());
            format!("file {} {} {mount} ", identity.device, identity.inode)
        }
        Lead::Character(_) | Lead::Other => return None,
    }
    .into_bytes();
    line.extend(names::escaped(path));
    line.push(b'\n');
    Some(line)
}
