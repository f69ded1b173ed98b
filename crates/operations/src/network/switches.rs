//! What an administrator does to virtual switches: create, change, boot, halt, reset, delete.
//! The registry says what a switch is; when its process runs, that is told, and so are guests whose links come or go.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, UdpSocket};

use hpvm_host::lock::Busy;
use hpvm_host::nic::Unfit;
use hpvm_host::removal;
use hpvm_model::{
    Forward, GuestConfig, GuestName, InterfaceName, PortNumber, Problem, SwitchName, SwitchNumber,
    SwitchState, Vswitch, Wire, chain,
};
use hpvm_nat::Settings;
use hpvm_plan::hotplug::Force;
use hpvm_plan::record::Link;
use hpvm_registry::{Step, SwitchSelector};
use hpvm_vswitchd::protocol::{Reply, Request, Station};

use super::runner::{Runner, Turn};
use super::{SwitchRefused, links, mtu, text, wire};
use crate::{Actor, Mode, Refusal, VmHost};

/// What is asked of a new switch, or of one that is to become another; `None` leaves it as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SwitchRequest {
    pub name: Option<SwitchName>,
    pub wire: Option<Wire>,
    /// Of a NAT wire.
    pub forwards: Option<Vec<Forward>>,
}

/// What came of it.
#[derive(Clone, Debug)]
pub struct Changed {
    /// `None` of a switch that is made.
    pub before: Option<Vswitch>,
    /// In a dry run, as it would be.
    pub switch: Vswitch,
    pub problems: Vec<Problem>,
}

impl Changed {
    /// Whether the switch is as it was.
    #[must_use]
    pub fn is_nothing(&self) -> bool {
        self.before.as_ref() == Some(&self.switch)
    }
}

/// Makes a switch. It is halted until it is booted.
pub fn create(
    host: &mut VmHost,
    actor: &Actor,
    name: &SwitchName,
    request: &SwitchRequest,
    mode: Mode,
) -> Result<Changed, Refusal> {
    let change = host.begin()?;
    let others = change.vswitches()?;
    let mut switch = Vswitch::new(change.next_switch_number()?, name.clone());
    apply(&mut switch, request);
    fits(&switch)?;
    has_tap_alone(&switch, &others)?;
    lead_to_guests(&switch.name, request)?;
    change.require_free_switch_name(&switch)?;
    let mut problems = problems(&others, &switch);
    if mode == Mode::DryRun {
        return Ok(Changed { before: None, switch, problems });
    }
    change.insert_vswitch(&switch)?;
    change.record(&actor.done(None, None))?;
    change.commit()?;
    Step::SwitchCommitted.reached();
    let written = keep_text(host, switch.number).err();
    problems.extend(written.map(|refusal| unwritten(switch.name.as_str(), &refusal)));
    Ok(Changed { before: None, switch, problems })
}

/// Changes a switch's name or wire. NICs of guests name it anew, and its guests hear from outside through the new wire.
pub fn change(
    host: &mut VmHost,
    actor: &Actor,
    selector: &SwitchSelector,
    request: &SwitchRequest,
    mode: Mode,
) -> Result<Changed, Refusal> {
    let named = named(host, selector)?;
    if named.name.is_localnet() {
        return Err(SwitchRefused::Localnet(named.name, "changed").into());
    }
    let _guests = match (&request.name, mode) {
        (Some(_), Mode::Apply) => hold_guests(host, actor, &named.name)?,
        _ => Vec::new(),
    };
    let altered = alter(host, actor, selector, mode, |switch, all| {
        let before = switch.clone();
        apply(switch, request);
        fits(switch)?;
        if request.wire.is_some() {
            has_tap_alone(switch, all)?;
        }
        lead_to_guests(&switch.name, request)?;
        Ok(dropped_forwards(&before, switch).into_iter().chain(problems(all, switch)).collect())
    })?;
    altered.told(|runner, before| {
        let after = &runner.switch;
        let mut problems = Vec::new();
        // Whoever asked for this wire before may have been ended before the process had it.
        let is_untold = request.wire.is_some() && !runner.was_told_wire();
        if (&before.wire, &before.forwards) != (&after.wire, &after.forwards) || is_untold {
            problems.extend(exchange_wire(runner));
            problems.extend(mtu::problems(runner.host, after)?);
        }
        problems.extend(wire::remove_left_taps(runner.host, after));
        runner.tell_changes()?;
        Ok(problems)
    })
}

