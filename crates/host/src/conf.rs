//! hpvmconf, the administrator's tunables: `NAME=value` lines in shell syntax.
//!
//! ```text
//! # comment
//! HPVMKEEPREMOVED=7            # days
//! export HPVMQEMU="/opt/qemu 10/bin/qemu-system-x86_64"
//! ```
//!
//! The file belongs to a shell, so lines that are no assignment are passed over. A value is judged when it is asked for:
//! a mistake in one tunable stops only the commands that need it. [`Conf::faults`] tells them all.

mod tunables;

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use hpvm_model::bytes::shown;
use hpvm_model::limits::LimitsTable;
use hpvm_model::{AvioService, SwitchName};
use rustix::fs::{Access, access};

use crate::nic::probe::ROUNDS_MAX;
use crate::paths::{self, Root};
pub use tunables::{TUNABLES, Tunable};

const FIRMWARE: &str = "/usr/share/OVMF/OVMF_CODE_4M.fd";
const PRISTINE_NVRAM: &str = "/usr/share/OVMF/OVMF_VARS_4M.fd";
const LAN_ROM: &str = "/usr/lib/ipxe/qemu/efi-e1000.rom";
/// Among the guest images, what is there for all guests.
const KIT: &str = "common";
const QEMU: &str = "qemu-system-x86_64";
const UID_BASE: u32 = 1_000_000;
const KEEP_REMOVED_DAYS: u32 = 7;
const MAC_PROBE_ROUNDS: u8 = 3;
/// The original took up to five minutes.
const STOP_BOUND: Duration = Duration::from_secs(300);
const STOP_SECONDS_MAX: u64 = 3600;
const AUTOSTOP_BOUND: Duration = Duration::from_secs(120);
const AUTOSTOP_SECONDS_MAX: u64 = 3600;
const RESERVATION_HELPER: &str = "/usr/bin/qemu-pr-helper";
/// A hundred years.
const KEEP_REMOVED_DAYS_MAX: u32 = 36_500;
/// A file larger than this is no hpvmconf.
const SIZE_MAX: u64 = 1 << 20;

/// Why a tunable cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfError {
    #[error("{} cannot be read", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{} is {size} bytes long, which no hpvmconf is; look at it", path.display())]
    Size { path: PathBuf, size: u64 },
    #[error("{} is no file; put a file with the tunables there, or nothing", path.display())]
    NoFile { path: PathBuf },
    #[error("{name} is '{value}' in {}, line {line}; it should be {wanted}", path.display())]
    Value { name: &'static str, value: String, path: PathBuf, line: usize, wanted: &'static str },
    #[error(
        "the program {name} is nowhere in PATH; install it, or name it by HPVMQEMU in hpvmconf"
    )]
    NotInPath { name: String },
}

/// One assignment and where it stands, for messages.
#[derive(Clone, Debug)]
struct Setting {
    value: String,
    path: PathBuf,
    line: usize,
}

/// The tunables of one VM Host.
#[derive(Clone, Debug)]
pub struct Conf {
    settings: BTreeMap<String, Setting>,
    /// What in the files means nothing here.
    idle: Vec<String>,
    guest_images: PathBuf,
    uid_base: u32,
}

impl Conf {
    /// Reads both files, of which neither must exist; the newer place wins.
    pub fn load(root: &Root) -> Result<Conf, ConfError> {
        let mut conf = Conf {
            settings: BTreeMap::new(),
            idle: Vec::new(),
            guest_images: root.guest_images(),
            uid_base: root.uid_base().unwrap_or(UID_BASE),
        };
        for path in [root.old_conf(), root.conf()] {
            if let Some(text) = read(&path)? {
                conf.take(&text, &path);
            }
        }
        Ok(conf)
    }

