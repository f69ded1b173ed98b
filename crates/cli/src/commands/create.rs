//! hpvmcreate: makes a guest.

use clap::Arg;
use hpvm_model::GuestName;
use hpvm_operations::create::DEFAULTS;
use hpvm_operations::{Mode, create};

use crate::args::{GuestOptions, GuestSettings, Undertaking};
use crate::dispatch::{Context, Perform};
use crate::dry_run;
use crate::exit::Failure;

use super::{catch_interruptions, done, refused};

/// Create a guest
///
/// Makes a guest that is off: its number and uuid, its folder with firmware variables, its devices. A guest has a serial
/// console and nothing else until devices are added. What is not said takes the default that its option tells, the same for
/// all types.
///
/// Prints nothing when it goes well. A guest that cannot run as described is refused; what may be put right before its
/// first start only warns.
#[derive(Debug, clap::Parser)]
#[command(mut_args(with_default))]
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

/// The same option, whose help tells too what holds without it; hpvmmodify and hpvmclone have it and leave all as it was.
fn with_default(arg: Arg) -> Arg {
    let default = match arg.get_id().as_str() {
        "os" => DEFAULTS.os.family.to_string(),
        "vcpus" => DEFAULTS.vcpus.to_string(),
        "entitlement" => DEFAULTS.entitlement.to_string(),
        "memory" => DEFAULTS.memory.to_string(),
        "auto_start" => DEFAULTS.auto_start.to_string(),
        _ => return arg,
    };
    let help = arg.get_help().map_or(String::new(), ToString::to_string);
    arg.help(format!("{help} [default: {default}]"))
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
