//! What is wrong with a command line, as one sentence and the synopsis. clap finds the error; the words are ours, since
//! its own span several lines and repeat what was typed byte by byte.

use std::error::Error as _;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use hpvm_model::GuestName;
use hpvm_model::bytes::shown;

use crate::exit::Failure;
use crate::later::{Later, meant_by};

/// Of more options than these the letters alone are told: with their values nobody would find his way through them.
const MEMBERS_WITH_VALUES_MAX: usize = 5;

/// The failure for an error of clap's about these words.
pub(crate) fn explain(error: &clap::Error, options: clap::Command, words: &[String]) -> Failure {
    let text = sentence(error, &options, words);
    failure(text, options)
}

/// The sentence, and where the rest stands.
pub(crate) fn failure(text: String, mut options: clap::Command) -> Failure {
    let usage = options.render_usage();
    let name = options.get_bin_name().unwrap_or_default();
    Failure::Usage { text, synopsis: format!("{usage}; `{name} --help` tells what there is") }
}

fn sentence(error: &clap::Error, options: &clap::Command, words: &[String]) -> String {
    let argument = context(error, ContextKind::InvalidArg).unwrap_or_default();
    let spelled = spelled(&argument, options);
    match error.kind() {
        ErrorKind::UnknownArgument if argument == "-h" => {
            "'-h' is no option of this command; --help prints its options".to_owned()
        }
        ErrorKind::UnknownArgument if options.get_name() == "hpvmconsole" && takes_words(words) => {
            format!(
                "'{argument}' is no option of this command; a command of several words stands in quotes: -c 'pc -off'"
            )
        }
        // clap names its first letter alone.
        ErrorKind::UnknownArgument if is_negative(&argument) => {
            let typed = words.iter().find(|word| word.starts_with(&argument));
            let typed = typed.map_or(argument, |word| shown(word));
            format!("'{typed}' is neither an option nor a value; numbers and sizes have no sign")
        }
        ErrorKind::UnknownArgument if argument.starts_with('-') => {
            unknown_option(&argument, error, options)
        }
        ErrorKind::UnknownArgument => match cut_short(options, words) {
            Some(option) => values_apart(&option),
            None => {
                let hint = match takes_guest(options) && !names_guest(words) {
                    true => guest_hint(&argument),
                    false => String::new(),
                };
                format!("{}{hint}", means_nothing(&argument))
            }
        },
        ErrorKind::ValueValidation => match error.source() {
            Some(cause) => format!("{}: {cause}", letter(&spelled)),
            None => format!("the value of {} is not understood", letter(&spelled)),
        },
        ErrorKind::ArgumentConflict => match given_before(error, options, words) {
            Some(prior) if prior == argument => format!("{} is given twice", letter(&spelled)),
            Some(prior) => {
                let prior = self::spelled(&prior, options);
                format!("{} and {} exclude each other", letter(&spelled), letter(&prior))
            }
            None => format!("{} cannot stand with the other options", letter(&spelled)),
        },
        ErrorKind::WrongNumberOfValues => values_apart(&spelled),
        ErrorKind::InvalidValue => match (given(error), choices(error)) {
            (Some(given), Some(choices)) => {
                format!("'{given}' is no {}; there are {choices}", value_name(&spelled))
            }
            (None, Some(choices)) => {
                format!("{} needs a value: {spelled}, one of {choices}", letter(&spelled))
            }
            (_, None) => format!("{} needs a value: {spelled}", letter(&spelled)),
        },
        ErrorKind::TooManyValues => format!("{} takes no value", letter(&spelled)),
        ErrorKind::MissingRequiredArgument => all_missing(error, options, &spelled),
        _ => {
            let text = error.to_string();
            let first = text.lines().next().unwrap_or_default();
            first.trim_start_matches("error: ").to_owned()
        }
    }
}

/// Everything that is missing, in the order in which the synopsis has it.
fn all_missing(error: &clap::Error, options: &clap::Command, first: &str) -> String {
    let Some(ContextValue::Strings(missing)) = error.get(ContextKind::InvalidArg) else {
        return format!("{first} is missing");
    };
    // clap names groups first, and the synopsis has what stands in a fixed place before them.
    let (groups, single): (Vec<_>, Vec<_>) = missing.iter().partition(|name| name.contains('|'));
    let mut missing = single.into_iter().chain(groups).map(|name| spelled(name, options));
    let first = missing.next().unwrap_or_else(|| first.to_owned());
    missing.fold(format!("{first} is missing"), |text, other| format!("{text}, and {other}"))
}

