//! Traffic of both kinds while their switch is halted and booted, replaced by other versions, and killed, timed from outside: a
//! question to each guest every five milliseconds, and beside it one to its port of another switch, which nobody harms. What
//! that one waits is the machine's doing: each guest is emulated, and gets a processor when there is one.

use std::fs;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use hpvm_netlab::{Pinger, ip};
use hpvm_testkit::vm_host::VmHost;
use hpvm_testkit::wait::wait_until;

use super::lives::{Version, features, install, switch_process};
use super::{AVIO, BOUND, BothKinds, FIRST, HOST, VIO, told};

/// What traffic takes from the switch's return on, beside what the machine kept the guest from it: half of all times.
const RESUMED_WITHIN: Duration = Duration::from_millis(200);
/// And each time.
const RESUMED_AT_MOST: Duration = RESUMED_WITHIN.saturating_mul(4);
/// The same where an emulated NIC was shown that it has no link: half a second in QEMU's card, and two in Linux's driver, which
/// looks every two and may look too early.
const LINK_BACK_WITHIN: Duration = Duration::from_secs(5);
/// Between link and frames a guest that was shown a link has 80 ms to see it (`LINK_SEEN_NS` of the switch). One that the machine
/// kept from that, which two stretches of so long do, asks for its neighbour's address in vain, and once more after a second.
const KEPT_FROM_SEEING: Duration = Duration::from_millis(40);
const ASKED_AGAIN_AFTER: Duration = Duration::from_secs(1);
/// And after a kill, from that on.
const KILL_OVER_WITHIN: Duration = Duration::from_secs(2);
/// Of each way to replace.
const ROUNDS: usize = 4;
/// Between two questions.
const APART: Duration = Duration::from_millis(5);
/// Questions that may stay without an answer beside those of the time in which none was answered.
const LOST_MAX: u32 = 20;
/// The network of the ports that nobody harms.
const UNHARMED: u32 = 4;
/// What the switch's log has when it is booted, and when its process runs.
const IS_UP: &str = "virtual switch sw1 is up";
const RUNS: &str = "virtual switch sw1 runs with ";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Replacing {
    /// `hpvmnet -h`, then `-b`
    Boot,
    /// `hpvmnet -r`
    Reset,
    /// `kill -9`, after which the keeper starts what is installed.
    Kill,
}

impl Replacing {
    pub(super) const ALL: [Replacing; 3] = [Replacing::Boot, Replacing::Reset, Replacing::Kill];

    /// Gives the moment of the switch's return.
    pub(super) fn perform(self, host: &VmHost) -> Instant {
        match self {
            Replacing::Boot => back_after(host, IS_UP, || {
                host.ok(&["hpvmnet", "-S", "sw1", "-h", "-F"]);
                host.ok(&["hpvmnet", "-S", "sw1", "-b"]);
            }),
            Replacing::Reset => back_after(host, RUNS, || {
                host.ok(&["hpvmnet", "-S", "sw1", "-r", "-F"]);
            }),
            Replacing::Kill => back_after(host, RUNS, || switch_process(host, 2).kill()),
        }
    }
}

/// A guest that is asked all the time.
struct Asked {
    kind: &'static str,
    harmed: Pinger,
    unharmed: Pinger,
}

/// How a guest came through.
struct Passed {
    /// Traffic, after the switch's return.
    resumed: Duration,
    /// The longest time without an answer at the port that nobody harmed.
    kept_off: Duration,
}

/// The guests do nothing, and go on with the features that the first version gave them.
pub(super) fn traffic_goes_on(host: &VmHost, guests: &mut BothKinds, given: u64) {
    let asked = start(host, guests);
    links_follow(host, guests, &asked);
    for replacing in Replacing::ALL {
        let mut beside = Vec::new();
        for round in 0..ROUNDS {
            install(host, [Version::Newer, Version::Older][round % 2]);
            let passed = replaced(host, replacing, &asked);
            beside.extend(
                passed.map(|Passed { resumed, kept_off }| resumed.saturating_sub(kept_off)),
            );
            assert_eq!(features(host, 2, AVIO), given, "exactly what it was given first");
        }
        beside.sort();
        let median = beside[beside.len() / 2];
        assert!(median <= RESUMED_WITHIN, "{replacing:?}: {beside:?}");
    }
    drop(asked);
    for (name, kind) in [("vio", "lan"), ("avio", "avio_lan")] {
        host.ok(&["hpvmmodify", "-P", name, "-d", &format!("network:{kind}:0,2")]);
    }
    guests.each().into_iter().for_each(|guest| guest.wait_for_interfaces(1));
}

