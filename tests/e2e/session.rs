//! What an administrator types and sees, as text: golden/first-session.txt is a first hour with hpvm, README.md has the quick
//! start. Both files say what is typed, in the lines that begin with "$ ", and what is to be seen.

use std::fs;
use std::path::Path;
use std::time::Duration;

use hpvm_testkit::guest::Console;
use hpvm_testkit::vm_host::{Engine, VmHost, repository};

use crate::pool::image;
use crate::shell::typed;
use crate::{Test, golden};

pub(crate) const TESTS: &[Test] =
    crate::tests![a_first_session_is_as_kept, the_quick_start_of_the_readme_is_true];

/// Four times what the tiny guest needs to switch itself off on a quiet machine.
const OFF_BOUND: Duration = Duration::from_secs(60);

/// Where the quick start has the administrator's disk.
const README_DISK: &str = "/srv/web1.img";

/// Settles 74: what a wrong or unsupported option does is told, and a dry run shows what a right one would.
fn a_first_session_is_as_kept() {
    let mut host = VmHost::new(Engine::Fake);
    // So that it is the same session on every machine.
    host.engine_behaves("boot=firmware");
    host.environment("HPVM_ACCEL", "tcg");
    let _ = host.disk("web1.img", 64 << 20);
    let kept = Path::new(env!("CARGO_MANIFEST_DIR")).join("e2e/golden/first-session.txt");
    let kept = fs::read_to_string(kept).expect("the kept session");
    let lines: Vec<&str> = kept.lines().filter_map(|line| line.strip_prefix("$ ")).collect();
    assert!(lines.len() > 20, "a session of some length");
    let seen: String = lines.iter().map(|line| answered(&host, line)).collect();
    golden::assert_kept("first-session", &golden::redacted(&host, &seen));
}

/// The line, what it prints, and how it ended unless well.
fn answered(host: &VmHost, line: &str) -> String {
    let outcome = typed(host, &line.replace("[ROOT]", &host.root().display().to_string()));
    let status = match outcome.status.code() {
        Some(0) => String::new(),
        Some(code) => format!("[exit status {code}]\n"),
        None => panic!("{outcome}"),
    };
    let (stdout, stderr) = (&outcome.stdout, &outcome.stderr);
    let end = if format!("{stdout}{stderr}").ends_with(['\n', '>']) { "" } else { "\n" };
    let end = if stdout.is_empty() && stderr.is_empty() { "" } else { end };
    format!("$ {line}\n{stdout}{stderr}{end}{status}")
}

/// With a real guest, from its start to its own shutdown.
fn the_quick_start_of_the_readme_is_true() {
    let readme = fs::read_to_string(repository().join("README.md")).expect("README.md");
    let (_, rest) = readme.split_once("## Quick start").expect("a quick start");
    let (_, rest) = rest.split_once("```console\n").expect("a session");
    let (session, _) = rest.split_once("```").expect("its end");
    let host = VmHost::new(Engine::Real);
    let disk = host.copy_of(&image("test-cloud"), "web1.img").display().to_string();
    let steps: Vec<(&str, String)> = session
        .split("$ ")
        .filter(|step| !step.is_empty())
        .map(|step| step.split_once('\n').map_or((step, ""), |(line, seen)| (line, seen)))
        .map(|(line, seen)| (line, seen.to_owned()))
        .collect();
    assert_eq!(steps.len(), 5, "{session}");
    for (line, seen) in steps {
        if line.starts_with("hpvmconsole") {
            Console::attach(&host.run_dir(1)).wait_for_shell();
            let console = typed(&host, &format!("(echo; echo CO) | timeout 60 {line}"));
            assert!(console.stdout.contains("HPVM GUEST READY"), "{console}");
            continue;
        }
        let outcome = typed(&host, &line.replace(README_DISK, &disk));
        assert!(outcome.status.success(), "{outcome}");
        assert_eq!(format!("{}{}", outcome.stdout, outcome.stderr), seen, "{line}");
    }
    host.wait_for_state("web1", "Off", OFF_BOUND);
}