/// The right to change the guests with NICs on a switch: a command that is changing one of them would write back the name that
/// it has read.
fn hold_guests(host: &VmHost, actor: &Actor, name: &SwitchName) -> Result<Vec<Busy>, Refusal> {
    let guests = host.registry.all()?.into_iter();
    let on_it = guests.filter(|guest| guest.nics.iter().any(|nic| nic.vswitch == *name));
    on_it.map(|guest| host.busy(&guest, actor)).collect()
}

/// A switch that the registry has as it is to be, in the turn of the command that changes it; in a dry run, as it would be.
pub(super) struct Altered<'a> {
    runner: Runner<'a>,
    before: Vswitch,
    /// They name it anew.
    guests: Vec<GuestConfig>,
    problems: Vec<Problem>,
    mode: Mode,
}

/// Changes what the registry says of a switch. `edit` gets it as it is in the turn of this command, and all there are.
pub(super) fn alter<'a>(
    host: &'a mut VmHost,
    actor: &Actor,
    selector: &SwitchSelector,
    mode: Mode,
    edit: impl FnOnce(&mut Vswitch, &[Vswitch]) -> Result<Vec<Problem>, Refusal>,
) -> Result<Altered<'a>, Refusal> {
    let runner = Runner::claim(host, named(host, selector)?.number)?;
    // What its process could not be told is not changed.
    runner.tell(&Request::Ping)?;
    let turn = runner.into_turn();
    let change = host.begin()?;
    let before = turn.switch(&change)?;
    let mut switch = before.clone();
    let problems = edit(&mut switch, &change.vswitches()?)?;
    change.require_free_switch_name(&switch)?;
    let guests = match mode {
        Mode::DryRun => {
            drop(change);
            Vec::new()
        }
        Mode::Apply => {
            let guests = change.update_vswitch(&switch)?;
            change.record(&actor.done(None, None))?;
            change.commit()?;
            Step::SwitchCommitted.reached();
            guests
        }
    };
    Ok(Altered { runner: turn.runner(host, switch), before, guests, problems, mode })
}

impl Altered<'_> {
    /// Has the process and the guests told, which matters to traffic, and then written what a lost registry is rebuilt from.
    pub(super) fn told(
        self,
        tell: impl FnOnce(&Runner<'_>, &Vswitch) -> Result<Vec<Problem>, Refusal>,
    ) -> Result<Changed, Refusal> {
        let Altered { runner, before, guests, mut problems, mode } = self;
        if mode == Mode::Apply {
            let told = tell(&runner, &before);
            let unwritten_text = |refusal| unwritten(runner.switch.name.as_str(), &refusal);
            problems.extend(write_text(&runner).err().map(unwritten_text));
            problems.extend(guests.iter().filter_map(|guest| {
                let written = runner.host.folder(guest).replace_identity(guest);
                written.err().map(|error| unwritten(guest.name.as_str(), &error))
            }));
            problems.extend(told.map_err(|refusal| untold(&runner.switch, refusal))?);
        }
        Ok(Changed { before: Some(before), switch: runner.switch, problems })
    }
}

/// Writes down what a lost registry is to have a switch from, as that is in this command's turn.
pub(crate) fn keep_text(host: &VmHost, number: SwitchNumber) -> Result<(), Refusal> {
    write_text(&Runner::claim(host, number)?)
}

fn write_text(runner: &Runner<'_>) -> Result<(), Refusal> {
    Ok(text::write(&runner.host.root, &runner.switch)?)
}

