//! What `hpvm doctor` finds, says and cleans: leftovers of every kind, guests that run and are not supervised or not known, and in
//! `rebuild` a registry that is lost. What it must never do is take a guest for a leftover.

pub(crate) mod rebuild;

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use hpvm_host::lock::Busy;
use hpvm_host::process::PidFd;
use hpvm_model::GuestConfig;
use hpvm_registry::{Access, Outcome, Owner, Registry};
use hpvm_testkit::vm_host::{Engine, VmHost};
use hpvm_testkit::wait::wait_until;
use rustix::process::Signal;

use crate::guest_processes::process;
use crate::mounted::Mounted;
use crate::{Test, golden};

pub(crate) const TESTS: &[Test] = crate::tests![
    leftovers_of_every_kind_are_found_explained_and_cleaned,
    what_a_killed_change_left_goes_with_the_next,
    what_others_made_is_left_alone,
    a_repair_that_fails_keeps_no_other_from_being_made,
    a_disk_that_is_missing_is_noted,
    what_a_command_is_changing_is_not_complained_of,
    a_guest_that_nobody_supervises_is_taken_over,
    a_supervisor_that_finds_no_other_is_told_of,
    a_guest_without_its_folder_is_told_of_and_removed,
    a_running_guest_without_its_folder_is_not_removed,
    a_running_guest_the_registry_does_not_know_is_made_known,
    a_running_guest_without_a_folder_is_told_of,
    a_guest_whose_variables_never_reached_the_disk_gets_new_ones,
    what_stands_in_a_lock_file_s_place_is_told,
    a_repair_takes_no_guest_in_the_making_for_a_leftover,
    a_guest_that_is_long_in_the_making_is_no_leftover,
    guests_that_come_and_go_are_not_complained_of,
    a_purged_guest_is_not_brought_back_by_a_repair,
];

/// Four times what keepers and workers need on a quiet machine.
const BOUND: Duration = Duration::from_secs(20);
const NOTHING: &str = "Nothing to complain of.\n";
const LOST: &str = "9b2d3c51-0f4e-4d6c-8f27-1c7d5c1e0001";

fn leftovers_of_every_kind_are_found_explained_and_cleaned() {
    let host = host_with_guests();
    let state = |below: &str| host.path("var/opt/hpvm").join(below);
    let dead = number_of_the_dead();
    fs::create_dir(state("uuids").join(LOST)).expect("a folder of no guest");
    symlink(format!("../uuids/{LOST}"), state("guests/ghost")).expect("a link of no guest");
    fs::remove_file(state("guests/web")).expect("a link is lost");
    fs::remove_file(state("guests/old")).expect("a link is lost");
    symlink(format!("../uuids/{LOST}"), state("guests/old")).expect("a link goes astray");
    fs::write(folder(&host, "full").join("guest.json"), "{").expect("a text is damaged");
    fs::create_dir(host.path("run/hpvm/99")).expect("a run folder of no guest");
    for half_made in [
        state(&format!("hpvm.db.new-{dead}-0")),
        state(&format!("guests/.web.{dead}.0.new")),
        folder(&host, "web").join(format!(".nvram.{dead}.7.new")),
    ] {
        fs::write(half_made, "").expect("a file never finished");
    }
    leave_interrupted(&host);
    let told = host.run(&["hpvm", "doctor"]);
    assert_eq!(told.status.code(), Some(1), "{told}");
    let shown = golden::without_numbers(&golden::redacted(&host, &told.stdout));
    let dead = dead.to_string();
    golden::assert_kept("doctor-leftovers", &shown.replace(&dead, "[N]"));
    assert_eq!(host.run(&["hpvm", "doctor"]).stdout, told.stdout, "looking changes nothing");
    host.ok(&["hpvm", "doctor", "--repair"]);
    assert_eq!(host.ok(&["hpvm", "doctor"]), NOTHING);
    for name in ["web", "full", "old"] {
        host.ok(&["hpvmstart", "-P", name]);
    }
}

