//! What a wrong command line gets: exit status 2, one sentence, the synopsis, nothing else. The real binary is run.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output};

fn run(program: &str, arguments: &[&OsStr]) -> Output {
    let root = tempfile::tempdir().unwrap();
    Command::new(env!("CARGO_BIN_EXE_hpvm"))
        .arg0(program)
        .args(arguments)
        .env("HPVM_ROOT", root.path())
        .output()
        .unwrap()
}

fn words(line: &str) -> (String, Vec<String>) {
    let mut words = line.split(' ').map(str::to_owned);
    (words.next().unwrap(), words.collect())
}

/// The one sentence a wrong command line gets.
fn refusal(program: &str, arguments: &[&OsStr]) -> String {
    let output = run(program, arguments);
    let errors = String::from_utf8(output.stderr).expect("messages are UTF-8");
    assert_eq!(output.status.code(), Some(2), "{program} {arguments:?}: {errors}");
    assert!(output.stdout.is_empty(), "{program} {arguments:?}");
    let lines: Vec<&str> = errors.lines().collect();
    assert_eq!(lines.len(), 2, "{program} {arguments:?}: {errors}");
    let is_named = ["Usage: hpvm", "Usage: gvsdmgr"].iter().any(|name| lines[1].starts_with(name));
    assert!(is_named, "{errors}");
    assert!(!errors.chars().any(|c| c.is_control() && c != '\n'), "{errors:?}");
    lines[0].to_owned()
}

fn check(line: &str, expected: &str) {
    let (program, arguments) = words(line);
    let arguments: Vec<&OsStr> = arguments.iter().map(OsStr::new).collect();
    assert_eq!(refusal(&program, &arguments), expected, "{line}");
}

