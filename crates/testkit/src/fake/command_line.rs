//! QEMU's command line, as far as a confined start uses it. What QEMU would refuse is refused, an unknown option first of
//! all: a test must not pass on a line that no QEMU takes.

use anyhow::{Context, bail};
use serde_json::{Map, Value};

pub(super) const VERSION_TEXT: &str = "QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2+deb13u1~bpo12+1)\n\
    Copyright (c) 2003-2025 Fabrice Bellard and the QEMU Project developers\n";

const WITH_VALUE: &[&str] = &[
    "-accel",
    "-action",
    "-add-fd",
    "-blockdev",
    "-boot",
    "-chardev",
    "-cpu",
    "-device",
    "-display",
    "-global",
    "-m",
    "-machine",
    "-mon",
    "-msg",
    "-name",
    "-netdev",
    "-object",
    "-overcommit",
    "-rtc",
    "-run-with",
    "-sandbox",
    "-serial",
    "-smbios",
    "-smp",
    "-uuid",
    "-vga",
];
const FLAGS: &[&str] = &["-nodefaults", "-no-user-config", "-nographic", "-S"];

pub(super) enum Start {
    Version,
    Machine(Box<CommandLine>),
}

/// What the line asks for, in its order.
#[derive(Debug, Default)]
pub(super) struct CommandLine {
    pub fds: Vec<PassedFd>,
    pub chardevs: Vec<Chardev>,
    /// Those that QEMU connects to by their path: a NIC's on a switch.
    pub nic_sockets: Vec<String>,
    pub netdevs: Vec<Map<String, Value>>,
    /// Chardevs that speak QMP.
    pub monitors: Vec<String>,
    pub serial: Option<String>,
    pub nodes: Vec<Map<String, Value>>,
    pub devices: Vec<Map<String, Value>>,
    pub processors: Option<i64>,
    /// Block nodes of the firmware's two flash devices.
    pub flash: Vec<String>,
    /// Whether processors wait for `cont`.
    pub is_held: bool,
    pub stays_after_shutdown: bool,
}

#[derive(Debug)]
pub(super) struct PassedFd {
    pub fd: i32,
    pub set: i64,
    pub opaque: Option<String>,
}

#[derive(Debug)]
pub(super) struct Chardev {
    pub id: String,
    /// A listening socket, or a connected one.
    pub fd: i32,
    pub is_listening: bool,
    /// The descriptor set that keeps what was said.
    pub log_set: Option<i64>,
}

pub(super) fn parse(arguments: &[String]) -> anyhow::Result<Start> {
    let mut line = CommandLine::default();
    let mut arguments = arguments.iter();
    while let Some(option) = arguments.next() {
        let option = option.strip_prefix('-').filter(|o| o.starts_with('-')).unwrap_or(option);
        if option == "-version" {
            return Ok(Start::Version);
        }
        if FLAGS.contains(&option) {
            line.is_held |= option == "-S";
        } else if WITH_VALUE.contains(&option) {
            let value =
                arguments.next().with_context(|| format!("{option}: requires an argument"))?;
            line.take(option, value).with_context(|| format!("{option} {value}"))?;
        } else {
            bail!("{option}: invalid option");
        }
    }
    Ok(Start::Machine(Box::new(line)))
}