    fn take(&mut self, text: &str, path: &Path) {
        for (index, line) in text.lines().enumerate() {
            let number = index + 1;
            match assignment(line) {
                Some((name, value)) => {
                    if !tunables::is_one(name) {
                        let why = format!("{name} is no tunable of hpvm, see hpvmconf(5)");
                        self.idle.push(format!("{}, line {number}: {why}", path.display()));
                    }
                    let setting = Setting { value, path: path.to_owned(), line: number };
                    self.settings.insert(name.to_owned(), setting);
                }
                None if is_blank_or_comment(line) => {}
                None => {
                    let why = format!("'{}' is no NAME=value, and is passed over", shown(line));
                    self.idle.push(format!("{}, line {number}: {why}", path.display()));
                }
            }
        }
    }

    /// All that is wrong in the files: lines that mean nothing, in their order, and values that cannot be.
    #[must_use]
    pub fn faults(&self) -> Vec<String> {
        let values = [
            self.keep_removed_days().err(),
            self.stop_bound().err(),
            self.autostop_bound().err(),
            self.mac_probe_rounds().err(),
            self.nat_reachable().err(),
            self.limits().err(),
            self.avio_service().err(),
            self.uid_base().err(),
            self.enabled().err(),
        ];
        let values = values.into_iter().flatten().map(|error| error.to_string());
        self.idle.iter().cloned().chain(values).collect()
    }

    /// Days for which the folder of a removed guest is kept.
    pub fn keep_removed_days(&self) -> Result<u32, ConfError> {
        match self.number(&tunables::KEEP_REMOVED)? {
            None => Ok(KEEP_REMOVED_DAYS),
            Some(days) if days <= KEEP_REMOVED_DAYS_MAX => Ok(days),
            Some(_) => Err(self.unfit(&tunables::KEEP_REMOVED)),
        }
    }

    /// How long a guest that is asked to shut down may take.
    pub fn stop_bound(&self) -> Result<Duration, ConfError> {
        match self.number(&tunables::STOP)? {
            None => Ok(STOP_BOUND),
            Some(seconds @ 1..=STOP_SECONDS_MAX) => Ok(Duration::from_secs(seconds)),
            Some(_) => Err(self.unfit(&tunables::STOP)),
        }
    }

    /// How long guests may take to shut down when the VM Host does; 0: they are not asked.
    pub fn autostop_bound(&self) -> Result<Duration, ConfError> {
        match self.number(&tunables::AUTOSTOP)? {
            None => Ok(AUTOSTOP_BOUND),
            Some(seconds) if seconds <= AUTOSTOP_SECONDS_MAX => Ok(Duration::from_secs(seconds)),
            Some(_) => Err(self.unfit(&tunables::AUTOSTOP)),
        }
    }

    /// How often each MAC address is asked for on the LAN before a guest gets it; 0: never.
    pub fn mac_probe_rounds(&self) -> Result<u8, ConfError> {
        let usual = tunables::MAC_FRAMES;
        for tunable in [Tunable { name: tunables::MAC_FRAMES_TOO, ..usual }, usual] {
            match self.number::<u8>(&tunable)? {
                None => {}
                Some(rounds) if rounds <= ROUNDS_MAX => return Ok(rounds),
                Some(_) => return Err(self.unfit(&tunable)),
            }
        }
        Ok(MAC_PROBE_ROUNDS)
    }

    /// The virtual switches with NAT whose guests reach services on this host's own loopback, which trust whoever is there. Named
    /// by the owner of hpvmconf, not by who may change switches.
    pub fn nat_reachable(&self) -> Result<Vec<SwitchName>, ConfError> {
        let names = self.text(&tunables::NAT_REACHABLE).unwrap_or_default().split_whitespace();
        let read: Result<Vec<SwitchName>, _> = names.map(str::parse).collect();
        read.map_err(|_| self.unfit(&tunables::NAT_REACHABLE))
    }

