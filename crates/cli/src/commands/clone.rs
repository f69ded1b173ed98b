//! hpvmclone: makes a guest after another, with its disks kept, copied or linked.

use hpvm_host::deputy::{self, Side};
use hpvm_model::{GuestName, Statement};
use hpvm_operations::clone::{Cloned, Copied, clone, stores_may_fall_silent};
use hpvm_operations::{Mode, VmHost};
use hpvm_plan::clone::{CloneRequest, Disks, How, Inheritance};
use hpvm_plan::hotplug::Force;

use crate::args::{ChangeOptions, CloneSettings, Selector, Undertaking, store_to_copy};
use crate::dispatch::{Context, Perform};
use crate::dry_run;
use crate::exit::Failure;
use crate::progress::ProgressLine;

use super::{catch_interruptions, done, refused};

/// Make a guest after another
///
/// The clone has its source's configuration and firmware variables, and a name, number, uuid, serial number and disk
/// identities of its own. Its disks are the source's own, of which only one guest can run at a time, unless -b copies them
/// or --linked lays an image of the clone's over each. What other options say is changed in the clone, as hpvmmodify would.
///
/// Its MAC addresses are its own too, unless -x mac_address=same gives it the source's; -x serial_number=same does that for the
/// serial number. A guest with the MAC address of one that runs is not started.
///
/// -b STATEMENT copies the content of the source's device at the statement's address to the store it names, and gives the
/// clone that store. It needs no -a and -d beside it; an -a of the same store gives the clone's device another address.
///
/// The source may run: what it writes is copied as it is at one moment, all disks and the firmware variables. If an agent runs
/// in it, its file systems are held for that moment and clean in the clone. What a linked clone lies over is only read from
/// then on: its source must be off, and is not started while the clone is there.
#[derive(Debug, clap::Parser)]
pub struct Clone {
    #[command(flatten)]
    pub guest: Selector,

    /// The clone's name
    #[arg(short = 'N', long, value_name = "NAME")]
    pub new_name: GuestName,

    #[command(flatten)]
    pub options: ChangeOptions,

    #[command(flatten)]
    pub settings: CloneSettings,

    /// Copy the source's device at the statement's address to the store it names; may be repeated
    #[arg(short = 'b', long = "copy", value_name = "STATEMENT", value_parser = store_to_copy)]
    pub copies: Vec<Statement>,

    /// Give the clone an image of its own over each disk, made at once; with -b of type qcow2 at that path
    #[arg(long)]
    pub linked: bool,

    /// Ask nothing, and overwrite files that -b names
    #[arg(short = 'F', long)]
    pub force: bool,

    #[command(flatten)]
    pub undertaking: Undertaking,
}

impl Clone {
    /// What is asked of the clone.
    #[must_use]
    pub fn request(&self) -> CloneRequest {
        self.settings.with(CloneRequest {
            name: self.new_name.clone(),
            request: self.options.request(),
            copies: self.copies.clone(),
            disks: if self.linked { Disks::Linked } else { Disks::Kept },
            macs: Inheritance::New,
            serial_number: Inheritance::New,
        })
    }
}

impl Perform for Clone {
    fn perform(self, context: &Context) -> Result<(), Failure> {
        catch_interruptions();
        let mode = self.undertaking.mode();
        let mut host = VmHost::open_for_guests(mode)?;
        let source = host.guest(&self.guest.clone().into())?;
        let request = self.request();
        if mode == Mode::Apply && stores_may_fall_silent(&source, &request) {
            // No connection to the registry outlives a fork.
            drop(host);
            match deputy::appoint() {
                Ok(Side::Done(status)) => std::process::exit(status.into()),
                Ok(Side::Left(interruption)) => {
                    return Err(Failure::interrupted(
                        interruption,
                        &left(&self.new_name, &request),
                    ));
                }
                // Without a second process it is as good as its stores.
                Ok(Side::Deputy) | Err(_) => {}
            }
            host = VmHost::open_for_guests(mode)?;
        }
        for warning in self.options.guest.warnings() {
            context.say.warning(Some(&self.new_name), &warning);
        }
        let force = if self.force { Force::Yes } else { Force::No };
        let actor =
            context.actor(self.undertaking.operation.reason.clone()).calling(self.guest.name());
        let mut line = ProgressLine::new(context.say.command());
        let cloned = clone(&mut host, &actor, &source, &request, force, mode, &mut |stage| {
            if let Some(silence) = stage.silence {
                line.erase();
                context.say.note(&silence.to_string());
            }
            line.show(stage.from, stage.progress.done, stage.progress.whole);
        });
        drop(line);
        let cloned = cloned.or_else(|refusal| refused(&self.new_name, refusal))?;
        context.say.problems(&self.new_name, &cloned.problems);
        if mode == Mode::DryRun {
            dry_run::print_out(&cloned.fields, self.undertaking.json)?;
            return dry_run::verdict(&cloned.problems);
        }
        tell_copies(context, &cloned);
        done(&format!("guest '{}' is made already", self.new_name))
    }
}

/// What is to be told where a store holds whoever was at it: he may have come to the end, and nobody can ask him.
fn left(name: &GuestName, request: &CloneRequest) -> String {
    let devices: Vec<&str> = request.devices_written().collect();
    let overwritten = match devices.is_empty() {
        true => String::new(),
        false => {
            format!(", the content of '{}' may be partly overwritten", devices.join("' and '"))
        }
    };
    format!(
        "a store does not answer{overwritten}, and whether guest '{name}' is made `hpvmstatus -P {name}` tells; when the store answers, `hpvm doctor --repair` brings it to its end or takes it back"
    )
}

/// In the words of A.03.50, once for each device; which it was stands where that printed the records of dd.
fn tell_copies(context: &Context, cloned: &Cloned) {
    for copied in cloned.copied.iter().filter(|copied| copied.how == How::Copy) {
        let Copied { address, to, .. } = copied;
        context.say.note(&format!("the device at {address} is copied to {}", to.path));
        context.say.note("Virtual storage cloned successfully.");
    }
}
