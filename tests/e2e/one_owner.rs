//! One disk, and eight commands that want it at once, each in another way: guests that start, guests that run and get it,
//! a copy that replaces it, and a change of its size; or starts alone, on two VM Hosts. Whoever comes first, one has it in the
//! end.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use hpvm_testkit::vm_host::{Engine, Outcome, VmHost};
use hpvm_testkit::wait::wait_until;

use crate::Test;
use crate::statements::disk_at;

pub(crate) const TESTS: &[Test] =
    crate::tests![one_of_eight_commands_gets_the_disk, one_of_eight_starts_gets_the_disk];

const UP: Duration = Duration::from_secs(60);
/// Which of them is the first, a round each: a start, a hot add, the copy. That one replaces no file of a guest that could
/// start, so the guests that would are gone in its round.
const FIRST: [usize; 3] = [0, 3, COPY];
const COPY: usize = 6;
const SIZE: u64 = 1 << 20;
/// What the disk grows by in each round. It never shrinks but by the copy: a smaller one would be none of those that asked.
const MORE: u64 = 1 << 20;

/// Guests 1 to 3 have the disk and are off, 4 to 6 run and have none.
const STARTED: [&str; 3] = ["start1", "start2", "start3"];
const RUNNING: [&str; 3] = ["run1", "run2", "run3"];

/// The file that a path leads to.
fn identity(path: &Path) -> Option<(u64, u64)> {
    let found = fs::metadata(path).ok()?;
    Some((found.dev(), found.ino()))
}

/// What the engine of a guest has open, as the kernel knows it.
fn open_files(host: &VmHost, number: u32) -> Vec<(u64, u64)> {
    let Some(engine) = host.snapshot(number).map(|snapshot| snapshot.qemu.pid) else {
        return Vec::new();
    };
    let links = fs::read_dir(format!("/proc/{engine}/fd")).into_iter().flatten().flatten();
    links.filter_map(|link| identity(&link.path())).collect()
}

fn guests(host: &VmHost, disk: &Path) {
    for name in STARTED {
        host.ok(&["hpvmcreate", "-P", name, "-r", "64M", "-a", &disk_at("0,0,0", disk)]);
    }
    for name in RUNNING {
        host.ok(&["hpvmcreate", "-P", name, "-r", "64M"]);
    }
    host.ok(&["hpvmcreate", "-P", "base", "-a", &disk_at("0,0,0", &host.disk("base.img", SIZE))]);
}

/// All at once, as far as one can be after the other; what came of each, by what it is called.
fn all_at_once(host: &VmHost, disk: &Path, first: usize, grown: u64) -> Vec<(String, Outcome)> {
    let statement = disk_at("0,0,0", disk);
    let shown = disk.display().to_string();
    let starts = STARTED.map(|name| vec!["hpvmstart", "-P", name]);
    let adds = RUNNING.map(|name| vec!["hpvmmodify", "-P", name, "-a", &statement]);
    let copy = vec!["hpvmclone", "-P", "base", "-N", "copy", "-b", &statement, "-F"];
    let size = format!("{}M", grown >> 20);
    let grow = vec!["hpvmdevmgmt", "-S", &size, &shown];
    let mut lines: Vec<Vec<&str>> = starts.into_iter().chain(adds).chain([copy, grow]).collect();
    lines.rotate_left(first);
    lines.retain(|line| first != COPY || line[0] != "hpvmstart");
    let beside = || fs::read_dir(host.root()).expect("a folder").count();
    let before = beside();
    std::thread::scope(|scope| {
        let run = |line: Vec<&'_ str>| (line[..3].join(" "), host.run(&line));
        let begin = |line| scope.spawn(move || run(line));
        let mut lines = lines.into_iter();
        let mut all: Vec<_> = lines.next().map(begin).into_iter().collect();
        if first == COPY {
            // The copy is made beside its place before it is put there; a start is quicker than all of that.
            wait_until(UP, "the copy is begun", || beside() > before || all[0].is_finished());
        }
        all.extend(lines.map(begin));
        all.into_iter().map(|one| one.join().expect("an outcome")).collect()
    })
}

