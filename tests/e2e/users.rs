//! Ordinary users: one has a VM Host of his own with NAT for its guests, without any right of root's, and changes nothing of another's.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::Duration;

use hpvm_host::process::PidFd;
use hpvm_netlab::{apart, ip};
use hpvm_testkit::vm_host::{Engine, Outcome, VmHost};
use hpvm_testkit::wait::wait_until;
use rustix::process::Signal;

use crate::Test;
use crate::guest_processes::{Process, process};
use crate::refusals::{State, refused_by};
use crate::statements::disk_at;

pub(crate) const TESTS: &[Test] = crate::tests![
    an_ordinary_user_has_a_vm_host_of_his_own,
    an_ordinary_user_changes_nothing_of_another_ones,
    an_interface_that_an_ordinary_user_may_not_have_is_told,
    limits_that_an_ordinary_user_cannot_lift_are_told,
    who_may_only_read_the_registry_is_told_what_he_cannot_see,
];

/// Nobody in particular: no name, no group, no home but the one the test gives.
const USER: u32 = 59_999;
/// Four times what a worker's successor needs on a quiet machine, and room for a busy one.
const BOUND: Duration = Duration::from_secs(20);

fn an_ordinary_user_has_a_vm_host_of_his_own() {
    let host = VmHost::of_user(USER, Engine::Real);
    let disk = host.disk("web.img", 1 << 20);
    chown(&disk, Some(USER), Some(USER)).expect("it is the user's");
    let statement = disk_at("0,0,0", &disk);
    host.ok(&["hpvmnet", "-c", "-S", "net1", "--wire", "nat"]);
    host.ok(&["hpvmnet", "-S", "net1", "-b"]);
    let nic = "network:avio_lan::vswitch:net1";
    host.ok(&["hpvmcreate", "-P", "web", "-r", "128M", "-a", &statement, "-a", nic]);
    host.ok(&["hpvmconsole", "-P", "web", "-q", "-c", "pc -on"]);
    assert_eq!(host.state("web"), "On (EFI)");
    wait_until(BOUND, "its port is served", || {
        let ports = host.ok(&["hpvmnet", "-S", "net1"]);
        ports.contains("1       Active       avio_lan none     1            web\n")
    });
    let processes = host.processes();
    for (pid, name) in &processes {
        let owner = fs::metadata(format!("/proc/{pid}")).expect("it runs").uid();
        assert_eq!(owner, USER, "{name}");
    }
    for name in ["hpvmkeeper", "hpvmapp", "hpvm-1", "hpvmnetd", "hpvmnat"] {
        assert!(processes.iter().any(|(_, its)| its == name), "{name} in {processes:?}");
    }

    let engine = host.snapshot(1).expect("it runs").qemu;
    let first = host.running("hpvmapp").pop_first().expect("a worker");
    let worker = PidFd::open_number(first).expect("a pidfd").expect("it runs");
    worker.signal(Signal::KILL).expect("a signal to our own process");
    wait_until(BOUND, "another worker", || host.running("hpvmapp").iter().any(|pid| *pid != first));
    wait_until(BOUND, "it has the guest", || host.state("web") == "On (EFI)");
    assert_eq!(host.snapshot(1).expect("it runs").qemu, engine, "the guest ran on");
    host.ok(&["hpvmmodify", "-P", "web", "-l", "mine"]);
    assert_eq!(host.ok(&["hpvm", "doctor"]), "Nothing to complain of.\n");

    host.ok(&["hpvmstop", "-P", "web", "-F"]);
    host.ok(&["hpvmstart", "-P", "web"]);
    host.ok(&["hpvmstop", "-P", "web", "-F"]);
    host.ok(&["hpvmremove", "-P", "web", "-F", "--purge"]);
    assert_eq!(host.ok(&["hpvm", "doctor"]), "Nothing to complain of.\n");
    assert_eq!(host.processes(), [], "nothing is left running");
}

