//! Entries of the device database: what is known of a device beside the guests that have it, and how the words of
//! `hpvmdevmgmt` name entries, attributes and dependents.
//!
//! An entry is written `TYPE:NAME`, an attribute of it `TYPE:NAME:attr:ATTRIBUTE=VALUE`. Names are paths and may hold the
//! colon that also parts the fields, as `/dev/disk/by-path/pci-0000:00:1f.2` does; what is printed therefore has a backslash
//! before each `:` and `,` of a name, and what is typed may have it.

mod statement;

use std::fmt;
use std::str::FromStr;

use crate::bytes::{Bytes, shown};
use crate::storage::DeviceKind;

pub use statement::{
    Deletion, EntryError, EntryId, EntryTypes, Filter, Listing, Replacement, Setting,
};

/// What an entry is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum EntryType {
    /// `gdev`: a device for guests.
    Guest,
    /// `rdev`: a device or folder that no guest gets.
    Restricted,
    /// `server`: a VM Host.
    Server,
}

impl EntryType {
    pub const ALL: [EntryType; 3] = [EntryType::Guest, EntryType::Restricted, EntryType::Server];

    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            EntryType::Guest => "gdev",
            EntryType::Restricted => "rdev",
            EntryType::Server => "server",
        }
    }
}

impl FromStr for EntryType {
    type Err = EntryError;
    fn from_str(text: &str) -> Result<EntryType, EntryError> {
        let known = EntryType::ALL.into_iter().find(|entry| entry.as_str() == text);
        known.ok_or_else(|| EntryError::Type(shown(text)))
    }
}

/// Where an entry comes from, which decides when it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Origin {
    /// An administrator made it; nothing else removes it.
    Hand,
    /// It came with a guest's device, and goes with the last of them.
    Guest,
    /// hpvmhostrdev saw the VM Host use the device.
    Host,
    /// hpvmhostrdev read on the device that something not running now owns it.
    Signature,
}

impl Origin {
    const ALL: [Origin; 4] = [Origin::Hand, Origin::Guest, Origin::Host, Origin::Signature];

    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Origin::Hand => "hand",
            Origin::Guest => "guest",
            Origin::Host => "host",
            Origin::Signature => "signature",
        }
    }

    /// Whether hpvmhostrdev made the entry, and so may remove it: attribute AUTORDEV.
    #[must_use]
    pub fn is_automatic(self) -> bool {
        matches!(self, Origin::Host | Origin::Signature)
    }
}

impl FromStr for Origin {
    type Err = String;
    fn from_str(text: &str) -> Result<Origin, String> {
        let known = Origin::ALL.into_iter().find(|origin| origin.as_str() == text);
        known.ok_or_else(|| format!("'{text}' is no origin of an entry"))
    }
}

/// The value of an attribute that is YES or NO.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Choice {
    #[default]
    No,
    Yes,
}

impl Choice {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Choice::No => "NO",
            Choice::Yes => "YES",
        }
    }
}

impl FromStr for Choice {
    type Err = String;
    fn from_str(text: &str) -> Result<Choice, String> {
        match text.to_ascii_uppercase().as_str() {
            "YES" => Ok(Choice::Yes),
            "NO" => Ok(Choice::No),
            _ => Err(format!("'{text}' is neither YES nor NO")),
        }
    }
}

/// What an administrator says of an entry. Everything is NO, or not said, until then.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    /// Several running guests may have it at once.
    pub share: Choice,
    /// The entry stays when nothing needs it any more.
    pub preserve: Choice,
    /// Guests may read the disk and not write it.
    pub read_only: Choice,
    /// What it is kept for; `None`: for whatever it can back.
    pub usage: Option<DeviceKind>,
    /// Guests may have what the restriction forbids and what the VM Host uses itself.
    pub allow_guests: Choice,
}

/// The name of an attribute that can be changed or deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttributeName {
    Share,
    Preserve,
    ReadOnly,
    Usage,
    Allow,
    /// Not stored as a word: what a device was known by.
    Identifier,
}

impl AttributeName {
    pub const ALL: [AttributeName; 6] = [
        AttributeName::Share,
        AttributeName::Preserve,
        AttributeName::ReadOnly,
        AttributeName::Usage,
        AttributeName::Allow,
        AttributeName::Identifier,
    ];

    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            AttributeName::Share => "SHARE",
            AttributeName::Preserve => "PRESERVE",
            AttributeName::ReadOnly => "READONLY",
            AttributeName::Usage => "USAGE",
            AttributeName::Allow => "ALLOW",
            AttributeName::Identifier => "IDENTIFIER",
        }
    }

    /// Whether entries of this type have the attribute.
    #[must_use]
    pub fn belongs_to(self, entry: EntryType) -> bool {
        match self {
            AttributeName::Preserve => true,
            AttributeName::Allow => entry == EntryType::Restricted,
            _ => entry == EntryType::Guest,
        }
    }
}

impl Attributes {
    /// Makes a setting so.
    pub fn set(&mut self, setting: Setting) {
        match setting {
            Setting::Share(choice) => self.share = choice,
            Setting::Preserve(choice) => self.preserve = choice,
            Setting::ReadOnly(choice) => self.read_only = choice,
            Setting::Usage(kind) => self.usage = Some(kind),
            Setting::AllowGuests => self.allow_guests = Choice::Yes,
            Setting::AcceptIdentifier => {}
        }
    }

