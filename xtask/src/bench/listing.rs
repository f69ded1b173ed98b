//! Rows about a VM Host with many guests defined: what a list costs, and what the check of a new guest's devices costs with
//! all the devices that are known.

use std::fs::File;

use anyhow::Result;

use super::Effort;
use super::house::House;
use super::report::{Row, Verdict};
use super::statistics::Series;

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
/// What the check may cost altogether, and so what many entries may add.
const CHECK_MS: f64 = 2.0;

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

/// The same guest is created in turn on this VM Host and on one that has no other; each of its guests has two disks of its own.
fn check(crowded: &House, effort: &Effort) -> Result<Row> {
    let fresh = House::new_beside()?;
    let (mut many, mut none) = (Series::default(), Series::default());
    for n in 0..=effort.runs(31) {
        let create = |house: &House| {
            let name = format!("checked{n}");
            let disk = house.empty_disk(&format!("{name}.img"))?;
            house.create_full(&name, 100_000 + n, &disk)
        };
        let pair = [create(crowded)?, create(&fresh)?];
        // The first of each makes folders, or asks QEMU what it can.
        if n > 0 {
            many.push(pair[0]);
            none.push(pair[1]);
        }
    }
    let more = many.over(&none).median();
    Ok(Row {
        what: "device check in `hpvmcreate`: the same guest with 20,000 devices known, over none"
            .into(),
        peer: String::new(),
        target: "+2 ms",
        measured: format!("{more:+.1} ms ({many} and {none})"),
        verdict: Verdict::of(more <= CHECK_MS),
    })
}
