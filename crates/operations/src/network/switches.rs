//! What an administrator does to virtual switches: create, change, boot, halt, reset, delete, and the rules of their ports.
//! The registry says what a switch is; when its process runs, that is told, and so are guests whose links come or go.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use hpvm_host::lines::Connection;
use hpvm_host::{removal, signals};
use hpvm_model::network::PortChange;
use hpvm_model::{
    Forward, GuestName, InterfaceName, PortNumber, Problem, SwitchName, SwitchState, Vswitch, Wire,
    chain,
};
use hpvm_plan::hotplug::Force;
use hpvm_plan::record::Link;
use hpvm_registry::{Step, SwitchSelector};
use hpvm_vswitchd::protocol::{Reply, Request, Station};

use super::runner::{Runner, status};
use super::{SwitchRefused, links, mtu, text, wire};
use crate::refusal::{Left, unless_interrupted};
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
    pub switch: Vswitch,
    pub problems: Vec<Problem>,
}

/// Makes a switch. It is halted until it is booted.
pub fn create(
    host: &mut VmHost,
    actor: &Actor,
    name: &SwitchName,
    request: &SwitchRequest,
    mode: Mode,
) -> Result<Changed, Refusal> {
    let others = host.registry.vswitches()?;
    let change = host.begin()?;
    let mut switch = Vswitch::new(change.next_switch_number()?, name.clone());
    apply(&mut switch, request);
    fits(&switch)?;
    let problems = problems(&others, &switch);
    change.insert_vswitch(&switch)?;
    if mode == Mode::DryRun {
        return Ok(Changed { switch, problems });
    }
    change.record(&actor.done(None, None))?;
    change.commit()?;
    Step::SwitchCommitted.reached();
    text::write(&host.root, &switch)?;
    Ok(Changed { switch, problems })
}

/// Changes a switch's name or wire. NICs of guests name it anew, and its guests hear from outside through the new wire.
pub fn change(
    host: &mut VmHost,
    actor: &Actor,
    selector: &SwitchSelector,
    request: &SwitchRequest,
    mode: Mode,
) -> Result<Changed, Refusal> {
    let before = named(host, selector)?;
    if before.name.is_localnet() {
        return Err(SwitchRefused::Localnet(before.name, "changed").into());
    }
    let mut after = before.clone();
    apply(&mut after, request);
    fits(&after)?;
    let mut problems = problems(&host.registry.vswitches()?, &after);
    let change = host.begin()?;
    let guests = change.update_vswitch(&after)?;
    if mode == Mode::DryRun {
        return Ok(Changed { switch: after, problems });
    }
    change.record(&actor.done(None, None))?;
    change.commit()?;
    Step::SwitchCommitted.reached();
    text::write(&host.root, &after)?;
    for guest in &guests {
        host.folder(guest).replace_identity(guest)?;
    }
    if (&before.wire, &before.forwards) != (&after.wire, &after.forwards) {
        problems.extend(exchange_wire(host, &after).map_err(half_told(&after))?);
        problems.extend(mtu::problems(host, &after)?);
    }
    if before.name != after.name {
        let renamed = Request::Rename { name: after.name.clone() };
        let runner = Runner::claim(host, after.clone()).map_err(half_told(&after))?;
        runner.tell(&renamed)?;
    }
    Ok(Changed { switch: after, problems })
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

/// Gives the running process the wire that the switch is to have. One that cannot be had is a warning: the guests run on
/// without.
fn exchange_wire(host: &VmHost, switch: &Vswitch) -> Result<Vec<Problem>, Refusal> {
    let runner = Runner::claim(host, switch.clone())?;
    if !runner.runs() {
        return Ok(Vec::new());
    }
    let warning = |refusal: Refusal| Problem::warning(switch.name.as_str(), chain(&refusal));
    Ok(runner.exchange_wire().err().map(warning).into_iter().collect())
}

/// What is in the way of a switch's wire now, and may be gone when it is needed.
fn problems(all: &[Vswitch], switch: &Vswitch) -> Vec<Problem> {
    missing_interface(switch).into_iter().chain(shared_forwards(all, switch)).collect()
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
    let before = named(host, selector)?;
    let switch = Vswitch { state, ..before };
    if mode == Mode::DryRun {
        let problems = problems(&host.registry.vswitches()?, &switch);
        return Ok(Changed { switch, problems });
    }
    unless_interrupted()?;
    bring_into(host, actor, switch)
}

fn bring_into(host: &mut VmHost, actor: &Actor, switch: Vswitch) -> Result<Changed, Refusal> {
    let change = host.registry.change()?;
    change.update_vswitch(&switch)?;
    change.record(&actor.done(None, None))?;
    change.commit()?;
    Step::SwitchCommitted.reached();
    text::write(&host.root, &switch)?;
    let mut told = carry_out(host, &switch).map_err(half_told(&switch))?;
    told.extend(problems(&host.registry.vswitches()?, &switch));
    Ok(Changed { switch, problems: told })
}

/// The registry has it already when the process of the switch is told. Who is interrupted while another command tells it
/// something leaves the rest to the next one.
fn half_told(switch: &Vswitch) -> impl FnOnce(Refusal) -> Refusal {
    let letter = match switch.state {
        SwitchState::Up => 'b',
        SwitchState::Halted => 'h',
    };
    let (name, next) = (switch.name.clone(), format!("hpvmnet -S {} -{letter}", switch.name));
    move |refusal| match refusal {
        Refusal::Interrupted { interruption, left: Left::AsItWas } => {
            Refusal::Interrupted { interruption, left: Left::HalfTold { switch: name, next } }
        }
        other => other,
    }
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
        let runner = Runner::claim(host, named(host, selector)?)?;
        if runner.runs() {
            runner.renew()?;
        }
    }
    set_state(host, actor, selector, SwitchState::Up, mode)
}

