//! hpvmremove: removes a guest, and keeps its folder for a while unless told to purge it.

use crate::args::{Operation, Selector};
use crate::dispatch::{Context, Perform};
use crate::exit::Failure;

/// Remove a guest
///
/// The guest must be off. Its folder is kept for HPVMKEEPREMOVED (7 days unless hpvmconf says otherwise), and until then
/// "hpvm undelete" brings the guest back with number and uuid. Files that back its disks are never touched.
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
