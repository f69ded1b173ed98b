//! A backing store that stops answering: shown and logged within two seconds, and no command waits for it. Here the store is an
//! export of qemu-storage-daemon by FUSE, which a signal stops, as a server of files that hangs.

pub(crate) mod commands;
pub(crate) mod copied;
pub(crate) mod watched;

use std::fs::{self, File};
use std::time::{Duration, Instant};

use hpvm_qmp::RunState;
use hpvm_qmp::blocking::Client;
use hpvm_qmp::command::{QueryStatus, SystemReset};
use hpvm_testkit::guest::Console;
use hpvm_testkit::vm_host::{Engine, Outcome, VmHost};
use hpvm_testkit::wait::wait_until;
use rustix::process::Signal;

use crate::Test;
use crate::file_server::FileServer;
use crate::guest_processes::process;
use crate::pool::{Leased, image};
use crate::served::Served;

pub(crate) const TESTS: &[Test] = crate::tests![
    a_store_that_hangs_is_shown_and_holds_nobody_up,
    storage_is_left_alone_beside_a_silent_store,
    a_store_that_answers_reads_alone_is_shown,
    a_store_that_nobody_has_noticed_yet_holds_nobody_up,
    a_supervisor_reads_each_store_before_it_looks_at_devices,
    the_next_supervisor_leaves_qemu_alone_beside_a_silent_store;
    long: a_qemu_that_somebody_ends_beside_a_silent_store_is_said_to_end,
];

const BOUND: Duration = Duration::from_secs(20);
const DISK_BYTES: u64 = 8 << 20;
/// From the first request left unanswered.
const SHOWN_WITHIN: Duration = Duration::from_secs(2);
/// How long a store is waited for.
const SILENT_AFTER: Duration = Duration::from_secs(2);
/// A command waits for a silent store once, or not at all.
const COMMAND_WITHIN: Duration = Duration::from_secs(5);
/// The first one that would change storage: until five seconds of silence are over, beside those two, with room for a busy machine.
const PATIENCE_WITHIN: Duration = Duration::from_secs(12);
/// A hard stop that the store holds up says so after three seconds, four times that with room for a busy machine.
const STOP_WITHIN: Duration = Duration::from_secs(12);

/// Settles 136.
fn a_store_that_hangs_is_shown_and_holds_nobody_up() {
    let mut beside = Beside::start();
    beside.falls_silent(4096);
    beside.is_shown();
    beside.looks_are_answered();
    beside.answers_again();
    beside.falls_silent(8192);
    beside.stops_all_the_same();
}

/// A running guest with a disk that may fall silent, beside the one that it booted from.
struct Beside {
    /// Goes first: the folder of its file is the host's.
    served: Served,
    host: VmHost,
    console: Console,
    /// The store that may fall silent.
    path: String,
}

impl Beside {
    fn start() -> Beside {
        let host = VmHost::new(Engine::Real);
        let content = host.disk("content.img", DISK_BYTES);
        let node = format!("driver=file,node-name=content,filename={}", content.display());
        let served = Served::new(&host, &[(vec![node], "content", DISK_BYTES)]);
        let path = served.paths[0].display().to_string();
        let boot = host.copy_of(&image("test-cloud"), "boot.img");
        let boot = format!("disk:avio_stor:0,0,0:file:{}", boot.display());
        let disk = format!("disk:avio_stor:0,0,1:file:{path}");
        let create = ["hpvmcreate", "-P", "web", "-O", "linux", "-r", "512M"];
        host.ok(&[&create[..], &["-a", &boot, "-a", &disk]].concat());
        host.ok(&["hpvmstart", "-P", "web"]);
        let mut console = Console::attach(&host.run_dir(1));
        console.wait_for_shell();
        let log = host.ok(&["hpvmstatus", "-P", "web", "-V"]) + &guest_log(&host);
        assert!(!log.contains("does not answer"), "{log}");
        Beside { served, host, console, path }
    }