/// Tells the process and the guests what state the switch has. A process that was killed with its keeper is started again
/// for the guests that run.
fn carry_out(host: &VmHost, switch: &Vswitch) -> Result<Vec<Problem>, Refusal> {
    let mut problems = match switch.state {
        SwitchState::Up if Runner::claim(host, switch.clone())?.has_tap() => Vec::new(),
        SwitchState::Up => exchange_wire(host, switch)?,
        SwitchState::Halted => Vec::new(),
    };
    let runner = Runner::claim(host, switch.clone())?;
    if runner.runs() {
        runner.ask(&Request::State { state: switch.state }, &[])?;
        let in_the_way = runner.give_missing_ports()?.into_iter();
        problems.extend(in_the_way.map(|r| Problem::warning(switch.name.as_str(), chain(&r))));
    } else if has_running(host, switch)? {
        runner.ensure()?;
    }
    let link = match switch.state {
        SwitchState::Up => Link::Up,
        SwitchState::Halted => Link::Down,
    };
    problems.extend(links::show(host, switch, link)?);
    if switch.state == SwitchState::Up {
        problems.extend(mtu::problems(host, switch)?);
    }
    Ok(problems)
}

/// Starts again the processes of switches that guests run on and that nobody runs: both process and keeper were killed.
/// Gives the switches that could not be started, and why.
pub fn revive(host: &VmHost) -> Result<Vec<(SwitchName, Refusal)>, Refusal> {
    let mut left = Vec::new();
    for switch in host.registry.vswitches()? {
        let name = switch.name.clone();
        if !has_running(host, &switch)? {
            continue;
        }
        let revived = Runner::claim(host, switch).and_then(|runner| match runner.runs() {
            true => Ok(()),
            false => runner.ensure(),
        });
        left.extend(revived.err().map(|refusal| (name, refusal)));
    }
    Ok(left)
}

fn has_running(host: &VmHost, switch: &Vswitch) -> Result<bool, Refusal> {
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
    let switch = named(host, selector)?;
    if switch.name.is_localnet() {
        return Err(SwitchRefused::Localnet(switch.name, "deleted").into());
    }
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
    let root = host.root.clone();
    let change = host.begin()?;
    change.remove_vswitch(switch.number)?;
    change.record(&actor.done(None, None))?;
    text::remove(&root, &switch)?;
    change.commit()?;
    Step::SwitchCommitted.reached();
    forget(host, &switch);
    Ok(switch)
}

/// Its number may be another switch's next, which is to find nothing of it. What cannot be removed is in nobody's way.
fn forget(host: &VmHost, switch: &Vswitch) {
    let number = switch.number.get();
    let _ = removal::folder(&host.root.switch_dir(number));
    let log = host.root.switch_log(number);
    for log in [log.with_extension("log.old"), log] {
        let _ = removal::file(&log);
    }
}

