//! hpvm undelete: brings a removed guest back with its number and uuid.

use clap::ArgGroup;

use crate::args::{GuestArgument, Operation};
use crate::dispatch::{Context, Perform};
use crate::exit::Failure;

/// Bring a removed guest back
///
/// The guest returns with its name, number, uuid, devices and firmware variables, as long as hpvmremove kept its folder.
#[derive(Debug, clap::Parser)]
#[command(mut_group("guest", |group| group.required(false)))]
#[command(group = ArgGroup::new("what").args(["name", "number", "guest-name", "list"]).required(true))]
pub struct Undelete {
    #[command(flatten)]
    pub guest: Option<GuestArgument>,

    /// List the removed guests that are kept
    #[arg(long, conflicts_with_all = ["dry_run", "reason"])]
    pub list: bool,

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
