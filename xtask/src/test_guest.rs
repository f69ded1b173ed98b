//! `cargo xtask test-guest`: the small Linux guest that the tests boot.
//!
//! A kernel of Debian 12 and busybox in one EFI program, nothing else: it boots in a few seconds without KVM. The cloud
//! kernel is quick and knows AVIO (virtio) only; the full one also has mptsas for emulated SCSI and e1000. A third one is
//! the first with QEMU's guest agent as Debian ships it, for the tests that ask one; another is the second with iperf3 and
//! the drivers of both kinds of NIC loaded, for what is measured between guests; and one has a program that loads disks,
//! `load`, and the drivers of the adapters that `cargo xtask bench storage` compares ours with.
//!
//! What a test finds: a shell on ttyS0 with the prompt `hpvm-guest# ` after the line `HPVM GUEST READY`; disks as
//! /dev/sd?, the DVD as /dev/sr0, both there before that line; the ACPI power button powers off; `poweroff`, `reboot`
//! (with or without -f), dd, md5sum, sync, mount and the other commands of busybox; a partition named `scratch` of 4 MiB,
//! the first of the boot disk, that nothing else writes; `modprobe` for the drivers in `ON_DEMAND`.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::cache::{self, Key, Scratch};
use crate::cpio::Archive;
use crate::disk::Partition;
use crate::kernel::Kernel;
use crate::tool::{perform, phase, tool};
use crate::{apt, disk, initramfs, uki};

const INITTAB: &str = include_str!("guest/inittab");
const RC: &str = include_str!("guest/rc");
const PROFILE: &str = include_str!("guest/profile");
const POWER_BUTTON: &str = include_str!("guest/power-button");
const AGENT: &str = include_str!("guest/agent");
const LOAD: &str = include_str!("guest/load.rs");

/// Everything in the source that decides what the guest is.
const RECIPE: [&str; 12] = [
    include_str!("test_guest.rs"),
    include_str!("initramfs.rs"),
    include_str!("uki.rs"),
    include_str!("cpio.rs"),
    include_str!("disk.rs"),
    include_str!("kernel.rs"),
    INITTAB,
    RC,
    PROFILE,
    POWER_BUTTON,
    AGENT,
    LOAD,
];

/// The messages cost time on an emulated serial line, the mitigations cost it everywhere; disks are found before the
/// driver's load ends, so that the guest is ready when it says so. On a busy machine the kernel's trial of the timer's
/// interrupt fails now and then, since the emulated processor is not on a real one just then ("8254 timer not connected to
/// IO-APIC"); where the other ways it tries fail too, it panics.
const COMMAND_LINE: &str =
    "console=ttyS0 quiet mitigations=off cryptomgr.notests scsi_mod.scan=sync no_timer_check";

/// Loaded at boot, in this order: who serves a disk comes before who finds it.
const AT_BOOT: [&str; 7] =
    ["button", "evdev", "sd_mod", "sr_mod", "sg", "virtio_pci", "virtio_scsi"];
const AT_BOOT_FULL: [&str; 1] = ["mptsas"];
/// In the initramfs for a `modprobe` of a test.
const ON_DEMAND: [&str; 7] = [
    "virtio_net",
    "virtio_balloon",
    "virtio_console",
    "virtio_rng",
    "pvpanic_pci",
    "isofs",
    "efivarfs",
];
/// The last is what ext4 asks the kernel for, which no table of dependencies names.
const ON_DEMAND_FULL: [&str; 5] = ["e1000", "8021q", "st", "ext4", "crc32c_generic"];
const AT_BOOT_AGENT: [&str; 1] = ["virtio_console"];
const AT_BOOT_NET: [&str; 2] = ["virtio_net", "e1000"];
const AT_BOOT_LOAD: [&str; 3] = ["mptsas", "virtio_blk", "sym53c8xx"];

/// A program of Debian in a guest, with the libraries it is linked with and the packages of all.
struct Program {
    path: &'static str,
    packages: &'static [&'static str],
    libraries: &'static [&'static str],
}

