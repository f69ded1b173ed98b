//! Rows about real guests: iperf3 between two of them, over our switch and over taps on a bridge of the kernel in turn.
//! Both guests have a NIC on each, so the same two processes are measured both ways.

use std::time::Duration;

use anyhow::Result;

use super::Folder;
use super::contender::Contender;
use super::guest::{Guest, Nic};
use super::lan::Lan;
use crate::bench::report::{Row, Verdict};
use crate::bench::statistics::Series;
use crate::bench::{Effort, house, process};

const SECONDS: u64 = 4;
/// NICs of each guest, by their order.
const OVER_SWITCH: usize = 0;
const OVER_TAPS: usize = 1;

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
    let switch = Contender::at_ease(&folder.0, "switch", 2)?;
    let lan = Lan::new()?;
    let boot = |number: usize| {
        let nics = [Nic::Switch(&switch.sockets[number - 1]), Nic::Tap];
        Guest::boot(&lan, &folder.0, number, &nics)
    };
    let (mut sender, mut receiver) = (boot(1)?, boot(2)?);
    receiver.run("iperf3 -s -D >/dev/null")?;
    let [mut ours, mut theirs] = [Way::default(), Way::default()];
    for _ in 0..effort.runs(9) {
        ours.add(&mut sender, &receiver, OVER_SWITCH, &[switch.pid()])?;
        theirs.add(&mut sender, &receiver, OVER_TAPS, &[])?;
    }
    Ok(vec![between_guests(&ours, &theirs)])
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
}

fn between_guests(ours: &Way, theirs: &Way) -> Row {
    let ratio = |one: &[f64], other: &[f64]| -> Series {
        one.iter().zip(other).map(|(one, other)| one / other).collect()
    };
    let rate = ratio(&ours.gigabits_per_second, &theirs.gigabits_per_second);
    let time = ratio(&ours.processor_s_per_gigabyte, &theirs.processor_s_per_gigabyte);
    Row {
        what: "two guests, AVIO to AVIO, iperf3".into(),
        peer: format!("two taps on a kernel bridge {}", theirs.words()),
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
