//! Rows about real guests: iperf3 between two of them and between one and its host, on a virtual switch of hpvm and on taps in
//! turn, by AVIO and by VIO.
//!
//! The switch is the product's own process, with its keeper, and so are the guests on it; those on taps have a QEMU with the
//! same command line. What a gigabyte costs is the processor time of all that carry it: the guests' QEMUs, the switch, the
//! host's iperf3, and the kernel's threads for what interrupts leave. What interrupts do at once counts for whom they met.

use std::time::Duration;

use anyhow::{Context, Result};

use super::guest::{Direction, Guest, Model, Nic, on_switch, on_taps};
use super::lan::{self, Iperf, apart};
use crate::bench::house::House;
use crate::bench::report::{Row, Verdict};
use crate::bench::statistics::Series;
use crate::bench::{Effort, process};

/// Many short runs pair better than few long ones: the machine changes its pace each second.
const SECONDS: u64 = 1;
const SWITCH: &str = "sw1";
/// The switch's wire, and the tap of a guest that has the host alone.
const WIRE: &str = "wire0";
/// The last byte of the host's addresses.
const HOST: u8 = 100;

/// Networks, by the second byte of their addresses: of the switch and its wire, and of taps.
const AVIO: u8 = 1;
const VIO: u8 = 2;
const OWN_TAP: u8 = 3;
const AVIO_TAPS: u8 = 4;
const VIO_TAPS: u8 = 5;

/// How many times as much AVIO brings as VIO, and which share of the processor time a gigabyte then costs.
const AVIO_OVER_VIO: f64 = 3.0;
const AVIO_TIME: f64 = 0.35;
/// What VIO keeps of the rate of e1000 on taps.
const VIO_OVER_TAPS: f64 = 0.9;

pub(in crate::bench) fn measure(effort: &Effort) -> Result<Vec<Row>> {
    if !crate::tool::is_root()? {
        eprintln!("  only root may make taps");
        return Ok(Vec::new());
    }
    let house = House::new()?;
    // What may have to be fetched comes before there is no network but ours.
    crate::test_guest::net_image()?;
    let iperf = Iperf::unpack(&house.root)?;
    apart(|| {
        let mut world = World::new(&house, &iperf)?;
        let mut ways = Ways::default();
        for _ in 0..effort.runs(21) {
            ways.take(&mut world)?;
        }
        Ok(ways.rows())
    })
}

/// Everybody who sends and receives.
struct World {
    switched: [Guest; 2],
    on_taps: [Guest; 2],
    server: lan::Server,
    switch: i32,
    /// The kernel's threads that do what interrupts leave.
    interrupts: Vec<i32>,
}

impl World {
    fn new(house: &House, iperf: &Iperf) -> Result<World> {
        house.run(&["hpvmnet", "-c", "-S", SWITCH, "--wire", &format!("tap:{WIRE}")])?;
        house.run(&["hpvmnet", "-S", SWITCH, "-b"])?;
        let nic = |model, network| Nic { model, network };
        let own = nic(Model::Avio, OWN_TAP);
        let bridged = [nic(Model::Avio, AVIO_TAPS), nic(Model::Vio, VIO_TAPS)];
        lan::add_tap(&own.tap(1), &host(OWN_TAP))?;
        let taps: Vec<String> =
            [1, 2].into_iter().flat_map(|guest| bridged.map(|nic| nic.tap(guest))).collect();
        lan::bridge(&taps)?;
        let nics = [nic(Model::Avio, AVIO), nic(Model::Vio, VIO)];
        let mut switched =
            [on_switch(house, SWITCH, 1, &nics)?, on_switch(house, SWITCH, 2, &nics)?];
        lan::give_address(WIRE, &host(AVIO))?;
        let mut on_taps = [
            on_taps(house, 3, 1, &[own, bridged[0], bridged[1]])?,
            on_taps(house, 4, 2, &bridged)?,
        ];
        switched.iter_mut().chain(&mut on_taps).try_for_each(Guest::set_up)?;
        let named = |wanted: &'static str| {
            move |(pid, name): &(i32, String)| name.starts_with(wanted).then_some(*pid)
        };
        let switch = house.processes().iter().find_map(named("hpvmnetd"));
        let mut world = World {
            switched,
            on_taps,
            server: iperf.serve()?,
            switch: switch.context("the switch does not run")?,
            interrupts: process::all().iter().filter_map(named("ksoftirqd/")).collect(),
        };
        world.switched[1].serve()?;
        world.on_taps[1].serve()?;
        Ok(world)
    }
}

/// The host's address on a network.
fn host(network: u8) -> String {
    format!("10.{network}.0.{HOST}")
}

