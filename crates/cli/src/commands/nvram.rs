//! hpvm nvram: tells whether a guest's firmware variables are good, and brings back an earlier state of them.

use crate::args::{GuestArgument, Operation};
use crate::dispatch::{Context, Perform};
use crate::exit::Failure;
use crate::messages::printable;
use crate::output::print;
use hpvm_operations::{VmHost, nvram};
use hpvm_registry::Access;

use super::{mode, refused};

/// Check a guest's firmware variables, and restore or reset them
///
/// Without options it tells whether they can be used. Changes need the guest to be off.
#[derive(Debug, clap::Parser)]
pub struct Nvram {
    #[command(flatten)]
    pub guest: GuestArgument,

    /// Bring back the last copy that was good at a start; where there is none, begin anew
    #[arg(long, conflicts_with = "reset")]
    pub restore: bool,

    /// Begin anew with the pristine variables; boot entries are lost
    #[arg(long)]
    pub reset: bool,

    /// Check only: print where the variables would come from
    #[arg(long)]
    pub dry_run: bool,

    #[command(flatten)]
    pub operation: Operation,
}

impl Perform for Nvram {
    fn perform(self, context: &Context) -> Result<(), Failure> {
        let is_change = self.restore || self.reset;
        let mut host = match is_change {
            true => VmHost::open_for_guests(mode(self.dry_run))?,
            false => VmHost::open(Access::ReadOnly)?,
        };
        let config = host.guest(&self.guest.0.clone().into())?;
        if !is_change {
            return match nvram::damage(&host, &config) {
                None => Ok(print(&format!(
                    "the firmware variables of '{}' can be used\n",
                    config.name
                ))?),
                Some(damage) => {
                    let name = &config.name;
                    let text = format!(
                        "the firmware variables cannot be used: {damage}; `hpvm nvram -P {name} --restore` brings the last good ones back, or new ones where there are none"
                    );
                    context.say.error(Some(name), &text);
                    Err(Failure::Said)
                }
            };
        }
        let from = if self.restore { nvram::From::LastGood } else { nvram::From::Pristine };
        let actor = context.actor(self.operation.reason).calling(self.guest.0.name());
        let source = nvram::replace(&mut host, &actor, &config, from, mode(self.dry_run))
            .or_else(|refusal| refused(&config.name, refusal))?;
        let (name, path) = (&config.name, source.path.display().to_string());
        let lost = match source.from == from {
            true => "",
            false => "; there is no good copy of its own, and its boot entries are lost",
        };
        match self.dry_run {
            true => {
                let path = printable(&path);
                let text =
                    format!("the firmware variables of '{name}' would come from {path}{lost}\n");
                Ok(print(&text)?)
            }
            false => {
                let text = format!("the firmware variables of '{name}' are those of {path}{lost}");
                context.say.note(&text);
                Ok(())
            }
        }
    }
}