/// Wrong command lines, and the sentence about each.
const WRONG: &[(&str, &str)] = &[
    (
        "hpvmmodify -P g -R 64M",
        "hpvmmodify: ERROR: '-R' is no option of this command yet: A.03.50's -R comes with dynamic memory",
    ),
    (
        "hpvmmodify -P g --user=root",
        "hpvmmodify: ERROR: '--user' is no option of this command yet: A.03.50's -u comes with console accounts",
    ),
    (
        "hpvmstatus -VS",
        "hpvmstatus: ERROR: '-S' is no option of this command yet: A.03.50's -S comes with entitlement enforcement",
    ),
    ("hpvmstart -P g -R 64M", "hpvmstart: ERROR: '-R' is no option of this command"),
    (
        "hpvmmodify -P g --memroy 1G",
        "hpvmmodify: ERROR: '--memroy' is no option of this command; did you mean --memory?",
    ),
    ("hpvmmodify -c 2", "hpvmmodify: ERROR: -P NAME or -p NUMBER is missing"),
    ("hpvmmodify -P g -p 1", "hpvmmodify: ERROR: -P and -p exclude each other"),
    ("hpvmmodify -P g -P h", "hpvmmodify: ERROR: -P is given twice"),
    ("hpvmmodify -P", "hpvmmodify: ERROR: -P needs a value: -P NAME"),
    (
        "hpvmdevmgmt -S 10M --preallocate d.img",
        "hpvmdevmgmt: ERROR: -S takes its values directly behind it: -S SIZE FILE",
    ),
    (
        "hpvmdevmgmt -S 10M",
        "hpvmdevmgmt: ERROR: -S takes its values directly behind it: -S SIZE FILE",
    ),
    (
        "hpvmdevmgmt -S 10M d.img e.img",
        "hpvmdevmgmt: ERROR: the argument 'e.img' has no meaning here",
    ),
    (
        "hpvmdevmgmt -S 10M d.img -- e.img",
        "hpvmdevmgmt: ERROR: the argument 'e.img' has no meaning here",
    ),
    (
        "hpvmdevmgmt -S 10X d.img",
        "hpvmdevmgmt: ERROR: -S: '10X' is not a size; write a number with K, M, G, T or P, such as 2048M, 2G or 1.5G",
    ),
    (
        "hpvmdevmgmt -S 1e3M d.img --dry-run",
        "hpvmdevmgmt: ERROR: -S: '1e3M' is not a size; write a number with K, M, G, T or P, such as 2048M, 2G or 1.5G",
    ),
    (
        "hpvmdevmgmt -S 4095 d.img",
        "hpvmdevmgmt: ERROR: -S: '4095' has no unit; the units are K, M, G, T and P: write 4095M or 4095G",
    ),
    ("hpvmdevmgmt -S 0 d.img", "hpvmdevmgmt: ERROR: -S: a disk of no bytes is none"),
    ("hpvmdevmgmt -S 0G d.img", "hpvmdevmgmt: ERROR: -S: a disk of no bytes is none"),
    ("hpvmmodify -P g -F -s", "hpvmmodify: ERROR: -F and -s exclude each other"),
    ("hpvmmodify -P g extra", "hpvmmodify: ERROR: the argument 'extra' has no meaning here"),
    (
        "hpvmstatus web1",
        "hpvmstatus: ERROR: the argument 'web1' has no meaning here; did you mean -P web1?",
    ),
    (
        "hpvmstart a/b",
        "hpvmstart: ERROR: the argument 'a/b' has no meaning here; -P names the guest",
    ),
    (
        "hpvmstart -h",
        "hpvmstart: ERROR: '-h' is no option of this command; --help prints its options",
    ),
    (
        "hpvmconsole -P g --command=",
        "hpvmconsole: ERROR: -c: no command stands there; say which the console is to run, such as -c 'pc -off'",
    ),
    (
        "hpvmconsole -P g -c pc -off",
        "hpvmconsole: ERROR: '-o' is no option of this command; a command of several words stands in quotes: -c 'pc -off'",
    ),
    ("hpvm help frobnicate", "hpvm: ERROR: 'frobnicate' is no command"),
    ("hpvmmodify -P g --force=yes", "hpvmmodify: ERROR: -F takes no value"),
    ("hpvmmodify -p 0", "hpvmmodify: ERROR: -p: '0' is no guest number; numbers are 1 to 99999"),
    (
        "hpvmmodify -P a/b",
        "hpvmmodify: ERROR: -P: the name 'a/b' has a '/'; names are made of A-Z a-z 0-9 - _ .",
    ),
    (
        "hpvmcreate -P g -r 1X",
        "hpvmcreate: ERROR: -r: '1X' is not a size; write a number with K, M, G, T or P, such as 2048M, 2G or 1.5G",
    ),
    (
        "hpvmcreate -P g -a disk:scsi:0,0,15:file:/x",
        "hpvmcreate: ERROR: -a: target 15 does not exist on scsi; its targets are 0 to 14",
    ),
    (
        "hpvmcreate -P g -x ram_target=1G",
        "hpvmcreate: ERROR: -x: 'ram_target' is no keyword; the keyword there is, is runnable_status",
    ),
    ("hpvmcreate -r 1G", "hpvmcreate: ERROR: -P NAME is missing"),
    ("hpvmcreate -P g -e 10 -E 800", "hpvmcreate: ERROR: -e and -E exclude each other"),
    (
        "hpvm gvsdmgr getinfo web1",
        "gvsdmgr: ERROR: 'getinfo' is no VERB; there are get_info, get_stat, clear_stat, bdr, replace_dsk",
    ),
    (
        "hpvm gvsdmgr get_info -P g -D 0,3",
        "gvsdmgr: ERROR: -D: there is no adapter at '0,3'; `hpvmstatus -P NAME -d` shows where a guest has some",
    ),
    (
        "hpvmclone -P g -N h -b disk:avio_stor::file:/x",
        "hpvmclone: ERROR: -b: 'disk:avio_stor::file:/x' has no address; write that of the disk to be copied, as `hpvmstatus -P SOURCE -d` prints it, such as disk:scsi:0,1,0:file:/path",
    ),
    (
        "hpvmdevmgmt -a gdev:/x:attr:SHARE=YES",
        "hpvmdevmgmt: ERROR: -a: an attribute is given to an entry that is there: first -a gdev:/x, then -m gdev:/x:attr:SHARE=YES",
    ),
    ("hpvm undelete --list --json", "hpvm undelete: ERROR: '--json' is no option of this command"),
    (
        "hpvmmodify -P g -r -5G",
        "hpvmmodify: ERROR: '-5G' is neither an option nor a value; numbers and sizes have no sign",
    ),
    (
        "hpvmcreate -P g -a disk:scsi:file:/x",
        "hpvmcreate: ERROR: -a: the address bus,device,target is missing, which may be empty; write disk:scsi::file:…",
    ),
    ("hpvm undelete --list -N x", "hpvm undelete: ERROR: --list and -N exclude each other"),
    ("hpvmstop -g", "hpvmstop: ERROR: -P NAME or -p NUMBER or -a is missing"),
    ("hpvmstop -P g -a", "hpvmstop: ERROR: -P and -a exclude each other"),
    ("hpvmstatus -X -M", "hpvmstatus: ERROR: -X and -M exclude each other"),
    ("hpvmnet -Scable -b --json", "hpvmnet: ERROR: --json and -b exclude each other"),
    ("hpvmnet -S x -uportid:1:vlanid:7 -X", "hpvmnet: ERROR: -X and -u exclude each other"),
    ("hpvmstatus -d", "hpvmstatus: ERROR: -P NAME or -p NUMBER is missing"),
    ("hpvm frobnicate", "hpvm: ERROR: 'frobnicate' is no command"),
    ("hpvm stat -P g", "hpvm: ERROR: 'stat' is no command; did you mean status?"),
    ("hpvm undelte g", "hpvm: ERROR: 'undelte' is no command; did you mean undelete?"),
    ("hpvm hpvmstart -P g", "hpvm: ERROR: 'hpvmstart' is no command; did you mean start?"),
    ("hpvm delete -P g", "hpvm: ERROR: 'delete' is no command"),
    ("hpvm help docter", "hpvm: ERROR: 'docter' is no command; did you mean doctor?"),
    ("gvsdmgr", "gvsdmgr: ERROR: VERB is missing, and -P NAME or -p NUMBER or GUEST"),
    ("gvsdmgr -P g", "gvsdmgr: ERROR: VERB is missing"),
    ("gvsdmgr bdr", "gvsdmgr: ERROR: -P NAME or -p NUMBER or GUEST is missing"),
    ("hpvmclone", "hpvmclone: ERROR: -N NAME is missing, and -P NAME or -p NUMBER"),
    ("hpvmdevmgmt", "hpvmdevmgmt: ERROR: one of -a, -d, -m, -n, -l, -I, -r, -S, -v is missing"),
    ("hpvm", "hpvm: ERROR: say which command"),
    ("hpvm undelete g --list", "hpvm undelete: ERROR: GUEST and --list exclude each other"),
    ("hpvm undelete", "hpvm undelete: ERROR: -P NAME or -p NUMBER or GUEST or --list is missing"),
    ("hpvm man", "hpvm man: ERROR: DIR is missing"),
    ("hpvmremove -P g --reason", "hpvmremove: ERROR: --reason needs a value: --reason TEXT"),
    ("hpvm why", "hpvm why: ERROR: -P NAME or -p NUMBER or GUEST is missing"),
];

