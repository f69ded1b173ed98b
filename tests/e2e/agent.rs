//! QEMU's own agent in a real guest: it is shown, it lets a disk go that nobody uses and keeps one that is used, and one
//! that is silent or lies delays nothing.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use hpvm_app::snapshot::Agent;
use hpvm_testkit::guest::Console;
use hpvm_testkit::vm_host::{Engine, Outcome, VmHost};
use hpvm_testkit::wait::wait_until;

use crate::Test;
use crate::pool::image;

pub(crate) const TESTS: &[Test] = crate::tests![a_disk_leaves_with_an_agent_that_is_one];

/// Until a guest has seen what came or went.
const SEEN_BOUND: Duration = Duration::from_secs(30);
/// An agent that answers is asked once a minute, and once more when it does not.
const ASKED_AGAIN_BOUND: Duration = Duration::from_secs(180);
/// What a silent agent may cost a removal, with the command around it on a busy machine.
const SILENT_BOUND: Duration = Duration::from_secs(10);
/// What a hostile guest may cost anything else.
const UNDELAYED: Duration = Duration::from_secs(3);

/// A guest with an agent, three disks beside its own on one adapter: `sdb` is formatted and mounted, the others are bare.
struct Guest {
    host: VmHost,
    console: Console,
    /// Statements and files of `sdb`, `sdc` and `sdd`.
    disks: [(String, PathBuf); 3],
}

impl Guest {
    fn boot() -> Guest {
        let host = VmHost::new(Engine::Real);
        let boot = host.copy_of(&image("test-agent"), "boot.img");
        let disks = [0, 1, 2].map(|target| {
            let file = host.disk(&format!("data-{target}.img"), 16 << 20);
            (statement(&format!("disk:avio_stor:0,5,{target}"), &file), file)
        });
        let boot = statement("disk:avio_stor:0,0,0", &boot);
        let [one, two, three] = disks.each_ref().map(|(disk, _)| disk);
        host.create("agent", "512M", &[&boot, one, two, three]);
        host.ok(&["hpvmstart", "-P", "agent"]);
        let mut console = Console::attach(&host.run_dir(1));
        console.wait_for_shell();
        Guest { host, console, disks }
    }

    #[track_caller]
    fn until_agent(&self, what: &str, is_so: impl Fn(&Agent) -> bool) {
        wait_until(SEEN_BOUND, &format!("the agent {what}"), || {
            self.host.snapshot(1).is_some_and(|snapshot| is_so(&snapshot.agent))
        });
    }

    /// The kernel's name of a disk, by its target on the adapter.
    fn name(&mut self, target: usize) -> String {
        let list = format!("ls -d /sys/class/scsi_device/*:{target}:0/device/block/sd*");
        let found = self.console.run(&list);
        let mut of_ours = found.lines().filter(|line| !line.ends_with("/sda"));
        of_ours.next_back().and_then(|line| line.rsplit('/').next()).expect("a disk").to_owned()
    }

    fn remove(&self, target: usize) -> (Outcome, Duration) {
        let began = Instant::now();
        let outcome = self.host.run(&["hpvmmodify", "-P", "agent", "-d", &self.disks[target].0]);
        (outcome, began.elapsed())
    }

    /// Those that left come back to their places, and nobody in the guest uses any.
    fn has_all_disks_again(&mut self) {
        self.console.run("kill $!; wait");
        for (target, (disk, _)) in self.disks.iter().enumerate() {
            if !self.is_in_machine(target) {
                self.host.ok(&["hpvmmodify", "-P", "agent", "-a", disk]);
            }
            let there = format!("ls -d /sys/class/scsi_device/*:{target}:0/device/block/sd*");
            self.console.run(&format!("until {there} | grep -qv /sda; do sleep 0.1; done"));
        }
    }

    #[track_caller]
    fn is_in_guest(&mut self, disk: &str) -> bool {
        !self.console.run(&format!("ls -d /sys/class/block/{disk} 2>/dev/null")).is_empty()
    }

    /// The machine has the disk, whatever is configured.
    fn is_in_machine(&self, target: usize) -> bool {
        let record = self.host.ok(&["hpvmstatus", "-P", "agent", "--json"]);
        let (_, running) = record.split_once("\"running\"").expect("it runs");
        let (running, _) = running.split_once("\"waiting\"").expect("what waits");
        running.contains(&format!("data-{target}.img"))
    }
}

