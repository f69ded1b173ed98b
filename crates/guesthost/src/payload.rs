//! What is put into the guest-host at each boot: hpvm as `make install` puts it, the shell functions of tests, and programs
//! that a test brings. An archive is the disk: no file system and no privilege is needed to make it, and the image of the
//! guest-host stays as it is when hpvm changes.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

/// Seconds that a tool may take.
const TOOL_BOUND: &str = "120";
/// Where the functions and programs lie in the guest.
const FOLDER: &str = "opt/guest-host";

/// The archive, removed with this value.
pub struct Payload {
    archive: PathBuf,
    _folder: TempDir,
}

impl Payload {
    /// hpvm from the folder `built`, and `programs` for `/opt/guest-host/bin`.
    pub fn of(repository: &Path, built: &Path, programs: &[PathBuf]) -> Result<Payload> {
        let folder = tempfile::Builder::new().prefix("hpvm-payload").tempdir();
        let folder = folder.context("making a folder for the payload")?;
        let root = folder.path().join("root");
        install_product(repository, built, &root)?;
        let functions = root.join(FOLDER);
        let bin = functions.join("bin");
        fs::create_dir_all(&bin).with_context(|| format!("making {}", bin.display()))?;
        copy_files(&repository.join("tests/guest-host"), &functions)?;
        for program in programs {
            let name = program.file_name().context("a program without a name")?;
            copy_stripped(program, &bin.join(name))?;
        }
        let archive = folder.path().join("payload.tar");
        let mut tar = tool("tar");
        tar.arg("--create").arg("--file").arg(&archive);
        tar.args(["--owner=0", "--group=0", "--sparse"]).arg("--directory").arg(&root).arg(".");
        perform(&mut tar)?;
        Ok(Payload { archive, _folder: folder })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.archive
    }
}

fn install_product(repository: &Path, built: &Path, root: &Path) -> Result<()> {
    let hpvm = built.join("hpvm");
    ensure!(hpvm.exists(), "{} is not there; `cargo build --bins` makes it", hpvm.display());
    let mut make = tool("make");
    make.args(["--silent", "--no-print-directory", "install-built"]).current_dir(repository);
    make.arg(format!("BUILT={}", built.display()));
    // Debug binaries are large; nobody debugs them there.
    make.arg("INSTALL_PROGRAM=install --mode=755 --strip");
    make.arg(format!("DESTDIR={}", root.display())).arg("HPVM_ROOT=");
    perform(&mut make)
}

fn copy_files(from: &Path, to: &Path) -> Result<()> {
    let reading = || format!("reading {}", from.display());
    for entry in fs::read_dir(from).with_context(reading)? {
        let path = entry.with_context(reading)?.path();
        let name = path.file_name().with_context(reading)?;
        fs::copy(&path, to.join(name)).with_context(|| format!("copying {}", path.display()))?;
    }
    Ok(())
}

fn copy_stripped(program: &Path, to: &Path) -> Result<()> {
    let mut install = tool("install");
    perform(install.args(["--mode=755", "--strip"]).arg(program).arg(to))
}

fn tool(program: &str) -> Command {
    let mut command = Command::new("timeout");
    command.args(["--kill-after=10", TOOL_BOUND, program]);
    // Variables that a make around us hands on are not for ours.
    command.env_remove("MAKEFLAGS").env_remove("MAKEOVERRIDES").env_remove("MAKELEVEL");
    command
}

fn perform(command: &mut Command) -> Result<()> {
    let output = command.stdin(Stdio::null()).output();
    let output = output.with_context(|| format!("starting {command:?}"))?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?} ended with {}:\n{complaint}", output.status);
    Ok(())
}
