//! Virtual switches and the guests that have ports on them: hpvmnet's tables and refusals.

use std::time::Duration;

use hpvm_testkit::vm_host::{Engine, VmHost};
use hpvm_testkit::wait::wait_until;
use rustix::process::Signal;
use snapbox::assert_data_eq;

use crate::Test;
use crate::guest_processes::process;
use crate::shell::typed;
use crate::started::Started;

pub(crate) const TESTS: &[Test] = crate::tests![
    switches_are_made_changed_and_deleted,
    interfaces_are_listed_with_what_they_are_good_for,
    what_cannot_be_is_refused,
    a_refused_command_asks_nothing_and_writes_nothing,
    a_capture_ends_with_the_next_and_with_its_port,
    what_is_asked_of_a_killed_switch_names_the_cure,
    forwards_come_and_go_and_one_port_is_shown_alone,
    guests_reserve_ports,
    a_running_guest_shows_the_name_that_its_switch_has,
    a_clone_has_ports_and_addresses_of_its_own,
];

const SETTLE_BOUND: Duration = Duration::from_secs(20);
pub(crate) const SOUND: &str = "Nothing to complain of.\n";

fn switches_are_made_changed_and_deleted() {
    let host = VmHost::new(Engine::Fake);
    assert_data_eq!(
        host.ok(&["hpvmnet"]),
        "\
Name     Number State   Mode      NamePPA  MAC Address    IP Address
======== ====== ======= ========= ======== ============== ===============
localnet      1 Up      Shared             N/A            N/A
"
    );
    host.ok(&["hpvmnet", "-c", "-S", "vlan02"]);
    host.ok(&["hpvmnet", "-S", "vlan02", "-u", "portid:8:vlanid:120"]);
    host.ok(&["hpvmnet", "-S", "vlan02", "-u", "portid:9:trunk:10,20-29"]);
    assert_data_eq!(
        host.ok(&["hpvmnet", "-S", "vlan02"]),
        "\
Name     Number State   Mode      NamePPA  MAC Address    IP Address
======== ====== ======= ========= ======== ============== ===============
vlan02        2 Down    Shared             N/A            N/A

[Port Configuration Details]
Port    Port         Port     Untagged Number of    Active VM
Number  State        Adaptor  VLANID   Reserved VMs
======= ============ ======== ======== ============ ============
8       Free                  120      0
9       Free                  trunk    0
"
    );
    host.ok(&["hpvmnet", "-s", "2", "-b"]);
    assert!(host.ok(&["hpvmnet", "-S", "vlan02"]).contains("vlan02        2 Up      Shared"));
    let no = host.run_with_input(&["hpvmnet", "-S", "vlan02", "-h"], b"\n");
    assert_eq!(
        no.stderr,
        "hpvmnet: Halt the vswitch 'vlan02'? [n]: \n\
         hpvmnet: ERROR: the answer was no; nothing was changed\n"
    );
    assert_eq!(no.status.code(), Some(1), "{no}");
    let yes = host.run_with_input(&["hpvmnet", "-S", "vlan02", "-h"], b"y\n");
    assert!(yes.status.success(), "{yes}");
    assert!(host.ok(&["hpvmnet", "-S", "vlan02"]).contains("vlan02        2 Down    Shared"));
    host.ok(&["hpvmnet", "-S", "vlan02", "-C", "-N", "dmz"]);
    assert_data_eq!(
        host.ok(&["hpvmnet", "-S", "dmz", "-p", "8"]),
        "\
Vswitch Name                     : dmz
Max Number of Ports              : 512
Port Number                      : 8
    Port State                   : Free
    Active VM                    :
    Untagged VlanId              : 120
    Reserved VMs                 :
    Adaptor                      :
"
    );
    assert_eq!(host.ok(&["hpvmnet", "-M"]).lines().nth(1), Some("dmz:2:Down:Shared::N/A:2:0:N/A"));
    assert!(host.ok(&["hpvmnet", "-X"]).contains("<virtual_switch name=\"dmz\" local_id=\"2\">"));
    assert!(host.ok(&["hpvmnet", "--json"]).contains("\"name\": \"dmz\""));
    let dry = host.ok(&["hpvmnet", "-S", "dmz", "-d", "--dry-run"]);
    assert_eq!(dry, "virtual switch 'dmz' would be deleted\n");
    // What its process would have left; the next switch gets the number.
    let left = ["run/hpvm/net/2", "var/opt/hpvm/common/vswitch-2.log"].map(|left| host.path(left));
    std::fs::create_dir_all(&left[0]).expect("a run folder");
    std::fs::write(&left[1], "of the old one\n").expect("a log");
    host.ok(&["hpvmnet", "-S", "dmz", "-d", "-F"]);
    assert!(!host.ok(&["hpvmnet"]).contains("dmz"));
    assert!(left.iter().all(|path| !path.exists()), "nothing is left of a switch");
}

