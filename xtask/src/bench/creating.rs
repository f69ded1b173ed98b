//! The row about creation: hpvmcreate and `virsh define` of the same guest in turn.

use anyhow::Result;

use super::Effort;
use super::house::House;
use super::peer::Peer;
use super::process::rest;
use super::report::{Row, Verdict};
use super::statistics::Series;

/// Less than a peer that is not installed took on machines of this kind.
const TARGET_MS: f64 = 17.0 / 5.0;

pub(super) fn measure(effort: &Effort) -> Result<Vec<Row>> {
    let house = House::new()?;
    let peer = Peer::start()?;
    let (mut ours, mut theirs) = (Series::default(), Series::default());
    for n in 0..=effort.runs(31) {
        let disk = house.empty_disk(&format!("first-{n}"))?;
        rest();
        let took = house.create_full(&format!("created{n}"), n, &disk)?;
        rest();
        let defined =
            peer.as_ref().map(|peer| peer.define(&format!("defined{n}"), &disk)).transpose()?;
        // The first of each makes folders and registry, or asks QEMU what it can.
        if n > 0 {
            ours.push(took);
            defined.into_iter().for_each(|time| theirs.push(time));
        }
    }
    let target = if theirs.is_empty() { TARGET_MS } else { theirs.median() / 5.0 };
    Ok(vec![Row {
        what: "`hpvmcreate`, durable".into(),
        peer: if theirs.is_empty() { String::new() } else { format!("`virsh define` {theirs}") },
        target: "1/5 of virsh",
        measured: ours.to_string(),
        verdict: Verdict::of(ours.median() <= target),
    }])
}
