//! The row about an emulated adapter that comes with its disk while the guest runs, which stands still meanwhile: how long, the
//! guest's log says.

use std::fs::{self, File};
use std::path::Path;

use anyhow::{Context, Result, ensure};

use super::Effort;
use super::house::House;
use super::process;
use super::report::{Row, Verdict};
use super::statistics::Series;
use crate::cache::checkout;
use crate::test_guest;

const GUEST: &str = "plugged";
/// What the guest prints when it is up.
const READY: &str = "HPVM GUEST READY";
/// What its log says of each pause, before the milliseconds.
const PAUSE: &str = "the guest stood still for ";
const HELD_MS: f64 = 20.0;

pub(super) fn measure(effort: &Effort) -> Result<Vec<Row>> {
    let house = House::new()?;
    boot(&house)?;
    let disk = house.root.join("disks/plugged.img");
    File::create(&disk)?.set_len(64 << 20)?;
    let statement = format!("disk:scsi:0,6,0:file:{}", disk.display());
    let rounds = effort.runs(31);
    // In the first one guest and emulation meet everything for the first time.
    for _ in 0..=rounds {
        house.run(&["hpvmmodify", "-P", GUEST, "-a", &statement])?;
        house.run(&["hpvmmodify", "-P", GUEST, "-d", &statement])?;
        process::wait_until("the adapter has left", || {
            let shown = house.run(&["hpvmstatus", "-P", GUEST]);
            shown.is_ok_and(|shown| !shown.contains("plugged.img"))
        })?;
    }
    let log = fs::read_to_string(house.guest_file(GUEST, "log")).context("reading the log")?;
    let pauses = log.split(PAUSE).skip(1).skip(1);
    let milliseconds = |rest: &str| rest.split(' ').next().and_then(|ms| ms.parse().ok());
    let held: Vec<f64> = pauses.filter_map(milliseconds).collect();
    ensure!(held.len() == rounds, "{} pauses of {rounds} in the log", held.len());
    let held: Series = held.into_iter().collect();
    Ok(vec![Row {
        what: "VIO adapter added with its disk to a running guest: how long the guest stands still"
            .into(),
        peer: String::new(),
        target: "20 ms",
        verdict: Verdict::of(held.median() <= HELD_MS),
        measured: held.to_string(),
    }])
}

fn boot(house: &House) -> Result<()> {
    let rom = checkout().join(".cache/images/mptsas1068.rom");
    house.set(&[("HPVMSCSIROM", &rom)])?;
    let disk = house.root.join("disks/boot.img");
    fs::create_dir_all(disk.parent().unwrap_or(Path::new("/")))?;
    fs::copy(test_guest::load_image()?, &disk).context("copying the guest's disk")?;
    let disk = format!("disk:avio_stor:0,0,0:file:{}", disk.display());
    house.run(&["hpvmcreate", "-P", GUEST, "-O", "linux", "-c", "1", "-r", "512M", "-a", &disk])?;
    house.run(&["hpvmstart", "-P", GUEST])?;
    let console = house.guest_file(GUEST, "console.log");
    process::wait_until("the guest is up", || {
        fs::read(&console).is_ok_and(|log| String::from_utf8_lossy(&log).contains(READY))
    })?;
    Ok(())
}