/// In a network namespace of the test's own.
const INTERFACES: &str = "\
unshare --net sh -ec '
    ip link add one0 address 02:00:00:00:00:01 mtu 9000 type veth peer name two0 address 02:00:00:00:00:02
    ip link add room0 address 02:00:00:00:00:03 type bridge
    ip link set two0 master room0
    ip tuntap add dev host0 mode tap
    ip link set host0 address 02:00:00:00:00:04
    ip address add 192.0.2.1/24 dev one0
    hpvmnet -c -S dmz -n one0
    hpvmnet -c -S lab -n one0
    hpvmnet --interfaces
    hpvmnet --interfaces --json'";

/// Settles 116: one list for people and programs, in which what cannot be a wire has the reason that the command gives.
fn interfaces_are_listed_with_what_they_are_good_for() {
    let host = VmHost::new(Engine::Fake);
    let told = typed(&host, INTERFACES);
    assert!(told.status.success(), "{told}");
    let (table, json) = told.stdout.split_at(told.stdout.find('{').expect("JSON"));
    assert_data_eq!(
        table,
        "\
Interface Kind     Link MTU   Mbit/s MAC Address    Wire      Switches Why not
========= ======== ==== ===== ====== ============== ========= ======== ==================================
lo        loopback off  65536 -      -              -         -        lo is this machine's loopback
two0      veth     off  1500  -      0x020000000002 -         -        two0 is a part of room0; use room0
one0      veth     off  9000  -      0x020000000001 one0      dmz,lab
room0     bridge   off  1500  -      0x020000000003 room0     -
host0     tap      off  1500  -      0x020000000004 tap:host0 -
"
    );
    let document: serde_json::Value = serde_json::from_str(json).expect("JSON");
    let one =
        document["interfaces"].as_array().expect("a list").iter().find(|i| i["name"] == "one0");
    let one = one.expect("one0");
    assert_eq!(one["ip_addresses"], serde_json::json!(["192.0.2.1/24"]));
    assert_eq!(one["vswitches"], serde_json::json!(["dmz", "lab"]));
    assert_eq!(one["wire"], "one0");
}

