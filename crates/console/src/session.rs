//! One session of hpvmconsole, from the first prompt to its exit status: ties menu, terminal and door together.
//!
//! The command hpvmconsole calls [`run`] and is reached back through [`Guest`], which knows where the guest's worker
//! listens and how power verbs are done. The session does not end with its guest: it outlives power off and cycle, and a
//! worker that is replaced.

mod console;
mod takeover;

use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use crate::attachment::{DoorFailure, request_drives, request_medium};
use crate::door::{Drive, DriveAddress, MediumRequest};
use crate::menu::{Action, Menu, PowerVerb, capitalized};
use crate::terminal::{Line, Mode, Terminal};
use console::Left;

/// Nothing at a prompt happens by itself; the wait has a bound all the same.
const PROMPT_WAIT: Duration = Duration::from_secs(60);
/// A guest that locked its drive is given some seconds to let the medium go, and a folder some to be read.
const MEDIA_PATIENCE: Duration = Duration::from_secs(20);

/// What a session needs of its guest.
pub trait Guest {
    fn name(&self) -> &str;

    /// Whether the guest's power is on, as hpvmstatus would say. Asked often: it should speak to no process.
    fn state(&mut self) -> GuestPower;

    /// A stream to the door of the guest's worker; `None` when the guest is off.
    ///
    /// # Errors
    /// When the worker cannot be reached, or refuses the user.
    fn connect(&mut self) -> io::Result<Option<UnixStream>>;

    /// Performs a power verb with the caller's rights, and says what was done, or why not; `report` is given the lines that
    /// are to be read before that. The terminal is in its usual state meanwhile.
    ///
    /// # Errors
    /// When the verb was refused or failed.
    fn power(&mut self, verb: PowerVerb, report: &mut dyn FnMut(&str)) -> Result<String, String>;

    /// Gives the guest the drive of the VM Host back that was ejected there, with the caller's rights; tells what came of it.
    ///
    /// # Errors
    /// When that was refused or failed.
    fn give_back(&mut self, drive: DriveAddress) -> Result<String, String>;
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestPower {
    On,
    Off,
}

#[derive(Clone, Copy, Debug)]
pub struct Options<'a> {
    /// Run this vMP command and end.
    pub command: Option<&'a str>,
    pub chatter: Chatter,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chatter {
    Full,
    /// No menus, hints and rulers, and prompts on a terminal only.
    Quiet,
}

/// How a session ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    Done,
    /// The command of `-c` failed, or a question was left without an answer.
    Failed(String),
    /// The command of `-c` is none.
    Usage(String),
    /// A signal asked the session to end.
    Signal(i32),
}

impl End {
    /// The exit status for it.
    #[must_use]
    pub fn status(&self) -> u8 {
        match self {
            End::Done => 0,
            End::Failed(_) => 1,
            End::Usage(_) => 2,
            End::Signal(number) => {
                u8::try_from(*number).map_or(1, |number| number.saturating_add(128))
            }
        }
    }
}

/// The session cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    #[error("the terminal or the standard input or output of the console failed")]
    Terminal(#[from] io::Error),
}

/// Holds one session: asks, performs, and returns when it is over and all its output is written.
///
/// # Errors
/// When standard input or output is broken.
pub fn run(
    guest: &mut dyn Guest,
    options: &Options<'_>,
    input: BorrowedFd<'_>,
    output: BorrowedFd<'_>,
) -> Result<End, SessionError> {
    let terminal = Terminal::new(input, output)?;
    let menu = Menu::new(guest.name());
    let mut session = Session {
        guest,
        terminal,
        menu,
        chatter: options.chatter,
        one_command: options.command.is_some(),
    };
    let end = match options.command {
        None => session.interactive()?,
        Some(command) => session.one_command(command)?,
    };
    session.terminal.set_mode(Mode::Original)?;
    session.terminal.drain()?;
    Ok(end)
}

struct Session<'a> {
    guest: &'a mut dyn Guest,
    terminal: Terminal<'a>,
    menu: Menu,
    chatter: Chatter,
    one_command: bool,
}

/// What performing actions led to.
enum Performed {
    /// A line is to be read.
    Asked,
    Over(End),
}

