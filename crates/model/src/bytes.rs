//! Exact amounts. `1.5G` is 1,610,612,736 bytes and never 1 GiB: what a size says is what it means, or it is refused.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

pub const MIB: u64 = 1 << 20;
pub const GIB: u64 = 1 << 30;

/// An exact number of bytes.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Bytes(pub u64);

/// Why a text is no size.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SizeError {
    #[error("'{0}' is not a size; write a number with K, M, G, T or P, such as 2048M, 2G or 1.5G")]
    Malformed(String),
    #[error("'{0}' is not a whole number of bytes; write it in a smaller unit, without decimals")]
    Inexact(String),
    #[error("'{0}' is larger than any machine; the largest size is 8191P")]
    TooLarge(String),
    #[error("a size of 0 makes no sense here")]
    Zero,
}

impl Bytes {
    /// Reads a decimal number with an optional unit letter (K, M, G, T, P; `B` may follow); without a letter `default_unit`
    /// applies. Fractions are exact or refused.
    pub fn parse(text: &str, default_unit: u64) -> Result<Bytes, SizeError> {
        let ratio = Ratio::parse(text, default_unit)?;
        match ratio.is_whole() {
            true => ratio.rounded_up(text),
            false => Err(SizeError::Inexact(shown(text))),
        }
    }

    #[must_use]
    pub fn rounded_up_to(self, step: u64) -> Bytes {
        Bytes(self.0.div_ceil(step).saturating_mul(step))
    }

    #[must_use]
    pub fn as_mib(self) -> u64 {
        self.0 / MIB
    }
}

/// A size as numerator over a power of ten, before it is known to be a whole number of bytes that fits.
struct Ratio {
    bytes_times_scale: u128,
    scale: u128,
}

impl Ratio {
    fn parse(text: &str, default_unit: u64) -> Result<Ratio, SizeError> {
        let malformed = || SizeError::Malformed(shown(text));
        let digits_end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, suffix) = text.split_at(digits_end);
        let unit = match suffix.trim_end_matches(['b', 'B']).to_ascii_uppercase().as_str() {
            "" if suffix.is_empty() => default_unit,
            "K" => 1 << 10,
            "M" => MIB,
            "G" => GIB,
            "T" => 1 << 40,
            "P" => 1 << 50,
            _ => return Err(malformed()),
        };
        if suffix.len() > 2 {
            return Err(malformed());
        }
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.is_empty()
            || fraction.contains('.')
            || (number.contains('.') && fraction.is_empty())
        {
            return Err(malformed());
        }
        if whole.len() > 18 || fraction.len() > 18 {
            return Err(SizeError::TooLarge(shown(text)));
        }
        Ratio::of(whole, fraction, unit).ok_or_else(malformed)
    }

    fn of(whole: &str, fraction: &str, unit: u64) -> Option<Ratio> {
        let scale = 10u128.pow(u32::try_from(fraction.len()).ok()?);
        let whole: u128 = whole.parse().ok()?;
        let fraction: u128 = if fraction.is_empty() { 0 } else { fraction.parse().ok()? };
        let bytes_times_scale =
            whole.checked_mul(scale)?.checked_add(fraction)?.checked_mul(u128::from(unit))?;
        Some(Ratio { bytes_times_scale, scale })
    }

    fn is_whole(&self) -> bool {
        self.bytes_times_scale.is_multiple_of(self.scale)
    }

    fn rounded_up(self, text: &str) -> Result<Bytes, SizeError> {
        match u64::try_from(self.bytes_times_scale.div_ceil(self.scale)) {
            Ok(bytes) if bytes < 1 << 63 => Ok(Bytes(bytes)),
            _ => Err(SizeError::TooLarge(shown(text))),
        }
    }
}

/// A text as it may stand in a message: control characters escaped, never longer than a line.
#[must_use]
pub fn shown(text: &str) -> String {
    let escaped: String = text.chars().take(61).map(spelled).collect();
    if text.chars().count() > 61 { format!("{escaped}…") } else { escaped }
}

fn spelled(c: char) -> String {
    match c {
        '\'' | '"' => c.into(),
        other => other.escape_debug().collect(),
    }
}

impl fmt::Display for Bytes {
    /// As the tables print it: the largest unit that keeps the value exact, `16 GB`, `512 MB`, `1536 MB`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (value, unit) = match self.0 {
            n if n >= GIB && n.is_multiple_of(GIB) => (n / GIB, "GB"),
            n if n >= MIB && n.is_multiple_of(MIB) => (n / MIB, "MB"),
            n if n >= 1024 && n.is_multiple_of(1024) => (n / 1024, "KB"),
            n => (n, "bytes"),
        };
        f.pad(&format!("{value} {unit}"))
    }
}

