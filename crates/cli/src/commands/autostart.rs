//! hpvm autostart: run once at the start of the VM Host. Takes running guests over, starts those that start with the VM
//! Host, and clears removed guests that are over their time.

use crate::args::Operation;
use crate::dispatch::{Context, Perform};
use crate::dry_run::NOTHING;
use crate::exit::Failure;
use crate::output::print;
use hpvm_model::{GuestName, Severity, chain};
use hpvm_operations::VmHost;
use hpvm_operations::autostart::{Chore, PassedOver, autostart};
use hpvm_operations::start::Started;

use super::{mode, not_cleared, refused, tell_conf_faults};

/// Start the guests that start with the VM Host
///
/// Meant to run once when the VM Host boots. Takes guests over that run without supervision, starts those made or changed
/// with -B auto, clears the folders of removed guests that are over their time, and lists what the VM Host itself uses. A guest
/// that was started since the VM Host booted and is off again is left off, and so are all if HPVMENABLE says so; each is named.
#[derive(Debug, clap::Parser)]
pub struct Autostart {
    /// Check only: print what would be started
    #[arg(long)]
    pub dry_run: bool,

    #[command(flatten)]
    pub operation: Operation,
}

impl Perform for Autostart {
    fn perform(self, context: &Context) -> Result<(), Failure> {
        let mut host = VmHost::open_in(mode(self.dry_run))?;
        let actor = context.actor(self.operation.reason);
        let done = autostart(&mut host, &actor, mode(self.dry_run))?;
        tell_conf_faults(context, &host);
        for (chore, refusal) in &done.undone {
            let text = format!("{}: {}", not_done(*chore), chain(refusal));
            context.say.warning(None, &text);
        }
        if self.dry_run && done.guests.is_empty() {
            print(NOTHING)?;
        }
        let mut result = Ok(());
        for (name, refusal) in done.switches {
            let text =
                format!("virtual switch '{name}' cannot be brought back: {}", chain(&refusal));
            context.say.error(None, &text);
            result = Err(Failure::Said);
        }
        for (name, started) in done.guests {
            match started {
                Ok(Started::Judged(problems)) => {
                    context.say.start_problems(&name, &problems);
                    let would = match problems.iter().any(|p| p.severity == Severity::Error) {
                        true => {
                            result = Err(Failure::Said);
                            "would not"
                        }
                        false => "would",
                    };
                    print(&format!("'{name}' {would} be started\n"))?;
                }
                Ok(_) => context.say.note(&format!("started '{name}'")),
                Err(refusal) => {
                    if let Err(failure) = refused::<()>(&name, refusal) {
                        failure.tell(context.say.command());
                    }
                    result = Err(Failure::Said);
                }
            }
        }
        for (name, why) in done.passed_over {
            context.say.note(&format!("'{name}' is left off: {}", left_off(why, &name)));
        }
        for (name, cleared) in &done.cleared {
            match cleared {
                Ok(()) => context.say.note(&format!("cleared what was kept of '{name}'")),
                Err(refusal) => not_cleared(context, name, refusal),
            }
        }
        result
    }
}

fn left_off(why: PassedOver, name: &GuestName) -> String {
    match why {
        PassedOver::StartedBefore => format!(
            "it was started since the VM Host booted, and has ended; `hpvmstart -P {name}` starts it"
        ),
        PassedOver::Disabled => "hpvmconf says that no guest starts with the VM Host".into(),
    }
}

fn not_done(chore: Chore) -> &'static str {
    match chore {
        Chore::TakeOver => "guests that nobody supervises could not be taken over",
        Chore::Revive => "virtual switches could not be brought back",
        Chore::Tidy => "ports that guests have given up could not be taken",
        Chore::List => "what this VM Host uses could not be listed",
        Chore::Purge => "removed guests that are over their time could not be cleared",
    }
}