impl Session<'_> {
    fn interactive(&mut self) -> Result<End, SessionError> {
        let mut actions = self.menu.open();
        loop {
            if let Performed::Over(end) = self.perform(actions)? {
                return Ok(end);
            }
            actions = match self.read_line()? {
                Read::Line(Line::Text(line)) => self.menu.feed(&line),
                Read::Line(Line::CtrlB) => {
                    self.terminal.print("\n");
                    self.menu.resume()
                }
                Read::Line(Line::TooLong) => self.too_long(),
                Read::Ended => return Ok(self.input_ended()),
                Read::Signal(number) => return Ok(End::Signal(number)),
            };
        }
    }

    /// Runs `command` with the questions it has, and no further.
    fn one_command(&mut self, command: &str) -> Result<End, SessionError> {
        let mut actions = match self.menu.try_feed(command) {
            Ok(actions) => actions,
            Err(error) => return Ok(End::Usage(error.to_string())),
        };
        loop {
            if let Performed::Over(end) = self.perform(actions)? {
                return Ok(end);
            }
            if self.menu.awaits_command() {
                return Ok(End::Done);
            }
            actions = match self.read_line()? {
                Read::Line(Line::Text(line)) => self.menu.feed(&line),
                Read::Line(Line::CtrlB) => {
                    return Ok(End::Failed("left by Ctrl-B; nothing was changed".into()));
                }
                Read::Line(Line::TooLong) => self.too_long(),
                Read::Ended => return Ok(self.input_ended()),
                Read::Signal(number) => return Ok(End::Signal(number)),
            };
        }
    }

    fn perform(&mut self, actions: Vec<Action>) -> Result<Performed, SessionError> {
        for action in actions {
            match action {
                Action::Print(text) => self.terminal.print(&text),
                Action::Chat(text) => self.chat(&text),
                Action::ShowPower => {
                    let power = match self.guest.state() {
                        GuestPower::On => "On",
                        GuestPower::Off => "Off",
                    };
                    self.terminal
                        .print(&format!("   Power of guest '{}': {power}\n", self.guest.name()));
                }
                Action::EnterConsole => return self.enter_console(),
                Action::Power(verb) => {
                    if let Some(end) = self.power(verb)? {
                        return Ok(Performed::Over(end));
                    }
                }
                Action::LookAtDrives => {
                    let drives = self.drives()?;
                    let actions = self.menu.drives(drives);
                    return self.perform(actions);
                }
                Action::Medium(request) => {
                    if let Some(end) = self.medium(request)? {
                        return Ok(Performed::Over(end));
                    }
                }
                Action::GiveBack(drive) => {
                    if let Some(end) = self.give_back(drive)? {
                        return Ok(Performed::Over(end));
                    }
                }
                Action::Fail(why) if self.one_command => {
                    return Ok(Performed::Over(End::Failed(why)));
                }
                Action::Fail(why) => {
                    self.terminal.print(&format!("\n   {}.\n\n", capitalized(&why)));
                }
                // Nothing more is asked after the one command.
                Action::AskLine(_) if self.one_command && self.menu.awaits_command() => {}
                Action::AskLine(prompt) => {
                    if self.chatter == Chatter::Full || self.terminal.input_is_terminal() {
                        self.terminal.print(&prompt);
                    }
                }
                Action::Exit => return Ok(Performed::Over(End::Done)),
            }
        }
        Ok(Performed::Asked)
    }

    fn enter_console(&mut self) -> Result<Performed, SessionError> {
        let left = self.console()?;
        self.terminal.set_mode(Mode::Original)?;
        let failed = match left {
            Left::Signal(number) => return Ok(Performed::Over(End::Signal(number))),
            Left::InputEnded => return Ok(Performed::Over(End::Done)),
            Left::CtrlB | Left::GuestEnded => None,
            Left::Failed(why) => Some(why),
        };
        if self.one_command {
            return Ok(Performed::Over(failed.map_or(End::Done, End::Failed)));
        }
        if let Some(why) = failed {
            self.terminal.print(&format!("\n   {}.\n", capitalized(&why)));
        }
        let actions = self.menu.resume();
        self.perform(actions)
    }

    /// Performs a power verb; the session is over when that was all it was for and it failed.
    fn power(&mut self, verb: PowerVerb) -> Result<Option<End>, SessionError> {
        // What was said so far is seen before a verb that takes its time, and in order with what the verb prints.
        self.terminal.drain()?;
        let guest = &mut *self.guest;
        let mut report = String::new();
        let mut collect = |line: &str| report.push_str(&format!("   {line}\n"));
        let done = self.terminal.lend(|| guest.power(verb, &mut collect))?;
        match done {
            Ok(done) if self.one_command => self.terminal.print(&format!("{report}{done}\n")),
            Ok(done) => self.terminal.print(&format!("\n{report}   {done}\n\n")),
            Err(why) if self.one_command => {
                self.terminal.print(&report);
                return Ok(Some(End::Failed(why)));
            }
            Err(why) => self.terminal.print(&format!("\n{report}   PC failed: {why}\n\n")),
        }
        Ok(None)
    }

    /// A session's own way to the worker: the console's stream, if there is one, goes on undisturbed.
    fn at_the_door<T>(
        &mut self,
        ask: impl FnOnce(UnixStream) -> Result<Result<T, String>, DoorFailure>,
    ) -> Result<Result<T, String>, SessionError> {
        self.terminal.drain()?;
        let name = self.guest.name().to_owned();
        Ok(match self.guest.connect() {
            Ok(Some(stream)) => ask(stream).unwrap_or_else(|failure| Err(failure.to_string())),
            Ok(None) => Err(format!(
                "guest '{name}' is off; `hpvmmodify -P {name} -m dvd:ADAPTER:BUS,DEVICE,TARGET:file:IMAGE` changes the medium it will start with, and `hpvmstatus -P {name} -d` shows its drives"
            )),
            Err(error) => Err(format!("the worker of guest '{name}' cannot be reached: {error}")),
        })
    }

    fn drives(&mut self) -> Result<Result<Vec<Drive>, String>, SessionError> {
        self.at_the_door(|stream| request_drives(stream, MEDIA_PATIENCE))
    }

    /// Changes a medium; the session is over when that was all it was for and it failed.
    fn medium(&mut self, request: MediumRequest) -> Result<Option<End>, SessionError> {
        let done = match &request.image {
            // A name is not capitalized, as a first word would be.
            Some(image) => format!("the drive at {} has {image}", request.drive),
            None => format!("the drive at {} is empty", request.drive),
        };
        let changed = self.at_the_door(|stream| request_medium(stream, request, MEDIA_PATIENCE))?;
        Ok(self.tell(changed.map(|_| done)))
    }

    fn give_back(&mut self, drive: DriveAddress) -> Result<Option<End>, SessionError> {
        self.terminal.drain()?;
        let guest = &mut *self.guest;
        let given = self.terminal.lend(|| guest.give_back(drive))?;
        Ok(self.tell(given))
    }

    /// Tells what was done, or why not; the session is over when that was all it was for and it failed.
    fn tell(&mut self, outcome: Result<String, String>) -> Option<End> {
        match outcome {
            Ok(done) if self.one_command => self.terminal.print(&format!("{done}\n")),
            Err(why) if self.one_command => return Some(End::Failed(why)),
            Ok(text) | Err(text) => {
                self.terminal.print(&format!("\n   {}.\n\n", capitalized(&text)));
            }
        }
        None
    }

    fn read_line(&mut self) -> Result<Read, SessionError> {
        self.terminal.set_mode(Mode::Line)?;
        loop {
            if let Some(line) = self.terminal.take_line() {
                return Ok(Read::Line(line));
            }
            if self.terminal.input_ended() {
                return Ok(Read::Ended);
            }
            let woken = self.terminal.wait(None, Instant::now() + PROMPT_WAIT)?;
            if let Some(number) = woken.signal {
                return Ok(Read::Signal(number));
            }
        }
    }

    fn too_long(&mut self) -> Vec<Action> {
        vec![
            Action::Print("\n   The line is too long for a vMP command.\n\n".into()),
            self.menu.ask(),
        ]
    }

    /// The end of the input leaves the session; to a question it means no.
    fn input_ended(&mut self) -> End {
        self.terminal.print("\n");
        if self.menu.awaits_command() {
            End::Done
        } else {
            End::Failed(
                "the input ended before the question was answered; nothing was changed".into(),
            )
        }
    }

    fn chat(&mut self, text: &str) {
        if self.chatter == Chatter::Full {
            self.terminal.print(text);
        }
    }
}

/// What came at a prompt.
enum Read {
    Line(Line),
    Ended,
    Signal(i32),
}