/// A guest's memory: a multiple of 64 MB, not zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "Bytes", into = "Bytes")]
pub struct Memory(Bytes);

impl Memory {
    pub const STEP: u64 = 64 * MIB;
    /// What a guest gets when nobody says how much.
    pub const DEFAULT: Memory = Memory(Bytes(2 * GIB));

    /// Never less than what was asked: rounds up to the next multiple of 64 MB.
    pub fn at_least(asked: Bytes) -> Result<Memory, SizeError> {
        if asked.0 == 0 {
            return Err(SizeError::Zero);
        }
        Ok(Memory(asked.rounded_up_to(Self::STEP)))
    }

    #[must_use]
    pub fn bytes(self) -> Bytes {
        self.0
    }
}

impl TryFrom<Bytes> for Memory {
    type Error = SizeError;
    fn try_from(bytes: Bytes) -> Result<Memory, SizeError> {
        Memory::at_least(bytes)
    }
}

impl From<Memory> for Bytes {
    fn from(memory: Memory) -> Bytes {
        memory.0
    }
}

impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Memory as asked on a command line, before rounding and to the next whole byte, and how it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AskedMemory {
    pub given: String,
    pub asked: Bytes,
    pub memory: Memory,
}

impl FromStr for AskedMemory {
    type Err = SizeError;
    fn from_str(text: &str) -> Result<AskedMemory, SizeError> {
        let asked = Ratio::parse(text, MIB)?.rounded_up(text)?;
        let unit = if text.ends_with(|c: char| c.is_ascii_digit()) { " MB" } else { "" };
        let given = format!("{}{unit}", shown(text));
        Ok(AskedMemory { given, asked, memory: Memory::at_least(asked)? })
    }
}

impl AskedMemory {
    #[must_use]
    pub fn was_rounded(&self) -> bool {
        self.memory.bytes() != self.asked
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes_are_exact() {
        for (text, bytes) in [
            ("1.5G", 3 * GIB / 2),
            ("2G", 2 * GIB),
            ("2048", 2 * GIB),
            ("0.5M", MIB / 2),
            ("1g", GIB),
            ("1GB", GIB),
            ("64m", 64 * MIB),
            ("0.0625G", 64 * MIB),
        ] {
            assert_eq!(Bytes::parse(text, MIB), Ok(Bytes(bytes)), "{text}");
        }
    }

    #[test]
    fn junk_is_refused() {
        for text in [
            "", "G", "-1G", "1.G", ".5G", "1..5G", "1.5.5G", "1 G", "1X", "1GBB", "1B", "0x10",
            "١G", "1e3", "\u{7}",
        ] {
            assert!(Bytes::parse(text, MIB).is_err(), "{text:?}");
        }
        assert!(matches!(Bytes::parse("0.1G", MIB), Err(SizeError::Inexact(_))));
        assert!(matches!(Bytes::parse("99999999999999999999G", MIB), Err(SizeError::TooLarge(_))));
        assert!(matches!(Bytes::parse("8192P", MIB), Err(SizeError::TooLarge(_))));
        assert!(matches!("0".parse::<AskedMemory>(), Err(SizeError::Zero)));
    }

    /// Settles 84.
    #[test]
    fn memory_is_rounded_up_and_never_below_what_was_asked() {
        let asked: AskedMemory = "100".parse().unwrap();
        assert_eq!(asked.memory.to_string(), "128 MB");
        assert!(asked.was_rounded());
        assert!(!"1.5G".parse::<AskedMemory>().unwrap().was_rounded());
        let asked: AskedMemory = "1.1G".parse().unwrap();
        assert_eq!((asked.memory.to_string().as_str(), asked.was_rounded()), ("1152 MB", true));
    }

    proptest! {
        #[test]
        fn memory_keeps_its_rule(mib in 1u64..1 << 40) {
            let asked: AskedMemory = mib.to_string().parse().unwrap();
            prop_assert!(asked.memory.bytes() >= asked.asked);
            prop_assert!(asked.memory.bytes().0 - asked.asked.0 < Memory::STEP);
            prop_assert_eq!(asked.memory.bytes().0 % Memory::STEP, 0);
        }

        #[test]
        fn no_text_panics(text in "\\PC{0,40}") {
            let _ = Bytes::parse(&text, MIB);
        }
    }
}
