//! `cargo xtask option-rom`: the EFI driver that lets a guest boot from emulated SCSI.
//!
//! The adapter of `scsi` disks is mptsas1068, and Debian's OVMF is built without a driver for it. EDK II has one,
//! MptScsiDxe; it is built here from the very source package that OVMF comes from, wrapped as a PCI option ROM for the
//! adapter's ids, and kept with its licence (BSD-2-Clause-Patent) beside it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::apt;
use crate::cache::{self, Key, Scratch};
use crate::tool::{perform, phase, tool};

const RECIPE: &str = include_str!("option_rom.rs");
const DOWNLOAD: Duration = Duration::from_secs(600);
const BUILD: Duration = Duration::from_secs(900);
const QUICK: Duration = Duration::from_secs(60);

/// PCI ids of LSI's SAS1068, which QEMU's mptsas1068 shows.
const VENDOR: &str = "0x1000";
const DEVICE: &str = "0x0054";

/// Where the build leaves the driver, below the source.
const DRIVER: &str = "Build/OvmfX64/RELEASE_GCC5/X64/MptScsiDxe.efi";

pub(crate) fn run(arguments: &[String]) -> Result<()> {
    if !arguments.is_empty() {
        bail!("usage: cargo xtask option-rom");
    }
    // Source and binary packages of edk2 share their version.
    let version = apt::versions(&["ovmf"])?.remove("ovmf").unwrap_or_default();
    let key = Key::of([RECIPE, &version]);
    let rom = cache::product("mptsas1068", "rom", &key, |scratch| build(&version, scratch))?;
    println!("{}", rom.display());
    Ok(())
}

fn build(version: &str, scratch: &Scratch) -> Result<PathBuf> {
    let description = phase("download the source of EDK II", || download(version))?;
    let source = scratch.join("edk2");
    phase("unpack it", || {
        let mut unpack = tool("dpkg-source", BUILD);
        perform(unpack.args(["--no-check", "--extract"]).arg(&description).arg(&source))
    })?;
    phase("build its tools", || {
        let mut make = tool("make", BUILD);
        let jobs = std::thread::available_parallelism().map_or(1, usize::from);
        perform(make.arg("-C").arg(source.join("BaseTools/Source/C")).arg(format!("-j{jobs}")))
    })?;
    phase("build the driver MptScsiDxe", || build_driver(&source))?;
    let rom = scratch.join("mptsas1068.rom");
    let wrap = source.join("BaseTools/Source/C/bin/EfiRom");
    perform(
        tool(&wrap.to_string_lossy(), QUICK)
            .args(["-f", VENDOR, "-i", DEVICE, "-e"])
            .arg(source.join(DRIVER))
            .arg("-o")
            .arg(&rom),
    )?;
    check(&rom)?;
    keep_licence(&source, version)?;
    Ok(rom)
}

/// Fetches the source package with package lists of its own, so that neither the host's sources nor its lists change,
/// and no privilege is needed. Gives the path of its description (.dsc).
fn download(version: &str) -> Result<PathBuf> {
    let upstream = version.split_once(':').map_or(version, |(_epoch, rest)| rest);
    let folder = cache::folder("sources")?;
    let description = folder.join(format!("edk2_{upstream}.dsc"));
    if description.exists() {
        return Ok(description);
    }
    let state = cache::folder("sources/apt")?;
    for folder in ["lists/partial", "archives/partial", "empty"] {
        fs::create_dir_all(state.join(folder)).context("making folders for apt")?;
    }
    let sources = state.join("source.sources");
    fs::write(&sources, apt::source_entries("deb-src")?).context("writing apt's sources")?;
    let apt_get = |arguments: &[&str]| {
        let mut command = tool("apt-get", DOWNLOAD);
        command.args(["-qq", "-o", "APT::Sandbox::User=root", "-o", "Acquire::Retries=3"]);
        for (option, path) in [
            ("Dir::Etc::SourceList", PathBuf::from("/dev/null")),
            ("Dir::Etc::SourceParts", state.clone()),
            ("Dir::State::Lists", state.join("lists")),
            ("Dir::Cache", state.clone()),
        ] {
            command.arg("-o").arg(format!("{option}={}", path.display()));
        }
        // What the host does after an update of its own lists is no business of this one.
        command.args([
            "-o",
            "APT::Update::Post-Invoke=",
            "-o",
            "APT::Update::Post-Invoke-Success=",
        ]);
        perform(command.args(arguments).current_dir(&folder))
    };
    apt_get(&["update"])?;
    apt_get(&["source", "--download-only", &format!("edk2={version}")])?;
    ensure!(description.exists(), "apt-get source left no {}", description.display());
    Ok(description)
}

fn build_driver(source: &Path) -> Result<()> {
    // edksetup.sh is made to be sourced by bash and sets what `build` needs.
    let script = "set -e; . ./edksetup.sh BaseTools; \
        build -a X64 -t GCC5 -b RELEASE -p OvmfPkg/OvmfPkgX64.dsc \
        -D BUILD_SHELL=FALSE -D MPT_SCSI_ENABLE=TRUE -m OvmfPkg/MptScsiDxe/MptScsiDxe.inf";
    let mut bash: Command = tool("bash", BUILD);
    bash.args(["-c", script]).current_dir(source).env("PYTHON_COMMAND", "python3");
    perform(bash.env_remove("WORKSPACE").env_remove("EDK_TOOLS_PATH"))
}

/// An option ROM starts with 55 AA and is a few KiB long; anything else would only be noticed by a guest that stays dark.
fn check(rom: &Path) -> Result<()> {
    let bytes = fs::read(rom).with_context(|| format!("reading {}", rom.display()))?;
    ensure!(
        bytes.starts_with(&[0x55, 0xaa]) && (2 << 10..256 << 10).contains(&bytes.len()),
        "EfiRom made no option ROM ({} bytes)",
        bytes.len()
    );
    Ok(())
}

fn keep_licence(source: &Path, version: &str) -> Result<()> {
    let read = |name: &str| {
        let path = source.join(name);
        fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))
    };
    let driver = read("OvmfPkg/MptScsiDxe/MptScsi.c")?;
    let holders: String = driver
        .lines()
        .filter(|line| line.contains("Copyright"))
        .map(|line| format!("{}\n", line.trim()))
        .collect();
    let text = format!(
        "mptsas1068.rom is the driver MptScsiDxe of EDK II, built from Debian's source package edk2 {version}.\n\n\
         {holders}\n{}",
        read("License.txt")?
    );
    let path = cache::folder("images")?.join("mptsas1068.rom.copyright");
    fs::write(&path, text).with_context(|| format!("writing {}", path.display()))
}