/// The registry has the change, and that is what counts as long as there is one.
fn unwritten(subject: &str, why: &dyn std::error::Error) -> Problem {
    let text = format!(
        "what a lost registry would have '{subject}' from could not be written: {}; `hpvm doctor --repair` writes it",
        chain(why)
    );
    Problem::warning(subject, text)
}

/// Whoever boots or halts it tells its process and its guests whatever they have not heard.
fn untold(switch: &Vswitch, refusal: Refusal) -> Refusal {
    let letter = match switch.state {
        SwitchState::Up => 'b',
        SwitchState::Halted => 'h',
    };
    SwitchRefused::Untold { name: switch.name.clone(), letter, source: Box::new(refusal) }.into()
}

fn apply(switch: &mut Vswitch, request: &SwitchRequest) {
    if let Some(name) = &request.name {
        switch.name.clone_from(name);
    }
    if let Some(wire) = &request.wire {
        switch.wire.clone_from(wire);
        if *wire != Wire::Nat {
            switch.forwards.clear();
        }
    }
    if let Some(forwards) = &request.forwards {
        switch.forwards.clone_from(forwards);
    }
}

/// Refuses a wire that could never be one.
fn fits(switch: &Vswitch) -> Result<(), Refusal> {
    let name = || switch.name.clone();
    if switch.wire != Wire::Nat && !switch.forwards.is_empty() {
        return Err(SwitchRefused::NoNat(name()).into());
    }
    if let Some((one, other)) = collision(&switch.forwards) {
        return Err(SwitchRefused::Collision { name: name(), one, other }.into());
    }
    let fit = match (&switch.wire, switch.wire.interface().and_then(wire::interface)) {
        (Wire::Nic(_), Some(nic)) => nic.fit_for_wire(),
        (Wire::Tap(_), Some(nic)) => nic.fit_for_tap(),
        _ => Ok(()),
    };
    fit.map_err(|source| SwitchRefused::Unfit { name: name(), source }.into())
}

/// Refuses a tap that is the wire of another of these switches: only one process can have it.
fn has_tap_alone<'a>(
    switch: &Vswitch,
    all: impl IntoIterator<Item = &'a Vswitch>,
) -> Result<(), Refusal> {
    let Wire::Tap(tap) = &switch.wire else { return Ok(()) };
    let mut others = all.into_iter().filter(|other| other.number != switch.number);
    match others.find(|other| other.wire == switch.wire) {
        None => Ok(()),
        Some(other) => {
            let source = Unfit::Taken(tap.to_string(), other.name.clone());
            Err(SwitchRefused::Unfit { name: switch.name.clone(), source }.into())
        }
    }
}

/// Refuses new port forwards to addresses that no guest has. Older ones keep nobody from changing something else.
fn lead_to_guests(name: &SwitchName, request: &SwitchRequest) -> Result<(), Refusal> {
    // The one network that there is behind a NAT wire.
    let subnet = Settings::default().subnet;
    let mut forwards = request.forwards.iter().flatten();
    match forwards.find(|forward| !subnet.may_be_guest(*forward.guest.ip())) {
        Some(forward) => {
            let (name, forward) = (name.clone(), *forward);
            Err(SwitchRefused::NoGuest { name, forward, subnet }.into())
        }
        None => Ok(()),
    }
}

/// A wire that is no NAT any more takes its port forwards along, which nobody asked for.
fn dropped_forwards(before: &Vswitch, after: &Vswitch) -> Option<Problem> {
    let is_dropped = after.wire != Wire::Nat && !before.forwards.is_empty();
    is_dropped.then(|| {
        let name = &after.name;
        let given: Vec<String> =
            before.forwards.iter().map(|forward| format!("--forward {forward}")).collect();
        let text = format!(
            "virtual switch '{name}' has no NAT any more, so its port forwards are dropped; `hpvmnet -S {name} -C --wire nat {}` has them again",
            given.join(" ")
        );
        Problem::warning(name.as_str(), text)
    })
}