impl CommandLine {
    fn take(&mut self, option: &str, value: &str) -> anyhow::Result<()> {
        match option {
            "-add-fd" => self.fds.push(passed_fd(&properties(value, None)?)?),
            "-blockdev" if value.starts_with('{') => {
                self.nodes.push(serde_json::from_str(value).context("no JSON object")?);
            }
            "-blockdev" => self.nodes.push(properties(value, None)?),
            "-device" => self.devices.push(properties(value, Some("driver"))?),
            "-chardev" => self.chardev(&properties(value, Some("backend"))?)?,
            "-netdev" => self.netdevs.push(properties(value, Some("type"))?),
            "-mon" => {
                let monitor = properties(value, Some("chardev"))?;
                if text(&monitor, "mode") != Some("control") {
                    bail!("only mode=control is known here");
                }
                self.monitors.push(required(&monitor, "chardev")?.to_owned());
            }
            "-serial" => {
                let id = value.strip_prefix("chardev:").context("only chardev:ID is known here")?;
                self.serial = Some(id.to_owned());
            }
            "-machine" => self.machine(&properties(value, Some("type"))?),
            "-action" => {
                let actions = properties(value, None)?;
                self.stays_after_shutdown = text(&actions, "shutdown") == Some("pause");
            }
            "-smp" => {
                let count = value.split(',').next().unwrap_or_default();
                self.processors = Some(count.parse().context("a number of processors")?);
            }
            "-m" => {
                let size = value.split(',').next().unwrap_or_default().trim_start_matches("size=");
                let digits = size.trim_end_matches(['M', 'G', 'K']);
                if digits.parse::<u64>().is_err() {
                    bail!("Parameter 'size' expects a non-negative number below 2^64");
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// All that there are, in the order of their sort.
    pub(super) fn chardev_ids(&self) -> impl Iterator<Item = String> {
        let passed = self.chardevs.iter().map(|chardev| &chardev.id);
        passed.chain(&self.nic_sockets).cloned()
    }

    fn chardev(&mut self, properties: &Map<String, Value>) -> anyhow::Result<()> {
        if text(properties, "backend") != Some("socket") {
            bail!("only sockets are known here");
        }
        match text(properties, "path") {
            Some(_) => self.nic_sockets.push(required(properties, "id")?.to_owned()),
            None => self.chardevs.push(passed_socket(properties)?),
        }
        Ok(())
    }

    fn machine(&mut self, machine: &Map<String, Value>) {
        let flash = ["pflash0", "pflash1"].into_iter().filter_map(|key| text(machine, key));
        self.flash.extend(flash.map(str::to_owned));
    }
}

fn passed_fd(properties: &Map<String, Value>) -> anyhow::Result<PassedFd> {
    Ok(PassedFd {
        fd: required(properties, "fd")?.parse()?,
        set: required(properties, "set")?.parse()?,
        opaque: text(properties, "opaque").map(str::to_owned),
    })
}

fn passed_socket(properties: &Map<String, Value>) -> anyhow::Result<Chardev> {
    let log = text(properties, "logfile").map(|path| {
        path.strip_prefix("/dev/fdset/").context("only a descriptor set is known as logfile")
    });
    Ok(Chardev {
        id: required(properties, "id")?.to_owned(),
        fd: required(properties, "fd")?.parse().context("fd")?,
        is_listening: text(properties, "server") == Some("on"),
        log_set: log.transpose()?.map(str::parse).transpose()?,
    })
}

fn text<'a>(properties: &'a Map<String, Value>, key: &str) -> Option<&'a str> {
    properties.get(key).and_then(Value::as_str)
}

fn required<'a>(properties: &'a Map<String, Value>, key: &str) -> anyhow::Result<&'a str> {
    text(properties, key).with_context(|| format!("Parameter '{key}' is missing"))
}

/// `first,key=value,…`; a doubled comma is one that belongs to the value. All values are text here.
fn properties(value: &str, first: Option<&str>) -> anyhow::Result<Map<String, Value>> {
    let mut properties = Map::new();
    for (index, part) in split(value).into_iter().enumerate() {
        match (part.split_once('='), first) {
            (None, Some(key)) if index == 0 => properties.insert(key.into(), part.into()),
            (None, _) => properties.insert(part, "on".into()),
            (Some((key, value)), _) => properties.insert(key.into(), value.into()),
        };
    }
    Ok(properties)
}

fn split(value: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut characters = value.chars().peekable();
    while let Some(character) = characters.next() {
        if character == ',' && characters.next_if_eq(&',').is_none() {
            parts.push(String::new());
        } else if let Some(part) = parts.last_mut() {
            part.push(character);
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: &str) -> anyhow::Result<CommandLine> {
        let arguments: Vec<String> = text.split_ascii_whitespace().map(str::to_owned).collect();
        match parse(&arguments)? {
            Start::Machine(line) => Ok(*line),
            Start::Version => bail!("a version"),
        }
    }

    #[test]
    fn a_confined_start_is_understood() {
        let line = line(
            "-nodefaults -machine pc-q35-10.0,usb=off,pflash0=code,pflash1=vars -m 256M -S \
             -add-fd fd=11,set=11,opaque=nvram -blockdev driver=file,node-name=vars,filename=/dev/fdset/11 \
             -chardev socket,id=monitor,fd=12,server=on,wait=off -mon chardev=monitor,mode=control \
             -chardev socket,id=console,fd=14,server=on,wait=off,logfile=/dev/fdset/15,logappend=on \
             -serial chardev:console -device scsi-hd,id=d,serial=a,,b -action shutdown=pause,panic=pause",
        )
        .expect("a line QEMU takes");
        assert_eq!(line.flash, ["code", "vars"]);
        assert_eq!(line.monitors, ["monitor"]);
        assert_eq!(line.chardevs[1].log_set, Some(15));
        assert_eq!(line.devices[0]["serial"], "a,b");
        assert!(line.is_held && line.stays_after_shutdown);
    }

    #[test]
    fn what_qemu_refuses_is_refused() {
        for text in
            ["-zz", "-m", "-m lots", "-chardev socket,id=x", "-mon chardev=x", "-add-fd fd=1"]
        {
            assert!(line(text).is_err(), "{text}");
        }
    }
}
