//! `HPVM_FAKE_QEMU`: what guest is in the machine and what goes wrong, as `key=value,key=value`. Times are milliseconds.
//!
//! | key | value | what happens | default |
//! | --- | --- | --- | --- |
//! | `boot` | `os`, `os:MS`, `firmware` | an OS takes over MS after each reset, or never | `os` (at once) |
//! | `powerdown` | `off`, `off:MS`, `ignore` | what the OS does when the button is pressed | `off` |
//! | `delete` | `MS`, `never` | when the OS lets go of an adapter. Firmware lets go at the next reset | 20 |
//! | `second` | `MS` | the second function of an adapter leaves so long after the first | 0 |
//! | `slow` | `COMMAND:MS` | this answer comes late; all others are held up too, as in QEMU | |
//! | `hang` | `COMMAND` | this and everything after it is never answered | |
//! | `fail` | `COMMAND:TEXT` | refused with this description | |
//! | `idle` | `MS` | time since the last I/O of every disk | none ever |
//! | `greet` | `MS` | start takes this long | 0 |
//! | `refuse` | `TEXT` | ends at the start, with this on standard error and status 1 | |
//! | `crash` | `MS` | aborts so long after the start | |
//! | `end` | `MS` | takes so long for its end when it was told to end, and aborts when it hears anything more meanwhile: QEMU may | 0 |
//! | `eat` | `MS` | takes memory from so long after the start on, until it is killed or has 256 MiB | |
//! | `complete` | `MS` | a mirror that is told to complete has done so so long after | 0 |
//! | `mirror` | `MS` | a mirror has copied all so long after it began | 0 |
//! | `off` | `MS` | the guest switches itself off so long after the start | |
//! | `reboot` | `MS` | the guest resets itself so long after the start | |
//! | `agent` | `answers` | an agent opens its port when the OS is up, and lets go of any disk | no agent |
//! | | `busy:TEXT` | it uses every disk, and says so | |
//! | | `cannot` | it may not run programs, nor hold file systems | |
//! | | `cannot-run` | it may not run programs | |
//! | | `silent`, `junk` | it reads and says nothing; it writes without end and never an answer | |
//! | `requests` | `busy` | the guest uses its AVIO disks all the time, and is answered | it rests |
//! | | `stuck:MS` | MS after the start it uses them, and is never answered until it is reset | |
//! | | `stuck-while:PATH` | while this file is there it is not answered, and what touches a store waits, with all others, as in QEMU | |
//! | `text` | `TEXT` | the console's last line when the OS is up | `login: ` |
//!
//! A key may come several times where that has a meaning (`slow`, `hang`, `fail`).

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Behaviour {
    pub boot: Boot,
    pub power_button: PowerButton,
    pub delete: Delete,
    pub second: Duration,
    pub slow: BTreeMap<String, Duration>,
    pub hang: BTreeSet<String>,
    pub fail: BTreeMap<String, String>,
    pub idle: Option<Duration>,
    pub greet: Duration,
    pub refuse: Option<String>,
    pub crash: Option<Duration>,
    pub end: Duration,
    pub eat: Option<Duration>,
    pub mirror: Duration,
    pub complete: Duration,
    pub off: Option<Duration>,
    pub reboot: Option<Duration>,
    pub agent: Agent,
    pub requests: Requests,
    pub text: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Requests {
    None,
    Answered,
    StuckAfter(Duration),
    StuckWhile(PathBuf),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Boot {
    OsAfter(Duration),
    FirmwareOnly,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PowerButton {
    OffAfter(Duration),
    Ignore,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delete {
    After(Duration),
    Never,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Agent {
    None,
    Answers,
    /// Uses every disk, and for what.
    Busy(String),
    Cannot,
    CannotRun,
    Silent,
    Junk,
}

impl Requests {
    pub(super) fn stick_after(&self) -> Option<Duration> {
        match self {
            Requests::StuckAfter(delay) => Some(*delay),
            Requests::None | Requests::Answered | Requests::StuckWhile(_) => None,
        }
    }

    /// Whether a store leaves them unanswered, for as long as somebody outside wants it.
    pub(super) fn are_stuck(&self) -> bool {
        matches!(self, Requests::StuckWhile(file) if file.exists())
    }
}

impl Default for Behaviour {
    fn default() -> Behaviour {
        Behaviour {
            boot: Boot::OsAfter(Duration::ZERO),
            power_button: PowerButton::OffAfter(Duration::ZERO),
            delete: Delete::After(Duration::from_millis(20)),
            second: Duration::ZERO,
            slow: BTreeMap::new(),
            hang: BTreeSet::new(),
            fail: BTreeMap::new(),
            idle: None,
            greet: Duration::ZERO,
            refuse: None,
            crash: None,
            end: Duration::ZERO,
            eat: None,
            mirror: Duration::ZERO,
            complete: Duration::ZERO,
            off: None,
            reboot: None,
            agent: Agent::None,
            requests: Requests::None,
            text: "login: ".into(),
        }
    }
}

impl Behaviour {
    pub(super) fn from_environment() -> anyhow::Result<Behaviour> {
        match std::env::var(super::VARIABLE) {
            Ok(text) => {
                Behaviour::parse(&text).with_context(|| format!("{}={text}", super::VARIABLE))
            }
            Err(_) => Ok(Behaviour::default()),
        }
    }

    /// Reads the list. A word it does not know is an error: a test that misspells would test nothing.
    pub fn parse(text: &str) -> anyhow::Result<Behaviour> {
        let mut behaviour = Behaviour::default();
        for item in text.split(',').filter(|item| !item.is_empty()) {
            let (key, value) =
                item.split_once('=').with_context(|| format!("no value in {item}"))?;
            behaviour.set(key, value).with_context(|| item.to_owned())?;
        }
        Ok(behaviour)
    }

    fn set(&mut self, key: &str, value: &str) -> anyhow::Result<()> {
        match key {
            "boot" => self.boot = boot(value)?,
            "powerdown" => self.power_button = power_button(value)?,
            "delete" if value == "never" => self.delete = Delete::Never,
            "delete" => self.delete = Delete::After(milliseconds(value)?),
            "second" => self.second = milliseconds(value)?,
            "slow" => {
                let (command, delay) = pair(value)?;
                self.slow.insert(command.into(), milliseconds(delay)?);
            }
            "hang" => {
                self.hang.insert(value.into());
            }
            "fail" => {
                let (command, description) = pair(value)?;
                self.fail.insert(command.into(), description.into());
            }
            "idle" => self.idle = Some(milliseconds(value)?),
            "greet" => self.greet = milliseconds(value)?,
            "refuse" => self.refuse = Some(value.into()),
            "crash" => self.crash = Some(milliseconds(value)?),
            "end" => self.end = milliseconds(value)?,
            "eat" => self.eat = Some(milliseconds(value)?),
            "mirror" => self.mirror = milliseconds(value)?,
            "complete" => self.complete = milliseconds(value)?,
            "off" => self.off = Some(milliseconds(value)?),
            "reboot" => self.reboot = Some(milliseconds(value)?),
            "agent" => self.agent = agent(value)?,
            "requests" => self.requests = requests(value)?,
            "text" => self.text = value.into(),
            _ => bail!("unknown key"),
        }
        Ok(())
    }
}

fn boot(value: &str) -> anyhow::Result<Boot> {
    Ok(match value.split_once(':') {
        Some(("os", delay)) => Boot::OsAfter(milliseconds(delay)?),
        None if value == "os" => Boot::OsAfter(Duration::ZERO),
        None if value == "firmware" => Boot::FirmwareOnly,
        _ => bail!("os, os:MS or firmware"),
    })
}

fn power_button(value: &str) -> anyhow::Result<PowerButton> {
    Ok(match value.split_once(':') {
        Some(("off", delay)) => PowerButton::OffAfter(milliseconds(delay)?),
        None if value == "off" => PowerButton::OffAfter(Duration::ZERO),
        None if value == "ignore" => PowerButton::Ignore,
        _ => bail!("off, off:MS or ignore"),
    })
}

fn agent(value: &str) -> anyhow::Result<Agent> {
    Ok(match value.split_once(':') {
        Some(("busy", reason)) => Agent::Busy(reason.into()),
        None if value == "answers" => Agent::Answers,
        None if value == "cannot" => Agent::Cannot,
        None if value == "cannot-run" => Agent::CannotRun,
        None if value == "silent" => Agent::Silent,
        None if value == "junk" => Agent::Junk,
        _ => bail!("answers, busy:TEXT, cannot, cannot-run, silent or junk"),
    })
}

fn requests(value: &str) -> anyhow::Result<Requests> {
    Ok(match value.split_once(':') {
        Some(("stuck", delay)) => Requests::StuckAfter(milliseconds(delay)?),
        Some(("stuck-while", path)) => Requests::StuckWhile(path.into()),
        None if value == "busy" => Requests::Answered,
        _ => bail!("busy, stuck:MS or stuck-while:PATH"),
    })
}

fn pair(value: &str) -> anyhow::Result<(&str, &str)> {
    value.split_once(':').context("COMMAND:WHAT")
}

fn milliseconds(value: &str) -> anyhow::Result<Duration> {
    value.parse().map(Duration::from_millis).context("milliseconds")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_read() {
        let text =
            "boot=os:50,powerdown=ignore,delete=never,slow=device_add:500,slow=stop:1,hang=quit";
        let behaviour = Behaviour::parse(text).expect("known words");
        assert_eq!(behaviour.boot, Boot::OsAfter(Duration::from_millis(50)));
        assert_eq!(behaviour.power_button, PowerButton::Ignore);
        assert_eq!(behaviour.delete, Delete::Never);
        assert_eq!(behaviour.slow.len(), 2);
        assert!(behaviour.hang.contains("quit"));
        assert_eq!(Behaviour::parse("").expect("nothing said"), Behaviour::default());
    }

    #[test]
    fn what_is_misspelt_is_refused() {
        for text in [
            "boot",
            "boot=bios",
            "bot=os",
            "slow=stop",
            "delete=soon",
            "powerdown=off:x",
            "agent=busy",
            "requests=stuck",
        ] {
            assert!(Behaviour::parse(text).is_err(), "{text}");
        }
    }
}
