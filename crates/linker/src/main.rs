//! `hpvm-linker`: what `make build` has rustc link hpvm with. It links by cc(1), has the program run ordinary commands, and links
//! it again with the functions that they called side by side: a command's time is mostly its start, and its code then lies in a
//! third of the pages (lld, `--symbol-ordering-file`).
//!
//! Where the program cannot be watched, as where ptrace(2) is forbidden, or the linker is not lld, its functions stay in the order
//! they have: rustc tells the reason as a warning (`linker_messages`).

mod calls;
mod commands;

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, ExitStatus};
use std::{env, fs};

use anyhow::{Context, Result, ensure};

/// What rustc asks for when a profile has `strip = true`. Functions are told apart by their names.
const STRIP: &str = "-Wl,--strip-all";

fn main() -> ExitCode {
    let arguments: Vec<OsString> = env::args_os().skip(1).collect();
    match link(&arguments) {
        Ok(status) if status.success() => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("hpvm-linker: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn link(arguments: &[OsString]) -> Result<ExitStatus> {
    let with_names = cc(arguments.iter().filter(|argument| *argument != STRIP))?;
    let Some(program) = output(arguments).filter(|_| with_names.success()) else {
        return Ok(with_names);
    };
    match in_order(arguments, &program) {
        Ok(()) => Ok(with_names),
        Err(error) => {
            eprintln!("hpvm-linker: the functions stay where they are: {error:#}");
            cc(arguments.iter())
        }
    }
}

/// Links again, by the order in which the program calls its functions.
fn in_order(arguments: &[OsString], program: &Path) -> Result<()> {
    let order = commands::functions_called(program)?.join("\n");
    let file = program.with_extension("order");
    fs::write(&file, order).with_context(|| format!("writing {}", file.display()))?;
    let mut by_file = OsString::from("--symbol-ordering-file=");
    by_file.push(&file);
    // Not by -Wl, in which a comma of the folder's name would part it.
    let to_linker = OsString::from("-Xlinker");
    let quietly = OsString::from("--no-warn-symbol-ordering");
    let status = cc(arguments.iter().chain([&to_linker, &quietly, &to_linker, &by_file]))?;
    ensure!(status.success(), "the linker takes no order of functions");
    Ok(())
}

fn cc<'a>(arguments: impl Iterator<Item = &'a OsString>) -> Result<ExitStatus> {
    Command::new("cc").args(arguments).status().context("starting cc")
}

/// The file that a linker's command line names behind `-o`.
fn output(arguments: &[OsString]) -> Option<PathBuf> {
    let flag = arguments.iter().position(|argument| argument == OsStr::new("-o"))?;
    arguments.get(flag + 1).map(|path| Path::new(path).to_owned())
}
