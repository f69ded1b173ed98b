//! Rows about the data path of virtual switches: ours, testpmd that forwards between two ports without looking (the
//! practical limit) and OVS-DPDK, side by side under one traffic generator.
//!
//! The generator (`benches/traffic`) gives each switch in turn a slice of 50 ms and stops the others meanwhile; every
//! figure here is a ratio within a round of slices, since a machine of few processors may change its pace each second.

mod console;
mod contender;
mod generator;
mod guest;
mod lan;
mod ovs;
pub(super) mod product;
mod race;
pub(super) mod real;
mod slices;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;

use super::Effort;
use super::house;
use super::process;
use super::report::{Row, Verdict};
use super::statistics::Series;
use contender::Contender;
use generator::Generator;
use slices::Slices;

const SLICE_MS: usize = 50;
const IDLE_PORTS: usize = 100;
const IDLE_MIB: f64 = 32.0;
/// A thread that only sleeps uses nothing; below this lies what /proc cannot tell from nothing.
const IDLE_PERCENT: f64 = 0.02;

/// Names of the switches in the generator's lines.
const LIMIT: &str = "testpmd";
const OURS: &str = "ours";
const OURS_WITH_MANY_PORTS: &str = "ours-with-many-ports";
const OURS_WITHOUT_RULES: &str = "ours-without-rules";
const OURS_WITH_RULES: &str = "ours-with-rules";
const OVS: &str = "ovs";

const SMALL: &str = "small";
const LARGE: &str = "large";
const LARGE_BOTH_WAYS: &str = "large-both-ways";
const PING_PONG: &str = "ping-pong";
const MANY_FLOWS: &str = "many-flows";

/// Of a row of which nothing is left to compare.
const NOTHING: &str = "– (nothing was measured: in no round had the generator and both that are compared their processors for 19 parts in 20 of a slice, and the slower one was slower than the generator)";

pub(super) fn measure(effort: &Effort) -> Result<Vec<Row>> {
    if let Some(missing) = contender::missing()? {
        eprintln!("  {missing}: `sudo scripts/install-deps bench-switch`, and run this as root");
        return Ok(Vec::new());
    }
    let folder = Folder(house::fresh_folder("vswitch")?);
    let generator = Generator::build(&folder.0)?;
    let rounds = effort.amount(60, 10);
    let ruled = ruled(&folder.0, &generator, rounds)?;
    let crowded = Contender::ours(&folder.0, OURS_WITH_MANY_PORTS, 2 + IDLE_PORTS)?;
    let _guests = generator.idle(&crowded.sockets[2..])?;
    let idle = idle(&crowded, effort)?;

    // Ours has its slices beside those that it is compared with: the processors are placed anew about once a second.
    let contenders = [
        Contender::testpmd(&folder.0, LIMIT)?,
        Contender::ours(&folder.0, OURS, 2)?,
        Contender::ovs(&folder.0, OVS)?,
        crowded,
    ];
    contenders.iter().try_for_each(Contender::put_ahead)?;
    let patterns = [SMALL, LARGE, LARGE_BOTH_WAYS, PING_PONG, MANY_FLOWS];
    let lines = generator.slices(rounds, SLICE_MS, &patterns, &contenders)?;
    Ok(rows(&Slices::parse(&lines)?, ruled, idle))
}

/// Removed with all it holds, whatever happens; the programs have ended before.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        house::remove(&self.0);
    }
}

fn idle(crowded: &Contender, effort: &Effort) -> Result<Row> {
    idle_row(format!("virtual switch with {IDLE_PORTS} idle ports"), &[crowded.pid()], effort)
}

/// What these processes use while nothing passes.
fn idle_row(what: String, pids: &[i32], effort: &Effort) -> Result<Row> {
    let seconds = effort.amount(30, 5) as u64;
    // What came with the connections is done first.
    process::pause(Duration::from_secs(1));
    let used = || pids.iter().map(|pid| process::processor_time(*pid)).sum::<Duration>();
    let before = used();
    process::pause(Duration::from_secs(seconds));
    let percent = (used() - before).as_secs_f64() / seconds as f64 * 100.0;
    let shares: Vec<u64> =
        pids.iter().map(|pid| Ok(process::memory(*pid)?.pss)).collect::<Result<_>>()?;
    let mib = shares.iter().sum::<u64>() as f64 / 1024.0;
    Ok(Row {
        what,
        peer: "DPDK: one processor, always".into(),
        target: "no measurable processor time, 32 MiB",
        measured: format!("{percent:.3}% over {seconds} s, {mib:.1} MiB"),
        verdict: Verdict::of(percent <= IDLE_PERCENT && mib <= IDLE_MIB),
    })
}

