//! hpvm doctor: looks for leftovers and damage, explains them, and removes them when asked.

use crate::args::Operation;
use crate::dispatch::{Context, Perform};
use crate::exit::Failure;
use crate::messages::printable;
use crate::output::print;
use hpvm_host::Root;
use hpvm_model::{SwitchName, chain};
use hpvm_operations::VmHost;
use hpvm_operations::doctor::{Cure, examine, rebuild, repair};
use hpvm_registry::{Access, Rebuilt};

/// Find leftovers and damage, and repair them when asked
///
/// Compares the registry, the folders of the guests, what lies in /run and what runs. Without options it changes nothing.
#[derive(Debug, clap::Parser)]
pub struct Doctor {
    /// Repair what was found
    #[arg(long)]
    pub repair: bool,

    /// Rebuild the registry from the guests' folders
    #[arg(long)]
    pub rebuild: bool,

    #[command(flatten)]
    pub operation: Operation,
}

impl Perform for Doctor {
    fn perform(self, context: &Context) -> Result<(), Failure> {
        if self.rebuild {
            let rebuilt = rebuild(&Root::from_environment()?)?;
            return Ok(print(&told(&rebuilt))?);
        }
        let access = if self.repair { Access::ReadWrite } else { Access::ReadOnly };
        let mut host = VmHost::open(access)?;
        let findings = examine(&host)?;
        if findings.is_empty() {
            return Ok(print("Nothing to complain of.\n")?);
        }
        let actor = context.actor(self.operation.reason);
        let mut left = 0;
        for finding in &findings {
            let done = match self.repair {
                true => repair(&mut host, &actor, finding),
                false => Ok(None),
            };
            left += u32::from(!matches!(done, Ok(Some(_))));
            let what = match (&done, &finding.cure) {
                (Ok(Some(done)), _) => format!("repaired: {done}"),
                // The others are repaired all the same.
                (Err(refusal), _) => format!("not repaired: {}", chain(refusal)),
                (Ok(None), Cure::Tell(command)) => format!("next: {command}"),
                (Ok(None), _) => "next: hpvm doctor --repair".into(),
            };
            print(&format!("{}\n  {}\n", printable(&finding.text), printable(&what)))?;
        }
        if left == 0 { Ok(()) } else { Err(Failure::Said) }
    }
}

fn told(rebuilt: &Rebuilt) -> String {
    let mut text = format!("The registry was made anew with {} guests", rebuilt.guests.len());
    let names: Vec<&str> = rebuilt.switches.iter().map(SwitchName::as_str).collect();
    text.push_str(&match names.is_empty() {
        true => ".\n".to_owned(),
        false => format!(" and the virtual switches {}.\n", names.join(", ")),
    });
    if let Some(damaged) = &rebuilt.damaged {
        text.push_str(&format!("The old one is kept as {}.\n", damaged.display()));
    }
    for skipped in &rebuilt.skipped {
        text.push_str(&format!("Left out: '{}': {}\n", skipped.config.name, skipped.why));
    }
    text
}
