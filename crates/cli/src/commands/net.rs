//! hpvmnet: virtual switches, listed, made, changed, booted, halted and deleted; the rules and counters of their ports.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use clap::ArgGroup;
use hpvm_model::network::{PortChange, SwitchError};
use hpvm_model::{
    Forward, InterfaceName, PortNumber, SwitchName, SwitchNumber, SwitchState, Vswitch, Wire,
};
use hpvm_operations::network::capture::{self, Captured, EndedBy};
use hpvm_operations::network::switches::{self, Changed, SwitchRequest};
use hpvm_operations::network::view::SwitchView;
use hpvm_operations::network::{SwitchRefused, ports, rules};
use hpvm_operations::{Mode, Refusal, VmHost};
use hpvm_plan::hotplug::Force;
use hpvm_registry::{Access, SwitchSelector};

use crate::args::Operation;
use crate::dispatch::{Context, Perform, version};
use crate::dry_run::NOTHING;
use crate::exit::Failure;
use crate::output::print;
use crate::switch::{Counting, Ports, blocks, interfaces, json, list, machine, macs, xml};

use super::{agreed, catch_interruptions, done, mode};

/// Show and change virtual switches
///
/// Without options, one line a switch; with -S or -s that of one, and its ports. A switch is made with -c, halted, and
/// forwards once it is booted with -b. Guests get ports by hpvmcreate and hpvmmodify: -a network:lan::vswitch:NAME. While a
/// switch is halted, its guests run on, and see their links go down after one to two seconds; traffic goes on by itself when it
/// is back, as while its process is replaced. The switch localnet always exists.
#[derive(Debug, clap::Parser)]
#[command(group = ArgGroup::new("which").multiple(false))]
#[command(group = ArgGroup::new("what").multiple(true))]
#[command(group = ArgGroup::new("deed").multiple(false))]
#[command(group = ArgGroup::new("layout").multiple(false).conflicts_with("deed"))]
pub struct Net {
    /// The switch, by name
    #[arg(short = 'S', long = "name", value_name = "NAME", group = "which")]
    pub name: Option<SwitchName>,

    /// The switch, by number
    #[arg(short = 's', long, value_name = "NUMBER", group = "which")]
    pub number: Option<SwitchNumber>,

    /// Create a switch called NAME
    #[arg(short = 'c', long, group = "deed", requires = "name", conflicts_with = "number")]
    pub create: bool,

    /// Change the switch: its name, its wire, its port forwards
    #[arg(short = 'C', long, group = "deed", requires = "which", requires = "what")]
    pub change: bool,

    /// With -C: rename it; guests keep their ports
    #[arg(short = 'N', long, value_name = "NAME", group = "what", requires = "change")]
    #[arg(conflicts_with_all = ["create", "boot", "halt", "reset", "delete", "port_change"])]
    pub new_name: Option<SwitchName>,

    /// With -c and -C: the network interface that is the wire, by its name; a number N means lanN
    #[arg(short = 'n', long, value_name = "INTERFACE", group = "what", requires = "deed")]
    #[arg(conflicts_with_all = ["wire", "boot", "halt", "reset", "delete", "port_change"])]
    pub nic: Option<InterfaceName>,

    /// With -c and -C: another wire: nat, tap:NAME for talk with the VM Host, or none; the tap is made when the switch is booted,
    /// keeps its MAC address, and gets its IP address from you (ip-address(8))
    #[arg(long, value_name = "WIRE", group = "what", requires = "deed", value_parser = wire_or_none)]
    #[arg(conflicts_with_all = ["boot", "halt", "reset", "delete", "port_change"])]
    pub wire: Option<Wire>,

    /// With a NAT wire: a port of the VM Host that leads to a guest, `tcp|udp:[ADDRESS:]PORT:GUESTADDRESS:PORT`; may be
    /// repeated, and replaces those there were; none removes them
    #[arg(long, value_name = "FORWARD", group = "what", requires = "deed")]
    #[arg(conflicts_with_all = ["boot", "halt", "reset", "delete", "port_change"])]
    pub forward: Vec<AskedForward>,

