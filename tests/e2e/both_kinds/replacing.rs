//! Traffic of both kinds while their switch is halted and booted, replaced by other versions, and killed, timed from outside: a
//! question to each guest every five milliseconds, and beside them to a port of another switch that nobody harms. What that one
//! waits is the machine's doing: each guest is emulated, and gets a processor when there is one.

use std::fs;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use hpvm_netlab::{Pinger, ip};
use hpvm_testkit::vm_host::VmHost;
use hpvm_testkit::wait::wait_until;

use super::lives::{Version, features, install, switch_process};
use super::{AVIO, BOUND, BothKinds, FIRST, HOST, VIO, told};

/// What traffic may take from the switch's return on, in three rounds of four.
const RESUMED_WITHIN: Duration = Duration::from_millis(200);
/// And in any of them, on a busy machine. A guest whose question for an address was lost asks again after a second.
const RESUMED_MAX: Duration = Duration::from_millis(800);
/// And after a kill, from that on.
const KILL_OVER_WITHIN: Duration = Duration::from_secs(2);
/// Of each way to replace.
const ROUNDS: usize = 4;
/// Between two questions.
const APART: Duration = Duration::from_millis(5);
/// Questions that may stay without an answer beside those of the time in which none was answered.
const LOST_MAX: u32 = 20;
/// The network of the port that nobody harms.
const UNHARMED: u32 = 8;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Replacing {
    /// `hpvmnet -h`, then `-b`
    Boot,
    /// `hpvmnet -r`
    Reset,
    /// `kill -9`, after which the keeper starts what is installed.
    Kill,
}

