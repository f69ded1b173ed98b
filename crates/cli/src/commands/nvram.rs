//! hpvm nvram: tells whether a guest's firmware variables are good, and brings back an earlier state of them.

use crate::args::{GuestArgument, Operation};
use crate::dispatch::{Context, Perform};
use crate::exit::Failure;

/// Check a guest's firmware variables, and restore or reset them
///
/// Without options it tells whether they are good. Changes need the guest to be off.
#[derive(Debug, clap::Parser)]
pub struct Nvram {
    #[command(flatten)]
    pub guest: GuestArgument,

    /// Bring back the last copy that was good at a start
    #[arg(long, conflicts_with = "reset")]
    pub restore: bool,

    /// Begin anew with the pristine variables; boot entries are lost
    #[arg(long)]
    pub reset: bool,

    #[command(flatten)]
    pub operation: Operation,
}

impl Perform for Nvram {
    fn perform(self, _context: &Context) -> Result<(), Failure> {
        super::not_served()
    }
}