/// What rules cost. They are apart from the other switches, since a guarded port sends from its own address alone.
fn ruled(folder: &Path, generator: &Generator, rounds: usize) -> Result<Row> {
    let contenders = [
        Contender::ours(folder, OURS_WITHOUT_RULES, 2)?,
        Contender::ours_with_rules(folder, OURS_WITH_RULES)?,
    ];
    let _guests = generator.idle(&contenders[1].sockets[2..])?;
    contenders.iter().try_for_each(Contender::put_ahead)?;
    let lines = generator.slices(rounds, SLICE_MS, &[SMALL, LARGE], &contenders)?;
    Ok(rules(&Slices::parse(&lines)?))
}

fn rows(slices: &Slices, ruled: Row, idle: Row) -> Vec<Row> {
    vec![
        throughput(
            slices,
            SMALL,
            "64 B one way, one core",
            "0.85 of testpmd, above OVS-DPDK",
            0.85,
        ),
        throughput(slices, LARGE, "1518 B one way", "0.95 of testpmd, above OVS-DPDK", 0.95),
        throughput(
            slices,
            LARGE_BOTH_WAYS,
            "1518 B both ways",
            "0.95 of testpmd, above OVS-DPDK",
            0.95,
        ),
        latency(slices),
        flatness(slices),
        ruled,
        idle,
    ]
}

/// Frames per second, as a share of what testpmd did in the same round, and of what OVS-DPDK did, which ours is to be above in
/// nine rounds of ten that tell.
fn throughput(slices: &Slices, pattern: &str, what: &str, target: &'static str, share: f64) -> Row {
    let ours = slices.ratio(pattern, OURS, LIMIT);
    let theirs = slices.ratio(pattern, OVS, LIMIT);
    let rate = slices.median(pattern, OURS);
    let cycles = match slices.cycles(pattern, OURS) {
        Some(cycles) => format!("{cycles:.0} cycles"),
        // Its time stamp counter runs at one pace, whatever that of the processor is.
        None => format!("{:.0} TSC cycles", slices.clock_hz / (rate * 1e6)),
    };
    let above = slices.lead(pattern, OURS, OVS);
    let rounds = slices.ratio(pattern, OURS, OVS).len();
    let row = Row {
        what: format!("virtual switch, {what}"),
        peer: format!("OVS-DPDK {}", spread(&theirs)),
        target,
        measured: format!(
            "{} ({rate:.2} Mpps, {cycles} a frame); {} of OVS-DPDK, by {} of {rounds} rounds",
            spread(&ours),
            spread(&above),
            above.len(),
        ),
        verdict: Verdict::of(ours.median() >= share && above.quantile(0.1) > 1.0),
    };
    if_measured(&[&ours, &theirs, &above], row)
}

fn latency(slices: &Slices) -> Row {
    let ours = slices.ratio(PING_PONG, OURS, LIMIT);
    let theirs = slices.ratio(PING_PONG, OVS, LIMIT);
    let [own, limit] = [OURS, LIMIT].map(|switch| slices.median(PING_PONG, switch) / 1000.0);
    let row = Row {
        what: "virtual switch, one frame at a time, median of a crossing".into(),
        peer: format!("OVS-DPDK {}", spread(&theirs)),
        target: "1.1 of testpmd",
        measured: format!("{} ({own:.2} µs, testpmd {limit:.2} µs)", spread(&ours)),
        verdict: Verdict::of(ours.median() <= 1.1 && ours.median() < theirs.median()),
    };
    if_measured(&[&ours, &theirs], row)
}

