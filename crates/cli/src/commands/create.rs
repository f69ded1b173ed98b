//! hpvmcreate: makes a guest.

use hpvm_model::GuestName;
use hpvm_operations::{Mode, create};

use crate::args::{GuestOptions, GuestSettings, Undertaking};
use crate::dispatch::{Context, Perform};
use crate::dry_run;
use crate::exit::Failure;

use super::{catch_interruptions, done, refused};

/// Create a guest
///
/// Makes a guest that is off: its number and uuid, its folder with firmware variables, its devices. A guest has a serial
/// console and nothing else until devices are added. What is not said takes the default of the guest's type: one vCPU, 2 GB
/// of memory, 10% of a processor for each vCPU, started by command only.
///
/// Prints nothing when it goes well. A guest that cannot run as described is refused; what may be put right before its
/// first start only warns.
#[derive(Debug, clap::Parser)]
pub struct Create {
    /// The new guest's name
    #[arg(short = 'P', long, value_name = "NAME")]
    pub name: GuestName,

    #[command(flatten)]
    pub options: GuestOptions,

    #[command(flatten)]
    pub settings: GuestSettings,

    /// Ask nothing
    #[arg(short = 'F', long)]
    pub force: bool,

    #[command(flatten)]
    pub undertaking: Undertaking,
}

impl Perform for Create {
    fn begin() {
        catch_interruptions();
        create::prepare();
    }

    fn perform(self, context: &Context) -> Result<(), Failure> {
        for warning in self.options.warnings() {
            context.say.warning(Some(&self.name), &warning);
        }
        let mode = self.undertaking.mode();
        let actor = context.actor(self.undertaking.operation.reason);
        let request = self.settings.with(self.options.request());
        let created = create::create(&actor, &self.name, &request, mode)
            .or_else(|refusal| refused(&self.name, refusal))?;
        context.say.problems(&self.name, &created.problems);
        match mode {
            Mode::Apply => done(&format!("guest '{}' is made already", self.name)),
            Mode::DryRun => {
                dry_run::print_out(&created.fields, self.undertaking.json)?;
                dry_run::verdict(&created.problems)
            }
        }
    }
}