fn what_cannot_be_is_refused() {
    let host = VmHost::new(Engine::Fake);
    host.ok(&["hpvmnet", "-c", "-S", "sw1"]);
    host.ok(&["hpvmnet", "-c", "-S", "nat1", "--wire", "nat"]);
    for (line, words) in [
        (&["hpvmnet", "-c", "-S", "sw1"][..], "exists already (number 2)"),
        (&["hpvmnet", "-S", "none"], "'none'; `hpvmnet` lists them"),
        (&["hpvmnet", "-S", "localnet", "-d", "-F"], "always exists; it cannot be deleted"),
        (&["hpvmnet", "-S", "localnet", "-C", "-N", "x"], "always exists; it cannot be changed"),
        (&["hpvmnet", "-S", "sw1", "-C", "-N", "localnet"], "exists already (number 1)"),
        (&["hpvmnet", "-S", "sw1", "-p", "7"], "port 7 of virtual switch 'sw1' is not in use"),
        (&["hpvmnet", "-S", "sw1", "--macs"], "has no guest that runs on it"),
        (&["hpvmnet", "-S", "sw1", "-p", "all", "--capture", "f"], "name it by its number"),
        (
            &[
                "hpvmnet",
                "-S",
                "nat1",
                "-C",
                "--forward",
                "none",
                "--forward",
                "tcp:2222:10.0.2.15:22",
            ],
            "--forward none removes all port forwards; give it alone",
        ),
        (&["hpvmnet", "-c", "-S", "sw2", "-n", "lo"], "lo is this machine's loopback"),
        (&["hpvmnet", "-c", "-S", "sw2", "--wire", "tap:lo"], "lo is this machine's loopback"),
        (
            &[
                "hpvmnet",
                "-S",
                "nat1",
                "-C",
                "--forward",
                "tcp:2222:10.0.2.15:22",
                "--forward",
                "tcp:127.0.0.1:2222:10.0.2.16:22",
            ],
            "tcp:2222:10.0.2.15:22 and tcp:127.0.0.1:2222:10.0.2.16:22 of virtual switch 'nat1' want the same port",
        ),
        (
            &["hpvmnet", "-S", "nat1", "-C", "--forward", "tcp:2222:192.168.1.1:22"],
            "leads to no guest: guests behind NAT have addresses of 10.0.2.0/24",
        ),
        (
            &["hpvmcreate", "-P", "a", "-a", "network:lan::vswitch:none"],
            "there is no virtual switch 'none'",
        ),
    ] {
        let refusal = host.refused(line);
        assert!(refusal.contains(words), "{line:?}: {refusal}");
    }
    for (line, words) in [
        (&["hpvmnet", "-S", "sw1", "-u", "portid:1:speed:7"][..], "is no change of a port"),
        (&["hpvmnet", "-S", "sw1", "-u", "portid:1:mirror:1"], "its own frames"),
        (&["hpvmnet", "-c", "-s", "4"], "-s"),
        (&["hpvmnet", "-S", "sw1", "-M", "-p", "1"], "-M"),
        (&["hpvmnet", "-S", "sw1", "-M", "-A"], "-M"),
    ] {
        let misused = host.run(line);
        assert_eq!(misused.status.code(), Some(2), "{line:?}: {misused}");
        assert!(misused.stderr.contains(words), "{line:?}: {misused}");
    }
}

/// A refusal comes before the question, and costs no file that is there.
fn a_refused_command_asks_nothing_and_writes_nothing() {
    let host = VmHost::new(Engine::Fake);
    let localnet = host.run_with_input(&["hpvmnet", "-S", "localnet", "-d"], b"y\n");
    assert!(!localnet.stderr.contains('?'), "{localnet}");
    assert!(localnet.stderr.contains("it cannot be deleted"), "{localnet}");
    let file = host.path("kept.pcap");
    std::fs::write(&file, "kept").expect("a file");
    let name = file.display().to_string();
    host.ok(&["hpvmnet", "-S", "localnet", "-u", "portid:1:vlanid:7"]);
    let refusal = host.refused(&["hpvmnet", "-S", "localnet", "-p", "1", "--capture", &name]);
    assert!(refusal.contains("no guest that runs has port 1"), "{refusal}");
    assert_eq!(std::fs::read_to_string(&file).expect("the file"), "kept");
}