/// Which of these words somebody may have meant who typed another: the one that goes on as it begins, or the likest.
pub(crate) fn did_you_mean(typed: &str, words: &[&str]) -> String {
    let mut longer = words.iter().filter(|word| word.starts_with(typed));
    let likest = match (longer.next(), longer.next()) {
        (Some(only), None) => Some((*only).to_owned()),
        _ => likest(typed, words),
    };
    // Of words that begin otherwise one was not mistyped for the other, as delete for undelete.
    let meant = likest.filter(|word| word.get(..1) == typed.get(..1));
    meant.map_or(String::new(), |word| format!("; did you mean {word}?"))
}

fn likest(typed: &str, words: &[&str]) -> Option<String> {
    let command = clap::Command::new("hpvm").subcommand_required(true);
    let words = words.iter().map(|word| clap::Command::new((*word).to_owned()));
    let error = command.subcommands(words).try_get_matches_from(["hpvm", typed]).err()?;
    match error.get(ContextKind::SuggestedSubcommand)? {
        ContextValue::String(word) => Some(word.clone()),
        // clap puts the likest last.
        ContextValue::Strings(words) => words.last().cloned(),
        _ => None,
    }
}

fn unknown_option(argument: &str, error: &clap::Error, options: &clap::Command) -> String {
    if let Some(Later { letter, work, .. }) = meant_by(argument, options.get_name()) {
        return format!(
            "'{argument}' is no option of this command yet: A.03.50's -{letter} comes with {work}"
        );
    }
    // Of words that begin otherwise one was not mistyped for the other.
    let is_near = |similar: &String| similar.get(..3) == argument.get(..3);
    let hint = context(error, ContextKind::SuggestedArg)
        .filter(is_near)
        .map_or(String::new(), |similar| format!("; did you mean {similar}?"));
    format!("'{argument}' is no option of this command{hint}")
}

pub(crate) fn means_nothing(argument: &str) -> String {
    format!("the argument '{argument}' has no meaning here")
}

/// Of an option that was given fewer values than it takes.
pub(crate) fn values_apart(spelled: &str) -> String {
    format!("{} takes its values directly behind it: {spelled}", letter(spelled))
}

/// The option that takes several values and was given fewer, before the next option or in its own word.
fn cut_short(options: &clap::Command, words: &[String]) -> Option<String> {
    options.get_arguments().find_map(|option| {
        let names = option.get_value_names().filter(|names| names.len() > 1)?;
        let (letter, long) =
            (format!("-{}", option.get_short()?), format!("--{}", option.get_long()?));
        let at =
            words.iter().position(|word| word.starts_with(&letter) || word.starts_with(&long))?;
        let stands_alone = words[at] == letter || words[at] == long;
        let given = words[at + 1..].iter().take_while(|word| !word.starts_with('-')).count();
        let is_whole = stands_alone && given >= names.len();
        (!is_whole).then(|| format!("{letter} {}", names.join(" ")))
    })
}

fn is_negative(argument: &str) -> bool {
    argument.strip_prefix('-').is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
}

/// Whether a command for the console is given, which ends where a shell sees its end.
fn takes_words(words: &[String]) -> bool {
    words.iter().any(|word| word == "-c" || word == "--command")
}

fn takes_guest(options: &clap::Command) -> bool {
    options.get_arguments().any(|option| option.get_short() == Some('P'))
}

fn names_guest(words: &[String]) -> bool {
    let is_selector = |word: &String| {
        ["-P", "-p"].iter().any(|letter| word.starts_with(letter))
            || ["--name", "--number"].iter().any(|long| word.starts_with(long))
    };
    words.iter().any(is_selector)
}

/// Who forgot the letter, as commands that A.03.50 did not have let one do.
fn guest_hint(argument: &str) -> String {
    match argument.parse::<GuestName>() {
        Ok(name) => format!("; did you mean -P {name}?"),
        Err(_) => "; -P names the guest".to_owned(),
    }
}

