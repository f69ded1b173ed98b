//! What a clumsy or evil administrator, a broken worker and a failing machine do to a VM Host.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use hpvm_host::image_lock::{self, ALL_BYTES};
use hpvm_host::process::{self, PidFd, Signal};
use hpvm_testkit::vm_host::{Engine, Outcome, VmHost};
use hpvm_testkit::wait::wait_until;
use serde_json::{Value, json};

use crate::started::Started;
use crate::statements::disk_on;
use crate::{Test, guest_processes};

pub(crate) const TESTS: &[Test] = crate::tests![
    a_guest_that_run_forgot_is_started_no_second_time,
    what_hpvm_did_not_make_stays,
    pipes_in_the_place_of_files_hold_nobody_up,
    what_stands_in_the_place_of_firmware_variables_holds_nobody_up,
    a_worker_stopped_by_a_signal_is_not_waited_for,
    the_callers_umask_opens_and_closes_nothing,
    an_absurd_time_to_keep_removed_guests_is_refused,
    a_guest_has_no_limits_of_a_shell,
    an_interrupted_stop_says_what_goes_on,
    no_process_is_ended_on_a_workers_word,
];

const UP: Duration = Duration::from_secs(20);

fn a_guest_that_run_forgot_is_started_no_second_time() {
    for removed in ["", "lock"] {
        let host = VmHost::new(Engine::Fake);
        host.ok(&["hpvmcreate", "-P", "web"]);
        host.ok(&["hpvmstart", "-P", "web"]);
        let qemu = host.qemu(1).expect("its QEMU runs");
        let gone = host.run_dir(1).join(removed);
        if removed.is_empty() { fs::remove_dir_all(gone) } else { fs::remove_file(gone) }.unwrap();
        for command in [
            &["hpvmstart", "-P", "web"][..],
            &["hpvmremove", "-P", "web", "-F"],
            &["hpvmstop", "-gF", "-P", "web"],
        ] {
            let said = host.refused(command);
            assert!(said.contains("its files in /run are gone"), "{said}");
        }
        assert_eq!(host.state("web"), "On (ATTN)");
        host.ok(&["hpvmcreate", "-P", "other"]);
        assert_eq!(host.state("other"), "Off");
        host.ok(&["hpvmstart", "-P", "other"]);
        host.wait_for_state("other", "On (OS)", UP);
        assert_eq!(host.state("web"), "On (ATTN)", "whoever runs beside it");
        for layout in [&["-P", "web"][..], &["-V"], &["-P", "web", "--json"]] {
            let shown = host.ok(&[&["hpvmstatus"], layout].concat());
            assert!(shown.contains("its files in /run are gone"), "{shown}");
        }
        let asked = host.run_with_input(&["hpvmstop", "-P", "web"], b"n\n");
        assert!(asked.stderr.contains("Stop the virtual machine 'web'?"), "{asked}");
        let planned = host.ok(&["hpvmstop", "-a", "--dry-run"]);
        assert!(planned.contains("'web' would be stopped"), "{planned}");
        assert!(host.run(&["hpvm", "doctor"]).stdout.contains("its files in /run are gone"));
        assert!(host.ok(&["hpvm", "why", "web"]).contains("nobody can reach it"));
        host.ok(&["hpvmstop", "-hF", "-P", "web"]);
        assert!(qemu.wait_exit(Duration::ZERO).unwrap(), "the first QEMU has ended");
        assert_eq!(host.state("web"), "Off");
        host.ok(&["hpvmstart", "-P", "web"]);
        assert!(host.state("web").starts_with("On"));
    }
}

