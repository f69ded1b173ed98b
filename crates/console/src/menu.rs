//! The vMP menu: what a line typed at one of its prompts means. A pure state machine; the session performs its actions.
//!
//! ```text
//!            CM                      PC
//!   Main ─────────► Command      ┌──────► PowerChoice ─ON, OFF, CYCLE─► PowerConfirm
//!    ▲   ◄─────────    │         │            │ Q                          │ y, n
//!    │     Ctrl-B      └─────────┴── Main or Command ◄─────────────────────┘
//!    │                           │   ▲
//!    └── Ctrl-B, anywhere        └───┘ HE … Q
//!
//!  IN, EJ ─► Drives ─► WhichDrive ─► WhichImage ─► done          each question only when there is a choice
//! ```
//!
//! Commands and answers are taken in either case. Ctrl-B leads to the main menu from everywhere and stops nothing that
//! was begun. Nothing here knows how a verb is done or what the guest's state is.

mod help;
mod media;

use std::fmt;

use crate::door::{Drive, DriveAddress, MediumRequest};
use media::{Next, Wish};

/// What the session is to do, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Show this.
    Print(String),
    /// Show this unless chatter is unwanted: menus, and how to get about.
    Chat(String),
    /// Tell whether the guest's power is on.
    ShowPower,
    /// Give the terminal to the guest's console. When it is left: [`Menu::resume`].
    EnterConsole,
    Power(PowerVerb),
    /// Ask for the guest's drives and tell [`Menu::drives`] of them. Always the last action.
    LookAtDrives,
    /// Ask for another medium in a drive, and tell what became of it.
    Medium(MediumRequest),
    /// Give the guest a drive of the VM Host back, and tell what became of it.
    GiveBack(DriveAddress),
    /// Tell that what was asked cannot be done, and why.
    Fail(String),
    /// Show this prompt and feed the next line. Always the last action.
    AskLine(String),
    /// The session is over. Always the last action.
    Exit,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PowerVerb {
    On,
    Off,
    Cycle,
}

impl PowerVerb {
    const ALL: [PowerVerb; 3] = [PowerVerb::On, PowerVerb::Off, PowerVerb::Cycle];

    fn parse(word: &str) -> Option<PowerVerb> {
        PowerVerb::ALL.into_iter().find(|verb| verb.to_string() == word.to_lowercase())
    }
}

impl fmt::Display for PowerVerb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            PowerVerb::On => "on",
            PowerVerb::Off => "off",
            PowerVerb::Cycle => "cycle",
        })
    }
}

/// A line that is no command.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MenuError {
    #[error("'{given}' is no vMP command here; there are {there}", there = help::COMMANDS_THERE_ARE)]
    Unknown { given: String },
    #[error("{command} takes no argument, but '{given}' was given")]
    Superfluous { command: &'static str, given: String },
    #[error("PC does not know '{given}'; give one of -on, -off, -cycle, or nothing to be asked")]
    PowerOption { given: String },
    #[error(
        "'{given}' is no option here; there are -pcipath BUS DEVICE TARGET and, for IN, -filedvd FILE"
    )]
    MediaOption { given: String },
    #[error(
        "'{given}' is no address of a drive; write -pcipath BUS DEVICE TARGET, such as -pcipath 0 1 0"
    )]
    DriveAddress { given: String },
    #[error("there is no help on '{given}'; LI lists what there is")]
    NoHelp { given: String },
}

/// A line of a menu, understood.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Command {
    Console,
    Menu,
    Power(Option<PowerVerb>),
    Medium(Wish),
    Help(Option<help::Topic>),
    Exit,
}

#[derive(Debug)]
pub struct Menu {
    guest: String,
    place: Place,
    dialogue: Dialogue,
}

/// The two menus with commands of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Main,
    Command,
}

/// What the next line answers.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Dialogue {
    /// The menu's prompt.
    None,
    Help,
    PowerChoice,
    PowerConfirm(PowerVerb),
    /// No line is asked for: the guest's drives are.
    Drives(Wish),
    WhichDrive {
        wish: Wish,
        drives: Vec<Drive>,
    },
    WhichImage(Drive),
}

impl Menu {
    #[must_use]
    pub fn new(guest: &str) -> Menu {
        Menu { guest: guest.into(), place: Place::Main, dialogue: Dialogue::None }
    }

    /// The session begins.
    #[must_use]
    pub fn open(&self) -> Vec<Action> {
        vec![Action::Chat(help::MAIN_MENU.into()), self.ask()]
    }

    /// The console was left, or Ctrl-B was typed at a prompt: back to the main menu.
    pub fn resume(&mut self) -> Vec<Action> {
        self.place = Place::Main;
        self.dialogue = Dialogue::None;
        self.open()
    }

    /// Whether the next line is a command, not an answer to a question of one. Help counts as answered: to leave it there
    /// loses nothing.
    #[must_use]
    pub fn awaits_command(&self) -> bool {
        matches!(self.dialogue, Dialogue::None | Dialogue::Help)
    }