fn what_a_killed_change_left_goes_with_the_next() {
    let mut host = host_with_guests();
    host.environment("HPVM_ABORT_AT", "modify.applied");
    host.run(&["hpvmmodify", "-P", "web", "-l", "killed"]);
    host.without_environment("HPVM_ABORT_AT");
    let told = host.run(&["hpvm", "doctor"]);
    assert!(told.stdout.contains("/.guest.json."), "there is something to remove: {told}");
    host.ok(&["hpvmmodify", "-P", "web", "-l", "changed"]);
    assert_eq!(host.ok(&["hpvm", "doctor"]), NOTHING);
}

fn what_others_made_is_left_alone() {
    let host = host_with_guests();
    let ours = host.path("var/opt/hpvm");
    fs::create_dir(ours.join("uuids/lost+found")).expect("a folder of the file system's");
    fs::write(ours.join("guests/README"), "notes").expect("an administrator's file");
    // A file in the making: its maker, this test, lives.
    let making = ours.join(format!("guests/.web.{}.0.new", std::process::id()));
    fs::write(&making, "").expect("a file in the making");
    let told = host.run(&["hpvm", "doctor", "--repair"]);
    assert_eq!(told.status.code(), Some(1), "{told}");
    for path in ["uuids/lost+found", "guests/README"] {
        assert!(told.stdout.contains(&format!("{path} is not made by hpvm")), "{told}");
        assert!(ours.join(path).exists(), "{path} is there");
    }
    assert_eq!(told.stdout.lines().count(), 4, "{told}");
    assert!(making.exists(), "a file in the making is there");
}

fn a_repair_that_fails_keeps_no_other_from_being_made() {
    let host = host_with_guests();
    let state = |below: &str| host.path("var/opt/hpvm").join(below);
    let unknown = state("uuids").join(LOST);
    fs::create_dir(&unknown).expect("a folder of no guest");
    symlink(format!("../uuids/{LOST}"), state("guests/ghost")).expect("a link of no guest");
    {
        let _mounted = Mounted::tmpfs(&unknown, 4 << 20);
        let told = host.run(&["hpvm", "doctor", "--repair"]);
        assert_eq!(told.status.code(), Some(1), "{told}");
        assert!(told.stdout.contains("not repaired: cannot remove"), "{told}");
        assert!(state("guests/ghost").symlink_metadata().is_err(), "{told}");
    }
    host.ok(&["hpvm", "doctor", "--repair"]);
    assert_eq!(host.ok(&["hpvm", "doctor"]), NOTHING);
}

/// Nothing of the VM Host's own is wrong, and nothing can be repaired.
fn a_disk_that_is_missing_is_noted() {
    let host = host_with_guests();
    let disk = host.path("second.img");
    fs::rename(&disk, host.path("elsewhere")).expect("the disk is moved");
    for line in [&["hpvm", "doctor"][..], &["hpvm", "doctor", "--repair"]] {
        let told = host.ok(line);
        let sentence = format!(
            "guest 'full' cannot start: '{}', which its disk at 0,2,3 needs, does not exist",
            disk.display()
        );
        assert!(told.starts_with(&sentence), "{told}");
        assert!(told.ends_with("`hpvm why full` says\n") && told.lines().count() == 2, "{told}");
    }
    host.refused(&["hpvmstart", "-P", "full"]);
    fs::rename(host.path("elsewhere"), &disk).expect("the disk is back");
    assert_eq!(host.ok(&["hpvm", "doctor"]), NOTHING);
    // A guest that runs writes on to a file that nobody finds.
    host.ok(&["hpvmstart", "-P", "full"]);
    fs::rename(&disk, host.path("elsewhere")).expect("the disk is moved");
    let told = host.run(&["hpvm", "doctor"]);
    assert_eq!(told.status.code(), Some(1), "{told}");
    assert!(told.stdout.contains("second.img is not there any more"), "{told}");
    assert_eq!(told.stdout.lines().count(), 2, "{told}");
    fs::rename(host.path("elsewhere"), &disk).expect("the disk is back");
    assert_eq!(host.ok(&["hpvm", "doctor"]), NOTHING);
}

