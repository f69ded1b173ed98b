//! The vMP menu: what a line typed at one of its prompts means. A pure state machine; the session performs its actions.
//!
//! ```text
//!            CM                      PC
//!   Main ─────────► Command      ┌──────► PowerChoice ─ON, OFF, CYCLE─► PowerConfirm
//!    ▲   ◄─────────    │         │            │ Q                          │ y, n
//!    │     Ctrl-B      └─────────┴── Main or Command ◄─────────────────────┘
//!    │                           │   ▲
//!    └── Ctrl-B, anywhere        └───┘ HE … Q
//! ```
//!
//! Commands and answers are taken in either case. Ctrl-B leads to the main menu from everywhere and stops nothing that
//! was begun. Nothing here knows how a verb is done or what the guest's state is.

mod help;

use std::fmt;

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
    #[error("there is no help on '{given}'; LI lists what there is")]
    NoHelp { given: String },
}

/// A line of a menu, understood.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Command {
    Console,
    Menu,
    Power(Option<PowerVerb>),
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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Dialogue {
    /// The menu's prompt.
    None,
    Help,
    PowerChoice,
    PowerConfirm(PowerVerb),
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
        match self.dialogue {
            Dialogue::None => self.command(line),
            Dialogue::Help => self.help(line),
            Dialogue::PowerChoice => Ok(self.power_choice(line)),
            Dialogue::PowerConfirm(verb) => Ok(self.power_confirm(verb, line)),
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
        Action::AskLine(match (self.dialogue, self.place) {
            (Dialogue::None, Place::Main) => format!("[{guest}] vMP> "),
            (Dialogue::None, Place::Command) => format!("[{guest}] vMP:CM> "),
            (Dialogue::Help, _) => format!("[{guest}] vMP:HE> "),
            (Dialogue::PowerChoice, _) => "   ON, OFF, CYCLE or Q: ".into(),
            (Dialogue::PowerConfirm(_), _) => "   Confirm? (y/[n]): ".into(),
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
        if line.is_empty() || matches!(line.to_lowercase().as_str(), "q" | "quit") {
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

/// A word of the user, fit to be shown: control bytes spelled out, and not endless.
fn quoted(word: &str) -> String {
    const SHOWN_CHARACTERS_MAX: usize = 40;
    let mut shown: String =
        word.chars().take(SHOWN_CHARACTERS_MAX).flat_map(char::escape_debug).collect();
    if word.chars().count() > SHOWN_CHARACTERS_MAX {
        shown.push('…');
    }
    shown
}

pub(crate) fn capitalized(sentence: &str) -> String {
    let mut characters = sentence.chars();
    characters
        .next()
        .map_or_else(String::new, |first| first.to_uppercase().chain(characters).collect())
}
