//! Two running guests, one with a NIC of each kind, for what real guests do on virtual switches. To boot them takes longer than
//! most of what there is to see, so one boot serves all of it, one after the other: [`lans`] has what a network is to its guests,
//! [`lives`] what becomes of it when its switch is halted, killed and replaced.

mod across;
mod jumbo;
mod lans;
mod lives;
mod load;
mod nat;
mod replacing;
mod rules;
mod streams;
mod transfer;

use std::time::{Duration, Instant};

use hpvm_netlab::{answer_names, apart};
use hpvm_testkit::guest::Console;
use hpvm_testkit::vm_host::{Engine, VmHost};
use hpvm_testkit::wait::wait_until;

use crate::networks::SOUND;
use crate::pool::image;
use crate::statements::disk_at;
use crate::{Test, media};

pub(crate) const TESTS: &[Test] = crate::tests![guests_use_their_lans_and_outlive_their_switches];

const BOUND: Duration = Duration::from_secs(20);
/// The guests' numbers, which are those of their ports and the last bytes of their addresses too.
const VIO: u32 = 1;
const AVIO: u32 = 2;
/// The last byte of the VM Host's addresses.
const HOST: u32 = 100;
/// The network 10.9.0.0/24, of the guests' first NICs.
const FIRST: u32 = 9;
/// So many questions get an answer where there is a way.
const PINGS: u32 = 5;

fn guests_use_their_lans_and_outlive_their_switches() {
    apart(|| {
        answer_names();
        let mut host = VmHost::new(Engine::Real);
        host.install();
        lives::install(&host, lives::Version::Older);
        let mut guests = lans::start_without_wire(&host);
        let given = lives::features_at_first(&host);
        lans::use_lans(&host, &mut guests);
        lives::outlive_their_switch(&host, &mut guests, given);
        rules::changed_addresses_are_refused(&host, &mut guests);
        lans::a_nic_moves_to_another_switch(&host);
        // These two run, and whoever needs two guests on one VM Host finds them here.
        let BothKinds { vio, avio } = &mut guests;
        media::an_image_is_shared(&host, [("vio", &mut vio.console), ("avio", &mut avio.console)]);
        guests.stop(&host);
        let ports = host.ok(&["hpvmnet", "-S", "localnet"]);
        assert!(ports.contains("Reserved     avio_lan none     1\n"), "{ports}");
        assert_eq!(host.ok(&["hpvm", "doctor"]), SOUND);
    });
}

struct BothKinds {
    vio: Guest,
    avio: Guest,
}

struct Guest {
    number: u32,
    driver: &'static str,
    console: Console,
}

/// Makes both guests, with a NIC on `sw1` at 0,1.
fn make(host: &VmHost) {
    for (name, kind) in [("vio", "lan"), ("avio", "avio_lan")] {
        let disk = host.copy_of(&image("test-full"), &format!("{name}.img"));
        let disk = disk_at("0,0,0", &disk);
        host.create(name, "512M", &[disk, format!("network:{kind}:0,1:vswitch:sw1")]);
    }
}

impl BothKinds {
    /// Waits for the shells of both, which were started.
    fn at_their_shells(host: &VmHost) -> BothKinds {
        let attached = |number, driver| {
            let console = Console::attach(&host.run_dir(number));
            Guest { number, driver, console }
        };
        let mut both =
            BothKinds { vio: attached(VIO, "e1000"), avio: attached(AVIO, "virtio_net") };
        both.each().into_iter().for_each(Guest::wait_for_boot);
        both
    }

    fn each(&mut self) -> [&mut Guest; 2] {
        [&mut self.vio, &mut self.avio]
    }

    #[track_caller]
    fn talk(&mut self, host: &VmHost) {
        for [asking, asked] in [[AVIO, VIO], [VIO, AVIO]] {
            if !self.guest(asking).reaches(FIRST, asked, PINGS) {
                let [asking, asked] = [asking, asked].map(|number| self.guest(number).network());
                panic!(
                    "no answer\nof who asks:\n{asking}\nof who is asked:\n{asked}\n{}",
                    told(host)
                );
            }
        }
    }

