//! vCPU counts and entitlements. An entitlement is the share of one physical processor that each vCPU of a guest is
//! promised when it wants it; it is kept as it was given and shown as given and as effective.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::bytes::shown;

/// A number of virtual processors, at least one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct Vcpus(u32);

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CpuError {
    #[error("'{0}' is no number of vCPUs; give a whole number from 1 up")]
    Vcpus(String),
    #[error(
        "'{0}' is no entitlement; give a percentage from 5 to 100 with one decimal at most, such as 20 or 12.5, and a maximum after a colon"
    )]
    Percent(String),
    #[error(
        "'{0}' is no entitlement in cycles; give MHz of one processor, such as 800, and a maximum after a colon"
    )]
    Cycles(String),
    #[error("an entitlement of {0} is below the least of 5%")]
    BelowMinimum(String),
    #[error("the maximum {1} is below the entitlement {0}")]
    MaximumBelow(String, String),
}

impl Vcpus {
    pub const ONE: Vcpus = Vcpus(1);

    #[must_use]
    pub fn get(self) -> u32 {
        self.0
    }
}

impl TryFrom<u32> for Vcpus {
    type Error = CpuError;
    fn try_from(count: u32) -> Result<Vcpus, CpuError> {
        if count == 0 { Err(CpuError::Vcpus("0".into())) } else { Ok(Vcpus(count)) }
    }
}

impl From<Vcpus> for u32 {
    fn from(vcpus: Vcpus) -> u32 {
        vcpus.0
    }
}

impl FromStr for Vcpus {
    type Err = CpuError;
    fn from_str(text: &str) -> Result<Vcpus, CpuError> {
        let malformed = || CpuError::Vcpus(shown(text));
        if !text.bytes().all(|b| b.is_ascii_digit()) {
            return Err(malformed());
        }
        text.parse::<u32>()
            .map_err(|_| malformed())
            .and_then(|n| Vcpus::try_from(n).map_err(|_| malformed()))
    }
}

impl fmt::Display for Vcpus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A percentage in tenths, 0.1% to 100.0%.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TenthsPercent(pub u32);

impl fmt::Display for TenthsPercent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}.{}%", self.0 / 10, self.0 % 10))
    }
}

/// What each vCPU is promised, in the unit it was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "unit")]
pub enum Entitlement {
    Percent { entitled: TenthsPercent, maximum: TenthsPercent },
    Mhz { entitled: u32, maximum: Option<u32> },
}

impl Entitlement {
    pub const MINIMUM: TenthsPercent = TenthsPercent(50);
    pub const FULL: TenthsPercent = TenthsPercent(1000);
    pub const DEFAULT: Entitlement =
        Entitlement::Percent { entitled: TenthsPercent(100), maximum: Self::FULL };

    /// Reads `percent[:maximum]`; one decimal is exact, more are refused rather than dropped.
    pub fn parse_percent(text: &str) -> Result<Entitlement, CpuError> {
        let malformed = || CpuError::Percent(shown(text));
        let (entitled, maximum) = split_maximum(text);
        let entitled = tenths(entitled).ok_or_else(malformed)?;
        let maximum = match maximum {
            Some(text) => tenths(text).ok_or_else(malformed)?,
            None => Self::FULL,
        };
        if entitled > Self::FULL || maximum > Self::FULL {
            return Err(malformed());
        }
        if entitled < Self::MINIMUM {
            return Err(CpuError::BelowMinimum(entitled.to_string()));
        }
        if maximum < entitled {
            return Err(CpuError::MaximumBelow(entitled.to_string(), maximum.to_string()));
        }
        Ok(Entitlement::Percent { entitled, maximum })
    }