/// Everywhere where somebody looks for what keeps frames from his guest.
fn an_interface_that_an_ordinary_user_may_not_have_is_told() {
    apart(|| {
        ip("link add wire0 type veth peer name far0");
        ip("link set far0 up");
        ip("link set wire0 up");
        let host = VmHost::of_user(USER, Engine::Real);
        let warned = |line: &[&str]| {
            let done = host.run(line);
            let told = "frames of wire0 cannot be had; only root, or who has CAP_NET_RAW, may";
            assert!(done.status.success() && done.stderr.contains(told), "{done}");
        };
        let has_none = |shown_as: &str| {
            let shown = host.ok(&["hpvmnet", "-S", "net1", "-V"]);
            let line = |name: &str| shown.lines().find(|line| line.starts_with(name));
            let ends = |name, with| line(name).is_some_and(|line: &str| line.ends_with(with));
            assert!(ends("Wire Link", "missing"), "{shown}");
            let list = host.ok(&["hpvmnet", "-S", "net1"]);
            assert!(list.contains(shown_as), "{list}");
        };
        let down = "net1          2 Down    Shared    wire0 ";
        host.ok(&["hpvmnet", "-c", "-S", "net1", "-n", "wire0"]);
        warned(&["hpvmnet", "-S", "net1", "-b"]);
        has_none(down);
        let nic = "network:avio_lan::vswitch:net1";
        host.ok(&["hpvmcreate", "-P", "web", "-r", "128M", "-a", nic]);
        warned(&["hpvmstart", "-P", "web"]);
        has_none(down);
        let missed = "virtual switch 'net1' has no wire, since its wire0 could not be had";
        let why = || host.ok(&["hpvm", "why", "web"]);
        assert!(why().contains(missed), "{}", why());
        assert!(host.run(&["hpvm", "doctor"]).stdout.contains(missed));
        host.ok(&["hpvmnet", "-S", "net1", "-C", "--wire", "nat"]);
        assert!(!why().contains("net1"), "{}", why());
        assert_eq!(host.ok(&["hpvm", "doctor"]), "Nothing to complain of.\n");
        warned(&["hpvmnet", "-S", "net1", "-C", "-n", "wire0"]);
        has_none(down);
        assert!(why().contains(missed), "{}", why());
        host.ok(&["hpvmstop", "-P", "web", "-F"]);
        has_none(down);
        assert_eq!(host.processes(), [], "nothing is left running");
    });
}

fn limits_that_an_ordinary_user_cannot_lift_are_told() {
    let host = VmHost::of_user(USER, Engine::Real);
    host.ok(&["hpvmcreate", "-P", "web", "-r", "128M"]);
    let start = |before: &str, mode: &str| {
        let command = host.command(&["hpvmstart"]);
        let mut shell = Command::new("bash");
        let script = format!("{before} && exec -a hpvmstart \"$0\" -P web {mode}");
        shell.args(["-c", &script]).arg(command.get_program()).current_dir("/");
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => shell.env(name, value),
                None => shell.env_remove(name),
            };
        }
        shell.uid(USER).gid(USER);
        shell.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Outcome::of(before, shell, b"")
    };
    for (limit, told) in [
        ("ulimit -t 900", "(`ulimit -H -t`) allows the guest only 900 s of processor time"),
        ("ulimit -f 2048", "(`ulimit -H -f`) allows the guest only 2 MB a file"),
        ("ulimit -v 3145728", "(`ulimit -H -v`) allows the guest only 3 GB of address space"),
        ("ulimit -d 1048576", "(`ulimit -H -d`) allows the guest only 1 GB of data"),
        (
            "ulimit -u 90",
            "(`ulimit -H -u`) allows the guest only 90 of the user's processes and threads",
        ),
    ] {
        let outcome = start(limit, "-s");
        assert!(outcome.status.success(), "{outcome}");
        assert!(
            outcome.stderr.contains(told) && outcome.stderr.matches("item limits").count() == 1,
            "{outcome}"
        );
    }
    let outcome = start("ulimit -v 1048576", "");
    assert_eq!(outcome.status.code(), Some(1), "{outcome}");
    assert!(outcome.stderr.contains("`ulimit -H -v`"), "why its QEMU did not start: {outcome}");
    let outcome = start("ulimit -S -u 90 && ulimit -S -t 900", "");
    assert!(
        outcome.status.success() && !outcome.stderr.contains("item limits"),
        "it has what is allowed: {outcome}"
    );
    host.ok(&["hpvmstop", "-P", "web", "-F"]);
}

/// Whatever he types is refused with who may do it; what `pc -on` of the console does needs the same rights as hpvmstart.
fn an_ordinary_user_changes_nothing_of_another_ones() {
    let mut host = VmHost::new(Engine::Fake);
    host.install();
    // As open as / is.
    fs::set_permissions(host.root(), fs::Permissions::from_mode(0o755)).expect("it is root's");
    for name in ["on", "off", "gone"] {
        host.ok(&["hpvmcreate", "-P", name, "-r", "64M"]);
    }
    host.ok(&["hpvmremove", "-P", "gone", "-F"]);
    host.ok(&["hpvmstart", "-P", "on"]);
    host.wait_for_state("on", "On (OS)", BOUND);
    fs::remove_file(host.path("var/opt/hpvm/guests/off")).expect("something to repair");
    let before = State::of(&host);
    let lines: &[&[&str]] = &[
        &["hpvmcreate", "-P", "new"],
        &["hpvmmodify", "-P", "off", "-l", "theirs"],
        &["hpvmmodify", "-P", "on", "-N", "theirs"],
        &["hpvmclone", "-P", "off", "-N", "copy"],
        &["hpvmremove", "-P", "off", "-F", "--purge"],
        &["hpvmstart", "-P", "off"],
        &["hpvmstop", "-P", "on", "-F"],
        &["hpvmconsole", "-P", "off", "-q", "-c", "pc -on"],
        &["hpvmconsole", "-P", "on", "-q", "-c", "pc -off"],
        &["hpvm", "undelete", "-P", "gone"],
        &["hpvm", "doctor", "--repair"],
        &["hpvm", "doctor", "--rebuild", "-F"],
        &["hpvm", "autostart"],
        &["hpvmnet", "-c", "-S", "theirs"],
    ];
    for line in lines {
        let typed = line.join(" ");
        let said = refused_by(|| Outcome::of(&typed, host.command_as(USER, line), b""));
        assert!(said.contains("run this as its owner or as root"), "{said}");
        before.assert_unchanged(&host, &typed);
    }
    assert_eq!((host.state("on"), host.state("off")), ("On (OS)".into(), "Off".into()));
}

