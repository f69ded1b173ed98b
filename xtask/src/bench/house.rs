//! A VM Host of a benchmark's own below /tmp, with the release binaries; everything of it ends and goes when it is dropped,
//! also after a failure. What a killed benchmark left goes when the next one begins.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::fs::{IFlags, ioctl_getflags, ioctl_setflags};
use rustix::process::Signal;
use serde_json::Value;

use super::process;
use crate::cache::checkout;

const PREFIX: &str = "hpvm-bench-";

pub(super) struct House {
    pub(super) root: PathBuf,
    program: PathBuf,
}

impl House {
    pub(super) fn new() -> Result<House> {
        House::named("house")
    }

    /// A second one of the same benchmark.
    pub(super) fn new_beside() -> Result<House> {
        House::named("house-beside")
    }

    fn named(purpose: &str) -> Result<House> {
        let root = fresh_folder(purpose)?;
        let program = install(&root)?;
        Ok(House { root, program })
    }

    /// Sets the tunables, all of them.
    pub(super) fn set(&self, tunables: &[(&str, &Path)]) -> Result<()> {
        let folder = self.root.join("etc/opt/hpvm");
        fs::create_dir_all(&folder)?;
        let mut conf = File::create(folder.join("hpvmconf"))?;
        for (name, value) in tunables {
            writeln!(conf, "{name}='{}'", value.display())?;
        }
        Ok(())
    }

    /// A command of this VM Host, ready to be started.
    pub(super) fn command(&self, line: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.arg0(line[0]).args(&line[1..]).env("HPVM_ROOT", &self.root);
        command.env_remove("HPVM_ACCEL").env_remove("HPVM_ABORT_AT").current_dir("/");
        command
    }

    /// Runs a command that must succeed; gives how long it took.
    pub(super) fn time(&self, line: &[&str]) -> Result<Duration> {
        Ok(process::timed(&mut self.command(line))?.1)
    }

    /// The same; gives what it printed.
    pub(super) fn run(&self, line: &[&str]) -> Result<String> {
        Ok(process::timed(&mut self.command(line))?.0)
    }

    /// A file of a guest.
    pub(super) fn guest_file(&self, guest: &str, file: &str) -> PathBuf {
        self.root.join("var/opt/hpvm/guests").join(guest).join(file)
    }

    /// A file of some bytes without blocks, for a disk that is never read.
    pub(super) fn empty_disk(&self, name: &str) -> Result<PathBuf> {
        let folder = self.root.join("disks");
        fs::create_dir_all(&folder)?;
        let path = folder.join(name);
        File::create(&path)?.set_len(1 << 20)?;
        Ok(path)
    }

    /// A copy of the guest that boots.
    pub(super) fn boot_disk(&self, name: &str) -> Result<PathBuf> {
        let image = checkout().join(".cache/images/test-cloud.img");
        let folder = self.root.join("disks");
        fs::create_dir_all(&folder)?;
        let path = folder.join(name);
        fs::copy(&image, &path).with_context(|| {
            format!("copying {}; `cargo xtask test-guest` makes it", image.display())
        })?;
        Ok(path)
    }

    /// Creates guest number N, with every field given and four devices; its first disk is `disk`.
    pub(super) fn create_full(&self, name: &str, n: usize, disk: &Path) -> Result<Duration> {
        let second = self.empty_disk(&format!("second-{n}"))?;
        let image = self.empty_disk("image.iso")?;
        let (disk, second, image) = (disk.display(), second.display(), image.display());
        let label = format!("guest {n} of the benchmark");
        let devices = [
            format!("disk:avio_stor::file:{disk}"),
            format!("disk:avio_stor::file:{second}"),
            format!("dvd:avio_stor::file:{image}"),
            "dvd:avio_stor::null:/srv".to_owned(),
        ];
        let mut line = vec!["hpvmcreate", "-P", name, "-O", "linux:12", "-c", "1", "-r", "512M"];
        line.extend(["-B", "manual", "-e", "10:90", "-x", "runnable_status=enabled", "-l", &label]);
        devices.iter().for_each(|device| line.extend(["-a", device]));
        self.time(&line)
    }

    /// QEMU of guest NUMBER.
    pub(super) fn qemu(&self, number: usize) -> Result<i32> {
        let path = self.root.join(format!("run/hpvm/{number}/status"));
        let text = fs::read_to_string(&path).with_context(|| format!("reading {path:?}"))?;
        let json = text.lines().nth(1).unwrap_or_default();
        let pid = serde_json::from_str::<Value>(json)?["qemu"]["pid"].as_i64();
        pid.and_then(|pid| i32::try_from(pid).ok()).context("no process of QEMU in the status")
    }

    /// Processes of this VM Host: those that have one of its files open.
    pub(super) fn processes(&self) -> Vec<(i32, String)> {
        processes_below(&self.root)
    }

    /// Keepers and workers, without QEMU.
    pub(super) fn supervisors(&self) -> Vec<i32> {
        let ours = self.processes().into_iter();
        ours.filter(|(_, name)| ["hpvmkeeper", "hpvmapp"].contains(&name.as_str()))
            .map(|(pid, _)| pid)
            .collect()
    }
}

impl Drop for House {
    fn drop(&mut self) {
        remove(&self.root);
    }
}

