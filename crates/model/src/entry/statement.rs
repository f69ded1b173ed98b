//! The words of `hpvmdevmgmt`. Fields are taken from the right, since a path may hold what parts them.

use std::str::FromStr;

use super::{AttributeName, Choice, EntryType, escaped};
use crate::bytes::shown;
use crate::storage::DeviceKind;

const NAME_BYTES_MAX: usize = 4095;
const ATTRIBUTE: &str = ":attr:";
const DEPENDENT: &str = ":depend:";

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EntryError {
    #[error("'{0}' is no type of entry; the types are gdev, rdev and server")]
    Type(String),
    #[error(
        "'{0}' is no type of entry; the types are gdev, rdev and server, and all means each of them"
    )]
    ListedType(String),
    #[error("no entry in a list has an attribute '{name}'; those there are: {}", LISTED.map(|(name, _)| name).join(", "))]
    ListedAttribute { name: String },
    #[error("'{0}=' says not which value; write {0}=VALUE, such as {0}=YES")]
    ListedValue(String),
    #[error("no entry in a list has {name}={value}; {name} is one of {}", .values.join(", "))]
    NoListedValue { name: &'static str, value: String, values: &'static [&'static str] },
    #[error("'{0}' names no entry; write TYPE:NAME, such as gdev:/path")]
    Malformed(String),
    #[error("'{0}' is no absolute path; the names of gdev and rdev entries begin with '/'")]
    RelativePath(String),
    #[error("'{0}' is no name of a VM Host; it has letters, digits, dots and hyphens")]
    Host(String),
    #[error("the name '{0}' has control characters")]
    ControlCharacter(String),
    #[error("the name '{0}' is longer than {NAME_BYTES_MAX} bytes")]
    TooLong(String),
    #[error(
        "'{0}' is no change of an attribute; write TYPE:NAME:attr:ATTRIBUTE=VALUE, such as gdev:/path:attr:PRESERVE=YES"
    )]
    NoSetting(String),
    #[error("'{0}' says not what to delete; write TYPE:NAME or TYPE:NAME:attr:ATTRIBUTE")]
    NoDeletion(String),
    #[error(
        "'{name}' is no attribute that can be changed in {} entries; those are {}", of.as_str(), attributes_of(*of)
    )]
    Attribute { name: String, of: EntryType },
    #[error("{}={value} means nothing; write {}={right}", name.as_str(), name.as_str())]
    Value { name: AttributeName, value: String, right: &'static str },
    #[error(
        "ALLOW={0} would give it to '{0}' alone, and an entry names no single guest: write ALLOW=GUEST, with the word GUEST as it stands here, and any guest may have it"
    )]
    AllowedByName(String),
    #[error("'{0}' replaces nothing; write gdev:OLD:NEW or rdev:OLD:NEW with absolute paths")]
    NoReplacement(String),
    #[error("a VM Host's entry has no path that could be replaced")]
    ServerReplacement,
}

/// The attributes that a list shows, whether they can be changed or not, and what each can be.
const LISTED: [(&str, &[&str]); 10] = [
    ("CONFIG", &["gdev", "rdev", "server"]),
    ("EXIST", YES_OR_NO),
    ("DEVTYPE", &["FILE", "DIR", "LV", "DVD", "DISK", "TAPE", "CHANGER", "BURNER", "UNKNOWN"]),
    ("SHARE", YES_OR_NO),
    ("READONLY", YES_OR_NO),
    ("PRESERVE", YES_OR_NO),
    ("USAGE", &["DISK", "DVD", "TAPE", "CHANGER", "BURNER"]),
    ("PRESET", YES_OR_NO),
    ("AUTORDEV", YES_OR_NO),
    ("ALLOW", &["GUEST"]),
];
const YES_OR_NO: &[&str] = &["YES", "NO"];

fn attributes_of(of: EntryType) -> String {
    let names = AttributeName::ALL.into_iter().filter(|name| name.belongs_to(of));
    names.map(AttributeName::as_str).collect::<Vec<_>>().join(", ")
}

