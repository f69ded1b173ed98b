//! The version of a QEMU program, asked once per program file.
//!
//! `qemu --version` takes some 25 ms, more than all else a start does, so the answer is kept in the run folder under what
//! identifies the file: device, inode, time of change and size.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::{asking, durable};

/// A QEMU that has not said its version by then never will.
const BOUND: Duration = Duration::from_secs(10);

/// Why the version is not known.
#[derive(Debug, thiserror::Error)]
pub enum VersionError {
    #[error("the engine {} cannot be looked at; install QEMU, or name it by HPVMQEMU in hpvmconf", path.display())]
    Missing { path: PathBuf, source: io::Error },
    #[error("the engine {} cannot be run", path.display())]
    Run { path: PathBuf, source: io::Error },
    #[error("the engine {} did not say its version within {} s", path.display(), BOUND.as_secs())]
    Silent { path: PathBuf },
    #[error("the engine {} says '{answer}' when asked for its version, which is not QEMU's way", path.display())]
    Unknown { path: PathBuf, answer: String },
}

/// The version as QEMU says it, such as `10.0.2`. `run` is the run folder, where the answer is kept.
pub fn qemu_version(program: &Path, run: &Path) -> Result<String, VersionError> {
    let metadata = fs::metadata(program)
        .map_err(|source| VersionError::Missing { path: program.to_owned(), source })?;
    let key = key(&metadata);
    let kept = run.join("qemu-version");
    if let Some(version) = remembered(&kept, &key) {
        return Ok(version);
    }
    let answer = ask(program)?;
    let version = parse(&answer).ok_or_else(|| VersionError::Unknown {
        path: program.to_owned(),
        answer: answer.lines().next().unwrap_or_default().to_owned(),
    })?;
    // Whoever may not write there just asks again.
    let _ = durable::swap_file(&kept, format!("{key} {version}\n").as_bytes(), 0o644);
    Ok(version)
}

fn key(metadata: &Metadata) -> String {
    format!(
        "{} {} {}.{} {}",
        metadata.dev(),
        metadata.ino(),
        metadata.ctime(),
        metadata.ctime_nsec(),
        metadata.size()
    )
}

fn remembered(kept: &Path, key: &str) -> Option<String> {
    let text = fs::read_to_string(kept).ok()?;
    Some(text.strip_prefix(key)?.strip_prefix(' ')?.strip_suffix('\n')?.to_owned())
}

fn ask(program: &Path) -> Result<String, VersionError> {
    let path = || program.to_owned();
    asking::answer(Command::new(program).arg("--version"), BOUND)
        .map_err(|source| VersionError::Run { path: path(), source })?
        .ok_or_else(|| VersionError::Silent { path: path() })
}

/// `QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2~bpo12+1)` and the like.
fn parse(answer: &str) -> Option<String> {
    let rest = answer.strip_prefix("QEMU emulator version ")?;
    let version = rest.split(|c: char| c.is_whitespace() || c == '(').next()?;
    let numbers = version.split('.').all(|part| part.parse::<u32>().is_ok());
    (numbers && version.contains('.')).then(|| version.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program(folder: &Path, script: &str) -> PathBuf {
        let path = folder.join("qemu");
        hpvm_testkit::write_script(&path, script);
        path
    }

    #[test]
    fn the_answer_is_kept_until_the_program_changes() {
        let folder = tempfile::tempdir().expect("a folder");
        let count = folder.path().join("count");
        let script = |version: &str| {
            format!("echo x >>{}; echo 'QEMU emulator version {version} (Debian)'", count.display())
        };
        let qemu = program(folder.path(), &script("10.0.2"));
        for _ in 0..3 {
            assert_eq!(qemu_version(&qemu, folder.path()).expect("a version"), "10.0.2");
        }
        assert_eq!(fs::read_to_string(&count).expect("asked"), "x\n");
        let qemu = program(folder.path(), &script("10.1.0"));
        assert_eq!(qemu_version(&qemu, folder.path()).expect("a version"), "10.1.0");
    }

    #[test]
    fn another_program_is_refused_with_its_words() {
        let folder = tempfile::tempdir().expect("a folder");
        let qemu = program(folder.path(), "echo bash 5.2");
        let error = qemu_version(&qemu, folder.path()).expect_err("no QEMU");
        assert!(matches!(&error, VersionError::Unknown { answer, .. } if answer == "bash 5.2"));
    }

    #[test]
    fn a_missing_engine_is_named() {
        let folder = tempfile::tempdir().expect("a folder");
        let error = qemu_version(&folder.path().join("none"), folder.path()).expect_err("missing");
        assert!(matches!(error, VersionError::Missing { .. }));
    }
}