/// Nobody waits for a capture that the switch has ended, and the end of one is not another's.
fn a_capture_ends_with_the_next_and_with_its_port() {
    let host = VmHost::new(Engine::Fake);
    host.ok(&["hpvmcreate", "-P", "one", "-a", "network:avio_lan::vswitch:localnet:portid:1"]);
    host.ok(&["hpvmstart", "-P", "one"]);
    let begin = |name: &str| {
        let file = host.path(name);
        let shown = file.display().to_string();
        let line = ["hpvmnet", "-S", "localnet", "-p", "1", "--capture", &shown];
        let capture = Started::of(&host, &line);
        let has_begun = || std::fs::metadata(&file).is_ok_and(|file| file.len() > 0);
        wait_until(SETTLE_BOUND, "the capture has begun", has_begun);
        capture
    };
    let first = begin("first.pcap");
    let second = begin("second.pcap");
    wait_until(SETTLE_BOUND, "the first has ended", || first.has_ended());
    assert!(first.end().1.contains("first.pcap has no later frames of port 1: another capture"));
    // By now its end has been noticed.
    host.ok(&["hpvmnet", "-S", "localnet", "-A"]);
    assert!(!second.has_ended());
    assert_eq!(second.end_by_ctrl_c(), "", "whoever ends it himself is told nothing");
    let full = host.refused(&["hpvmnet", "-S", "localnet", "-p", "1", "--capture", "/dev/full"]);
    assert!(full.contains("of virtual switch 'localnet' has ended: No space left"), "{full}");
    let third = begin("third.pcap");
    host.ok(&["hpvmstop", "-P", "one", "-h", "-F"]);
    wait_until(SETTLE_BOUND, "the third has ended", || third.has_ended());
    assert!(third.end().1.contains("its guest has left it"));
}

/// Nobody is left to answer, and the guest runs on.
fn what_is_asked_of_a_killed_switch_names_the_cure() {
    let host = VmHost::new(Engine::Fake);
    host.ok(&["hpvmcreate", "-P", "one", "-a", "network:avio_lan::vswitch:localnet:portid:1"]);
    host.ok(&["hpvmstart", "-P", "one"]);
    let switch = process(&host, "hpvmnetd").expect("the switch runs");
    let keeper = switch.parent();
    // Switch and keeper bring each other back, unless one is stopped before the other is killed.
    switch.signal(Signal::STOP);
    keeper.kill();
    switch.kill();
    let file = host.path("one.pcap").display().to_string();
    let macs = ["hpvmnet", "-S", "localnet", "--macs"];
    for line in [&macs[..], &["hpvmnet", "-S", "localnet", "-p", "1", "--capture", &file]] {
        let refusal = host.refused(line);
        let words = "the process of virtual switch 'localnet' was killed, and guests run on it; `hpvmnet -S localnet -b` starts it again";
        assert!(refusal.contains(words), "{line:?}: {refusal}");
    }
    host.ok(&["hpvmnet", "-S", "localnet", "-b"]);
    host.ok(&macs);
}

/// Port forwards are replaced as a whole, and removed by name; each layout shows the port that is asked for alone.
fn forwards_come_and_go_and_one_port_is_shown_alone() {
    let host = VmHost::new(Engine::Fake);
    let web = "tcp:127.0.0.1:8080:10.0.2.15:80";
    host.ok(&["hpvmnet", "-c", "-S", "nat1", "--wire", "nat", "--forward", web]);
    let second = host.run(&["hpvmnet", "-c", "-S", "nat2", "--wire", "nat", "--forward", web]);
    assert!(second.status.success(), "{second}");
    let words = format!("WARNING: virtual switch 'nat1' has the port forward {web}");
    assert!(second.stderr.contains(&words), "{second}");
    let other = web.replace("8080", "8081");
    assert_eq!(host.ok(&["hpvmnet", "-S", "nat2", "-C", "--forward", &other]), "");
    let rewired = host.run(&["hpvmnet", "-S", "nat2", "-C", "--wire", "none"]);
    let words = format!("`hpvmnet -S nat2 -C --wire nat --forward {other}` has them again");
    assert!(rewired.status.success() && rewired.stderr.contains(&words), "{rewired}");
    host.ok(&["hpvmnet", "-S", "nat1", "-u", "portid:1:vlanid:7"]);
    host.ok(&["hpvmnet", "-S", "nat1", "-u", "portid:2:vlanid:8"]);
    let shown = host.ok(&["hpvmnet", "-S", "nat1", "-V"]);
    assert!(shown.contains(&format!("Port Forward                     : {web}\n")), "{shown}");
    host.ok(&["hpvmnet", "-S", "nat1", "-C", "--forward", "none"]);
    let shown = host.ok(&["hpvmnet", "-S", "nat1", "-V"]);
    assert!(!shown.contains("Port Forward") && shown.contains(": nat\n"), "{shown}");
    for (layout, other) in [("-X", "vlan=\"8\""), ("--json", "\"vlan\": \"8\"")] {
        let all = host.ok(&["hpvmnet", "-S", "nat1", layout]);
        assert!(all.contains(other), "{all}");
        let one = host.ok(&["hpvmnet", "-S", "nat1", "-p", "1", layout]);
        assert!(!one.contains(other) && one.contains('7'), "{one}");
    }
}

