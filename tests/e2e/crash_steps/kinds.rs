//! Which kinds of change there are, asked of the table of commands: each option of each command that takes --reason, and each
//! verb. Each kind is in a scene of the modules beside, or stands here with the reason why it is in none.

use std::collections::BTreeSet;

use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Command};
use hpvm_cli::dispatch::{COMMANDS, Entry};

use super::Scene;

/// Kinds of change that no scene plays.
struct Left {
    /// Of which commands; of all where it names none.
    commands: &'static [&'static str],
    /// Long names of options, and verbs.
    kinds: &'static [&'static str],
    why: &'static str,
}

/// They pass no step.
const WITHOUT_STEPS: &[Left] = &[
    Left {
        commands: &["gvsdmgr"],
        kinds: &["clear_stat"],
        why: "the worker counts from zero, which is done or not; then one record is written",
    },
    Left {
        commands: &["gvsdmgr"],
        kinds: &["bdr"],
        why: "the kernel resets devices, and nothing of ours is different after it; then one record is written",
    },
];

/// They pass no other steps than a scene does.
const LIKE_A_SCENE: &[Left] = &[
    Left {
        commands: &[],
        kinds: &["name", "number", "guest-name", "help"],
        why: "says who is meant",
    },
    Left { commands: &[], kinds: &["dry-run", "json"], why: "changes nothing" },
    Left { commands: &[], kinds: &["reason", "force", "quiet"], why: "is about what is said" },
    Left {
        commands: &["hpvmcreate", "hpvmmodify", "hpvmclone"],
        kinds: &["os-type", "vcpus", "entitlement", "entitlement-cycles", "memory", "label"],
        why: "a field of the configuration, which is committed as a whole",
    },
    Left {
        commands: &["hpvmcreate", "hpvmmodify", "hpvmclone"],
        kinds: &["boot", "add", "layer", "set", "modify", "delete"],
        why: "the same; of a running guest hpvmmodify has scenes for its devices",
    },
    Left {
        commands: &["hpvmstop"],
        kinds: &["all"],
        why: "one guest after the other, each as if it were named",
    },
    Left {
        commands: &["hpvmdevmgmt"],
        kinds: &["list", "repair-script", "version", "verbose"],
        why: "only looks",
    },
    Left { commands: &["hpvmdevmgmt"], kinds: &["file"], why: "is that of --size, behind `--`" },
    Left {
        commands: &["hpvmdevmgmt"],
        kinds: &["preallocate", "raw"],
        why: "the file is made in the same step, with room, or whatever it begins with",
    },
    Left { commands: &["hpvmhostrdev"], kinds: &["usage"], why: "only looks" },
    Left {
        commands: &["hpvmhostrdev"],
        kinds: &["restore"],
        why: "writes as --delete does, and typed again it restores what it replaced",
    },
    Left {
        commands: &["hpvmnet"],
        kinds: &["nic", "wire", "forward"],
        why: "what --create and --change commit as a whole",
    },
    Left {
        commands: &["hpvmnet"],
        kinds: &[
            "port",
            "statistics",
            "version",
            "verbose",
            "xml",
            "machine",
            "macs",
            "interfaces",
            "capture",
        ],
        why: "only looks",
    },
    Left {
        commands: &["hpvmnet"],
        kinds: &["zero"],
        why: "counts anew in the switch's process, which nothing else knows of",
    },
    Left { commands: &["hpvm undelete"], kinds: &["list"], why: "only looks" },
    Left { commands: &["gvsdmgr"], kinds: &["get_info", "get_stat"], why: "only looks" },
    Left {
        commands: &["gvsdmgr"],
        kinds: &["replace_dsk"],
        why: "does what hpvmdevmgmt --modify does",
    },
    Left { commands: &["gvsdmgr"], kinds: &["adapter", "qualifier"], why: "says which are meant" },
];

pub(super) fn each_is_played_or_left_for_a_reason(scenes: &[&Scene]) {
    let mut needless: BTreeSet<&str> = lefts().flat_map(|left| left.kinds).copied().collect();
    let mut wrong = Vec::new();
    for entry in COMMANDS.iter().filter(|entry| takes_reason(&entry.options())) {
        let (name, played) = (entry.name(), played(entry, scenes));
        for kind in kinds(&entry.options()) {
            let left = lefts().find(|left| left.is_about(&name, &kind));
            match (played.contains(&kind), left) {
                (false, None) => wrong.push(format!("{name} {kind} is in no scene")),
                (false, Some(left)) => {
                    assert!(!left.why.is_empty());
                    needless.remove(kind.as_str());
                }
                (true, _) => {}
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(
        needless.is_empty(),
        "left out, and there is no such kind without a scene: {needless:?}"
    );
}

fn lefts() -> impl Iterator<Item = &'static Left> {
    WITHOUT_STEPS.iter().chain(LIKE_A_SCENE)
}

impl Left {
    fn is_about(&self, command: &str, kind: &str) -> bool {
        let is_of = self.commands.is_empty() || self.commands.contains(&command);
        is_of && self.kinds.contains(&kind)
    }
}

fn takes_reason(options: &Command) -> bool {
    options.get_arguments().any(|option| option.get_long() == Some("reason"))
}

fn kinds(options: &Command) -> BTreeSet<String> {
    let kinds = |option: &Arg| match is_verb(option) {
        true => option.get_possible_values().iter().map(|v| v.get_name().to_owned()).collect(),
        false => vec![name_of(option)],
    };
    options.get_arguments().flat_map(kinds).collect()
}

/// What the scenes of a command have in their lines.
fn played(entry: &Entry, scenes: &[&Scene]) -> BTreeSet<String> {
    let name = entry.name();
    let words: Vec<&str> = name.split(' ').collect();
    let lines = scenes.iter().filter_map(|scene| scene.command.strip_prefix(&words[..]));
    let in_line = |line: &[&str]| {
        let line = line.iter().map(|word| word.replace("{root}", "/root"));
        let typed = std::iter::once(name.clone()).chain(line);
        let matches = entry.options().try_get_matches_from(typed).expect("a scene's line is right");
        let options = entry.options();
        options.get_arguments().filter_map(|option| given(&matches, option)).collect::<Vec<_>>()
    };
    lines.flat_map(in_line).collect()
}

fn given(matches: &ArgMatches, option: &Arg) -> Option<String> {
    let id = option.get_id().as_str();
    if matches.value_source(id) != Some(ValueSource::CommandLine) {
        return None;
    }
    match is_verb(option) {
        true => Some(matches.get_raw(id)?.next()?.to_string_lossy().into_owned()),
        false => Some(name_of(option)),
    }
}

/// A word that says what to do.
fn is_verb(option: &Arg) -> bool {
    option.is_positional() && !option.get_possible_values().is_empty()
}

fn name_of(option: &Arg) -> String {
    option.get_long().unwrap_or(option.get_id().as_str()).to_owned()
}
