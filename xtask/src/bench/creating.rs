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
    let share = ours.of(&theirs);
    let [low, middle, high] = [0.1, 0.5, 0.9].map(|part| share.quantile(part) * 100.0);
    let (peer, measured, is_met) = if theirs.is_empty() {
        (String::new(), ours.to_string(), ours.median() <= TARGET_MS)
    } else {
        let share = format!("{middle:.1}% of virsh's (8 of 10 in {low:.0} to {high:.0}%)");
        (format!("`virsh define` {theirs}"), format!("{ours}; {share}"), middle <= 20.0)
    };
    Ok(vec![Row {
        what: "`hpvmcreate`, durable".into(),
        peer,
        target: "1/5 of virsh",
        measured,
        verdict: Verdict::of(is_met),
    }])
}
