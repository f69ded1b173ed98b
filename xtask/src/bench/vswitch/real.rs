//! Rows about real guests: iperf3 between two of them, over our switch and over taps on a bridge of the kernel in turn, by
//! AVIO and by VIO. Both guests have a NIC for each way, so the same two processes are measured all ways.

use std::time::Duration;

use anyhow::Result;

use super::Folder;
use super::contender::Contender;
use super::guest::{Guest, Model, Nic};
use super::lan::Lan;
use crate::bench::report::{Row, Verdict};
use crate::bench::statistics::Series;
use crate::bench::{Effort, house, process};

const SECONDS: u64 = 4;

/// NICs of each guest, by their order.
const AVIO_SWITCH: usize = 0;
const AVIO_TAPS: usize = 1;
const VIO_SWITCH: usize = 2;
const VIO_TAPS: usize = 3;

/// How many times as much AVIO brings as VIO, and which share of the processor time a gigabyte then costs.
const AVIO_OVER_VIO: f64 = 3.0;
const AVIO_TIME: f64 = 0.35;
/// What VIO keeps of the rate of e1000 on taps.
const VIO_OVER_TAPS: f64 = 0.9;

/// What one way between the guests brought, run by run.
#[derive(Default)]
struct Way {
    gigabits_per_second: Vec<f64>,
    processor_s_per_gigabyte: Vec<f64>,
}

pub(in crate::bench) fn measure(effort: &Effort) -> Result<Vec<Row>> {
    if !crate::tool::is_root()? {
        eprintln!("  only root may make taps");
        return Ok(Vec::new());
    }
    let folder = Folder(house::fresh_folder("vswitch-guests")?);
    let switch = Contender::at_ease(&folder.0, "switch", &[Model::Avio, Model::Vio], 2)?;
    let lan = Lan::new()?;
    let boot = |number: usize| {
        let [avio, vio] = [number - 1, number + 1].map(|n| switch.sockets[n].as_path());
        let nics = [
            Nic::Switch(Model::Avio, avio),
            Nic::Tap(Model::Avio),
            Nic::Switch(Model::Vio, vio),
            Nic::Tap(Model::Vio),
        ];
        Guest::boot(&lan, &folder.0, number, &nics)
    };
    let (mut sender, mut receiver) = (boot(1)?, boot(2)?);
    receiver.run("iperf3 -s -D >/dev/null")?;
    let mut ways = [(); 4].map(|()| Way::default());
    for _ in 0..effort.runs(9) {
        for nic in [AVIO_SWITCH, AVIO_TAPS, VIO_SWITCH, VIO_TAPS] {
            let others = [switch.pid()];
            let is_switched = [AVIO_SWITCH, VIO_SWITCH].contains(&nic);
            let others = if is_switched { &others[..] } else { &[] };
            ways[nic].add(&mut sender, &receiver, nic, others)?;
        }
    }
    Ok(vec![between_guests(&ways), avio_over_vio(&ways)])
}

impl Way {
    /// Sends for some seconds; `others` are processes that carry the traffic beside the guests' own.
    fn add(&mut self, from: &mut Guest, to: &Guest, nic: usize, others: &[i32]) -> Result<()> {
        let used = |from: &Guest| {
            let others = others.iter().map(|pid| process::processor_time(*pid)).sum::<Duration>();
            (from.processor_time() + to.processor_time() + others).as_secs_f64()
        };
        let before = used(from);
        let transfer = from.send(&to.address(nic), SECONDS)?;
        let spent = used(from) - before;
        self.gigabits_per_second.push(transfer.bits_per_second / 1e9);
        self.processor_s_per_gigabyte.push(spent / (transfer.bytes / 1e9));
        Ok(())
    }

    /// Median of the rate and of the processor time, in words.
    fn words(&self) -> String {
        let [rate, time] = [&self.gigabits_per_second, &self.processor_s_per_gigabyte]
            .map(|figures| figures.iter().copied().collect::<Series>().median());
        format!("{rate:.2} Gbit/s, {time:.1} CPU s/GB")
    }

    /// This way's rate over another's, and the same of the processor time of a gigabyte, run by run.
    fn over(&self, other: &Way) -> (Series, Series) {
        let ratio = |one: &[f64], other: &[f64]| {
            one.iter().zip(other).map(|(one, other)| one / other).collect()
        };
        (
            ratio(&self.gigabits_per_second, &other.gigabits_per_second),
            ratio(&self.processor_s_per_gigabyte, &other.processor_s_per_gigabyte),
        )
    }
}

fn between_guests(ways: &[Way; 4]) -> Row {
    let (ours, theirs) = (&ways[AVIO_SWITCH], &ways[AVIO_TAPS]);
    let (rate, time) = ours.over(theirs);
    Row {
        what: "two guests, AVIO to AVIO, iperf3".into(),
        peer: format!("two taps on a kernel bridge: {}", theirs.words()),
        target: "at least that, at no more CPU",
        measured: format!(
            "{}; {} of the rate, {} of the CPU",
            ours.words(),
            super::spread(&rate),
            super::spread(&time)
        ),
        verdict: Verdict::of(rate.median() >= 1.0 && time.median() <= 1.0),
    }
}

fn avio_over_vio(ways: &[Way; 4]) -> Row {
    let (rate, time) = ways[AVIO_SWITCH].over(&ways[VIO_SWITCH]);
    let (theirs, their_time) = ways[AVIO_TAPS].over(&ways[VIO_TAPS]);
    let (vio, _) = ways[VIO_SWITCH].over(&ways[VIO_TAPS]);
    let less = |time: &Series| 100.0 * (1.0 - time.median());
    Row {
        what: "two guests, AVIO over VIO on one virtual switch, iperf3".into(),
        peer: format!(
            "virtio over e1000 on taps: {:.2} times, {:.0}% less CPU per GB",
            theirs.median(),
            less(&their_time)
        ),
        target: "3 times, 65% less CPU per GB, and VIO 0.9 of e1000 on taps",
        measured: format!(
            "{:.2} times, {:.0}% less, VIO {} of e1000 on taps ({})",
            rate.median(),
            less(&time),
            super::spread(&vio),
            ways[VIO_SWITCH].words()
        ),
        verdict: Verdict::of(
            rate.median() >= AVIO_OVER_VIO
                && time.median() <= AVIO_TIME
                && vio.median() >= VIO_OVER_TAPS,
        ),
    }
}
