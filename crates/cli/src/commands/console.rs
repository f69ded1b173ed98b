//! hpvmconsole: the virtual console of a guest.

use std::io::{self, ErrorKind, stdin, stdout};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use crate::args::Selector;
use crate::dispatch::{Context, Perform};
use crate::exit::Failure;
use crate::messages::{printable, start_report};
use crate::output::{self, OutputError};
use crate::usage;
use clap::CommandFactory;
use hpvm_console::door::DriveAddress;
use hpvm_console::menu::PowerVerb;
use hpvm_console::session::{self, Chatter, End, GuestPower, Options, SessionError};
use hpvm_host::names::run_folder;
use hpvm_model::{GuestConfig, PciSlot, Problem, Severity, StorageAddress, chain};
use hpvm_operations::console_media;
use hpvm_operations::start::{Started, start};
use hpvm_operations::stop::{Before, How, cycle, stop};
use hpvm_operations::{Mode, Refusal, VmHost};
use hpvm_registry::Access;

use super::conf_faults;
use super::start::cannot_start;

/// Use a guest's virtual console
///
/// Opens the console's main menu; CO goes on to the guest's serial console with what it printed before, Ctrl-B comes back to
/// the menu, X there ends the session. The guest runs on. Of several sessions one types and the others watch.
#[derive(Debug, clap::Parser)]
pub struct Console {
    #[command(flatten)]
    pub guest: Selector,

    /// Run one command of the console, such as "pc -off", and end
    #[arg(short = 'c', long, value_name = "COMMAND", value_parser = one_command)]
    pub command: Option<String>,

    /// Nothing around the command's output
    #[arg(short = 'q', long)]
    pub quiet: bool,
}

#[derive(Debug, thiserror::Error)]
#[error("no command stands there; say which the console is to run, such as -c 'pc -off'")]
struct NoCommand;

/// A variable of a script that is empty is a mistake there, and no command.
fn one_command(text: &str) -> Result<String, NoCommand> {
    match text.trim().is_empty() {
        true => Err(NoCommand),
        false => Ok(text.to_owned()),
    }
}

impl Perform for Console {
    fn perform(self, context: &Context) -> Result<(), Failure> {
        output::must_be_open()?;
        let host = VmHost::open(Access::ReadOnly)?;
        let config = host.guest(&self.guest.clone().into())?;
        let is_one_command = self.command.is_some();
        let mut guest = ConsoleGuest { host, config, context, is_one_command };
        let chatter = if self.quiet { Chatter::Quiet } else { Chatter::Full };
        let options = Options { command: self.command.as_deref(), chatter };
        match session::run(&mut guest, &options, stdin().as_fd(), stdout().as_fd())
            .map_err(failure)?
        {
            End::Done => Ok(()),
            End::Failed(text) => Err(Failure::refused(text)),
            End::Usage(text) => {
                let options = Console::command().bin_name(context.say.command());
                Err(usage::failure(text, options))
            }
            End::Signal(number) => Err(Failure::Signal(number)),
        }
    }
}

fn failure(error: SessionError) -> Failure {
    match error {
        // Nobody writes into a pipe that a session reads from.
        SessionError::Terminal(lost) if lost.kind() == ErrorKind::BrokenPipe => {
            OutputError::of(lost).into()
        }
        other => other.into(),
    }
}

/// The guest of a session: its state from /run, its door, and power by the same operations as hpvmstart and hpvmstop.
struct ConsoleGuest<'a> {
    host: VmHost,
    config: GuestConfig,
    context: &'a Context,
    is_one_command: bool,
}

impl session::Guest for ConsoleGuest<'_> {
    fn name(&self) -> &str {
        self.config.name.as_str()
    }

    fn state(&mut self) -> GuestPower {
        match self.host.presence(self.config.number).is_on() {
            true => GuestPower::On,
            false => GuestPower::Off,
        }
    }

    fn connect(&mut self) -> io::Result<Option<UnixStream>> {
        if self.state() == GuestPower::Off {
            return Ok(None);
        }
        // Where it cannot be taken over, its door stays shut until somebody can.
        let _ = self.host.adopt_orphan(&self.config);
        let door = self.host.root.run_dir(self.config.number.get()).join(run_folder::DOOR);
        UnixStream::connect(door).map(Some)
    }

    fn power(&mut self, verb: PowerVerb, report: &mut dyn FnMut(&str)) -> Result<String, String> {
        let opened = match verb {
            PowerVerb::Off => VmHost::open_to_end_guests(),
            PowerVerb::On | PowerVerb::Cycle => VmHost::open(Access::ReadWrite),
        };
        let mut host = opened.map_err(|e| chain(&e))?;
        let actor = self.context.actor(None);
        let (host, config) = (&mut host, &self.config);
        let (started, done) = match verb {
            PowerVerb::On => (start(host, &actor, config, Mode::Apply), "the power is on"),
            PowerVerb::Cycle => (cycle(host, &actor, config), "the power was cycled"),
            PowerVerb::Off => {
                let stopped = stop(host, &actor, config, How::Hard, &mut |_| {});
                let said = stopped.map(|stopped| match stopped.before {
                    Before::Off => "the power is off already",
                    Before::On => "the power is off",
                });
                return said.map(str::to_owned).map_err(in_a_line);
            }
        };
        match started {
            Ok(Started::WasOn) => Ok("the power is on already".into()),
            Ok(Started::Now(problems) | Started::Judged(problems)) => {
                self.tell(conf_faults(host).as_deref(), &problems, report);
                Ok(done.into())
            }
            Err(Refusal::Problems(problems)) => {
                self.tell(None, &problems, report);
                Err(cannot_start(&config.name))
            }
            Err(other) => Err(in_a_line(other)),
        }
    }

    fn give_back(&mut self, drive: DriveAddress) -> Result<String, String> {
        let none = || format!("no drive of this VM Host was ejected at {drive}");
        let DriveAddress { bus, device, target } = drive;
        let slot = PciSlot::new(bus, device).map_err(|_| none())?;
        let address = StorageAddress { slot, target };
        let mut host = VmHost::open(Access::ReadWrite).map_err(|e| chain(&e))?;
        let actor = self.context.actor(None);
        let given = console_media::give_back(&mut host, &actor, &self.config, address);
        let given = given.ok_or_else(none)?.map_err(in_a_line)?;
        let problems = given.problems.into_iter().map(|problem| problem.text);
        let done = format!("the guest has the VM Host's drive at {drive} again");
        Ok([done].into_iter().chain(problems).chain(given.pending).collect::<Vec<_>>().join("; "))
    }
}

impl ConsoleGuest<'_> {
    /// What hpvmstart says of a start besides its outcome: one command has a standard error for it, as hpvmstart has.
    fn tell(&self, faults: Option<&str>, problems: &[Problem], report: &mut dyn FnMut(&str)) {
        let (say, name) = (&self.context.say, &self.config.name);
        if self.is_one_command {
            if let Some(faults) = faults {
                say.warning(None, faults);
            }
            return say.start_problems(name, problems);
        }
        if let Some(faults) = faults {
            report(&format!("{}: {}", Severity::Warning, printable(faults)));
        }
        start_report(name, problems).lines().for_each(report);
    }
}

fn in_a_line(refusal: Refusal) -> String {
    match refusal {
        Refusal::Problems(problems) => {
            problems.iter().map(|p| p.text.as_str()).collect::<Vec<_>>().join("; ")
        }
        other => chain(&other),
    }
}