#[test]
fn wrong_command_lines_get_one_sentence() {
    for (line, expected) in WRONG {
        check(line, expected);
    }
}

#[test]
fn hostile_arguments_are_refused_and_never_echoed_raw() {
    let not_text: &[u8] = b"\xff\xfe";
    let commanding: &[u8] = b"a\x1b[2J\nb\x7f";
    let turning = "\u{202e}evil".as_bytes();
    let long = &[b'x'; 300];
    for (option, hostile) in [
        ("-P", vec![not_text, commanding, turning, long, b"..", b"a b", b"-x"]),
        ("-l", vec![not_text, commanding, turning, long]),
        ("-r", vec![not_text, commanding, turning, long, b"99999999999999999999G"]),
        ("-a", vec![not_text, commanding, turning, long, b"disk:scsi::file:/a\x1bb"]),
        ("-O", vec![not_text, commanding, turning, long]),
        ("-x", vec![not_text, commanding, turning, long]),
        ("--reason", vec![not_text, commanding]),
        ("--nonsense", vec![not_text, commanding, turning, long]),
    ] {
        for argument in hostile {
            let argument = OsString::from_vec(argument.to_vec());
            refusal("hpvmcreate", &[OsStr::new(option), &argument]);
            let mut joined = OsString::from(option);
            joined.push("=");
            joined.push(&argument);
            refusal("hpvmcreate", &[&joined]);
        }
    }
}