    pub fn limits(&self) -> Result<LimitsTable, ConfError> {
        match self.text(&tunables::LIMITS) {
            None | Some("") => Ok(LimitsTable::Host),
            Some("A.03.50") => Ok(LimitsTable::A0350),
            Some(_) => Err(self.unfit(&tunables::LIMITS)),
        }
    }

    /// Who serves the AVIO adapters of the guests, where the administrator chooses.
    pub fn avio_service(&self) -> Result<Option<AvioService>, ConfError> {
        match self.text(&tunables::AVIO_SERVICE) {
            None | Some("") => Ok(None),
            Some(text) => text.parse().map(Some).map_err(|()| self.unfit(&tunables::AVIO_SERVICE)),
        }
    }

    /// The firmware's code.
    #[must_use]
    pub fn firmware(&self) -> PathBuf {
        self.path(&tunables::FIRMWARE).unwrap_or_else(|| PathBuf::from(FIRMWARE))
    }

    /// Firmware variables as a new guest gets them.
    #[must_use]
    pub fn pristine_nvram(&self) -> PathBuf {
        let kit = || self.kit("nvram").unwrap_or_else(|| PathBuf::from(PRISTINE_NVRAM));
        self.path(&tunables::NVRAM).unwrap_or_else(kit)
    }

    /// The engine's program, looked for in `PATH` unless the tunable names its path.
    pub fn qemu(&self) -> Result<PathBuf, ConfError> {
        let name = self.text(&tunables::QEMU).filter(|name| !name.is_empty()).unwrap_or(QEMU);
        if name.contains('/') {
            return Ok(PathBuf::from(name));
        }
        in_path(name).ok_or_else(|| ConfError::NotInPath { name: name.to_owned() })
    }

    /// The option ROM that lets the firmware boot from the emulated SCSI adapter.
    #[must_use]
    pub fn scsi_rom(&self) -> PathBuf {
        const NAME: &str = "mptsas1068.rom";
        let kit = || self.kit(NAME).unwrap_or_else(|| self.guest_images.join(KIT).join(NAME));
        self.path(&tunables::SCSI_ROM).unwrap_or_else(kit)
    }

    /// A file for all guests: this VM Host's own, else the one that was installed with the program that runs, which may serve
    /// several VM Hosts.
    fn kit(&self, name: &str) -> Option<PathBuf> {
        let own = self.guest_images.join(KIT).join(name);
        let installed =
            || paths::installed("guest-images").map(|images| images.join(KIT).join(name));
        Some(own).filter(|path| path.exists()).or_else(|| installed().filter(|path| path.exists()))
    }

    /// The option ROM that lets the firmware boot over a lan NIC.
    #[must_use]
    pub fn lan_rom(&self) -> PathBuf {
        self.path(&tunables::LAN_ROM).unwrap_or_else(|| PathBuf::from(LAN_ROM))
    }

    /// The program that makes reservations on shared disks for QEMU.
    #[must_use]
    pub fn reservation_helper(&self) -> PathBuf {
        self.path(&tunables::RESERVATION_HELPER)
            .unwrap_or_else(|| PathBuf::from(RESERVATION_HELPER))
    }

    /// Guests and their workers get user ids from here on.
    pub fn uid_base(&self) -> Result<u32, ConfError> {
        match self.number(&tunables::UID_BASE)? {
            None => Ok(self.uid_base),
            Some(base) if (1_000..=4_000_000_000).contains(&base) => Ok(base),
            Some(_) => Err(self.unfit(&tunables::UID_BASE)),
        }
    }

    /// Whether the product starts guests when the host boots.
    pub fn enabled(&self) -> Result<bool, ConfError> {
        match self.text(&tunables::ENABLE) {
            None | Some("" | "1") => Ok(true),
            Some("0") => Ok(false),
            Some(_) => Err(self.unfit(&tunables::ENABLE)),
        }
    }

    fn text(&self, tunable: &Tunable) -> Option<&str> {
        Some(self.settings.get(tunable.name)?.value.as_str())
    }

