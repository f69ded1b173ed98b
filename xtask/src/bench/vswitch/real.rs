//! Rows about real guests: iperf3 between two of them and between one and its host, on a virtual switch of hpvm and on taps, in
//! slices by turns, by AVIO and by VIO.
//!
//! The switch is the product's own process, with its keeper, and so are the guests on it; those on taps have a QEMU with the
//! same command line. What a gigabyte costs is the processor time of all that carry it: the guests' QEMUs, the switch, the
//! host's iperf3, and the kernel's threads for what interrupts leave. What interrupts do at once counts for whom they met.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};

use super::guest::{Direction, Guest, Model, Nic, on_switch, on_taps};
use super::lan::{self, Iperf, apart};
use super::race::{Brought, Meter, Slice, Transfer, race};
use crate::bench::house::House;
use crate::bench::report::{Row, Verdict};
use crate::bench::statistics::Series;
use crate::bench::{Effort, process};

const SWITCH: &str = "sw1";
/// The switch's wire, and the tap of a guest that has the host alone.
const WIRE: &str = "wire0";
/// The last byte of the host's addresses.
const HOST: u8 = 100;
/// Where iperf3 listens in guests.
const GUEST_SERVER: u16 = 5201;

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
        for _ in 0..effort.runs(15) {
            ways.take(&mut world)?;
        }
        ways.tell_what_counts();
        Ok(ways.rows())
    })
}

/// Everybody who sends and receives.
struct World {
    switched: [Guest; 2],
    on_taps: [Guest; 2],
    /// The host's, for each of the two that race.
    servers: [lan::Server; 2],
    switch: i32,
    run_folder: PathBuf,
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
            servers: [iperf.serve(GUEST_SERVER)?, iperf.serve(GUEST_SERVER + 1)?],
            switch: switch.context("the switch does not run")?,
            run_folder: switch_folder(house)?,
            interrupts: process::all().iter().filter_map(named("ksoftirqd/")).collect(),
        };
        world.switched[1].serve()?;
        world.on_taps[1].serve()?;
        Ok(world)
    }

    /// A guest on the switch and one with a tap talk to the host.
    fn with_host(&mut self, direction: Direction) -> Result<[Brought; 2]> {
        let [guest, _] = &mut self.switched;
        let [on_tap, _] = &mut self.on_taps;
        let [server, other_server] = &self.servers;
        let meter = Meter::of_port(&self.run_folder, guest, Model::Avio, direction)?;
        let tap = Nic { model: Model::Avio, network: OWN_TAP }.tap(1);
        let mut transfers = [
            Transfer {
                carriers: vec![guest.engine(), self.switch, server.pid()],
                guest,
                server: (host(AVIO), server.port),
                direction,
                meter,
            },
            Transfer {
                carriers: vec![on_tap.engine(), other_server.pid()],
                guest: on_tap,
                server: (host(OWN_TAP), other_server.port),
                direction,
                meter: Meter::Tap { name: tap, direction },
            },
        ];
        race(&mut transfers, &self.interrupts)
    }

    /// Two guests on the switch, and two on taps of a bridge, talk to each other.
    fn between(&mut self, model: Model) -> Result<[Brought; 2]> {
        let (network, tap_network) = match model {
            Model::Avio => (AVIO, AVIO_TAPS),
            Model::Vio => (VIO, VIO_TAPS),
        };
        let ([from, to], [from_tap, to_tap]) = (&mut self.switched, &mut self.on_taps);
        let meter = Meter::of_port(&self.run_folder, to, model, Direction::In)?;
        let tap = Nic { model, network: tap_network }.tap(2);
        let mut transfers = [
            Transfer {
                carriers: vec![from.engine(), to.engine(), self.switch],
                guest: from,
                server: (to.address(network), GUEST_SERVER),
                direction: Direction::Out,
                meter,
            },
            Transfer {
                carriers: vec![from_tap.engine(), to_tap.engine()],
                guest: from_tap,
                server: (to_tap.address(tap_network), GUEST_SERVER),
                direction: Direction::Out,
                meter: Meter::Tap { name: tap, direction: Direction::In },
            },
        ];
        race(&mut transfers, &self.interrupts)
    }
}

