//! hpvmconsole: the virtual console of a guest.

use crate::args::Selector;
use crate::dispatch::{Context, Perform};
use crate::exit::Failure;

/// Use a guest's virtual console
///
/// Opens the console's main menu; CO goes on to the guest's serial console with what it printed before, Ctrl-B comes back to
/// the menu, X there ends the session. The guest runs on. Of several sessions one types and the others watch.
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
