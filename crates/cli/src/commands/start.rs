//! hpvmstart: starts a guest and returns when it runs.

use crate::args::{Operation, Selector};
use crate::dispatch::{Context, Perform};
use crate::exit::Failure;
use crate::messages::Volume;
use crate::output::print;
use hpvm_model::{GuestName, Severity};
use hpvm_operations::start::{Started, start};
use hpvm_operations::{Refusal, VmHost};

use super::{catch_interruptions, mode, refused, tell_conf_faults};

/// Start a guest
///
/// Checks the configuration against the VM Host, prints what is wrong, starts the guest and returns when it runs. "hpvm
/// why" tells more when it does not.
#[derive(Debug, clap::Parser)]
pub struct Start {
    #[command(flatten)]
    pub guest: Selector,

    /// Ask nothing
    #[arg(short = 'F', long)]
    pub force: bool,

    /// Check only: print what prevents the start
    #[arg(short = 's', long, conflicts_with = "force")]
    pub dry_run: bool,

    /// Say nothing when it goes well
    #[arg(short = 'Q', long)]
    pub quiet: bool,

    #[command(flatten)]
    pub operation: Operation,
}

impl Perform for Start {
    fn perform(self, context: &Context) -> Result<(), Failure> {
        catch_interruptions();
        let mut host = VmHost::open_for_guests(mode(self.dry_run))?;
        let config = host.guest(&self.guest.clone().into())?;
        let actor = context.actor(self.operation.reason).calling(self.guest.name());
        let volume = if self.quiet { Volume::Quiet } else { Volume::Normal };
        let say = context.say.at(volume);
        let started = start(&mut host, &actor, &config, mode(self.dry_run))
            .or_else(|refusal| refused_start(context, &config.name, refusal))?;
        match started {
            Started::Now(problems) => {
                tell_conf_faults(context, &host);
                context.say.start_problems(&config.name, &problems);
                say.note(&format!("Successful start initiation of guest '{}'", config.name));
                Ok(())
            }
            Started::WasOn => {
                say.note(&format!("Guest '{}' is running already", config.name));
                Ok(())
            }
            Started::Judged(problems) => {
                context.say.start_problems(&config.name, &problems);
                match problems.iter().any(|p| p.severity == Severity::Error) {
                    true => Err(Failure::Said),
                    false => Ok(print(&format!("'{}' can start\n", config.name))?),
                }
            }
        }
    }
}

/// What prevents a start is told as the report that precedes one.
fn refused_start<T>(context: &Context, guest: &GuestName, refusal: Refusal) -> Result<T, Failure> {
    match refusal {
        Refusal::Problems(problems) => {
            context.say.start_problems(guest, &problems);
            context.say.error(Some(guest), &cannot_start(guest));
            Err(Failure::Said)
        }
        other => refused(guest, other),
    }
}

pub(super) fn cannot_start(guest: &GuestName) -> String {
    format!("the guest cannot start; `hpvm why {guest}` tells what to do")
}