/// The name of one entry: `gdev:/path`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EntryId {
    pub entry: EntryType,
    name: String,
}

impl EntryId {
    pub fn new(entry: EntryType, name: &str) -> Result<EntryId, EntryError> {
        if name.is_empty() {
            return Err(EntryError::Malformed(format!("{}:", entry.as_str())));
        }
        if name.len() > NAME_BYTES_MAX {
            return Err(EntryError::TooLong(shown(name)));
        }
        if name.chars().any(char::is_control) {
            return Err(EntryError::ControlCharacter(shown(name)));
        }
        let is_in_host = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
        let is_host = name.chars().all(is_in_host) && name.contains(char::is_alphanumeric);
        match entry {
            EntryType::Server if !is_host => Err(EntryError::Host(shown(name))),
            EntryType::Guest | EntryType::Restricted if !name.starts_with('/') => {
                Err(EntryError::RelativePath(shown(name)))
            }
            _ => Ok(EntryId { entry, name: name.to_owned() }),
        }
    }

    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl FromStr for EntryId {
    type Err = EntryError;
    fn from_str(text: &str) -> Result<EntryId, EntryError> {
        let (entry, name) =
            text.split_once(':').ok_or_else(|| EntryError::Malformed(shown(text)))?;
        EntryId::new(entry.parse()?, &unescaped(name))
    }
}

impl std::fmt::Display for EntryId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.entry.as_str(), escaped(&self.name))
    }
}

/// One attribute with its new value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Setting {
    Share(Choice),
    Preserve(Choice),
    ReadOnly(Choice),
    Usage(DeviceKind),
    /// `ALLOW=GUEST`
    AllowGuests,
    /// `IDENTIFIER=ACCEPT`: what the path leads to now is the device it should be.
    AcceptIdentifier,
}

impl Setting {
    /// Reads `gdev:/path:attr:NAME=VALUE`.
    pub fn parse(text: &str) -> Result<(EntryId, Setting), EntryError> {
        let (entry, assignment) =
            text.rsplit_once(ATTRIBUTE).ok_or_else(|| EntryError::NoSetting(shown(text)))?;
        let entry: EntryId = entry.parse()?;
        let (name, value) =
            assignment.split_once('=').ok_or_else(|| EntryError::NoSetting(shown(text)))?;
        let setting = Setting::of(attribute(name, entry.entry)?, value)?;
        Ok((entry, setting))
    }

    fn of(name: AttributeName, value: &str) -> Result<Setting, EntryError> {
        let wrong = |right| EntryError::Value { name, value: shown(value), right };
        let choice = || value.parse::<Choice>().map_err(|_| wrong("YES or NO"));
        Ok(match name {
            AttributeName::Share => Setting::Share(choice()?),
            AttributeName::Preserve => Setting::Preserve(choice()?),
            AttributeName::ReadOnly => Setting::ReadOnly(choice()?),
            AttributeName::Usage => {
                let kind = value.to_ascii_lowercase().parse();
                Setting::Usage(kind.map_err(|_| wrong("DISK, DVD, TAPE, CHANGER or BURNER"))?)
            }
            AttributeName::Allow if value.eq_ignore_ascii_case("GUEST") => Setting::AllowGuests,
            AttributeName::Allow if value.is_empty() => return Err(wrong("GUEST")),
            AttributeName::Allow => return Err(EntryError::AllowedByName(shown(value))),
            AttributeName::Identifier if value.eq_ignore_ascii_case("ACCEPT") => {
                Setting::AcceptIdentifier
            }
            AttributeName::Identifier => return Err(wrong("ACCEPT")),
        })
    }

    #[must_use]
    pub fn name(self) -> AttributeName {
        match self {
            Setting::Share(_) => AttributeName::Share,
            Setting::Preserve(_) => AttributeName::Preserve,
            Setting::ReadOnly(_) => AttributeName::ReadOnly,
            Setting::Usage(_) => AttributeName::Usage,
            Setting::AllowGuests => AttributeName::Allow,
            Setting::AcceptIdentifier => AttributeName::Identifier,
        }
    }
}

