//! hpvm doctor: looks for leftovers and damage, explains them, and removes them when asked.

use crate::args::Operation;
use crate::dispatch::{Context, Perform};
use crate::exit::Failure;
use crate::messages::printable;
use crate::output::{must_be_open, print};
use hpvm_host::Root;
use hpvm_model::{GuestConfig, SwitchName, chain};
use hpvm_operations::VmHost;
use hpvm_operations::doctor::{
    Consent, Cure, Doubts, Rebuilding, examine, rebuild, record, rehearse, repair, why_unfound,
};
use hpvm_operations::{Actor, Mode};
use hpvm_registry::{Access, Lost, Rebuilt};

use super::agreed;

/// Find leftovers and damage, and repair them when asked
///
/// Compares the registry, the folders of the guests, what lies in /run and what runs, and looks whether those can be written.
/// Without options it changes nothing.
/// The exit status is 1 when something of hpvm's own is left to mend, which with --repair is what could not be repaired, and when
/// a running guest has lost a disk or medium: what it writes may be lost with it. One that a guest needs that is off, and that is
/// not there, is told too: that is its owner's, and alone it leaves the status at 0.
///
/// --rebuild is for a registry that is lost or damaged; of a sound one it asks first. The device database, the record of what was
/// done and the times of removals are in no folder: they are taken over from the old registry as far as that can be read, and
/// what cannot is told. The old registry is kept under another name. A guest that it knows and whose folder is missing is not
/// brought back: that is asked first.
#[derive(Debug, clap::Parser)]
pub struct Doctor {
    /// Repair what was found
    #[arg(long, conflicts_with = "rebuild")]
    pub repair: bool,

    /// Rebuild the registry from the guests' folders
    #[arg(long)]
    pub rebuild: bool,

    /// --rebuild: ask nothing, even if the registry is sound
    #[arg(short = 'F', long, requires = "rebuild")]
    pub force: bool,

    /// Check only: print what would be repaired, or with --rebuild what would be in the new registry
    #[arg(long)]
    pub dry_run: bool,

    #[command(flatten)]
    pub operation: Operation,
}

impl Perform for Doctor {
    fn perform(self, context: &Context) -> Result<(), Failure> {
        if self.rebuild {
            return self.rebuild(context);
        }
        let repairs = self.repair && !self.dry_run;
        if repairs {
            must_be_open()?;
        }
        let access = if repairs { Access::ReadWrite } else { Access::ReadOnly };
        let mut host = VmHost::open_to_examine(access)?;
        let findings = examine(&host)?;
        if findings.is_empty() {
            return Ok(print("Nothing to complain of.\n")?);
        }
        let actor = context.actor(self.operation.reason);
        let (mut text, mut left, mut cured, mut failed) = (String::new(), 0, false, None);
        for finding in &findings {
            let done = match repairs {
                true => repair(&mut host, &actor, finding),
                false => Ok(None),
            };
            let can_be_repaired = !matches!(finding.cure, Cure::Tell(_) | Cure::Note(_));
            let would_be_repaired = self.repair && self.dry_run && can_be_repaired;
            let is_over = matches!(done, Ok(Some(_))) || matches!(finding.cure, Cure::Note(_));
            left += u32::from(!is_over && !would_be_repaired);
            let what = match (&done, &finding.cure) {
                (Ok(Some(done)), _) => format!("repaired: {done}"),
                // The others are repaired all the same.
                (Err(refusal), _) => format!("not repaired: {}", chain(refusal)),
                (Ok(None), Cure::Tell(command) | Cure::Note(command)) => format!("next: {command}"),
                (Ok(None), _) if would_be_repaired => "would be repaired".into(),
                (Ok(None), _) => "next: hpvm doctor --repair".into(),
            };
            text.push_str(&format!("{}\n  {}\n", printable(&finding.text), printable(&what)));
            cured |= matches!(done, Ok(Some(_)));
            failed = failed.or(done.err());
        }
        if cured || failed.is_some() {
            record(&mut host, &actor, failed.as_ref());
        }
        // Whether or not anybody can read it, all is repaired and recorded.
        print(&text)?;
        if left == 0 { Ok(()) } else { Err(Failure::Said) }
    }
}

impl Doctor {
    fn rebuild(self, context: &Context) -> Result<(), Failure> {
        let root = Root::from_environment()?;
        must_be_open()?;
        if self.dry_run {
            return Ok(print(&told(&root, &rehearse(&root)?, Mode::DryRun))?);
        }
        let actor: Actor = context.actor(self.operation.reason);
        let mut consent = if self.force { Consent::ToAll } else { Consent::To(Doubts::default()) };
        loop {
            match rebuild(&root, &actor, &consent)? {
                Rebuilding::Done(rebuilt) => {
                    return Ok(print(&told(&root, &rebuilt, Mode::Apply))?);
                }
                Rebuilding::Doubtful(doubts) => {
                    agreed(context.say.ask(&question(&root, &doubts)))?;
                    consent = Consent::To(doubts);
                }
            }
        }
    }
}

fn question(root: &Root, Doubts { is_sound, unfound }: &Doubts) -> String {
    let mut text = String::new();
    for config in unfound {
        text.push_str(&format!("{} ", loss(root, config, "would not be brought back")));
    }
    if *is_sound {
        text.push_str("The registry is sound. ");
    }
    text + "Rebuild it all the same?"
}

fn loss(root: &Root, config: &GuestConfig, lost: &str) -> String {
    let GuestConfig { name, number, .. } = config;
    format!("Guest '{name}' (number {number}) {lost}: {}.", why_unfound(root, config))
}

fn told(root: &Root, rebuilt: &Rebuilt, mode: Mode) -> String {
    let (made, taken, lost, not_brought) = match mode {
        Mode::Apply => ("was made", "were taken", "Not brought back", "was not brought back"),
        Mode::DryRun => (
            "would be made",
            "would be taken",
            "Would not be brought back",
            "would not be brought back",
        ),
    };
    let count = |number: usize, what: &str| match number {
        1 => format!("1 {what}"),
        _ => format!("{number} {what}s"),
    };
    let guests = count(rebuilt.guests.len(), "guest");
    let mut text = format!("The registry {made} anew with {guests}");
    if !rebuilt.removed.is_empty() {
        let removed = count(rebuilt.removed.len(), "removed guest");
        text.push_str(&format!(", {removed} still kept"));
    }
    let names: Vec<&str> = rebuilt.switches.iter().map(SwitchName::as_str).collect();
    text.push_str(&match names.is_empty() {
        true => ".\n".to_owned(),
        false => format!(" and the virtual switches {}.\n", names.join(", ")),
    });
    let counts = (rebuilt.entries_count, rebuilt.operations_count);
    if counts != (0, 0) {
        text.push_str(&format!(
            "From the old one {taken} over {} entries of the device database and {} records of what was done.\n",
            counts.0, counts.1
        ));
    }
    for config in &rebuilt.unfound {
        text.push_str(&format!("{}\n", loss(root, config, not_brought)));
    }
    // One damage may have taken several parts.
    for same in rebuilt.lost.chunk_by(|one, other| one.why == other.why) {
        let parts: Vec<String> = same.iter().map(|Lost { part, .. }| part.to_string()).collect();
        text.push_str(&format!("{lost}: {}: {}\n", parts.join("; "), same[0].why));
    }
    if let Some(damaged) = &rebuilt.damaged {
        text.push_str(&format!("The old one is kept as {}.\n", damaged.display()));
    }
    for skipped in &rebuilt.skipped {
        text.push_str(&format!("Left out: '{}': {}\n", skipped.config.name, skipped.why));
    }
    text
}
