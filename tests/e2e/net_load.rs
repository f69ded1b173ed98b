//! A guest with as many NICs as it may have.

use std::time::{Duration, Instant};

use hpvm_testkit::guest::Console;
use hpvm_testkit::vm_host::{Engine, VmHost};

use crate::Test;
use crate::pool::image;
use crate::statements::disk_at;

pub(crate) const TESTS: &[Test] = crate::tests![; long:
    many_nics_fit_in_the_least_memory,
];

const BOUND: Duration = Duration::from_secs(20);

/// Settles 111: a Linux guest with the least memory it may have sees and uses as many NICs as need no more; more than that are
/// told of before the start, with the memory that they need.
fn many_nics_fit_in_the_least_memory() {
    let host = VmHost::new(Engine::Real);
    let disk = host.copy_of(&image("test-full"), "disk.img");
    let disk = disk_at("0,0,0", &disk);
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
