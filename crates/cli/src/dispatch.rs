//! From the words typed to the command meant: by the name of the program (`hpvmcreate …`) or by its first argument
//! (`hpvm create …`). The table below is the only list of commands; help, man pages and completions are made from it.
//!
//! Only the called command's options are built, since building all of them would take longer than listing 1,000 guests.

use std::ffi::{OsStr, OsString};

use clap::{Arg, ArgAction};
use hpvm_host::lock::tell_of_waits;
use hpvm_model::quoted;
use hpvm_operations::Actor;

use crate::commands;
use crate::exit::Failure;
use crate::messages::{Say, printable};
use crate::output::print;
use crate::reference::synopsis;
use crate::usage;

/// A command: its options, and what it does.
pub trait Perform: clap::Parser {
    /// Begins with what is the same whatever the options say, while they are read.
    fn begin() {}

    fn perform(self, context: &Context) -> Result<(), Failure>;
}

/// What a command knows of its call.
#[derive(Clone, Debug)]
pub struct Context {
    pub say: Say,
    /// As typed, the program's name first.
    pub command_line: Vec<String>,
}

impl Context {
    /// Who is at work, for the record of the operation.
    #[must_use]
    pub fn actor(&self, reason: Option<String>) -> Actor {
        Actor::new(self.say.command(), self.typed(), reason)
    }

    /// The command line for the record of the operation: a shell would read the same words from it.
    #[must_use]
    pub fn typed(&self) -> String {
        let words: Vec<String> = self.command_line.iter().map(|word| quoted(word)).collect();
        words.join(" ")
    }
}

/// Where a command comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Of A.03.50: a program of its own, `hpvmcreate`, and `hpvm create` too.
    Historical,
    /// Of A.03.50 under a name that does not begin with hpvm: a program of its own, `gvsdmgr`, and `hpvm gvsdmgr` too.
    Tool,
    /// Ours: `hpvm why` only.
    Ours,
    /// For tests and installation: `hpvm crash-steps`, not shown.
    Hidden,
}

/// A line of the table.
pub struct Entry {
    pub word: &'static str,
    pub origin: Origin,
    options: fn() -> clap::Command,
    begin: fn(),
    perform: fn(&clap::ArgMatches, &Context) -> Result<(), Failure>,
}

pub static COMMANDS: &[Entry] = &[
    entry::<commands::Create>("create", Origin::Historical),
    entry::<commands::Modify>("modify", Origin::Historical),
    entry::<commands::Clone>("clone", Origin::Historical),
    entry::<commands::Remove>("remove", Origin::Historical),
    entry::<commands::Start>("start", Origin::Historical),
    entry::<commands::Stop>("stop", Origin::Historical),
    entry::<commands::Status>("status", Origin::Historical),
    entry::<commands::Console>("console", Origin::Historical),
    entry::<commands::Devmgmt>("devmgmt", Origin::Historical),
    entry::<commands::Hostrdev>("hostrdev", Origin::Historical),
    entry::<commands::Net>("net", Origin::Historical),
    entry::<commands::Why>("why", Origin::Ours),
    entry::<commands::Doctor>("doctor", Origin::Ours),
    entry::<commands::Undelete>("undelete", Origin::Ours),
    entry::<commands::Autostart>("autostart", Origin::Ours),
    entry::<commands::Gvsdmgr>("gvsdmgr", Origin::Tool),
    entry::<commands::Autostop>("autostop", Origin::Ours),
    entry::<commands::Nvram>("nvram", Origin::Ours),
    entry::<commands::Man>("man", Origin::Hidden),
    entry::<commands::Completions>("completions", Origin::Hidden),
    entry::<commands::CrashSteps>("crash-steps", Origin::Hidden),
];

const fn entry<C: Perform>(word: &'static str, origin: Origin) -> Entry {
    Entry { word, origin, options: C::command, begin: C::begin, perform: perform::<C> }
}

fn perform<C: Perform>(matches: &clap::ArgMatches, context: &Context) -> Result<(), Failure> {
    let explained = |error| {
        let options = C::command().bin_name(context.say.command());
        usage::explain(&error, options, &context.command_line)
    };
    C::from_arg_matches(matches).map_err(explained)?.perform(context)
}