fn one_of_eight_commands_gets_the_disk() {
    let host = VmHost::new(Engine::Real);
    let disk = host.disk("wanted.img", SIZE);
    guests(&host, &disk);
    for first in FIRST {
        if first == COPY {
            for name in STARTED {
                host.ok(&["hpvmremove", "-P", name, "-F", "--purge"]);
            }
        }
        for name in RUNNING {
            host.ok(&["hpvmstart", "-P", name]);
            host.wait_for_state(name, "On (EFI)", UP);
        }
        let before = identity(&disk).expect("a file");
        let length = || fs::metadata(&disk).expect("a file").len();
        let had = length();
        let grown = had + MORE;
        let outcomes = all_at_once(&host, &disk, first, grown);
        let told: String = outcomes.iter().map(|(_, outcome)| outcome.to_string()).collect();
        let succeeded = |what: &str| {
            let done = outcomes
                .iter()
                .filter(|(line, outcome)| line.starts_with(what) && outcome.status.success());
            done.count()
        };
        let now = identity(&disk).expect("a file");
        let has = |number: &u32, file| open_files(&host, *number).contains(&file);
        let owners: Vec<u32> = (1..=6).filter(|number| has(number, now)).collect();
        let (given, copied) =
            (succeeded("hpvmstart") + succeeded("hpvmmodify"), succeeded("hpvmclone"));
        assert_eq!(owners.len(), given, "who was told so has it, nobody else: {told}");
        assert!(given <= 1, "one owner: {told}");
        // What a running guest has is not replaced under it, and what was replaced nobody has.
        assert_eq!(now != before, copied == 1, "{told}");
        if now != before {
            let old: Vec<u32> = (1..=6).filter(|number| has(number, before)).collect();
            assert_eq!(old, [0; 0], "a file that is gone: {told}");
        }
        // Nobody is turned away for nothing.
        assert!(given == 1 || copied == 1, "nobody has it: {told}");
        let is_grown = succeeded("hpvmdevmgmt") == 1;
        let unless_grown = if copied == 1 { SIZE } else { had };
        let may_be = |length| length == unless_grown && (!is_grown || copied == 1);
        assert!(may_be(length()) || is_grown && length() == grown, "{}: {told}", length());
        println!(
            "command {first} first: running owners {owners:?}, copied {copied}, grown {is_grown}"
        );

        for name in STARTED.iter().chain(&RUNNING) {
            host.run(&["hpvmstop", "-P", name, "-F"]);
        }
        for name in RUNNING {
            host.run(&["hpvmmodify", "-P", name, "-d", &disk_at("0,0,0", &disk)]);
        }
        if copied == 1 {
            host.ok(&["hpvmremove", "-P", "copy", "-F"]);
        }
    }
    assert_eq!(host.ok(&["hpvm", "doctor"]), "Nothing to complain of.\n");
}

/// Of two VM Hosts, which know nothing of each other: who loses is told which guest has the disk, or which process.
fn one_of_eight_starts_gets_the_disk() {
    let hosts = [VmHost::new(Engine::Real), VmHost::new(Engine::Real)];
    let disk = hosts[0].disk("shared.img", 1 << 20);
    let guests: Vec<(&VmHost, String)> =
        (1..=8).map(|n| (&hosts[n % 2], format!("g{n}"))).collect();
    for (host, name) in &guests {
        host.ok(&["hpvmcreate", "-P", name, "-r", "64M", "-a", &disk_at("0,0,0", &disk)]);
    }
    let outcomes: Vec<_> = std::thread::scope(|scope| {
        let start = |(host, name): &(&VmHost, String)| host.run(&["hpvmstart", "-P", name]);
        let starts: Vec<_> = guests.iter().map(|guest| scope.spawn(move || start(guest))).collect();
        starts.into_iter().map(|start| start.join().expect("a start")).collect()
    });
    let told: String = outcomes.iter().map(ToString::to_string).collect();
    let winners: Vec<usize> = (0..8).filter(|n| outcomes[*n].status.success()).collect();
    let [winner] = winners[..] else { panic!("not one: {told}") };
    let (host, name) = &guests[winner];
    let number = 1 + winner / 2;
    let pid = host.snapshot(u32::try_from(number).expect("a number")).expect("it runs").qemu.pid;
    for (n, outcome) in outcomes.iter().enumerate().filter(|(n, _)| *n != winner) {
        let holder = match std::ptr::eq(guests[n].0, *host) {
            true => format!("in use by the running guest '{name}'"),
            false => format!("process {pid} (hpvm-{number})"),
        };
        assert!(outcome.stderr.contains(&holder), "{outcome}");
    }
    let on = guests.iter().filter(|(host, name)| host.state(name).starts_with("On")).count();
    assert_eq!(on, 1, "{told}");
}