fn statement(place: &str, file: &Path) -> String {
    format!("{place}:file:{}", file.display())
}

/// One guest for all of it: it takes longer to boot than most of what there is to see.
fn a_disk_leaves_with_an_agent_that_is_one() {
    let mut guest = Guest::boot();
    one_disk_of_several_leaves_with_its_agent(&mut guest);
    guest.has_all_disks_again();
    an_agent_that_may_run_no_programs_has_file_systems_write(&mut guest);
    whoever_is_at_the_agents_port_delays_nothing(&mut guest);
}

fn one_disk_of_several_leaves_with_its_agent(guest: &mut Guest) {
    the_agent_is_shown(guest);
    mounted_it_stays(guest);
    let disk = guest.name(2);
    mounted_out_of_sight_it_stays(guest, &disk);
    held_it_stays(guest, &disk);
    what_was_written_leaves_with_it(guest);
    unmounted_it_leaves_whole(guest);
}

fn the_agent_is_shown(guest: &Guest) {
    guest.until_agent("answers", |agent| matches!(agent, Agent::Answers { .. }));
    let shown = guest.host.ok(&["hpvmstatus", "-P", "agent", "-V"]);
    assert!(
        shown
            .lines()
            .any(|line| line.starts_with("Guest agent") && line.contains(": answers since 20")),
        "{shown}"
    );
    assert!(guest.host.ok(&["hpvmstatus", "-P", "agent", "--json"]).contains("\"answers\""));
    assert!(!guest.host.ok(&["hpvmstatus"]).contains("answers"), "no column of the list");
}

/// Refused with the guest's own reason, and nothing changes.
fn mounted_it_stays(guest: &mut Guest) {
    let mounted = guest.name(0);
    let mounting = format!(
        "mke2fs /dev/{mounted} >/dev/null && mkdir -p /mnt/data && mount -t ext2 /dev/{mounted} /mnt/data; grep /mnt/data /proc/mounts"
    );
    let mount = guest.console.run(&mounting);
    assert!(mount.starts_with(&format!("/dev/{mounted} /mnt/data ext2")), "{mount}");
    let (outcome, _) = guest.remove(0);
    assert_eq!(outcome.status.code(), Some(1), "{outcome}");
    let reason = format!("/dev/{mounted} is mounted on /mnt/data");
    assert!(outcome.stderr.contains(&reason), "{outcome}");
    assert!(
        guest.is_in_machine(0)
            && guest.host.ok(&["hpvmstatus", "-P", "agent", "-d"]).contains("data-0.img")
    );
    assert_eq!(
        guest.console.run("echo still there >/mnt/data/note; cat /mnt/data/note"),
        "still there"
    );
}

/// Where the agent does not look from, as a container's disk is.
fn mounted_out_of_sight_it_stays(guest: &mut Guest, disk: &str) {
    guest.console.run(&format!(
        "mke2fs /dev/{disk} >/dev/null; mkdir /mnt/own; unshare -m sh -c 'mount -t ext2 /dev/{disk} /mnt/own; echo >/tmp/own; exec sleep 1000' & until [ -e /tmp/own ]; do sleep 0.1; done"
    ));
    let (outcome, _) = guest.remove(2);
    assert!(outcome.stderr.contains(&format!("/dev/{disk} is mounted on /mnt/own")), "{outcome}");
    guest.console.run("kill $!; wait");
}

fn held_it_stays(guest: &mut Guest, disk: &str) {
    guest.console.run(&format!("mkswap /dev/{disk} && swapon /dev/{disk}"));
    let (outcome, _) = guest.remove(2);
    assert!(outcome.stderr.contains(&format!("/dev/{disk} is in use as swap")), "{outcome}");
    guest.console.run(&format!("swapoff /dev/{disk}; sleep 1000 </dev/{disk} & true"));
    let (outcome, _) = guest.remove(2);
    assert!(outcome.stderr.contains(&format!("a process has /dev/{disk} open")), "{outcome}");
}

