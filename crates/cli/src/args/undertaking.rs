//! What hpvmcreate, hpvmmodify and hpvmclone take beside what the guest is to be: whether to act or only to tell, and the reason why.

use hpvm_operations::Mode;

use super::Operation;

#[derive(Clone, Debug, Default, PartialEq, Eq, clap::Args)]
pub struct Undertaking {
    /// Check only: print per field what would be made or applied now, at the next start, or refused and why
    #[arg(short = 's', long, conflicts_with = "force")]
    pub dry_run: bool,

    /// With --dry-run: as JSON, after docs/schema/dry-run.json
    #[arg(long, requires = "dry_run")]
    pub json: bool,

    #[command(flatten)]
    pub operation: Operation,
}

impl Undertaking {
    #[must_use]
    pub fn mode(&self) -> Mode {
        if self.dry_run { Mode::DryRun } else { Mode::Apply }
    }
}
