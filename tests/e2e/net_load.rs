//! Guests of both kinds that send all they can: whole frames arrive whole, transmitters do not hang, and timers are not early.

use std::time::{Duration, Instant};

use hpvm_testkit::guest::Console;
use hpvm_testkit::vm_host::{Engine, VmHost};
use hpvm_testkit::wait::wait_until;

use crate::Test;
use crate::networks::{at_the_shell, reaches};
use crate::pool::image;

pub(crate) const TESTS: &[Test] =
    crate::tests![whole_frames_pass_and_nothing_hangs, many_nics_fit_in_the_least_memory];

const BOUND: Duration = Duration::from_secs(20);
/// What is sent may take so long on a machine that emulates two guests and has other work.
const TRANSFER_BOUND: Duration = Duration::from_secs(180);
/// With the headers of ICMP and IPv4 a packet of 1500 bytes, the longest that Ethernet carries.
const LONGEST_PING: u32 = 1472;
/// A pipe that nobody writes into and that does not end: nc would read what is typed at the console, and be stopped for it.
const QUIET: &str = "[ -p /tmp/quiet ] || mkfifo /tmp/quiet";
/// What the kernel says of a transmitter that hangs, and what HP-UX said of an early timer.
const COMPLAINTS: &str = "Detected Tx Unit Hang|NETDEV WATCHDOG|timed out|before it is due";

/// Settles 17, 70: by ping and TCP, both ways, between the two kinds of NIC.
fn whole_frames_pass_and_nothing_hangs() {
    let host = VmHost::new(Engine::Real);
    host.ok(&["hpvmnet", "-c", "-S", "sw1"]);
    host.ok(&["hpvmnet", "-S", "sw1", "-b"]);
    let mut avio = at_the_shell(&host, 1, "avio", "avio_lan", "virtio_net");
    let mut vio = at_the_shell(&host, 2, "vio", "lan", "e1000");
    assert!(reaches(&mut avio, 2, 5));
    for (console, other) in [(&mut avio, 2), (&mut vio, 1)] {
        let line = format!("ping -s {LONGEST_PING} -c 5 -W 2 10.9.0.{other}");
        let answers = console.run_within(&line, BOUND);
        assert!(answers.contains(&format!("{} bytes from", LONGEST_PING + 8)), "{answers}");
    }
    assert_eq!(send_a_file(&mut avio, &mut vio, 2), "");
    assert_eq!(send_a_file(&mut vio, &mut avio, 1), "");
    timers_are_due(&mut avio, &mut vio);
    for console in [&mut avio, &mut vio] {
        let told = console.run(&format!("dmesg | grep -E '{COMPLAINTS}'"));
        assert_eq!(told, "");
        assert_ne!(console.run("dmesg | wc -l"), "0", "there is a log to look at");
    }
    for name in ["avio", "vio"] {
        host.ok(&["hpvmstop", "-P", name, "-h", "-F"]);
    }
    wait_until(BOUND, "nothing runs", || host.processes().is_empty());
}

/// Sends 8 MiB by TCP; gives what differs.
fn send_a_file(from: &mut Console, to: &mut Console, number: u32) -> String {
    let sum = from.run_within(
        "dd if=/dev/urandom of=/tmp/sent bs=64k count=128 2>/dev/null; md5sum </tmp/sent",
        TRANSFER_BOUND,
    );
    to.run(&format!("{QUIET}; nc -l -p 5001 >/tmp/received 0<>/tmp/quiet & echo"));
    from.run_within(&format!("nc 10.9.0.{number} 5001 </tmp/sent"), TRANSFER_BOUND);
    let received = to.run_within("wait; md5sum </tmp/received", TRANSFER_BOUND);
    from.run("rm /tmp/sent");
    to.run("rm /tmp/received");
    match received == sum {
        true => String::new(),
        false => format!("{sum} became {received}"),
    }
}

