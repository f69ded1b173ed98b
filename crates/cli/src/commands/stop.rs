//! hpvmstop: stops one guest or all.

use crate::args::{Operation, StopTarget};
use crate::dispatch::{Context, Perform};
use crate::exit::Failure;

/// Stop a guest
///
/// Without -g the guest stops at once, as if its power failed. With -g its operating system is asked to shut down, again
/// while nothing happens; when it does not, the guest runs on and the answer says whether there is no operating system yet,
/// whether it did not react, or whether it is still shutting down.
#[derive(Debug, clap::Parser)]
pub struct Stop {
    #[command(flatten)]
    pub target: StopTarget,

    /// Like a power cut; the default
    #[arg(short = 'h', long, conflicts_with = "graceful")]
    pub hard: bool,

    /// By the guest's own shutdown
    #[arg(short = 'g', long)]
    pub graceful: bool,

    /// Ask nothing
    #[arg(short = 'F', long)]
    pub force: bool,

    /// Say nothing when it goes well
    #[arg(short = 'q', visible_short_alias = 'Q', long)]
    pub quiet: bool,

    /// Check only: print what would be stopped
    #[arg(long)]
    pub dry_run: bool,

    #[command(flatten)]
    pub operation: Operation,
}

impl Perform for Stop {
    fn perform(self, _context: &Context) -> Result<(), Failure> {
        super::not_served()
    }
}