const AGENT_PROGRAM: Program = Program {
    path: "usr/sbin/qemu-ga",
    packages: &[
        "qemu-guest-agent",
        "libc6",
        "libglib2.0-0",
        "libnuma1",
        "libpcre2-8-0",
        "libudev1",
        "liburing2",
    ],
    libraries: &[
        "libc.so.6",
        "libglib-2.0.so.0",
        "libgmodule-2.0.so.0",
        "libm.so.6",
        "libnuma.so.1",
        "libpcre2-8.so.0",
        "libudev.so.1",
        "liburing.so.2",
        "ld-linux-x86-64.so.2",
    ],
};

const IPERF: Program = Program {
    path: "usr/bin/iperf3",
    packages: &["iperf3", "libc6", "libiperf0", "libsctp1", "libssl3"],
    libraries: &[
        "libc.so.6",
        "libcrypto.so.3",
        "libiperf.so.0",
        "libm.so.6",
        "libsctp.so.1",
        "ld-linux-x86-64.so.2",
    ],
};

#[derive(Clone, Copy, PartialEq, Eq)]
enum Flavour {
    Cloud,
    Full,
    Agent,
    Net,
    Load,
}

impl Flavour {
    fn name(self) -> &'static str {
        match self {
            Self::Cloud => "cloud",
            Self::Full => "full",
            Self::Agent => "agent",
            Self::Net => "net",
            Self::Load => "load",
        }
    }

    fn meta_package(self) -> &'static str {
        match self {
            Self::Cloud | Self::Agent => "linux-image-cloud-amd64",
            Self::Full | Self::Net | Self::Load => "linux-image-amd64",
        }
    }

    fn at_boot(self) -> Vec<&'static str> {
        match self {
            Self::Cloud => AT_BOOT.to_vec(),
            Self::Full => [&AT_BOOT[..], &AT_BOOT_FULL].concat(),
            Self::Agent => [&AT_BOOT[..], &AT_BOOT_AGENT].concat(),
            Self::Net => [&AT_BOOT[..], &AT_BOOT_NET].concat(),
            Self::Load => [&AT_BOOT[..], &AT_BOOT_LOAD].concat(),
        }
    }

    fn on_demand(self) -> Vec<&'static str> {
        match self {
            Self::Cloud | Self::Agent | Self::Net | Self::Load => ON_DEMAND.to_vec(),
            Self::Full => [&ON_DEMAND[..], &ON_DEMAND_FULL].concat(),
        }
    }

    fn program(self) -> Option<&'static Program> {
        match self {
            Self::Cloud | Self::Full | Self::Load => None,
            Self::Agent => Some(&AGENT_PROGRAM),
            Self::Net => Some(&IPERF),
        }
    }
}

pub(crate) fn run(arguments: &[String]) -> Result<()> {
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let flavour = match words[..] {
        [] | ["--kernel", "cloud"] => Flavour::Cloud,
        ["--kernel", "full"] => Flavour::Full,
        ["--agent"] => Flavour::Agent,
        ["--net"] => Flavour::Net,
        ["--load"] => Flavour::Load,
        _ => {
            bail!("usage: cargo xtask test-guest [--kernel cloud|full | --agent | --net | --load]")
        }
    };
    println!("{}", image(flavour)?.display());
    Ok(())
}

/// The path of the guest's disk, built when the cache has it not.
fn image(flavour: Flavour) -> Result<PathBuf> {
    let kernel = apt::kernel_package(flavour.meta_package())?;
    let base = [kernel.as_str(), "busybox-static", "systemd-boot-efi"];
    let packages = [&base[..], flavour.program().map_or(&[], |program| program.packages)].concat();
    let versions = apt::versions(&packages)?;
    let named = packages.iter().flat_map(|package| [*package, &versions[*package]]);
    let key = Key::of(RECIPE.into_iter().chain(named));
    cache::product(&format!("test-{}", flavour.name()), "img", &key, |scratch| {
        let tree = scratch.join("tree");
        phase("unpack the packages", || {
            packages.iter().try_for_each(|package| apt::unpack(package, &versions[*package], &tree))
        })?;
        phase("make initramfs, EFI program and disk", || build(flavour, scratch))
    })
}

