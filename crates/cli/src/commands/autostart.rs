//! hpvm autostart: run once at the start of the VM Host. Takes running guests over, starts those that start with the VM
//! Host, and clears removed guests that are over their time.

use crate::args::Operation;
use crate::dispatch::{Context, Perform};
use crate::exit::Failure;

/// Start the guests that start with the VM Host
///
/// Meant to run once when the VM Host boots. Takes guests over that run without supervision, starts those made or changed
/// with -B auto, and clears the folders of removed guests that are over their time.
#[derive(Debug, clap::Parser)]
pub struct Autostart {
    /// Check only: print what would be started
    #[arg(long)]
    pub dry_run: bool,

    #[command(flatten)]
    pub operation: Operation,
}

impl Perform for Autostart {
    fn perform(self, _context: &Context) -> Result<(), Failure> {
        super::not_served()
    }
}
