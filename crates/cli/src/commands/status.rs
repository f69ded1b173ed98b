//! hpvmstatus: shows guests, one guest, or the VM Host, in the layout asked for.

use clap::ArgGroup;

use crate::args::Selector;
use crate::dispatch::{Context, Perform, version};
use crate::exit::Failure;
use crate::output::print;

/// Show guests and the VM Host
#[derive(Debug, clap::Parser)]
#[command(group = ArgGroup::new("layout").multiple(false))]
#[command(mut_group("guest", |group| group.required(false)))]
pub struct Status {
    #[command(flatten)]
    pub guest: Option<Selector>,

    /// Every field, as lines of key and value
    #[arg(short = 'V', long, group = "layout")]
    pub verbose: bool,

    /// Devices as resource statements, ready for -a, -m and -d
    #[arg(short = 'd', long, group = "layout", requires = "guest")]
    pub devices: bool,

    /// As it will be at the next start; also with -V and -d
    #[arg(short = 'D', long, requires = "guest")]
    #[arg(conflicts_with_all = ["entitlements", "server", "events", "version", "xml", "machine", "json"])]
    pub next: bool,

    /// Entitlements and use of processors
    #[arg(short = 'r', long, group = "layout")]
    pub entitlements: bool,

    /// Resources of the VM Host
    #[arg(short = 's', long, group = "layout", conflicts_with = "guest")]
    pub server: bool,

    /// The event log of the VM Host, or of the guest
    #[arg(short = 'e', long, group = "layout")]
    pub events: bool,

    /// The version of hpvm
    #[arg(short = 'v', long, group = "layout", conflicts_with = "guest")]
    pub version: bool,

    /// XML
    #[arg(short = 'X', long, group = "layout")]
    pub xml: bool,

    /// One line a guest, fields between colons
    #[arg(short = 'M', long, group = "layout")]
    pub machine: bool,

    /// JSON, after docs/schema/status.json
    #[arg(long, group = "layout")]
    pub json: bool,
}

impl Perform for Status {
    fn perform(self, _context: &Context) -> Result<(), Failure> {
        if self.version {
            return Ok(print(&version())?);
        }
        super::not_served()
    }
}