impl Entry {
    /// `hpvmcreate`, `hpvm why`: as it stands in messages.
    #[must_use]
    pub fn name(&self) -> String {
        match self.origin {
            Origin::Historical => format!("hpvm{}", self.word),
            Origin::Tool => self.word.to_owned(),
            Origin::Ours | Origin::Hidden => format!("hpvm {}", self.word),
        }
    }

    /// Whether there is a program of this name.
    #[must_use]
    pub fn is_program(&self) -> bool {
        matches!(self.origin, Origin::Historical | Origin::Tool)
    }

    /// `hpvmcreate`, `hpvm-why`: as its man page is called.
    #[must_use]
    pub fn page(&self) -> String {
        self.name().replace(' ', "-")
    }

    /// Its options as clap has them. clap's own `-h` and `-V` are off: A.03.50 gave these letters other meanings, but in its
    /// tool.
    #[must_use]
    pub fn options(&self) -> clap::Command {
        let help =
            Arg::new("help").long("help").action(ArgAction::HelpShort).help("Print this help");
        let help = if self.origin == Origin::Tool { help.short('h') } else { help };
        (self.options)()
            .name(self.page())
            .bin_name(self.name())
            .disable_help_flag(true)
            .disable_version_flag(true)
            .disable_help_subcommand(true)
            .mut_args(flags_may_be_repeated)
            .arg(help)
    }

    /// The same for readers: an option of several values shows them all as it wants them, though `--` may stand among them and
    /// clap is told that fewer do.
    #[must_use]
    pub fn shown_options(&self) -> clap::Command {
        self.options().mut_args(|arg| match arg.get_value_names().map_or(0, <[_]>::len) {
            names @ 2.. => arg.num_args(names),
            _ => arg,
        })
    }
}

/// `-F -F` is `-F`, as it always was.
fn flags_may_be_repeated(arg: Arg) -> Arg {
    let id = arg.get_id().clone();
    match arg.get_action() {
        ArgAction::SetTrue => arg.overrides_with(id),
        _ => arg,
    }
}

/// Runs the command that is meant; gives the name it goes by in messages, and what became of it.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> (String, Result<(), Failure>) {
    let mut arguments: Vec<OsString> = arguments.into_iter().collect();
    if arguments.is_empty() {
        arguments.push("hpvm".into());
    }
    let program = program_name(&arguments[0]);
    if let Some(entry) = historical(&program) {
        return (entry.name(), call(entry, &arguments, 1));
    }
    let word = arguments.get(1).map(|word| word.to_string_lossy().into_owned());
    match word.as_deref() {
        None => ("hpvm".into(), Err(which("say which command".into()))),
        Some("help") if arguments.len() > 2 => ("hpvm".into(), help_on(&arguments[2])),
        Some("--help" | "-h" | "help") => {
            ("hpvm".into(), print(&overview()).map_err(Failure::from))
        }
        Some("--version" | "-v") => ("hpvm".into(), print(&version()).map_err(Failure::from)),
        Some(word) => match COMMANDS.iter().find(|entry| entry.word == word) {
            Some(entry) => (entry.name(), call(entry, &arguments, 2)),
            None => ("hpvm".into(), Err(no_command(word))),
        },
    }
}

/// The last part of a path; without the `-` that login puts before a shell's name.
fn program_name(argument: &OsString) -> String {
    let name = argument.to_string_lossy();
    let name = name.rsplit('/').next().unwrap_or_default();
    name.trim_start_matches('-').to_owned()
}

fn historical(program: &str) -> Option<&'static Entry> {
    COMMANDS.iter().find(|entry| entry.is_program() && entry.name() == program)
}

fn call(entry: &Entry, arguments: &[OsString], skip: usize) -> Result<(), Failure> {
    (entry.begin)();
    let mut options = entry.options();
    let words = match utf8(arguments) {
        Ok(words) => words,
        Err(text) => return Err(usage::failure(text, options)),
    };
    let typed = std::iter::once(entry.name()).chain(words.iter().skip(skip).cloned());
    match options.try_get_matches_from_mut(typed) {
        Ok(matches) => {
            let say = Say::new(&entry.name());
            let waits = say.clone();
            tell_of_waits(move |text| waits.note(text));
            let context = Context { say, command_line: words };
            (entry.perform)(&matches, &context)
        }
        Err(error) if error.kind() == clap::error::ErrorKind::DisplayHelp => {
            Ok(print(&entry.shown_options().render_help().to_string())?)
        }
        Err(error) => Err(usage::explain(&error, options, &words)),
    }
}