/// Changes the rules of a port, now and for every guest that has it later.
pub fn change_port(
    host: &mut VmHost,
    actor: &Actor,
    selector: &SwitchSelector,
    asked: &PortChange,
    mode: Mode,
) -> Result<Changed, Refusal> {
    let mut switch = named(host, selector)?;
    let mut rules = switch.rules(asked.port);
    asked.apply(&mut rules);
    switch.set_rules(asked.port, rules.clone());
    if mode == Mode::DryRun {
        return Ok(Changed { switch, problems: Vec::new() });
    }
    let change = host.begin()?;
    change.update_vswitch(&switch)?;
    change.record(&actor.done(None, None))?;
    change.commit()?;
    Step::SwitchCommitted.reached();
    text::write(&host.root, &switch)?;
    let is_plugged =
        status(host, switch.number.get()).is_some_and(|status| status.port(asked.port).is_some());
    if is_plugged {
        let request = Request::Rules { port: asked.port, rules };
        let runner = Runner::claim(host, switch.clone()).map_err(half_told(&switch))?;
        runner.tell(&request)?;
    }
    Ok(Changed { switch, problems: Vec::new() })
}

/// Begins the counters of a port, or of all, anew.
pub fn clear(
    host: &VmHost,
    selector: &SwitchSelector,
    port: Option<PortNumber>,
) -> Result<(), Refusal> {
    let switch = named(host, selector)?;
    Runner::claim(host, switch)?.tell(&Request::Clear { port })
}

/// Where the switch knows stations to be.
pub fn stations(host: &VmHost, selector: &SwitchSelector) -> Result<Vec<Station>, Refusal> {
    let switch = named(host, selector)?;
    let runner = Runner::claim(host, switch)?;
    if !runner.runs() {
        return Err(SwitchRefused::NotRunning(runner.switch.name).into());
    }
    match runner.ask(&Request::Macs, &[])?.reply {
        Reply::Macs { mut stations } => {
            stations.sort_by_key(|station| (station.port, station.mac));
            Ok(stations)
        }
        _ => Ok(Vec::new()),
    }
}

/// Bytes kept of each frame of a capture: all of it.
const SNAP_BYTES: u32 = 1 << 18;

/// The switch's process writes what it still has, which is 16 MiB at most.
const LAST_FRAMES_BOUND: Duration = Duration::from_secs(10);

/// Has the frames of a port written to a file, until whoever runs the command interrupts it or the switch ends it. A file that
/// is there is replaced, but not for a capture that is refused. Returns how many frames are not in it, if the switch says so.
pub fn capture(
    host: &VmHost,
    selector: &SwitchSelector,
    port: PortNumber,
    path: &Path,
) -> Result<Option<u64>, Refusal> {
    let switch = named(host, selector)?;
    let runner = Runner::claim(host, switch)?;
    if runner.status().is_none_or(|status| status.port(port).is_none()) {
        return Err(SwitchRefused::NoPort { name: runner.switch.name, port }.into());
    }
    // What guests say is not for everybody.
    let mut options = File::options();
    let file = options.write(true).create(true).truncate(true).mode(0o600).open(path);
    let file =
        file.map_err(|source| Refusal::File { action: "write", path: path.to_owned(), source })?;
    let request = Request::Capture { port, snap_bytes: SNAP_BYTES };
    let mut connection = runner.ask(&request, &[file.as_fd()])?.connection;
    let name = runner.switch.name.clone();
    // Others may ask meanwhile.
    drop(runner);
    wait_for_end(&connection);
    match connection.hear(LAST_FRAMES_BOUND) {
        Ok(Reply::CaptureOver { failure: Some(why), .. }) => {
            Err(SwitchRefused::Capture { name, port, why }.into())
        }
        Ok(Reply::CaptureOver { lost, .. }) => Ok(Some(lost)),
        // Its process has gone, or is of a version that does not say.
        Ok(_) | Err(_) => Ok(None),
    }
}

/// Until the switch says that a capture is over, or whoever runs the command interrupts it; then no more is wanted of it.
fn wait_for_end(connection: &Connection) {
    const LOOK: Duration = Duration::from_millis(100);
    while signals::interrupted().is_none() && !connection.has_more(LOOK).unwrap_or(true) {}
    let _ = connection.say_no_more();
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
