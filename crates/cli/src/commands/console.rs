//! hpvmconsole: the virtual console of a guest.

use crate::args::Selector;
use crate::dispatch::{Context, Perform};
use crate::exit::Failure;

/// Use a guest's virtual console
#[derive(Debug, clap::Parser)]
pub struct Console {
    #[command(flatten)]
    pub guest: Selector,

    /// Run one command of the console, such as "pc -off", and end
    #[arg(short = 'c', long, value_name = "COMMAND")]
    pub command: Option<String>,

    /// Nothing around the command's output
    #[arg(short = 'q', long)]
    pub quiet: bool,
}

impl Perform for Console {
    fn perform(self, _context: &Context) -> Result<(), Failure> {
        super::not_served()
    }
}
