//! A QEMU without a machine: takes QEMU's command line, listens on the sockets it inherits, speaks QMP as QEMU 10.0 does
//! and shows a console. It starts in a few milliseconds and needs a megabyte, so a test can have a thousand.
//!
//! ```text
//!  command_line ──► machine ◄── schema (arguments judged as QEMU would)
//!                     ▲ │
//!       commands, time│ │answers, events, later
//!                     │ ▼
//!                   server: one poll loop over monitors, serial, agent and timers
//! ```
//!
//! [`behaviour`] describes `HPVM_FAKE_QEMU`, by which a test chooses what guest is in it and what goes wrong. That it
//! answers as QEMU does is held by tests/contract.rs, which runs the same script on both. It knows nothing of hpvm.

mod agent;
pub mod behaviour;
mod command_line;
mod human;
mod machine;
mod schema;
mod serial;
mod server;

use std::io::Write;
use std::process::ExitCode;

use behaviour::Behaviour;
use command_line::Start;

/// The variable that says how to behave.
pub const VARIABLE: &str = "HPVM_FAKE_QEMU";

/// What the program is: reads arguments and the variable, and runs until QMP or a signal ends it.
#[must_use]
pub fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "qemu-system-x86_64: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<()> {
    let behaviour = Behaviour::from_environment()?;
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match command_line::parse(&arguments)? {
        Start::Version => {
            print!("{}", command_line::VERSION_TEXT);
            Ok(())
        }
        Start::Machine(line) => server::serve(*line, behaviour),
    }
}
