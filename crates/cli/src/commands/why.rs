//! hpvm why: one screen on why a guest does not start or what failed last, with the next command to type.

use crate::args::GuestArgument;
use crate::dispatch::{Context, Perform};
use crate::exit::Failure;
use crate::messages::printable;
use crate::output::print;
use hpvm_model::Remedy;
use hpvm_operations::VmHost;
use hpvm_operations::why::why;
use hpvm_registry::Access;

/// Tell why a guest does not start or what failed last, and what to do
///
/// One screen: what is wrong, since when, and the next command to type. It never names a command that stops another guest or
/// drops a device.
#[derive(Debug, clap::Parser)]
pub struct Why {
    #[command(flatten)]
    pub guest: GuestArgument,
}

impl Perform for Why {
    fn perform(self, _context: &Context) -> Result<(), Failure> {
        let host = VmHost::open(Access::ReadOnly)?;
        let GuestArgument(selector) = self.guest;
        let config = host.guest(&selector.into())?;
        // Where it cannot be taken over, it is told that nobody supervises it.
        let _ = host.adopt_orphan(&config);
        let why = why(&host, &config)?;
        let mut text = format!("{}\n", why.headline);
        let told = why.causes.iter().map(|cause| ("because", cause));
        for (word, sentence) in told.chain(why.notes.iter().map(|note| ("note:", note))) {
            text.push_str(&format!("  {word} {}\n", printable(sentence)));
        }
        if let Some(Remedy { ask, command }) = &why.remedy {
            if let Some(ask) = ask {
                text.push_str(&format!("\nFirst: {}\n", printable(ask)));
            }
            text.push_str(&format!("Next:  {command}\n"));
        }
        Ok(print(&text)?)
    }
}