    /// The guest reads from both of its disks, and the silence is shown in time.
    fn falls_silent(&mut self, block: u32) {
        self.served.signal(Signal::STOP);
        let stopped = Instant::now();
        let read = format!("dd if=/dev/$d of=/dev/null count=1 skip={block} 2>&-");
        // Of a file that it has not looked at for a second the kernel asks the server first, and the whole QEMU waits for that.
        self.console.type_in(&format!("for d in sda sdb; do {read} & done\n"));
        wait_until(BOUND, "it is published", || {
            self.host.snapshot(1).is_some_and(|snapshot| !snapshot.silent_stores.is_empty())
        });
        let took = stopped.elapsed();
        assert!(took <= SHOWN_WITHIN, "shown after {took:?}");
        assert_eq!(self.host.state("web"), "On (ATTN)");
    }

    fn answers_again(&self) {
        self.served.signal(Signal::CONT);
        self.host.wait_for_state("web", "On (OS)", BOUND);
        assert!(guest_log(&self.host).contains("which backs the disk at 0,0,1, answers again"));
    }

    fn is_shown(&self) {
        let told = format!("'{}', which backs the disk at 0,0,1, does not answer", self.path);
        assert!(self.host.ok(&["hpvmstatus", "-P", "web"]).contains(&told));
        let events = self.host.ok(&["hpvmstatus", "-P", "web", "-e"]);
        assert!(events.contains(&told), "{events}");
    }

    fn looks_are_answered(&self) {
        for command in [
            &["hpvmstatus"][..],
            &["hpvmstatus", "-P", "web", "-V"],
            &["hpvmmodify", "-P", "web", "-l", "changed meanwhile"],
            &["hpvmconsole", "-P", "web", "-q", "-c", "he"],
        ] {
            answered(&self.host, command, 0);
        }
        let screen = answered(&self.host, &["hpvm", "why", "web"], 0).stdout;
        let told = format!(
            "because '{}', which backs the disk at 0,0,1, does not answer since 2",
            self.path
        );
        assert!(screen.contains(&told), "{screen}");
        let ground = format!("mounted at {}, where '{}' lies", self.path, self.path);
        assert!(screen.contains(&ground) && screen.contains("goes on by itself"), "{screen}");
        assert!(screen.contains("Next:  hpvm why -P web"), "{screen}");
    }

    /// The kernel ends no process before its requests came back; that is told, and not waited for. Who asks again hears it too.
    fn stops_all_the_same(self) {
        let host = &self.host;
        let mut line = String::new();
        for asked in ["first", "again"] {
            let stop = ended(host, &["hpvmstop", "-P", "web", "-h", "-F"], STOP_WITHIN);
            println!("{asked}: {}", stop.stderr);
            assert_eq!(stop.status.code(), Some(1), "{stop}");
            assert_eq!(stop.stderr.lines().count(), 1, "{stop}");
            line = stop.stderr;
            let path = &self.path;
            let told = format!(
                "before its requests come back from '{path}', which backs the disk at 0,0,1"
            );
            assert!(line.contains(&told), "{line}");
            assert_eq!(host.state("web"), "On (ATTN)", "what holds it is still shown");
        }
        assert!(line.contains("ends by itself"), "{line}");
        self.served.signal(Signal::CONT);
        host.wait_for_state("web", "Off", BOUND);
        assert!(guest_log(host).contains("stopped (hard)"), "{}", guest_log(host));
        host.ok(&["hpvmstart", "-P", "web"]);
        host.ok(&["hpvmstop", "-P", "web", "-h", "-F"]);
    }
}

