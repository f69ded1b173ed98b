//! TCP between the guests, both ways at once, while their switch is halted and booted, replaced by other versions, and killed.

use std::time::{Duration, Instant};

use hpvm_testkit::vm_host::VmHost;

use super::lives::{Version, install};
use super::replacing::Replacing;
use super::transfer::{QUIET, TRANSFER_BOUND};
use super::{AVIO, BothKinds, FIRST, Guest, VIO, told};

/// TCP sends again what got lost, after a time that doubles with each loss.
const GOES_ON_WITHIN: Duration = Duration::from_secs(30);
/// What a kernel takes at most that nobody has read (tcp(7), tcp_rmem), as does a pipe.
const UNREAD_BYTES_MAX: u64 = 64 << 10;
/// More than what was there already.
const GOES_ON_BYTES: u64 = 4 * UNREAD_BYTES_MAX;

/// Every byte of a stream arrives once and in order, whoever carries it meanwhile, and nothing is done in a guest.
pub(super) fn streams_go_on(host: &VmHost, guests: &mut BothKinds) {
    guests.each().into_iter().for_each(receive);
    for (from, to) in [(VIO, AVIO), (AVIO, VIO)] {
        send(guests.guest(from), to);
    }
    wait_for_more(host, guests, "at first");
    for replacing in Replacing::ALL {
        for version in [Version::Newer, Version::Older] {
            install(host, version);
            let back = replacing.perform(host);
            wait_for_more(host, guests, &format!("{replacing:?} to {version:?}"));
            println!("{replacing:?} to {version:?}: streams went on within {:?}", back.elapsed());
        }
    }
    for guest in guests.each() {
        guest.run("rm /tmp/goes-on");
    }
    let [vio, avio] = guests.each().map(|guest| {
        guest.console.run_within("wait", TRANSFER_BOUND);
        ["sent", "received"].map(|sum| guest.run(&format!("cat /tmp/{sum}")))
    });
    let [[vio_sent, vio_received], [avio_sent, avio_received]] = [vio, avio];
    assert_eq!([avio_received, vio_received], [vio_sent, avio_sent]);
}

/// Sums what comes, and remembers which process does.
fn receive(guest: &mut Guest) {
    let sizes = format!("4096 {UNREAD_BYTES_MAX} {UNREAD_BYTES_MAX}");
    guest.run(&format!("echo {sizes} >/proc/sys/net/ipv4/tcp_rmem"));
    guest.run(&format!(
        "{QUIET}; nc -l -p 5003 0<>/tmp/quiet | md5sum >/tmp/received & received=$!"
    ));
    // The port in hexadecimal.
    let line = "i=100; until grep -q :138B /proc/net/tcp* || [ $i = 0 ]; do i=$((i-1)); sleep 0.1; done; echo $i";
    assert_ne!(guest.run(line), "0", "nobody listens");
}

/// Sends for as long as a file is there, and sums what it sends.
fn send(guest: &mut Guest, to: u32) {
    guest.run("dd if=/dev/urandom of=/tmp/block bs=64k count=16 2>/dev/null; touch /tmp/goes-on");
    guest.run("mkfifo /tmp/summed; md5sum </tmp/summed >/tmp/sent & echo");
    guest.run(&format!(
        "while [ -e /tmp/goes-on ]; do cat /tmp/block; done | tee /tmp/summed | nc 10.{FIRST}.0.{to} 5003 & echo"
    ));
}

#[track_caller]
fn wait_for_more(host: &VmHost, guests: &mut BothKinds, when: &str) {
    let since = Instant::now();
    for guest in guests.each() {
        let before = received(guest);
        while received(guest) < before + GOES_ON_BYTES {
            let stands = since.elapsed() >= GOES_ON_WITHIN;
            assert!(!stands, "{when}: {}\n{}", guest.network(), told(host));
        }
    }
}

/// What came to the process that sums it.
fn received(guest: &mut Guest) -> u64 {
    let line = "awk '/^rchar/{print $2}' /proc/$received/io";
    let bytes = guest.console.run_within(line, TRANSFER_BOUND);
    bytes.parse().unwrap_or_else(|_| panic!("no number: {bytes}"))
}
