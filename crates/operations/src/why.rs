//! Why a guest does not start, or what failed last: one screen, with the next command to type. Nothing proposed here stops
//! another guest or drops a device.

mod attempts;
mod off;
mod running;
mod surroundings;
mod unseen;

use hpvm_model::{GuestConfig, GuestName, Remedy};

use crate::presence::Presence;
use crate::{Refusal, VmHost, lost, lost_record};

/// The screen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Why {
    /// One sentence: how it is.
    pub headline: String,
    /// What led there, nearest cause first.
    pub causes: Vec<String>,
    /// What else there is to know, of which nothing led there.
    pub notes: Vec<String>,
    /// What to do outside hpvm, if anything, and the command to type then.
    pub remedy: Option<Remedy>,
}

/// Explains one guest.
pub fn why(host: &VmHost, config: &GuestConfig) -> Result<Why, Refusal> {
    let presence = host.presence(config.number);
    let folder = host.folder(config);
    match &presence {
        Presence::On { .. } if folder.is_missing() => {
            Ok(running::without_folder(&config.name, folder.path(), presence.health()))
        }
        Presence::On { attention, supervision, .. } => {
            if let Some(loss) = lost_record::look(host, config, &presence) {
                return Ok(running::without_record(config, loss));
            }
            let attention = attention.as_ref();
            let why = running::explain(host, config, &presence, attention, *supervision);
            Ok(attempts::with_last_failure(why, host, config, &presence))
        }
        Presence::Off { .. } => match lost::qemu_at_rest(host, config) {
            Some(pid) => Ok(running::out_of_reach(config, pid)),
            None if folder.is_missing() => Ok(off::without_folder(&config.name, folder.path())),
            None => off::explain(host, config, &presence),
        },
    }
}

/// So many operations back it is looked for what was tried.
const RECENT_OPERATIONS: usize = 20;

/// How the screen is built. What there is nothing of is not mentioned.
impl Why {
    fn that(headline: String) -> Why {
        Why { headline, causes: Vec::new(), notes: Vec::new(), remedy: None }
    }

    fn because(self, cause: impl Into<String>) -> Why {
        self.because_of([cause.into()])
    }

    fn because_of(mut self, causes: impl IntoIterator<Item = String>) -> Why {
        self.causes.extend(causes);
        self
    }

    fn noting(mut self, notes: impl IntoIterator<Item = String>) -> Why {
        self.notes.extend(notes);
        self
    }

    /// This is the command to type.
    fn run(self, command: String) -> Why {
        self.remedied(None, command)
    }

    /// The same, once something is done outside hpvm.
    fn ask(self, ask: impl Into<String>, command: String) -> Why {
        self.remedied(Some(ask.into()), command)
    }

    fn remedied(self, ask: Option<String>, command: String) -> Why {
        Why { remedy: Some(Remedy { ask, command }), ..self }
    }

    /// Only another start helps.
    fn start_anew(self, name: &GuestName) -> Why {
        self.ask(
            "choose a time at which the guest may be off for a moment",
            format!("hpvmstop -P {name} -g -F && hpvmstart -P {name}"),
        )
    }
}
