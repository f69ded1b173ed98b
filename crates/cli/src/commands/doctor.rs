//! hpvm doctor: looks for leftovers and damage, explains them, and removes them when asked.

use crate::args::Operation;
use crate::dispatch::{Context, Perform};
use crate::exit::Failure;

/// Find leftovers and damage, and repair them when asked
///
/// Compares the registry, the folders of the guests, what lies in /run and what runs. Without options it changes nothing.
#[derive(Debug, clap::Parser)]
pub struct Doctor {
    /// Repair what was found
    #[arg(long)]
    pub repair: bool,

    /// Rebuild the registry from the guests' folders
    #[arg(long)]
    pub rebuild: bool,

    #[command(flatten)]
    pub operation: Operation,
}

impl Perform for Doctor {
    fn perform(self, _context: &Context) -> Result<(), Failure> {
        super::not_served()
    }
}
