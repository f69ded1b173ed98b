//! Bad input: whatever is given to a command, it ends within five seconds with exit status 1 or 2 and one clear line, prints
//! nothing a terminal would obey, half-applies nothing, and leaves other guests alone.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use hpvm_testkit::vm_host::{Engine, Outcome, VmHost, program};

use crate::Test;
use crate::refusals::{State, export, no_control_bytes, refused, refused_by, start_refused};
use crate::terminal::Terminal;

pub(crate) const TESTS: &[Test] = crate::tests![
    names_that_cannot_be,
    entries_that_cannot_be,
    the_longest_name_is_a_name,
    words_that_are_no_text,
    statements_that_mean_nothing,
    addresses_that_are_taken_or_reserved,
    absurd_amounts,
    values_that_mean_nothing,
    guests_that_are_not_there,
    files_that_back_no_disk,
    a_running_guest_whose_new_disk_is_no_file,
    a_file_that_went_away,
    a_change_with_one_fault_is_not_made_at_all,
    provisions_that_are_missing,
    an_hpvmconf_that_is_none,
    roots_that_are_none,
    a_registry_that_is_no_database,
    a_registry_of_a_newer_version,
    dry_runs_and_refusals_in_a_registry_of_an_older_version,
    output_that_nobody_can_get,
    repairs_that_nobody_can_read_of,
    questions_that_nobody_answers,
    questions_on_a_terminal,
    answers_that_are_no_yes,
];