fn what_a_command_is_changing_is_not_complained_of() {
    let host = host_with_guests();
    let folder = folder(&host, "web");
    let busy = Busy::acquire(&folder.join("busy"), "hpvmmodify", BOUND).expect("our turn");
    let identity = fs::read_to_string(folder.join("guest.json")).expect("a text");
    fs::write(folder.join("guest.json"), identity.replace("web", "site")).expect("written first");
    assert_eq!(host.ok(&["hpvm", "doctor"]), NOTHING);
    drop(busy);
    let told = host.run(&["hpvm", "doctor", "--repair"]);
    assert!(told.stdout.contains("does not say what the registry says"), "{told}");
    assert_eq!(fs::read_to_string(folder.join("guest.json")).expect("a text"), identity);
}

fn a_guest_that_nobody_supervises_is_taken_over() {
    let host = host_with_guests();
    host.ok(&["hpvmstart", "-P", "web"]);
    let engine = host.snapshot(number(&host, "web")).expect("it runs").qemu;
    assert_eq!(kill_supervisors(&host), 2, "{:?}", host.processes());
    wait_until(BOUND, "both are gone", || {
        host.run(&["hpvm", "doctor"]).stdout.contains("nobody supervises it")
    });
    host.ok(&["hpvm", "doctor", "--repair"]);
    assert_eq!(host.ok(&["hpvm", "doctor"]), NOTHING);
    let adopted = host.snapshot(number(&host, "web")).expect("it runs");
    assert_eq!(adopted.qemu, engine, "the guest ran on");
}

/// Whoever is replaced is not told of; of who is not, it is told what becomes of that.
fn a_supervisor_that_finds_no_other_is_told_of() {
    let mut host = host_with_guests();
    host.install();
    let installed = |program: &str| host.path("opt/hpvm/lbin").join(program);
    for program in ["hpvmkeeper", "hpvmapp"] {
        // What is installed may be what was built, which is everybody's.
        let own = host.path(program);
        fs::copy(installed(program), &own).expect("a copy");
        fs::rename(&own, installed(program)).expect("it is installed");
    }
    let may_run = |program: &str, mode: u32| {
        let mode = Permissions::from_mode(mode);
        fs::set_permissions(installed(program), mode).expect("a mode");
    };
    host.ok(&["hpvmstart", "-P", "web"]);
    let log = folder(&host, "web").join("log");
    let supervisor = |program: &str| process(&host, program).expect("it lives");
    let told = |next: &str, gone: &str| {
        let finding = format!("guest 'web' runs, and its {gone} is gone\n  next: {next}\n");
        wait_until(BOUND, &finding, || {
            let told = host.run(&["hpvm", "doctor"]);
            told.status.code() == Some(1) && told.stdout == finding
        });
    };
    let nothing_is_told =
        || wait_until(2 * BOUND, "all is well", || host.run(&["hpvm", "doctor"]).stdout == NOTHING);
    for program in ["hpvmapp", "hpvmkeeper"] {
        supervisor(program).kill();
        assert_eq!(host.ok(&["hpvm", "doctor"]), NOTHING, "{program} is replaced");
    }
    for (program, gone, survivor, pause) in
        [("hpvmkeeper", "keeper", "worker", "second"), ("hpvmapp", "worker", "keeper", "10 s")]
    {
        may_run(program, 0o644);
        // One may just be replacing another.
        host.end_program(program);
        let next = format!(
            "its {survivor} tries to start another every {pause}; why that fails is told in {}",
            log.display()
        );
        told(&next, gone);
        may_run(program, 0o755);
        nothing_is_told();
    }
    let keeper = supervisor("hpvmkeeper");
    keeper.signal(Signal::STOP);
    supervisor("hpvmapp").kill();
    let next = format!("let its keeper, which starts another, go on: kill -CONT {}", keeper.pid);
    told(&next, "worker");
    keeper.signal(Signal::CONT);
    nothing_is_told();
}