    /// Reads `MHz[:maximum]`. Whether it fits the host's processors is the plan's to judge.
    pub fn parse_cycles(text: &str) -> Result<Entitlement, CpuError> {
        let malformed = || CpuError::Cycles(shown(text));
        let (entitled, maximum) = split_maximum(text);
        let entitled = mhz(entitled).ok_or_else(malformed)?;
        let maximum = match maximum {
            Some(text) => Some(mhz(text).ok_or_else(malformed)?),
            None => None,
        };
        match maximum {
            Some(maximum) if maximum < entitled => {
                Err(CpuError::MaximumBelow(format!("{entitled} MHz"), format!("{maximum} MHz")))
            }
            maximum => Ok(Entitlement::Mhz { entitled, maximum }),
        }
    }

    /// What it comes to on a processor of `cpu_mhz`, rounded up to a tenth of a percent and never beyond one processor.
    #[must_use]
    pub fn effective(&self, cpu_mhz: u32) -> (TenthsPercent, TenthsPercent) {
        let share = |mhz: u32| {
            TenthsPercent(
                (u64::from(mhz) * 1000).div_ceil(u64::from(cpu_mhz.max(1))).min(1000) as u32
            )
        };
        match *self {
            Entitlement::Percent { entitled, maximum } => (entitled, maximum),
            Entitlement::Mhz { entitled, maximum } => {
                (share(entitled), maximum.map_or(Self::FULL, share))
            }
        }
    }
}

impl fmt::Display for Entitlement {
    /// As it was given: `20.0%`, `20.0%:50.0%`, `800 MHz`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Entitlement::Percent { entitled, maximum } if *maximum == Self::FULL => {
                write!(f, "{entitled}")
            }
            Entitlement::Percent { entitled, maximum } => write!(f, "{entitled}:{maximum}"),
            Entitlement::Mhz { entitled, maximum: None } => write!(f, "{entitled} MHz"),
            Entitlement::Mhz { entitled, maximum: Some(maximum) } => {
                write!(f, "{entitled} MHz:{maximum} MHz")
            }
        }
    }
}

fn split_maximum(text: &str) -> (&str, Option<&str>) {
    match text.split_once(':') {
        Some((entitled, maximum)) => (entitled, Some(maximum)),
        None => (text, None),
    }
}

fn tenths(text: &str) -> Option<TenthsPercent> {
    let text = text.strip_suffix('%').unwrap_or(text);
    let (whole, tenth) = text.split_once('.').unwrap_or((text, "0"));
    let is_number =
        |s: &str| !s.is_empty() && s.len() <= 3 && s.bytes().all(|b| b.is_ascii_digit());
    if !is_number(whole) || tenth.len() != 1 || !is_number(tenth) {
        return None;
    }
    Some(TenthsPercent(whole.parse::<u32>().ok()? * 10 + tenth.parse::<u32>().ok()?))
}

fn mhz(text: &str) -> Option<u32> {
    let is_number = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    is_number.then(|| text.parse().ok()).flatten().filter(|mhz| *mhz > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entitlements_keep_what_was_given() {
        assert_eq!(Entitlement::parse_percent("12.5").unwrap().to_string(), "12.5%");
        assert_eq!(Entitlement::parse_percent("20:50").unwrap().to_string(), "20.0%:50.0%");
        let cycles = Entitlement::parse_cycles("100").unwrap();
        assert_eq!(cycles.to_string(), "100 MHz");
        assert_eq!(cycles.effective(900).0.to_string(), "11.2%");
    }

    #[test]
    fn what_cannot_be_honoured_is_refused() {
        for bad in ["", "4", "4.9", "101", "12.55", "abc", "50:20", "-5", "10:", ":10", "10:200"] {
            assert!(Entitlement::parse_percent(bad).is_err(), "{bad}");
        }
        for bad in ["", "0", "1.5", "x", "800:100", "99999999999"] {
            assert!(Entitlement::parse_cycles(bad).is_err(), "{bad}");
        }
        for bad in ["0", "", "-1", "1.5", "99999999999999", "x"] {
            assert!(bad.parse::<Vcpus>().is_err(), "{bad}");
        }
    }
}