    /// A line of the user.
    ///
    /// # Errors
    /// When it is no command or answer; [`Menu::ask`] asks for the next.
    pub fn try_feed(&mut self, line: &str) -> Result<Vec<Action>, MenuError> {
        let line = line.trim();
        match self.dialogue.clone() {
            Dialogue::None => self.command(line),
            Dialogue::Help => self.help(line),
            Dialogue::PowerChoice => Ok(self.power_choice(line)),
            Dialogue::PowerConfirm(verb) => Ok(self.power_confirm(verb, line)),
            Dialogue::Drives(_) => Ok(vec![Action::LookAtDrives]),
            Dialogue::WhichDrive { wish, drives } => Ok(self.drive_chosen(wish, drives, line)),
            Dialogue::WhichImage(drive) => Ok(self.image_chosen(&drive, line)),
        }
    }

    /// The guest's drives, as they were asked for, or why they are not known.
    pub fn drives(&mut self, drives: Result<Vec<Drive>, String>) -> Vec<Action> {
        let Dialogue::Drives(wish) = std::mem::replace(&mut self.dialogue, Dialogue::None) else {
            return vec![self.ask()];
        };
        match drives {
            Ok(drives) => self.go_on(wish.among(drives)),
            Err(why) => vec![Action::Fail(why), self.ask()],
        }
    }

    /// The next question about a medium, or the end of them.
    fn go_on(&mut self, next: Next) -> Vec<Action> {
        self.dialogue = Dialogue::None;
        let action = match next {
            Next::Change { drive, image } => Action::Medium(MediumRequest { drive, image }),
            Next::GiveBack(drive) => Action::GiveBack(drive),
            Next::Nothing(why) => Action::Print(format!("\n   {}.\n\n", capitalized(&why))),
            Next::Impossible(why) => Action::Fail(why),
            Next::WhichDrive { wish, drives } => {
                let text = media::drives_text(&drives);
                self.dialogue = Dialogue::WhichDrive { wish, drives };
                Action::Print(text)
            }
            Next::WhichImage(drive) => {
                let text = media::images_text(&drive);
                self.dialogue = Dialogue::WhichImage(drive);
                Action::Print(text)
            }
        };
        vec![action, self.ask()]
    }

    fn drive_chosen(&mut self, wish: Wish, mut drives: Vec<Drive>, line: &str) -> Vec<Action> {
        match media::choice(line, drives.len()) {
            Some(index) => self.go_on(wish.on(drives.swap_remove(index))),
            None if is_quit(line) => self.unchanged(),
            None => vec![Action::Print(media::no_choice(line, drives.len())), self.ask()],
        }
    }

    fn image_chosen(&mut self, drive: &Drive, line: &str) -> Vec<Action> {
        // A file may be called `q`, and is chosen by its number.
        if is_quit(line) {
            return self.unchanged();
        }
        let image = match media::choice(line, drive.images.len()) {
            Some(index) => Some(&drive.images[index]),
            None => drive.images.iter().find(|image| *image == line),
        };
        match image {
            Some(image) => {
                self.go_on(Next::Change { drive: drive.address, image: Some(image.clone()) })
            }
            None => vec![Action::Print(media::no_choice(line, drive.images.len())), self.ask()],
        }
    }

    /// A line of the user, with what is wrong with it as an answer.
    pub fn feed(&mut self, line: &str) -> Vec<Action> {
        self.try_feed(line).unwrap_or_else(|error| {
            vec![
                Action::Print(format!("\n   {}.\n\n", capitalized(&error.to_string()))),
                self.ask(),
            ]
        })
    }

    /// Asks for the next line.
    #[must_use]
    pub fn ask(&self) -> Action {
        let guest = &self.guest;
        Action::AskLine(match (&self.dialogue, self.place) {
            (Dialogue::None, Place::Main) => format!("[{guest}] vMP> "),
            (Dialogue::None, Place::Command) => format!("[{guest}] vMP:CM> "),
            (Dialogue::Help, _) => format!("[{guest}] vMP:HE> "),
            (Dialogue::PowerChoice, _) => "   ON, OFF, CYCLE or Q: ".into(),
            (Dialogue::PowerConfirm(_), _) => "   Confirm? (y/[n]): ".into(),
            (Dialogue::Drives(_), _) => String::new(),
            (Dialogue::WhichDrive { drives, .. }, _) => {
                format!("   Which drive? 1 to {}, or Q: ", drives.len())
            }
            (Dialogue::WhichImage(drive), _) => {
                format!("   Which image? 1 to {}, or Q: ", drive.images.len())
            }
        })
    }