/// Of every guest; gives how many there were.
pub(crate) fn kill_supervisors(host: &VmHost) -> usize {
    let supervisors: Vec<PidFd> = ["hpvmkeeper", "hpvmapp"]
        .into_iter()
        .flat_map(|program| host.running(program))
        .filter_map(|pid| PidFd::open_number(pid).ok().flatten())
        .collect();
    // Held still first, so that none replaces another.
    for signal in [Signal::STOP, Signal::KILL] {
        supervisors.iter().for_each(|process| drop(process.signal(signal)));
    }
    for process in &supervisors {
        assert!(process.wait_exit(BOUND).expect("a pidfd"), "it has ended");
    }
    supervisors.len()
}

fn a_guest_without_its_folder_is_told_of_and_removed() {
    let host = host_with_guests();
    let told_by = |lines: &[&[&str]], path: &Path| {
        for line in lines {
            let said = host.refused(line);
            let cause = format!("its folder {} is missing; bring it back", path.display());
            assert!(said.contains(&cause) && said.contains("`hpvmremove -P "), "{said}");
        }
    };
    let elsewhere = host.path("elsewhere");
    for (name, options) in [("web", &[][..]), ("full", &["--purge"])] {
        let path = folder(&host, name);
        fs::rename(&path, &elsewhere).expect("the folder is moved");
        let commands: [&[&str]; 5] = [
            &["hpvmstart", "-P", name],
            &["hpvmstop", "-P", name, "-F"],
            &["hpvmmodify", "-P", name, "-c", "2"],
            &["hpvmclone", "-P", name, "-N", "twin"],
            &["hpvm", "nvram", "-P", name, "--restore"],
        ];
        told_by(&commands, &path);
        let why = host.ok(&["hpvm", "why", name]);
        assert!(why.contains(&format!("its folder {} is missing", path.display())), "{why}");
        assert!(why.contains("hpvmremove -P ") && !why.contains("nvram"), "{why}");
        let told = host.run(&["hpvm", "doctor"]).stdout;
        assert!(told.contains(&format!("or remove the guest: hpvmremove -P {name}")), "{told}");
        // With the folder back it is the guest it was.
        fs::rename(&elsewhere, &path).expect("the folder is back");
        host.ok(&["hpvmstart", "-P", name]);
        host.ok(&["hpvmstop", "-P", name, "-F"]);
        fs::remove_dir_all(&path).expect("the folder is lost");
        let run = host.path(&format!("run/hpvm/{}", number(&host, name)));
        assert!(run.exists(), "of its last run something is left");
        let said = host.refused(&[&["hpvmremove", "-P", name][..], options].concat());
        assert!(said.contains("nothing of it can be kept"), "{said}");
        host.ok(&[&["hpvmremove", "-P", name, "-F"][..], options].concat());
        assert!(!run.exists(), "{} is gone", run.display());
        assert_eq!(host.state(name), "");
        assert_eq!(host.ok(&["hpvm", "doctor"]), NOTHING);
    }
    assert_eq!(Known::to(&host).removed, [], "nothing is kept");
}

fn a_running_guest_without_its_folder_is_not_removed() {
    let host = host_with_guests();
    host.ok(&["hpvmstart", "-P", "web"]);
    let engine = host.snapshot(number(&host, "web")).expect("it runs").qemu;
    let path = folder(&host, "web");
    fs::remove_dir_all(&path).expect("the folder is lost");
    for options in [&[][..], &["--purge"]] {
        let said = host.refused(&[&["hpvmremove", "-P", "web", "-F"][..], options].concat());
        assert!(said.contains("the guest is running; stop it first"), "{said}");
    }
    let why = host.ok(&["hpvm", "why", "web"]);
    assert!(why.contains("its folder ") && !why.contains("nvram"), "{why}");
    assert_eq!(host.snapshot(number(&host, "web")).map(|s| s.qemu), Some(engine));
    // Nor is one of which /run tells nothing.
    let run = host.path(&format!("run/hpvm/{}", number(&host, "web")));
    let hidden = host.path("hidden");
    fs::rename(&run, &hidden).expect("its files in /run are moved");
    let said = host.refused(&["hpvmremove", "-P", "web", "-F", "--purge"]);
    assert!(said.contains(&format!("its QEMU (process {}) runs", engine.pid)), "{said}");
    fs::rename(&hidden, &run).expect("its files in /run are back");
    host.ok(&["hpvmstop", "-P", "web", "-F"]);
    host.ok(&["hpvmremove", "-P", "web", "-F"]);
    assert_eq!(host.ok(&["hpvm", "doctor"]), NOTHING);
}

