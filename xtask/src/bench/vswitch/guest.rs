//! A real guest with NICs, driven at its serial console: the small Linux with iperf3, on a QEMU of its own.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::Value;

use super::lan::Lan;
use crate::bench::process;

const READY: &str = "HPVM GUEST READY";
/// Printed after a command; the console shows it in two parts while it is typed.
const DONE: &str = "GUEST DID IT";
const BOOT: Duration = Duration::from_secs(120);
const COMMAND: Duration = Duration::from_secs(60);

/// How a guest sees a NIC.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Model {
    /// virtio-net.
    Avio,
    /// e1000.
    Vio,
}

/// Where a NIC of a guest leads.
pub(super) enum Nic<'a> {
    /// To a port of a switch of ours, by vhost-user or a stream socket.
    Switch(Model, &'a Path),
    /// To a tap on the kernel's bridge.
    Tap(Model),
}

pub(super) struct Guest {
    number: usize,
    engine: Child,
    /// Heard from the console and not used yet.
    heard: String,
}

/// What one run of iperf3 brought.
#[derive(Clone, Copy)]
pub(super) struct Transfer {
    pub(super) bits_per_second: f64,
    pub(super) bytes: f64,
}

impl Nic<'_> {
    /// What QEMU is told of the NIC's far end, and its device.
    fn words(&self, lan: &Lan, guest: usize, n: usize) -> Result<(Vec<String>, &'static str)> {
        let (model, words) = match self {
            Nic::Switch(Model::Avio, socket) => {
                let socket = format!("socket,id=socket{n},path={}", socket.display());
                let net = format!("vhost-user,id=net{n},chardev=socket{n}");
                (Model::Avio, vec!["-chardev".into(), socket, "-netdev".into(), net])
            }
            Nic::Switch(Model::Vio, socket) => {
                let path = format!("addr.type=unix,addr.path={}", socket.display());
                let net = format!("stream,id=net{n},server=off,{path}");
                (Model::Vio, vec!["-netdev".into(), net])
            }
            Nic::Tap(model) => {
                let tap = format!("tap{guest}-{n}");
                lan.add_tap(&tap)?;
                let net = format!("tap,id=net{n},ifname={tap},script=no,downscript=no");
                (*model, vec!["-netdev".into(), net])
            }
        };
        let device = match model {
            Model::Avio => "virtio-net-pci",
            Model::Vio => "e1000",
        };
        Ok((words, device))
    }
}

impl Guest {
    /// Boots guest NUMBER of a LAN; its nth NIC has the address 10.N.0.NUMBER. Those of AVIO come first, since the guest
    /// finds them first.
    pub(super) fn boot(lan: &Lan, folder: &Path, number: usize, nics: &[Nic]) -> Result<Guest> {
        let image = crate::test_guest::net_image()?;
        let [disk, variables] =
            ["disk", "variables"].map(|name| folder.join(format!("{name}{number}")));
        fs::copy(&image, &disk).with_context(|| format!("copying {}", image.display()))?;
        fs::copy("/usr/share/OVMF/OVMF_VARS_4M.fd", &variables)?;
        let mut command = lan.command("qemu-system-x86_64");
        command.args(["-nodefaults", "-display", "none", "-serial", "stdio", "-smp", "1"]);
        command.args(["-machine", "q35,memory-backend=ram", "-accel", "tcg", "-m", "512M"]);
        command.args(["-object", "memory-backend-memfd,id=ram,size=512M,share=on"]);
        let pflash = "if=pflash,format=raw";
        command.arg("-drive");
        command.arg(format!("{pflash},readonly=on,file=/usr/share/OVMF/OVMF_CODE_4M.fd"));
        command.arg("-drive").arg(format!("{pflash},file={}", variables.display()));
        command.arg("-drive").arg(format!("if=none,id=disk,format=raw,file={}", disk.display()));
        command.args(["-device", "virtio-scsi-pci", "-device", "scsi-hd,drive=disk,bootindex=1"]);
        for (n, nic) in nics.iter().enumerate() {
            let (words, model) = nic.words(lan, number, n)?;
            command.args(words);
            let mac = format!("52:54:00:00:{n:02x}:{number:02x}");
            command.arg("-device").arg(format!("{model},netdev=net{n},mac={mac},romfile="));
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        command.stderr(File::create(folder.join(format!("guest{number}.log")))?);
        let engine = command.spawn().context("starting QEMU")?;
        let mut guest = Guest { number, engine, heard: String::new() };
        guest.hear(READY, BOOT)?;
        guest.run("stty -echo")?;
        for n in 0..nics.len() {
            let nic = format!("eth{n}");
            guest.run(&format!(
                "ip addr add 10.{n}.0.{number}/24 dev {nic}; ip link set {nic} up"
            ))?;
        }
        Ok(guest)
    }

    pub(super) fn address(&self, nic: usize) -> String {
        format!("10.{nic}.0.{}", self.number)
    }

    /// Runs a line in the guest's shell; gives what it printed.
    pub(super) fn run(&mut self, line: &str) -> Result<String> {
        let (begin, end) = DONE.split_at(4);
        let input = self.engine.stdin.as_mut().context("the console is closed")?;
        writeln!(input, "{line}; echo \"{begin}\"\"{end}\"")?;
        self.hear(DONE, COMMAND).with_context(|| format!("running `{line}`"))
    }

    /// Everything until `words`, which are taken too.
    fn hear(&mut self, words: &str, bound: Duration) -> Result<String> {
        let deadline = Instant::now() + bound;
        loop {
            if let Some(at) = self.heard.find(words) {
                let rest = self.heard.split_off(at + words.len());
                let mut before = std::mem::replace(&mut self.heard, rest);
                before.truncate(at);
                return Ok(before);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            ensure!(!left.is_zero(), "the guest does not say '{words}', but: {}", self.heard);
            self.listen(left)?;
        }
    }

    fn listen(&mut self, bound: Duration) -> Result<()> {
        let output = self.engine.stdout.as_mut().context("the console is closed")?;
        let mut waiting = [PollFd::new(output, PollFlags::IN)];
        poll(&mut waiting, Some(&Timespec::try_from(bound)?))?;
        if waiting[0].revents().is_empty() {
            return Ok(());
        }
        let mut bytes = [0; 65536];
        match output.read(&mut bytes)? {
            0 => bail!("QEMU ended; its console said: {}", self.heard),
            count => self.heard.push_str(&String::from_utf8_lossy(&bytes[..count])),
        }
        Ok(())
    }

    /// Sends to an address where iperf3 listens, for some seconds; tells what arrived there.
    pub(super) fn send(&mut self, address: &str, seconds: u64) -> Result<Transfer> {
        let text = self.run(&format!("iperf3 -J -t {seconds} -c {address}"))?;
        let json = text.find('{').zip(text.rfind('}')).map(|(begin, end)| &text[begin..=end]);
        let answer: Value = serde_json::from_str(json.context("iperf3 printed no JSON")?)?;
        let received = &answer["end"]["sum_received"];
        let field = |name: &str| {
            received[name].as_f64().with_context(|| format!("iperf3 tells no {name}: {answer}"))
        };
        Ok(Transfer { bits_per_second: field("bits_per_second")?, bytes: field("bytes")? })
    }

    pub(super) fn processor_time(&self) -> Duration {
        i32::try_from(self.engine.id()).map(process::processor_time).unwrap_or_default()
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.engine.kill();
        let _ = self.engine.wait();
    }
}
