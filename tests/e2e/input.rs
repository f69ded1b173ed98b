//! Bad input: whatever is given to a command, it ends within five seconds with exit status 1 or 2 and one clear line, prints
//! nothing a terminal would obey, half-applies nothing, and leaves other guests alone.

pub(crate) mod files;
pub(crate) mod lost_output;
pub(crate) mod names;
pub(crate) mod provisions;
pub(crate) mod questions;
pub(crate) mod registry;

use std::process::{Command, Stdio};
use std::time::Duration;

use hpvm_testkit::vm_host::{Engine, Outcome, VmHost};

use crate::Test;
use crate::refusals::{State, refused};
use crate::statements::disk_at;

pub(crate) const TESTS: &[Test] = crate::tests![
    statements_that_mean_nothing,
    addresses_that_are_taken_or_reserved,
    absurd_amounts,
    more_devices_than_any_guest_has,
    values_that_mean_nothing,
    guests_that_are_not_there,
    a_change_with_one_fault_is_not_made_at_all,
];

/// A VM Host with a guest that runs, `other`, one that is off, `web`, and one that was removed, `gone`. Bad input must leave
/// all three as they are.
pub(crate) fn inhabited() -> VmHost {
    let host = VmHost::new(Engine::Fake);
    for name in ["other", "web", "gone"] {
        let disk = host.disk(&format!("{name}.img"), 1 << 20);
        let statement = disk_at("0,0,0", &disk);
        host.ok(&["hpvmcreate", "-P", name, "-r", "64M", "-a", &statement]);
    }
    host.ok(&["hpvmremove", "-P", "gone", "-F"]);
    host.ok(&["hpvmstart", "-P", "other"]);
    host.wait_for_state("other", "On (OS)", Duration::from_secs(20));
    host
}

/// Runs each of these, which must be refused and change nothing.
#[track_caller]
fn all_refused<'a>(host: &VmHost, lines: impl IntoIterator<Item = Vec<&'a str>>) {
    let before = State::of(host);
    for line in lines {
        refused(host, &line);
        before.assert_unchanged(host, &line.join(" "));
    }
}

fn statements_that_mean_nothing() {
    let host = inhabited();
    let disk = host.disk("new.img", 1 << 20);
    let disk = disk.display();
    let long = format!("disk:avio_stor::file:/{}", "x/".repeat(4000));
    let statements = [
        String::new(),
        ":".into(),
        ":::::".into(),
        "disk".into(),
        "disk:".into(),
        format!("disk:avio_stor:file:{disk}"),
        format!("disk:avio_stor::file{disk}"),
        format!("disc:avio_stor::file:{disk}"),
        format!("disk:ide::file:{disk}"),
        format!("disk:avio_stor::disc:{disk}"),
        format!("tape:scsi::attach:{disk}"),
        format!("disk:avio_stor::lv:{disk}"),
        "network:lan::vswitch:vs".into(),
        "serial:com1::tty:console".into(),
        "disk:avio_stor::file:".into(),
        "disk:avio_stor::file:new.img".into(),
        "disk:avio_stor::file:../new.img".into(),
        "disk:avio_stor::file:/tmp/a\nb".into(),
        "disk:avio_stor::file:/tmp/a\x1b[2J".into(),
        format!("disk:avio_stor:0:file:{disk}"),
        format!("disk:avio_stor:0,0:file:{disk}"),
        format!("disk:avio_stor:0,0,0,0:file:{disk}"),
        format!("disk:avio_stor:a,b,c:file:{disk}"),
        format!("disk:avio_stor:-1,0,0:file:{disk}"),
        format!("disk:avio_stor:0x1,0,0:file:{disk}"),
        format!("disk:avio_stor:99999999999999999999,0,0:file:{disk}"),
        format!("disk:avio_stor:7,0,0:file:{disk}"),
        format!("disk:avio_stor:0,8,0:file:{disk}"),
        format!("disk:avio_stor:0,1,128:file:{disk}"),
        format!("disk:scsi:0,1,15:file:{disk}"),
        long,
    ];
    let before = State::of(&host);
    for statement in &statements {
        for line in [
            &["hpvmcreate", "-P", "new", "-a"][..],
            &["hpvmmodify", "-P", "web", "-a"],
            &["hpvmmodify", "-P", "web", "-m"],
            &["hpvmmodify", "-P", "web", "-d"],
            &["hpvmmodify", "-P", "other", "-a"],
        ] {
            refused(&host, &[line, &[statement]].concat());
        }
        before.assert_unchanged(&host, statement);
    }
}

