//! One guest's configuration as text, `guest.json` in its folder: what a lost registry is rebuilt from. Also how the record
//! of operations keeps configurations.
//!
//! Fields may be added, and readers ignore those they do not know; the version grows only when an old reader would
//! misunderstand the text.

use hpvm_model::{
    AutoStart, Entitlement, GuestConfig, GuestName, GuestNumber, GuestUuid, Label, Memory, Nic,
    OsType, PciSlot, Runnable, StorageDevice, Vcpus,
};
use serde::{Deserialize, Serialize};

const VERSION: u32 = 1;

/// Why a text is no guest's configuration.
#[derive(Debug, thiserror::Error)]
pub enum PortableError {
    #[error("it is no guest's configuration")]
    Malformed(#[source] serde_json::Error),
    #[error(
        "it has version {found}, and this hpvm knows version {VERSION}; use the newer hpvm that wrote it"
    )]
    Newer { found: u32 },
}

/// The text of one guest, for its folder.
#[must_use]
pub fn write(config: &GuestConfig) -> String {
    format!("{:#}\n", value(config))
}

/// The guest of a text.
pub fn read(text: &str) -> Result<GuestConfig, PortableError> {
    let head: Head = serde_json::from_str(text).map_err(PortableError::Malformed)?;
    if head.version > VERSION {
        return Err(PortableError::Newer { found: head.version });
    }
    let document: Document = serde_json::from_str(text).map_err(PortableError::Malformed)?;
    Ok(document.into())
}

/// The same on one line, for the record of operations.
pub(crate) fn line(config: &GuestConfig) -> String {
    value(config).to_string()
}

pub(crate) fn value(config: &GuestConfig) -> serde_json::Value {
    // Every field is text, a number, or a list of such: there is nothing that serde could refuse.
    serde_json::to_value(Document::from(config)).unwrap_or_default()
}

#[derive(Deserialize)]
struct Head {
    version: u32,
}

#[derive(Serialize, Deserialize)]
struct Document {
    version: u32,
    number: GuestNumber,
    uuid: GuestUuid,
    name: GuestName,
    #[serde(default)]
    label: Label,
    serial_number: String,
    os: OsType,
    vcpus: Vcpus,
    entitlement: Entitlement,
    memory_bytes: Memory,
    #[serde(default)]
    auto_start: AutoStart,
    #[serde(default)]
    runnable: Runnable,
    #[serde(default)]
    storage: Vec<StorageDevice>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    nics: Vec<Nic>,
    #[serde(default)]
    ports: Vec<PciSlot>,
}

impl From<&GuestConfig> for Document {
    fn from(config: &GuestConfig) -> Document {
        let config = config.clone();
        Document {
            version: VERSION,
            number: config.number,
            uuid: config.uuid,
            name: config.name,
            label: config.label,
            serial_number: config.serial_number,
            os: config.os,
            vcpus: config.vcpus,
            entitlement: config.entitlement,
            memory_bytes: config.memory,
            auto_start: config.auto_start,
            runnable: config.runnable,
            storage: config.storage,
            nics: config.nics,
            ports: config.ports,
        }
    }
}

impl From<Document> for GuestConfig {
    fn from(document: Document) -> GuestConfig {
        let mut config = GuestConfig {
            uuid: document.uuid,
            number: document.number,
            name: document.name,
            serial_number: document.serial_number,
            label: document.label,
            os: document.os,
            vcpus: document.vcpus,
            entitlement: document.entitlement,
            memory: document.memory_bytes,
            auto_start: document.auto_start,
            runnable: document.runnable,
            storage: document.storage,
            nics: document.nics,
            ports: document.ports,
        };
        config.sort_devices();
        config
    }
}
