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

    /// Check only: print where the variables would come from
    #[arg(long)]
    pub dry_run: bool,

    #[command(flatten)]
    pub operation: Operation,
}

impl Perform for Nvram {
    fn perform(self, context: &Context) -> Result<(), Failure> {
        let is_change = self.restore || self.reset;
        let access = if is_change { Access::ReadWrite } else { Access::ReadOnly };
        let mut host = VmHost::open(access)?;
        let config = host.guest(&self.guest.0.clone().into())?;
        if !is_change {
            return match nvram::damage(&host, &config) {
                None => {
                    Ok(print(&format!("the firmware variables of '{}' are good\n", config.name))?)
                }
                Some(damage) => {
                    let name = &config.name;
                    let text = format!(
                        "the firmware variables cannot be used: {damage}; `hpvm nvram -P {name} --restore` brings the last good ones back"
                    );
                    context.say.error(Some(name), &text);
                    Err(Failure::Said)
                }
            };
        }
        let from = if self.restore { nvram::From::LastGood } else { nvram::From::Pristine };
        let actor = context.actor(self.operation.reason);
        let source = nvram::replace(&mut host, &actor, &config, from, mode(self.dry_run))
            .or_else(|refusal| refused(&config.name, refusal))?;
        let (name, source) = (&config.name, source.display().to_string());
        match self.dry_run {
            true => {
                let source = printable(&source);
                Ok(print(&format!(
                    "the firmware variables of '{name}' would come from {source}\n"
                ))?)
            }
            false => {
                context
                    .say
                    .note(&format!("the firmware variables of '{name}' are those of {source}"));
                Ok(())
            }
        }
    }
}