fn start(host: &VmHost, guests: &mut BothKinds) -> [Asked; 2] {
    host.ok(&["hpvmnet", "-c", "-S", "beside", "--wire", "tap:hpvmtap2"]);
    host.ok(&["hpvmnet", "-S", "beside", "-b"]);
    for (name, kind) in [("vio", "lan"), ("avio", "avio_lan")] {
        let nic = format!("network:{kind}:0,2:vswitch:beside");
        host.ok(&["hpvmmodify", "-P", name, "-a", &nic]);
    }
    ip(&format!("address add 10.{UNHARMED}.0.{HOST}/24 dev hpvmtap2"));
    let asked = [("lan", VIO), ("avio_lan", AVIO)].map(|(kind, number)| {
        let pinger =
            |network: u32| Pinger::start(Ipv4Addr::new(10, network as u8, 0, number as u8));
        Asked { kind, harmed: pinger(FIRST), unharmed: pinger(UNHARMED) }
    });
    for guest in guests.each() {
        guest.address("eth1", UNHARMED);
        // This machine's kernel would ask anew for whoever is silent for some seconds, once a second.
        let number = guest.number;
        let mac = guest.run("cat /sys/class/net/eth0/address");
        ip(&format!(
            "neighbour replace 10.{FIRST}.0.{number} lladdr {mac} dev hpvmtap1 nud permanent"
        ));
    }
    let since = Instant::now();
    wait_until(BOUND, "all answer", || {
        let answers = |pinger: &Pinger| pinger.answered_since(since).is_some();
        asked.iter().all(|guest| answers(&guest.harmed) && answers(&guest.unharmed))
    });
    asked
}

/// A halt that lasts until both guests have noticed it.
fn links_follow(host: &VmHost, guests: &mut BothKinds, asked: &[Asked; 2]) {
    let from = Instant::now();
    host.ok(&["hpvmnet", "-S", "sw1", "-h", "-F"]);
    guests.each().into_iter().for_each(|guest| guest.wait_for_carrier("eth0", "0"));
    assert!(guests.avio.misses(FIRST, VIO));
    let back = back_after(host, IS_UP, || {
        host.ok(&["hpvmnet", "-S", "sw1", "-b"]);
    });
    println!("their links were down: back after {:?}", back - from);
    let [vio, avio] = asked.each_ref().map(|guest| guest.passed(host, from, back));
    assert!(vio.resumed <= LINK_BACK_WITHIN + vio.kept_off, "{:?}", vio.resumed);
    avio.assert_soon();
    guests.each().into_iter().for_each(|guest| guest.wait_for_carrier("eth0", "1"));
    guests.talk(host);
}

/// One round.
fn replaced(host: &VmHost, replacing: Replacing, asked: &[Asked; 2]) -> [Passed; 2] {
    let from = Instant::now();
    let back = replacing.perform(host);
    println!("{replacing:?}: back after {:?}", back - from);
    asked.each_ref().map(|guest| {
        let passed = guest.passed(host, from, back);
        passed.assert_soon();
        let took = back - from + passed.resumed;
        assert!(replacing != Replacing::Kill || took < KILL_OVER_WITHIN, "{took:?}");
        passed
    })
}

impl Passed {
    fn assert_soon(&self) {
        let Passed { resumed, kept_off } = *self;
        let asked_again = match kept_off > KEPT_FROM_SEEING {
            true => ASKED_AGAIN_AFTER,
            false => Duration::ZERO,
        };
        assert!(resumed <= RESUMED_AT_MOST + kept_off + asked_again, "{resumed:?} {kept_off:?}");
    }
}

impl Asked {
    /// Waits until it answers what was asked after the switch's return.
    fn passed(&self, host: &VmHost, from: Instant, back: Instant) -> Passed {
        let mut answered = None;
        wait_until(BOUND, &format!("{} answers\n{}", self.kind, told(host)), || {
            answered = self.harmed.answered_since(back);
            answered.is_some() && self.unharmed.answered_since(back).is_some()
        });
        let resumed = answered.expect("waited for") - back;
        let kept_off = silence(&self.unharmed, from);
        let (lost, silence) = (lost(&self.harmed, from), silence(&self.harmed, from));
        println!(
            "    {}: resumed after {resumed:?}, silent for {silence:?}, {lost} questions lost; its unharmed port was silent for {kept_off:?}",
            self.kind
        );
        let in_silence = u32::try_from(silence.as_millis() / APART.as_millis()).expect("few");
        assert!(lost <= in_silence + LOST_MAX, "{lost} questions lost in {silence:?}");
        Passed { resumed, kept_off }
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

/// Waits after an act until the switch says this once more; gives the moment, as its log has it.
fn back_after(host: &VmHost, sentence: &str, act: impl FnOnce()) -> Instant {
    let before = moments(host, sentence).len();
    act();
    wait_until(BOUND, "the switch is back", || moments(host, sentence).len() > before);
    let ago = SystemTime::now().duration_since(moments(host, sentence)[before]);
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