#[test]
fn help_and_version_are_no_errors() {
    for line in ["hpvm help", "hpvm --help", "hpvm --version", "hpvmstatus -v", "hpvmstop --help"] {
        let (program, arguments) = words(line);
        let arguments: Vec<&OsStr> = arguments.iter().map(OsStr::new).collect();
        let output = run(&program, &arguments);
        assert_eq!(output.status.code(), Some(0), "{line}");
        assert!(output.stderr.is_empty() && !output.stdout.is_empty(), "{line}");
    }
}

#[test]
fn a_command_is_found_by_every_name_it_has() {
    for line in ["hpvmstatus -v", "/opt/hpvm/bin/hpvmstatus -v", "-hpvmstatus -v", "hpvm status -v"]
    {
        let (program, arguments) = words(line);
        let arguments: Vec<&OsStr> = arguments.iter().map(OsStr::new).collect();
        let output = run(&program, &arguments);
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.starts_with("hpvm: Version "), "{line}: {text}");
    }
}

#[test]
fn output_that_nobody_can_get_is_an_error() {
    let program = env!("CARGO_BIN_EXE_hpvm");
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = Command::new(program).arg("help").stdout(writer).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(output.stderr.is_empty(), "its reader has gone");
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let output = Command::new(program).arg("help").stdout(full).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let errors = String::from_utf8(output.stderr).unwrap();
    assert_eq!(
        errors,
        "hpvm: ERROR: the output could not be written: No space left on device (os error 28)\n"
    );
}

#[test]
fn the_steps_at_which_a_command_can_be_killed_are_listed() {
    let output = run("hpvm", &[OsStr::new("crash-steps")]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.lines().any(|line| line == "create.committed"), "{text}");
    assert!(text.lines().all(|line| line.contains('.')), "{text}");
}

/// A slip in the name of a root is no VM Host without guests, nor does it become one.
#[test]
fn a_root_that_is_not_there_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("root");
    let told = format!("HPVM_ROOT names {}, which is not there", root.display());
    let lines: [(&str, &[&str]); 12] = [
        ("hpvmstatus", &[]),
        ("hpvmcreate", &["-P", "web", "--dry-run"]),
        ("hpvmmodify", &["-P", "web", "-l", "x"]),
        ("hpvmclone", &["-P", "web", "-N", "twin"]),
        ("hpvmstart", &["-P", "web"]),
        ("hpvmstop", &["-a", "-F"]),
        ("hpvmremove", &["-P", "web", "-F"]),
        ("hpvmnet", &["-S", "sw1", "-d"]),
        ("hpvmdevmgmt", &["-a", "server:db"]),
        ("hpvmhostrdev", &["--dry-run"]),
        ("hpvm", &["undelete", "-P", "web"]),
        ("hpvm", &["doctor", "--rebuild", "-F"]),
    ];
    for (command, words) in lines {
        let output = Command::new(env!("CARGO_BIN_EXE_hpvm"))
            .arg0(command)
            .args(words)
            .env("HPVM_ROOT", &root)
            .output()
            .unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{command} {words:?}: {errors}");
        assert!(errors.contains(&told), "{command} {words:?}: {errors}");
        assert!(!root.exists(), "{command} {words:?} made it");
    }
}