/// Settles 136: QEMU would wait for the silent store, and the guest and the command with it. All is done when it answers.
fn storage_is_left_alone_beside_a_silent_store() {
    let mut guest = Leased::take();
    let server = FileServer::over(&guest.host().path("beside"), DISK_BYTES);
    let far = server.file.display().to_string();
    let disk = format!("disk:avio_stor:0,1,0:file:{far}");
    for name in ["one.iso", "other.iso", "near.img", "scsi.img", "grows.img"] {
        let _path = guest.host().disk(name, DISK_BYTES);
    }
    let grows = guest.host().path("grows.img");
    let drive = format!("{DRIVE}:file:{}", guest.host().path("one.iso").display());
    let grown = format!("{GROWS}:file:{}", grows.display());
    guest.host().ok(&["hpvmmodify", "-P", "pool", "-a", &disk, "-a", &drive]);
    guest.console().run("until test -b /dev/sdb; do sleep 0.1; done");
    guest.host().ok(&["hpvmmodify", "-P", "pool", "-a", &grown]);
    let longer = File::options().write(true).open(&grows);
    longer.and_then(|file| file.set_len(2 * DISK_BYTES)).expect("a longer disk");

    server.leave_unanswered(|silence| &silence.writing);
    guest.console().run("dd if=/dev/zero of=/dev/sdb count=1 oflag=direct 2>&- & true");
    let host = guest.host();
    host.wait_for_state("pool", "On (ATTN)", BOUND);
    answered(host, &["hpvm", "gvsdmgr", "get_stat", "-P", "pool", "-q", "lun=all"], 0);
    // What it does it does to devices of the VM Host, and asks QEMU nothing.
    answered(host, &["hpvm", "gvsdmgr", "bdr", "-P", "pool", "-q", "lun=0,1,0", "-f"], 1);
    let mut bound = PATIENCE_WITHIN;
    for command in storage_commands(host, &disk) {
        is_left_alone(
            &mut guest,
            &command,
            &format!("'{far}', which backs the disk at 0,1,0"),
            bound,
        );
        bound = COMMAND_WITHIN;
    }

    server.answer_again();
    guest.host().wait_for_state("pool", "On (OS)", BOUND);
    for command in storage_commands(guest.host(), &disk) {
        guest.host().ok(&words(&command));
    }
    guest.console().run("until test -b /dev/sdc && ! test -b /dev/sdb; do sleep 0.1; done");
    let near = format!("disk:avio_stor:0,2,0:file:{}", guest.host().path("near.img").display());
    let other = format!("{DRIVE}:file:{}", guest.host().path("other.iso").display());
    let scsi = format!("{SCSI}:file:{}", guest.host().path("scsi.img").display());
    let leave = ["-d", &near, "-d", &other, "-d", &grown, "-d", &scsi];
    guest.host().ok(&[&["hpvmmodify", "-P", "pool", "-F"][..], &leave].concat());
    guest.host().ok(&["hpvmremove", "-P", "copy", "-F", "--purge"]);
}

const DRIVE: &str = "dvd:avio_stor:0,4,0";
const GROWS: &str = "disk:avio_stor:0,6,0";
const SCSI: &str = "disk:scsi:0,5,0";

/// Each changes or copies storage of the pool's guest: at last its disk that may be silent leaves by force.
fn storage_commands(host: &VmHost, disk: &str) -> Vec<Vec<String>> {
    let file = |name: &str| format!("file:{}", host.path(name).display());
    let copy = format!("disk:avio_stor:0,0,0:{}", file("copy.img"));
    let near = format!("disk:avio_stor:0,2,0:{}", file("near.img"));
    let other = format!("{DRIVE}:{}", file("other.iso"));
    let grown = format!("{GROWS}:{}", file("grows.img"));
    let scsi = format!("{SCSI}:{}", file("scsi.img"));
    let commands = [
        &["hpvmmodify", "-P", "pool", "-a", &near][..],
        &["hpvmconsole", "-P", "pool", "-q", "-c", "ej"],
        &["hpvmmodify", "-P", "pool", "-m", &other],
        &["hpvmmodify", "-P", "pool", "-m", &grown],
        &["hpvmmodify", "-P", "pool", "-a", &scsi],
        &["hpvmclone", "-P", "pool", "-N", "copy", "-b", &copy],
        &["hpvmmodify", "-P", "pool", "-F", "-d", disk],
    ];
    commands.map(|command| command.iter().map(|word| (*word).to_owned()).collect()).into()
}

fn words(command: &[String]) -> Vec<&str> {
    command.iter().map(String::as_str).collect()
}