/// Both send to each other while one of them looks at its clock: it sleeps no shorter than it asked, and its clock runs no faster
/// than the VM Host's.
fn timers_are_due(avio: &mut Console, vio: &mut Console) {
    for console in [&mut *avio, &mut *vio] {
        console.run(&format!("{QUIET}; nc -l -p 5002 >/dev/null 0<>/tmp/quiet & echo"));
    }
    for (console, other) in [(&mut *avio, 2), (&mut *vio, 1)] {
        console.run(&format!("dd if=/dev/zero bs=64k 2>/dev/null | nc 10.9.0.{other} 5002 & echo"));
    }
    // Nanoseconds of CLOCK_MONOTONIC, which is what sleeps are measured by.
    let clock = "$(awk '/^now at/{print $3; exit}' /proc/timer_list)";
    for console in [&mut *avio, &mut *vio] {
        let before = sent_bytes(console);
        let begun = Instant::now();
        let slept = console.run_within(
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
        let sent = sent_bytes(console) - before;
        println!("meanwhile it sent {sent} bytes");
        assert!(sent > 100_000, "it was under no load: {sent} bytes");
    }
    for end in ["kill $!", "wait"] {
        for console in [&mut *avio, &mut *vio] {
            console.run_within(end, TRANSFER_BOUND);
        }
    }
}

fn sent_bytes(console: &mut Console) -> u64 {
    let bytes = console.run_within("cat /sys/class/net/eth0/statistics/tx_bytes", TRANSFER_BOUND);
    bytes.parse().expect("a number")
}

/// Settles 111: a Linux guest with the least memory it may have sees and uses as many NICs as need no more; more than that are
/// told of before the start, with the memory that they need.
fn many_nics_fit_in_the_least_memory() {
    let host = VmHost::new(Engine::Real);
    let disk = host.copy_of(&image("test-full"), "disk.img");
    let disk = format!("disk:avio_stor:0,0,0:file:{}", disk.display());
    let mut line = vec!["hpvmcreate", "-P", "many", "-O", "linux", "-r", "512M", "-a", &disk];
    let nics: Vec<String> = (0..16)
        .map(|index| format!("network:{}::vswitch:localnet", ["avio_lan", "lan"][index / 8]))
        .collect();
    line.extend(nics.iter().flat_map(|nic| ["-a", nic]));
    host.ok(&line);
    host.ok(&["hpvmmodify", "-P", "many", "-a", &nics[0]]);
    let told = host.run(&["hpvmstart", "-P", "many", "-s"]);
    assert!(told.status.success(), "{told}");
    let words = "17 NICs need 576 MB of memory, and the guest has 512 MB";
    assert!(told.stderr.contains(words), "{told}");
    let shown = host.ok(&["hpvmstatus", "-P", "many", "-d"]);
    let last = shown.lines().rfind(|line| line.contains("network:avio_lan")).expect("a NIC");
    let last: String = last.trim().split(',').take(2).collect::<Vec<_>>().join(",");
    host.ok(&["hpvmmodify", "-P", "many", "-d", &last]);

    let started = host.run(&["hpvmstart", "-P", "many"]);
    assert!(started.status.success() && !started.stderr.contains("of memory"), "{started}");
    let mut console = Console::attach(&host.run_dir(1));
    console.wait_for_shell();
    console.run_within("modprobe virtio_net; modprobe e1000", BOUND);
    let up =
        "n=0; for i in /sys/class/net/eth*; do ifconfig ${i##*/} up && n=$((n+1)); done; echo $n";
    assert_eq!(console.run_within(up, BOUND), "16");
    let carriers = "cat /sys/class/net/eth*/carrier | grep -c 1";
    let deadline = Instant::now() + BOUND;
    while console.run(carriers) != "16" {
        assert!(Instant::now() < deadline, "{}", console.run("dmesg | tail"));
    }
    assert_eq!(console.run("dmesg | grep -c -E 'page allocation failure|Out of memory'"), "0");
    host.ok(&["hpvmstop", "-P", "many", "-h", "-F"]);
}