fn what_hpvm_did_not_make_stays() {
    let host = VmHost::new(Engine::Fake);
    host.ok(&["hpvmcreate", "-P", "web"]);
    let (guests, aside) = (host.path("var/opt/hpvm/guests"), host.path("aside"));
    let others = host.path("others");
    fs::create_dir(&others).unwrap();
    fs::write(others.join("victim"), "precious").unwrap();
    fs::rename(&guests, &aside).unwrap();
    symlink(&others, &guests).unwrap();
    host.refused(&["hpvmcreate", "-P", "victim"]);
    host.run(&["hpvm", "doctor", "--repair"]);
    assert_eq!(fs::read_to_string(others.join("victim")).unwrap(), "precious");
    fs::remove_file(&guests).unwrap();
    fs::rename(&aside, &guests).unwrap();

    fs::write(guests.join("victim"), "precious").unwrap();
    fs::write(host.path("var/opt/hpvm/uuids/notes"), "precious").unwrap();
    host.refused(&["hpvmcreate", "-P", "victim"]);
    host.refused(&["hpvmmodify", "-P", "web", "-N", "victim"]);
    let said = host.run(&["hpvm", "doctor", "--repair"]).stdout;
    assert!(said.contains("guests/victim is not made by hpvm"), "{said}");
    for kept in ["guests/victim", "uuids/notes"] {
        let kept = host.path("var/opt/hpvm").join(kept);
        assert_eq!(fs::read_to_string(kept).unwrap(), "precious");
    }
    assert_eq!(host.state("web"), "Off");
}

fn pipes_in_the_place_of_files_hold_nobody_up() {
    let mut host = VmHost::new(Engine::Fake);
    let pipe = host.path("pipe");
    make_pipe(&pipe);
    host.ok(&["hpvmcreate", "-P", "web"]);
    host.set("HPVMNVRAM", &pipe.to_string_lossy());
    host.refused(&["hpvmcreate", "-P", "other"]);
    host.set("HPVMNVRAM", "");
    // No adapter of the guest needs the option ROM, so a start does without.
    host.set("HPVMSCSIROM", &pipe.to_string_lossy());
    promptly(&host, &["hpvmstart", "-P", "web"]);
    let status = host.run_dir(1).join("status");
    fs::remove_file(&status).unwrap();
    make_pipe(&status);
    promptly(&host, &["hpvmstatus"]);
    promptly(&host, &["hpvmstop", "-P", "web", "-hF"]);
    let folder = host.path("var/opt/hpvm/guests/web");
    for name in ["log", "guest.json"] {
        fs::remove_file(folder.join(name)).unwrap();
        make_pipe(&folder.join(name));
    }
    let said = host.refused(&["hpvmstatus", "-P", "web", "-e"]);
    assert!(said.contains("it is no regular file"), "{said}");
    host.run(&["hpvm", "doctor"]).assert_prompt();
    let conf = host.path("etc/opt/hpvm/hpvmconf");
    fs::remove_file(&conf).unwrap();
    make_pipe(&conf);
    let said = host.refused(&["hpvmstatus"]);
    assert!(said.contains("is no file"), "{said}");
}

/// Told as any other damage, and mended by the command that is named.
fn what_stands_in_the_place_of_firmware_variables_holds_nobody_up() {
    let host = VmHost::new(Engine::Fake);
    host.ok(&["hpvmcreate", "-P", "web"]);
    let nvram = host.path("var/opt/hpvm/guests/web/nvram");
    let good = fs::read(&nvram).unwrap();
    let pipe = make_pipe as fn(&Path);
    let device = |path: &Path| symlink("/dev/zero", path).unwrap();
    let folder = |path: &Path| fs::create_dir(path).unwrap();
    for put in [pipe, device, folder] {
        fs::remove_file(&nvram).unwrap();
        put(&nvram);
        let why = promptly(&host, &["hpvm", "why", "web"]);
        assert!(why.contains("Next:  hpvm nvram -P web --restore && hpvmstart -P web"), "{why}");
        for command in [&["hpvm", "nvram", "-P", "web"][..], &["hpvmstart", "-P", "web"]] {
            let said = host.refused(command);
            assert!(said.contains("cannot be used: it is no regular file"), "{said}");
        }
        promptly(&host, &["hpvmstatus"]);
        host.run(&["hpvm", "doctor"]).assert_prompt();
        let would = promptly(&host, &["hpvm", "nvram", "-P", "web", "--restore", "--dry-run"]);
        assert!(would.contains("there is no good copy of its own"), "it never ran: {would}");
        promptly(&host, &["hpvm", "nvram", "-P", "web", "--restore"]);
        assert!(fs::read(&nvram).unwrap() == good);
    }
    promptly(&host, &["hpvmstart", "-P", "web"]);
}