/// The command says which store is silent and what to do, and the guest and its QEMU go on.
#[track_caller]
fn is_left_alone(guest: &mut Leased, command: &[String], silent: &str, within: Duration) {
    let refused = ended(guest.host(), &words(command), within);
    assert_eq!(refused.status.code(), Some(1), "{refused}");
    let said = format!("{}{}", refused.stdout, refused.stderr);
    assert!(said.contains(silent) && said.contains("try again when that answers"), "{refused}");
    let rescue = guest.host().run_dir(1).join("rescue");
    let mut rescue = Client::connect(&rescue).expect("QEMU answers");
    assert_eq!(rescue.execute(&QueryStatus {}).expect("told").status, RunState::Running);
    guest.console().run("true");
}

/// As that of a frozen file system, or of a pool that is full and waits for room.
fn a_store_that_answers_reads_alone_is_shown() {
    let mut guest = Leased::take();
    let server = FileServer::over(&guest.host().path("far"), DISK_BYTES);
    let disk = format!("disk:avio_stor:0,1,0:file:{}", server.file.display());
    guest.host().ok(&["hpvmmodify", "-P", "pool", "-a", &disk]);
    guest.console().run("until test -b /dev/sdb; do sleep 0.1; done");
    let write = "dd if=/dev/zero of=/dev/sdb count=1 oflag=direct 2>&-";
    guest.console().run(write);
    guest.host().wait_for_state("pool", "On (OS)", BOUND);

    server.leave_unanswered(|silence| &silence.writing);
    let left = Instant::now();
    guest.console().run(&format!("{write} & true"));
    let host = guest.host();
    wait_until(BOUND, "it is published", || {
        host.snapshot(1).is_some_and(|snapshot| !snapshot.silent_stores.is_empty())
    });
    let took = left.elapsed();
    println!("shown after {took:?}");
    assert!(took <= 4 * SHOWN_WITHIN, "shown after {took:?}");
    assert_eq!(host.state("pool"), "On (ATTN)");
    let store = format!("'{}', which backs the disk at 0,1,0", server.file.display());
    let told = format!("{store}, does not answer");
    for look in [&["hpvmstatus", "-P", "pool"][..], &["hpvmstatus", "-P", "pool", "-e"]] {
        let shown = answered(host, look, 0).stdout;
        assert!(shown.contains(&told), "{shown}");
    }

    server.answer_again();
    host.wait_for_state("pool", "On (OS)", BOUND);
    let events = host.ok(&["hpvmstatus", "-P", "pool", "-e"]);
    assert!(events.contains(&format!("{store}, answers again")), "{events}");
    guest.console().run("wait");
    guest.host().ok(&["hpvmmodify", "-P", "pool", "-F", "-d", &disk]);
}

/// Runs a command, which takes no longer than it may beside a silent store, and ends so.
#[track_caller]
pub(crate) fn answered(host: &VmHost, command: &[&str], status: i32) -> Outcome {
    let outcome = ended(host, command, COMMAND_WITHIN);
    assert_eq!(outcome.status.code(), Some(status), "{outcome}");
    outcome
}

#[track_caller]
fn ended(host: &VmHost, command: &[&str], within: Duration) -> Outcome {
    let began = Instant::now();
    let outcome = host.run(command);
    let took = began.elapsed();
    println!("{took:?}: {outcome}");
    assert!(took < within, "{command:?} took {took:?}: {outcome}");
    outcome
}

/// A silent store is given to nobody, copied by nobody and changed by nobody, and whoever tries is told at once.
fn to_be_given(host: &VmHost, path: &str) {
    let disk = format!("disk:avio_stor:0,5,0:file:{path}");
    let near = host.disk("copied.img", DISK_BYTES).display().to_string();
    let near = format!("disk:avio_stor:0,6,0:file:{near}");
    answered(host, &["hpvmcreate", "-P", "near", "-r", "64M", "-a", &near], 0);
    let silent = "has not answered for 2 s";
    for (command, status) in [
        (&["hpvmcreate", "-P", "far", "-r", "64M", "-a", &disk][..], 1),
        (
            &[
                "hpvmclone",
                "-P",
                "near",
                "-N",
                "far",
                "-b",
                &format!("disk:avio_stor:0,6,0:file:{path}"),
            ],
            1,
        ),
        (&["hpvmdevmgmt", "-S", "16M", path], 1),
    ] {
        let outcome = answered(host, command, status);
        assert!(outcome.stderr.contains(silent), "{outcome}");
    }
}

