//! hpvm undelete: brings a removed guest back with its number and uuid.

use crate::args::{GuestArgument, Operation};
use crate::dispatch::{Context, Perform};
use crate::exit::Failure;

/// Bring a removed guest back
#[derive(Debug, clap::Parser)]
pub struct Undelete {
    #[command(flatten)]
    pub guest: GuestArgument,

    /// Check only: print what would come back
    #[arg(long)]
    pub dry_run: bool,

    #[command(flatten)]
    pub operation: Operation,
}

impl Perform for Undelete {
    fn perform(self, _context: &Context) -> Result<(), Failure> {
        super::not_served()
    }
}
