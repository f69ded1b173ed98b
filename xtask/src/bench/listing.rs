//! Rows about lists: a VM Host with many guests defined.

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

pub(super) fn measure(effort: &Effort) -> Result<Vec<Row>> {
    let house = House::new()?;
    define(&house, effort.amount(10_000, 2_000))?;
    let series = status(&house, effort.runs(15))?;
    Ok(vec![Row {
        what: "`hpvmstatus`, 10,000 guests defined".into(),
        peer: String::new(),
        target: "40 ms",
        measured: series.to_string(),
        verdict: Verdict::of(series.median() <= TARGET_MS),
    }])
}