/// Of the one that runs.
fn switch_folder(house: &House) -> Result<PathBuf> {
    let folders = fs::read_dir(house.root.join("run/hpvm/net"))?.flatten();
    let mut running = folders.map(|entry| entry.path()).filter(|path| path.join("status").exists());
    running.next().context("the switch has no run folder")
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
    /// Has all race once.
    fn take(&mut self, world: &mut World) -> Result<()> {
        for (direction, wire, tap) in [
            (Direction::Out, &mut self.to_wire, &mut self.to_tap),
            (Direction::In, &mut self.from_wire, &mut self.from_tap),
        ] {
            add_both([wire, tap], world.with_host(direction)?);
        }
        add_both([&mut self.avio, &mut self.avio_taps], world.between(Model::Avio)?);
        add_both([&mut self.vio, &mut self.vio_taps], world.between(Model::Vio)?);
        Ok(())
    }

    fn tell_what_counts(&self) {
        let raced = [
            (&self.to_wire, &self.to_tap),
            (&self.from_wire, &self.from_tap),
            (&self.avio, &self.avio_taps),
            (&self.vio, &self.vio_taps),
        ];
        let count = |way: &Way| way.races.iter().map(|race| race.slices.len()).sum::<usize>();
        let all: usize = raced.iter().map(|(one, _)| count(one)).sum();
        let pairs: usize = raced.iter().map(|(one, other)| one.pairs(other).count()).sum();
        eprintln!(
            "  {pairs} of {all} pairs of slices count; in the others the processors were taken away"
        );
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
        let (rate, time) = self.avio.over_next(&self.vio);
        let (theirs, their_time) = self.avio_taps.over_next(&self.vio_taps);
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

fn add_both(ways: [&mut Way; 2], brought: [Brought; 2]) {
    ways.into_iter().zip(brought).for_each(|(way, brought)| way.races.push(brought));
}

/// What one way brought, race by race.
#[derive(Default)]
struct Way {
    races: Vec<Brought>,
}

impl Way {
    /// Medians in words.
    fn words(&self) -> String {
        let (rate, time) = medians(self.races.iter().flat_map(|race| &race.slices).flatten());
        let again = self.races.iter().map(|race| race.sent_again).collect::<Series>().median();
        format!("{rate:.2} Gbit/s, {time:.1} CPU s/GB, {again:.0} segments sent again")
    }

    /// Slices of a pair that both count.
    fn pairs<'a>(&'a self, other: &'a Way) -> impl Iterator<Item = (Slice, Slice)> + Clone + 'a {
        let [one, other] =
            [self, other].map(|way| way.races.iter().flat_map(|race| race.slices.iter().copied()));
        one.zip(other).filter_map(|(one, other)| one.zip(other))
    }

    /// This way's rate over that of whom it raced with, and the same of the processor time of a gigabyte, slice by slice.
    fn over(&self, other: &Way) -> (Series, Series) {
        let pairs = self.pairs(other);
        (
            pairs.clone().map(|(a, b)| a.gigabits_per_second / b.gigabits_per_second).collect(),
            pairs.map(|(a, b)| a.processor_s_per_gigabyte / b.processor_s_per_gigabyte).collect(),
        )
    }

    /// The same of a way with which it did not race, by the medians of the races that followed each other.
    fn over_next(&self, other: &Way) -> (Series, Series) {
        let of = |race: &Brought| medians(race.slices.iter().flatten());
        let races = self.races.iter().zip(&other.races);
        let ratios: Vec<(f64, f64)> = races
            .map(|(one, other)| (of(one), of(other)))
            .map(|(one, other)| (one.0 / other.0, one.1 / other.1))
            // Of some races no slice may be left. One that stood still counts.
            .filter(|(rate, time)| !rate.is_nan() && !time.is_nan())
            .collect();
        (ratios.iter().map(|(rate, _)| *rate).collect(), ratios.iter().map(|(_, t)| *t).collect())
    }
}

/// Of the rates, and of the processor times of a gigabyte.
fn medians<'a>(slices: impl Iterator<Item = &'a Slice> + Clone) -> (f64, f64) {
    let rates = slices.clone().map(|slice| slice.gigabits_per_second);
    let times = slices.map(|slice| slice.processor_s_per_gigabyte);
    (rates.collect::<Series>().median(), times.collect::<Series>().median())
}