fn a_running_guest_the_registry_does_not_know_is_made_known() {
    let host = host_with_guests();
    host.ok(&["hpvmstart", "-P", "web"]);
    let before = Known::to(&host);
    let number = number(&host, "web");
    let engine = host.snapshot(number).expect("it runs").qemu;
    forget(&host, "web");
    assert_eq!(host.state("web"), "");
    let told = host.run(&["hpvm", "doctor"]);
    assert!(told.stdout.contains("the registry does not know guest 'web'"), "{told}");
    host.ok(&["hpvm", "doctor", "--repair"]);
    assert_eq!(host.ok(&["hpvm", "doctor"]), NOTHING);
    assert_eq!(Known::to(&host), before);
    assert!(host.state("web").starts_with("On ("));
    assert_eq!(host.snapshot(number).map(|s| s.qemu), Some(engine));
}

fn a_running_guest_without_a_folder_is_told_of() {
    let host = host_with_guests();
    host.ok(&["hpvmstart", "-P", "web"]);
    let number = number(&host, "web");
    let engine = host.qemu(number).expect("it runs");
    let (pid, path) = (host.snapshot(number).expect("it runs").qemu.pid, folder(&host, "web"));
    forget(&host, "web");
    fs::remove_dir_all(path).expect("the folder is lost");
    fs::remove_file(host.path("var/opt/hpvm/guests/web")).expect("the link is lost");
    let told = host.run(&["hpvm", "doctor", "--repair"]);
    assert_eq!(told.status.code(), Some(1), "{told}");
    assert!(told.stdout.contains(&format!("next: end process {pid}")), "{told}");
    engine.signal(Signal::KILL).expect("a signal");
    wait_until(BOUND, "its processes are gone", || host.processes().is_empty());
    host.ok(&["hpvm", "doctor", "--repair"]);
    assert_eq!(host.ok(&["hpvm", "doctor"]), NOTHING);
}

/// What a power cut may leave of a creation that was at work: all that tells of the guest, and a part of its variables. One that
/// has run keeps what it has: its boot entries may be in there.
fn a_guest_whose_variables_never_reached_the_disk_gets_new_ones() {
    let host = host_with_guests();
    host.ok(&["hpvmcreate", "-P", "cut"]);
    let nvram = folder(&host, "cut").join("nvram");
    let before = Known::to(&host);
    for (length, has_run) in [(Some(4096), false), (None, false), (Some(4096), true)] {
        match length {
            Some(length) => {
                let file = fs::OpenOptions::new().write(true).open(&nvram).expect("variables");
                file.set_len(length).expect("they are cut");
            }
            None => fs::remove_file(&nvram).expect("they are lost"),
        }
        if has_run {
            fs::write(folder(&host, "cut").join("boot.record"), "").expect("it has run");
        }
        forget(&host, "cut");
        let repaired = host.run(&["hpvm", "doctor", "--repair"]);
        assert_eq!(Known::to(&host), before, "{repaired}");
        let now = host.run(&["hpvm", "doctor"]);
        let why = format!("{length:?}, has run: {has_run}: {repaired}\n{now}");
        if has_run {
            assert!(now.stdout.contains("the firmware variables of guest 'cut'"), "{why}");
            assert_eq!(fs::metadata(&nvram).expect("they are left").len(), 4096, "{why}");
        } else {
            assert_eq!(now.stdout, NOTHING, "{why}");
        }
    }
}