    /// Boot the switch
    #[arg(short = 'b', long, group = "deed", requires = "which")]
    pub boot: bool,

    /// Halt the switch; its guests run on without a link
    #[arg(short = 'h', long, group = "deed", requires = "which")]
    pub halt: bool,

    /// Halt the switch and boot it again
    #[arg(short = 'r', long, group = "deed", requires = "which")]
    pub reset: bool,

    /// Delete the switch
    #[arg(short = 'd', long, group = "deed", requires = "which")]
    pub delete: bool,

    /// Change a port: portid:N:vlanid:{ID|none}, …:trunk:LIST, …:rate:IN[/BURST],OUT[/BURST] in bits a second and
    /// bytes with K, M or G, such as 100M,20M, …:spoof:{on|off},
    /// …:addr:IP,…, …:mirror:{PORT|none}, …:isolated:{on|off},
    /// …:lanboot:{dhcp|none|ADDRESS/PREFIX[,gateway=IP],server=IP,file=NAME}; may be repeated, all are made or none. A port that
    /// no guest has yet keeps its rules for whoever gets it
    #[arg(short = 'u', long, value_name = "CHANGE", group = "deed", requires = "which")]
    pub port_change: Vec<PortChange>,

    /// One port, or all
    #[arg(short = 'p', long, value_name = "PORT|all", requires = "which")]
    #[arg(conflicts_with_all = ["create", "change", "boot", "halt", "reset", "delete", "port_change"])]
    pub port: Option<AskedPort>,

    /// The counters of each port; Inbound is what the guest receives, Outbound what it sends
    #[arg(short = 'A', long, requires = "which", conflicts_with = "deed")]
    pub statistics: bool,

    /// With -A: begin the counters anew after showing them
    #[arg(short = 'z', long, requires = "statistics", conflicts_with = "deed")]
    pub zero: bool,

    /// Every field, as lines of key and value; of a port's rules those that differ from every port's: the spoof guard is on where
    /// nothing is said of it
    #[arg(short = 'V', long, group = "layout")]
    pub verbose: bool,

    /// The version of hpvm
    #[arg(short = 'v', long, group = "layout", conflicts_with = "which")]
    pub version: bool,

    /// XML, without counters
    #[arg(short = 'X', long, group = "layout", conflicts_with = "statistics")]
    pub xml: bool,

    /// One line a switch, fields between colons
    #[arg(short = 'M', long, group = "layout", conflicts_with_all = ["port", "statistics"])]
    pub machine: bool,

    /// JSON, after docs/schema/vswitches.json, or interfaces.json
    #[arg(long, group = "layout")]
    pub json: bool,

    /// The network interfaces of the VM Host, and which of them can be the wire of a switch
    #[arg(long, conflicts_with_all = ["which", "deed", "verbose", "version", "xml", "machine", "force"])]
    pub interfaces: bool,

    /// Where the switch knows MAC addresses to be
    #[arg(long, group = "layout", requires = "which", conflicts_with_all = ["port", "statistics"])]
    pub macs: bool,

    /// Write the frames of the port to a file that tcpdump and Wireshark read, until interrupted
    #[arg(
        long,
        value_name = "FILE",
        group = "layout",
        requires = "port",
        conflicts_with = "statistics"
    )]
    pub capture: Option<PathBuf>,

    /// Ask nothing, and delete a switch that guests have ports of
    #[arg(short = 'F', long)]
    pub force: bool,

    /// Say nothing that is no error
    #[arg(short = 'Q', long)]
    pub quiet: bool,

    /// Check only: refuse what would be refused, and print what would be done
    #[arg(long, requires = "deed")]
    pub dry_run: bool,

    #[command(flatten)]
    pub operation: Operation,
}