/// A VM Host with a guest that runs, `other`, one that is off, `web`, and one that was removed, `gone`. Bad input must leave
/// all three as they are.
pub(crate) fn inhabited() -> VmHost {
    let host = VmHost::new(Engine::Fake);
    for name in ["other", "web", "gone"] {
        let disk = host.disk(&format!("{name}.img"), 1 << 20);
        let statement = format!("disk:avio_stor:0,0,0:file:{}", disk.display());
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
    let two = format!("disk:avio_stor:0,5,0:file:{}", other.display());
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

fn files_that_back_no_disk() {
    let host = inhabited();
    for (path, reason) in unfit_files(&host) {
        let before = State::of(&host);
        for kind in ["disk", "dvd"] {
            let statement = format!("{kind}:scsi::file:{}", path.display());
            for line in [
                &["hpvmcreate", "-P", "new", "-a", &statement][..],
                &["hpvmmodify", "-P", "web", "-a", &statement],
                &["hpvmmodify", "-P", "other", "-a", &statement],
                &[
                    "hpvmmodify",
                    "-P",
                    "web",
                    "-m",
                    &format!("disk:avio_stor:0,0,0:file:{}", path.display()),
                ],
            ] {
                let said = refused(&host, line);
                assert!(said.contains(reason), "'{reason}' is not told: {said}");
            }
        }
        before.assert_unchanged(&host, &path.display().to_string());
    }
}

/// Paths that no disk can be on, and a word of the reason.
fn unfit_files(host: &VmHost) -> Vec<(std::path::PathBuf, &'static str)> {
    let at = |name: &str| host.path(name);
    let made = Command::new("mkfifo").arg(at("pipe")).status().expect("mkfifo runs");
    assert!(made.success());
    let made = Command::new("mknod").arg(at("block")).args(["b", "7", "200"]).status();
    assert!(made.expect("mknod runs").success());
    // The name stays when the socket is closed.
    drop(UnixListener::bind(at("socket")).expect("a socket"));
    std::os::unix::fs::symlink(at("nowhere"), at("dangling")).expect("a link");
    std::os::unix::fs::symlink(at("loop"), at("loop")).expect("a link");
    vec![
        (at("missing.img"), "does not exist"),
        (at("no/such/folder.img"), "does not exist"),
        (at("web.img").join("below"), "does not exist"),
        (at("dangling"), "does not exist"),
        (at("loop"), "symbolic links"),
        (at(""), "is a folder"),
        ("/".into(), "is a folder"),
        ("/dev/null".into(), "is a character device"),
        ("/dev/full".into(), "is a character device"),
        (at("block"), "is a block device"),
        (at("pipe"), "is a named pipe"),
        (at("socket"), "is a socket"),
        (format!("/{}", "n".repeat(300)).into(), "File name too long"),
    ]
}

/// The engine never hears of it.
fn a_running_guest_whose_new_disk_is_no_file() {
    let host = inhabited();
    let good = host.disk("good.img", 1 << 20);
    let good = format!("disk:avio_stor::file:{}", good.display());
    let before = State::of(&host);
    for bad in ["/nowhere", "/etc", "/dev/null"] {
        let bad = format!("disk:avio_stor::file:{bad}");
        refused(&host, &["hpvmmodify", "-P", "other", "-a", &good, "-a", &bad]);
        refused(&host, &["hpvmmodify", "-P", "other", "-a", &bad, "-a", &good, "-F"]);
        before.assert_unchanged(&host, &bad);
    }
}

/// Only the start is refused; every other change warns, and does what it was asked.
///
/// Settles 77.
fn a_file_that_went_away() {
    let host = inhabited();
    fs::rename(host.path("web.img"), host.path("elsewhere.img")).expect("it is renamed");
    let outcome = host.run(&["hpvmmodify", "-P", "web", "-l", "renamed"]);
    assert!(outcome.status.success(), "{outcome}");
    assert_eq!(outcome.stderr.matches("WARNING (web)").count(), 1, "{outcome}");
    let before = State::of(&host);
    // A refusal has its own reason, and nothing before or behind it.
    let said = refused(&host, &["hpvmmodify", "-P", "web", "-a", "disk:avio_stor::file:/none"]);
    assert!(said.contains("/none") && !said.contains("WARNING"), "{said}");
    let said = start_refused(&host, "web");
    assert!(said.contains("does not exist"), "{said}");
    fs::create_dir(host.path("web.img")).expect("a folder");
    let said = start_refused(&host, "web");
    assert!(said.contains("is a folder"), "{said}");
    before.assert_unchanged(&host, "two starts that were refused");
    fs::remove_dir(host.path("web.img")).expect("it is empty");
    fs::rename(host.path("elsewhere.img"), host.path("web.img")).expect("it is renamed");
    host.ok(&["hpvmstart", "-P", "web"]);
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

/// What hpvm itself needs is not there.
fn provisions_that_are_missing() {
    let mut host = inhabited();
    let before = State::of(&host);
    host.set("HPVMNVRAM", "/nowhere/vars.fd");
    let said = refused(&host, &["hpvmcreate", "-P", "new"]);
    assert!(said.contains("/nowhere/vars.fd"), "{said}");
    before.assert_unchanged(&host, "a creation without firmware variables");
    host.set("HPVMNVRAM", "");
    for (name, path) in [
        ("HPVMQEMU", "/nowhere/qemu"),
        ("HPVMQEMU", "/etc/passwd"),
        ("HPVMQEMU", "/"),
        ("HPVMQEMU", "/bin/false"),
        ("HPVMFIRMWARE", "/nowhere/code.fd"),
        ("HPVMFIRMWARE", "/"),
    ] {
        let usual = match name {
            "HPVMQEMU" => program("fake-qemu").to_string_lossy().into_owned(),
            _ => String::new(),
        };
        host.set(name, path);
        start_refused(&host, "web");
        before.assert_unchanged(&host, &format!("{name}={path}"));
        host.set(name, &usual);
    }
    host.ok(&["hpvmstart", "-P", "web"]);
}

fn an_hpvmconf_that_is_none() {
    let mut host = inhabited();
    let before = State::of(&host);
    for (name, value, line) in [
        ("HPVMKEEPREMOVED", "soon", &["hpvmremove", "-P", "web", "-F"][..]),
        ("HPVMKEEPREMOVED", "-1", &["hpvmremove", "-P", "web", "-F"]),
        ("HPVMAUTOSTOP", "3601", &["hpvm", "autostop"]),
        ("HPVMSTOP", "0", &["hpvmstop", "-P", "other", "-g", "-F"]),
        ("HPVMLIMITS", "A.99", &["hpvmcreate", "-P", "new"]),
        ("HPVMUIDBASE", "0", &["hpvmstart", "-P", "web"]),
        ("HPVMUIDBASE", "\x1b[2J", &["hpvmstart", "-P", "web"]),
    ] {
        host.set(name, value);
        let said = refused(&host, line);
        assert!(said.contains(name) && said.contains("line "), "{said}");
        before.assert_unchanged(&host, name);
        host.set(name, "");
    }
    let conf = host.path("etc/opt/hpvm/hpvmconf");
    let good = fs::read(&conf).expect("hpvmconf");
    fs::remove_file(&conf).expect("it goes");
    fs::create_dir(&conf).expect("a folder");
    refused(&host, &["hpvmstatus"]);
    refused(&host, &["hpvmcreate", "-P", "new"]);
    fs::remove_dir(&conf).expect("it is empty");
    let huge = fs::File::create(&conf).and_then(|file| file.set_len(1 << 40));
    huge.expect("a sparse file");
    refused(&host, &["hpvmcreate", "-P", "new"]);
    // Lines that are none are the shell's business.
    fs::write(&conf, [&good[..], b"\xff\xfe\0 if then fi\n"].concat()).expect("hpvmconf");
    host.ok(&["hpvmstatus"]);
    before.assert_unchanged(&host, "an hpvmconf that is none");
    // They are told of, each by the doctor, and once by a start.
    let more = [&good[..], b"if then fi\nHPVMSTPO=30\n"].concat();
    fs::write(&conf, more).expect("hpvmconf");
    let told = host.run(&["hpvm", "doctor"]);
    for fault in ["'if then fi' is no NAME=value", "HPVMSTPO is no tunable"] {
        assert!(told.stdout.contains(fault), "{told}");
    }
    let started = host.run(&["hpvmstart", "-P", "web"]);
    assert!(started.status.success(), "{started}");
    assert_eq!(started.stderr.matches("if then fi").count(), 1, "{started}");
    assert!(started.stderr.contains("1 more: `hpvm doctor`"), "{started}");
}

fn roots_that_are_none() {
    let host = VmHost::new(Engine::Fake);
    let file = host.disk("file", 10);
    let long = format!("/{}", "r".repeat(5000));
    let odd: OsString = OsStr::from_bytes(b"/proc/\xff\x1b[2J").to_owned();
    for root in [OsStr::new(""), file.as_os_str(), OsStr::new("/dev/null"), OsStr::new(&long), &odd]
    {
        for line in [&["hpvmcreate", "-P", "new"][..], &["hpvmstart", "-P", "new"]] {
            refused_by(|| {
                let mut command = host.command(line);
                command.env("HPVM_ROOT", root);
                Outcome::of(&format!("HPVM_ROOT={root:?} {}", line.join(" ")), command, b"")
            });
        }
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

/// Commands that need the registry.
const NEED_THE_REGISTRY: &[&[&str]] = &[
    &["hpvmcreate", "-P", "new"],
    &["hpvmmodify", "-P", "web", "-l", "x"],
    &["hpvmremove", "-P", "web", "-F"],
    &["hpvmstart", "-P", "web"],
    &["hpvmstop", "-P", "other", "-F"],
    &["hpvmstop", "-a", "-F"],
    &["hpvmstatus"],
    &["hpvmstatus", "-P", "other"],
    &["hpvmconsole", "-P", "other", "-c", "x"],
    &["hpvm", "why", "web"],
    &["hpvm", "undelete", "-P", "gone"],
    &["hpvm", "undelete", "--list"],
    &["hpvm", "nvram", "-P", "web"],
    &["hpvm", "autostart"],
    &["hpvm", "autostop"],
];

/// Puts something else in the registry's place for as long as it lives.
struct Exchanged<'a> {
    host: &'a VmHost,
}

impl Exchanged<'_> {
    fn begin(host: &VmHost) -> Exchanged<'_> {
        for (path, aside) in Exchanged::paths(host) {
            fs::rename(path, aside).expect("the registry goes aside");
        }
        Exchanged { host }
    }

    fn paths(host: &VmHost) -> impl Iterator<Item = (std::path::PathBuf, std::path::PathBuf)> + '_ {
        ["hpvm.db", "hpvm.db-wal", "hpvm.db-shm"]
            .map(|name| (host.path("var/opt/hpvm").join(name), host.path(name)))
            .into_iter()
            .filter(|(path, aside)| path.exists() || aside.exists())
    }
}

impl Drop for Exchanged<'_> {
    fn drop(&mut self) {
        let db = self.host.path("var/opt/hpvm/hpvm.db");
        let _ = fs::remove_dir(&db).or_else(|_| fs::remove_file(&db));
        for (path, aside) in Exchanged::paths(self.host) {
            let _ = fs::remove_file(&path);
            let _ = fs::rename(aside, path);
        }
    }
}

