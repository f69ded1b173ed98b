//! Names of guests, switches and entries, and whatever else stands where a name does.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use hpvm_testkit::vm_host::{Engine, Outcome, VmHost};

use super::{all_refused, inhabited};
use crate::Test;
use crate::refusals::{State, refused, refused_by};

pub(crate) const TESTS: &[Test] = crate::tests![
    names_that_cannot_be,
    entries_that_cannot_be,
    the_longest_name_is_a_name,
    words_that_are_no_text,
];

/// Commands that take a guest's name, and where it goes.
const NAMED: &[&[&str]] = &[
    &["hpvmcreate", "-P"],
    &["hpvmmodify", "-l", "x", "-P"],
    &["hpvmmodify", "-P", "web", "-N"],
    &["hpvmremove", "-F", "-P"],
    &["hpvmstart", "-P"],
    &["hpvmstop", "-F", "-P"],
    &["hpvmstatus", "-P"],
    &["hpvmconsole", "-c", "x", "-P"],
    &["hpvm", "why"],
    &["hpvm", "undelete", "-P"],
    &["hpvm", "nvram", "--reset", "-P"],
    &["hpvmclone", "-N", "new", "-P"],
    &["hpvmclone", "-P", "web", "-N"],
    &["hpvm", "gvsdmgr", "clear_stat", "-P"],
];

/// Commands that take a switch's name, and where it goes.
const SWITCHES: &[&[&str]] = &[
    &["hpvmnet", "-c", "-S"],
    &["hpvmnet", "-b", "-S"],
    &["hpvmnet", "-h", "-F", "-S"],
    &["hpvmnet", "-r", "-F", "-S"],
    &["hpvmnet", "-d", "-F", "-S"],
    &["hpvmnet", "-u", "portid:1:isolated:on", "-S"],
    &["hpvmnet", "-C", "-S", "sw1", "-N"],
    &["hpvmnet", "-C", "-N", "new", "-S"],
    &["hpvmnet", "-S"],
];

/// Entries of the device database, with a name that is none.
const ENTRIES: &[&str] = &["gdev", "rdev", "server"];

fn names_that_cannot_be() {
    let host = inhabited();
    let long = "x".repeat(300);
    let names = [
        "",
        ".",
        "..",
        "a/b",
        "/etc/passwd",
        "../../../etc",
        "a b",
        " web",
        "web\n",
        "a\tb",
        "a\x1b[2Jb",
        "a\u{202e}b",
        "é",
        "a:b",
        "a*",
        "'",
        &long,
    ];
    host.ok(&["hpvmnet", "-c", "-S", "sw1"]);
    all_refused(
        &host,
        NAMED
            .iter()
            .chain(SWITCHES)
            .flat_map(|line| names.map(|name| [line, &[name][..]].concat())),
    );
}

/// A device's name is a path; what comes before it in a path matters nowhere, so `..` is refused where it stands.
fn entries_that_cannot_be() {
    let host = inhabited();
    let long = format!("/{}", "x".repeat(5000));
    let paths =
        ["", "relative", "../up", "/a\nb", "/a\x1b[2J", "/a\u{202e}b", "/nowhere/at/all", &long];
    let names = ["", ".", "..", "a/b", "a b", "a\nb", "a\x1b[2J", "a\u{202e}b", &long];
    let mut lines: Vec<Vec<String>> = Vec::new();
    let mut tried =
        |words: &[&str]| lines.push(words.iter().map(|&word| word.to_owned()).collect());
    for entry in ENTRIES {
        let names: &[&str] = if *entry == "server" { &names } else { &paths };
        for name in names {
            let (id, root) = (format!("{entry}:{name}"), format!("{entry}:/media:{name}"));
            tried(&["hpvmdevmgmt", "-a", &id]);
            tried(&["hpvmdevmgmt", "-d", &id]);
            tried(&["hpvmdevmgmt", "-m", &format!("{id}:attr:PRESERVE=YES")]);
            tried(&["hpvmdevmgmt", "-n", &root]);
        }
    }
    for path in ["", "/", "/nowhere/at/all", "/a\x1b[2J", "/dev/null", &long] {
        tried(&["hpvmdevmgmt", "-S", "1M", path]);
    }
    for qualifier in ["", "lun=", "lun=\x1b[2J", "lun=../..", &long] {
        tried(&["hpvm", "gvsdmgr", "clear_stat", "-P", "other", "-q", qualifier]);
        tried(&["hpvm", "gvsdmgr", "clear_stat", "-P", "other", "-D", qualifier]);
    }
    all_refused(&host, lines.iter().map(|line| line.iter().map(String::as_str).collect()));
}

fn the_longest_name_is_a_name() {
    let host = VmHost::new(Engine::Fake);
    let (one, two) = ("a".repeat(255), format!("{}b", "a".repeat(254)));
    host.ok(&["hpvmcreate", "-P", &one, "-r", "64M"]);
    host.ok(&["hpvmmodify", "-P", &one, "-N", &two]);
    host.ok(&["hpvmstart", "-P", &two]);
    refused(&host, &["hpvmstart", "-P", &one]);
    host.ok(&["hpvmstop", "-P", &two, "-F"]);
    host.ok(&["hpvmremove", "-P", &two, "-F"]);
    host.ok(&["hpvm", "undelete", "-P", &two]);
    assert!(host.ok(&["hpvmstatus"]).contains(&two));
    refused(&host, &["hpvmcreate", "-P", &"a".repeat(256)]);
}

/// Bytes that are no UTF-8, wherever a word can stand.
fn words_that_are_no_text() {
    let host = inhabited();
    let before = State::of(&host);
    let words: [&[u8]; 4] = [b"\xff", b"web\xff\xfe", b"\xc3", b"disk:scsi::file:/tmp/\x80\x9b2J"];
    let mut lines: Vec<Vec<&str>> = NAMED.iter().map(|line| line.to_vec()).collect();
    lines.extend([
        vec!["hpvmmodify", "-P", "web", "-a"],
        vec!["hpvmmodify", "-P", "web", "-l"],
        vec!["hpvmmodify", "-P", "web", "-l", "x", "--reason"],
        vec!["hpvmcreate"],
        vec!["hpvm"],
    ]);
    for (line, word) in lines.iter().flat_map(|line| words.map(|word| (line, word))) {
        let shown = format!("{} {word:?}", line.join(" "));
        refused_by(|| {
            let mut command = host.command(line);
            command.arg(OsStr::from_bytes(word));
            Outcome::of(&shown, command, b"")
        });
        before.assert_unchanged(&host, &shown);
    }
}