/// What `--wire` takes.
fn wire_or_none(text: &str) -> Result<Wire, SwitchError> {
    if text == "none" { Ok(Wire::None) } else { text.parse() }
}

/// What `--forward` takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AskedForward {
    None,
    One(Forward),
}

impl FromStr for AskedForward {
    type Err = hpvm_model::network::ForwardError;
    fn from_str(text: &str) -> Result<AskedForward, Self::Err> {
        match text {
            "none" => Ok(AskedForward::None),
            forward => forward.parse().map(AskedForward::One),
        }
    }
}

/// What `-p` takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AskedPort {
    All,
    One(PortNumber),
}

impl FromStr for AskedPort {
    type Err = hpvm_model::network::PortError;
    fn from_str(text: &str) -> Result<AskedPort, Self::Err> {
        match text {
            "all" => Ok(AskedPort::All),
            number => number.parse().map(AskedPort::One),
        }
    }
}

impl Perform for Net {
    fn perform(self, context: &Context) -> Result<(), Failure> {
        if self.version {
            return Ok(print(&version())?);
        }
        if self.interfaces {
            return self.show_interfaces();
        }
        if self.create {
            return self.create(context);
        }
        match self.selector() {
            Some(selector) if self.is_deed() => self.act(context, &selector),
            Some(selector) => self.show_one(context, &selector),
            None => self.show_all(context),
        }
    }
}

impl Net {
    fn selector(&self) -> Option<SwitchSelector> {
        let name = self.name.clone().map(SwitchSelector::Name);
        name.or_else(|| self.number.map(SwitchSelector::Number))
    }

    fn is_deed(&self) -> bool {
        self.change
            || self.boot
            || self.halt
            || self.reset
            || self.delete
            || !self.port_change.is_empty()
    }

    fn request(&self) -> Result<SwitchRequest, Failure> {
        if self.forward.len() > 1 && self.forward.contains(&AskedForward::None) {
            return Err(NoneAmongForwards.into());
        }
        let nic = self.nic.clone().map(Wire::Nic);
        let forwards = self.forward.iter().filter_map(|asked| match asked {
            AskedForward::None => None,
            AskedForward::One(forward) => Some(*forward),
        });
        Ok(SwitchRequest {
            name: self.new_name.clone(),
            wire: nic.or_else(|| self.wire.clone()),
            forwards: (!self.forward.is_empty()).then(|| forwards.collect()),
        })
    }

    fn mode(&self) -> Mode {
        mode(self.dry_run)
    }

    fn create(&self, context: &Context) -> Result<(), Failure> {
        let Some(name) = &self.name else { return Err(Failure::Said) };
        catch_interruptions();
        let mut host = VmHost::open_or_found(self.mode())?;
        let actor = context.actor(self.operation.reason.clone());
        let request = self.request()?;
        let made = switches::create(&mut host, &actor, name, &request, self.mode());
        self.tell(context, &self.recorded(&mut host, context, made)?);
        self.done(name, "made")
    }

    fn act(&self, context: &Context, selector: &SwitchSelector) -> Result<(), Failure> {
        catch_interruptions();
        let mut host = VmHost::open_in(self.mode())?;
        let switch = switches::named(&host, selector)?;
        let actor = context.actor(self.operation.reason.clone());
        let (host, mode) = (&mut host, self.mode());
        let changed = match self.port_change.as_slice() {
            [] if self.boot => switches::set_state(host, &actor, selector, SwitchState::Up, mode),
            [] if self.halt => {
                self.confirm(context, "Halt", &switch.name)?;
                switches::set_state(host, &actor, selector, SwitchState::Halted, mode)
            }
            [] if self.reset => {
                self.confirm(context, "Reset", &switch.name)?;
                switches::reset(host, &actor, selector, mode)
            }
            [] if self.delete => {
                let force = if self.force { Force::Yes } else { Force::No };
                let checked = switches::delete(host, &actor, selector, force, Mode::DryRun);
                self.recorded(host, context, checked)?;
                self.confirm(context, "Delete", &switch.name)?;
                switches::delete(host, &actor, selector, force, mode).map(|switch| Changed {
                    before: None,
                    switch,
                    problems: Vec::new(),
                })
            }
            [] => switches::change(host, &actor, selector, &self.request()?, mode),
            changes => rules::change(host, &actor, selector, changes, mode),
        };
        let changed = self.recorded(host, context, changed)?;
        self.tell(context, &changed);
        self.tell_free_ports(context, host, &changed);
        // What is reset is so anew, whatever it is.
        match mode {
            Mode::DryRun if changed.is_nothing() && (self.boot || self.halt) => {
                self.is_so(&changed)
            }
            Mode::DryRun if changed.is_nothing() && !self.reset => Ok(print(NOTHING)?),
            _ => self.done(&switch.name, if self.delete { "deleted" } else { "changed" }),
        }
    }

