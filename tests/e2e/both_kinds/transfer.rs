//! Bytes by TCP that arrive as they were sent: between guests, and between a guest and the VM Host. The kernels of both ends
//! leave checksums and segments to the way where it takes them.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener};
use std::thread;
use std::time::Duration;

use hpvm_testkit::wait::wait_until;

use super::{BOUND, Guest, HOST};

/// What is sent may take so long on a machine that emulates two guests and has other work.
pub(super) const TRANSFER_BOUND: Duration = Duration::from_secs(180);
/// A pipe that nobody writes into and that does not end: nc would read what is typed at the console, and be stopped for it.
pub(super) const QUIET: &str = "[ -p /tmp/quiet ] || mkfifo /tmp/quiet";
const ECHOED_BYTES: usize = 2 << 20;

/// Sends so many MiB from one guest to the other's address in a network, and compares sums.
#[track_caller]
pub(super) fn between_guests(from: &mut Guest, to: &mut Guest, network: u32, mib: u32) {
    let make = format!(
        "dd if=/dev/urandom of=/tmp/sent bs=64k count={} 2>/dev/null; md5sum </tmp/sent",
        16 * mib
    );
    let sum = from.console.run_within(&make, TRANSFER_BOUND);
    to.run(&format!("{QUIET}; nc -l -p 5001 >/tmp/received 0<>/tmp/quiet & echo"));
    // It may not listen yet.
    let send = format!("nc 10.{network}.0.{} 5001 </tmp/sent", to.number);
    let line = format!("i=50; until {send} || [ $i = 0 ]; do i=$((i-1)); sleep 0.1; done");
    from.console.run_within(&line, TRANSFER_BOUND);
    let received = to.console.run_within("wait; md5sum </tmp/received", TRANSFER_BOUND);
    for guest in [from, to] {
        guest.run("rm -f /tmp/sent /tmp/received");
    }
    assert_eq!(received, sum);
}

/// Sends bytes to a guest, which sends them back meanwhile.
#[track_caller]
pub(super) fn with_the_host(guest: &mut Guest, network: u32) {
    let listener = TcpListener::bind(("0.0.0.0", 0)).expect("a port of this network");
    listener.set_nonblocking(true).expect("set");
    let port = listener.local_addr().expect("bound").port();
    guest.run(&format!("nc -w 20 10.{network}.0.{HOST} {port} -e cat >/dev/null 2>&1 & echo"));
    let mut accepted = None;
    wait_until(BOUND, "the guest has called", || {
        accepted = listener.accept().ok();
        accepted.is_some()
    });
    let (mut stream, from) = accepted.expect("waited for");
    assert_eq!(from.ip().to_string(), format!("10.{network}.0.{}", guest.number));
    stream.set_nonblocking(false).expect("set");
    stream.set_read_timeout(Some(TRANSFER_BOUND)).expect("set");
    stream.set_write_timeout(Some(TRANSFER_BOUND)).expect("set");
    let sent = noise();
    let writer = thread::spawn({
        let (mut stream, sent) = (stream.try_clone().expect("a copy"), sent.clone());
        move || {
            stream.write_all(&sent).expect("the guest takes it");
            stream.shutdown(Shutdown::Write).expect("the guest is told of the end");
        }
    });
    let mut received = Vec::new();
    stream.read_to_end(&mut received).expect("the guest sends it back");
    writer.join().expect("all was sent");
    assert_eq!(received.len(), sent.len());
    assert!(received == sent, "other bytes came back than were sent");
}

/// Bytes that differ from place to place, so that none could stand for another (xorshift).
fn noise() -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let words = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    words.take(ECHOED_BYTES / 8).flatten().collect()
}