/// A thing that a test puts in the registry's place.
type Occupant = (&'static str, fn(&Path));

fn a_registry_that_is_no_database() {
    let host = inhabited();
    let before = State::of(&host);
    let occupants: &[Occupant] = &[
        ("text", |path| fs::write(path, "root:x:0:0:\x1b[2J\n".repeat(100)).expect("a file")),
        ("zeros", |path| fs::write(path, vec![0; 8192]).expect("a file")),
        ("an empty file", |path| fs::write(path, "").expect("a file")),
        ("a folder", |path| fs::create_dir(path).expect("a folder")),
        ("a pipe", |path| {
            assert!(Command::new("mkfifo").arg(path).status().expect("mkfifo").success());
        }),
        ("a device", |path| std::os::unix::fs::symlink("/dev/zero", path).expect("a link")),
        ("another program's database", |path| {
            let table = rusqlite::Connection::open(path).and_then(|c| {
                c.execute_batch("CREATE TABLE guest (name TEXT); INSERT INTO guest VALUES ('x')")
            });
            table.expect("a database");
        }),
    ];
    for (what, make) in occupants {
        let _exchanged = Exchanged::begin(&host);
        let db = host.path("var/opt/hpvm/hpvm.db");
        make(&db);
        let bytes = db.is_file().then(|| fs::read(&db).expect("it can be read"));
        for line in NEED_THE_REGISTRY {
            let said = refused(&host, line);
            assert!(said.contains("hpvm doctor --rebuild"), "{what}: {said}");
        }
        let now = db.is_file().then(|| fs::read(&db).expect("it can be read"));
        assert!(bytes == now, "{what} was changed");
        assert!(host.qemu(1).is_some(), "the running guest runs on");
    }
    before.assert_unchanged(&host, "the registry came back");
    assert_eq!(host.state("other"), "On (OS)");
}

fn a_registry_of_a_newer_version() {
    let host = inhabited();
    let db = host.path("var/opt/hpvm/hpvm.db");
    let version = |set: Option<i64>| {
        let connection = rusqlite::Connection::open(&db).expect("a database");
        if let Some(to) = set {
            connection.pragma_update(None, "user_version", to).expect("it is set");
        }
        connection.pragma_query_value(None, "user_version", |row| row.get(0)).expect("a number")
    };
    let ours: i64 = version(None);
    let before = State::of(&host);
    version(Some(ours + 98));
    let rebuild = ["hpvm", "doctor", "--rebuild", "-F"];
    for line in NEED_THE_REGISTRY.iter().copied().chain([&rebuild[..]]) {
        let said = refused(&host, line);
        assert!(said.contains(&format!("version {}", ours + 98)), "{said}");
        assert!(said.contains("newer hpvm"), "{said}");
    }
    assert_eq!(version(None), ours + 98, "it was not touched");
    version(Some(ours));
    before.assert_unchanged(&host, "the version came back");
}

fn dry_runs_and_refusals_in_a_registry_of_an_older_version() {
    const WITHOUT_NETWORKS: &str = "DROP TABLE nic; DROP TABLE switch_port; DROP TABLE forward;
        DROP TABLE vswitch; ALTER TABLE guest DROP COLUMN nic_count; PRAGMA user_version = 3;";
    let host = inhabited();
    let db = host.path("var/opt/hpvm/hpvm.db");
    let version = || {
        let connection = rusqlite::Connection::open(&db).expect("a database");
        let version = connection.pragma_query_value(None, "user_version", |row| row.get(0));
        version.map(|version: i64| version).expect("a number")
    };
    let ours = version();
    let old = rusqlite::Connection::open(&db).and_then(|db| db.execute_batch(WITHOUT_NETWORKS));
    old.expect("a registry as it was");
    let nic = "network:avio_lan::vswitch:localnet";
    let dry_runs: &[&[&str]] = &[
        &["hpvmcreate", "-P", "new", "-a", nic, "--dry-run"],
        &["hpvmmodify", "-P", "web", "-a", nic, "--dry-run"],
        &["hpvmclone", "-P", "web", "-N", "twin", "--linked", "--dry-run"],
        &["hpvmremove", "-P", "web", "--dry-run"],
        &["hpvm", "undelete", "gone", "--dry-run"],
        &["hpvmnet", "-c", "-S", "new", "--dry-run"],
        &["hpvmdevmgmt", "-a", "rdev:/srv", "--dry-run"],
        &["hpvmstart", "-P", "web", "--dry-run"],
        &["hpvm", "doctor"],
    ];
    for line in dry_runs {
        host.ok(line);
        assert_eq!(version(), 3, "{line:?}");
    }
    refused(&host, &["hpvmmodify", "-P", "web", "-c", "4000"]);
    assert_eq!(version(), 3);
    let copy = host.path("var/opt/hpvm/hpvm.db.version-3");
    assert!(!copy.exists());
    host.ok(&["hpvmmodify", "-P", "web", "-a", nic]);
    assert_eq!(version(), ours);
    assert!(copy.exists());
}

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
        let broken = refused_by(|| {
            let (reader, writer) = std::io::pipe().expect("a pipe");
            drop(reader);
            let mut command = host.command(line);
            command.stdout(writer);
            Outcome::of(&format!("{} into a closed pipe", line.join(" ")), command, b"")
        });
        assert!(broken.contains("Broken pipe"), "{broken}");
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

/// Commands that ask, and the word they ask with.
const ASK: &[(&[&str], &str)] = &[
    (&["hpvmremove", "-P", "web"], "Remove the virtual machine 'web'? [n/y]:"),
    (&["hpvmremove", "-P", "web", "--purge"], "Remove the virtual machine 'web'? [n/y]:"),
    (&["hpvmremove", "-P", "gone", "--purge"], "'gone'? [n/y]:"),
    (&["hpvmstop", "-P", "other"], "Stop the virtual machine 'other'? [n/y]:"),
    (&["hpvmstop", "-P", "other", "-g"], "Stop the virtual machine 'other'? [n/y]:"),
    (&["hpvmstop", "-a"], "Stop the virtual machine 'other'? [n/y]:"),
    (&["hpvmnet", "-S", "localnet", "-h"], "Halt the vswitch 'localnet'? [n]:"),
];

/// As hpvmconsole says it.
const UNANSWERED: &str =
    ": the input ended before the question was answered; nothing was changed\n";

/// End of file means no: nothing is done, and the exit status says so.
fn questions_that_nobody_answers() {
    let host = inhabited();
    let before = State::of(&host);
    for (line, question) in ASK {
        for outcome in [host.run(line), through_shell(&host, line, "<&-")] {
            assert_eq!(outcome.status.code(), Some(1), "{outcome}");
            assert!(outcome.stderr.contains(question), "{outcome}");
            assert!(outcome.stderr.ends_with(UNANSWERED), "{outcome}");
            assert_eq!(outcome.stderr.lines().count(), 2, "{outcome}");
            no_control_bytes(&outcome);
        }
        before.assert_unchanged(&host, &line.join(" "));
    }
}

fn answers_that_are_no_yes() {
    let host = inhabited();
    let before = State::of(&host);
    let noise = [b"x".repeat(1 << 16), b"\n".to_vec()].concat();
    let answers: [&[u8]; 8] =
        [b"n\n", b"\n", b"no", b"yy\n", b"\xff\xfe\n", b"\x1b[2J\n", b"\0\0\0", &noise];
    for answer in answers {
        for (line, question) in ASK {
            let outcome = host.run_with_input(line, answer);
            assert_eq!(outcome.status.code(), Some(1), "{answer:?}: {outcome}");
            assert!(outcome.stderr.contains(question), "{outcome}");
            assert!(outcome.stderr.ends_with("; nothing was changed\n"), "{outcome}");
            let shown = outcome.stderr.chars().any(|c| c.is_control() && c != '\n');
            assert!(!shown, "{:?}", outcome.stderr);
        }
    }
    before.assert_unchanged(&host, "answers that are no yes");
    let noise = host.run_with_input(&["hpvmremove", "-P", "web"], b"maybe\nmaybe\nmaybe\nyes\n");
    assert!(noise.stderr.ends_with("neither by y nor by n; nothing was changed\n"), "{noise}");
    let outcome = host.run_with_input(&["hpvmremove", "-P", "web"], b"maybe\nYes\n");
    assert!(outcome.status.success(), "{outcome}");
    assert!(!host.ok(&["hpvmstatus"]).contains("web"));
}

/// On a terminal the question is shown where the answer is typed, and Ctrl-D is the end of file.
fn questions_on_a_terminal() {
    let host = inhabited();
    let before = State::of(&host);
    for (line, question) in ASK {
        for answer in ["\x04", "n\r"] {
            let mut asked = Terminal::of(host.command(line));
            asked.expect(question);
            asked.type_in(answer);
            assert_eq!(asked.ended(), Some(1), "{line:?} answered {answer:?}");
        }
        before.assert_unchanged(&host, &line.join(" "));
    }
    let mut asked = Terminal::of(host.command(&["hpvmstop", "-P", "other"]));
    asked.expect("Stop the virtual machine 'other'? [n/y]:");
    asked.type_in("y\r");
    assert_eq!(asked.ended(), Some(0));
    assert_eq!(host.state("other"), "Off");
}