/// Of a disk that the guest does not use a silence is noticed late, and by whoever is about to change something. One that only
/// hesitates fails no command.
fn a_store_that_nobody_has_noticed_yet_holds_nobody_up() {
    let host = VmHost::new(Engine::Fake);
    let server = FileServer::over(&host.path("far"), DISK_BYTES);
    let far = server.file.display().to_string();
    let disk = format!("disk:avio_stor:0,0,0:file:{far}");
    let near = format!("disk:avio_stor:0,1,0:file:{}", host.disk("near", 4096).display());
    host.ok(&["hpvmcreate", "-P", "web", "-r", "64M", "-a", &disk]);
    host.ok(&["hpvmstart", "-P", "web"]);
    host.wait_for_state("web", "On (OS)", BOUND);
    let comes = ["hpvmmodify", "-P", "web", "-a", &near];
    let told = format!("'{far}', which backs the disk at 0,0,0");

    server.leave_unanswered(|silence| &silence.reading);
    let refused = ended(&host, &comes, PATIENCE_WITHIN);
    assert_eq!(refused.status.code(), Some(1), "{refused}");
    assert!(refused.stderr.contains(&told), "{refused}");
    server.answer_again();
    host.wait_for_state("web", "On (OS)", BOUND);

    server.leave_unanswered(|silence| &silence.reading);
    std::thread::scope(|scope| {
        let comes = scope.spawn(|| host.run(&comes));
        let waits =
            || guest_log(&host).matches(&format!("a request waits for {told}")).count() == 2;
        wait_until(BOUND, "the command to wait", waits);
        server.answer_again();
        let comes = comes.join().expect("it ends");
        assert!(comes.status.success(), "{comes}");
    });

    // Only devices of the VM Host are reset, and what lies there is no device.
    server.leave_unanswered(|silence| &silence.looking);
    answered(&host, &["hpvm", "gvsdmgr", "bdr", "-P", "web", "-q", "lun=0,0,0", "-f"], 1);
}

/// After a reset of the guest, and when it takes over: this QEMU would hang as soon as it is asked, and does when that has been
/// made up for.
fn a_supervisor_reads_each_store_before_it_looks_at_devices() {
    let is_reset = |host: &VmHost| {
        let mut rescue = Client::connect(&host.run_dir(1).join("rescue")).expect("QEMU answers");
        rescue.execute(&SystemReset {}).expect("it is reset");
    };
    let is_followed = |host: &VmHost| {
        process(host, "hpvmapp").expect("it lives").kill();
        let is_followed = || host.snapshot(1).is_some_and(|snapshot| snapshot.adoptions == 1);
        wait_until(BOUND, "the next supervisor", is_followed);
    };
    std::thread::scope(|scope| {
        scope.spawn(|| reads_each_store_before(is_reset));
        scope.spawn(|| reads_each_store_before(is_followed));
    });
}

fn reads_each_store_before(happens: impl Fn(&VmHost)) {
    let mut host = VmHost::new(Engine::Fake);
    host.engine_behaves("hang=query-block");
    let server = FileServer::over(&host.path("far"), DISK_BYTES);
    let disk = format!("disk:avio_stor:0,0,0:file:{}", server.file.display());
    host.ok(&["hpvmcreate", "-P", "web", "-r", "64M", "-a", &disk]);
    host.ok(&["hpvmstart", "-P", "web"]);
    host.wait_for_state("web", "On (OS)", BOUND);
    server.leave_unanswered(|silence| &silence.reading);
    happens(&host);
    host.wait_for_state("web", "On (ATTN)", BOUND);
    let silent = format!("'{}', which backs the disk at 0,0,0", server.file.display());
    let refused = ended(&host, &["hpvmmodify", "-P", "web", "-d", &disk], PATIENCE_WITHIN);
    assert!(refused.stderr.contains(&silent), "{refused}");
    answered(&host, &["hpvmconsole", "-P", "web", "-q", "-c", "he"], 0);
    assert!(!guest_log(&host).contains("QEMU does not answer"), "{}", guest_log(&host));
    server.answer_again();
    let looks = || guest_log(&host).contains("QEMU does not answer");
    wait_until(BOUND, "QEMU to be asked", looks);
}

