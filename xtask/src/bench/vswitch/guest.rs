//! Real guests with NICs, the small Linux with iperf3: some of hpvm's, on its switch, and beside them some on a QEMU with the
//! same command line and taps.

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use hpvm_model::MacAddress;
use serde_json::Value;

use super::console::Console;
use crate::bench::bare::{Bare, Running};
use crate::bench::house::House;

/// What a guest's QEMU is for all of them.
const MACHINE: [&str; 6] = ["-O", "linux", "-c", "1", "-r", "512M"];
/// Devices of bus 0 for NICs: the first is the disk's, and 3 the console's.
const SLOTS: [u8; 3] = [1, 2, 4];

/// How a guest sees a NIC.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Model {
    /// virtio-net.
    Avio,
    /// e1000.
    Vio,
}

/// A NIC: what it is, and the network it is on. The guest's address there is 10.NETWORK.0.NUMBER.
#[derive(Clone, Copy)]
pub(super) struct Nic {
    pub(super) model: Model,
    pub(super) network: u8,
}

pub(super) struct Guest {
    number: usize,
    nics: Vec<Nic>,
    engine: i32,
    console: Console,
    /// Ends it, where hpvm does not.
    _running: Option<Running>,
}

/// Which way iperf3 sends.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    Out,
    In,
}

impl Model {
    fn as_hpvm_says(self) -> &'static str {
        match self {
            Model::Avio => "avio_lan",
            Model::Vio => "lan",
        }
    }

    fn as_qemu_says(self) -> &'static str {
        match self {
            Model::Avio => "virtio-net-pci",
            Model::Vio => "e1000",
        }
    }
}

impl Nic {
    /// The name of a guest's tap for this NIC.
    pub(super) fn tap(self, guest: usize) -> String {
        format!("tap{guest}-{}", self.network)
    }

    fn mac(self, guest: usize) -> [u8; 6] {
        [0x52, 0x54, 0, 0, self.network, guest as u8]
    }
}

/// Starts a guest NUMBER of a VM Host on a switch.
pub(super) fn on_switch(house: &House, switch: &str, number: usize, nics: &[Nic]) -> Result<Guest> {
    let name = format!("guest{number}");
    create(house, &name, nics, switch)?;
    house.run(&["hpvmstart", "-P", &name])?;
    let door = house.root.join(format!("run/hpvm/{number}/door"));
    Ok(Guest {
        number,
        nics: nics.to_vec(),
        engine: house.qemu(number)?,
        console: Console::at_the_door(UnixStream::connect(door)?)?,
        _running: None,
    })
}

/// Starts a guest with taps on a QEMU of our own, which is told what hpvm tells its own; on its VM Host it is the guest NUMBER.
pub(super) fn on_taps(
    house: &House,
    host_number: usize,
    number: usize,
    nics: &[Nic],
) -> Result<Guest> {
    let name = format!("bare{number}");
    let disk = create(house, &name, &[], "")?;
    house.run(&["hpvmstart", "-P", &name])?;
    let variables = Path::new("/usr/share/OVMF/OVMF_VARS_4M.fd");
    let folder = house.root.join(&name);
    let mut bare = Bare::like(house.qemu(host_number)?, folder, variables, vec![disk])?;
    house.run(&["hpvmstop", "-h", "-F", "-P", &name])?;
    for (slot, nic) in SLOTS.into_iter().zip(nics) {
        let tap = nic.tap(number);
        let mac = nic.mac(number).map(|byte| format!("{byte:02x}")).join(":");
        let device = nic.model.as_qemu_says();
        bare.also(&[
            "-netdev".into(),
            format!("tap,id={tap},ifname={tap},script=no,downscript=no"),
            "-device".into(),
            format!("{device},netdev={tap},mac={mac},bus=port-0-{slot},romfile="),
        ]);
    }
    let running = bare.start()?;
    Ok(Guest {
        number,
        nics: nics.to_vec(),
        engine: running.pid(),
        console: Console::of_bare(UnixStream::connect(bare.socket("console"))?),
        _running: Some(running),
    })
}

