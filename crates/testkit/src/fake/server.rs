//! The poll loop: monitors, the serial console, the agent, timers and signals, in one thread as QEMU's main loop is.
//!
//! A monitor serves one client; the next one waits without a greeting. A slow command holds everything up, as it would in
//! QEMU, and after a hanging one nothing is answered any more.

mod agent;
mod console;
mod monitor;

use std::collections::BinaryHeap;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};

use anyhow::Context;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};
use serde_json::{Map, Value, json};

use super::behaviour::Behaviour;
use super::command_line::{Chardev, CommandLine};
use super::machine::{Effect, Later, Machine, Refusal};
use super::schema;
use agent::AgentPort;
use console::Console;
use monitor::{Monitor, Request};

/// Between two looks whether a store answers again.
const STORE_LOOK: Duration = Duration::from_millis(10);

/// Runs the machine until something ends it.
pub(super) fn serve(line: CommandLine, behaviour: Behaviour) -> anyhow::Result<()> {
    if let Some(text) = &behaviour.refuse {
        anyhow::bail!("{text}");
    }
    let signals = signals()?;
    let is_held = line.is_held;
    let mut server = Server::build(line, behaviour, signals)?;
    server.machine.begin(is_held);
    server.carry_out();
    server.run()
}

struct Server {
    machine: Machine,
    behaviour: Behaviour,
    monitors: Vec<Monitor>,
    console: Option<Console>,
    agent: Option<AgentPort>,
    signals: SignalFd,
    timers: BinaryHeap<Timer>,
    timers_set: u64,
    /// Until then nobody is listened to.
    busy_until: Option<Instant>,
    hangs: bool,
    has_ended: bool,
}

/// What is due; the earliest comes out of the heap first.
struct Timer {
    due: Instant,
    number: u64,
    what: Due,
}

enum Due {
    Later(Later),
    Answer { monitor: usize, line: String },
}

impl PartialEq for Timer {
    fn eq(&self, other: &Timer) -> bool {
        self.number == other.number
    }
}

impl Eq for Timer {}

impl PartialOrd for Timer {
    fn partial_cmp(&self, other: &Timer) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Timer {
    fn cmp(&self, other: &Timer) -> std::cmp::Ordering {
        (other.due, other.number).cmp(&(self.due, self.number))
    }
}

/// Who may be ready.
#[derive(Clone, Copy)]
enum Source {
    Signals,
    Monitor(usize),
    Console,
    Agent,
}

impl Server {
    fn build(line: CommandLine, behaviour: Behaviour, signals: SignalFd) -> anyhow::Result<Server> {
        let chardevs: Vec<String> = line.chardev_ids().collect();
        let mut machine = Machine::new(behaviour.clone(), line.flash, line.stays_after_shutdown);
        for passed in line.fds {
            let fd = inherited(passed.fd).with_context(|| format!("-add-fd fd={}", passed.fd))?;
            machine.put_fd(Some(passed.set), passed.opaque, fd);
        }
        machine.know_processors(line.processors.unwrap_or(1));
        machine.know_chardevs(chardevs);
        for netdev in line.netdevs {
            plug(&mut machine, "netdev_add", &netdev)?;
        }
        for node in line.nodes {
            plug(&mut machine, "blockdev-add", &node)?;
        }
        for device in line.devices {
            plug(&mut machine, "device_add", &device)?;
        }
        let chardev = |id: &str| {
            let found = line.chardevs.iter().find(|chardev| chardev.id == id);
            found.with_context(|| format!("chardev \"{id}\" not found"))
        };
        let opens = Instant::now() + behaviour.greet;
        let monitors = line.monitors.iter().map(|id| monitor(chardev(id)?));
        let monitors = monitors.collect::<anyhow::Result<Vec<_>>>()?;
        let console = match &line.serial {
            Some(id) => Some(console(chardev(id)?, &machine)?),
            None => None,
        };
        let agent = match machine.agent_chardev() {
            Some(id) => {
                let listener = UnixListener::from(inherited(chardev(id)?.fd)?);
                Some(AgentPort::new(listener, behaviour.agent.clone())?)
            }
            None => None,
        };
        Ok(Server {
            machine,
            behaviour,
            monitors,
            console,
            agent,
            signals,
            timers: BinaryHeap::new(),
            timers_set: 0,
            busy_until: Some(opens),
            hangs: false,
            has_ended: false,
        })
    }

