//! `hpvm-linker`: what `make build` has rustc link hpvm with. It links by cc(1), has the program run ordinary commands, and links
//! it again with the functions that they called side by side: a command's time is mostly its start, and its code then lies in a
//! third of the pages (lld, `--symbol-ordering-file`).
//!
//! Where the program cannot be watched, as where ptrace(2) is forbidden, its functions stay in the order they have.

mod calls;
mod commands;

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, ExitStatus};
use std::{env, fs};

use anyhow::{Context, Result};

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
    let order = match commands::functions_called(&program) {
        Ok(functions) => functions.join("\n"),
        Err(error) => {
            eprintln!("hpvm-linker: the functions stay where they are: {error:#}");
            String::new()
        }
    };
    let file = program.with_extension("order");
    fs::write(&file, order).with_context(|| format!("writing {}", file.display()))?;
    let mut by_file = OsString::from("-Wl,--no-warn-symbol-ordering,--symbol-ordering-file=");
    by_file.push(&file);
    cc(arguments.iter().chain([&by_file]))
}

fn cc<'a>(arguments: impl Iterator<Item = &'a OsString>) -> Result<ExitStatus> {
    Command::new("cc").args(arguments).status().context("starting cc")
}

/// The file that a linker's command line names behind `-o`.
fn output(arguments: &[OsString]) -> Option<PathBuf> {
    let flag = arguments.iter().position(|argument| argument == OsStr::new("-o"))?;
    arguments.get(flag + 1).map(|path| Path::new(path).to_owned())
}
