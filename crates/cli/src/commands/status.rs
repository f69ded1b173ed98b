//! hpvmstatus: shows guests, one guest, or the VM Host, in the layout asked for.

use clap::ArgGroup;
use hpvm_model::GuestConfig;
use hpvm_operations::VmHost;
use hpvm_operations::processor_use::ProcessorUse;
use hpvm_operations::view::{EVENTS_MAX, Earlier, HostView};
use hpvm_registry::Access;

use crate::args::Selector;
use crate::dispatch::{Context, Perform, version};
use crate::exit::Failure;
use crate::output::print;
use crate::status::{
    Gathered, Moment, Shown, devices, entitlements, events, json, list, list::Listed, machine,
    sections, server, verbose, xml,
};

/// Show guests and the VM Host
///
/// Without options, one line a guest. State is Off, On (EFI) while the firmware runs, On (OS), or On (ATTN) when the guest
/// does not answer or is held still. Tables have the columns of A.03.50. With -P, two sections may follow those of A.03.50: [Run Details]
/// (since when, accelerator, health, how the last run ended) and [Waiting for Next Start] (or Reset or Start); each is there only when it has
/// something to say.
///
/// With -r, Percent Usage is what each vCPU used of one processor, as the entitlement counts, within the sampling interval of half
/// a second; Host percent is the same of all processors of the VM Host, and - stands for what the kernel did not tell. The VM
/// Host sees a guest as a whole, so its vCPUs are shown with equal parts. Cumulative Usage is the processor time since the guest
/// started, in milliseconds.
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

    /// JSON, after docs/schema/status.json; with -s after docs/schema/server.json
    #[arg(long)]
    #[arg(conflicts_with_all = ["verbose", "devices", "entitlements", "events", "version", "xml", "machine"])]
    pub json: bool,
}

/// What there is to gather before it can be printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    /// Summaries of all guests: no more is read than a line shows.
    List,
    /// One guest, complete.
    Guest,
    /// All guests, complete.
    Guests,
    Server,
    /// The guest's log, or without a guest that of the VM Host.
    Events,
    Version,
}

impl Status {
    #[must_use]
    pub fn subject(&self) -> Subject {
        let wants_all = self.verbose || self.entitlements || self.xml || self.machine || self.json;
        match &self.guest {
            _ if self.version => Subject::Version,
            _ if self.server => Subject::Server,
            _ if self.events => Subject::Events,
            Some(_) => Subject::Guest,
            None if wants_all => Subject::Guests,
            None => Subject::List,
        }
    }

    /// One guest in the layout asked for.
    pub fn guest_text(&self, guest: &Gathered, mhz: u32) -> Result<String, serde_json::Error> {
        let moment = if self.next { Moment::NextStart } else { Moment::Now };
        let shown = Shown::new(&guest.view, moment, mhz);
        Ok(match self {
            Status { json: true, .. } => json::guests(std::slice::from_ref(&guest.view), mhz)?,
            Status { xml: true, .. } => xml::render(&[shown]),
            Status { machine: true, .. } => machine::render(&[shown]),
            Status { entitlements: true, .. } => entitlements::one(&shown, &guest.usage, mhz),
            Status { devices: true, .. } => devices::render(&shown),
            Status { verbose: true, .. } => verbose::one(&shown),
            _ => sections::render(&shown),
        })
    }

    /// All guests in the layout asked for, which is one that needs them complete.
    pub fn guests_text(&self, guests: &[Gathered], mhz: u32) -> Result<String, serde_json::Error> {
        let shown = || guests.iter().map(|guest| Shown::new(&guest.view, Moment::Now, mhz));
        Ok(match self {
            Status { json: true, .. } => json::guests(guests.iter().map(|g| &g.view), mhz)?,
            Status { xml: true, .. } => xml::render(&shown().collect::<Vec<_>>()),
            Status { machine: true, .. } => machine::render(&shown().collect::<Vec<_>>()),
            Status { entitlements: true, .. } => {
                let usages = guests.iter().map(|guest| guest.usage);
                entitlements::all(&shown().zip(usages).collect::<Vec<_>>())
            }
            _ => verbose::all(&shown().collect::<Vec<_>>()),
        })
    }

    pub fn server_text(&self, host: &HostView) -> Result<String, serde_json::Error> {
        if self.json { json::server(host) } else { Ok(server::render(host)) }
    }
}

impl Perform for Status {
    fn perform(self, context: &Context) -> Result<(), Failure> {
        if self.version {
            return Ok(print(&version())?);
        }
        let host = VmHost::open(Access::ReadOnly)?;
        // Who may not take guests over still sees them.
        let _ = host.adopt_orphans();
        Ok(print(&self.text(context, &host)?)?)
    }
}

impl Status {
    fn text(&self, context: &Context, host: &VmHost) -> Result<String, Failure> {
        let mhz = host.processor_mhz();
        Ok(match self.subject() {
            Subject::List => {
                let lines = host.lines()?;
                list::render(lines.iter().map(|l| Listed::new(&l.summary, l.state)))
            }
            Subject::Guest => {
                let guests = self.gathered(host, vec![self.selected(host)?]);
                let texts = guests.iter().map(|guest| self.guest_text(guest, mhz));
                texts.collect::<Result<String, _>>()?
            }
            Subject::Guests => self.guests_text(&self.gathered(host, host.registry.all()?), mhz)?,
            Subject::Server => self.server_text(&host.server()?)?,
            Subject::Events => match self.guest {
                Some(_) => events::render(&host.guest_log(&self.selected(host)?)?),
                None => {
                    let (log, earlier) = host.operations_log()?;
                    if earlier == Earlier::LeftOut {
                        context.say.note(&format!(
                            "earlier operations than the last {EVENTS_MAX} are not shown"
                        ));
                    }
                    events::render(log.as_bytes())
                }
            },
            Subject::Version => version(),
        })
    }

    /// What guests use of the processors takes a moment to see, and is looked for only where it is shown.
    fn gathered(&self, host: &VmHost, configs: Vec<GuestConfig>) -> Vec<Gathered> {
        let usages = match self.entitlements {
            true => host.processor_use(&configs.iter().map(|c| c.number).collect::<Vec<_>>()),
            false => vec![ProcessorUse::default(); configs.len()],
        };
        let guests = configs.into_iter().zip(usages);
        guests.map(|(config, usage)| Gathered { view: host.view(config), usage }).collect()
    }

    fn selected(&self, host: &VmHost) -> Result<GuestConfig, Failure> {
        match &self.guest {
            Some(selector) => Ok(host.guest(&selector.clone().into())?),
            None => Err(Failure::Said),
        }
    }
}
