//! A disk with a real Debian 12 and systemd on it, for `demo-image` and `guest-host`, which say what is to be on it.
//!
//! mmdebstrap makes the root from the host's own mirror, as root or as an ordinary user; it becomes an ext4 file system
//! without a mount. Kernel and a small initramfs of our own are one EFI program, so that no boot loader is needed and the
//! disk boots from any adapter OVMF can read.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::cache::{self, Key, Scratch};
use crate::disk::Partition;
use crate::kernel::Kernel;
use crate::tool::{is_root, output, perform, phase, tool};
use crate::{apt, disk, initramfs, uki};

const INIT: &str = include_str!("debian/init");
const CUSTOMIZE: &str = include_str!("debian/customize");

/// Everything in the source that decides what each of these disks is.
const SOURCES: [&str; 8] = [
    include_str!("debian.rs"),
    include_str!("initramfs.rs"),
    include_str!("uki.rs"),
    include_str!("cpio.rs"),
    include_str!("disk.rs"),
    include_str!("kernel.rs"),
    INIT,
    CUSTOMIZE,
];

/// Installed beside Debian's required packages. The full kernel, since the cloud one has no driver for emulated SCSI,
/// device-mapper's multipath and other things that a server has.
const PACKAGES: [&str; 6] =
    ["linux-image-amd64", "systemd-sysv", "udev", "dbus", "kmod", "iproute2"];
/// Used by the initramfs and the EFI program, unpacked beside the guest's root.
const BOOT_PACKAGES: [&str; 2] = ["busybox-static", "systemd-boot-efi"];

/// Left out of the guest: nobody reads manuals there, and it has none of the hardware.
const LEFT_OUT: [&str; 9] = [
    "/usr/share/man/*",
    "/usr/share/locale/*",
    "/usr/share/doc/*",
    "/lib/modules/*/kernel/drivers/gpu/*",
    "/lib/modules/*/kernel/drivers/infiniband/*",
    "/lib/modules/*/kernel/drivers/media/*",
    "/lib/modules/*/kernel/drivers/net/wireless/*",
    "/lib/modules/*/kernel/drivers/staging/*",
    "/lib/modules/*/kernel/sound/*",
];

/// As the test guest's, for the same reasons.
const COMMAND_LINE: &str =
    "console=ttyS0 quiet mitigations=off cryptomgr.notests scsi_mod.scan=sync no_timer_check";
const MODULES: [&str; 7] =
    ["sd_mod", "virtio_pci", "virtio_scsi", "virtio_blk", "mptsas", "crc32c_generic", "ext4"];

const ROOT_SIZE: u64 = 2 << 30;
/// A mirror of 10 Mbit/s needs two minutes for the packages.
const INSTALL: Duration = Duration::from_secs(1200);
const PACK: Duration = Duration::from_secs(300);

/// What distinguishes one such disk from another.
pub(crate) struct Debian<'a> {
    /// Its name below `.cache/images`, and the system's own.
    pub(crate) name: &'static str,
    /// Beside [`PACKAGES`].
    pub(crate) packages: &'a [&'a str],
    /// From the suite with newer versions.
    pub(crate) backported: &'a [&'a str],
    pub(crate) left_out: &'a [&'a str],
    /// Files put into the root, by path and text.
    pub(crate) files: &'a [(&'a str, &'a str)],
    /// Shell commands on the finished root `$root`, after those of every disk and the files.
    pub(crate) customize: &'a str,
}

