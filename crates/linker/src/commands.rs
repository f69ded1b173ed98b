//! The commands that are watched, on a VM Host of their own that goes afterwards.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, process};

use anyhow::{Context, Result};

use crate::calls::Functions;

/// Commands as they are given most, the one that does most first; DISKS stands for the folder of the disks. None starts a guest,
/// so that no process stays.
const COMMANDS: [&str; 8] = [
    "create -P guest -O linux -c 1 -r 512M -B manual -e 10:90 -l label -a disk:avio_stor::file:DISKS/first \
     -a disk:avio_stor::file:DISKS/second -a dvd:avio_stor::file:DISKS/image -a dvd:avio_stor::null:/srv",
    "status",
    "status -P guest -V",
    "status --json",
    "modify -P guest -c 2",
    "devmgmt -l gdev",
    "net",
    "remove -P guest -F",
];

/// The functions of a program that these commands call, in the order of the commands.
pub(crate) fn functions_called(program: &Path) -> Result<Vec<String>> {
    let mut functions = Functions::of(program)?;
    let host = VmHost::new()?;
    let mut order = Vec::new();
    for line in COMMANDS {
        let mut command = host.command(program);
        let disks = host.0.to_string_lossy();
        command.args(line.split_whitespace().map(|word| word.replace("DISKS", &disks)));
        order.extend(functions.called_by(&command).with_context(|| format!("hpvm {line}"))?);
    }
    Ok(order)
}

/// A folder that is HPVM_ROOT, with the disks of a guest, and with what hpvm takes for pristine firmware variables: where it is built
/// there may be no firmware.
struct VmHost(PathBuf);

impl VmHost {
    fn new() -> Result<VmHost> {
        let root = env::temp_dir().join(format!("hpvm-linker-{}", process::id()));
        fs::create_dir(&root).with_context(|| format!("making {}", root.display()))?;
        let host = VmHost(root);
        for disk in ["first", "second", "image"] {
            File::create(host.0.join(disk))?.set_len(1 << 20)?;
        }
        let conf = host.0.join("etc/rc.config.d");
        fs::create_dir_all(&conf)?;
        fs::write(conf.join("hpvmconf"), format!("HPVMNVRAM=\"{}/image\"\n", host.0.display()))?;
        Ok(host)
    }

    /// Whatever whoever builds has set for commands of his own does not count.
    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        for (name, _) in
            env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("HPVM"))
        {
            command.env_remove(name);
        }
        command.env("HPVM_ROOT", &self.0);
        command
    }
}

impl Drop for VmHost {
    fn drop(&mut self) {
        if let Ok(run) = fs::read_link(self.0.join("run/hpvm")) {
            let _ = fs::remove_dir_all(run);
        }
        let _ = fs::remove_dir_all(&self.0);
    }
}
