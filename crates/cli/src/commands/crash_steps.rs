//! hpvm crash-steps: the names of all steps at which a command can be made to abort, for the tests that do it.

use crate::dispatch::{Context, Perform};
use crate::exit::Failure;

/// Print the names of the steps that HPVM_ABORT_AT takes
#[derive(Debug, clap::Parser)]
pub struct CrashSteps {}

impl Perform for CrashSteps {
    fn perform(self, _context: &Context) -> Result<(), Failure> {
        super::not_served()
    }
}
