//! Guest operating systems: what the administrator says a guest runs.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::bytes::shown;

/// The families that have defaults and limits of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum OsFamily {
    Hpux,
    Windows,
    Linux,
    Unknown,
}

impl OsFamily {
    pub const ALL: [OsFamily; 4] =
        [OsFamily::Hpux, OsFamily::Windows, OsFamily::Linux, OsFamily::Unknown];

    /// As the tables print it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            OsFamily::Hpux => "HPUX",
            OsFamily::Windows => "WINDOWS",
            OsFamily::Linux => "LINUX",
            OsFamily::Unknown => "UNKNOWN",
        }
    }
}

impl fmt::Display for OsFamily {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A family and, when given, a version: `linux:12`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OsType {
    pub family: OsFamily,
    pub version: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OsTypeError {
    #[error("'{0}' is no guest OS type; the types are hpux, windows, linux and unknown")]
    UnknownFamily(String),
    #[error(
        "'{0}' is no OS version; versions are made of A-Z a-z 0-9 - _ . and blanks, at most 64"
    )]
    BadVersion(String),
}

impl OsType {
    pub const UNKNOWN: OsType = OsType { family: OsFamily::Unknown, version: None };
}

impl FromStr for OsType {
    type Err = OsTypeError;
    fn from_str(text: &str) -> Result<OsType, OsTypeError> {
        let (family, version) = match text.split_once(':') {
            Some((family, version)) => (family, Some(version)),
            None => (text, None),
        };
        let family = OsFamily::ALL
            .into_iter()
            .find(|known| known.as_str().eq_ignore_ascii_case(family))
            .ok_or_else(|| OsTypeError::UnknownFamily(shown(family)))?;
        let is_good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | ' ');
        match version {
            Some(v) if v.is_empty() || v.len() > 64 || !v.chars().all(is_good) => {
                Err(OsTypeError::BadVersion(shown(v)))
            }
            version => Ok(OsType { family, version: version.map(str::to_owned) }),
        }
    }
}

impl fmt::Display for OsType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.version {
            Some(version) => f.pad(&format!("{}:{version}", self.family)),
            None => f.pad(self.family.as_str()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_are_read_in_any_case() {
        assert_eq!("LiNuX".parse::<OsType>().unwrap().to_string(), "LINUX");
        assert_eq!("hpux:11i v3".parse::<OsType>().unwrap().to_string(), "HPUX:11i v3");
        for bad in ["", "vms", "linux:", "linux:a\nb", ":12"] {
            assert!(bad.parse::<OsType>().is_err(), "{bad:?}");
        }
    }
}
