//! hpvm undelete: brings a removed guest back with its number and uuid.

use clap::ArgGroup;
use hpvm_model::GuestName;
use hpvm_operations::remove::{Undeleted, undelete};
use hpvm_operations::{Mode, VmHost};
use hpvm_registry::{Access, RemovedGuest};

use crate::args::{GuestArgument, Operation};
use crate::dispatch::{Context, Perform};
use crate::exit::Failure;
use crate::output::print;
use crate::table::Table;

use super::{TO_THE_SECOND, catch_interruptions, done, kept_guest, mode, refused};

/// Bring a removed guest back
///
/// The guest returns with its name, or another one by -N, with number, uuid, devices and firmware variables, as long as hpvmremove kept its folder.
#[derive(Debug, clap::Parser)]
#[command(mut_group("guest", |group| group.required(false)))]
#[command(group = ArgGroup::new("what").args(["name", "number", "guest-name", "list"]).required(true))]
pub struct Undelete {
    #[command(flatten)]
    pub guest: Option<GuestArgument>,

    /// Its name from now on, where another guest has its old one
    #[arg(short = 'N', long, value_name = "NEWNAME", conflicts_with = "list")]
    pub new_name: Option<GuestName>,

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
    fn perform(self, context: &Context) -> Result<(), Failure> {
        let Some(GuestArgument(selector)) = &self.guest else {
            let host = VmHost::open(Access::ReadOnly)?;
            return Ok(print(&list(&host.registry.removed()?))?);
        };
        catch_interruptions();
        let mode = mode(self.dry_run);
        let mut host = VmHost::open_for_guests(mode)?;
        let kept = kept_guest(&host, selector)?;
        let name = kept.config.name.clone();
        let actor = context.actor(self.operation.reason);
        let new_name = self.new_name.as_ref();
        let Undeleted { config, problems } = undelete(&mut host, &actor, &kept, new_name, mode)
            .or_else(|refusal| refused(&name, refusal))?;
        context.say.problems(&config.name, &problems);
        if mode == Mode::DryRun {
            let back = config.name;
            return Ok(print(&format!("guest '{name}' would be back as '{back}'\n"))?);
        }
        done(&format!("guest '{name}' is back already"))
    }
}

fn list(removed: &[RemovedGuest]) -> String {
    let mut table = Table::new(["Name", "VM #", "Removed", "Kept Until"]);
    for guest in removed {
        let (number, removed_at, keep_until) = (
            guest.config.number.to_string(),
            guest.removed_at.strftime(TO_THE_SECOND).to_string(),
            guest.keep_until.strftime(TO_THE_SECOND).to_string(),
        );
        table.row([guest.config.name.as_str(), &number, &removed_at, &keep_until]);
    }
    table.render()
}