/// The store falls silent, and at once the supervisor is replaced.
fn the_next_supervisor_leaves_qemu_alone_beside_a_silent_store() {
    let mut guest = Leased::take();
    let server = FileServer::over(&guest.host().path("followed"), DISK_BYTES);
    let far = format!("disk:avio_stor:0,1,0:file:{}", server.file.display());
    guest.host().ok(&["hpvmmodify", "-P", "pool", "-a", &far]);
    // It has looked at the new disk by then: a request of its own that FUSE leaves unanswered may hold QEMU.
    guest.console().run("until dd if=/dev/sdb of=/dev/null bs=1M 2>&-; do sleep 0.1; done");
    let host = guest.host();
    let near = host.disk("near.img", DISK_BYTES).display().to_string();
    let near = format!("disk:avio_stor:0,2,0:file:{near}");
    let adoptions = || host.snapshot(1).map(|snapshot| snapshot.adoptions);
    let before = adoptions().expect("a snapshot");

    server.leave_unanswered(|silence| &silence.reading);
    process(host, "hpvmapp").expect("it lives").kill();
    let killed = Instant::now();
    wait_until(BOUND, "the next supervisor", || adoptions() == Some(before + 1));
    let took = killed.elapsed();
    println!("supervised after {took:?}");
    assert!(took <= SHOWN_WITHIN, "supervised after {took:?}");
    host.wait_for_state("pool", "On (ATTN)", BOUND);
    println!("silence shown after {:?}", killed.elapsed());
    let silent = format!("'{}', which backs the disk at 0,1,0", server.file.display());
    for look in [
        &["hpvmstatus", "-P", "pool"][..],
        &["hpvmconsole", "-P", "pool", "-q", "-c", "he"],
        &["hpvm", "why", "pool"],
    ] {
        answered(host, look, 0);
    }
    let comes = ["hpvmmodify", "-P", "pool", "-a", &near].map(str::to_owned);
    guest.attach_again();
    guest.console().expect("HPVM GUEST READY", BOUND);
    is_left_alone(&mut guest, &comes, &silent, PATIENCE_WITHIN);

    server.answer_again();
    let host = guest.host();
    host.wait_for_state("pool", "On (OS)", BOUND);
    host.ok(&words(&comes));
    assert!(!guest_log(host).contains("QEMU does not answer"), "{}", guest_log(host));
    host.ok(&["hpvmmodify", "-P", "pool", "-F", "-d", &far, "-d", &near]);
}

/// What QEMU holds it cannot write out before the store answers. On a busy machine the file system may hold QEMU itself first, and
/// then it says nothing.
fn a_qemu_that_somebody_ends_beside_a_silent_store_is_said_to_end() {
    let mut beside = Beside::start();
    beside.falls_silent(4096);
    process(&beside.host, "hpvm-1").expect("it lives").signal(Signal::TERM);
    let host = &beside.host;
    let told = format!(
        "QEMU was told to end from outside: terminating on signal 15 from pid {}",
        std::process::id()
    );
    wait_until(BOUND, "it is said to end", || {
        host.ok(&["hpvmstatus", "-P", "web"]).contains(&told)
    });
    assert!(guest_log(host).contains(&told), "{}", guest_log(host));
    println!("{}", host.ok(&["hpvmstatus", "-P", "web"]));
    beside.served.signal(Signal::CONT);
    host.wait_for_state("web", "Off", BOUND);
    let log = guest_log(host);
    assert!(!log.contains("QEMU does not answer"), "{log}");
}

fn guest_log(host: &VmHost) -> String {
    let folders = fs::read_dir(host.path("var/opt/hpvm/uuids")).expect("guests").flatten();
    folders
        .map(|folder| fs::read_to_string(folder.path().join("log")).unwrap_or_default())
        .collect()
}