fn utf8(arguments: &[OsString]) -> Result<Vec<String>, String> {
    let word = |argument: &OsString| {
        argument.to_str().map(str::to_owned).ok_or_else(|| {
            let shown = argument.to_string_lossy();
            format!("the argument '{}' is no UTF-8 text", printable(&shown))
        })
    };
    arguments.iter().map(word).collect()
}

fn which(text: String) -> Failure {
    Failure::Usage {
        text,
        synopsis: "Usage: hpvm COMMAND [OPTIONS]; `hpvm help` lists the commands".into(),
    }
}

fn no_command(word: &str) -> Failure {
    let shown = COMMANDS.iter().filter(|entry| entry.origin != Origin::Hidden);
    let words: Vec<&str> = shown.map(|entry| entry.word).collect();
    // Who types a program's name behind hpvm means that.
    let hint = match historical(word) {
        Some(entry) => format!("; did you mean {}?", entry.word),
        None => usage::did_you_mean(word, &words),
    };
    which(format!("'{}' is no command{hint}", printable(word)))
}

/// What `hpvm help status` prints, and `hpvm help hpvmstatus`.
fn help_on(topic: &OsStr) -> Result<(), Failure> {
    let word = topic.to_string_lossy();
    let is_meant = |entry: &&Entry| entry.word == word || entry.name() == word;
    match COMMANDS.iter().find(is_meant) {
        Some(entry) => Ok(print(&entry.shown_options().render_help().to_string())?),
        None => Err(no_command(&word)),
    }
}

/// What `hpvm help` prints.
fn overview() -> String {
    let mut text = String::from("Usage: hpvm COMMAND [OPTIONS]\n\nCommands:\n");
    for entry in COMMANDS.iter().filter(|entry| entry.origin != Origin::Hidden) {
        let about = (entry.options)().get_about().map(ToString::to_string).unwrap_or_default();
        text.push_str(&format!("  {:<10} {about}\n", entry.word));
    }
    text.push_str("\nThe first eleven are programs of their own too: hpvmcreate, hpvmmodify, …; so is gvsdmgr.\n");
    text.push_str("`hpvm help COMMAND` tells a command's options.\n");
    text
}

/// One line on the options of a command.
pub(crate) fn usage(word: &str) -> String {
    let entry = COMMANDS.iter().find(|entry| entry.word == word);
    let line = |entry: &Entry| format!("Usage: {} {}\n", entry.name(), synopsis(&entry.options()));
    entry.map_or_else(String::new, line)
}

/// What `-v` prints.
#[must_use]
pub fn version() -> String {
    format!("hpvm: Version {} (interface of A.03.50)\n", env!("CARGO_PKG_VERSION"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_recorded_line_can_be_typed_again() {
        let command_line =
            ["hpvmmodify", "-P", "web", "-l", "it's new", "-a", "disk:scsi::file:/d", ""];
        let context = Context {
            say: Say::new("hpvmmodify"),
            command_line: command_line.map(str::to_owned).to_vec(),
        };
        let line = r"hpvmmodify -P web -l 'it'\''s new' -a disk:scsi::file:/d ''";
        assert_eq!(context.typed(), line);
    }

    #[test]
    fn programs_are_known_by_their_last_name() {
        for (argument, program) in [
            ("/opt/hpvm/bin/hpvmstop", "hpvmstop"),
            ("-hpvmconsole", "hpvmconsole"),
            ("hpvm", "hpvm"),
        ] {
            assert_eq!(program_name(&argument.into()), program);
        }
        assert!(historical("hpvmwhy").is_none(), "ours have no program of their own");
        assert!(historical("hpvm").is_none());
        assert!(historical("hpvmgvsdmgr").is_none());
        assert_eq!(historical("gvsdmgr").map(Entry::name).as_deref(), Some("gvsdmgr"));
        assert_eq!(historical("hpvmstop").map(Entry::name).as_deref(), Some("hpvmstop"));
    }
}