/// Every command refuses it; where nothing else told of it, nobody would know what to do.
fn what_stands_in_a_lock_file_s_place_is_told() {
    let host = host_with_guests();
    host.ok(&["hpvmcreate", "-P", "kept"]);
    let busy = folder(&host, "kept").join("busy");
    fs::remove_file(&busy).ok();
    symlink(host.path("elsewhere"), &busy).expect("a link");
    let refused = host.refused(&["hpvmmodify", "-P", "kept", "-l", "a label"]);
    assert!(refused.contains("the lock file") && !host.path("elsewhere").exists(), "{refused}");
    let told = host.run(&["hpvm", "doctor"]);
    let wanted = format!("no command can work on guest 'kept': its lock file {}", busy.display());
    assert!(told.stdout.contains(&wanted), "{told}");
    assert!(told.stdout.contains(&format!("move {} away", busy.display())), "{told}");
    fs::remove_file(&busy).expect("it is moved away");
    assert_eq!(host.ok(&["hpvm", "doctor"]), NOTHING);
    host.ok(&["hpvmmodify", "-P", "kept", "-l", "a label"]);
}

fn a_repair_takes_no_guest_in_the_making_for_a_leftover() {
    const GUESTS: usize = 12;
    let host = host_with_guests();
    let create = |makers: std::ops::Range<usize>| {
        for n in makers {
            host.ok(&["hpvmcreate", "-P", &format!("made{n}")]);
        }
    };
    std::thread::scope(|scope| {
        let makers = [scope.spawn(|| create(0..GUESTS / 2)), scope.spawn(|| create(6..GUESTS))];
        while !makers.iter().all(std::thread::ScopedJoinHandle::is_finished) {
            let repaired = host.run(&["hpvm", "doctor", "--repair"]);
            assert!(repaired.status.code().is_some_and(|code| code < 2), "{repaired}");
        }
    });
    assert_eq!(host.ok(&["hpvm", "doctor"]), NOTHING);
    for n in 0..GUESTS {
        assert!(folder(&host, &format!("made{n}")).join("nvram").is_file(), "made{n} is whole");
    }
}

/// Between the folder of a guest and its row lies whatever the judge asks for: here, for a turn at the registry.
fn a_guest_that_is_long_in_the_making_is_no_leftover() {
    let host = host_with_guests();
    let folders = || {
        let names = fs::read_dir(host.path("var/opt/hpvm/uuids")).expect("the folders");
        names.flatten().filter(|entry| entry.path().join("nvram").exists()).count()
    };
    let before = folders();
    let mut registry = registry(&host, Access::ReadWrite);
    std::thread::scope(|scope| {
        let change = registry.change().expect("our turn");
        let making = scope.spawn(|| host.ok(&["hpvmcreate", "-P", "made"]));
        wait_until(BOUND, "its folder is there", || folders() > before);
        let told = host.run(&["hpvm", "doctor"]);
        drop(change);
        making.join().expect("it is made");
        assert_eq!(told.stdout, NOTHING);
    });
    assert_eq!(host.ok(&["hpvm", "doctor"]), NOTHING);
    assert!(folder(&host, "made").join("nvram").is_file());
}

/// Makes a guest, removes it, brings it back and purges it, again and again beside what `meanwhile` does.
fn beside_comings_and_goings(host: &VmHost, meanwhile: impl Fn() + Sync) {
    const ROUNDS: usize = 12;
    let come_and_go = || {
        for _ in 0..ROUNDS {
            host.ok(&["hpvmcreate", "-P", "brief"]);
            host.ok(&["hpvmremove", "-P", "brief", "-F"]);
            host.ok(&["hpvm", "undelete", "brief", "-N", "again"]);
            host.ok(&["hpvmmodify", "-P", "again", "-N", "brief"]);
            host.ok(&["hpvmremove", "-P", "brief", "-F"]);
            host.ok(&["hpvmremove", "-P", "brief", "-F", "--purge"]);
            assert_eq!(host.state("brief"), "", "it is gone for good");
        }
    };
    std::thread::scope(|scope| {
        let coming = scope.spawn(come_and_go);
        while !coming.is_finished() {
            std::thread::scope(|pair| {
                pair.spawn(&meanwhile);
                pair.spawn(&meanwhile);
            });
        }
    });
    assert_eq!(host.ok(&["hpvm", "doctor"]), NOTHING);
}

fn guests_that_come_and_go_are_not_complained_of() {
    let host = host_with_guests();
    beside_comings_and_goings(&host, || assert_eq!(host.ok(&["hpvm", "doctor"]), NOTHING));
}