    fn command(&mut self, line: &str) -> Result<Vec<Action>, MenuError> {
        let Some(command) = Command::parse(line)? else { return Ok(vec![self.ask()]) };
        Ok(match command {
            Command::Console => vec![Action::EnterConsole],
            Command::Menu => {
                self.place = Place::Command;
                vec![Action::Chat(help::COMMAND_MENU.into()), self.ask()]
            }
            Command::Medium(wish) => {
                self.dialogue = Dialogue::Drives(wish);
                vec![Action::LookAtDrives]
            }
            Command::Power(Some(verb)) => vec![Action::Power(verb), self.ask()],
            Command::Power(None) => {
                self.dialogue = Dialogue::PowerChoice;
                vec![
                    Action::Print("\n".into()),
                    Action::ShowPower,
                    Action::Print(help::POWER_CHOICE.into()),
                    self.ask(),
                ]
            }
            Command::Help(Some(topic)) => vec![Action::Print(topic.text()), self.ask()],
            Command::Help(None) => {
                self.dialogue = Dialogue::Help;
                vec![Action::Print(help::SCREEN.into()), self.ask()]
            }
            Command::Exit => vec![Action::Exit],
        })
    }

    fn help(&mut self, line: &str) -> Result<Vec<Action>, MenuError> {
        if line.is_empty() {
            return Ok(vec![self.ask()]);
        }
        if matches!(line.to_lowercase().as_str(), "q" | "quit") {
            self.dialogue = Dialogue::None;
            return Ok(vec![self.ask()]);
        }
        Ok(vec![Action::Print(help::Topic::parse(line)?.text()), self.ask()])
    }

    fn power_choice(&mut self, line: &str) -> Vec<Action> {
        if is_quit(line) {
            return self.unchanged();
        }
        let Some(verb) = PowerVerb::parse(line.trim_start_matches('-')) else {
            return vec![self.ask()];
        };
        self.dialogue = Dialogue::PowerConfirm(verb);
        let effect = match verb {
            PowerVerb::On => "switched on",
            PowerVerb::Off => "switched off at once, as if unplugged",
            PowerVerb::Cycle => "switched off at once, as if unplugged, and on again",
        };
        vec![Action::Print(format!("\n   Guest '{}' will be {effect}.\n", self.guest)), self.ask()]
    }

    fn power_confirm(&mut self, verb: PowerVerb, line: &str) -> Vec<Action> {
        if !matches!(line.to_lowercase().as_str(), "y" | "yes") {
            return self.unchanged();
        }
        self.dialogue = Dialogue::None;
        vec![Action::Power(verb), self.ask()]
    }

    fn unchanged(&mut self) -> Vec<Action> {
        self.dialogue = Dialogue::None;
        vec![Action::Print("   Nothing was changed.\n\n".into()), self.ask()]
    }
}

impl Command {
    /// An empty line is no command and no mistake.
    fn parse(line: &str) -> Result<Option<Command>, MenuError> {
        let mut words = line.split_whitespace();
        let Some(word) = words.next() else { return Ok(None) };
        let arguments: Vec<&str> = words.collect();
        let alone = |command: &'static str, meaning: Command| match arguments.first() {
            None => Ok(Some(meaning)),
            Some(given) => Err(MenuError::Superfluous { command, given: quoted(given) }),
        };
        match word.to_uppercase().as_str() {
            "CO" => alone("CO", Command::Console),
            "CM" => alone("CM", Command::Menu),
            "X" => alone("X", Command::Exit),
            "PC" => Command::power(&arguments).map(Some),
            "IN" => Ok(Some(Command::Medium(Wish::insert(&arguments)?))),
            "EJ" => Ok(Some(Command::Medium(Wish::eject(&arguments)?))),
            "HE" | "HELP" | "?" => match arguments[..] {
                [] => Ok(Some(Command::Help(None))),
                [topic] => Ok(Some(Command::Help(Some(help::Topic::parse(topic)?)))),
                [_, given, ..] => {
                    Err(MenuError::Superfluous { command: "HE", given: quoted(given) })
                }
            },
            _ => Err(MenuError::Unknown { given: quoted(word) }),
        }
    }

    fn power(arguments: &[&str]) -> Result<Command, MenuError> {
        let verb = |option: &str| PowerVerb::parse(option.strip_prefix('-')?);
        match arguments {
            [] => Ok(Command::Power(None)),
            [option] => match verb(option) {
                Some(verb) => Ok(Command::Power(Some(verb))),
                None => Err(MenuError::PowerOption { given: quoted(option) }),
            },
            [_, given, ..] => {
                Err(MenuError::Superfluous { command: "PC with an option", given: quoted(given) })
            }
        }
    }
}

/// Whether a question is left with nothing done.
fn is_quit(line: &str) -> bool {
    line.is_empty() || matches!(line.to_lowercase().as_str(), "q" | "quit")
}

/// A word of the user, fit to be shown: control bytes spelled out, and not endless.
fn quoted(word: &str) -> String {
    const SHOWN_CHARACTERS_MAX: usize = 40;
    let mut shown: String = word.chars().take(SHOWN_CHARACTERS_MAX).map(spelled).collect();
    if word.chars().count() > SHOWN_CHARACTERS_MAX {
        shown.push('…');
    }
    shown
}

fn spelled(letter: char) -> String {
    match letter {
        '\'' | '"' => letter.into(),
        other => other.escape_debug().collect(),
    }
}

pub(crate) fn capitalized(sentence: &str) -> String {
    let mut characters = sentence.chars();
    characters
        .next()
        .map_or_else(String::new, |first| first.to_uppercase().chain(characters).collect())
}
