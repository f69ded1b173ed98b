//! Rows about one guest that starts and ends: bare QEMU, hpvm, libvirt and bare QEMU again in turn, so that what loads the
//! machine meanwhile loads them alike. Differences are taken within a turn.

use std::fs::{self, File};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use rustix::process::Signal;

use super::Effort;
use super::bare::Bare;
use super::house::House;
use super::peer::Peer;
use super::process::{self, wait_until};
use super::report::{Row, Verdict};
use super::statistics::{Series, milliseconds};

const GUEST: &str = "turns";
const START_OVER_BARE_MS: f64 = 20.0;
const STOP_MS: f64 = 15.0;
const KILLED_MS: f64 = 10.0;

/// What one side did in all turns.
#[derive(Default)]
struct Side {
    start: Series,
    first_byte: Series,
    stop: Series,
    killed: Series,
}

/// One turn: until the start command returned, until the first byte of the console, and how long the stop took.
struct Turn {
    start: Duration,
    first_byte: Duration,
    stop: Duration,
}

impl Side {
    fn push(&mut self, turn: &Turn) {
        self.start.push(turn.start);
        self.first_byte.push(turn.first_byte);
        self.stop.push(turn.stop);
    }
}

pub(super) fn measure(effort: &Effort) -> Result<Vec<Row>> {
    let house = House::new()?;
    let disk = house.boot_disk("boot.img")?;
    house.create_full(GUEST, 1, &disk)?;
    house.run(&["hpvmstart", "-P", GUEST])?;
    let media =
        [disk.clone(), house.root.join("disks/second-1"), house.root.join("disks/image.iso")];
    let variables = Path::new("/usr/share/OVMF/OVMF_VARS_4M.fd");
    let bare = Bare::like(house.qemu(1)?, house.root.join("bare"), variables, media.into())?;
    house.run(&["hpvmstop", "-h", "-F", "-P", GUEST])?;
    let peer = Peer::start()?;
    if let Some(peer) = &peer {
        peer.make_image()?;
        peer.define(GUEST, &disk)?;
    }

    let [mut first, mut ours, mut theirs, mut second] = [(); 4].map(|()| Side::default());
    for turn in 0..effort.runs(15) {
        eprintln!("  turn {}", turn + 1);
        first.push(&bare_turn(&bare)?);
        ours.push(&our_turn(&house)?);
        if let Some(peer) = &peer {
            theirs.push(&peer_turn(peer)?);
        }
        second.push(&bare_turn(&bare)?);
        ours.killed.push(our_death(&house)?);
        if let Some(peer) = &peer {
            theirs.killed.push(peer_death(peer)?);
        }
    }
    Ok(rows(&first, &ours, &theirs, &second))
}

fn bare_turn(bare: &Bare) -> Result<Turn> {
    let running = bare.start()?;
    let console = bare.console();
    wait_until("bare QEMU's console says something", || has_bytes(&console))?;
    let first_byte = running.begin.elapsed();
    Ok(Turn { start: running.until_running, first_byte, stop: running.terminate()? })
}

fn our_turn(house: &House) -> Result<Turn> {
    let console = house.guest_file(GUEST, "console.log");
    // The last run's output may not count as this one's.
    File::create(&console)?;
    let begin = Instant::now();
    let start = house.time(&["hpvmstart", "-P", GUEST])?;
    wait_until("the guest's console says something", || has_bytes(&console))?;
    let first_byte = begin.elapsed();
    let stop = house.time(&["hpvmstop", "-h", "-F", "-P", GUEST])?;
    Ok(Turn { start, first_byte, stop })
}

fn peer_turn(peer: &Peer) -> Result<Turn> {
    let console = peer.console(GUEST);
    let _ = fs::remove_file(&console);
    let begin = Instant::now();
    let start = peer.virsh(&["start", GUEST])?;
    wait_until("the domain's console says something", || has_bytes(&console))?;
    let first_byte = begin.elapsed();
    let stop = peer.virsh(&["destroy", GUEST])?;
    Ok(Turn { start, first_byte, stop })
}

fn has_bytes(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|found| found.len() > 0)
}

/// From the kill until a list that shows it has ended.
fn our_death(house: &House) -> Result<Duration> {
    house.run(&["hpvmstart", "-P", GUEST])?;
    let qemu = house.qemu(1)?;
    let begin = Instant::now();
    process::signal(qemu, Signal::KILL);
    for _ in 0..1000 {
        let text = house.run(&["hpvmstatus"])?;
        let took = begin.elapsed();
        let line = text.lines().find(|line| line.starts_with(GUEST)).unwrap_or_default();
        if line.contains(" Off ") {
            return Ok(took);
        }
    }
    anyhow::bail!("hpvmstatus does not show the death of QEMU")
}

fn peer_death(peer: &Peer) -> Result<Duration> {
    peer.virsh(&["start", GUEST])?;
    let qemu = peer.qemu(GUEST)?;
    let begin = Instant::now();
    process::signal(qemu, Signal::KILL);
    while !peer.shows_off(GUEST)? {
        ensure!(begin.elapsed() < Duration::from_secs(30), "virsh does not show the death of QEMU");
    }
    Ok(begin.elapsed())
}

fn rows(first: &Side, ours: &Side, theirs: &Side, second: &Side) -> Vec<Row> {
    let has_peer = !theirs.start.is_empty();
    let peer = |text: String| if has_peer { text } else { String::new() };
    let over = |side: &Series, bare: &Series| side.over(bare).median();
    let start = over(&ours.start, &first.start);
    let byte = ours.first_byte.over(&first.first_byte);
    let noise = second.first_byte.over(&first.first_byte);
    let (low, high) = (noise.quantile(0.1), noise.quantile(0.9));
    vec![
        Row {
            what: "`hpvmstart` until it returns, over the bare QEMU command line".into(),
            peer: peer(added(over(&theirs.start, &first.start))),
            target: "+20 ms",
            measured: format!("{} (bare {})", added(start), first.start),
            verdict: Verdict::of(start <= START_OVER_BARE_MS),
        },
        Row {
            what: "start until the guest's first console byte, over bare QEMU".into(),
            peer: peer(format!("{:+.0} ms", over(&theirs.first_byte, &first.first_byte))),
            target: "within the scatter of bare QEMU",
            measured: format!(
                "{:+.0} ms (bare to bare {:+.0} ms, 8 of 10 in {low:+.0} to {high:+.0} ms)",
                byte.median(),
                noise.median()
            ),
            verdict: Verdict::of(byte.median() <= high),
        },
        Row {
            what: "`hpvmstop -h`".into(),
            peer: peer(theirs.stop.to_string()),
            target: "15 ms",
            measured: format!("{} (bare SIGTERM {})", ours.stop, first.stop),
            verdict: Verdict::of(ours.stop.median() <= STOP_MS),
        },
        Row {
            what: "QEMU killed until `hpvmstatus` shows it".into(),
            peer: peer(theirs.killed.to_string()),
            target: "10 ms",
            measured: ours.killed.to_string(),
            verdict: Verdict::of(ours.killed.median() <= KILLED_MS),
        },
    ]
}

/// A difference, with its sign.
fn added(difference: f64) -> String {
    let sign = if difference < 0.0 { "" } else { "+" };
    format!("{sign}{}", milliseconds(difference))
}