fn a_purged_guest_is_not_brought_back_by_a_repair() {
    let host = host_with_guests();
    let known = Known::to(&host);
    beside_comings_and_goings(&host, || drop(host.run(&["hpvm", "doctor", "--repair"])));
    assert_eq!(Known::to(&host), known);
}

/// `web`, plain; `full`, which has a value of its own in every field; `old`, which is there to be removed.
fn host_with_guests() -> VmHost {
    let host = VmHost::new(Engine::Fake);
    let disk = |name: &str| host.disk(name, 1 << 20).display().to_string();
    host.ok(&["hpvmcreate", "-P", "web"]);
    let first = format!("disk:avio_stor:0,1,0:file:{}", disk("first.img"));
    let second = format!("disk:scsi:0,2,3:file:{}", disk("second.img"));
    let third = "dvd:scsi:0,2,4:null:/srv".to_owned();
    let line = [
        "hpvmcreate -P full -O linux -c 2 -r 832M -E 500 -B auto -l",
        "-x runnable_status=enabled -a",
    ]
    .map(|part| part.split(' ').collect::<Vec<_>>());
    let mut create = [&line[0][..], &["the label"], &line[1], &[&first]].concat();
    create.extend(["-a", &second, "-a", &third]);
    host.ok(&create);
    let fourth = format!("disk:avio_stor::file:{}", disk("old.img"));
    host.ok(&["hpvmcreate", "-P", "old", "-O", "windows", "-r", "1G", "-a", &fourth]);
    host
}

/// All guests of a VM Host, existing and kept.
#[derive(Debug, PartialEq, Eq)]
struct Known {
    guests: Vec<GuestConfig>,
    removed: Vec<GuestConfig>,
}

impl Known {
    fn to(host: &VmHost) -> Known {
        let registry = registry(host, Access::ReadOnly);
        let removed = registry.removed().expect("the removed guests");
        Known {
            guests: registry.all().expect("the guests"),
            removed: removed.into_iter().map(|removed| removed.config).collect(),
        }
    }
}

fn registry(host: &VmHost, access: Access) -> Registry {
    Registry::open(&host.path("var/opt/hpvm/hpvm.db"), access).expect("the registry")
}

fn config(host: &VmHost, name: &str) -> GuestConfig {
    let known = Known::to(host).guests;
    known.into_iter().find(|guest| guest.name.as_str() == name).expect("the guest")
}

fn number(host: &VmHost, name: &str) -> u32 {
    config(host, name).number.get()
}

/// By the uuid: the link is what some tests break.
fn folder(host: &VmHost, name: &str) -> PathBuf {
    host.path("var/opt/hpvm/uuids").join(config(host, name).uuid.to_string())
}

/// The registry loses one guest, as no command would make it.
pub(crate) fn forget(host: &VmHost, name: &str) {
    let number = config(host, name).number;
    let mut registry = registry(host, Access::ReadWrite);
    let now = registry.operations(None, 1).expect("the operations")[0].operation.at;
    let change = registry.change().expect("a change");
    change.remove(number, now).expect("a removal");
    change.purge(number).expect("a purge");
    change.commit().expect("a commit");
}

/// An operation whose command was killed, as a command that keeps its steps in the registry leaves it.
pub(crate) fn leave_interrupted(host: &VmHost) {
    let mut registry = registry(host, Access::ReadWrite);
    let recent = registry.operations(None, 1).expect("the operations").remove(0);
    let owner = Owner { pid: number_of_the_dead(), start_time: 1, boot_id: "another".into() };
    let mut operation = recent.operation;
    operation.outcome = Outcome::Running(owner);
    registry.record(&operation).expect("a record");
}

/// The number of a process that was, and that nobody has now.
fn number_of_the_dead() -> i32 {
    let mut child = Command::new("true").stdin(Stdio::null()).spawn().expect("a process");
    let pid = i32::try_from(child.id()).expect("a number");
    child.wait().expect("its end");
    assert!(!Path::new(&format!("/proc/{pid}")).exists(), "numbers come back late");
    pid
}
