//! What was measured on: date, processors, kernel, QEMU; and the size of the binary.

use std::fs;
use std::process::Command;

use anyhow::Result;

use super::Effort;
use super::house::release;
use super::process::timed;
use super::report::{MEASURED_ON, Row, Verdict};

/// One sentence to stand under the table.
pub(super) fn description() -> Result<String> {
    let words = |program: &str, arguments: &[&str]| {
        let (text, _) = timed(Command::new(program).args(arguments))?;
        anyhow::Ok(text.lines().next().unwrap_or_default().trim().to_owned())
    };
    let date = words("date", &["-u", "+%Y-%m-%d"])?;
    let processors = words("nproc", &[])?;
    let model = fs::read_to_string("/proc/cpuinfo")?
        .lines()
        .find_map(|line| {
            Some(line.strip_prefix("model name")?.split_once(':')?.1.trim().to_owned())
        })
        .unwrap_or_else(|| "processor of unknown make".into());
    let kernel = words("uname", &["-r"])?;
    let qemu = words("qemu-system-x86_64", &["--version"])?;
    let load = fs::read_to_string("/proc/loadavg")?;
    let load = load.split_whitespace().next().unwrap_or_default();
    Ok(format!(
        "{MEASURED_ON}{date}: {processors} processors ({model}), Linux {kernel}, {qemu}, TCG; load average at the \
         beginning {load}. Medians, with the least in brackets."
    ))
}

const SIZE_MAX: u64 = 10 << 20;

pub(super) fn binary_size(_: &Effort) -> Result<Vec<Row>> {
    let bytes = fs::metadata(release("hpvm")?)?.len();
    Ok(vec![Row {
        what: "`hpvm` binary, release, stripped".into(),
        peer: String::new(),
        target: "10 MiB",
        measured: format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20)),
        verdict: Verdict::of(bytes <= SIZE_MAX),
    }])
}
