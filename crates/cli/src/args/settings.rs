//! The keywords of `-x`, by which hpvmcreate, hpvmmodify and hpvmclone say what has no letter of its own. A new one goes here
//! and to `docs/options.md`.

use std::str::FromStr;

use hpvm_model::Runnable;
use hpvm_model::bytes::shown;
use hpvm_model::guest::RunnableError;
use hpvm_plan::clone::{CloneRequest, Inheritance, InheritanceError};
use hpvm_plan::request::Request;

/// Of a guest that is made or changed. Of a keyword given twice the last counts; so it does of a clone's.
#[derive(Clone, Debug, Default, PartialEq, Eq, clap::Args)]
pub struct GuestSettings {
    /// Set a keyword: runnable_status=enabled|disabled
    #[arg(short = 'x', long = "set", value_name = "KEYWORD=VALUE")]
    pub settings: Vec<Setting>,
}

/// Of a guest that is made after another.
#[derive(Clone, Debug, Default, PartialEq, Eq, clap::Args)]
pub struct CloneSettings {
    /// Set a keyword: mac_address=new|same, serial_number=new|same, runnable_status=enabled|disabled
    #[arg(short = 'x', long = "set", value_name = "KEYWORD=VALUE")]
    pub settings: Vec<CloneSetting>,
}

impl GuestSettings {
    /// What is asked with them and with the rest of the options.
    #[must_use]
    pub fn with(&self, mut request: Request) -> Request {
        for Setting::Runnable(runnable) in &self.settings {
            request.runnable = Some(*runnable);
        }
        request
    }
}

impl CloneSettings {
    /// What is asked with them and with the rest of the options.
    #[must_use]
    pub fn with(&self, mut asked: CloneRequest) -> CloneRequest {
        for setting in &self.settings {
            match setting {
                CloneSetting::Guest(Setting::Runnable(runnable)) => {
                    asked.request.runnable = Some(*runnable);
                }
                CloneSetting::MacAddress(inheritance) => asked.macs = *inheritance,
                CloneSetting::SerialNumber(inheritance) => asked.serial_number = *inheritance,
            }
        }
        asked
    }
}

/// A keyword and its value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Setting {
    Runnable(Runnable),
}

/// The same for hpvmclone, which knows more of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloneSetting {
    Guest(Setting),
    MacAddress(Inheritance),
    SerialNumber(Inheritance),
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SettingError {
    #[error("'{0}' is no setting; write KEYWORD=VALUE, such as runnable_status=disabled")]
    Malformed(String),
    #[error("'{0}' is no keyword; the keyword there is, is runnable_status")]
    Keyword(String),
    #[error("'{0}' is no keyword; there are mac_address, serial_number and runnable_status")]
    CloneKeyword(String),
    #[error(transparent)]
    Runnable(#[from] RunnableError),
    #[error(transparent)]
    Inheritance(#[from] InheritanceError),
}

fn halves(text: &str) -> Result<(&str, &str), SettingError> {
    text.split_once('=').ok_or_else(|| SettingError::Malformed(shown(text)))
}

impl FromStr for Setting {
    type Err = SettingError;
    fn from_str(text: &str) -> Result<Setting, SettingError> {
        match halves(text)? {
            ("runnable_status", value) => Ok(Setting::Runnable(value.parse()?)),
            (other, _) => Err(SettingError::Keyword(shown(other))),
        }
    }
}

impl FromStr for CloneSetting {
    type Err = SettingError;
    fn from_str(text: &str) -> Result<CloneSetting, SettingError> {
        match halves(text)? {
            ("mac_address", value) => Ok(CloneSetting::MacAddress(value.parse()?)),
            ("serial_number", value) => Ok(CloneSetting::SerialNumber(value.parse()?)),
            _ => match text.parse() {
                Err(SettingError::Keyword(other)) => Err(SettingError::CloneKeyword(other)),
                setting => Ok(CloneSetting::Guest(setting?)),
            },
        }
    }
}
