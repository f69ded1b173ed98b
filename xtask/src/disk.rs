//! A disk that UEFI boots: a GPT with a partition of the caller and an EFI system partition that holds one program.
//!
//! Made of plain files: no loop device, no mount, no privilege.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::cache::Scratch;
use crate::tool::{perform, tool};

const BOUND: Duration = Duration::from_secs(60);
pub(crate) const MIB: u64 = 1 << 20;
const LINUX: &str = "0FC63DAF-8483-4772-8E79-3D69D8477DE4";

/// The first partition; the EFI system partition follows it.
pub(crate) struct Partition {
    pub(crate) name: &'static str,
    /// Whole MiB.
    pub(crate) size: u64,
}

/// Where the first partition starts: the table has the MiB in front of it. Who wants content there writes it into
/// `disk` at this offset before calling `build`, and saves copying a whole file system.
pub(crate) const FIRST_PARTITION: u64 = MIB;

/// The disk under construction.
pub(crate) fn path(scratch: &Scratch) -> PathBuf {
    scratch.join("disk.img")
}

/// Makes `path(scratch)` a whole disk and gives it. `efi_program` becomes `\EFI\BOOT\BOOTX64.EFI`.
pub(crate) fn build(scratch: &Scratch, first: &Partition, efi_program: &[u8]) -> Result<PathBuf> {
    ensure!(first.size.is_multiple_of(MIB), "partition {} is no whole number of MiB", first.name);
    let system = system_partition(scratch, efi_program)?;
    let system_size = fs::metadata(&system).context("reading the EFI partition's size")?.len();
    let system_start = FIRST_PARTITION + first.size;

    let disk = path(scratch);
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .open(&disk)
        // The MiB behind is for the second copy of the table.
        .and_then(|file| file.set_len(system_start + system_size + MIB))
        .with_context(|| format!("making {}", disk.display()))?;
    let table = format!(
        "label: gpt\n\
         start={}, size={}, type={LINUX}, name={}\n\
         start={}, size={}, type=U, name=esp\n",
        sectors(FIRST_PARTITION),
        sectors(first.size),
        first.name,
        sectors(system_start),
        sectors(system_size),
    );
    write_table(&disk, &table)?;
    copy_into(&system, &disk, system_start)?;
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
        // It remarks on a file system that is there already, as is meant.
        .stderr(Stdio::piped())
        .spawn()
        .context("starting sfdisk")?;
    if let Some(mut input) = sfdisk.stdin.take() {
        input.write_all(table.as_bytes()).context("writing to sfdisk")?;
    }
    let output = sfdisk.wait_with_output().context("waiting for sfdisk")?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "sfdisk refused:\n{table}\n{complaint}");
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
