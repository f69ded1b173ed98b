//! Two transfers that race: each has the machine for a slice in turn, while all that carry the other are stopped. A machine of
//! few processors may change its pace each second, which whole runs one after the other would not survive.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use hpvm_model::MacAddress;
use hpvm_vswitchd::client;
use hpvm_vswitchd::protocol::Request;
use hpvm_vswitchd::status::Status;
use rustix::process::Signal;

use super::guest::{Direction, Guest, Model};
use crate::bench::process::{self, Ticks, pause, wait_until};

/// Well below the shortest time after which TCP sends again (Linux, TCP_RTO_MIN, 200 ms).
const SLICE: Duration = Duration::from_millis(100);
/// Pairs of slices in a race.
const PAIRS: usize = 10;
/// Of each transfer: longer than both begin and the slices take.
const SECONDS: u64 = 6;
/// What has to arrive before a transfer is under way.
const BEGUN_BYTES: u64 = 1 << 20;
/// Share of the processors' time in a slice that may have been taken away by the machine's own host.
const STOLEN_MAX: f64 = 0.05;
const ANSWER_BOUND: Duration = Duration::from_secs(10);

/// Where the bytes of a transfer are counted, as whoever receives them in the end, or sends them first, gets or gives them.
pub(super) enum Meter {
    /// A guest's port of a switch with this run folder.
    Port { switch: PathBuf, mac: MacAddress, direction: Direction },
    /// A guest's tap. What it sends is what the interface receives.
    Tap { name: String, direction: Direction },
}

impl Meter {
    /// Of a guest on a switch with this run folder.
    pub(super) fn of_port(
        switch: &Path,
        guest: &Guest,
        model: Model,
        direction: Direction,
    ) -> Result<Meter> {
        let mac = guest.mac(model).context("the guest has no such NIC")?;
        Ok(Meter::Port { switch: switch.to_owned(), mac, direction })
    }

    fn bytes(&self) -> Result<u64> {
        match self {
            Meter::Port { switch, mac, direction } => {
                client::ask(&switch.join("control"), &Request::Publish, &[], ANSWER_BOUND)?;
                let status = Status::read(&fs::read_to_string(switch.join("status"))?);
                let status = status.context("the switch's status cannot be read")?;
                let port = status.ports.iter().find(|port| port.mac == *mac);
                let counters = port.context("the switch has no such port")?.counters;
                Ok(match direction {
                    Direction::In => counters.in_octets,
                    Direction::Out => counters.out_octets,
                })
            }
            Meter::Tap { name, direction } => {
                let text = fs::read_to_string("/proc/thread-self/net/dev")?;
                let line = text.lines().find_map(|line| {
                    let (interface, figures) = line.split_once(':')?;
                    (interface.trim() == name).then_some(figures)
                });
                let mut figures = line.context("there is no such tap")?.split_whitespace();
                let bytes = figures.nth(match direction {
                    Direction::Out => 0,
                    Direction::In => 8,
                });
                bytes.and_then(|bytes| bytes.parse().ok()).context("the tap counts no bytes")
            }
        }
    }
}

/// One of the two.
pub(super) struct Transfer<'a> {
    /// Who runs iperf3's client, and where it finds the server.
    pub(super) guest: &'a mut Guest,
    pub(super) server: (String, u16),
    pub(super) direction: Direction,
    /// All processes that have to do with it alone.
    pub(super) carriers: Vec<i32>,
    pub(super) meter: Meter,
}

/// What a transfer brought: in its slices, one of each pair, and what it sent again in all.
#[derive(Default)]
pub(super) struct Brought {
    /// `None`: in this one the machine's own host had its processors elsewhere, which tells nothing about the transfer.
    pub(super) slices: Vec<Option<Slice>>,
    pub(super) sent_again: f64,
}

#[derive(Clone, Copy)]
pub(super) struct Slice {
    pub(super) gigabits_per_second: f64,
    pub(super) processor_s_per_gigabyte: f64,
}

/// Has two transfers race. `shared` are processes that work for both, each in its time.
pub(super) fn race(transfers: &mut [Transfer<'_>; 2], shared: &[i32]) -> Result<[Brought; 2]> {
    let began: Vec<u64> =
        transfers.iter().map(|transfer| transfer.meter.bytes()).collect::<Result<_>>()?;
    for Transfer { guest, server: (address, port), direction, .. } in transfers.iter_mut() {
        guest.begin_transfer((address, *port), *direction, SECONDS)?;
    }
    for (Transfer { guest, server, meter, .. }, began) in transfers.iter_mut().zip(began) {
        let has_begun = || meter.bytes().is_ok_and(|bytes| bytes > began + BEGUN_BYTES);
        wait_until("the transfer is under way", has_begun)
            .with_context(|| format!("to {server:?}: iperf3 said {:?}", guest.told()))?;
    }
    let mut brought = [Brought::default(), Brought::default()];
    {
        let _held = transfers.each_ref().map(|transfer| Held::new(&transfer.carriers));
        for pair in 0..PAIRS {
            // What the first leaves behind meets each of them as often.
            let order = if pair % 2 == 0 { [0, 1] } else { [1, 0] };
            for which in order {
                brought[which].slices.push(slice(&transfers[which], shared)?);
            }
        }
    }
    for (transfer, brought) in transfers.iter_mut().zip(&mut brought) {
        brought.sent_again = transfer.guest.end_transfer()?;
    }
    Ok(brought)
}

fn slice(transfer: &Transfer<'_>, shared: &[i32]) -> Result<Option<Slice>> {
    let used = || {
        let pids = transfer.carriers.iter().chain(shared);
        pids.map(|pid| process::processor_time(*pid)).sum::<Duration>()
    };
    signal_all(&transfer.carriers, Signal::CONT);
    let (bytes, before) = (transfer.meter.bytes()?, Ticks::now()?);
    let (time, processor) = (Instant::now(), used());
    pause(SLICE);
    let (time, processor) = (time.elapsed().as_secs_f64(), (used() - processor).as_secs_f64());
    let gigabytes = (transfer.meter.bytes()? - bytes) as f64 / 1e9;
    signal_all(&transfer.carriers, Signal::STOP);
    let slice = Slice {
        gigabits_per_second: gigabytes * 8.0 / time,
        processor_s_per_gigabyte: processor / gigabytes,
    };
    Ok((Ticks::now()?.stolen_since(before) < STOLEN_MAX).then_some(slice))
}

/// Stopped, and going on when this goes.
struct Held<'a>(&'a [i32]);

impl<'a> Held<'a> {
    fn new(carriers: &'a [i32]) -> Held<'a> {
        signal_all(carriers, Signal::STOP);
        Held(carriers)
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        signal_all(self.0, Signal::CONT);
    }
}

fn signal_all(pids: &[i32], signal: Signal) {
    pids.iter().for_each(|pid| process::signal(*pid, signal));
}
