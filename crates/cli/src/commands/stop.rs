//! hpvmstop: stops one guest or all.

use crate::args::{Operation, StopTarget};
use crate::dispatch::{Context, Perform};
use crate::dry_run::NOTHING;
use crate::exit::{About, Failure};
use crate::messages::Volume;
use crate::output::print;
use hpvm_host::signals;
use hpvm_model::GuestConfig;
use hpvm_operations::VmHost;
use hpvm_operations::stop::{Before, How, losses, stop};

use super::{agreed, catch_interruptions, refused};

/// Stop a guest
///
/// Without -g the guest stops at once, as if its power failed. With -g its operating system is asked to shut down, again
/// while nothing happens, for five minutes at most (HPVMSTOP seconds if hpvmconf says so), or two while no operating system
/// listens. When it does not, the guest runs on and the answer says whether there is no operating system yet, whether it did not
/// react, whether it is still shutting down, or what holds the guest, such as a full disk.
#[derive(Debug, clap::Parser)]
pub struct Stop {
    #[command(flatten)]
    pub target: StopTarget,

    /// Like a power cut; the default
    #[arg(short = 'h', long, conflicts_with = "graceful")]
    pub hard: bool,

    /// By the guest's own shutdown
    #[arg(short = 'g', long)]
    pub graceful: bool,

    /// Ask nothing
    #[arg(short = 'F', long)]
    pub force: bool,

    /// Say nothing when it goes well
    #[arg(short = 'q', visible_short_alias = 'Q', long)]
    pub quiet: bool,

    /// Check only: print what would be stopped
    #[arg(long)]
    pub dry_run: bool,

    #[command(flatten)]
    pub operation: Operation,
}

impl Perform for Stop {
    fn perform(self, context: &Context) -> Result<(), Failure> {
        catch_interruptions();
        let mut host = VmHost::open_to_end_guests()?;
        let guests = match &self.target {
            StopTarget::Guest(selector) => vec![host.guest(&selector.clone().into())?],
            StopTarget::All => running(&host)?,
        };
        if guests.is_empty() && self.dry_run {
            return Ok(print(NOTHING)?);
        }
        let mut worst = Ok(());
        for config in guests {
            if let Some(interruption) = signals::interrupted() {
                return Err(Failure::interrupted(interruption, "what was not stopped yet runs on"));
            }
            match self.stop_one(context, &mut host, &config) {
                Ok(()) => {}
                Err(failure @ Failure::Interrupted { .. }) => return Err(failure),
                Err(failure) => worst = self.next_or_end(context, failure),
            }
        }
        worst
    }
}

impl Stop {
    fn stop_one(
        &self,
        context: &Context,
        host: &mut VmHost,
        config: &GuestConfig,
    ) -> Result<(), Failure> {
        let volume = if self.quiet { Volume::Quiet } else { Volume::Normal };
        let say = context.say.at(volume);
        if self.dry_run {
            let what = if host.runs(config) { "would be stopped" } else { "is off already" };
            return Ok(print(&format!("'{}' {what}\n", config.name))?);
        }
        let question = format!("Stop the virtual machine '{}'?", config.name);
        if !self.force && host.runs(config) {
            for loss in losses(host, config) {
                let text = format!("{loss}; `hpvm why {}` says how to save it", config.name);
                context.say.warning(Some(&config.name), &text);
            }
            agreed(context.say.ask(&question)).about(&config.name)?;
        }
        let how = match self.graceful {
            true => How::Graceful { at_most: host.conf.stop_bound()? },
            false => How::Hard,
        };
        let called = match &self.target {
            StopTarget::Guest(selector) => selector.name(),
            StopTarget::All => None,
        };
        let actor = context.actor(self.operation.reason.clone()).calling(called);
        let mut progress = |text: &str| match self.target {
            StopTarget::Guest(_) => say.note(text),
            StopTarget::All => say.note(&format!("guest '{}': {text}", config.name)),
        };
        let stopped = stop(host, &actor, config, how, &mut progress)
            .or_else(|refusal| refused(&config.name, refusal))?;
        if let Some(left) = &stopped.left {
            context.say.warning(Some(&config.name), &left.text);
        }
        if stopped.before == Before::Off {
            say.note(&format!("Guest '{}' is off already", config.name));
        }
        Ok(())
    }

    /// With -a one guest that cannot be stopped does not keep the others running.
    fn next_or_end(&self, context: &Context, failure: Failure) -> Result<(), Failure> {
        if self.target == StopTarget::All {
            failure.tell(context.say.command());
            return Err(Failure::Said);
        }
        Err(failure)
    }
}

fn running(host: &VmHost) -> Result<Vec<GuestConfig>, Failure> {
    let lines = host.lines()?.into_iter().filter(|line| line.state.is_on());
    lines.map(|line| Ok(host.guest_numbered(line.summary.number)?)).collect()
}
