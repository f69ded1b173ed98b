//! hpvm nvram: tells whether a guest's firmware variables are good, and brings back an earlier state of them.

use crate::args::{GuestArgument, Operation};
use crate::dispatch::{Context, Perform};
use crate::exit::{About, Failure};
use crate::messages::printable;
use crate::output::print;
use hpvm_model::GuestName;
use hpvm_operations::nvram::From;
use hpvm_operations::{Mode, VmHost, nvram};
use hpvm_plan::facts::Lack;
use hpvm_registry::Access;

use super::{agreed, mode, refused};

/// Check a guest's firmware variables, and restore or reset them
///
/// Without options it tells whether they can be used. Changes need the guest to be off. As long as the present variables can be
/// used, it is asked first, since boot entries are lost; where they cannot, nothing is asked. What is replaced is kept
/// as `nvram.damaged` in the guest's folder until the next replacement.
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

    /// Ask nothing
    #[arg(short = 'F', long)]
    pub force: bool,

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
                Some(Lack::Forbidden) => {
                    let text = "whether the firmware variables can be used cannot be seen by this user; run this as its owner or as root";
                    context.say.error(Some(&config.name), text);
                    Err(Failure::Said)
                }
                Some(Lack::Unfit(damage)) => {
                    let name = &config.name;
                    let text = format!(
                        "the firmware variables cannot be used: {damage}; `hpvm nvram -P {name} --restore` brings the last good ones back, or new ones where there are none"
                    );
                    context.say.error(Some(name), &text);
                    Err(Failure::Said)
                }
            };
        }
        let from = if self.restore { From::LastGood } else { From::Pristine };
        let actor = context.actor(self.operation.reason).calling(self.guest.0.name());
        if !self.force && !self.dry_run && nvram::damage(&host, &config).is_none() {
            // Nobody is asked about what is refused anyway.
            let would = nvram::replace(&mut host, &actor, &config, from, Mode::DryRun);
            let would = host
                .record_failure(&actor, Some(&config), would)
                .or_else(|refusal| refused(&config.name, refusal))?;
            let question = question(&config.name, from, would.from);
            agreed(context.say.ask(&question)).about(&config.name)?;
        }
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

/// `wished` and what would come of it.
fn question(name: &GuestName, wished: From, from: From) -> String {
    let can_be_used = format!("The firmware variables of '{name}' can be used");
    match (wished, from) {
        (From::LastGood, From::LastGood) => format!(
            "{can_be_used}, and boot entries made since its last start are lost. Bring back those of that start?"
        ),
        (From::LastGood, From::Pristine) => format!(
            "{can_be_used}, there is no other good copy of them, and its boot entries are lost. Begin anew with pristine ones?"
        ),
        (From::Pristine, _) => {
            format!("{can_be_used}, and its boot entries are lost. Begin anew with pristine ones?")
        }
    }
}