/// Written a moment ago and held by the guest alone as long as a process has the disk open, which therefore stays; then it
/// leaves at once, and the data are on the host.
fn what_was_written_leaves_with_it(guest: &mut Guest) {
    let bare = guest.name(1);
    let text = "written a moment ago ".repeat(200);
    guest.console.run(&format!(
        "exec 7<>/dev/{bare}; i=0; while [ $i -lt 200 ]; do echo -n 'written a moment ago ' >&7; i=$((i+1)); done"
    ));
    let before = fs::read(&guest.disks[1].1).expect("the disk's file");
    assert!(before.iter().all(|byte| *byte == 0), "the guest still holds it, so the test can fail");
    let (outcome, _) = guest.remove(1);
    let reason = format!("a process has /dev/{bare} open");
    assert!(outcome.stderr.contains(&reason), "{outcome}");
    guest.console.run("exec 7<&-");
    let (outcome, took) = guest.remove(1);
    println!("a disk left by its agent after {took:?}");
    assert!(outcome.status.success() && !outcome.stderr.contains("waits"), "{outcome}");
    assert!(took < Duration::from_secs(9), "no quiet time was waited for: {took:?}");
    assert!(!guest.is_in_machine(1));
    assert!(!guest.is_in_guest(&bare));
    let after = fs::read(&guest.disks[1].1).expect("the disk's file");
    assert!(after.starts_with(text.as_bytes()), "what was written is there");
}

/// With its file system.
fn unmounted_it_leaves_whole(guest: &mut Guest) {
    guest.console.run("umount /mnt/data");
    let (outcome, _) = guest.remove(0);
    assert!(outcome.status.success() && !guest.is_in_machine(0), "{outcome}");
    let content = fs::read(&guest.disks[0].1).expect("the disk's file");
    assert!(content.windows(11).any(|bytes| bytes == b"still there"), "the file's content");
}

/// A disk alone on its adapter, mounted: both stay while it is used. When it was quiet they leave, which is told, and what the
/// guest held back is on the host.
fn an_agent_that_may_run_no_programs_has_file_systems_write(guest: &mut Guest) {
    let file = guest.host.disk("lone.img", 16 << 20);
    let lone = statement("disk:avio_stor:0,6,0", &file);
    let remove = |guest: &Guest| guest.host.run(&["hpvmmodify", "-P", "agent", "-d", &lone]);
    let names = "ls -1 /sys/class/block";
    guest.console.run("kill -KILL $(pidof qemu-ga)");
    guest.until_agent("has ended", |agent| *agent == Agent::Absent);
    guest.console.run(
        "sed 's/qemu-ga/& -b guest-exec,guest-exec-status/' /etc/agent >/tmp/agent; sh /tmp/agent & sleep 0",
    );
    guest.until_agent("answers", |agent| matches!(agent, Agent::Answers { .. }));

    let before = guest.console.run(names);
    guest.host.ok(&["hpvmmodify", "-P", "agent", "-a", &lone]);
    let count = before.lines().count();
    guest.console.run(&format!("until [ $({names} | wc -l) -gt {count} ]; do sleep 0.1; done"));
    let after = guest.console.run(names);
    let disk = after.lines().find(|name| !before.contains(*name)).expect("it came").to_owned();
    // Nothing is written before somebody asks for it.
    guest.console.run("echo 0 >/proc/sys/vm/dirty_writeback_centisecs");
    guest.console.run(&format!(
        "mke2fs /dev/{disk} >/dev/null && mount -t ext2 /dev/{disk} /mnt/data && echo held back >/mnt/data/note"
    ));
    let outcome = remove(guest);
    let reason = "the guest agent cannot let it go";
    assert!(outcome.stderr.contains(reason) && outcome.stderr.contains("I/O"), "{outcome}");
    assert!(
        guest.host.ok(&["hpvmstatus", "-P", "agent"]).contains("next reset since 20"),
        "it waits"
    );
    assert_eq!(guest.console.run("cat /mnt/data/note"), "held back");
    assert!(guest.is_in_guest(&disk));

    let on_host = || {
        let content = fs::read(&file).expect("the disk's file");
        content.windows(9).any(|bytes| bytes == b"held back")
    };
    assert!(!on_host(), "the guest still holds it, so the test can fail");
    let mut told = String::new();
    wait_until(SEEN_BOUND, "the disk to have been quiet", || {
        told = remove(guest).stderr;
        !told.contains("waits for")
    });
    assert!(
        told.contains("It had the file systems that it knows write out what they held"),
        "{told}"
    );
    assert!(on_host() && !guest.is_in_guest(&disk));
    let log = guest.host.ok(&["hpvmstatus", "-P", "agent"]);
    assert!(!log.contains("0,6,0"), "{log}");

    guest.console.run("umount -l /mnt/data; echo 500 >/proc/sys/vm/dirty_writeback_centisecs; kill -KILL $(pidof qemu-ga)");
    guest.until_agent("has ended", |agent| *agent == Agent::Absent);
    guest.console.run("/etc/agent & sleep 0");
}

