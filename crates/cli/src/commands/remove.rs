//! hpvmremove: removes a guest, and keeps its folder for a while unless told to purge it.

use crate::args::{Operation, Selector};
use crate::dispatch::{Context, Perform};
use crate::exit::{About, Failure};
use crate::output::print;
use hpvm_model::chain;
use hpvm_operations::remove::{Keep, purge_due, purge_removed, remove};
use hpvm_operations::{Actor, Mode, Refusal, VmHost};

use super::{
    TO_THE_SECOND, agreed, catch_interruptions, done, kept_guest, mode, not_cleared, refused,
};

/// Remove a guest
///
/// The guest must be off. Its folder is kept for HPVMKEEPREMOVED (7 days unless hpvmconf says otherwise), and until then
/// "hpvm undelete" brings the guest back with number and uuid. Files that back its disks are never touched.
/// Of a guest whose folder is missing nothing is kept.
#[derive(Debug, clap::Parser)]
pub struct Remove {
    #[command(flatten)]
    pub guest: Selector,

    /// Ask nothing
    #[arg(short = 'F', long)]
    pub force: bool,

    /// Remove the guest's folder now, so that `hpvm undelete` cannot bring it back
    #[arg(long)]
    pub purge: bool,

    /// Check only: print what would be removed
    #[arg(long)]
    pub dry_run: bool,

    #[command(flatten)]
    pub operation: Operation,
}

impl Perform for Remove {
    fn perform(self, context: &Context) -> Result<(), Failure> {
        catch_interruptions();
        let mut host = VmHost::open_for_guests(mode(self.dry_run))?;
        let actor = context.actor(self.operation.reason.clone()).calling(self.guest.name());
        let config = match host.guest(&self.guest.clone().into()) {
            Err(Refusal::NoGuest { .. }) if self.purge => {
                return self.purge_kept(context, &mut host, &actor);
            }
            found => found?,
        };
        let keep = if self.purge { Keep::Nothing } else { Keep::AsConfigured };
        let mut question = format!("Remove the virtual machine '{}'?", config.name);
        if host.is_without_folder(&config) {
            question.insert_str(0, "Its folder is missing, so nothing of it can be kept. ");
        }
        if !self.force && !self.dry_run {
            // Nobody is asked about what is refused anyway.
            let would = remove(&mut host, &actor, &config, keep, Mode::DryRun);
            let would = host
                .record_failure(&actor, Some(&config), would)
                .or_else(|refusal| refused(&config.name, refusal))?;
            context.say.problems(&config.name, &would.problems);
            agreed(context.say.ask(&question)).about(&config.name)?;
        }
        let removed = remove(&mut host, &actor, &config, keep, mode(self.dry_run))
            .or_else(|refusal| refused(&config.name, refusal))?;
        if self.force || self.dry_run {
            context.say.problems(&config.name, &removed.problems);
        }
        if self.dry_run {
            let what = match removed.kept_until {
                Some(until) => {
                    let until = until.strftime(TO_THE_SECOND);
                    format!("'{}' would be removed and kept until {until}\n", config.name)
                }
                None => format!("'{}' would be removed for good\n", config.name),
            };
            return Ok(print(&what)?);
        }
        // The guest is removed, whatever becomes of those that were before it.
        match purge_due(&mut host, &actor) {
            Ok(cleared) => {
                for (name, result) in &cleared {
                    result.as_ref().err().inspect(|refusal| not_cleared(context, name, refusal));
                }
            }
            Err(refusal) => context.say.warning(None, &chain(&refusal)),
        }
        done(&format!("guest '{}' is removed already", config.name))
    }
}

impl Remove {
    /// `--purge` of a guest that was removed before and is still kept.
    fn purge_kept(
        &self,
        context: &Context,
        host: &mut VmHost,
        actor: &Actor,
    ) -> Result<(), Failure> {
        let kept = kept_guest(host, &self.guest)?;
        let name = &kept.config.name;
        if !self.force && !self.dry_run {
            // Nobody is asked about what is refused anyway.
            let would = purge_removed(host, actor, &kept, Mode::DryRun);
            host.record_failure(actor, Some(&kept.config), would).about(name)?;
            let question = format!("Remove for good what is kept of '{name}'?");
            agreed(context.say.ask(&question)).about(name)?;
        }
        purge_removed(host, actor, &kept, mode(self.dry_run)).about(name)?;
        if self.dry_run {
            return Ok(print(&format!("what is kept of '{name}' would be removed for good\n"))?);
        }
        done(&format!("what was kept of guest '{name}' is removed already"))
    }
}