fn a_worker_stopped_by_a_signal_is_not_waited_for() {
    let host = VmHost::new(Engine::Fake);
    let disk = disk_on(&host.disk("data", 1 << 20));
    host.ok(&["hpvmcreate", "-P", "web"]);
    host.ok(&["hpvmstart", "-P", "web"]);
    worker(&host).signal(Signal::STOP).unwrap();
    wait_until(Duration::from_secs(30), "the silence is noticed", || {
        host.state("web") == "On (ATTN)"
    });
    let way_out = format!("kill -CONT {}", worker_pid(&host));
    let why = promptly(&host, &["hpvm", "why", "web"]);
    assert!(why.contains(&format!("First: let it go on: {way_out}\n")), "{why}");
    let told = host.run(&["hpvm", "doctor"]);
    assert!(
        told.stdout.contains(&format!("is stopped by a signal\n  next: {way_out}\n")),
        "{told}"
    );
    // Who asks something of the guest has its successor do it.
    promptly(&host, &["hpvmmodify", "-P", "web", "-a", &disk]);
    assert!(host.ok(&["hpvmstatus", "-P", "web", "-d"]).contains(&disk[17..]), "the guest has it");
    worker(&host).signal(Signal::STOP).unwrap();
    promptly(&host, &["hpvmstop", "-P", "web", "-hF"]);
    assert_eq!(host.state("web"), "Off");
    host.ok(&["hpvmstart", "-P", "web"]);
}

pub(crate) fn worker(host: &VmHost) -> PidFd {
    PidFd::open_number(worker_pid(host)).unwrap().expect("it lives")
}

fn keeper(host: &VmHost) -> PidFd {
    PidFd::open_number(supervisor_pid(host, "hpvmkeeper")).unwrap().expect("it lives")
}

fn worker_pid(host: &VmHost) -> i32 {
    supervisor_pid(host, "hpvmapp")
}

fn supervisor_pid(host: &VmHost, program: &str) -> i32 {
    let holders = image_lock::holders(&host.run_dir(1).join("lock"), &ALL_BYTES).unwrap();
    holders.iter().find(|holder| holder.program == program).expect("it has its lock").pid
}

/// The status is the worker's, which may be lost to its guest: it could name any process of the VM Host.
fn no_process_is_ended_on_a_workers_word() {
    let host = VmHost::new(Engine::Fake);
    host.ok(&["hpvmcreate", "-P", "web"]);
    host.ok(&["hpvmstart", "-P", "web"]);
    // With its keeper too, nobody replaces it.
    let [keeper, worker] = [keeper(&host), worker(&host)];
    for process in [&keeper, &worker] {
        process.signal(Signal::STOP).unwrap();
    }
    let mut victim = Command::new("sleep");
    victim.arg("600");
    let victim = Started::by(victim);
    let pid = i32::try_from(victim.number()).unwrap();
    let path = host.run_dir(1).join("status");
    let told = fs::read_to_string(&path).unwrap();
    let (beat, facts) = told.split_once('\n').expect("two lines");
    let mut facts: Value = serde_json::from_str(facts).unwrap();
    facts["qemu"] = json!({ "pid": pid, "start_time": process::start_time(pid) });
    fs::write(&path, format!("{beat}\n{facts}\n")).unwrap();
    let stopped = host.run(&["hpvmstop", "-P", "web", "-hF"]);
    let lives = !victim.has_ended();
    drop(victim);
    fs::write(&path, told).unwrap();
    for process in [&worker, &keeper] {
        process.signal(Signal::CONT).unwrap();
    }
    assert!(lives && stopped.stderr.contains("it is left alone"), "{stopped}");
}

fn the_callers_umask_opens_and_closes_nothing() {
    for umask in ["000", "077"] {
        let host = VmHost::new(Engine::Fake);
        for line in ["create -P web", "start -P web"] {
            let outcome = in_a_shell(&host, &format!("umask {umask}"), line);
            assert!(outcome.status.success(), "{outcome}");
        }
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        let folder = fs::canonicalize(host.path("var/opt/hpvm/guests/web")).unwrap();
        assert_eq!(mode(&host.run_dir(1)), 0o755, "{umask}");
        assert_eq!(mode(&host.run_dir(1).join("door")), 0o666, "{umask}");
        assert_eq!(mode(&folder.join("vmm_config.current")), 0o644, "{umask}");
        assert_eq!(mode(&folder.join("nvram")), 0o600, "{umask}");
        // Who may read a file may lock it, and so keep everybody from the guest.
        assert_eq!(mode(&folder.join("busy")), 0o600, "{umask}");
        assert_eq!(mode(&host.path("var/opt/hpvm/common/claims")), 0o600, "{umask}");
        let lock = host.run_dir(1).join("lock");
        assert_eq!(mode(&lock), 0o640, "{umask}");
        let group = |path: &Path| fs::metadata(path).unwrap().gid();
        assert_eq!(group(&lock), group(&host.path("var/opt/hpvm/hpvm.db")), "{umask}");
    }
}

