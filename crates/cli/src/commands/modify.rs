//! hpvmmodify: changes a guest, now where the running guest can take it and at its next reset or start where it cannot.

use hpvm_model::GuestName;
use hpvm_operations::modify::{Modified, modify};
use hpvm_operations::{Mode, VmHost};
use hpvm_plan::difference::{Effect, FieldChange};
use hpvm_plan::hotplug::Force;
use hpvm_plan::request::Request;

use crate::args::{ChangeOptions, GuestSettings, Selector, Undertaking};
use crate::dispatch::{Context, Perform};
use crate::dry_run;
use crate::exit::Failure;

use super::{catch_interruptions, done, refused};

/// Change a guest
///
/// What the running guest can take is applied now; the rest waits for its next reset or start and is shown by hpvmstatus -P and
/// -D until then. A change is applied in full or not at all. Devices that leave make room for those that come, in whatever
/// order the options stand. A disk that waits to leave does so at the guest's next reset, or when -d, with -F or without, names
/// it again; -a of the same statement keeps it. One that waits to be exchanged is exchanged then, or when -m names it again. One
/// that is added and would not be seen before comes then too; -d takes it back.
#[derive(Debug, clap::Parser)]
pub struct Modify {
    #[command(flatten)]
    pub guest: Selector,

    /// Rename the guest
    #[arg(short = 'N', long, value_name = "NAME")]
    pub new_name: Option<GuestName>,

    #[command(flatten)]
    pub options: ChangeOptions,

    #[command(flatten)]
    pub settings: GuestSettings,

    /// Ask nothing, and take a disk that had I/O a moment ago
    #[arg(short = 'F', long)]
    pub force: bool,

    #[command(flatten)]
    pub undertaking: Undertaking,
}

impl Modify {
    /// What is asked of the guest.
    #[must_use]
    pub fn request(&self) -> Request {
        let mut request = self.settings.with(self.options.request());
        request.name.clone_from(&self.new_name);
        request
    }
}

impl Perform for Modify {
    fn perform(self, context: &Context) -> Result<(), Failure> {
        catch_interruptions();
        let mode = self.undertaking.mode();
        let mut host = VmHost::open_for_guests(mode)?;
        let config = host.guest(&self.guest.clone().into())?;
        for warning in self.options.guest.warnings() {
            context.say.warning(Some(&config.name), &warning);
        }
        let force = if self.force { Force::Yes } else { Force::No };
        let actor =
            context.actor(self.undertaking.operation.reason.clone()).calling(self.guest.name());
        let request = self.request();
        let modified = modify(&mut host, &actor, &config, &request, force, mode)
            .or_else(|refusal| refused(&config.name, refusal))?;
        context.say.problems(&config.name, &modified.problems);
        if mode == Mode::DryRun {
            dry_run::print_out(&modified.fields, self.undertaking.json)?;
            return dry_run::verdict(&modified.problems);
        }
        if modified.is_nothing() {
            context.say.note(&nothing(&config.name, &request));
        }
        for FieldChange { field, from, to, .. } in &modified.grown {
            context.say.note(&format!("{field}: {to} now, {from} before"));
        }
        for sentence in waiting(&modified) {
            context.say.warning(Some(&modified.after.name), &sentence);
        }
        done(&format!("guest '{}' is changed already", modified.after.name))
    }
}

/// Who asked for nothing forgot an option, or wanted to look.
fn nothing(guest: &GuestName, request: &Request) -> String {
    match *request == Request::default() {
        true => format!(
            "nothing to change: no option says what; `hpvmmodify --help` lists them, and `hpvmstatus -P {guest}` shows the guest"
        ),
        false => format!("nothing to change: guest '{guest}' is so already"),
    }
}

/// What the administrator asked for and does not have yet.
fn waiting(modified: &Modified) -> Vec<String> {
    let later = modified.fields.iter().filter_map(|change| match &change.effect {
        Effect::NextReset(reason) | Effect::Asked(reason) => {
            Some(format!("{}: waits for the guest's next reset: {reason}", change.field))
        }
        Effect::NextStart(reason) => {
            Some(format!("{}: waits for the next start: {reason}", change.field))
        }
        Effect::Now | Effect::Refused(_) => None,
    });
    later.chain(modified.pending.iter().cloned()).collect()
}
