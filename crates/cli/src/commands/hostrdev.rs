//! hpvmhostrdev: the list of what the VM Host itself uses.

use clap::ArgGroup;
use hpvm_model::Choice;
use hpvm_operations::devdb::host_devices::{Scan, clear, restore, set_at_start, update};
use hpvm_operations::devdb::repair::withheld_stores;
use hpvm_operations::{Mode, VmHost};

use crate::args::Operation;
use crate::dispatch::{Context, Perform, usage};
use crate::entries;
use crate::exit::Failure;
use crate::output::print;

use super::{catch_interruptions, done, mode};

/// List what the VM Host itself uses as restricted
///
/// Adds an rdev entry with AUTORDEV=YES for each device that holds a file system, swap space, a volume or a member of one that
/// this VM Host uses, that /etc/fstab, /etc/crypttab, an enabled mount or swap unit of systemd or the list of ZFS's pools names, or that firmware starts it from, and removes those that it made when that is over. Entries made by hand stay as they are, and so do
/// those of which somebody said something (PRESERVE, ALLOW). Without options it also reads the devices that no guest has,
/// and restricts those that say they belong to something else. `hpvm autostart` runs it with -u.
///
/// The list informs: whether the VM Host uses a device is looked at anew whenever a guest is to get it.
#[derive(Debug, clap::Parser)]
#[command(group(ArgGroup::new("task").multiple(false).args([
    "update", "usage", "disable", "enable", "delete", "restore",
])))]
pub struct Hostrdev {
    /// Update from what the kernel knows, without reading devices
    #[arg(short = 'u', long)]
    pub update: bool,

    /// Print the usage in one line
    #[arg(short = 'h', long)]
    pub usage: bool,

    /// Do not run when the VM Host starts
    #[arg(short = 'D', long)]
    pub disable: bool,

    /// Run when the VM Host starts; the default
    #[arg(short = 'E', long)]
    pub enable: bool,

    /// Remove the entries it made
    #[arg(short = 'd', long)]
    pub delete: bool,

    /// Restore the entries it had before its last change
    #[arg(short = 'r', long)]
    pub restore: bool,

    /// Check only: print which entries would come and go
    #[arg(long)]
    pub dry_run: bool,

    #[command(flatten)]
    pub operation: Operation,
}

impl Perform for Hostrdev {
    fn perform(self, context: &Context) -> Result<(), Failure> {
        if self.usage {
            return Ok(print(&usage("hostrdev"))?);
        }
        catch_interruptions();
        let mut host = VmHost::open_in(mode(self.dry_run))?;
        let actor = context.actor(self.operation.reason);
        let mode = mode(self.dry_run);
        if self.disable || self.enable {
            let at_start = if self.enable { Choice::Yes } else { Choice::No };
            set_at_start(&mut host, &actor, at_start, mode)?;
            if mode == Mode::DryRun {
                let not = if self.enable { "" } else { "not " };
                print(&format!("it would {not}run when the VM Host starts\n"))?;
            }
            return told(mode);
        }
        let update = if self.delete {
            clear(&mut host, &actor, mode)?
        } else if self.restore {
            restore(&mut host, &actor, mode)?
        } else {
            let scan = if self.update { Scan::Known } else { Scan::Everything };
            update(&mut host, &actor, scan, mode)?
        };
        print(&entries::update(&update))?;
        if !update.added.is_empty() {
            for (guest, text) in withheld_stores(&host)? {
                let text = format!("it {text}; `hpvmdevmgmt -r` tells what to do");
                context.say.warning(Some(&guest), &text);
            }
        }
        told(mode)
    }
}

fn told(mode: Mode) -> Result<(), Failure> {
    match mode {
        Mode::Apply => done("what was asked for is done already"),
        Mode::DryRun => Ok(()),
    }
}
