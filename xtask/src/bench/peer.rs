//! libvirt, measured beside hpvm: its daemon runs by hand in a mount namespace with folders of its own, so that a libvirt
//! that serves this machine is not touched. Without libvirt, or without the right to make a namespace, there is no peer.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process_group};

use super::process::{self, timed};
use super::{house, orphans};

/// Gives the daemon its own folders and a /dev without kvm, which on a machine where KVM opens but does not work would
/// make it ask QEMU anew, for half a minute, each time a domain is defined.
const NAMESPACE: &str = r#"
set -e
for pair in etc:/etc/libvirt lib:/var/lib/libvirt cache:/var/cache/libvirt log:/var/log/libvirt run:/run/libvirt; do
    mkdir -p "$0/${pair%%:*}" "${pair#*:}"
    mount --bind "$0/${pair%%:*}" "${pair#*:}"
done
mkdir "$0/dev"
mount -t tmpfs none "$0/dev"
for name in null zero full random urandom tty ptmx; do
    : >"$0/dev/$name"
    mount --bind "/dev/$name" "$0/dev/$name"
done
for name in pts shm; do
    mkdir "$0/dev/$name"
    mount --bind "/dev/$name" "$0/dev/$name"
done
mount --rbind "$0/dev" /dev
exec libvirtd --pid-file "$0/pid"
"#;

/// The pool of volumes.
const POOL: &str = "bench";

pub(super) struct Peer {
    folder: PathBuf,
    /// The parent of the daemon, and of what the daemon lets go.
    parent: Child,
}