fn an_absurd_time_to_keep_removed_guests_is_refused() {
    let mut host = VmHost::new(Engine::Fake);
    host.ok(&["hpvmcreate", "-P", "web"]);
    host.set("HPVMKEEPREMOVED", "4294967295");
    let said = host.refused(&["hpvmremove", "-P", "web", "-F"]);
    assert!(said.contains("36500 at most"), "{said}");
    assert_eq!(host.state("web"), "Off");
}

fn a_guest_has_no_limits_of_a_shell() {
    let host = VmHost::new(Engine::Fake);
    host.ok(&["hpvmnet", "-c", "-S", "nat1", "--wire", "nat"]);
    host.ok(&["hpvmcreate", "-P", "web", "-a", "network:lan::vswitch:nat1"]);
    let limits = "ulimit -S -t 900; ulimit -S -f 100000; ulimit -S -n 256; ulimit -S -u 900";
    let outcome = in_a_shell(&host, limits, "start -P web");
    assert!(outcome.status.success(), "{outcome}");
    let lifted = |pid: i32, limit: &str| {
        let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
        let line = limits.lines().find(|line| line.starts_with(limit)).expect("a line of proc(5)");
        let words: Vec<&str> = line[limit.len()..].split_whitespace().collect();
        assert_eq!(words[0], words[1], "as much as is allowed: {line}");
    };
    // Its network is that of guests, too, whose shells have other limits.
    let process = |name| guest_processes::process(&host, name).expect("it runs").pid;
    let qemu = host.snapshot(1).expect("it runs").qemu.pid;
    for pid in [qemu, process("hpvmnetd"), process("hpvmnat")] {
        lifted(pid, "Max cpu time");
        lifted(pid, "Max file size");
        lifted(pid, "Max processes");
    }
    lifted(process("hpvmnetd"), "Max open files");
    let outcome = in_a_shell(&host, "ulimit -S -f 0", "create -P other");
    assert_eq!(outcome.status.code(), Some(1), "{outcome}");
}

fn an_interrupted_stop_says_what_goes_on() {
    let mut host = VmHost::new(Engine::Fake);
    host.engine_behaves("powerdown=ignore");
    host.ok(&["hpvmcreate", "-P", "web"]);
    host.ok(&["hpvmstart", "-P", "web"]);
    host.wait_for_state("web", "On (OS)", Duration::from_secs(20));
    let stop = Started::of(&host, &["hpvmstop", "-P", "web", "-gF"]);
    let log = host.path("var/opt/hpvm/guests/web/log");
    wait_until(Duration::from_secs(20), "the guest is asked", || {
        fs::read_to_string(&log).unwrap().contains("asked to shut down")
    });
    stop.gets(Signal::INT);
    let (status, said) = stop.end();
    assert_eq!(status, Some(130), "{said}");
    assert!(said.contains("`hpvmstop -P web -h` ends it"), "{said}");
    promptly(&host, &["hpvmstop", "-P", "web", "-hF"]);
}

/// Runs `hpvm LINE` after `before` in one shell.
fn in_a_shell(host: &VmHost, before: &str, line: &str) -> Outcome {
    let hpvm = host.command(&["hpvm"]);
    let mut shell = Command::new("bash");
    shell.args(["-c", &format!("{before}; exec \"$0\" {line}")]).arg(hpvm.get_program());
    shell.envs(hpvm.get_envs().filter_map(|(name, value)| Some((name, value?))));
    shell.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    Outcome::of(line, shell, b"")
}

fn make_pipe(path: &Path) {
    let made = Command::new("mkfifo").arg(path).status().expect("mkfifo runs");
    assert!(made.success());
}

/// Runs a command that must do its work, whatever is broken beside it, in the time of a refusal.
#[track_caller]
fn promptly(host: &VmHost, line: &[&str]) -> String {
    let outcome = host.run(line);
    assert!(outcome.status.success(), "{outcome}");
    outcome.assert_prompt();
    outcome.stdout
}