/// Several guests may reserve a port; the name of the switch may change under them, and a switch in use is not deleted.
fn guests_reserve_ports() {
    let host = VmHost::new(Engine::Fake);
    host.ok(&["hpvmnet", "-c", "-S", "sw1"]);
    let taken = "network:lan:0,1,0x56e9e3096a22:vswitch:sw1:portid:3";
    host.ok(&["hpvmcreate", "-P", "one", "-a", taken]);
    host.ok(&["hpvmcreate", "-P", "two", "-a", "network:avio_lan::vswitch:sw1:portid:3"]);
    host.ok(&["hpvmmodify", "-P", "two", "-a", "network:lan::vswitch:sw1"]);
    let same_address = "network:lan:,,0x56e9e3096a22:vswitch:sw1";
    let refusal = host.refused(&["hpvmcreate", "-P", "three", "-a", same_address]);
    assert!(refusal.contains("belongs to a NIC of guest one"), "{refusal}");
    host.ok(&["hpvmnet", "-S", "sw1", "-C", "-N", "sw2"]);
    let ports = host.ok(&["hpvmnet", "-S", "sw2"]);
    assert!(ports.contains("1       Reserved     lan      none     1\n"), "{ports}");
    assert!(ports.contains("3       Reserved     lan      none     2\n"), "{ports}");
    let shown = host.ok(&["hpvmstatus", "-P", "one"]);
    let row = "vswitch   lan        sw2        3         0   1   0 56-e9-e3-09-6a-22\n";
    assert!(shown.contains(row), "{shown}");
    let statements = host.ok(&["hpvmstatus", "-P", "one", "-d"]);
    let statement = "network:lan:0,1,0x56E9E3096A22:vswitch:sw2:portid:3";
    assert!(statements.contains(&format!("{statement}\n")), "{statements}");
    host.ok(&["hpvmmodify", "-P", "one", "-d", statement]);
    host.ok(&["hpvmmodify", "-P", "one", "-a", statement]);
    assert_eq!(host.ok(&["hpvmstatus", "-P", "one", "-d"]), statements, "the very same NIC");
    assert_eq!(host.ok(&["hpvm", "doctor"]), SOUND, "guest.json has the new name too");
    let refusal = host.run_with_input(&["hpvmnet", "-S", "sw2", "-d"], b"y\n");
    assert!(refusal.stderr.contains("in use by one, two"), "{refusal}");
    host.ok(&["hpvmmodify", "-P", "one", "-m", "network:avio_lan:0,1:vswitch:localnet"]);
    let statements = host.ok(&["hpvmstatus", "-P", "one", "-d"]);
    assert!(statements.contains("network:avio_lan:0,1,0x56E9E3096A22:vswitch:localnet:portid:1\n"));
    host.ok(&["hpvmmodify", "-P", "one", "-d", "network:avio_lan:0,1"]);
    assert!(!host.ok(&["hpvmstatus", "-P", "one", "-d"]).contains("network:"));
}