/// Nothing else tells of it, and nobody wants anything of the agent meanwhile.
fn a_kernel_that_panics_is_noticed_by_its_agent(guest: &mut Guest) {
    let why = || guest.host.ok(&["hpvm", "why", "agent"]);
    assert!(!why().contains("agent does not answer"), "{}", why());
    guest.console.type_in("echo 0 > /proc/sys/kernel/panic; echo c > /proc/sysrq-trigger\n");
    wait_until(ASKED_AGAIN_BOUND, "the agent is known to be silent", || {
        matches!(guest.host.snapshot(1).map(|shown| shown.agent), Some(Agent::Silent { .. }))
    });
    let shown = guest.host.ok(&["hpvmstatus", "-P", "agent", "-V"]);
    let line = shown.lines().find(|line| line.starts_with("Guest agent")).expect("a line");
    assert!(line.contains("does not answer since 20"), "{shown}");
    assert!(guest.host.ok(&["hpvmstatus", "-P", "agent", "-e"]).contains("agent does not answer"));
    let why = why();
    assert!(why.contains("its guest agent does not answer since 20"), "{why}");
    assert!(!why.contains("nothing is wrong"), "{why}");
}

fn whoever_is_at_the_agents_port_delays_nothing(guest: &mut Guest) {
    guest.until_agent("answers", |agent| matches!(agent, Agent::Answers { .. }));

    // A silent one costs its deadline; then the rule without an agent holds.
    let disk = guest.name(1);
    guest.console.run("kill -STOP $(pidof qemu-ga)");
    guest.console.run(&format!("echo just now | dd of=/dev/{disk} conv=sync,fsync"));
    let (outcome, took) = guest.remove(1);
    println!("a silent agent: {took:?}");
    assert!(outcome.status.success(), "{outcome}");
    assert!(
        outcome.stderr.contains("did not answer") && outcome.stderr.contains("the disk had I/O"),
        "{outcome}"
    );
    assert!(took < SILENT_BOUND, "{took:?}");
    assert!(guest.is_in_machine(1) && guest.is_in_guest(&disk));
    guest.until_agent("is silent", |agent| matches!(agent, Agent::Silent { .. }));
    let (outcome, took) = guest.remove(2);
    assert!(outcome.status.success(), "{outcome}");
    assert!(took < UNDELAYED, "known to be silent, it is not asked: {took:?}");

    // One that answers with junk, or never ends.
    guest.console.run("kill -KILL $(pidof qemu-ga)");
    guest.until_agent("has ended", |agent| *agent == Agent::Absent);
    for junk in ["yes '{\"return\": {}}'", "cat /dev/urandom", "tr '\\0' x </dev/zero"] {
        guest.console.run(&format!("({junk}) >/dev/vport0p1 2>/dev/null & junk=$!"));
        guest.until_agent("is silent", |agent| matches!(agent, Agent::Silent { .. }));
        let began = Instant::now();
        guest.host.ok(&["hpvmmodify", "-P", "agent", "-l", "asked"]);
        guest.host.ok(&["hpvmmodify", "-P", "agent", "-d", &guest.disks[0].0, "-s"]);
        assert!(guest.host.ok(&["hpvmstatus", "-P", "agent"]).contains("On (OS)"));
        assert!(began.elapsed() < UNDELAYED, "{junk}: {:?}", began.elapsed());
        guest.console.run("kill -KILL $junk; wait $junk");
        guest.until_agent("has ended", |agent| *agent == Agent::Absent);
    }

    // A good one is heard again, whatever was said before it.
    guest.console.run("/etc/agent & sleep 0");
    guest.until_agent("answers", |agent| matches!(agent, Agent::Answers { .. }));
    a_kernel_that_panics_is_noticed_by_its_agent(guest);
    let began = Instant::now();
    guest.host.ok(&["hpvmstop", "-P", "agent", "-h", "-F"]);
    assert!(began.elapsed() < UNDELAYED, "{:?}", began.elapsed());
}
