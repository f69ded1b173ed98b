//! What a refused command must be, and must leave alone. Used by the subjects that give commands bad input or take away the
//! room they need.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use hpvm_registry::{Access, Registry};
use hpvm_testkit::vm_host::{Outcome, VmHost};
use serde_json::Value;

/// Files larger than this are compared by length and time.
const CONTENT_MAX: u64 = 64 * 1024;

/// Runs a command that has to be refused; holds its answer to the rules. Gives what it said.
#[track_caller]
pub(crate) fn refused(host: &VmHost, line: &[&str]) -> String {
    refused_by(|| host.run(line))
}

/// The same for a command line that a test puts together itself.
#[track_caller]
pub(crate) fn refused_by(run: impl FnOnce() -> Outcome) -> String {
    let outcome = run();
    outcome.assert_prompt();
    let status = outcome.status.code();
    assert!(matches!(status, Some(1 | 2)), "{outcome}");
    assert_eq!(outcome.stdout, "", "{outcome}");
    assert!(!outcome.stderr.contains("panicked"), "{outcome}");
    no_control_bytes(&outcome);
    let errors = outcome.stderr.lines().filter(|line| is_error(line)).count();
    assert_eq!(errors, 1, "one problem, one line: {outcome}");
    let usage = outcome.stderr.lines().filter(|line| line.starts_with("Usage: ")).count();
    assert_eq!(usage, usize::from(status == Some(2)), "{outcome}");
    outcome.stderr
}

/// Runs a start that has to be refused, perhaps with a report of several lines. Gives it.
#[track_caller]
pub(crate) fn start_refused(host: &VmHost, name: &str) -> String {
    let outcome = host.run(&["hpvmstart", "-P", name]);
    assert_eq!(outcome.status.code(), Some(1), "{outcome}");
    outcome.assert_prompt();
    no_control_bytes(&outcome);
    outcome.stderr
}

/// Nothing that a terminal would obey.
#[track_caller]
pub(crate) fn no_control_bytes(outcome: &Outcome) {
    let is_hostile = |c: char| c.is_control() && c != '\n';
    let printed = outcome.stdout.chars().chain(outcome.stderr.chars());
    assert!(!printed.clone().any(is_hostile), "control bytes in {:?}", outcome.stderr);
    // What is no UTF-8 is told with a sign for it; the bytes themselves never are, so the text was never cut in one.
    assert!(outcome.stderr.ends_with('\n') || outcome.stderr.is_empty(), "{outcome}");
}

/// `hpvmmodify: ERROR (web): …`, and never an empty sentence.
fn is_error(line: &str) -> bool {
    line.split_once(": ERROR").is_some_and(|(command, rest)| {
        let is_ours = command.starts_with("hpvm") || command == "gvsdmgr";
        is_ours && rest.split_once(": ").is_some_and(|(_, sentence)| sentence.len() > 10)
    })
}

/// All that a refused command may not touch: the registry but for its record of operations, everything below
/// /var/opt/hpvm, and the engines that run.
#[derive(Debug, PartialEq)]
pub(crate) struct State {
    guests: Value,
    removed: Value,
    files: BTreeMap<PathBuf, Entry>,
    engines: BTreeMap<u32, i32>,
}

#[derive(Debug, PartialEq)]
enum Entry {
    Folder,
    Link(PathBuf),
    Small(Vec<u8>),
    Large(u64, Option<std::time::SystemTime>),
}

impl State {
    pub(crate) fn of(host: &VmHost) -> State {
        let mut export = export(host);
        let mut files = BTreeMap::new();
        walk(&host.path("var/opt/hpvm"), &mut files);
        let numbers = export["guests"].as_array().expect("a list").iter();
        let numbers: Vec<u32> = numbers
            .map(|guest| guest["number"].as_u64().and_then(|n| n.try_into().ok()).expect("number"))
            .collect();
        let engine = |number: u32| {
            host.qemu(number)?;
            Some((number, host.snapshot(number)?.qemu.pid))
        };
        State {
            guests: export["guests"].take(),
            removed: export["removed"].take(),
            files,
            engines: numbers.into_iter().filter_map(engine).collect(),
        }
    }

    #[track_caller]
    pub(crate) fn assert_unchanged(&self, host: &VmHost, after: &str) {
        self.assert_unchanged_but(host, after, &[]);
    }

    /// The same, but for the content of files with these names.
    #[track_caller]
    pub(crate) fn assert_unchanged_but(&self, host: &VmHost, after: &str, names: &[&str]) {
        let now = State::of(host);
        assert_eq!(self.guests, now.guests, "guests, after {after}");
        assert_eq!(self.removed, now.removed, "removed guests, after {after}");
        let keys = |state: &State| state.files.keys().cloned().collect::<Vec<_>>();
        assert_eq!(keys(self), keys(&now), "files, after {after}");
        let is_exempt =
            |path: &Path| names.iter().any(|name| path.file_name().is_some_and(|n| n == *name));
        for (path, entry) in self.files.iter().filter(|(path, _)| !is_exempt(path)) {
            assert!(now.files[path] == *entry, "{} changed after {after}", path.display());
        }
        assert_eq!(self.engines, now.engines, "running engines, after {after}");
    }
}

/// The registry as text, parsed.
pub(crate) fn export(host: &VmHost) -> Value {
    let registry = Registry::open(&host.path("var/opt/hpvm/hpvm.db"), Access::ReadOnly)
        .expect("the registry can be read");
    serde_json::from_str(&registry.export().expect("an export")).expect("JSON")
}

/// A guest as the registry has it.
pub(crate) fn stored(host: &VmHost, name: &str) -> Value {
    let export = export(host);
    let guests = export["guests"].as_array().expect("a list");
    guests.iter().find(|guest| guest["name"] == name).expect("the guest").clone()
}

/// Left out: the registry's own files, whose content is compared as text, and what says who is at work.
fn walk(folder: &Path, files: &mut BTreeMap<PathBuf, Entry>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        let name = entry.file_name();
        if name.as_bytes().starts_with(b"hpvm.db") || name == "busy" {
            continue;
        }
        let metadata = fs::symlink_metadata(&path).expect("it is there");
        let found = if metadata.is_symlink() {
            Entry::Link(fs::read_link(&path).expect("a link"))
        } else if metadata.is_dir() {
            walk(&path, files);
            Entry::Folder
        } else if metadata.len() <= CONTENT_MAX {
            let content = fs::read(&path).expect("a file");
            Entry::Small(if name == "log" { without_silence(&content) } else { content })
        } else {
            Entry::Large(metadata.len(), metadata.modified().ok())
        };
        files.insert(path, found);
    }
}

/// A guest's log without what it says of an engine that is slow to answer: on a busy machine that comes at any time, and is no
/// command's doing.
fn without_silence(log: &[u8]) -> Vec<u8> {
    let tells_silence = |line: &&[u8]| {
        let line = line.trim_ascii_end();
        line.ends_with(b": QEMU does not answer") || line.ends_with(b": QEMU answers again")
    };
    log.split_inclusive(|byte| *byte == b'\n')
        .filter(|line| !tells_silence(line))
        .flatten()
        .copied()
        .collect()
}
