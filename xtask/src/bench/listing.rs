//! Rows about a VM Host with many guests defined: what a list costs, and what the check of a new guest's devices costs with
//! all the devices that are known.

use std::fs::File;

use anyhow::Result;

use super::Effort;
use super::house::House;
use super::report::{Row, Verdict};
use super::statistics::{Series, milliseconds};

/// Defines guests `PREFIX1` to `PREFIXn`, each complete, with few bytes of firmware variables: they are never started.
pub(super) fn define(house: &House, count: usize) -> Result<()> {
    let variables = house.root.join("few-variables");
    File::create(&variables)?.set_len(4096)?;
    house.set(&[("HPVMNVRAM", &variables)])?;
    eprintln!("  defining {count} guests …");
    for n in 1..=count {
        let disk = house.empty_disk(&format!("first-{n}"))?;
        house.create_full(&format!("filler{n}"), n, &disk)?;
    }
    house.set(&[])
}

/// Times `hpvmstatus`, after a first run that finds everything cold.
pub(super) fn status(house: &House, runs: usize) -> Result<Series> {
    house.time(&["hpvmstatus"])?;
    let mut series = Series::default();
    for _ in 0..runs {
        series.push(house.time(&["hpvmstatus"])?);
    }
    Ok(series)
}

const TARGET_MS: f64 = 40.0;
const CHECK_MS: f64 = 2.0;
/// What many known devices may add.
const FLAT_MS: f64 = 0.5;

pub(super) fn measure(effort: &Effort) -> Result<Vec<Row>> {
    let house = House::new()?;
    define(&house, effort.amount(10_000, 2_000))?;
    let series = status(&house, effort.runs(15))?;
    let check = check(&house, effort)?;
    let listed = Row {
        what: "`hpvmstatus`, 10,000 guests defined".into(),
        peer: String::new(),
        target: "40 ms",
        measured: series.to_string(),
        verdict: Verdict::of(series.median() <= TARGET_MS),
    };
    Ok(vec![listed, check])
}

/// What a guest is judged for with its disks, over one without, in a dry run: so nothing is written, and no disk is waited for.
/// In turn on this VM Host and on one that knows no device.
fn check(crowded: &House, effort: &Effort) -> Result<Row> {
    let fresh = House::new_beside()?;
    fresh.run(&["hpvmcreate", "-P", "first"])?;
    let devices = ["one", "two", "three"].map(|name| {
        crowded.empty_disk(name).map(|path| format!("disk:avio_stor::file:{}", path.display()))
    });
    let devices: Vec<String> = devices.into_iter().collect::<Result<_>>()?;
    let bare = ["hpvmcreate", "-P", "judged", "--dry-run"];
    let mut with = bare.to_vec();
    devices.iter().for_each(|device| with.extend(["-a", device]));
    let [mut many, mut none] = [(); 2].map(|()| (Series::default(), Series::default()));
    for turn in 0..=effort.runs(61) {
        for (house, (judged, unjudged)) in [(crowded, &mut many), (&fresh, &mut none)] {
            let pair = (house.time(&with)?, house.time(&bare)?);
            // The first of each asks QEMU what it can.
            if turn > 0 {
                judged.push(pair.0);
                unjudged.push(pair.1);
            }
        }
    }
    let [many, none] = [many, none].map(|(judged, unjudged)| judged.over(&unjudged).median());
    Ok(Row {
        what: "device check in `hpvmcreate` for three disks, with 20,000 devices known".into(),
        peer: String::new(),
        target: "2 ms, and flat",
        measured: format!("{} (with none known {})", milliseconds(many), milliseconds(none)),
        verdict: Verdict::of(many <= CHECK_MS && many <= none + FLAT_MS),
    })
}