/// The option that another cannot stand with. Of a group clap names all there are; the one that was typed is meant.
fn given_before(error: &clap::Error, options: &clap::Command, words: &[String]) -> Option<String> {
    let ContextValue::Strings(group) = error.get(ContextKind::PriorArg)? else {
        return context(error, ContextKind::PriorArg);
    };
    group.iter().find(|option| is_typed(option, options, words)).or(group.first()).cloned()
}

/// Whether an option, as clap spells it, is among the words: `--boot`, `--boot=…`, `-b`, `-bVALUE`, or behind letters of others
/// that take no value.
fn is_typed(option: &str, options: &clap::Command, words: &[String]) -> bool {
    let Some(long) = option.split(' ').next().and_then(|option| option.strip_prefix("--")) else {
        return false;
    };
    let known = || options.get_arguments();
    let letter = known().find(|known| known.get_long() == Some(long)).and_then(|o| o.get_short());
    let has_value = |letter: char| {
        let option = known().find(|known| known.get_short() == Some(letter));
        option.is_some_and(|option| option.get_action().takes_values())
    };
    words.iter().any(|word| match (word.strip_prefix("--"), word.strip_prefix('-')) {
        (Some(typed), _) => typed.split('=').next() == Some(long),
        (None, Some(letters)) => {
            let own = letters.chars().position(|typed| Some(typed) == letter);
            let value = letters.chars().position(has_value);
            own.is_some_and(|own| value.is_none_or(|value| own <= value))
        }
        (None, None) => false,
    })
}

fn context(error: &clap::Error, kind: ContextKind) -> Option<String> {
    match error.get(kind)? {
        ContextValue::String(text) => Some(text.clone()),
        ContextValue::Strings(texts) => texts.first().cloned(),
        _ => None,
    }
}

/// The value that is none of those there are.
fn given(error: &clap::Error) -> Option<String> {
    let value = context(error, ContextKind::InvalidValue)?;
    (!value.is_empty()).then(|| shown(&value))
}

/// The values there are, where they can be counted.
fn choices(error: &clap::Error) -> Option<String> {
    match error.get(ContextKind::ValidValue)? {
        ContextValue::Strings(values) if !values.is_empty() => Some(values.join(", ")),
        _ => None,
    }
}

/// `VERB` alone, or after its letter.
fn value_name(spelled: &str) -> &str {
    spelled.split(' ').next_back().unwrap_or(spelled)
}

/// What clap calls `<--name <NAME>|--number <NUMBER>>`, as the manual writes it: `-P NAME or -p NUMBER`.
fn spelled(argument: &str, options: &clap::Command) -> String {
    let group = argument.strip_prefix("<-").and_then(|rest| rest.strip_suffix('>'));
    match group {
        Some(members) => {
            let members = format!("-{members}");
            let members: Vec<String> =
                members.split('|').map(|member| option_spelled(member, options)).collect();
            match members.len() {
                0..=MEMBERS_WITH_VALUES_MAX => members.join(" or "),
                _ => {
                    let letters: Vec<&str> = members.iter().map(|member| letter(member)).collect();
                    format!("one of {}", letters.join(", "))
                }
            }
        }
        None => option_spelled(argument, options),
    }
}

/// `--memory <AMOUNT>` is `-r AMOUNT`, `--size <SIZE> <FILE>` is `-S SIZE FILE`, `<DIR>` is `DIR`, `--reason <TEXT>` has no letter.
fn option_spelled(argument: &str, options: &clap::Command) -> String {
    let (option, value) = argument.split_once(' ').unwrap_or((argument, ""));
    let value = value.trim_end_matches("...").replace(['<', '>'], "");
    let short = option.strip_prefix("--").and_then(|long| {
        options.get_arguments().find(|option| option.get_long() == Some(long))?.get_short()
    });
    let option = match short {
        Some(letter) => format!("-{letter}"),
        None => option.trim_matches(['<', '>', '[', ']']).to_owned(),
    };
    format!("{option} {value}").trim_end().to_owned()
}

fn letter(spelled: &str) -> &str {
    spelled.split(' ').next().unwrap_or(spelled)
}
