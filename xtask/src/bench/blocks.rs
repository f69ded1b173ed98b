//! The row about the VM Host's own disks: hpvmhostrdev on a machine of 1,000 block devices. It is made of files that look like
//! /sys and what of /proc names devices, which stand in the place of those in a mount namespace of the command alone.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::Effort;
use super::house::House;
use super::process::timed;
use super::report::{Row, Verdict};
use super::statistics::Series;

/// A partition on each disk, and a mounted volume on each second partition.
const DISKS: usize = 400;
const TARGET_MS: f64 = 100.0;

/// Puts the files of `$1` into their places and becomes the command that follows.
const IN_ITS_PLACE: &str = "tree=$1; shift
mount --bind $tree/sys /sys
mount --bind $tree/mountinfo /proc/1/mountinfo
mount --bind $tree/swaps /proc/swaps
exec \"$@\"";

pub(super) fn measure(effort: &Effort) -> Result<Vec<Row>> {
    let house = House::new()?;
    let tree = house.root.join("tree");
    make(&tree)?;
    let (mut whole, mut nothing) = (Series::default(), Series::default());
    for turn in 0..=effort.runs(15) {
        let printed = timed(&mut on(&tree, &house.command(&["hpvm", "hostrdev"])))?;
        let added = printed.0.lines().filter(|line| line.starts_with("+ ")).count();
        ensure!(added == DISKS / 2 * 3, "{added} devices in use:\n{}", printed.0);
        let (_, before) = timed(&mut on(&tree, &Command::new("true")))?;
        house.run(&["hpvmhostrdev", "-d"])?;
        if turn > 0 {
            whole.push(printed.1);
            nothing.push(before);
        }
    }
    let series = whole.over(&nothing);
    Ok(vec![Row {
        what: "`hpvmhostrdev`, 1,000 block devices, 600 of them in use and new to it".into(),
        peer: String::new(),
        target: "100 ms",
        measured: series.to_string(),
        verdict: Verdict::of(series.median() <= TARGET_MS),
    }])
}

/// The same command where the tree stands for the machine.
fn on(tree: &Path, command: &Command) -> Command {
    let mut whole = Command::new("unshare");
    whole.args(["--mount", "--map-root-user", "sh", "-ec", IN_ITS_PLACE, "sh"]).arg(tree);
    whole.arg(command.get_program()).args(command.get_args());
    command.get_envs().for_each(|(name, value)| match value {
        Some(value) => drop(whole.env(name, value)),
        None => drop(whole.env_remove(name)),
    });
    whole
}

fn make(tree: &Path) -> Result<()> {
    for folder in ["dev/block", "class/block", "block", "fs/btrfs"] {
        fs::create_dir_all(tree.join("sys").join(folder))?;
    }
    let mut mounts = String::new();
    for n in 0..DISKS {
        let disk = Device { name: format!("sd{n}"), below: None, number: format!("8:{}", 2 * n) };
        let partition = Device {
            name: format!("sd{n}p1"),
            below: Some(disk.name.clone()),
            number: format!("8:{}", 2 * n + 1),
        };
        disk.make(tree, &[("removable", "0"), ("device/wwid", &format!("naa.{n:016x}"))])?;
        partition.make(tree, &[("partition", "1")])?;
        if n % 2 == 0 {
            let volume =
                Device { name: format!("dm-{n}"), below: None, number: format!("253:{n}") };
            let (name, uuid) = (format!("vg{n}-data"), format!("LVM-{n}"));
            volume.make(tree, &[("dm/name", &name), ("dm/uuid", &uuid)])?;
            volume.stand_on(tree, &partition)?;
            let number = &volume.number;
            mounts +=
                &format!("{} 1 {number} / /srv/{n} rw - ext4 /dev/mapper/{name} rw\n", 100 + n);
        }
    }
    fs::write(tree.join("mountinfo"), mounts)?;
    fs::write(tree.join("swaps"), "Filename Type Size Used Priority\n").context("making the tree")
}

/// A device of the tree; a partition is below its disk.
struct Device {
    name: String,
    below: Option<String>,
    number: String,
}

impl Device {
    fn folder(&self) -> PathBuf {
        let disk = self.below.as_deref().unwrap_or_default();
        Path::new("devices/virtual/block").join(disk).join(&self.name)
    }

    fn make(&self, tree: &Path, values: &[(&str, &str)]) -> Result<()> {
        let sys = tree.join("sys");
        let common = [("dev", self.number.as_str()), ("size", "2048"), ("ro", "0")];
        for (name, value) in common.iter().chain(values) {
            let path = sys.join(self.folder()).join(name);
            fs::create_dir_all(path.parent().context("a value is in a folder")?)?;
            fs::write(path, format!("{value}\n"))?;
        }
        let target = Path::new("../..").join(self.folder());
        symlink(&target, sys.join("dev/block").join(&self.number))?;
        symlink(&target, sys.join("class/block").join(&self.name))?;
        if self.below.is_none() {
            symlink(Path::new("..").join(self.folder()), sys.join("block").join(&self.name))?;
        }
        Ok(())
    }

    /// Says at both ends that this device is made of another.
    fn stand_on(&self, tree: &Path, other: &Device) -> Result<()> {
        for (one, end, two) in [(self, "slaves", other), (other, "holders", self)] {
            let folder = tree.join("sys").join(one.folder()).join(end);
            fs::create_dir_all(&folder)?;
            let target = tree.join("sys").join(two.folder());
            symlink(target, folder.join(&two.name))?;
        }
        Ok(())
    }
}