impl Debian<'_> {
    /// The path of the disk, built when the cache has it not.
    pub(crate) fn image(&self) -> Result<PathBuf> {
        let wanted = [&PACKAGES, self.packages, self.backported, &BOOT_PACKAGES].concat();
        let mut versions = apt::versions(&wanted)?;
        // The meta package's version does not always move with the kernel's.
        versions.insert("kernel".to_owned(), apt::kernel_package("linux-image-amd64")?);
        let named = versions.iter().flat_map(|(package, version)| [package.as_str(), version]);
        let files = self.files.iter().flat_map(|(path, text)| [*path, *text]);
        let own = self.left_out.iter().copied().chain(files).chain([self.customize]);
        let key = Key::of(SOURCES.into_iter().chain(own).chain(named));
        cache::product(self.name, "img", &key, |scratch| {
            phase("install Debian 12 (mmdebstrap)", || self.install(scratch))?;
            phase("make its file system", || make_file_system(scratch))?;
            phase("make initramfs, EFI program and disk", || {
                let tools = scratch.join("tools");
                BOOT_PACKAGES
                    .iter()
                    .try_for_each(|package| apt::unpack(package, &versions[*package], &tools))?;
                self.assemble(scratch)
            })
        })
    }

    /// Leaves the guest's root in `root.tar`.
    fn install(&self, scratch: &Scratch) -> Result<()> {
        let sources = scratch.join("guest.sources");
        std::fs::write(&sources, self.source_entries()?).context("writing the guest's sources")?;
        let debs = cache::folder("debs")?;
        let mode = if is_root()? { "root" } else { "unshare" };
        let mut mmdebstrap = tool("mmdebstrap", INSTALL);
        mmdebstrap
            .args(["--quiet", "--variant=minbase", "--format=tar"])
            .arg(format!("--mode={mode}"))
            .arg(format!("--include={}", self.included().join(",")))
            .args(
                LEFT_OUT.iter().chain(self.left_out).map(|p| format!("--dpkgopt=path-exclude={p}")),
            )
            .arg("--dpkgopt=force-unsafe-io")
            .arg("--aptopt=Acquire::Languages \"none\"")
            .args(proxies()?.lines().map(|line| format!("--aptopt={line}")))
            // Downloads outlive a build that fails or a recipe that changes.
            .args(["--skip=download/empty", "--skip=essential/unlink"])
            .arg("--setup-hook=mkdir -p \"$1\"/var/cache/apt/archives")
            .arg(format!("--setup-hook=sync-in '{}' /var/cache/apt/archives", debs.display()))
            .arg(format!("--customize-hook=sync-out /var/cache/apt/archives '{}'", debs.display()))
            .args(self.uploads(scratch)?)
            .arg(format!(
                "--customize-hook=name=hpvm-{}\n{CUSTOMIZE}\n{}",
                self.name, self.customize
            ))
            .arg("bookworm")
            .arg(scratch.join("root.tar"))
            .arg(&sources);
        // The kernel's own initramfs would take a while and is not used.
        perform(mmdebstrap.env("INITRD", "No"))
    }

    fn source_entries(&self) -> Result<String> {
        let own = apt::source_entries("deb")?;
        if self.backported.is_empty() {
            return Ok(own);
        }
        Ok(format!("{own}\n{}", apt::backports_entry()?))
    }

    fn included(&self) -> Vec<String> {
        let plain = PACKAGES.iter().chain(self.packages).map(|package| (*package).to_owned());
        let newer = self.backported.iter().map(|package| format!("{package}/bookworm-backports"));
        plain.chain(newer).collect()
    }

    /// The hooks that put the files into the root.
    fn uploads(&self, scratch: &Scratch) -> Result<Vec<String>> {
        let mut hooks = Vec::new();
        for (index, (path, text)) in self.files.iter().enumerate() {
            let file = scratch.join(&format!("file-{index}"));
            std::fs::write(&file, text).with_context(|| format!("writing {}", file.display()))?;
            let folder = Path::new(path).parent().unwrap_or(Path::new("/"));
            hooks.push(format!("--customize-hook=mkdir -p \"$1\"'{}'", folder.display()));
            hooks.push(format!("--customize-hook=upload '{}' '{path}'", file.display()));
        }
        Ok(hooks)
    }

    fn assemble(&self, scratch: &Scratch) -> Result<PathBuf> {
        let kernel = Kernel::find(&scratch.join("root"))?;
        let tools = scratch.join("tools");
        let os_release =
            format!("ID=debian\nVERSION_ID=12\nPRETTY_NAME=\"Debian 12, hpvm {}\"\n", self.name);
        let program = uki::build(&uki::Parts {
            stub: &uki::stub(&tools)?,
            os_release: &os_release,
            command_line: COMMAND_LINE,
            kernel: &kernel.image,
            initramfs: &content(&kernel, &tools)?,
        })?;
        disk::build(scratch, &Partition { name: "root", size: ROOT_SIZE }, &program)
    }
}

/// The proxies of the host's apt, which mmdebstrap does not look up.
fn proxies() -> Result<String> {
    let mut dump = tool("apt-config", PACK);
    dump.args(["dump", "--no-empty", "--format", "%f \"%v\";%n"]);
    dump.args(["Acquire::http::Proxy", "Acquire::https::Proxy"]);
    output(&mut dump)
}

/// Turns `root.tar` into the folder `root` and, on the disk, into the ext4 file system of the first partition. An
/// ordinary user does both inside one fakeroot, so that owners survive from the one to the other.
fn make_file_system(scratch: &Scratch) -> Result<()> {
    let script = format!(
        "set -e; mkdir root; \
         tar --extract --file root.tar --directory root --numeric-owner --exclude './dev/*'; \
         rm root.tar; \
         mke2fs -q -t ext4 -d root -m 0 -L root \
             -E lazy_itable_init=1,lazy_journal_init=1,offset={} '{}' {}k",
        disk::FIRST_PARTITION,
        disk::path(scratch).display(),
        ROOT_SIZE >> 10,
    );
    let mut shell: Command = if is_root()? {
        tool("sh", PACK)
    } else {
        let mut pretended = tool("fakeroot", PACK);
        pretended.arg("sh");
        pretended
    };
    perform(shell.args(["-c", &script]).current_dir(&scratch.path))
}

fn content(kernel: &Kernel, tools: &Path) -> Result<Vec<u8>> {
    let mut archive = initramfs::with_busybox(tools)?;
    archive.file("init", INIT.as_bytes());
    archive.file("etc/modules", (MODULES.join(" ") + "\n").as_bytes());
    kernel.add_modules(&MODULES, &mut archive)?;
    Ok(archive.finish())
}
