//! hpvmstart: starts a guest and returns when it runs.

use crate::args::{Operation, Selector};
use crate::dispatch::{Context, Perform};
use crate::exit::Failure;

/// Start a guest
///
/// Checks the configuration against the VM Host, prints what is wrong, starts the guest and returns when it runs. "hpvm
/// why" tells more when it does not.
#[derive(Debug, clap::Parser)]
pub struct Start {
    #[command(flatten)]
    pub guest: Selector,

    /// Ask nothing
    #[arg(short = 'F', long)]
    pub force: bool,

    /// Check only: print what prevents the start
    #[arg(short = 's', long, conflicts_with = "force")]
    pub dry_run: bool,

    /// Say nothing when it goes well
    #[arg(short = 'Q', long)]
    pub quiet: bool,

    #[command(flatten)]
    pub operation: Operation,
}

impl Perform for Start {
    fn perform(self, _context: &Context) -> Result<(), Failure> {
        super::not_served()
    }
}