/// Puts the programs where `make install` puts them, by the same install(1); gives the path of `hpvm`. How a file was written
/// tells in what pages the kernel keeps it, and those of a linker's own take a program a tenth longer to map.
fn install(root: &Path) -> Result<PathBuf> {
    let put = |names: &[&str], folder: &str| -> Result<PathBuf> {
        let folder = root.join("opt/hpvm").join(folder);
        fs::create_dir_all(&folder)?;
        let programs = names.iter().map(|name| release(name)).collect::<Result<Vec<PathBuf>>>()?;
        let mut command = Command::new("install");
        process::timed(command.args(["-m", "755"]).args(programs).arg(&folder))?;
        Ok(folder)
    };
    put(&["hpvmkeeper", "hpvmapp", "hpvmnetd", "hpvmnat", "hpvmreserve"], "lbin")?;
    Ok(put(&["hpvm"], "bin")?.join("hpvm"))
}

/// A program that `make build` made.
pub(super) fn release(name: &str) -> Result<PathBuf> {
    let path = checkout().join("target/release").join(name);
    if !path.exists() {
        bail!("{} is not built; run `make build`, or `make bench`", path.display());
    }
    Ok(path)
}

/// A folder that goes with what is in it.
pub(super) struct Folder(pub(super) PathBuf);

impl Folder {
    /// Where no system has files in memory.
    pub(super) fn on_disk(purpose: &str) -> Result<Folder> {
        let [_, disk, _] = places();
        fresh_folder_in(&disk, purpose).map(Folder)
    }

    /// In the memory of the machine, where that has a place for files.
    pub(super) fn in_memory(purpose: &str) -> Result<Folder> {
        let [disk, _, memory] = places();
        fresh_folder_in(if memory.is_dir() { &memory } else { &disk }, purpose).map(Folder)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        remove(&self.0);
    }
}

/// Where benchmarks make folders: wherever, on the disk, and in memory.
fn places() -> [PathBuf; 3] {
    [std::env::temp_dir(), "/var/tmp".into(), "/dev/shm".into()]
}

/// An empty folder whose name tells which process made it.
pub(super) fn fresh_folder(purpose: &str) -> Result<PathBuf> {
    fresh_folder_in(&places()[0], purpose)
}

fn fresh_folder_in(place: &Path, purpose: &str) -> Result<PathBuf> {
    let own = std::process::id().to_string();
    let around = place.join(format!("{PREFIX}{own}-{purpose}"));
    let path = around.join(own);
    remove(&path);
    fs::create_dir(&around).with_context(|| format!("making {}", around.display()))?;
    // Only some file systems have this.
    let _ = spread(&around);
    fs::create_dir(&path).with_context(|| format!("making {}", path.display()))?;
    Ok(path)
}

/// Has ext4 put the folders made in this one where there are few others, and begin to look by their names. Without a journal
/// it passes over each inode that was deleted in the last minutes: a benchmark would measure what the one before it removed.
fn spread(folder: &Path) -> io::Result<()> {
    let folder = File::open(folder)?;
    Ok(ioctl_setflags(&folder, ioctl_getflags(&folder)? | IFlags::TOPDIR)?)
}

/// Ends and removes what benchmarks left that were killed.
pub(super) fn remove_leftovers() -> Result<()> {
    for entry in
        places().into_iter().filter_map(|place| fs::read_dir(place).ok()).flatten().flatten()
    {
        let path = entry.path();
        if let Some(own) = maker(&path)
            && let Ok(maker) = own.parse()
            && !process::is_alive(maker)
        {
            remove(&path.join(own));
        }
    }
    Ok(())
}

/// Ends all that has files below a folder open, and removes it.
pub(super) fn remove(folder: &Path) {
    // Worker, keeper and engine bring each other back, so all are ended until none is left.
    for _ in 0..20 {
        let left: Vec<i32> = processes_below(folder).into_iter().map(|(pid, _)| pid).collect();
        if left.is_empty() {
            break;
        }
        process::end(&left, Signal::KILL);
    }
    if let Ok(run) = fs::read_link(folder.join("run/hpvm")) {
        let _ = fs::remove_dir_all(run);
    }
    let _ = fs::remove_dir_all(folder);
    // What is around it, where it was made by `fresh_folder`.
    if let Some(around) = folder.parent().filter(|around| maker(around).is_some()) {
        let _ = fs::remove_dir(around);
    }
}

/// Which benchmark made a folder.
fn maker(folder: &Path) -> Option<&str> {
    folder.file_name()?.to_str()?.strip_prefix(PREFIX)?.split('-').next()
}

fn processes_below(folder: &Path) -> Vec<(i32, String)> {
    let run = fs::canonicalize(folder.join("run/hpvm")).unwrap_or_else(|_| folder.to_owned());
    let has_ours_open = |pid: i32| {
        let links = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        let mut targets = links.filter_map(|link| fs::read_link(link.path()).ok());
        targets.any(|target| target.starts_with(folder) || target.starts_with(&run))
    };
    let own = i32::try_from(std::process::id()).unwrap_or_default();
    process::all().into_iter().filter(|(pid, _)| *pid != own && has_ours_open(*pid)).collect()
}