/// Settles 44.
fn addresses_that_are_taken_or_reserved() {
    let host = inhabited();
    let disk = host.disk("new.img", 1 << 20);
    let disk = disk.display();
    let before = State::of(&host);
    for (address, adapter) in [("0,3,0", "avio_stor"), ("0,0,0", "avio_stor"), ("0,0,1", "scsi")] {
        for guest in ["web", "other"] {
            let statement = format!("disk:{adapter}:{address}:file:{disk}");
            let said = refused(&host, &["hpvmmodify", "-P", guest, "-a", &statement]);
            let place = address.rsplit_once(',').map_or(address, |(slot, _)| slot);
            assert!(said.contains(place), "{said}");
            before.assert_unchanged(&host, &statement);
        }
    }
    let other = host.disk("newer.img", 1 << 20);
    let one = format!("disk:avio_stor:0,5,0:file:{disk}");
    let two = disk_at("0,5,0", &other);
    refused(&host, &["hpvmmodify", "-P", "web", "-a", &one, "-a", &two]);
    refused(&host, &["hpvmcreate", "-P", "new", "-a", &one, "-a", &two]);
    let exchanged = [&one, &two].map(|statement| statement.replace("0,5,0", "0,0,0"));
    let [first, second] = &exchanged;
    let said = refused(&host, &["hpvmmodify", "-P", "web", "-m", first, "-m", second]);
    let both = format!("'-m {first}' and '-m {second}' both name 0,0,0; name it once");
    assert!(said.contains(&both), "{said}");
    before.assert_unchanged(&host, "one address for two");
}

fn absurd_amounts() {
    let host = inhabited();
    let digits = "9".repeat(400);
    let long = format!("{digits}G");
    let mut options: Vec<[&str; 2]> = Vec::new();
    options.extend(
        ["0", "-1", "1e9", "0.0G", "99999999999999999999G", "8192P", "8000P", "513G", "G"]
            .map(|amount| ["-r", amount]),
    );
    options.extend(["", " 1G", "1G ", "1 G", "1GG", "0x10M", "NaN", &long].map(|a| ["-r", a]));
    options.extend(
        ["0", "-1", "1.5", "289", "4294967295", "4294967296", "", "x", &digits].map(|n| ["-c", n]),
    );
    options.extend(["0", "4.9", "101", "-5", "50:20", ":", "1e2", &digits].map(|p| ["-e", p]));
    options.extend(["0", "-5", "1.5", "99999999", "500:100", &digits].map(|m| ["-E", m]));
    all_refused(
        &host,
        options.iter().flat_map(|[letter, value]| {
            [
                vec!["hpvmcreate", "-P", "new", letter, value],
                vec!["hpvmmodify", "-P", "web", letter, value],
                vec!["hpvmmodify", "-P", "other", letter, value],
            ]
        }),
    );
    let numbers = ["0", "-1", "100000", "1.0", "99999999999999999999", "x", ""];
    all_refused(
        &host,
        numbers.iter().flat_map(|number| {
            [
                vec!["hpvmmodify", "-p", number, "-l", "x"],
                vec!["hpvmremove", "-F", "-p", number],
                vec!["hpvmstart", "-p", number],
                vec!["hpvmstop", "-F", "-p", number],
                vec!["hpvmstatus", "-p", number],
                vec!["hpvmconsole", "-c", "x", "-p", number],
                vec!["hpvm", "undelete", "-p", number],
            ]
        }),
    );
}

/// However many there are, whether there is anything or nothing where they are said to be.
fn more_devices_than_any_guest_has() {
    let host = inhabited();
    let before = State::of(&host);
    for statement in
        ["disk:avio_stor::file:/nowhere", "disk:scsi::file:/nowhere", "dvd:avio_stor::null:/srv"]
    {
        let many: Vec<&str> = ["-a", statement].repeat(3000);
        for line in [
            &["hpvmcreate", "-P", "new"][..],
            &["hpvmcreate", "-P", "new", "-s"],
            &["hpvmmodify", "-P", "web"],
            &["hpvmmodify", "-P", "other"],
            &["hpvmclone", "-P", "web", "-N", "new"],
        ] {
            let said = refused(&host, &[line, &many].concat());
            assert!(said.contains("are more than the 1024 a guest can have"), "{said}");
        }
    }
    let nics = ["-a", "network:avio_lan::vswitch:localnet"].repeat(3000);
    refused(&host, &[&["hpvmmodify", "-P", "other"][..], &nics].concat());
    before.assert_unchanged(&host, "thousands of devices");
}