/// Two that want the same port of the VM Host.
fn collision(forwards: &[Forward]) -> Option<(Forward, Forward)> {
    let mut rest = forwards;
    while let Some((one, others)) = rest.split_first() {
        if let Some(other) = others.iter().find(|other| one.collides_with(other)) {
            return Some((*one, *other));
        }
        rest = others;
    }
    None
}

/// Gives the running process the wire that the switch is to have; without a process there is a tap all the same, as long as the
/// switch is up. One that cannot be had is a warning: the guests run on without.
fn exchange_wire(runner: &Runner<'_>) -> Option<Problem> {
    let refused = match (runner.runs(), runner.switch.state) {
        (true, _) => runner.exchange_wire().err(),
        (false, SwitchState::Up) => wire::try_to_have(runner.host, &runner.switch).err(),
        (false, SwitchState::Halted) => None,
    };
    refused.map(|refusal| Problem::warning(runner.switch.name.as_str(), chain(&refusal)))
}

/// What is in the way of a switch's wire now, and may be gone when it is needed.
fn problems(all: &[Vswitch], switch: &Vswitch) -> Vec<Problem> {
    let shared = shared_forwards(all, switch);
    missing_interface(switch).into_iter().chain(shared).chain(foreign_forwards(switch)).collect()
}

/// Forwards at addresses that this VM Host has not: one may come, and until then nobody can listen there.
fn foreign_forwards(switch: &Vswitch) -> Vec<Problem> {
    let is_ours = |address: Ipv4Addr| match UdpSocket::bind((address, 0)) {
        Err(error) => error.kind() != ErrorKind::AddrNotAvailable,
        Ok(_) => true,
    };
    let foreign = switch.forwards.iter().filter(|forward| !is_ours(*forward.host.ip()));
    let problem = |forward: &Forward| {
        let text = format!(
            "port forward {forward} of virtual switch '{}' works only while this VM Host has the address {}, which it has not now",
            switch.name,
            forward.host.ip()
        );
        Problem::warning(switch.name.as_str(), text)
    };
    foreign.map(problem).collect()
}

/// Of two switches that want the same port of the VM Host, the one that runs first has it.
fn shared_forwards(all: &[Vswitch], switch: &Vswitch) -> Vec<Problem> {
    let others = all.iter().filter(|other| other.number != switch.number);
    let pairs = others.flat_map(|other| other.forwards.iter().map(move |theirs| (other, theirs)));
    let collisions = pairs.filter_map(|(other, theirs)| {
        let ours = switch.forwards.iter().find(|ours| ours.collides_with(theirs))?;
        let text = format!(
            "virtual switch '{}' has the port forward {theirs}; {ours} of '{}' works only while that one does not run",
            other.name, switch.name
        );
        Some(Problem::warning(switch.name.as_str(), text))
    });
    collisions.collect()
}

fn missing_interface(switch: &Vswitch) -> Option<Problem> {
    let missing = |name: &&InterfaceName| {
        matches!(switch.wire, Wire::Nic(_)) && wire::interface(name).is_none()
    };
    let interface = switch.wire.interface().filter(missing);
    let warning = |name: &InterfaceName| {
        let text = format!(
            "there is no network interface {name} now; virtual switch '{}' has no wire until there is",
            switch.name
        );
        Problem::warning(name.as_str(), text)
    };
    interface.map(warning)
}

/// Boots or halts a switch. The guests on it run on, and see their links come or go.
pub fn set_state(
    host: &mut VmHost,
    actor: &Actor,
    selector: &SwitchSelector,
    state: SwitchState,
    mode: Mode,
) -> Result<Changed, Refusal> {
    let altered = alter(host, actor, selector, mode, |switch, all| {
        let was_halted = switch.state != SwitchState::Up;
        switch.state = state;
        if state == SwitchState::Up && was_halted {
            // Of two that have one from before, the first that is up has it.
            has_tap_alone(switch, all.iter().filter(|other| other.state == SwitchState::Up))?;
        }
        // A halted one needs no wire.
        Ok(if state == SwitchState::Up { problems(all, switch) } else { Vec::new() })
    })?;
    altered.told(|runner, _| carry_out(runner))
}

