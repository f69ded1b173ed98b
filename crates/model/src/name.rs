//! Names and labels: what may stand in a path, a table and a script.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::bytes::shown;

/// The longest name, since it is also a file name (`guests/NAME`).
pub const NAME_LENGTH_MAX: usize = 255;

/// Why a text is no name or label.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    #[error("a name may not be empty")]
    Empty,
    #[error("the name '{0}' has {1} characters; the longest has {NAME_LENGTH_MAX}")]
    TooLong(String, usize),
    #[error("the name '{0}' has {1}; names are made of A-Z a-z 0-9 - _ .")]
    BadCharacter(String, String),
    #[error("'{0}' means a folder and cannot be a name")]
    Reserved(String),
    #[error("the label '{0}' has {1} characters; the longest has {NAME_LENGTH_MAX}")]
    LabelTooLong(String, usize),
    #[error("the label '{0}' has {1}; labels are made of A-Z a-z 0-9 - _ . and blanks")]
    BadLabelCharacter(String, String),
}

/// A guest's name: letters, digits, `-`, `_` and `.`, at most 255, neither `.` nor `..`, and no leading `-`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct GuestName(String);

impl GuestName {
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for GuestName {
    type Err = NameError;
    fn from_str(text: &str) -> Result<GuestName, NameError> {
        if text.is_empty() {
            return Err(NameError::Empty);
        }
        let length = text.chars().count();
        if length > NAME_LENGTH_MAX {
            return Err(NameError::TooLong(shown(text), length));
        }
        if let Some(bad) = text.chars().find(|c| !is_name_character(*c)) {
            return Err(NameError::BadCharacter(shown(text), spelled(bad)));
        }
        if text.starts_with('-') {
            return Err(NameError::BadCharacter(shown(text), "a leading '-'".into()));
        }
        if text == "." || text == ".." {
            return Err(NameError::Reserved(text.into()));
        }
        Ok(GuestName(text.into()))
    }
}

/// An administrator's note on a guest: the alphabet of names and blanks, at most 255 characters, possibly empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Label(String);

impl Label {
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Label {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Label, NameError> {
        let length = text.chars().count();
        if length > NAME_LENGTH_MAX {
            return Err(NameError::LabelTooLong(shown(text), length));
        }
        match text.chars().find(|c| !is_name_character(*c) && *c != ' ') {
            Some(bad) => Err(NameError::BadLabelCharacter(shown(text), spelled(bad))),
            None => Ok(Label(text.into())),
        }
    }
}

fn is_name_character(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.')
}

fn spelled(c: char) -> String {
    match c {
        ' ' => "a blank".into(),
        '/' => "a '/'".into(),
        '\'' => "an apostrophe".into(),
        c if c.is_control() => format!("the control character U+{:04X}", u32::from(c)),
        c => format!("the character '{c}'"),
    }
}

macro_rules! text_type {
    ($type:ident) => {
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }
        impl TryFrom<String> for $type {
            type Error = NameError;
            fn try_from(text: String) -> Result<$type, NameError> {
                text.parse()
            }
        }
        impl From<$type> for String {
            fn from(value: $type) -> String {
                value.0
            }
        }
    };
}

text_type!(GuestName);
text_type!(Label);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_safe_in_paths_and_tables() {
        for good in ["a", "guest1", "A.b-c_d", "..a", &"x".repeat(255)] {
            assert!(good.parse::<GuestName>().is_ok(), "{good}");
        }
        for bad in ["", ".", "..", "a/b", "a b", "a\n", "é", "-P", &"x".repeat(300), "a:b", "a\0"]
        {
            let error = bad.parse::<GuestName>().unwrap_err().to_string();
            assert!(!error.chars().any(char::is_control), "{error:?}");
        }
    }

    #[test]
    fn labels_take_blanks() {
        assert!("the web server 1.0".parse::<Label>().is_ok());
        assert!("".parse::<Label>().is_ok());
        assert!("a\tb".parse::<Label>().is_err());
        let long = "x".repeat(256).parse::<Label>().unwrap_err().to_string();
        assert!(long.starts_with("the label '") && long.contains("256 characters"), "{long}");
        let error = "second's".parse::<Label>().unwrap_err().to_string();
        assert!(error.contains("'second's' ") && error.contains("an apostrophe"), "{error}");
    }
}
