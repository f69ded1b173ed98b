//! One file a command: its options, and what it does with them. A command resolves what was typed into a request, calls
//! one operation, and prints the outcome.

mod autostart;
mod completions;
mod console;
mod crash_steps;
mod create;
mod doctor;
mod man;
mod modify;
mod nvram;
mod remove;
mod start;
mod status;
mod stop;
mod undelete;
mod why;

pub use autostart::Autostart;
pub use completions::Completions;
pub use console::Console;
pub use crash_steps::CrashSteps;
pub use create::Create;
pub use doctor::Doctor;
pub use man::Man;
pub use modify::Modify;
pub use nvram::Nvram;
pub use remove::Remove;
pub use start::Start;
pub use status::{Status, Subject};
pub use stop::Stop;
pub use undelete::Undelete;
pub use why::Why;

use crate::exit::Failure;

/// The command is known and this build has nothing behind it.
#[derive(Debug, thiserror::Error)]
#[error("this build of hpvm does not serve the command; install a complete one")]
struct NotServed;

fn not_served() -> Result<(), Failure> {
    Err(NotServed.into())
}
