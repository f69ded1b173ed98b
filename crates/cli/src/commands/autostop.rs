//! hpvm autostop: run once when the VM Host shuts down. Ends all guests, by their own shutdown where that works in time.

use crate::args::Operation;
use crate::dispatch::{Context, Perform};
use crate::dry_run::NOTHING;
use crate::exit::Failure;
use crate::output::print;
use hpvm_operations::VmHost;
use hpvm_operations::autostop::{Ended, autostop};

use super::{catch_interruptions, mode, refused};

/// End all guests before the VM Host goes down
///
/// Meant to run once when the VM Host shuts down. Asks all running guests at once to shut down, waits for HPVMAUTOSTOP seconds
/// (120 unless hpvmconf says otherwise), and ends those that run on as a power cut would. Guests made or changed with -B auto
/// are started again when the VM Host boots.
#[derive(Debug, clap::Parser)]
pub struct Autostop {
    /// Check only: print what would be ended
    #[arg(long)]
    pub dry_run: bool,

    #[command(flatten)]
    pub operation: Operation,
}

impl Perform for Autostop {
    fn perform(self, context: &Context) -> Result<(), Failure> {
        catch_interruptions();
        let mut host = VmHost::open_to_end_guests()?;
        let at_most = host.conf.autostop_bound()?;
        let actor = context.actor(self.operation.reason);
        let done = autostop(&mut host, &actor, at_most, mode(self.dry_run))?;
        if self.dry_run && done.guests.is_empty() {
            print(NOTHING)?;
        }
        let mut result = Ok(());
        for (name, ended) in done.guests {
            match ended {
                Ok(Ended::Would) => print(&format!("'{name}' would be ended\n"))?,
                Ok(Ended::ByItself) => context.say.note(&format!("'{name}' has shut down")),
                Ok(Ended::ByForce(why)) => {
                    context.say.warning(Some(&name), &format!("ended by force: {why}"));
                }
                Err(refusal) => match refused::<()>(&name, refusal) {
                    Err(failure @ Failure::Interrupted { .. }) => result = Err(failure),
                    Err(failure) => {
                        failure.tell(context.say.command());
                        result = result.and(Err(Failure::Said));
                    }
                    Ok(()) => {}
                },
            }
        }
        result
    }
}
