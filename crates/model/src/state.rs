//! What a guest is doing, in the words of the tables.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Who runs in the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Occupant {
    Firmware,
    Os,
}

/// The state column. `On (ATTN)` is a guest that runs and needs somebody: its engine or worker does not answer, say, or the engine
/// holds it still.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunState {
    Off,
    On(Occupant),
    Attention,
    Invalid,
}

impl RunState {
    #[must_use]
    pub fn is_on(self) -> bool {
        matches!(self, RunState::On(_) | RunState::Attention)
    }
}

impl fmt::Display for RunState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            RunState::Off => "Off",
            RunState::On(Occupant::Firmware) => "On (EFI)",
            RunState::On(Occupant::Os) => "On (OS)",
            RunState::Attention => "On (ATTN)",
            RunState::Invalid => "Invalid",
        })
    }
}