    fn run(mut self) -> anyhow::Result<()> {
        while !self.has_ended {
            for source in self.wait()? {
                match source {
                    Source::Signals => self.signal()?,
                    Source::Monitor(index) => self.converse(index),
                    Source::Console => self.type_and_echo(),
                    Source::Agent => self.let_agent_talk(),
                }
            }
            self.let_time_pass();
        }
        Ok(())
    }

    /// Sleeps until somebody is ready or something is due.
    fn wait(&mut self) -> anyhow::Result<Vec<Source>> {
        let now = Instant::now();
        self.busy_until = self.busy_until.filter(|until| *until > now);
        let due =
            self.timers.peek().map(|timer| timer.due).into_iter().chain(self.busy_until).min();
        let timeout = due.map(|due| timespec(due.saturating_duration_since(now)));
        let mut sources = vec![Source::Signals];
        let mut fds = vec![PollFd::new(&self.signals, PollFlags::IN)];
        if self.busy_until.is_none() && !self.hangs {
            for (index, monitor) in self.monitors.iter().enumerate() {
                fds.extend(monitor.poll_fd().map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
                sources.extend(monitor.poll_fd().map(|_| Source::Monitor(index)));
            }
        }
        if let Some(console) = &self.console {
            fds.push(PollFd::from_borrowed_fd(console.poll_fd(), PollFlags::IN));
            sources.push(Source::Console);
        }
        if let Some((fd, wanted)) = self.agent.as_ref().map(AgentPort::poll_fd) {
            fds.push(PollFd::from_borrowed_fd(fd, wanted));
            sources.push(Source::Agent);
        }
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).context("poll"),
        }
        let ready = fds.iter().map(|fd| !fd.revents().is_empty());
        Ok(sources.into_iter().zip(ready).filter(|(_, ready)| *ready).map(|(s, _)| s).collect())
    }

    fn let_time_pass(&mut self) {
        let now = Instant::now();
        while self.timers.peek().is_some_and(|timer| timer.due <= now) {
            match self.timers.pop().map(|timer| timer.what) {
                Some(Due::Later(later)) => self.machine.happen(later),
                Some(Due::Answer { monitor, line }) => self.monitors[monitor].say(&line),
                None => {}
            }
            self.carry_out();
        }
    }

    fn signal(&mut self) -> anyhow::Result<()> {
        if let Some(signal) = self.signals.read_signal().context("signalfd")? {
            let (number, sender) = (signal.ssi_signo, signal.ssi_pid);
            eprintln!(
                "qemu-system-x86_64: terminating on signal {number} from pid {sender} (fake)"
            );
            self.machine.terminate();
            self.carry_out();
        }
        Ok(())
    }

    fn type_and_echo(&mut self) {
        if let Some(console) = &mut self.console {
            console.serve();
        }
    }

    fn let_agent_talk(&mut self) {
        let os_runs = self.machine.os_runs();
        if let Some(agent) = &mut self.agent {
            agent.serve(os_runs);
        }
    }

    fn converse(&mut self, index: usize) {
        for request in self.monitors[index].receive() {
            if self.hangs || self.has_ended {
                return;
            }
            self.perform(index, request);
        }
    }