/// First where the locks of what runs are of the group that the registry's file had before, then where they are of his.
fn who_may_only_read_the_registry_is_told_what_he_cannot_see() {
    let mut host = VmHost::new(Engine::Fake);
    host.install();
    fs::set_permissions(host.root(), fs::Permissions::from_mode(0o755)).expect("it is root's");
    let disk = host.disk("off.img", 1 << 20);
    fs::set_permissions(&disk, fs::Permissions::from_mode(0o600)).expect("it is root's");
    let disk = format!("disk:avio_stor::file:{}", disk.display());
    host.ok(&["hpvmcreate", "-P", "off", "-r", "64M", "-a", &disk]);
    let nic = "network:lan::vswitch:localnet";
    host.ok(&["hpvmcreate", "-P", "on", "-r", "64M", "-a", nic]);
    host.ok(&["hpvmstart", "-P", "on"]);
    host.wait_for_state("on", "On (OS)", BOUND);
    let run = |line: &[&str]| Outcome::of(&line.join(" "), host.command_as(USER, line), b"");
    let ok = |line: &[&str]| {
        let outcome = run(line);
        assert!(outcome.status.success(), "{outcome}");
        outcome.stdout
    };
    let let_group_read = |suffix: &str| {
        let file = host.path(&format!("var/opt/hpvm/hpvm.db{suffix}"));
        chown(file, None, Some(USER)).expect("it is root's");
    };
    let_group_read("");
    assert_eq!(run(&["hpvmstatus"]).status.code(), Some(1), "its log is another group's");
    ["-wal", "-shm"].iter().for_each(|suffix| let_group_read(suffix));

    let list = || ok(&["hpvmstatus"]);
    assert!(list().contains("On (OS)") && list().contains("Off"), "{}", list());
    let of_lock = "whether somebody supervises it cannot be seen by this user";
    let of_switch =
        "whether the process of virtual switch 'localnet' runs cannot be seen by this user";
    let (shown, why) = (|| ok(&["hpvmstatus", "-P", "on"]), || ok(&["hpvm", "why", "on"]));
    assert!(shown().contains(of_lock), "{}", shown());
    assert!(why().contains("nothing is wrong with it") && why().contains(of_switch), "{}", why());
    let is_unseen = || {
        let switches = run(&["hpvmnet"]);
        assert!(switches.stdout.contains("localnet      1 Unknown "), "{switches}");
        assert!(switches.stderr.contains(of_switch), "{switches}");
    };
    is_unseen();
    assert_eq!(run(&["hpvmnet", "-Q"]).stderr, "");
    let of_off = ok(&["hpvm", "why", "off"]);
    assert!(of_off.contains("Nothing that this user can see prevents a start"), "{of_off}");
    assert!(of_off.contains("off.img', '") && of_off.contains("cannot be seen by this user"));
    let doctor = ok(&["hpvm", "doctor"]);
    assert!(doctor.starts_with("this user cannot see all") && doctor.lines().count() == 2);
    let variables = run(&["hpvm", "nvram", "-P", "off"]);
    assert!(variables.stderr.contains("cannot be seen by this user"), "{variables}");
    for said in [&why(), &of_off, &doctor, &variables.stderr] {
        assert!(
            !["--restore", "killed", "make "].iter().any(|advice| said.contains(advice)),
            "{said}"
        );
    }

    // What a killed one published last looks as before.
    kill_with_keeper(&process(&host, "hpvmnetd").expect("the switch runs"));
    is_unseen();

    host.ok(&["hpvmstop", "-P", "on", "-F"]);
    assert_eq!(list().matches("Off").count(), 2, "{}", list());
    host.ok(&["hpvmstart", "-P", "on"]);
    host.wait_for_state("on", "On (OS)", BOUND);
    assert!(list().contains("On (OS)") && !shown().contains("cannot be seen"), "{}", shown());
    assert!(!why().contains(of_switch), "{}", why());
    let switches = run(&["hpvmnet"]);
    assert!(switches.stdout.contains("localnet      1 Up "), "{switches}");
    assert_eq!(switches.stderr, "");
    assert_eq!(host.ok(&["hpvm", "doctor"]), "Nothing to complain of.\n");
    host.ok(&["hpvmstop", "-P", "on", "-F"]);
}

/// Stopped meanwhile, so that neither is seen to end by the other.
fn kill_with_keeper(process: &Process) {
    let keeper = process.parent();
    process.signal(Signal::STOP);
    keeper.kill();
    process.kill();
}