    /// Back to what an entry has of which nobody said anything.
    pub fn clear(&mut self, name: AttributeName) {
        let fresh = Attributes::default();
        match name {
            AttributeName::Share => self.share = fresh.share,
            AttributeName::Preserve => self.preserve = fresh.preserve,
            AttributeName::ReadOnly => self.read_only = fresh.read_only,
            AttributeName::Usage => self.usage = fresh.usage,
            AttributeName::Allow => self.allow_guests = fresh.allow_guests,
            AttributeName::Identifier => {}
        }
    }

    /// Whether they say anything that would be lost with the entry.
    #[must_use]
    pub fn are_worth_keeping(&self) -> bool {
        *self != Attributes::default()
    }
}

/// By what a block device, or the file of a raw disk, is known again when its path leads to it later.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreIdentity {
    /// World-wide name, serial number or uuid, with its kind; some devices have nothing of the sort, and all files the same.
    pub identifier: Option<String>,
    pub size: Bytes,
}

/// How the device a path leads to compares with the one that was kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Likeness {
    Same,
    /// The same device, which has grown.
    Grown,
    /// The same device, which has lost its end.
    Shrunk,
    Other,
}

/// What stands for an identifier of a file: one that was restored is the same disk, whatever its inode.
const FILE: &str = "file";

/// How the text of a serial number begins, and that of a partition of what has one.
pub const SERIAL: &str = "serial:";

impl StoreIdentity {
    /// Of a file, by its length alone.
    #[must_use]
    pub fn of_file(size: Bytes) -> StoreIdentity {
        StoreIdentity { identifier: Some(FILE.to_owned()), size }
    }

    #[must_use]
    pub fn is_of_file(&self) -> bool {
        self.identifier.as_deref() == Some(FILE)
    }

    /// What the device alone has, and finds it among others: a serial number may be several devices'.
    #[must_use]
    pub fn unique_identifier(&self) -> Option<&str> {
        let identifier = self.identifier.as_deref();
        identifier.filter(|text| *text != FILE && !text.starts_with(SERIAL))
    }

    /// Compares what was kept (`self`) with what is found. Where there is no identifier only the size speaks.
    #[must_use]
    pub fn compare(&self, found: &StoreIdentity) -> Likeness {
        match (&self.identifier, &found.identifier) {
            (Some(kept), Some(now)) if kept == now => match found.size.cmp(&self.size) {
                std::cmp::Ordering::Equal => Likeness::Same,
                std::cmp::Ordering::Greater => Likeness::Grown,
                std::cmp::Ordering::Less => Likeness::Shrunk,
            },
            (None, None) if self.size == found.size => Likeness::Same,
            _ => Likeness::Other,
        }
    }
}

impl fmt::Display for StoreIdentity {
    /// `wwid=naa.5000c500a1b2c3d4/1073741824`: kind, value and size in bytes; no colon, which parts the fields of a list.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let identifier = self.identifier.as_deref().unwrap_or("none").replacen(':', "=", 1);
        write!(f, "{}/{}", escaped(&identifier), self.size.0)
    }
}

/// A name as lists print it: a backslash before what would part the fields.
#[must_use]
pub fn escaped(name: &str) -> String {
    let mut text = String::with_capacity(name.len());
    for c in name.chars() {
        if matches!(c, '\\' | ':' | ',') {
            text.push('\\');
        }
        text.push(c);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn identity(identifier: Option<&str>, size: u64) -> StoreIdentity {
        StoreIdentity { identifier: identifier.map(str::to_owned), size: Bytes(size) }
    }

    #[test]
    fn a_device_is_known_again_by_its_identifier_then_by_its_size() {
        for (kept, found, likeness) in [
            (identity(Some("wwid:a"), 8), identity(Some("wwid:a"), 8), Likeness::Same),
            (identity(Some("wwid:a"), 8), identity(Some("wwid:a"), 9), Likeness::Grown),
            (identity(Some("wwid:a"), 8), identity(Some("wwid:a"), 7), Likeness::Shrunk),
            (identity(Some("wwid:a"), 8), identity(Some("wwid:b"), 8), Likeness::Other),
            (identity(Some("wwid:a"), 8), identity(None, 8), Likeness::Other),
            (identity(None, 8), identity(Some("wwid:a"), 8), Likeness::Other),
            (identity(None, 8), identity(None, 8), Likeness::Same),
            (identity(None, 8), identity(None, 9), Likeness::Other),
            (StoreIdentity::of_file(Bytes(8)), StoreIdentity::of_file(Bytes(8)), Likeness::Same),
            (StoreIdentity::of_file(Bytes(8)), StoreIdentity::of_file(Bytes(9)), Likeness::Grown),
            (StoreIdentity::of_file(Bytes(8)), StoreIdentity::of_file(Bytes(7)), Likeness::Shrunk),
            (StoreIdentity::of_file(Bytes(8)), identity(Some("wwid:a"), 8), Likeness::Other),
        ] {
            assert_eq!(kept.compare(&found), likeness, "{kept} {found}");
        }
    }

    #[test]
    fn an_identity_has_no_bare_colon() {
        let text = identity(Some("wwid:eui.00:11"), 512).to_string();
        assert_eq!(text, r"wwid=eui.00\:11/512");
        assert_eq!(identity(None, 512).to_string(), "none/512");
    }

    proptest! {
        #[test]
        fn a_device_is_always_like_itself(size: u64, identifier in proptest::option::of("[a-z:]{1,9}")) {
            let identity = StoreIdentity { identifier, size: Bytes(size) };
            prop_assert_eq!(identity.compare(&identity.clone()), Likeness::Same);
        }
    }
}
