//! `cargo xtask demo-image`: the disk of the demo, a real Debian 12 with systemd.
//!
//! mmdebstrap makes the root from the host's own mirror, as root or as an ordinary user; it becomes an ext4 file system
//! without a mount. Kernel and a small initramfs of our own are one EFI program, so that no boot loader is needed and the
//! disk boots from any adapter OVMF can read. Log in as root with the password `hpvm`.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::cache::{self, Key, Scratch};
use crate::disk::Partition;
use crate::kernel::Kernel;
use crate::tool::{is_root, output, perform, phase, tool};
use crate::{apt, disk, initramfs, uki};

const INIT: &str = include_str!("demo/init");
const CUSTOMIZE: &str = include_str!("demo/customize");

const RECIPE: [&str; 8] = [
    include_str!("demo_image.rs"),
    include_str!("initramfs.rs"),
    include_str!("uki.rs"),
    include_str!("cpio.rs"),
    include_str!("disk.rs"),
    include_str!("kernel.rs"),
    INIT,
    CUSTOMIZE,
];

/// Installed in the guest beside Debian's required packages. The full kernel, since the cloud one has no driver for
/// emulated SCSI and e1000.
const GUEST_PACKAGES: [&str; 7] =
    ["linux-image-amd64", "systemd-sysv", "udev", "dbus", "kmod", "iproute2", "qemu-guest-agent"];
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

const COMMAND_LINE: &str =
    "console=ttyS0 quiet mitigations=off cryptomgr.notests scsi_mod.scan=sync";
const MODULES: [&str; 7] =
    ["sd_mod", "virtio_pci", "virtio_scsi", "virtio_blk", "mptsas", "crc32c_generic", "ext4"];

const ROOT_SIZE: u64 = 2 << 30;
/// A mirror of 10 Mbit/s needs two minutes for the packages.
const INSTALL: Duration = Duration::from_secs(1200);
const PACK: Duration = Duration::from_secs(300);

pub(crate) fn run(arguments: &[String]) -> Result<()> {
    if !arguments.is_empty() {
        bail!("usage: cargo xtask demo-image");
    }
    let mut versions = apt::versions(&[&GUEST_PACKAGES[..], &BOOT_PACKAGES].concat())?;
    // The meta package's version does not always move with the kernel's.
    versions.insert("kernel".to_owned(), apt::kernel_package("linux-image-amd64")?);
    let named = versions.iter().flat_map(|(package, version)| [package.as_str(), version]);
    let key = Key::of(RECIPE.into_iter().chain(named));
    let image = cache::product("demo", "img", &key, |scratch| {
        phase("install Debian 12 (mmdebstrap)", || install(scratch))?;
        phase("make its file system", || make_file_system(scratch))?;
        phase("make initramfs, EFI program and disk", || {
            let tools = scratch.join("tools");
            BOOT_PACKAGES
                .iter()
                .try_for_each(|package| apt::unpack(package, &versions[*package], &tools))?;
            assemble(scratch)
        })
    })?;
    println!("{}", image.display());
    Ok(())
}

/// Leaves the guest's root in `root.tar`.
fn install(scratch: &Scratch) -> Result<()> {
    let sources = scratch.join("guest.sources");
    std::fs::write(&sources, apt::source_entries("deb")?).context("writing the guest's sources")?;
    let debs = cache::folder("debs")?;
    let mode = if is_root()? { "root" } else { "unshare" };
    let mut mmdebstrap = tool("mmdebstrap", INSTALL);
    mmdebstrap
        .args(["--quiet", "--variant=minbase", "--format=tar"])
        .arg(format!("--mode={mode}"))
        .arg(format!("--include={}", GUEST_PACKAGES.join(",")))
        .args(LEFT_OUT.map(|path| format!("--dpkgopt=path-exclude={path}")))
        .arg("--dpkgopt=force-unsafe-io")
        .arg("--aptopt=Acquire::Languages \"none\"")
        .args(proxies()?.lines().map(|line| format!("--aptopt={line}")))
        // Downloads outlive a build that fails or a recipe that changes.
        .args(["--skip=download/empty", "--skip=essential/unlink"])
        .arg("--setup-hook=mkdir -p \"$1\"/var/cache/apt/archives")
        .arg(format!("--setup-hook=sync-in '{}' /var/cache/apt/archives", debs.display()))
        .arg(format!("--customize-hook={CUSTOMIZE}"))
        .arg(format!("--customize-hook=sync-out /var/cache/apt/archives '{}'", debs.display()))
        .arg("bookworm")
        .arg(scratch.join("root.tar"))
        .arg(&sources);
    // The kernel's own initramfs would take a while and is not used.
    perform(mmdebstrap.env("INITRD", "No"))
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

fn assemble(scratch: &Scratch) -> Result<PathBuf> {
    let kernel = Kernel::find(&scratch.join("root"))?;
    let tools = scratch.join("tools");
    let program = uki::build(&uki::Parts {
        stub: &uki::stub(&tools)?,
        os_release: "ID=debian\nVERSION_ID=12\nPRETTY_NAME=\"Debian 12, hpvm demo\"\n",
        command_line: COMMAND_LINE,
        kernel: &kernel.image,
        initramfs: &content(&kernel, &tools)?,
    })?;
    disk::build(scratch, &Partition { name: "root", size: ROOT_SIZE }, &program)
}

fn content(kernel: &Kernel, tools: &Path) -> Result<Vec<u8>> {
    let mut archive = initramfs::with_busybox(tools)?;
    archive.file("init", INIT.as_bytes());
    archive.file("etc/modules", (MODULES.join(" ") + "\n").as_bytes());
    kernel.add_modules(&MODULES, &mut archive)?;
    Ok(archive.finish())
}
