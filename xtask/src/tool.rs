//! Runs the tools of the system (mmdebstrap, mcopy, sfdisk, …), each with a bound on its time.
//!
//! All tasks call them through here. The bound is kept by timeout(1), so that a child that hangs on a dead mirror ends
//! the task with a line that names it.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// A command whose run may take no longer than `bound`.
pub(crate) fn tool(program: &str, bound: Duration) -> Command {
    let mut command = Command::new("timeout");
    // In the foreground, so that Ctrl-C reaches the tool as it reaches us.
    command.args(["--foreground", "--kill-after=10"]).arg(bound.as_secs().to_string()).arg(program);
    command.env("PATH", path_with_system_tools());
    command
}

/// The PATH of an ordinary user of Debian lacks the folders of mkfs.vfat, mke2fs and sfdisk.
fn path_with_system_tools() -> String {
    let own = std::env::var("PATH").unwrap_or_default();
    format!("{own}:/usr/local/sbin:/usr/sbin:/sbin")
}

/// Runs `command` and gives its standard output; on failure its last words are in the error.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let words = words(command);
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("starting `{words}` (is it installed? scripts/install-deps)"))?;
    if !output.status.success() {
        let ending = match output.status.code() {
            Some(124 | 137) => "took too long".to_owned(),
            Some(127) => "is not installed (run scripts/install-deps)".to_owned(),
            _ => format!("failed, {}", output.status),
        };
        bail!("`{words}` {ending}\n{}", last_lines(&output.stdout, &output.stderr));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs `command` for its effect.
pub(crate) fn perform(command: &mut Command) -> Result<()> {
    output(command).map(drop)
}

/// Prints one line of progress when `work` begins and the seconds it took when it ends.
pub(crate) fn phase<T>(title: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let start = Instant::now();
    eprint!("  {title} … ");
    let result = work();
    match &result {
        Ok(_) => eprintln!("{:.1} s", start.elapsed().as_secs_f64()),
        Err(_) => eprintln!("failed after {:.1} s", start.elapsed().as_secs_f64()),
    }
    result
}

/// True when the task runs as root, so that no tool has to pretend it.
pub(crate) fn is_root() -> Result<bool> {
    use std::os::unix::fs::MetadataExt;
    let own = Path::new("/proc/self");
    Ok(own.metadata().context("reading /proc/self")?.uid() == 0)
}

/// The command as a person would type it, without the bound in front.
fn words(command: &Command) -> String {
    let words: Vec<_> = command.get_args().skip(3).map(|word| word.to_string_lossy()).collect();
    words.join(" ")
}

fn last_lines(stdout: &[u8], stderr: &[u8]) -> String {
    let text = [stdout, stderr].map(String::from_utf8_lossy).join("\n");
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    let from = lines.len().saturating_sub(15);
    lines[from..].iter().map(|line| format!("    {line}\n")).collect()
}