/// What each way brought.
#[derive(Default)]
struct Ways {
    to_wire: Way,
    to_tap: Way,
    from_wire: Way,
    from_tap: Way,
    avio: Way,
    avio_taps: Way,
    vio: Way,
    vio_taps: Way,
}

impl Ways {
    /// Takes all ways once, those that are compared one after the other.
    fn take(&mut self, world: &mut World) -> Result<()> {
        let World { switched, on_taps, server, switch, interrupts } = world;
        let with_host = |way: &mut Way, guest: &mut Guest, network, direction, switch: &[i32]| {
            let carriers = [&[guest.engine(), server.pid()], &interrupts[..], switch].concat();
            way.add(guest, &host(network), direction, &carriers)
        };
        let (ours, none) = (&[*switch][..], &[][..]);
        for (direction, wire, tap) in [
            (Direction::Out, &mut self.to_wire, &mut self.to_tap),
            (Direction::In, &mut self.from_wire, &mut self.from_tap),
        ] {
            with_host(wire, &mut switched[0], AVIO, direction, ours)?;
            with_host(tap, &mut on_taps[0], OWN_TAP, direction, none)?;
        }
        let between = |way: &mut Way, guests: &mut [Guest; 2], network, switch: &[i32]| {
            let [from, to] = guests;
            let carriers = [&[from.engine(), to.engine()], &interrupts[..], switch].concat();
            way.add(from, &to.address(network), Direction::Out, &carriers)
        };
        between(&mut self.avio, switched, AVIO, ours)?;
        between(&mut self.avio_taps, on_taps, AVIO_TAPS, none)?;
        between(&mut self.vio, switched, VIO, ours)?;
        between(&mut self.vio_taps, on_taps, VIO_TAPS, none)
    }

    fn rows(&self) -> Vec<Row> {
        let beside = |what: &str, ours: &Way, peer: &str, theirs: &Way| {
            let (rate, time) = ours.over(theirs);
            Row {
                what: format!("{what}, iperf3"),
                peer: format!("{peer}: {}", theirs.words()),
                target: "at least that, at no more CPU",
                measured: format!(
                    "{}; {} of the rate, {} of the CPU",
                    ours.words(),
                    super::spread(&rate),
                    super::spread(&time)
                ),
                verdict: Verdict::of(rate.median() >= 1.0 && time.median() <= 1.0),
            }
        };
        vec![
            beside("one guest, AVIO, out by a tap wire", &self.to_wire, "QEMU's tap", &self.to_tap),
            beside(
                "one guest, AVIO, in by a tap wire",
                &self.from_wire,
                "QEMU's tap",
                &self.from_tap,
            ),
            beside(
                "two guests, AVIO to AVIO",
                &self.avio,
                "two taps on a kernel bridge",
                &self.avio_taps,
            ),
            self.avio_over_vio(),
        ]
    }

    fn avio_over_vio(&self) -> Row {
        let (rate, time) = self.avio.over(&self.vio);
        let (theirs, their_time) = self.avio_taps.over(&self.vio_taps);
        let (vio, _) = self.vio.over(&self.vio_taps);
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
                self.vio.words()
            ),
            verdict: Verdict::of(
                rate.median() >= AVIO_OVER_VIO
                    && time.median() <= AVIO_TIME
                    && vio.median() >= VIO_OVER_TAPS,
            ),
        }
    }
}

/// What one way brought, run by run.
#[derive(Default)]
struct Way {
    gigabits_per_second: Vec<f64>,
    processor_s_per_gigabyte: Vec<f64>,
    sent_again: Vec<f64>,
}

impl Way {
    /// Sends for some seconds; `carriers` are all processes that have to do with it.
    fn add(
        &mut self,
        guest: &mut Guest,
        address: &str,
        direction: Direction,
        carriers: &[i32],
    ) -> Result<()> {
        let used = || {
            let used = carriers.iter().map(|pid| process::processor_time(*pid)).sum::<Duration>();
            used.as_secs_f64()
        };
        let before = used();
        let transfer = guest.transfer(address, direction, SECONDS)?;
        let spent = used() - before;
        self.gigabits_per_second.push(transfer.bits_per_second / 1e9);
        self.processor_s_per_gigabyte.push(spent / (transfer.bytes / 1e9));
        self.sent_again.push(transfer.sent_again);
        Ok(())
    }

    /// Medians in words.
    fn words(&self) -> String {
        let [rate, time, again] =
            [&self.gigabits_per_second, &self.processor_s_per_gigabyte, &self.sent_again]
                .map(|figures| figures.iter().copied().collect::<Series>().median());
        format!("{rate:.2} Gbit/s, {time:.1} CPU s/GB, {again:.0} segments sent again")
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
