//! What is wrong with a command line, as one sentence and the synopsis. clap finds the error; the words are ours, since
//! its own span several lines and repeat what was typed byte by byte.

use std::error::Error as _;

use clap::error::{ContextKind, ContextValue, ErrorKind};

use crate::exit::Failure;

/// The failure for an error of clap's.
pub(crate) fn explain(error: &clap::Error, options: clap::Command) -> Failure {
    let text = sentence(error, &options);
    failure(text, options)
}

pub(crate) fn failure(text: String, mut options: clap::Command) -> Failure {
    Failure::Usage { text, synopsis: options.render_usage().to_string() }
}

fn sentence(error: &clap::Error, options: &clap::Command) -> String {
    let argument = context(error, ContextKind::InvalidArg).unwrap_or_default();
    let spelled = spelled(&argument, options);
    match error.kind() {
        ErrorKind::UnknownArgument if argument.starts_with('-') => {
            let hint = context(error, ContextKind::SuggestedArg)
                .map_or(String::new(), |similar| format!("; did you mean {similar}?"));
            format!("'{argument}' is no option of this command{hint}")
        }
        ErrorKind::UnknownArgument => format!("the argument '{argument}' has no meaning here"),
        ErrorKind::ValueValidation => match error.source() {
            Some(cause) => format!("{}: {cause}", letter(&spelled)),
            None => format!("the value of {} is not understood", letter(&spelled)),
        },
        ErrorKind::ArgumentConflict => match context(error, ContextKind::PriorArg) {
            Some(prior) if prior == argument => format!("{} is given twice", letter(&spelled)),
            Some(prior) => {
                let prior = self::spelled(&prior, options);
                format!("{} and {} exclude each other", letter(&spelled), letter(&prior))
            }
            None => format!("{} cannot stand with the other options", letter(&spelled)),
        },
        ErrorKind::InvalidValue => format!("{} needs a value: {spelled}", letter(&spelled)),
        ErrorKind::TooManyValues => format!("{} takes no value", letter(&spelled)),
        ErrorKind::MissingRequiredArgument => format!("{spelled} is missing"),
        _ => {
            let text = error.to_string();
            let first = text.lines().next().unwrap_or_default();
            first.trim_start_matches("error: ").to_owned()
        }
    }
}

fn context(error: &clap::Error, kind: ContextKind) -> Option<String> {
    match error.get(kind)? {
        ContextValue::String(text) => Some(text.clone()),
        ContextValue::Strings(texts) => texts.first().cloned(),
        _ => None,
    }
}

/// clap's `<--name <NAME>|--number <NUMBER>>` as the manual writes it: `-P NAME or -p NUMBER`.
fn spelled(argument: &str, options: &clap::Command) -> String {
    let is_group = argument.starts_with("<-");
    let inner = match is_group {
        true => argument.strip_prefix('<').and_then(|a| a.strip_suffix('>')).unwrap_or(argument),
        false => argument,
    };
    let alternatives = inner.split('|').filter(|_| is_group);
    let whole = std::iter::once(inner).filter(|_| !is_group);
    let words: Vec<String> =
        alternatives.chain(whole).map(|text| one_spelled(text, options)).collect();
    words.join(" or ")
}

fn one_spelled(text: &str, options: &clap::Command) -> String {
    let (option, value) = text.split_once(' ').unwrap_or((text, ""));
    let value = value.trim_end_matches("...").trim_start_matches('<').trim_end_matches('>');
    let short = option.strip_prefix("--").and_then(|long| {
        options.get_arguments().find(|arg| arg.get_long() == Some(long))?.get_short()
    });
    let plain = option.trim_matches(['<', '>', '[', ']']);
    let option = short.map_or(plain.to_owned(), |letter| format!("-{letter}"));
    format!("{option} {value}").trim_end().to_owned()
}

fn letter(spelled: &str) -> &str {
    spelled.split(' ').next().unwrap_or(spelled)
}
