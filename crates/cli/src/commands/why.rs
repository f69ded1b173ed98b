//! hpvm why: one screen on why a guest does not start or what failed last, with the next command to type.

use crate::args::GuestArgument;
use crate::dispatch::{Context, Perform};
use crate::exit::Failure;

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
        super::not_served()
    }
}