fn attribute(name: &str, of: EntryType) -> Result<AttributeName, EntryError> {
    AttributeName::ALL
        .into_iter()
        .find(|known| known.as_str().eq_ignore_ascii_case(name) && known.belongs_to(of))
        .ok_or_else(|| EntryError::Attribute { name: shown(name), of })
}

/// What `-d` names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Deletion {
    Entry(EntryId),
    Attribute(EntryId, AttributeName),
    /// `{all|NAME}:depend:DEPENDENT`. `None`: of all entries.
    Dependent {
        entry: Option<String>,
        dependent: String,
    },
}

impl FromStr for Deletion {
    type Err = EntryError;
    fn from_str(text: &str) -> Result<Deletion, EntryError> {
        if let Some((entry, name)) = text.rsplit_once(ATTRIBUTE) {
            let entry: EntryId = entry.parse()?;
            let name = attribute(name, entry.entry)?;
            return Ok(Deletion::Attribute(entry, name));
        }
        if let Some((entry, dependent)) = text.rsplit_once(DEPENDENT) {
            let of_type = EntryType::ALL
                .iter()
                .find_map(|of| entry.strip_prefix(of.as_str())?.strip_prefix(':'));
            let name = unescaped(of_type.unwrap_or(entry));
            let entry = (name != "all").then_some(name);
            return Ok(Deletion::Dependent { entry, dependent: dependent.to_owned() });
        }
        match text.contains(':') {
            true => Ok(Deletion::Entry(text.parse()?)),
            false => Err(EntryError::NoDeletion(shown(text))),
        }
    }
}

/// What `-n` asks for: another name, and further names that must lead to the same thing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replacement {
    pub old: EntryId,
    /// At least one.
    pub new: Vec<EntryId>,
}

impl FromStr for Replacement {
    type Err = EntryError;
    /// A field ends where a colon or comma is followed by a new path.
    fn from_str(text: &str) -> Result<Replacement, EntryError> {
        let wrong = || EntryError::NoReplacement(shown(text));
        let (entry, names) = text.split_once(':').ok_or_else(wrong)?;
        let entry = match entry.parse()? {
            EntryType::Server => return Err(EntryError::ServerReplacement),
            entry => entry,
        };
        let (old, new) = names.split_once(":/").ok_or_else(wrong)?;
        let new: Result<Vec<EntryId>, EntryError> = new
            .split(",/")
            .map(|name| EntryId::new(entry, &format!("/{}", unescaped(name))))
            .collect();
        Ok(Replacement { old: EntryId::new(entry, &unescaped(old))?, new: new? })
    }
}

/// Which types of entries a list shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryTypes {
    All,
    One(EntryType),
}

/// What `-l` asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listing {
    pub types: EntryTypes,
    pub filter: Filter,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Filter {
    None,
    Name(String),
    Dependent(String),
    /// Any attribute as the list prints it.
    Attribute {
        name: String,
        value: String,
    },
}

impl FromStr for Listing {
    type Err = EntryError;
    fn from_str(text: &str) -> Result<Listing, EntryError> {
        let (types, rest) = text.split_once(':').unwrap_or((text, ""));
        let types = match types {
            "all" => EntryTypes::All,
            one => EntryTypes::One(one.parse().map_err(|_| EntryError::ListedType(shown(one)))?),
        };
        let filter = if rest.is_empty() {
            Filter::None
        } else if let Some(dependent) = rest.strip_prefix("depend:") {
            Filter::Dependent(dependent.to_owned())
        } else if let (Some((name, value)), false) = (rest.split_once('='), rest.starts_with('/')) {
            attribute_filter(name.strip_prefix("attr:").unwrap_or(name), value)?
        } else {
            let name = unescaped(rest);
            if let EntryTypes::One(of) = types {
                EntryId::new(of, &name)?;
            }
            Filter::Name(name)
        };
        Ok(Listing { types, filter })
    }
}