impl Peer {
    /// Starts the daemon, when libvirt is there.
    pub(super) fn start() -> Result<Option<Peer>> {
        if !crate::tool::is_root()? || !Path::new("/usr/sbin/libvirtd").exists() {
            eprintln!(
                "  libvirt is not installed, or cannot be run: `sudo scripts/install-deps bench`"
            );
            return Ok(None);
        }
        let folder = house::fresh_folder("peer")?;
        fs::create_dir_all(folder.join("etc/qemu"))?;
        fs::write(folder.join("etc/libvirtd.conf"), "auth_unix_rw = \"none\"\n")?;
        let own = "stdio_handler = \"file\"\nuser = \"root\"\ngroup = \"root\"\n";
        fs::write(folder.join("etc/qemu.conf"), own)?;
        let log = File::create(folder.join("daemon.log"))?;
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["bench", orphans::WORD, "unshare", "--mount", "sh", "-c", NAMESPACE]);
        command.arg(&folder).process_group(0);
        let parent = command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn()?;
        let peer = Peer { folder, parent };
        process::wait_until("libvirtd answers", || peer.virsh(&["uri"]).is_ok())?;
        // Asks QEMU what it can, which is kept.
        peer.virsh(&["domcapabilities"])?;
        Ok(Some(peer))
    }

    pub(super) fn daemon(&self) -> Result<i32> {
        number_in(&self.folder.join("pid"))
    }

    fn command(&self, line: &[&str]) -> Command {
        let socket = self.folder.join("run/libvirt-sock");
        let mut command = Command::new("virsh");
        command.args(["-q", "-c", &format!("qemu+unix:///system?socket={}", socket.display())]);
        command.args(line).current_dir("/");
        command
    }

    /// Runs virsh; gives how long it took.
    pub(super) fn virsh(&self, line: &[&str]) -> Result<Duration> {
        Ok(timed(&mut self.command(line))?.1)
    }

    pub(super) fn list(&self) -> Result<Duration> {
        self.virsh(&["list", "--all"])
    }

    /// Has the files of a folder as volumes.
    pub(super) fn keep_volumes(&self, folder: &Path) -> Result<()> {
        let folder = folder.to_string_lossy();
        self.virsh(&["pool-create-as", POOL, "dir", "--target", &folder]).map(drop)
    }

    /// Copies a volume, of the folder as it is now.
    pub(super) fn clone_volume(&self, from: &Path, to: &Path) -> Result<Duration> {
        let name =
            |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        self.virsh(&["pool-refresh", POOL])?;
        self.virsh(&["vol-clone", "--pool", POOL, &name(from), &name(to)])
    }

    /// Defines a domain like a guest that has `disk` first and three devices more.
    pub(super) fn define(&self, name: &str, disk: &Path) -> Result<Duration> {
        let path = self.folder.join(format!("{name}.xml"));
        fs::write(&path, self.description(name, disk))?;
        File::create(self.second_disk(name))?.set_len(1 << 20)?;
        self.virsh(&["define", &path.to_string_lossy()])
    }

    /// Defines many at once, for what is not timed.
    pub(super) fn define_many(&self, count: usize) -> Result<()> {
        let mut lines = String::new();
        for n in 1..=count {
            let path = self.folder.join(format!("filler{n}.xml"));
            let disk = self.folder.join(format!("disk{n}"));
            fs::write(&path, self.description(&format!("filler{n}"), &disk))?;
            lines += &format!("define {};", path.display());
        }
        self.virsh(&[&lines]).map(drop)
    }

    /// A domain that runs locks it, so each has its own.
    fn second_disk(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.second"))
    }

    /// Where the first serial port of a domain goes.
    pub(super) fn console(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.console"))
    }

    /// Whether a list shows this domain as shut off.
    pub(super) fn shows_off(&self, name: &str) -> Result<bool> {
        let (text, _) = timed(&mut self.command(&["domstate", name]))?;
        Ok(text.trim() == "shut off")
    }

    /// QEMU of a domain.
    pub(super) fn qemu(&self, name: &str) -> Result<i32> {
        number_in(&self.folder.join(format!("run/qemu/{name}.pid")))
    }

    fn description(&self, name: &str, disk: &Path) -> String {
        let (console, second) = (self.console(name), self.second_disk(name));
        let (disk, console, second) = (disk.display(), console.display(), second.display());
        let folder = self.folder.display();
        format!(
            "<domain type='qemu'><name>{name}</name><memory unit='MiB'>512</memory><vcpu>1</vcpu>\
             <description>{name} of the benchmark</description>\
             <os><type arch='x86_64' machine='q35'>hvm</type>\
             <loader readonly='yes' type='pflash'>/usr/share/OVMF/OVMF_CODE_4M.fd</loader>\
             <nvram template='/usr/share/OVMF/OVMF_VARS_4M.fd'/></os><features><acpi/></features>\
             <cpu mode='custom' match='exact'><model>qemu64</model></cpu><devices>\
             <emulator>/usr/bin/qemu-system-x86_64</emulator>\
             <controller type='scsi' index='0' model='virtio-scsi'/>\
             <disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='{disk}'/>\
             <target dev='sda' bus='scsi'/></disk>\
             <disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='{second}'/>\
             <target dev='sdb' bus='scsi'/></disk>\
             <disk type='file' device='cdrom'><source file='{folder}/image.iso'/>\
             <target dev='sdc' bus='scsi'/><readonly/></disk>\
             <disk type='file' device='cdrom'><target dev='sdd' bus='scsi'/><readonly/></disk>\
             <serial type='file'><source path='{console}'/></serial><memballoon model='none'/>\
             </devices></domain>"
        )
    }

    /// Makes the image that domains share, before one of them starts.
    pub(super) fn make_image(&self) -> Result<()> {
        Ok(File::create(self.folder.join("image.iso"))?.set_len(1 << 20)?)
    }
}

fn number_in(path: &Path) -> Result<i32> {
    let text = fs::read_to_string(path).with_context(|| format!("reading {path:?}"))?;
    Ok(text.trim().parse()?)
}

impl Drop for Peer {
    fn drop(&mut self) {
        let pids = fs::read_dir(self.folder.join("run/qemu")).into_iter().flatten().flatten();
        let domains: Vec<i32> = pids
            .filter(|entry| entry.path().extension().is_some_and(|e| e == "pid"))
            .filter(|entry| !entry.file_name().to_string_lossy().starts_with("driver"))
            .filter_map(|entry| number_in(&entry.path()).ok())
            .collect();
        process::end(&domains, Signal::KILL);
        match self.daemon() {
            Ok(pid) => {
                [Signal::TERM, Signal::KILL].iter().for_each(|how| process::end(&[pid], *how));
            }
            // It has not come up: the parent leads the group of all that may be on its way.
            Err(_) => drop(kill_process_group(Pid::from_child(&self.parent), Signal::KILL)),
        }
        let _ = self.parent.wait();
        house::remove(&self.folder);
    }
}