    fn perform(&mut self, index: usize, request: Request) {
        let Request { message, fd } = request;
        let id = message.as_ref().ok().and_then(|message| message.get("id")).cloned();
        let command = message.as_ref().ok().and_then(|message| message["execute"].as_str());
        let command = command.unwrap_or_default().to_owned();
        if self.behaviour.hang.contains(&command) {
            self.hangs = true;
            return;
        }
        while touches_stores(&command) && self.behaviour.requests.are_stuck() {
            let _ = poll(&mut [], Some(&timespec(STORE_LOOK)));
        }
        let answer = message.and_then(|message| self.answer(index, &command, &message, fd));
        let line = answer_line(answer, id);
        self.carry_out();
        match self.behaviour.slow.get(&command) {
            Some(delay) => {
                // Who waits for this moment finds it in the log.
                eprintln!("qemu-system-x86_64: {command} is done and not answered yet (fake)");
                let due = Instant::now() + *delay;
                self.busy_until = Some(due);
                self.set_timer(due, Due::Answer { monitor: index, line });
            }
            None => self.monitors[index].say(&line),
        }
    }

    fn answer(
        &mut self,
        index: usize,
        command: &str,
        message: &Value,
        fd: Option<OwnedFd>,
    ) -> Result<Value, Refusal> {
        let arguments = well_formed(message)?;
        if !self.monitors[index].has_capabilities() {
            if command == "qmp_capabilities" {
                self.monitors[index].grant_capabilities();
                return Ok(json!({}));
            }
            let text = "Expecting capabilities negotiation with 'qmp_capabilities'".into();
            return Err(Refusal { class: "CommandNotFound", text });
        }
        schema::judge(command, &arguments)?;
        if let Some(text) = self.behaviour.fail.get(command) {
            return Err(Refusal::generic(text.clone()));
        }
        self.machine.execute(command, &arguments, fd)
    }

    fn carry_out(&mut self) {
        for effect in self.machine.take_effects() {
            match effect {
                Effect::Event { name, data } => self.announce(name, data),
                Effect::Console(bytes) => {
                    if let Some(console) = &mut self.console {
                        console.say(&bytes);
                    }
                }
                Effect::After(delay, later) => {
                    self.set_timer(Instant::now() + delay, Due::Later(later));
                }
                Effect::Exit => self.has_ended = true,
            }
        }
    }

    fn announce(&mut self, name: &str, data: Option<Value>) {
        let since_epoch =
            std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        let (seconds, microseconds) = (since_epoch.as_secs(), since_epoch.subsec_micros());
        let mut event = json!({
            "timestamp": { "seconds": seconds, "microseconds": microseconds }, "event": name,
        });
        if let Some(data) = data {
            event["data"] = data;
        }
        let line = event.to_string();
        for monitor in self.monitors.iter_mut().filter(|monitor| monitor.has_capabilities()) {
            monitor.say(&line);
        }
    }

    fn set_timer(&mut self, due: Instant, what: Due) {
        self.timers_set += 1;
        self.timers.push(Timer { due, number: self.timers_set, what });
    }
}

/// What QEMU does not come back from before all of its guest's requests do.
fn touches_stores(command: &str) -> bool {
    let others = ["stop", "device_add", "device_del", "block_resize", "eject"];
    let looks = ["query-block", "query-named-block-nodes"];
    command.starts_with("blockdev-") || others.contains(&command) || looks.contains(&command)
}

/// The arguments of a message that has the members of a command and no others.
fn well_formed(message: &Value) -> Result<Map<String, Value>, Refusal> {
    let Some(members) = message.as_object() else {
        return Err(Refusal::generic("QMP input must be a JSON object"));
    };
    let known = ["execute", "arguments", "id"];
    if let Some(name) = members.keys().find(|name| !known.contains(&name.as_str())) {
        return Err(Refusal::generic(format!("QMP input member '{name}' is unexpected")));
    }
    if !members.contains_key("execute") {
        return Err(Refusal::generic("QMP input lacks member 'execute'"));
    }
    match members.get("arguments") {
        None => Ok(Map::new()),
        Some(Value::Object(arguments)) => Ok(arguments.clone()),
        Some(_) => Err(Refusal::generic("QMP input member 'arguments' must be an object")),
    }
}