#[test]
fn a_root_that_is_no_folder_is_told() {
    let output = Command::new(env!("CARGO_BIN_EXE_hpvm"))
        .arg0("hpvmstatus")
        .env("HPVM_ROOT", "/etc/passwd")
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{errors}");
    assert!(errors.contains("HPVM_ROOT names /etc/passwd, which is no folder"), "{errors}");
}

/// Of 468 bytes all of a VM Host can be made and rebuilt, and of more nothing is begun.
#[test]
fn a_root_with_too_long_a_path_is_told() {
    let scratch = tempfile::tempdir().unwrap();
    let folder = scratch.path().canonicalize().unwrap().join("a".repeat(200));
    let rest = 468 - folder.as_os_str().len() - "//".len();
    let of = |rest: usize| folder.join("b".repeat(200)).join("c".repeat(rest - 200));
    let run = |root: &Path, line: &str| {
        let (program, words) = words(line);
        let mut command = Command::new(env!("CARGO_BIN_EXE_hpvm"));
        command.arg0(program).args(words).env("HPVM_ROOT", root).output().unwrap()
    };
    let (longest, longer) = (of(rest), of(rest + 1));
    for line in ["hpvmstatus", "hpvmcreate -P web", "hpvmnet -c -S sw1", "hpvm doctor --rebuild -F"]
    {
        let output = run(&longer, line);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{line}: {errors}");
        let told = "the path of the VM Host's folder has 469 bytes and may have 468; let HPVM_ROOT";
        assert!(errors.contains(told) && errors.lines().count() == 1, "{line}: {errors}");
        assert!(!folder.exists(), "{line} made it");
    }
    for line in ["hpvmcreate -P web", "hpvm doctor --rebuild -F", "hpvmremove -P web -F"] {
        let output = run(&longest, line);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{line}: {errors}");
    }
    std::fs::remove_dir_all(std::fs::read_link(longest.join("run/hpvm")).unwrap()).unwrap();
}

#[test]
fn a_refused_guest_makes_no_vm_host() {
    let scratch = tempfile::tempdir().unwrap();
    let root = scratch.path().join("root");
    let output = Command::new(env!("CARGO_BIN_EXE_hpvm"))
        .arg0("hpvmcreate")
        .args(["-P", "web", "-O", "hpux", "-r", "64M"])
        .env("HPVM_ROOT", &root)
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{errors}");
    assert!(errors.contains("64 MB of memory are less"), "{errors}");
    assert!(!root.exists());
}

/// Whoever has a narrow terminal sees the sentence above it still.
#[test]
fn the_line_below_the_sentence_is_short() {
    for program in ["hpvmdevmgmt", "hpvmnet", "hpvmclone", "gvsdmgr"] {
        let errors = String::from_utf8(run(program, &["--nope".as_ref()]).stderr).unwrap();
        let synopsis = errors.lines().last().unwrap();
        assert!(synopsis.chars().count() <= 160, "{synopsis}");
    }
}

#[test]
fn help_on_a_command_is_had_by_either_way() {
    let printed = |program: &str, words: &[&str]| {
        let words: Vec<&OsStr> = words.iter().map(OsStr::new).collect();
        let output = run(program, &words);
        assert_eq!(output.status.code(), Some(0), "{program} {words:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let help = printed("hpvmstatus", &["--help"]);
    assert!(help.contains("--name <NAME>"), "{help}");
    assert_eq!(printed("hpvm", &["help", "status"]), help);
    assert_eq!(printed("hpvm", &["help", "hpvmstatus"]), help);
    assert_eq!(printed("hpvm", &["-h"]), printed("hpvm", &["help"]));
    assert!(printed("hpvmhostrdev", &["-h"]).starts_with("Usage: hpvmhostrdev [-u] [-h] [-D]"));
    let errors = String::from_utf8(run("hpvmstart", &[]).stderr).unwrap();
    assert!(errors.ends_with("; `hpvmstart --help` tells what there is\n"), "{errors}");
    let help = printed("hpvmdevmgmt", &["--help"]);
    assert!(help.contains("  -S, --size <SIZE> <FILE>\n"), "{help}");
    assert_eq!(printed("hpvm", &["help", "devmgmt"]), help);
}
