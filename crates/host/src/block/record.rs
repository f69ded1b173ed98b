//! Records what [`Blocks`](super::Blocks) would read of a machine, as a folder that [`Places::recorded`] reads back.
//!
//! Called by the example `record_blocks`, on hosts whose set-up is worth a test. Only files that are read are copied, links
//! stay links, and no device is opened.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use super::places::{self, Places};
use super::{DeviceNumber, boot, expected, mounts, read, sysfs, units};

/// The values in a device's folder that are read.
const VALUES: [&str; 16] = [
    "dev",
    "size",
    "ro",
    "removable",
    "partition",
    "wwid",
    "serial",
    "queue/logical_block_size",
    "device/wwid",
    "device/serial",
    "device/vpd_pg80",
    "dm/name",
    "dm/uuid",
    "md/uuid",
    "loop/backing_file",
    "loop/offset",
];

/// Writes the recording into `folder`, which must not exist.
pub fn record(places: &Places, folder: &Path) -> io::Result<()> {
    fs::create_dir(folder)?;
    let mut paths = BTreeSet::new();
    for number in sysfs::entries(&places.sysfs.join("dev/block")) {
        let Ok(number) = number.parse::<DeviceNumber>() else { continue };
        device(places, number, folder)?;
        if let Some(kind) = boot::recorded(places, number) {
            let record = folder.join("udev").join(format!("b{number}"));
            write(&record, format!("E:ID_PART_ENTRY_TYPE={kind}\n").as_bytes())?;
        }
        paths.extend(sysfs::backing_path(&sysfs::folder(&places.sysfs, number)));
    }
    btrfs(places, folder)?;
    paths.extend(tables(places, folder)?);
    let lines = paths.iter().filter_map(|path| places::line(path, &places.lead(path).ok()?));
    fs::write(folder.join("leads"), lines.flatten().collect::<Vec<u8>>())
}

fn device(places: &Places, number: DeviceNumber, folder: &Path) -> io::Result<()> {
    let Some(name) = sysfs::name(&places.sysfs, number) else { return Ok(()) };
    let link = Path::new("dev/block").join(number.to_string());
    let from = places.sysfs.join(&link);
    let Ok(real) = fs::canonicalize(&from) else { return Ok(()) };
    let Ok(root) = fs::canonicalize(&places.sysfs) else { return Ok(()) };
    let Ok(below) = real.strip_prefix(&root) else { return Ok(()) };
    let to = folder.join("sys").join(below);
    fs::create_dir_all(&to)?;
    for value in VALUES {
        if let Ok(bytes) = fs::read(real.join(value)) {
            write(&to.join(value), &bytes)?;
        }
    }
    for ties in ["slaves", "holders"] {
        for tie in sysfs::entries(&real.join(ties)) {
            copy_link(&real.join(ties).join(&tie), &to.join(ties).join(&tie))?;
        }
    }
    copy_link(&from, &folder.join("sys").join(&link))?;
    for class in ["class/block", "block"] {
        let link = Path::new(class).join(&name);
        copy_link(&places.sysfs.join(&link), &folder.join("sys").join(&link))?;
    }
    Ok(())
}

fn btrfs(places: &Places, folder: &Path) -> io::Result<()> {
    for uuid in sysfs::entries(&places.sysfs.join("fs/btrfs")) {
        let devices = Path::new("fs/btrfs").join(uuid).join("devices");
        for name in sysfs::entries(&places.sysfs.join(&devices)) {
            write(&folder.join("sys").join(&devices).join(name), b"")?;
        }
    }
    Ok(())
}

/// Copies mounts, swap areas, and what says what will be mounted, swapped on and opened; the paths they name.
fn tables(places: &Places, folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    let own = places.proc.join("self/mountinfo");
    if let Ok(table) = fs::read(places.proc.join("1/mountinfo")).or_else(|_| fs::read(own)) {
        write(&folder.join("proc/1/mountinfo"), &table)?;
        paths.extend(read::read_mounts(&places.proc).into_iter().flat_map(|mount| mount.devices));
    }
    if let Ok(table) = fs::read(places.proc.join("swaps")) {
        write(&folder.join("proc/swaps"), &table)?;
        paths.extend(mounts::swaps(&table));
    }
    for (table, name) in
        [(&places.fstab, "fstab"), (&places.crypttab, "crypttab"), (&places.zpool, "zpool.cache")]
    {
        if let Ok(table) = fs::read(table) {
            write(&folder.join(name), &table)?;
        }
    }
    for name in sysfs::entries(&places.proc.join("fs/jbd2")) {
        write(&folder.join("proc/fs/jbd2").join(name), b"")?;
    }
    for (name, text) in units::enabled(&places.units) {
        let units = folder.join("units");
        write(&units.join(&name), &text)?;
        fs::create_dir_all(units.join("recorded.wants"))?;
        symlink(Path::new("..").join(&name), units.join("recorded.wants").join(&name))?;
    }
    paths.extend(expected::all(places).iter().map(|(named, _)| named.path().to_owned()));
    Ok(paths)
}

fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::write(path, bytes)
}

/// Copies a link when there is one.
fn copy_link(from: &Path, to: &Path) -> io::Result<()> {
    let Ok(target) = fs::read_link(from) else { return Ok(()) };
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent)?;
    }
    symlink(target, to)
}
