//! The row about a virtual switch as the product runs it, while nothing passes: hpvmnetd, its keeper, and hpvmnat. The guests'
//! engine is the one of the tests, which leaves their ports alone; those are connected from here.

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::{IDLE_PORTS, idle_row};
use crate::bench::Effort;
use crate::bench::house::House;
use crate::bench::report::Row;
use crate::cache::checkout;
use crate::tool::{perform, phase, tool};

const NICS: usize = 10;

pub(in crate::bench) fn measure(effort: &Effort) -> Result<Vec<Row>> {
    let house = House::new()?;
    let engine = house.root.join("engine");
    fs::copy(engine_of_the_tests()?, &engine)?;
    house.set(&[("HPVMQEMU", &engine)])?;
    house.run(&["hpvmnet", "-c", "-S", "sw1", "--wire", "nat"])?;
    house.run(&["hpvmnet", "-S", "sw1", "-b"])?;
    let guests = 1..=IDLE_PORTS / NICS;
    guests.clone().try_for_each(|guest| start(&house, guest))?;
    let ports = guests.flat_map(|guest| (0..NICS).map(move |nic| (guest, nic)));
    let _ports: Vec<UnixStream> =
        ports.map(|(guest, nic)| connect(&house, guest, nic)).collect::<Result<_>>()?;
    let what = format!("hpvmnetd, its keeper and hpvmnat with {IDLE_PORTS} idle `lan` ports");
    Ok(vec![idle_row(what, &processes(&house)?, effort)?])
}

fn engine_of_the_tests() -> Result<PathBuf> {
    let mut cargo = tool("cargo", Duration::from_secs(1200));
    cargo.args(["build", "--release", "--locked", "--package", "hpvm-testkit"]);
    cargo.args(["--bin", "fake-qemu"]).current_dir(checkout());
    phase("building the engine of the tests", || perform(&mut cargo))?;
    Ok(checkout().join("target/release/fake-qemu"))
}

/// Some addresses of bus 0 are kept.
fn slot(nic: usize) -> (usize, usize) {
    (1 + nic / 8, nic % 8)
}

fn start(house: &House, guest: usize) -> Result<()> {
    let name = format!("idle{guest}");
    let nics: Vec<String> = (0..NICS)
        .map(|nic| {
            let (bus, device) = slot(nic);
            format!("network:lan:{bus},{device}:vswitch:sw1")
        })
        .collect();
    let mut line = vec!["hpvmcreate", "-P", &name, "-r", "64M"];
    line.extend(nics.iter().flat_map(|nic| ["-a", nic]));
    house.run(&line)?;
    house.run(&["hpvmstart", "-P", &name])?;
    Ok(())
}

fn connect(house: &House, guest: usize, nic: usize) -> Result<UnixStream> {
    let (bus, device) = slot(nic);
    let socket = house.root.join(format!("run/hpvm/{guest}/net/{bus}-{device}"));
    // A socket's address has no room for every path, but for the one that this leads to.
    let socket = fs::canonicalize(&socket).with_context(|| format!("looking for {socket:?}"))?;
    UnixStream::connect(&socket).with_context(|| format!("connecting to {socket:?}"))
}

/// Those of the switch; the guests have keepers too.
fn processes(house: &House) -> Result<Vec<i32>> {
    let all = house.processes();
    let named = |name: &str| -> Vec<i32> {
        all.iter().filter(|(_, its)| its == name).map(|(pid, _)| *pid).collect()
    };
    let switch = named("hpvmnetd");
    ensure!(switch.len() == 1, "not one hpvmnetd runs, but {}", switch.len());
    let status = fs::read_to_string(format!("/proc/{}/status", switch[0]))?;
    let keeper = status.lines().find_map(|line| line.strip_prefix("PPid:"));
    let keeper = keeper.and_then(|pid| pid.trim().parse().ok()).context("no parent")?;
    let nat = named("hpvmnat");
    ensure!(!nat.is_empty(), "no hpvmnat runs");
    Ok([switch, vec![keeper], nat].concat())
}
