//! A guest's configuration: what the administrator asked for. What the guest runs with now is the boot record's to say.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::bytes::{Memory, shown};
use crate::cpu::{Entitlement, Vcpus};
use crate::name::{GuestName, Label};
use crate::network::Nic;
use crate::os::OsType;
use crate::storage::{AdapterKind, PciSlot, StorageAddress, StorageDevice};

/// A guest's identity for life; the key of its folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct GuestUuid(pub uuid::Uuid);

impl fmt::Display for GuestUuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.as_hyphenated().fmt(f)
    }
}

impl FromStr for GuestUuid {
    type Err = uuid::Error;
    fn from_str(text: &str) -> Result<GuestUuid, uuid::Error> {
        uuid::Uuid::parse_str(text).map(GuestUuid)
    }
}

/// The small number a guest is known by; never given again while the guest, or its removed folder, exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct GuestNumber(u32);

impl GuestNumber {
    /// Bounded so that a guest's user id (base + number) stays far from other ranges.
    pub const MAX: u32 = 99_999;
    pub const FIRST: GuestNumber = GuestNumber(1);

    #[must_use]
    pub fn new(number: u32) -> Option<GuestNumber> {
        (1..=Self::MAX).contains(&number).then_some(GuestNumber(number))
    }

    #[must_use]
    pub fn get(self) -> u32 {
        self.0
    }
}

impl fmt::Display for GuestNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is no guest number; numbers are 1 to {max}", max = GuestNumber::MAX)]
pub struct NumberError(String);

impl FromStr for GuestNumber {
    type Err = NumberError;
    fn from_str(text: &str) -> Result<GuestNumber, NumberError> {
        let is_number = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        is_number
            .then(|| text.parse().ok())
            .flatten()
            .and_then(GuestNumber::new)
            .ok_or_else(|| NumberError(shown(text)))
    }
}

/// Whether the guest starts with the VM Host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AutoStart {
    Auto,
    #[default]
    Manual,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is no start attribute; it is auto or manual")]
pub struct AutoStartError(String);

impl FromStr for AutoStart {
    type Err = AutoStartError;
    fn from_str(text: &str) -> Result<AutoStart, AutoStartError> {
        match text.to_ascii_lowercase().as_str() {
            "auto" => Ok(AutoStart::Auto),
            "manual" => Ok(AutoStart::Manual),
            _ => Err(AutoStartError(shown(text))),
        }
    }
}

impl fmt::Display for AutoStart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            AutoStart::Auto => "Auto",
            AutoStart::Manual => "Manual",
        })
    }
}

/// Whether the guest may be started on this VM Host (`-x runnable_status`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Runnable {
    #[default]
    Enabled,
    Disabled,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is no runnable status; it is enabled or disabled")]
pub struct RunnableError(String);

impl FromStr for Runnable {
    type Err = RunnableError;
    fn from_str(text: &str) -> Result<Runnable, RunnableError> {
        match text.to_ascii_lowercase().as_str() {
            "enabled" => Ok(Runnable::Enabled),
            "disabled" => Ok(Runnable::Disabled),
            _ => Err(RunnableError(shown(text))),
        }
    }
}

impl fmt::Display for Runnable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Runnable::Enabled => "Enabled",
            Runnable::Disabled => "Disabled",
        })
    }
}

/// Everything the administrator decided about one guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestConfig {
    pub uuid: GuestUuid,
    pub number: GuestNumber,
    pub name: GuestName,
    /// `VM` and eight digits, made with the guest.
    pub serial_number: String,
    pub label: Label,
    pub os: OsType,
    pub vcpus: Vcpus,
    pub entitlement: Entitlement,
    pub memory: Memory,
    pub auto_start: AutoStart,
    pub runnable: Runnable,
    /// In order of address.
    pub storage: Vec<StorageDevice>,
    /// In order of slot.
    pub nics: Vec<Nic>,
    /// Root ports made for this guest at some start; they are made at every later one, so that addresses never move.
    pub ports: Vec<PciSlot>,
}

impl GuestConfig {
    #[must_use]
    pub fn device_at(&self, address: StorageAddress) -> Option<&StorageDevice> {
        self.storage.iter().find(|device| device.address == address)
    }

    /// The kind of the adapter in a slot, if the configuration puts one there.
    #[must_use]
    pub fn adapter_in(&self, slot: PciSlot) -> Option<AdapterKind> {
        self.storage.iter().find(|d| d.address.slot == slot).map(|d| d.adapter)
    }

    #[must_use]
    pub fn nic_in(&self, slot: PciSlot) -> Option<&Nic> {
        self.nics.iter().find(|nic| nic.slot == slot)
    }

    /// Keeps the devices in order of address.
    pub fn sort_devices(&mut self) {
        self.storage.sort_by_key(|device| device.address);
        self.nics.sort_by_key(|nic| nic.slot);
    }
}