/// Creates a guest with NICs on a switch; gives its disk.
fn create(house: &House, name: &str, nics: &[Nic], switch: &str) -> Result<PathBuf> {
    let number = name.trim_start_matches(char::is_alphabetic).parse().unwrap_or_default();
    let image = crate::test_guest::net_image()?;
    let disk = house.empty_disk(&format!("{name}.img"))?;
    fs::copy(&image, &disk).with_context(|| format!("copying {}", image.display()))?;
    let mut statements = vec![format!("disk:avio_stor:0,0,0:file:{}", disk.display())];
    statements.extend(SLOTS.into_iter().zip(nics).map(|(slot, nic)| {
        let mac = nic.mac(number).map(|byte| format!("{byte:02x}")).concat();
        format!("network:{}:0,{slot},0x{mac}:vswitch:{switch}", nic.model.as_hpvm_says())
    }));
    let mut line = vec!["hpvmcreate", "-P", name];
    line.extend(MACHINE);
    statements.iter().for_each(|statement| line.extend(["-a", statement]));
    house.run(&line)?;
    Ok(disk)
}

impl Guest {
    /// Waits until it has booted, and gives its NICs their addresses.
    pub(super) fn set_up(&mut self) -> Result<()> {
        self.console.wait_for_shell()?;
        // Two NICs of one guest may be on one switch: each answers for its own address alone.
        self.console.run("echo 1 >/proc/sys/net/ipv4/conf/all/arp_ignore")?;
        for nic in self.nics.clone() {
            let mac = nic.mac(self.number).map(|byte| format!("{byte:02x}")).join(":");
            let address = self.address(nic.network);
            let of = "/sys/class/net/*/address";
            self.console.run(&format!(
                "d=$(grep -l {mac} {of} | cut -d/ -f5); ip addr add {address}/24 dev $d; ip link set $d up"
            ))?;
        }
        Ok(())
    }

    pub(super) fn address(&self, network: u8) -> String {
        format!("10.{network}.0.{}", self.number)
    }

    pub(super) fn mac(&self, model: Model) -> Option<MacAddress> {
        let nic = self.nics.iter().find(|nic| nic.model == model)?;
        Some(MacAddress::new(nic.mac(self.number)))
    }

    pub(super) fn engine(&self) -> i32 {
        self.engine
    }

    /// Serves whoever asks.
    pub(super) fn serve(&mut self) -> Result<()> {
        self.console.run("iperf3 -s -D >/dev/null").map(drop)
    }

    /// Begins to send to where iperf3 listens, or to have it send here, for some seconds.
    pub(super) fn begin_transfer(
        &mut self,
        (address, port): (&str, u16),
        direction: Direction,
        seconds: u64,
    ) -> Result<()> {
        let reverse = if direction == Direction::In { "-R" } else { "" };
        // A server in a guest closes its socket after each transfer for a moment, in which whoever comes is refused.
        let line = format!(
            "{{ for attempt in 1 2 3 4 5 6 7 8; do iperf3 -J {reverse} -t {seconds} -c {address} -p {port} >/tmp/told && break; usleep 200000; done & }}"
        );
        self.console.run(&line).map(drop)
    }

    /// What iperf3 printed up to now.
    pub(super) fn told(&mut self) -> Result<String> {
        self.console.run("cat /tmp/told")
    }

    /// Waits until it is over; tells how many segments had to be sent again.
    pub(super) fn end_transfer(&mut self) -> Result<f64> {
        let text = self.console.run("wait; cat /tmp/told")?;
        let json = text.find('{').zip(text.rfind('}')).map(|(begin, end)| &text[begin..=end]);
        let answer: Value = serde_json::from_str(json.context("iperf3 printed no JSON")?)?;
        let again = answer["end"]["sum_sent"]["retransmits"].as_f64();
        again.with_context(|| format!("iperf3 tells nothing of what was sent again: {answer}"))
    }
}