/// Halts a switch and boots it. Its process is replaced by one of the program as it is installed now: so a switch is upgraded,
/// and downgraded, under its guests. Their links stay, since it is back sooner than they would be.
pub fn reset(
    host: &mut VmHost,
    actor: &Actor,
    selector: &SwitchSelector,
    mode: Mode,
) -> Result<Changed, Refusal> {
    if mode == Mode::Apply {
        let runner = Runner::claim(host, named(host, selector)?.number)?;
        if runner.runs() {
            runner.renew()?;
        }
    }
    set_state(host, actor, selector, SwitchState::Up, mode)
}

/// Tells the process and the guests what state the switch has. A process that was killed with its keeper is started again
/// for the guests that run.
fn carry_out(runner: &Runner<'_>) -> Result<Vec<Problem>, Refusal> {
    let (host, switch) = (runner.host, &runner.switch);
    let mut problems = Vec::new();
    if switch.state == SwitchState::Up && !runner.has_tap() {
        problems.extend(exchange_wire(runner));
    }
    problems.extend(wire::remove_left_taps(host, switch));
    if switch.state == SwitchState::Up {
        // Before frames come: a guest that answers without a link is heard a second later.
        problems.extend(links::show(host, switch, Link::Up)?);
    }
    if runner.runs() {
        runner.tell_changes()?;
        runner.ask(&Request::State { state: switch.state }, &[])?;
        let in_the_way = runner.give_missing_ports()?.into_iter();
        problems.extend(in_the_way.map(|r| Problem::warning(switch.name.as_str(), chain(&r))));
    } else if has_running(host, switch)? {
        runner.ensure()?;
    }
    match switch.state {
        SwitchState::Up => problems.extend(mtu::problems(host, switch)?),
        SwitchState::Halted => problems.extend(links::show(host, switch, Link::Down)?),
    }
    Ok(problems)
}

/// Starts again the processes of switches that guests run on and that nobody runs: both process and keeper were killed. The
/// others that are up have their taps, which a boot of the host takes. Gives the switches that could not be started, and why.
pub fn revive(host: &VmHost) -> Result<Vec<(SwitchName, Refusal)>, Refusal> {
    let mut left = Vec::new();
    for switch in host.registry.vswitches()? {
        let name = switch.name.clone();
        let is_used = has_running(host, &switch)?;
        let has_tap = switch.state == SwitchState::Up && matches!(switch.wire, Wire::Tap(_));
        if !is_used && !has_tap {
            continue;
        }
        let revived = Runner::claim(host, switch.number).and_then(|runner| match is_used {
            true if runner.runs() => Ok(()),
            true => runner.ensure(),
            false => wire::try_to_have(host, &runner.switch),
        });
        left.extend(revived.err().map(|refusal| (name, refusal)));
    }
    Ok(left)
}

pub(super) fn has_running(host: &VmHost, switch: &Vswitch) -> Result<bool, Refusal> {
    let running = host.machines()?;
    Ok(running.iter().any(|(_, machine)| machine.nics.iter().any(|a| a.switch == switch.number)))
}

