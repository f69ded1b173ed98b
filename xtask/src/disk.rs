//! A disk that UEFI boots: a GPT with an EFI system partition that holds one program, and partitions of the caller.
//!
//! Made of plain files: no loop device, no mount, no privilege.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::cache::Scratch;
use crate::tool::{perform, tool};

const BOUND: Duration = Duration::from_secs(60);
const MIB: u64 = 1 << 20;
const LINUX: &str = "0FC63DAF-8483-4772-8E79-3D69D8477DE4";

/// A partition after the EFI system partition.
pub(crate) struct Partition {
    pub(crate) name: &'static str,
    pub(crate) size: u64,
    /// What it holds from the start; nothing: zeros.
    pub(crate) content: Option<PathBuf>,
}

/// Writes the disk into `scratch` and gives its path. `efi_program` becomes `\EFI\BOOT\BOOTX64.EFI`.
pub(crate) fn build(
    scratch: &Scratch,
    efi_program: &[u8],
    partitions: &[Partition],
) -> Result<PathBuf> {
    let system = system_partition(scratch, efi_program)?;
    let system_size = fs::metadata(&system).context("reading the EFI partition's size")?.len();
    let all_sizes: u64 = partitions.iter().map(|partition| partition.size).sum();

    let disk = scratch.join("disk.img");
    let file = File::create(&disk).with_context(|| format!("making {}", disk.display()))?;
    // One MiB in front for the table, one behind for its copy.
    file.set_len(MIB + system_size + all_sizes + MIB).context("sizing the disk")?;
    drop(file);

    let mut table =
        format!("label: gpt\nstart=1MiB, size={}, type=U, name=esp\n", sectors(system_size));
    for partition in partitions {
        ensure!(partition.size.is_multiple_of(MIB), "partition {} is no whole MiB", partition.name);
        table +=
            &format!("size={}, type={LINUX}, name={}\n", sectors(partition.size), partition.name);
    }
    write_table(&disk, &table)?;

    copy_into(&system, &disk, MIB)?;
    let mut offset = MIB + system_size;
    for partition in partitions {
        if let Some(content) = &partition.content {
            copy_into(content, &disk, offset)?;
        }
        offset += partition.size;
    }
    Ok(disk)
}

fn sectors(bytes: u64) -> u64 {
    bytes / 512
}

fn system_partition(scratch: &Scratch, efi_program: &[u8]) -> Result<PathBuf> {
    let program = scratch.join("BOOTX64.EFI");
    fs::write(&program, efi_program).with_context(|| format!("writing {}", program.display()))?;
    let image = scratch.join("esp.img");
    let file = File::create(&image).with_context(|| format!("making {}", image.display()))?;
    // Room for the file system's own tables; no type is forced, since FAT's types go by the count of clusters.
    let size = (efi_program.len() as u64 + MIB).next_multiple_of(MIB) + MIB;
    file.set_len(size).context("sizing the EFI partition")?;
    drop(file);
    perform(tool("mkfs.vfat", BOUND).args(["-n", "ESP"]).arg(&image))?;
    let mtool = |program| {
        let mut command = tool(program, BOUND);
        command.env("MTOOLS_SKIP_CHECK", "1");
        command
    };
    perform(mtool("mmd").arg("-i").arg(&image).args(["::/EFI", "::/EFI/BOOT"]))?;
    perform(mtool("mcopy").arg("-i").arg(&image).arg(&program).arg("::/EFI/BOOT/"))?;
    Ok(image)
}

fn write_table(disk: &Path, table: &str) -> Result<()> {
    let mut sfdisk = tool("sfdisk", BOUND)
        .arg("--quiet")
        .arg(disk)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .context("starting sfdisk (is it installed? scripts/install-deps)")?;
    if let Some(mut input) = sfdisk.stdin.take() {
        input.write_all(table.as_bytes()).context("writing to sfdisk")?;
    }
    ensure!(sfdisk.wait().context("waiting for sfdisk")?.success(), "sfdisk refused:\n{table}");
    Ok(())
}

/// Copies a file into the disk at a whole MiB, leaving holes where it has zeros.
fn copy_into(source: &Path, disk: &Path, offset: u64) -> Result<()> {
    let operand = |word: &str, path: &Path| format!("{word}={}", path.display());
    perform(
        tool("dd", BOUND)
            .args(["bs=1M", "conv=notrunc,sparse", "status=none"])
            .args([operand("if", source), operand("of", disk)])
            .arg(format!("seek={}", offset / MIB)),
    )
}