fn values_that_mean_nothing() {
    let host = inhabited();
    let (label, reason, version) = ("l".repeat(256), "r".repeat(1001), "v".repeat(65));
    let version = format!("linux:{version}");
    let options = [
        ["-O", "vms"],
        ["-O", ""],
        ["-O", "linux:"],
        ["-O", "linux:\x1b"],
        ["-O", &version],
        ["-B", "always"],
        ["-B", ""],
        ["-l", "a\nb"],
        ["-l", "a\x07b"],
        ["-l", "a/b"],
        ["-l", &label],
        ["-x", "runnable_status"],
        ["-x", "runnable_status=maybe"],
        ["-x", "ram_target=1G"],
        ["-x", "="],
        ["-x", ""],
        ["--reason", "a\nb"],
        ["--reason", &reason],
        ["--nonsense", "1"],
        ["-\x1b", "1"],
        ["--\x1b[2J", "1"],
        ["surplus", "words"],
    ];
    let plain = ["hpvmstart", "hpvmstop", "hpvmremove", "hpvmstatus", "hpvmconsole"];
    let wrong = ["--nonsense", "-\x1b", "surplus", "-PP", "--name=a/b", "-"];
    let lines = options.iter().flat_map(|[letter, value]| {
        [
            vec!["hpvmcreate", "-P", "new", letter, value],
            vec!["hpvmmodify", "-P", "web", letter, value],
        ]
    });
    let lines = lines.chain(
        plain
            .iter()
            .flat_map(|command| wrong.iter().map(move |word| vec![*command, "-P", "web", word])),
    );
    let lines = lines.chain([
        vec!["hpvmcreate"],
        vec!["hpvmmodify", "-l", "x"],
        vec!["hpvmstart"],
        vec!["hpvmstart", "-P", "web", "-p", "2"],
        vec!["hpvmstart", "-P", "web", "-P", "other"],
        vec!["hpvmstop", "-a", "-P", "web"],
        vec!["hpvmstatus", "-d"],
        vec!["hpvmstatus", "-X", "-M"],
        vec!["hpvm"],
        vec!["hpvm", "\x1b[2J"],
        vec!["hpvm", "create"],
        vec!["hpvm", "undelete"],
    ]);
    all_refused(&host, lines);
}

fn guests_that_are_not_there() {
    let host = inhabited();
    for line in [
        &["hpvmmodify", "-P", "nobody", "-l", "x"][..],
        &["hpvmremove", "-P", "nobody", "-F"],
        &["hpvmremove", "-P", "nobody", "-F", "--purge"],
        &["hpvmremove", "-P", "gone", "-F"],
        &["hpvmstart", "-P", "nobody"],
        &["hpvmstart", "-P", "gone"],
        &["hpvmstart", "-p", "77"],
        &["hpvmstop", "-P", "nobody", "-F"],
        &["hpvmstatus", "-P", "nobody"],
        &["hpvmstatus", "-p", "3"],
        &["hpvmconsole", "-P", "nobody", "-c", "x"],
        &["hpvm", "why", "nobody"],
        &["hpvm", "undelete", "-P", "nobody"],
        &["hpvm", "undelete", "-P", "web"],
        &["hpvm", "nvram", "-P", "nobody", "--restore"],
    ] {
        let before = State::of(&host);
        let said = refused(&host, line);
        let named = line.iter().any(|word| said.contains(&format!("'{word}'")))
            || said.contains("'3'")
            || said.contains("-P ");
        assert!(named, "which guest is not told: {said}");
        before.assert_unchanged(&host, &line.join(" "));
    }
    // A guest that is there, and cannot have this now.
    let before = State::of(&host);
    refused(&host, &["hpvmcreate", "-P", "web"]);
    refused(&host, &["hpvmmodify", "-P", "web", "-N", "other"]);
    refused(&host, &["hpvmmodify", "-P", "other", "-N", "web"]);
    refused(&host, &["hpvmremove", "-P", "other", "-F"]);
    refused(&host, &["hpvmremove", "-P", "other", "-F", "--purge"]);
    refused(&host, &["hpvm", "nvram", "-P", "other", "--reset"]);
    refused(&host, &["hpvmmodify", "-P", "web", "-d", "disk:avio_stor:0,6,0"]);
    refused(&host, &["hpvmmodify", "-P", "web", "-m", "dvd:avio_stor:0,0,0:file:/x"]);
    before.assert_unchanged(&host, "what these guests cannot have");
}

fn a_change_with_one_fault_is_not_made_at_all() {
    let host = inhabited();
    let before = State::of(&host);
    for guest in ["web", "other"] {
        let line = ["hpvmmodify", "-P", guest, "-N", "new", "-l", "new", "-c", "2", "-B", "auto"];
        refused(&host, &[&line[..], &["-a", "disk:avio_stor::file:/nowhere"]].concat());
        refused(&host, &[&line[..], &["-d", "disk:avio_stor:0,6,0"]].concat());
        refused(&host, &[&line[..], &["-r", "8000P"]].concat());
        refused(&host, &[&line[..], &["-r", "junk"]].concat());
        before.assert_unchanged(&host, guest);
    }
}

/// Runs a command with what a shell does to its descriptors.
fn through_shell(host: &VmHost, line: &[&str], redirections: &str) -> Outcome {
    let script = format!("exec -a \"$0\" \"$@\" {redirections}");
    let command = by_script(host, Command::new("bash"), &script, line);
    Outcome::of(&format!("{} {redirections}", line.join(" ")), command, b"")
}

/// The command as `$0` (its name) and `$@` (the program and its arguments) of a script.
pub(crate) fn by_script(host: &VmHost, mut shell: Command, script: &str, line: &[&str]) -> Command {
    let usual = host.command(line);
    shell.args(["-c", script, line[0]]).arg(usual.get_program()).args(usual.get_args());
    for (name, value) in usual.get_envs() {
        match value {
            Some(value) => shell.env(name, value),
            None => shell.env_remove(name),
        };
    }
    shell.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    shell
}