/// Deletes a switch. One that guests have ports of is kept, unless that is forced: then their NICs name a switch that is not
/// there. One that a running guest is on is never deleted.
pub fn delete(
    host: &mut VmHost,
    actor: &Actor,
    selector: &SwitchSelector,
    force: Force,
    mode: Mode,
) -> Result<Vswitch, Refusal> {
    let named = named(host, selector)?;
    if named.name.is_localnet() {
        return Err(SwitchRefused::Localnet(named.name, "deleted").into());
    }
    // No guest gets a port meanwhile.
    let turn = Turn::take(host, named.number)?;
    let switch = turn.switch(&host.registry)?;
    let rows = host.registry.nics()?;
    let mut users: Vec<GuestName> = rows
        .into_iter()
        .filter(|row| !row.removed && row.nic.vswitch == switch.name)
        .map(|row| row.guest)
        .collect();
    users.dedup();
    if has_running(host, &switch)? {
        return Err(SwitchRefused::Running(switch.name).into());
    }
    if !users.is_empty() && force == Force::No {
        let guests = users.iter().map(GuestName::as_str).collect::<Vec<_>>().join(", ");
        return Err(SwitchRefused::InUse { name: switch.name, guests }.into());
    }
    if mode == Mode::DryRun {
        return Ok(switch);
    }
    let taps = wire::made_taps(host, &switch).map_err(SwitchRefused::Interfaces)?;
    let root = host.root.clone();
    let change = host.begin()?;
    change.remove_vswitch(switch.number)?;
    change.record(&actor.done(None, None))?;
    text::remove(&root, &switch)?;
    // Before the switch is forgotten, since nobody would know whose they were. What cannot be removed is in nobody's way.
    for tap in taps {
        let _ = tap.remove();
    }
    change.commit()?;
    Step::SwitchCommitted.reached();
    forget(host, &switch);
    Ok(switch)
}

/// Its number may be another switch's next, which is to find nothing of it. What cannot be removed is in nobody's way.
fn forget(host: &VmHost, switch: &Vswitch) {
    let number = switch.number.get();
    let _ = removal::folder(&host.root.switch_dir(number));
    let _ = removal::file(&host.root.switch_log(number));
}

/// Begins the counters of a port, or of all, anew.
pub fn clear(
    host: &VmHost,
    selector: &SwitchSelector,
    port: Option<PortNumber>,
) -> Result<(), Refusal> {
    let number = named(host, selector)?.number;
    Runner::claim(host, number)?.tell(&Request::Clear { port })
}

/// Where the switch knows stations to be.
pub fn stations(host: &VmHost, selector: &SwitchSelector) -> Result<Vec<Station>, Refusal> {
    let runner = Runner::claim(host, named(host, selector)?.number)?;
    if !runner.runs() {
        let is_used = has_running(host, &runner.switch)?;
        let name = runner.switch.name;
        let refused = if is_used { SwitchRefused::Killed } else { SwitchRefused::NotRunning };
        return Err(refused(name).into());
    }
    match runner.ask(&Request::Macs, &[])?.reply {
        Reply::Macs { mut stations } => {
            stations.sort_by_key(|station| (station.port, station.mac));
            Ok(stations)
        }
        _ => Ok(Vec::new()),
    }
}

/// The switch that is meant.
pub fn named(host: &VmHost, selector: &SwitchSelector) -> Result<Vswitch, Refusal> {
    let shown = || match selector {
        SwitchSelector::Name(name) => name.to_string(),
        SwitchSelector::Number(number) => number.to_string(),
    };
    let found = host.registry.vswitch(selector)?;
    found.ok_or_else(|| SwitchRefused::Unknown(shown()).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_forward_at_an_address_of_another_machine_is_told() {
        let number = SwitchNumber::new(3).expect("a number");
        let mut switch = Vswitch::new(number, "nat1".parse().expect("a name"));
        let told = |switch: &Vswitch| {
            foreign_forwards(switch).into_iter().map(|problem| problem.text).collect::<Vec<_>>()
        };
        let forward = |text: &str| text.parse::<Forward>().expect("one");
        switch.forwards =
            vec![forward("tcp:2224:10.0.2.15:22"), forward("tcp:127.0.0.1:2225:10.0.2.15:22")];
        assert_eq!(told(&switch), Vec::<String>::new());
        // An address of nobody (RFC 5737).
        switch.forwards.push(forward("udp:192.0.2.1:2226:10.0.2.15:22"));
        let told = told(&switch);
        assert!(told.len() == 1 && told[0].contains("the address 192.0.2.1,"), "{told:?}");
    }
}
