//! Options of A.03.50 that a command does not have yet, so that who types one learns that it was no typing error. Looked at once a
//! command line was refused. docs/options.md has the same, and a test compares them.

/// An option that some commands do not have yet.
#[derive(Debug)]
pub struct Later {
    pub commands: &'static [&'static str],
    pub letter: char,
    /// The name that hpvm is to have for it.
    pub long: &'static str,
    /// What has to be there first.
    pub work: &'static str,
}

const OF_GUESTS: &[&str] = &["hpvmcreate", "hpvmmodify", "hpvmclone"];

pub static LATER: &[Later] = &[
    later(OF_GUESTS, 'R', "reserved-memory", "dynamic memory"),
    later(OF_GUESTS, 'u', "user", "console accounts"),
    later(OF_GUESTS, 'g', "group", "console accounts"),
    later(OF_GUESTS, 'i', "managed-by", "cluster"),
    later(OF_GUESTS, 'j', "distributed", "cluster"),
    later(&["hpvmstatus"], 'S', "scheduler", "entitlement enforcement"),
    later(&["hpvmstatus"], 'm', "multiserver", "cluster"),
    later(&["hpvmconsole"], 'i', "interactive", "console menu"),
    later(&["hpvmconsole"], 'f', "follow", "console menu"),
    later(&["hpvmconsole"], 'e', "escape", "console menu"),
];

const fn later(
    commands: &'static [&'static str],
    letter: char,
    long: &'static str,
    work: &'static str,
) -> Later {
    Later { commands, letter, long, work }
}

/// The one that is typed as `argument`, such as `-R` or `--reserved-memory`.
pub(crate) fn meant_by(argument: &str, command: &str) -> Option<&'static Later> {
    LATER.iter().find(|later| {
        let is_it = match argument.strip_prefix("--") {
            Some(long) => long == later.long,
            None => argument.strip_prefix('-') == Some(later.letter.encode_utf8(&mut [0; 4])),
        };
        is_it && later.commands.contains(&command)
    })
}