/// What is listed can be typed again, and nothing waits for the next start.
fn a_running_guest_shows_the_name_that_its_switch_has() {
    let host = VmHost::new(Engine::Fake);
    host.ok(&["hpvmnet", "-c", "-S", "sw1"]);
    host.ok(&["hpvmnet", "-S", "sw1", "-b"]);
    host.ok(&["hpvmcreate", "-P", "one", "-a", "network:avio_lan:0,1:vswitch:sw1:portid:3"]);
    host.ok(&["hpvmstart", "-P", "one"]);
    host.ok(&["hpvmnet", "-S", "sw1", "-C", "-N", "sw2"]);
    for layout in ["-d", "-V", "--json"] {
        let shown = host.ok(&["hpvmstatus", "-P", "one", layout]);
        assert!(shown.contains("sw2") && !shown.contains("sw1"), "{layout}: {shown}");
    }
    let same = ["hpvmmodify", "-P", "one", "-s", "-m", "network:avio_lan:0,1:vswitch:sw2"];
    assert_eq!(host.ok(&same), "Nothing would change.\n");
    // Halted under it, as the guest's own state does not show.
    host.ok(&["hpvmnet", "-S", "sw2", "-h", "-F"]);
    let why = host.ok(&["hpvm", "why", "-P", "one"]);
    assert!(why.contains("because virtual switch 'sw2' is halted"), "{why}");
    assert!(why.ends_with("Next:  hpvmnet -S sw2 -b\n"), "{why}");
    host.ok(&["hpvmnet", "-S", "sw2", "-b"]);
    let why = host.ok(&["hpvm", "why", "-P", "one"]);
    assert!(why.contains("nothing is wrong with it"), "{why}");
    // Without a wire, which a halted one does not miss.
    let rewired = host.run(&["hpvmnet", "-S", "sw2", "-C", "-n", "no0"]);
    assert!(
        rewired.status.success() && rewired.stderr.contains("no network interface no0"),
        "{rewired}"
    );
    let words = "because virtual switch 'sw2' has no wire now, since no0 is not there, so NICs on it have no link";
    wait_until(SETTLE_BOUND, "the wire is missed", || {
        host.ok(&["hpvm", "why", "-P", "one"]).contains(words)
    });
    let halted = host.run(&["hpvmnet", "-S", "sw2", "-h", "-F"]);
    assert_eq!((halted.status.code(), halted.stderr.as_str()), (Some(0), ""));
}

/// A port's rules go with the NIC that is cloned: a guest of a VLAN has no clone outside of it.
fn a_clone_has_ports_and_addresses_of_its_own() {
    let host = VmHost::new(Engine::Fake);
    host.ok(&["hpvmnet", "-S", "localnet", "-u", "portid:1:vlanid:20"]);
    host.ok(&["hpvmcreate", "-P", "one", "-a", "network:lan::vswitch:localnet:portid:1"]);
    host.ok(&["hpvmclone", "-P", "one", "-N", "two"]);
    let nics = ["one", "two"].map(|guest| {
        let shown = host.ok(&["hpvmstatus", "-P", guest]);
        shown.lines().find(|line| line.starts_with("vswitch")).expect("a NIC").to_owned()
    });
    let words = |line: &str, at: usize| line.split_whitespace().nth(at).map(str::to_owned);
    assert_ne!(words(&nics[0], 7), words(&nics[1], 7), "MAC addresses: {nics:?}");
    assert_eq!([words(&nics[0], 3), words(&nics[1], 3)].map(Option::unwrap), ["1", "2"]);
    let ports = host.ok(&["hpvmnet", "-S", "localnet"]);
    assert!(ports.contains("1       Reserved     lan      20       1\n"), "{ports}");
    assert!(ports.contains("2       Reserved     lan      20       1\n"), "{ports}");
    assert_eq!(host.ok(&["hpvm", "doctor"]), SOUND, "a rebuilt registry has the rules too");
}
