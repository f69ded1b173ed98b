//! Guests of both kinds that send all they can: whole frames arrive whole, transmitters do not hang, and timers are not early.

use std::time::Instant;

use super::transfer::{QUIET, TRANSFER_BOUND, between_guests};
use super::{AVIO, BOUND, BothKinds, FIRST, Guest, VIO};

/// With the headers of ICMP and IPv4 a packet of 1500 bytes, the longest that Ethernet carries.
const LONGEST_PING: u32 = 1472;
const FILE_MIB: u32 = 8;
/// What the kernel says of a transmitter that hangs, and what HP-UX said of an early timer.
const COMPLAINTS: &str = "Detected Tx Unit Hang|NETDEV WATCHDOG|timed out|before it is due";

/// By ping and TCP, both ways, between the two kinds of NIC.
pub(super) fn whole_frames_pass_and_nothing_hangs(guests: &mut BothKinds) {
    let BothKinds { vio, avio } = guests;
    for (guest, other) in [(&mut *avio, VIO), (&mut *vio, AVIO)] {
        let line = format!("ping -s {LONGEST_PING} -c 3 -i 0.2 -W 2 10.{FIRST}.0.{other}");
        let answers = guest.console.run_within(&line, BOUND);
        assert!(answers.contains(&format!("{} bytes from", LONGEST_PING + 8)), "{answers}");
    }
    between_guests(avio, vio, FIRST, FILE_MIB);
    between_guests(vio, avio, FIRST, FILE_MIB);
    timers_are_due(avio, vio);
    for guest in [avio, vio] {
        let told = guest.run(&format!("dmesg | grep -E '{COMPLAINTS}'"));
        assert_eq!(told, "");
        assert_ne!(guest.run("dmesg | wc -l"), "0", "there is a log to look at");
    }
}

/// Both send to each other while one of them looks at its clock: it sleeps no shorter than it asked, and its clock runs no faster
/// than the VM Host's.
fn timers_are_due(avio: &mut Guest, vio: &mut Guest) {
    for guest in [&mut *avio, &mut *vio] {
        guest.run(&format!("{QUIET}; nc -l -p 5002 >/dev/null 0<>/tmp/quiet & echo"));
    }
    for (guest, other) in [(&mut *avio, VIO), (&mut *vio, AVIO)] {
        guest.run(&format!(
            "dd if=/dev/zero bs=64k 2>/dev/null | nc 10.{FIRST}.0.{other} 5002 & echo"
        ));
    }
    // Nanoseconds of CLOCK_MONOTONIC, which is what sleeps are measured by.
    let clock = "$(awk '/^now at/{print $3; exit}' /proc/timer_list)";
    for guest in [&mut *avio, &mut *vio] {
        let before = sent_bytes(guest);
        let begun = Instant::now();
        let slept = guest.console.run_within(
            &format!(
                "first={clock}; least=999999999; i=40; while [ $i != 0 ]; do i=$((i-1)); a={clock}; sleep 0.05; b={clock}; [ $((b-a)) -ge $least ] || least=$((b-a)); done; echo $least $(({clock}-first))"
            ),
            TRANSFER_BOUND,
        );
        let host_ns = u64::try_from(begun.elapsed().as_nanos()).expect("a short time");
        let numbers: Vec<u64> =
            slept.split_whitespace().map(|word| word.parse().expect("a number")).collect();
        let [least_ns, guest_ns] = numbers[..] else { panic!("{slept}") };
        println!("under load: the shortest of 40 sleeps of 50 ms took {least_ns} ns");
        assert!((50_000_000..999_999_999).contains(&least_ns), "{slept}");
        assert!(guest_ns <= host_ns, "{guest_ns} ns in the guest, {host_ns} ns on the VM Host");
        let sent = sent_bytes(guest) - before;
        println!("meanwhile it sent {sent} bytes");
        assert!(sent > 100_000, "it was under no load: {sent} bytes");
    }
    for end in ["kill $!", "wait"] {
        for guest in [&mut *avio, &mut *vio] {
            guest.console.run_within(end, TRANSFER_BOUND);
        }
    }
}

fn sent_bytes(guest: &mut Guest) -> u64 {
    let bytes =
        guest.console.run_within("cat /sys/class/net/eth0/statistics/tx_bytes", TRANSFER_BOUND);
    bytes.parse().expect("a number")
}