fn attribute_filter(name: &str, value: &str) -> Result<Filter, EntryError> {
    let known = LISTED.into_iter().find(|(known, _)| known.eq_ignore_ascii_case(name));
    let (name, values) = known.ok_or_else(|| EntryError::ListedAttribute { name: shown(name) })?;
    if value.is_empty() {
        return Err(EntryError::ListedValue(name.to_owned()));
    }
    match values.iter().find(|known| known.eq_ignore_ascii_case(value)) {
        Some(value) => Ok(Filter::Attribute { name: name.to_owned(), value: (*value).to_owned() }),
        None => Err(EntryError::NoListedValue { name, value: shown(value), values }),
    }
}

/// Takes the backslashes away that [`escaped`] puts in. Others are part of the name.
fn unescaped(text: &str) -> String {
    let mut name = String::with_capacity(text.len());
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        match (c, rest.peek()) {
            ('\\', Some(&next)) if matches!(next, '\\' | ':' | ',') => {
                name.push(next);
                rest.next();
            }
            _ => name.push(c),
        }
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn gdev(name: &str) -> EntryId {
        EntryId::new(EntryType::Guest, name).unwrap()
    }

    #[test]
    fn settings_are_read_from_the_right() {
        let by_path = "/dev/disk/by-path/pci-0000:00:1f.2-ata-1";
        for (text, entry, setting) in [
            ("gdev:/a:attr:SHARE=YES", gdev("/a"), Setting::Share(Choice::Yes)),
            ("gdev:/a:attr:share=no", gdev("/a"), Setting::Share(Choice::No)),
            ("gdev:/a:attr:x:attr:PRESERVE=YES", gdev("/a:attr:x"), Setting::Preserve(Choice::Yes)),
            ("gdev:/a:attr:USAGE=DISK", gdev("/a"), Setting::Usage(DeviceKind::Disk)),
            (
                &format!("gdev:{by_path}:attr:READONLY=YES"),
                gdev(by_path),
                Setting::ReadOnly(Choice::Yes),
            ),
            ("gdev:/a:attr:IDENTIFIER=ACCEPT", gdev("/a"), Setting::AcceptIdentifier),
        ] {
            assert_eq!(Setting::parse(text), Ok((entry, setting)), "{text}");
        }
        let rdev = EntryId::new(EntryType::Restricted, "/dev/sda").unwrap();
        assert_eq!(
            Setting::parse("rdev:/dev/sda:attr:ALLOW=GUEST"),
            Ok((rdev, Setting::AllowGuests))
        );
    }

    #[test]
    fn what_means_nothing_is_refused_with_what_would() {
        for (text, words) in [
            ("gdev:/a:attr:SHARE=MAYBE", "YES or NO"),
            ("gdev:/a:attr:SHAER=YES", "those are SHARE, PRESERVE, READONLY, USAGE, IDENTIFIER"),
            ("gdev:/a:attr:AUTORDEV=YES", "no attribute that can be changed"),
            ("rdev:/a:attr:SHARE=YES", "those are PRESERVE, ALLOW"),
            ("rdev:/a:attr:ALLOW=", "write ALLOW=GUEST"),
            ("rdev:/a:attr:ALLOW=web1", "to 'web1' alone, and an entry names no single guest"),
            ("xdev:/a:attr:SHARE=YES", "gdev, rdev and server"),
            ("gdev:a:attr:SHARE=YES", "absolute path"),
            ("gdev:/a", "TYPE:NAME:attr:"),
            ("gdev:attr:SHARE", "TYPE:NAME, such as"),
        ] {
            let said = Setting::parse(text).unwrap_err().to_string();
            assert!(said.contains(words), "{text}: {said}");
        }
    }

    #[test]
    fn deletions_are_told_apart() {
        let dependent = |entry: Option<&str>| Deletion::Dependent {
            entry: entry.map(str::to_owned),
            dependent: "web".into(),
        };
        for (text, deletion) in [
            ("gdev:/a", Deletion::Entry(gdev("/a"))),
            ("gdev:/a:attr:SHARE", Deletion::Attribute(gdev("/a"), AttributeName::Share)),
            ("all:depend:web", dependent(None)),
            ("/a:depend:web", dependent(Some("/a"))),
            ("gdev:/a:depend:web", dependent(Some("/a"))),
        ] {
            assert_eq!(text.parse(), Ok(deletion), "{text}");
        }
        for text in ["", "gdev", "gdev:", "all"] {
            assert!(text.parse::<Deletion>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_replacement_may_hold_colons() {
        let text = "gdev:/dev/disk/by-path/pci-0000:00:1f.2:/dev/sdb,/dev/sdc";
        let read: Replacement = text.parse().unwrap();
        assert_eq!(read.old, gdev("/dev/disk/by-path/pci-0000:00:1f.2"));
        assert_eq!(read.new, [gdev("/dev/sdb"), gdev("/dev/sdc")]);
        for text in ["gdev:/a", "gdev:/a:b", "server:a:/b", "/a:/b", ""] {
            assert!(text.parse::<Replacement>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn lists_have_filters() {
        for (text, types, filter) in [
            ("all", EntryTypes::All, Filter::None),
            ("gdev", EntryTypes::One(EntryType::Guest), Filter::None),
            ("gdev:/a=b", EntryTypes::One(EntryType::Guest), Filter::Name("/a=b".into())),
            ("gdev:depend:web", EntryTypes::One(EntryType::Guest), Filter::Dependent("web".into())),
            (
                "rdev:autordev=yes",
                EntryTypes::One(EntryType::Restricted),
                Filter::Attribute { name: "AUTORDEV".into(), value: "YES".into() },
            ),
            (
                "all:config=GDEV",
                EntryTypes::All,
                Filter::Attribute { name: "CONFIG".into(), value: "gdev".into() },
            ),
        ] {
            assert_eq!(text.parse(), Ok(Listing { types, filter }), "{text}");
        }
    }

    /// What no entry can have is told at once; an empty list would look like an answer.
    #[test]
    fn a_list_of_what_cannot_be_is_refused() {
        for (text, words) in [
            ("foo", "gdev, rdev and server, and all"),
            ("gdev:FOO=NO", "those there are: CONFIG, EXIST, DEVTYPE, SHARE"),
            ("gdev:SHARE=MAYBE", "SHARE=MAYBE; SHARE is one of YES, NO"),
            ("all:devtype=floppy", "DEVTYPE=floppy; DEVTYPE is one of FILE, DIR"),
            ("gdev:share=", "SHARE=VALUE"),
            ("gdev:web1.img", "no absolute path"),
            ("server:a b", "no name of a VM Host"),
        ] {
            let said = text.parse::<Listing>().unwrap_err().to_string();
            assert!(said.contains(words), "{text}: {said}");
        }
    }

    proptest! {
        #[test]
        fn an_entry_is_read_as_it_is_printed(name in "/[ -~é]{0,40}") {
            let entry = gdev(&name);
            prop_assert_eq!(entry.to_string().parse(), Ok(entry.clone()));
            let read = Setting::parse(&format!("{entry}:attr:SHARE=YES"));
            prop_assert_eq!(read, Ok((entry.clone(), Setting::Share(Choice::Yes))));
            let read = format!("{entry}:attr:SHARE").parse();
            prop_assert_eq!(read, Ok(Deletion::Attribute(entry, AttributeName::Share)));
        }

        #[test]
        fn no_text_panics(text in "(gdev|rdev|server|all)?:?\\PC{0,40}(:attr:|:depend:|=)?\\PC{0,9}") {
            let _ = text.parse::<EntryId>();
            let _ = text.parse::<Deletion>();
            let _ = text.parse::<Replacement>();
            let _ = text.parse::<Listing>();
            let _ = Setting::parse(&text);
        }
    }
}