    /// A boot or a halt of what is booted or halted makes good what another command was ended before.
    fn is_so(&self, changed: &Changed) -> Result<(), Failure> {
        let Vswitch { name, state, .. } = &changed.switch;
        let text = format!(
            "virtual switch '{name}' is {} already; whoever was not told so would be\n",
            state.as_str()
        );
        if self.quiet { Ok(()) } else { Ok(print(&text)?) }
    }

    /// Rules may come before the guest, and a wrong number is easily typed.
    fn tell_free_ports(&self, context: &Context, host: &VmHost, changed: &Changed) {
        if self.port_change.is_empty() || self.quiet {
            return;
        }
        let has = match self.mode() {
            Mode::Apply => "has",
            Mode::DryRun => "would have",
        };
        // The rules are made, whether or not it can be seen whose they are.
        for port in rules::waiting(host, changed, &self.port_change).unwrap_or_default() {
            context.say.note(&format!(
                "no guest has port {port} of virtual switch '{}'; the next one that gets it {has} these rules",
                changed.switch.name
            ));
        }
        let unheard = rules::unheard_mirrors(host, changed, &self.port_change).unwrap_or_default();
        for port in unheard {
            context.say.note(&format!(
                "no guest has port {port} of virtual switch '{}'; what is mirrored there gets lost until one has",
                changed.switch.name
            ));
        }
    }

    fn done(&self, name: &SwitchName, what: &str) -> Result<(), Failure> {
        let deed = match () {
            () if self.boot => "booted",
            () if self.halt => "halted",
            () if self.reset => "reset",
            () => what,
        };
        match self.mode() {
            Mode::Apply => done(&format!("virtual switch '{name}' is {what} already")),
            Mode::DryRun if self.quiet => Ok(()),
            Mode::DryRun => Ok(print(&format!("virtual switch '{name}' would be {deed}\n"))?),
        }
    }

    fn confirm(&self, context: &Context, deed: &str, name: &SwitchName) -> Result<(), Failure> {
        let question = format!("{deed} the vswitch '{name}'?");
        let asks = !self.force && !self.dry_run;
        match asks {
            true => agreed(context.say.ask_unless_no(&question)),
            false => Ok(()),
        }
    }

    /// Leaves a record of what was refused.
    fn recorded<T>(
        &self,
        host: &mut VmHost,
        context: &Context,
        result: Result<T, Refusal>,
    ) -> Result<T, Failure> {
        if let (Err(refusal), Mode::Apply) = (&result, self.mode()) {
            let actor = context.actor(self.operation.reason.clone());
            // The refusal is the thing to tell.
            let _ = host.registry.record(&actor.failed(None, refusal));
        }
        Ok(result?)
    }

    fn tell(&self, context: &Context, changed: &Changed) {
        for problem in changed.problems.iter().filter(|_| !self.quiet) {
            context.say.warning(None, &problem.text);
        }
    }

    fn show_interfaces(&self) -> Result<(), Failure> {
        let all = VmHost::open(Access::ReadOnly)?.interfaces()?;
        Ok(print(&if self.json { interfaces::json(&all)? } else { interfaces::table(&all) })?)
    }