fn answer_line(answer: Result<Value, Refusal>, id: Option<Value>) -> String {
    let mut message = match answer {
        Ok(value) => json!({ "return": value }),
        Err(refusal) => json!({ "error": { "class": refusal.class, "desc": refusal.text } }),
    };
    if let Some(id) = id {
        message["id"] = id;
    }
    message.to_string()
}

fn plug(
    machine: &mut Machine,
    command: &str,
    properties: &Map<String, Value>,
) -> anyhow::Result<()> {
    let what = || format!("{command} {}", Value::from(properties.clone()));
    machine
        .execute(command, properties, None)
        .map_err(|r| anyhow::anyhow!(r.text))
        .with_context(what)?;
    Ok(())
}

fn monitor(chardev: &Chardev) -> anyhow::Result<Monitor> {
    let socket = inherited(chardev.fd)?;
    if chardev.is_listening {
        Monitor::listening(UnixListener::from(socket))
    } else {
        Monitor::connected(socket)
    }
}

fn console(chardev: &Chardev, machine: &Machine) -> anyhow::Result<Console> {
    let log = match chardev.log_set {
        Some(set) => {
            let fd = machine.duplicate_fd(set);
            Some(fd.with_context(|| format!("Failed to find fdset /dev/fdset/{set}"))?)
        }
        None => None,
    };
    Console::new(UnixListener::from(inherited(chardev.fd)?), log)
}

/// A descriptor by its number. Taken through ourselves as another process would, which needs no unsafe code.
fn inherited(number: i32) -> anyhow::Result<OwnedFd> {
    let own = pidfd_open(getpid(), PidfdFlags::empty()).context("pidfd_open")?;
    pidfd_getfd(own.as_fd(), number, PidfdGetfdFlags::empty())
        .with_context(|| format!("descriptor {number}"))
}

fn signals() -> anyhow::Result<SignalFd> {
    let mut set = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        set.add(signal);
    }
    set.thread_block().context("block signals")?;
    SignalFd::with_flags(&set, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC).context("signalfd")
}

/// Rounded up, so that nothing is looked at too early and again.
fn timespec(duration: Duration) -> Timespec {
    let duration = duration + Duration::from_micros(1);
    Timespec {
        tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: duration.subsec_nanos().into(),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::os::fd::AsRawFd;

    use super::super::command_line::{self, Start};
    use super::*;

    /// The lines that the plan makes, which are also compared with golden text there.
    #[test]
    fn what_the_product_starts_is_understood() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../plan/tests/golden");
        let mut understood = 0;
        for entry in fs::read_dir(folder).expect("golden command lines") {
            let path = entry.expect("an entry").path();
            let text = fs::read_to_string(&path).expect("text");
            // What is opened by the number of a descriptor has to be there.
            let device = File::open("/dev/null").expect("a device");
            let text =
                text.replace("/proc/self/fd/21", &format!("/proc/self/fd/{}", device.as_raw_fd()));
            let arguments: Vec<String> =
                text.lines().flat_map(|line| line.splitn(2, ' ')).map(str::to_owned).collect();
            if !text.starts_with("-name ") {
                continue;
            }
            let Ok(Start::Machine(line)) = command_line::parse(&arguments) else {
                panic!("{}", path.display());
            };
            let chardevs: Vec<String> = line.chardev_ids().collect();
            let mut machine = Machine::new(Behaviour::default(), line.flash, true);
            machine.know_chardevs(chardevs);
            for passed in line.fds {
                let fd = File::open("/dev/null").expect("a file").into();
                machine.put_fd(Some(passed.set), passed.opaque, fd);
            }
            for (command, list) in [
                ("netdev_add", line.netdevs),
                ("blockdev-add", line.nodes),
                ("device_add", line.devices),
            ] {
                for properties in list {
                    plug(&mut machine, command, &properties).expect("as QEMU takes it");
                }
            }
            understood += 1;
        }
        assert!(understood >= 3, "only {understood} lines");
    }
}
