//! Output that cannot be written: the command says so, where that can be heard, and begins nothing that nobody would know of.
//! Where nobody reads any more, as behind `head`, it ends without a word.

use std::fs;

use hpvm_testkit::vm_host::Outcome;

use super::{inhabited, through_shell};
use crate::Test;
use crate::refusals::{State, export, refused_by};

pub(crate) const TESTS: &[Test] =
    crate::tests![output_that_nobody_can_get, repairs_that_nobody_can_read_of];

fn output_that_nobody_can_get() {
    let host = inhabited();
    let before = State::of(&host);
    let lines: &[&[&str]] = &[
        &["hpvmstatus"],
        &["hpvmstatus", "-V"],
        &["hpvmstatus", "-P", "other"],
        &["hpvmstatus", "-P", "web", "-d"],
        &["hpvmstatus", "-r"],
        &["hpvmstatus", "-s"],
        &["hpvmstatus", "-e"],
        &["hpvmstatus", "-v"],
        &["hpvmstatus", "-X"],
        &["hpvmstatus", "-M"],
        &["hpvmstatus", "--json"],
        &["hpvmstatus", "--help"],
        &["hpvmcreate", "-P", "new", "-s"],
        &["hpvmmodify", "-P", "web", "-l", "x", "-s"],
        &["hpvmstart", "-P", "web", "-s"],
        &["hpvm", "why", "web"],
        &["hpvm", "undelete", "--list"],
        &["hpvm", "doctor"],
        &["hpvm", "help"],
        &["hpvmconsole", "-P", "web", "-c", "he"],
        &["hpvmremove", "-P", "web", "-F", "--dry-run"],
        &["hpvmstop", "-P", "other", "-F", "--dry-run"],
        &["hpvm", "nvram", "-P", "web"],
        &["hpvmnet"],
        &["hpvmnet", "-c", "-S", "sw1", "--dry-run"],
        &["hpvmdevmgmt", "-l", "all"],
        &["hpvmhostrdev"],
        &["hpvm", "gvsdmgr", "get_info", "-P", "other"],
    ];
    for line in lines {
        let full = refused_by(|| {
            let mut command = host.command(line);
            command
                .stdout(fs::OpenOptions::new().write(true).open("/dev/full").expect("/dev/full"));
            Outcome::of(&format!("{} >/dev/full", line.join(" ")), command, b"")
        });
        assert!(full.contains("No space left"), "{full}");
        let closed = refused_by(|| through_shell(&host, line, ">&-"));
        assert!(closed.contains("standard output is closed"), "{closed}");
        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        let mut command = host.command(line);
        command.stdout(writer);
        let unread = Outcome::of(&format!("{} | head -0", line.join(" ")), command, b"");
        assert_eq!(unread.status.code(), Some(1), "{unread}");
        assert_eq!(unread.stderr, "", "{unread}");
        before.assert_unchanged(&host, &line.join(" "));
    }
    // What prints nothing needs no output, and a lost word on standard error undoes nothing.
    let outcome = through_shell(&host, &["hpvmmodify", "-P", "web", "-l", "one"], ">&- 2>&- <&-");
    assert!(outcome.status.success(), "{outcome}");
    let outcome = through_shell(&host, &["hpvmmodify", "-P", "web", "-e", "20"], "2>/dev/full");
    assert!(outcome.status.success(), "{outcome}");
    let text = host.ok(&["hpvmstatus", "-V", "-P", "web"]);
    assert!(text.contains("one") && text.contains("20.0%"), "{text}");
}

/// Without output nothing is begun. What fails later keeps no repair from being made and recorded.
fn repairs_that_nobody_can_read_of() {
    let host = inhabited();
    let links = ["web", "other"].map(|name| host.path("var/opt/hpvm/guests").join(name));
    for link in &links {
        fs::remove_file(link).expect("a link is lost");
    }
    let before = State::of(&host);
    let records = || export(&host)["operations"].as_array().expect("a list").clone();
    let recorded = records();
    let (repair, rebuild) = (["hpvm", "doctor", "--repair"], ["hpvm", "doctor", "--rebuild", "-F"]);
    for line in [&repair[..], &rebuild] {
        let closed = refused_by(|| through_shell(&host, line, ">&-"));
        assert!(closed.contains("standard output is closed"), "{closed}");
        before.assert_unchanged(&host, &line.join(" "));
        assert_eq!(records(), recorded, "nothing was begun");
    }
    let full = refused_by(|| through_shell(&host, &repair, ">/dev/full"));
    assert!(full.contains("No space left"), "{full}");
    for link in &links {
        assert!(link.exists(), "{} is back", link.display());
    }
    let now = records();
    assert_eq!(now.len(), recorded.len() + 1, "one record of it");
    assert_eq!(now.last().expect("the last one")["result"], "done");
    assert_eq!(host.ok(&["hpvm", "doctor"]), "Nothing to complain of.\n");
}
