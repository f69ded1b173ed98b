//! hpvm crash-steps: the names of all steps at which a command can be made to abort, for the tests that do it.

use hpvm_registry::Step;

use crate::dispatch::{Context, Perform};
use crate::exit::Failure;
use crate::output::print;

/// Print the names of the steps that HPVM_ABORT_AT takes
#[derive(Debug, clap::Parser)]
pub struct CrashSteps {}

impl Perform for CrashSteps {
    fn perform(self, _context: &Context) -> Result<(), Failure> {
        let names = Step::ALL.iter().map(|step| step.name());
        let text: String = names.flat_map(|name| [name, "\n"]).collect();
        Ok(print(&text)?)
    }
}
