//! Which guest a command is about: `-P NAME` or `-p NUMBER`, exactly one of them. The types implement clap's traits by
//! hand, since clap has no way to derive an enum of options.

use std::fmt;

use clap::builder::ValueParser;
use clap::error::ErrorKind;
use clap::{Arg, ArgAction, ArgGroup, ArgMatches, Args, Command, Error, FromArgMatches};
use hpvm_model::{GuestName, GuestNumber};

const NAME: &str = "name";
const NUMBER: &str = "number";
const ALL: &str = "all";
const ARGUMENT: &str = "guest-name";
const GROUP: &str = "guest";

/// A guest by name or by number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selector {
    Name(GuestName),
    Number(GuestNumber),
}

/// As [`Selector`], and the name may stand without `-P`: for the commands A.03.50 did not have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestArgument(pub Selector);

/// What hpvmstop stops.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StopTarget {
    Guest(Selector),
    All,
}

impl Selector {
    /// The guest's name, if it was given by that.
    #[must_use]
    pub fn name(&self) -> Option<&GuestName> {
        match self {
            Selector::Name(name) => Some(name),
            Selector::Number(_) => None,
        }
    }

    /// The guest alone, however it was given.
    #[must_use]
    pub fn shown(&self) -> String {
        match self {
            Selector::Name(name) => name.to_string(),
            Selector::Number(number) => number.to_string(),
        }
    }
}

impl From<Selector> for hpvm_registry::Selector {
    fn from(selector: Selector) -> hpvm_registry::Selector {
        match selector {
            Selector::Name(name) => hpvm_registry::Selector::Name(name),
            Selector::Number(number) => hpvm_registry::Selector::Number(number),
        }
    }
}

impl fmt::Display for Selector {
    /// As it is typed: `-P web`, `-p 3`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Selector::Name(name) => write!(f, "-P {name}"),
            Selector::Number(number) => write!(f, "-p {number}"),
        }
    }
}

fn name() -> Arg {
    Arg::new(NAME)
        .short('P')
        .long("name")
        .value_name("NAME")
        .value_parser(ValueParser::new(str::parse::<GuestName>))
        .help("The guest, by name")
}

fn number() -> Arg {
    Arg::new(NUMBER)
        .short('p')
        .long("number")
        .value_name("NUMBER")
        .value_parser(ValueParser::new(str::parse::<GuestNumber>))
        .help("The guest, by number")
}

fn one_of<const N: usize>(ids: [&'static str; N]) -> ArgGroup {
    ArgGroup::new(GROUP).args(ids).required(true).multiple(false)
}

/// The selector given, if any was.
fn given(matches: &ArgMatches) -> Option<Selector> {
    let name = || matches.get_one::<GuestName>(NAME).cloned().map(Selector::Name);
    let number = || matches.get_one::<GuestNumber>(NUMBER).copied().map(Selector::Number);
    name().or_else(number)
}

fn missing() -> Error {
    Error::raw(ErrorKind::MissingRequiredArgument, "no guest is named")
}

impl FromArgMatches for Selector {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Selector, Error> {
        given(matches).ok_or_else(missing)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), Error> {
        *self = Selector::from_arg_matches(matches)?;
        Ok(())
    }
}

impl Args for Selector {
    fn group_id() -> Option<clap::Id> {
        Some(GROUP.into())
    }

    fn augment_args(command: Command) -> Command {
        command.args([name(), number()]).group(one_of([NAME, NUMBER]))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Selector::augment_args(command)
    }
}

impl FromArgMatches for GuestArgument {
    fn from_arg_matches(matches: &ArgMatches) -> Result<GuestArgument, Error> {
        let argument = || matches.get_one::<GuestName>(ARGUMENT).cloned().map(Selector::Name);
        given(matches).or_else(argument).map(GuestArgument).ok_or_else(missing)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), Error> {
        *self = GuestArgument::from_arg_matches(matches)?;
        Ok(())
    }
}

impl Args for GuestArgument {
    fn group_id() -> Option<clap::Id> {
        Some(GROUP.into())
    }

    fn augment_args(command: Command) -> Command {
        let argument = Arg::new(ARGUMENT)
            .value_name("GUEST")
            .value_parser(ValueParser::new(str::parse::<GuestName>))
            .help("The guest, by name");
        command.args([name(), number(), argument]).group(one_of([NAME, NUMBER, ARGUMENT]))
    }

    fn augment_args_for_update(command: Command) -> Command {
        GuestArgument::augment_args(command)
    }
}

impl FromArgMatches for StopTarget {
    fn from_arg_matches(matches: &ArgMatches) -> Result<StopTarget, Error> {
        match given(matches) {
            Some(selector) => Ok(StopTarget::Guest(selector)),
            None if matches.get_flag(ALL) => Ok(StopTarget::All),
            None => Err(missing()),
        }
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), Error> {
        *self = StopTarget::from_arg_matches(matches)?;
        Ok(())
    }
}

impl Args for StopTarget {
    fn augment_args(command: Command) -> Command {
        let all = Arg::new(ALL)
            .short('a')
            .long(ALL)
            .action(ArgAction::SetTrue)
            .help("All running guests");
        command.args([name(), number(), all]).group(one_of([NAME, NUMBER, ALL]))
    }

    fn augment_args_for_update(command: Command) -> Command {
        StopTarget::augment_args(command)
    }
}