/// The disk of the guest with iperf3.
pub(crate) fn net_image() -> Result<PathBuf> {
    image(Flavour::Net)
}

/// The disk of the guest that loads its disks.
pub(crate) fn load_image() -> Result<PathBuf> {
    image(Flavour::Load)
}

fn build(flavour: Flavour, scratch: &Scratch) -> Result<PathBuf> {
    let tree = scratch.join("tree");
    let kernel = Kernel::find(&tree)?;
    let program = uki::build(&uki::Parts {
        stub: &uki::stub(&tree)?,
        os_release: "ID=hpvm-test\nPRETTY_NAME=\"hpvm test guest\"\n",
        command_line: COMMAND_LINE,
        kernel: &kernel.image,
        initramfs: &content(flavour, &kernel, &tree)?,
    })?;
    disk::build(scratch, &Partition { name: "scratch", size: 4 * disk::MIB }, &program)
}

fn content(flavour: Flavour, kernel: &Kernel, tree: &Path) -> Result<Vec<u8>> {
    let mut archive = initramfs::with_busybox(tree)?;
    for folder in ["tmp", "mnt", "var/log"] {
        archive.folder(folder);
    }
    archive.link("init", "bin/busybox");
    archive.file("etc/inittab", INITTAB.as_bytes());
    archive.file("etc/rc", RC.as_bytes());
    archive.file("etc/profile", PROFILE.as_bytes());
    archive.file("etc/acpi/PWRF/00000080", POWER_BUTTON.as_bytes());
    archive.file("etc/modules", (flavour.at_boot().join(" ") + "\n").as_bytes());
    if flavour == Flavour::Agent {
        archive.file("etc/agent", AGENT.as_bytes());
    }
    if let Some(program) = flavour.program() {
        program.add(tree, &mut archive)?;
    }
    if flavour == Flavour::Load {
        archive.file("bin/load", &load_program(tree)?);
    }
    let modules = [flavour.at_boot(), flavour.on_demand()].concat();
    kernel.add_modules(&modules, &mut archive)?;
    Ok(archive.finish())
}

impl Program {
    fn add(&self, tree: &Path, archive: &mut Archive) -> Result<()> {
        let read =
            |path: &Path| fs::read(path).with_context(|| format!("reading {}", path.display()));
        let name = self.path.rsplit('/').next().unwrap_or(self.path);
        archive.file(&format!("bin/{name}"), &read(&tree.join(self.path))?);
        const FOLDER: &str = "lib/x86_64-linux-gnu";
        for name in self.libraries {
            // Debian 12 has some packages that use the old place still.
            let places = [FOLDER.to_owned(), format!("usr/{FOLDER}")];
            let mut found = places.iter().map(|folder| tree.join(folder).join(name));
            let path =
                found.find(|p| p.exists()).with_context(|| format!("no package has {name}"))?;
            archive.file(&format!("{FOLDER}/{name}"), &read(&path)?);
        }
        archive.link("lib64", FOLDER);
        Ok(())
    }
}

/// `load`, made for this machine's kind of processor, which is the guest's too.
fn load_program(tree: &Path) -> Result<Vec<u8>> {
    let (source, program) = (tree.join("load.rs"), tree.join("load"));
    fs::write(&source, LOAD).with_context(|| format!("writing {}", source.display()))?;
    let mut compiler = tool("rustc", Duration::from_secs(120));
    compiler.args(["--edition", "2024", "-O", "-C", "target-feature=+crt-static"]);
    perform(compiler.args(["-C", "strip=symbols", "-o"]).args([&program, &source]))?;
    fs::read(&program).with_context(|| format!("reading {}", program.display()))
}