    fn number<N: FromStr>(&self, tunable: &Tunable) -> Result<Option<N>, ConfError> {
        match self.text(tunable) {
            None | Some("") => Ok(None),
            Some(text) => text.parse().map(Some).map_err(|_| self.unfit(tunable)),
        }
    }

    /// A path as the administrator means it; one that is relative lies among the guest images.
    fn path(&self, tunable: &Tunable) -> Option<PathBuf> {
        let named = self.text(tunable).filter(|value| !value.is_empty())?;
        Some(self.guest_images.join(named))
    }

    fn unfit(&self, tunable: &Tunable) -> ConfError {
        let Tunable { name, wanted, .. } = *tunable;
        let (value, path, line) = match self.settings.get(name) {
            Some(setting) => (setting.value.clone(), setting.path.clone(), setting.line),
            None => (String::new(), PathBuf::new(), 0),
        };
        ConfError::Value { name, value, path, line, wanted }
    }
}

fn read(path: &Path) -> Result<Option<String>, ConfError> {
    let failed = |source| ConfError::Read { path: path.to_owned(), source };
    match fs::metadata(path) {
        Ok(metadata) if metadata.len() > SIZE_MAX => {
            return Err(ConfError::Size { path: path.to_owned(), size: metadata.len() });
        }
        // A pipe or a device would hold every command up.
        Ok(metadata) if !metadata.is_file() => {
            return Err(ConfError::NoFile { path: path.to_owned() });
        }
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Ok(_) => {}
        Err(error) => return Err(failed(error)),
    }
    let bytes = fs::read(path).map_err(failed)?;
    Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
}

/// The program as a shell would find it.
fn in_path(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path)
        .map(|folder| folder.join(name))
        .find(|program| program.is_file() && access(program, Access::EXEC_OK).is_ok())
}

/// Name and value of a line, if it is an assignment and nothing else.
fn assignment(line: &str) -> Option<(&str, String)> {
    let line = line.trim_start();
    let line = line.strip_prefix("export ").map_or(line, str::trim_start);
    let (name, rest) = line.split_once('=')?;
    let mut letters = name.chars();
    let starts_well = letters.next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_');
    let goes_on_well = letters.all(|c| c.is_ascii_alphanumeric() || c == '_');
    (starts_well && goes_on_well).then_some(())?;
    Some((name, word(rest)?))
}

/// One shell word: quotes taken off, ended by a blank or `;`. `None` when the shell would do more than assign.
fn word(text: &str) -> Option<String> {
    let mut value = String::new();
    let mut rest = text.chars();
    while let Some(letter) = rest.next() {
        match letter {
            '\'' => single_quoted(&mut rest, &mut value)?,
            '"' => double_quoted(&mut rest, &mut value)?,
            '\\' => value.push(rest.next()?),
            '$' | '`' | '&' | '|' | '(' | ')' | '<' | '>' => return None,
            ';' => return is_blank_or_comment(rest.as_str()).then_some(value),
            blank if blank.is_whitespace() => {
                return is_blank_or_comment(rest.as_str()).then_some(value);
            }
            other => value.push(other),
        }
    }
    Some(value)
}

fn single_quoted(rest: &mut std::str::Chars<'_>, value: &mut String) -> Option<()> {
    loop {
        match rest.next()? {
            '\'' => return Some(()),
            other => value.push(other),
        }
    }
}

fn double_quoted(rest: &mut std::str::Chars<'_>, value: &mut String) -> Option<()> {
    loop {
        match rest.next()? {
            '"' => return Some(()),
            '$' | '`' => return None,
            '\\' => match rest.next()? {
                special @ ('"' | '\\' | '$' | '`') => value.push(special),
                other => value.extend(['\\', other]),
            },
            other => value.push(other),
        }
    }
}

fn is_blank_or_comment(text: &str) -> bool {
    let text = text.trim_start();
    text.is_empty() || text.starts_with('#')
}