/// What many flows and many ports leave of the speed with one flow and two ports.
fn flatness(slices: &Slices) -> Row {
    let of_limit = |switch| [MANY_FLOWS, SMALL].map(|pattern| slices.ratio(pattern, switch, LIMIT));
    let (of_ours, of_theirs) = (of_limit(OURS), of_limit(OVS));
    let [flows, theirs] = [&of_ours, &of_theirs].map(|[many, one]| many.median() / one.median());
    let alone = slices.between([MANY_FLOWS, OURS], [SMALL, OURS]);
    let ports = slices.ratio(SMALL, OURS_WITH_MANY_PORTS, OURS);
    let above = slices.lead(MANY_FLOWS, OURS, OVS);
    let row = Row {
        what: "virtual switch, 8,191 flows between 1,000 addresses; 102 ports, one talks".into(),
        peer: format!("OVS-DPDK {theirs:.2} with the flows"),
        target: "0.9 of one flow and two ports",
        measured: format!(
            "{flows:.2}, not seen against testpmd {}; {}; with the flows {} of OVS-DPDK",
            spread(&alone),
            spread(&ports),
            spread(&above)
        ),
        verdict: Verdict::of(flows >= 0.9 && ports.median() >= 0.9 && above.quantile(0.1) > 1.0),
    };
    let both = of_ours.iter().chain(&of_theirs);
    if_measured(&both.chain([&alone, &ports, &above]).collect::<Vec<_>>(), row)
}

/// What is left of the speed without rules.
fn rules(slices: &Slices) -> Row {
    let [small, large] =
        [SMALL, LARGE].map(|pattern| slices.ratio(pattern, OURS_WITH_RULES, OURS_WITHOUT_RULES));
    let row = Row {
        what: "virtual switch, ports with a new guest's rules, beside one with addresses, rates and a mirror"
            .into(),
        peer: String::new(),
        target: "0.95 of ports without rules",
        measured: format!("64 B {}; 1518 B {}", spread(&small), spread(&large)),
        verdict: Verdict::of(small.median().min(large.median()) >= 0.95),
    };
    if_measured(&[&small, &large], row)
}

/// The row, if each of its comparisons has a round left.
fn if_measured(compared: &[&Series], row: Row) -> Row {
    match compared.iter().any(|series| series.is_empty()) {
        true => Row {
            peer: String::new(),
            measured: NOTHING.into(),
            verdict: Verdict::Unmeasured,
            ..row
        },
        false => row,
    }
}

/// `0.91 (8 of 10 in 0.88 to 0.95)`.
fn spread(ratios: &Series) -> String {
    let [low, middle, high] = [0.1, 0.5, 0.9].map(|share| ratios.quantile(share));
    format!("{middle:.2} (8 of 10 in {low:.2} to {high:.2})")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One round, in which each switch passed so many frames of each size.
    fn round(frames: [(&str, [u32; 2]); 2]) -> Slices {
        let line = |pattern: &str, switch: &str, frames: u32| {
            format!(
                "slice pattern={pattern} round=0 switch={switch} offered=1000 sent={frames} received={frames} ns=1000 held_up_ns=0 waited_ns=0\n"
            )
        };
        let lines = frames.map(|(switch, [small, large])| {
            line(SMALL, switch, small) + &line(LARGE, switch, large)
        });
        Slices::parse(&lines.concat()).unwrap()
    }

    #[test]
    fn a_comparison_without_a_round_is_no_figure() {
        let nothing = Slices::parse("clock hz=2600000000\n").unwrap();
        let rows = [
            throughput(&nothing, SMALL, "64 B", "0.85", 0.85),
            latency(&nothing),
            flatness(&nothing),
            rules(&nothing),
        ];
        for row in rows {
            assert!(row.verdict == Verdict::Unmeasured, "{}", row.line());
            assert!(row.line().contains(NOTHING) && !row.line().contains("NaN"), "{}", row.line());
        }
    }

    #[test]
    fn rules_may_cost_a_twentieth_of_frames_of_either_size() {
        let verdict = |small, large| {
            let frames = [(OURS_WITHOUT_RULES, [100, 100]), (OURS_WITH_RULES, [small, large])];
            rules(&round(frames)).verdict
        };
        assert!(verdict(95, 97) == Verdict::Met);
        assert!(verdict(94, 100) == Verdict::Missed);
        assert!(verdict(100, 94) == Verdict::Missed);
    }
}