    fn guest(&mut self, number: u32) -> &mut Guest {
        match number {
            VIO => &mut self.vio,
            _ => &mut self.avio,
        }
    }

    fn stop(self, host: &VmHost) {
        for name in ["avio", "vio"] {
            host.ok(&["hpvmstop", "-P", name, "-h", "-F"]);
        }
        wait_until(BOUND, "nothing runs", || host.processes().is_empty());
    }
}

impl Guest {
    /// Until it has its shell and an address at its first NIC.
    #[track_caller]
    fn wait_for_boot(&mut self) {
        self.console.wait_for_shell();
        // Linux would have one interface answer for another.
        self.run("echo 1 >/proc/sys/net/ipv4/conf/all/arp_ignore");
        let driver = self.driver;
        self.run(&format!("modprobe {driver}"));
        self.address("eth0", FIRST);
    }

    #[track_caller]
    fn run(&mut self, line: &str) -> String {
        self.console.run(line)
    }

    /// Gives an interface, once it is there, the guest's address in one more network.
    #[track_caller]
    fn address(&mut self, interface: &str, network: u32) {
        self.wait_for_interface(interface);
        let number = self.number;
        self.run(&format!(
            "ip address add 10.{network}.0.{number}/24 dev {interface}; ip link set {interface} up"
        ));
    }

    #[track_caller]
    fn wait_for_interface(&mut self, interface: &str) {
        let there = format!("[ -e /sys/class/net/{interface} ]");
        let line = format!(
            "i=100; until {there} || [ $i = 0 ]; do i=$((i-1)); sleep 0.1; done; {there}; echo $?"
        );
        assert_eq!(self.run(&line), "0", "{interface} does not come");
    }

    /// Its interfaces, addresses and neighbours, as it knows them.
    fn network(&mut self) -> String {
        self.run("ip address; ip route; ip neigh; grep . /sys/class/net/eth*/carrier")
    }

    /// Whether a station answers one of so many questions.
    #[track_caller]
    fn reaches(&mut self, network: u32, station: u32, questions: u32) -> bool {
        self.pings("-W 3", &format!("10.{network}.0.{station}"), questions)
    }

    /// The same with options of ping, and for any address.
    #[track_caller]
    fn pings(&mut self, options: &str, address: &str, questions: u32) -> bool {
        // By itself ping would go on asking after an answer.
        let ping = format!("ping -c 1 {options} {address} >/dev/null 2>&1");
        let line = format!(
            "i={questions}; until {ping} || {{ i=$((i-1)); [ $i = 0 ]; }}; do :; done; echo $i"
        );
        self.run(&line) != "0"
    }

    /// Whether a station answers none of three questions.
    #[track_caller]
    fn misses(&mut self, network: u32, station: u32) -> bool {
        let line = format!("ping -c 3 -i 0.2 -W 1 10.{network}.0.{station}");
        let answers = self.run(&line);
        assert!(answers.contains("3 packets transmitted"), "{answers}");
        !answers.contains("bytes from")
    }

    #[track_caller]
    fn wait_for_carrier(&mut self, interface: &str, wanted: &str) {
        let deadline = Instant::now() + BOUND;
        while self.run(&format!("cat /sys/class/net/{interface}/carrier")) != wanted {
            assert!(Instant::now() < deadline, "the carrier is not {wanted}");
        }
    }

    #[track_caller]
    fn wait_for_interfaces(&mut self, wanted: usize) {
        let deadline = Instant::now() + BOUND;
        loop {
            let count = self.run("ls -d /sys/class/net/eth* | wc -l");
            if count == wanted.to_string() {
                return;
            }
            assert!(Instant::now() < deadline, "{count} interfaces, not {wanted}");
        }
    }
}

/// What may tell why nothing passes.
fn told(host: &VmHost) -> String {
    let log = std::fs::read_to_string(host.path("var/opt/hpvm/common/vswitch-2.log"));
    format!("{}\n{}", host.ok(&["hpvmnet", "-S", "sw1", "-A"]), log.unwrap_or_default())
}