/// Who is asked, all the time.
struct Asked {
    /// The guests, and which kind each is.
    guests: [(&'static str, Pinger); 2],
    unharmed: Pinger,
}

/// The guests do nothing, and go on with the features that the first version gave them.
pub(super) fn traffic_goes_on(host: &VmHost, guests: &mut BothKinds, given: u64) {
    let asked = Asked::start(host, guests);
    let mut all = Vec::new();
    for replacing in [Replacing::Boot, Replacing::Reset, Replacing::Kill] {
        for round in 0..ROUNDS {
            install(host, [Version::Newer, Version::Older][round % 2]);
            all.push(asked.replaced(host, replacing));
            assert_eq!(features(host, 2, AVIO), given, "exactly what it was given first");
        }
    }
    all.sort();
    assert!(all[all.len() * 3 / 4 - 1] <= RESUMED_WITHIN, "{all:?}");
    assert!(all[all.len() - 1] <= RESUMED_MAX, "{all:?}");
    drop(asked);
    host.ok(&["hpvmmodify", "-P", "vio", "-d", "network:lan:0,2"]);
    guests.vio.wait_for_interfaces(1);
}

impl Asked {
    fn start(host: &VmHost, guests: &mut BothKinds) -> Asked {
        host.ok(&["hpvmnet", "-c", "-S", "sw2", "--wire", "tap:hpvmtap2"]);
        host.ok(&["hpvmnet", "-S", "sw2", "-b"]);
        host.ok(&["hpvmmodify", "-P", "vio", "-a", "network:lan:0,2:vswitch:sw2"]);
        ip(&format!("address add 10.{UNHARMED}.0.{HOST}/24 dev hpvmtap2"));
        guests.vio.address("eth1", UNHARMED);
        let pinger = |network: u32, number: u32| {
            Pinger::start(Ipv4Addr::new(10, network as u8, 0, number as u8))
        };
        let asked = Asked {
            guests: [("lan", pinger(FIRST, VIO)), ("avio_lan", pinger(FIRST, AVIO))],
            unharmed: pinger(UNHARMED, VIO),
        };
        let since = Instant::now();
        wait_until(BOUND, "all answer", || {
            asked.answered(since).is_some() && asked.unharmed.answered_since(since).is_some()
        });
        asked
    }

    /// One round; gives what traffic took from the switch's return on.
    fn replaced(&self, host: &VmHost, replacing: Replacing) -> Duration {
        let from = Instant::now();
        let back = replace(host, replacing);
        let mut answered = None;
        wait_until(BOUND, &format!("all answer\n{}", told(host)), || {
            answered = self.answered(back);
            answered.is_some()
        });
        let answered = answered.expect("waited for");
        let resumed = answered - back;
        println!(
            "{replacing:?}: back after {:?}, traffic {resumed:?} later; meanwhile an unharmed port was silent for {:?}",
            back - from,
            silence(&self.unharmed, from),
        );
        if replacing == Replacing::Kill {
            assert!(answered - from < KILL_OVER_WITHIN, "{:?}", answered - from);
        }
        for (kind, guest) in &self.guests {
            let (lost, silence) = (lost(guest, from), silence(guest, from));
            let took = guest.answered_since(back).map(|at| at - back);
            println!(
                "    {kind}: resumed after {took:?}, silent for {silence:?}, {lost} questions lost"
            );
            let in_silence = u32::try_from(silence.as_millis() / APART.as_millis()).expect("few");
            assert!(lost <= in_silence + LOST_MAX, "{lost} questions lost in {silence:?}");
        }
        resumed
    }

    /// When both guests had answered something that was asked after this moment.
    fn answered(&self, moment: Instant) -> Option<Instant> {
        let [(_, one), (_, other)] = &self.guests;
        Some(one.answered_since(moment)?.max(other.answered_since(moment)?))
    }
}

/// Questions without an answer, of those asked from a moment to the last that was answered.
fn lost(guest: &Pinger, from: Instant) -> u32 {
    let echoes = guest.echoes();
    let last = echoes.iter().rposition(|echo| echo.answered.is_some()).unwrap_or(0);
    let is_lost = |echo: &&hpvm_netlab::Echo| echo.asked >= from && echo.answered.is_none();
    echoes[..last].iter().filter(is_lost).count() as u32
}

/// The longest time from a moment on in which no answer came, to the last that did.
fn silence(guest: &Pinger, from: Instant) -> Duration {
    let mut answers: Vec<Instant> =
        guest.echoes().iter().filter_map(|echo| echo.answered).filter(|at| *at >= from).collect();
    answers.push(from);
    answers.sort();
    answers.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or_default()
}

/// Replaces the process, or halts the switch and boots it; gives the moment at which it was back, as its log has it.
fn replace(host: &VmHost, replacing: Replacing) -> Instant {
    let back = match replacing {
        Replacing::Boot => "virtual switch sw1 is up",
        Replacing::Reset | Replacing::Kill => "virtual switch sw1 runs with ",
    };
    let before = moments(host, back).len();
    match replacing {
        Replacing::Boot => {
            host.ok(&["hpvmnet", "-S", "sw1", "-h", "-F"]);
            host.ok(&["hpvmnet", "-S", "sw1", "-b"]);
        }
        Replacing::Reset => {
            host.ok(&["hpvmnet", "-S", "sw1", "-r", "-F"]);
        }
        Replacing::Kill => switch_process(host, 2).kill(),
    }
    wait_until(BOUND, "the switch is back", || moments(host, back).len() > before);
    let ago = SystemTime::now().duration_since(moments(host, back)[before]);
    Instant::now() - ago.unwrap_or_default()
}

/// When the switch said this in its log.
fn moments(host: &VmHost, sentence: &str) -> Vec<SystemTime> {
    let log = fs::read_to_string(host.path("var/opt/hpvm/common/vswitch-2.log")).expect("a log");
    let moment = |line: &str| {
        let (when, said) = line.split_once(" hpvmnetd: ")?;
        let when: jiff::Timestamp = when.parse().ok()?;
        let since_1970 = u64::try_from(when.as_millisecond()).ok()?;
        said.starts_with(sentence).then(|| UNIX_EPOCH + Duration::from_millis(since_1970))
    };
    log.lines().filter_map(moment).collect()
}