    fn show_all(&self, context: &Context) -> Result<(), Failure> {
        let host = VmHost::open(Access::ReadOnly)?;
        // Who may not change switches still sees them.
        let _ = ports::tidy(&host);
        self.show(context, &host, host.switches()?, Ports::All)
    }

    fn show_one(&self, context: &Context, selector: &SwitchSelector) -> Result<(), Failure> {
        let access = if self.zero { Access::ReadWrite } else { Access::ReadOnly };
        let host = VmHost::open(access)?;
        // Who may not change switches still sees them.
        let _ = ports::tidy(&host);
        let switch = switches::named(&host, selector)?;
        let port = match self.port {
            Some(AskedPort::One(port)) => Some(port),
            Some(AskedPort::All) | None => None,
        };
        if let Some(file) = &self.capture {
            let port = port.ok_or(CaptureOfAll)?;
            return capture(context, &host, selector, port, file);
        }
        if self.macs {
            return Ok(print(&macs::render(&switches::stations(&host, selector)?))?);
        }
        if self.statistics {
            host.refresh(&switch);
        }
        let mut views = host.switches()?;
        views.retain(|view| view.switch.number == switch.number);
        if let Some(port) = port {
            views.iter_mut().for_each(|view| view.ports.retain(|one| one.port == port));
            if views.iter().all(|view| view.ports.is_empty()) {
                let name = switch.name;
                return Err(Refusal::from(SwitchRefused::UnusedPort { name, port }).into());
            }
        }
        self.show(context, &host, views, port.map_or(Ports::All, Ports::One))?;
        if self.zero {
            switches::clear(&host, selector, port)?;
        }
        Ok(())
    }

    fn show(
        &self,
        context: &Context,
        host: &VmHost,
        mut switches: Vec<SwitchView>,
        ports: Ports,
    ) -> Result<(), Failure> {
        let counting = if self.statistics { Counting::Shown } else { Counting::Left };
        let has_blocks = self.verbose || self.statistics || self.port.is_some();
        if has_blocks || self.json || self.xml {
            host.ask_nat(&mut switches);
        }
        for unseen in switches.iter().filter_map(SwitchView::unseen).filter(|_| !self.quiet) {
            context.say.note(&format!("{unseen}; what it published last is shown"));
        }
        let switches = switches.as_slice();
        let text = match switches {
            _ if self.json => json::render(switches)?,
            _ if self.xml => xml::render(switches),
            _ if self.machine => machine::render(switches),
            _ if has_blocks => blocks::all(switches, ports, counting),
            [switch] if self.selector().is_some() => list::one(switch, ports),
            _ => list::render(switches),
        };
        Ok(print(&text)?)
    }
}

#[derive(Debug, thiserror::Error)]
#[error("--forward none removes all port forwards; give it alone, or only those there are to be")]
struct NoneAmongForwards;

/// A file holds the frames of one port.
#[derive(Debug, thiserror::Error)]
#[error("--capture takes the frames of one port; name it by its number, -p NUMBER")]
struct CaptureOfAll;

/// Until the administrator interrupts it, or the switch ends it.
fn capture(
    context: &Context,
    host: &VmHost,
    selector: &SwitchSelector,
    port: PortNumber,
    path: &Path,
) -> Result<(), Failure> {
    catch_interruptions();
    let Captured { lost, ended_by } = capture::capture(host, selector, port, path)?;
    let file = path.display();
    if let Some(lost @ 1..) = lost {
        let text = format!("{lost} frames are not in {file}: they came faster than it was written");
        context.say.warning(None, &text);
    }
    if ended_by == EndedBy::Switch {
        let text = format!(
            "{file} has no later frames of port {port}: another capture of it has begun, its guest has left it, or the switch's process has gone"
        );
        context.say.warning(None, &text);
    }
    Ok(())
}
