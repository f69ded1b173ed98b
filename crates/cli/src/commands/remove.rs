//! hpvmremove: removes a guest, and keeps its folder for a while unless told to purge it.

use crate::args::{Operation, Selector};
use crate::dispatch::{Context, Perform};
use crate::exit::Failure;

/// Remove a guest
#[derive(Debug, clap::Parser)]
pub struct Remove {
    #[command(flatten)]
    pub guest: Selector,

    /// Ask nothing
    #[arg(short = 'F', long)]
    pub force: bool,

    /// Remove the guest's folder now, so that `hpvm undelete` cannot bring it back
    #[arg(long)]
    pub purge: bool,

    /// Check only: print what would be removed
    #[arg(long)]
    pub dry_run: bool,

    #[command(flatten)]
    pub operation: Operation,
}

impl Perform for Remove {
    fn perform(self, _context: &Context) -> Result<(), Failure> {
        super::not_served()
    }
}
