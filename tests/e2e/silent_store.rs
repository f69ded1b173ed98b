//! A backing store that stops answering: shown and logged within two seconds, and no command waits for it. The store is an
//! export of qemu-storage-daemon by FUSE, which a signal stops, as a server of files that hangs.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Command};
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
use crate::loop_device::LoopDevice;
use crate::pool::{Leased, image};
use crate::served::Served;

pub(crate) const TESTS: &[Test] = crate::tests![
    a_store_that_hangs_is_shown_and_holds_nobody_up,
    storage_is_left_alone_beside_a_silent_store,
    a_store_that_answers_reads_alone_is_shown,
    a_file_system_that_hangs_holds_no_change_up,
    a_loop_device_on_a_silent_store_holds_nobody_up,
    a_store_that_falls_silent_while_it_is_opened_ends_the_command,
    what_backs_a_drive_or_lies_under_a_disk_is_watched_too,
    the_last_of_many_disks_is_watched,
    a_store_that_nobody_has_noticed_yet_holds_nobody_up,
    a_supervisor_reads_each_store_before_it_looks_at_devices,
    a_store_that_waits_for_a_reset_is_watched_too,
    the_next_supervisor_leaves_qemu_alone_beside_a_silent_store;
    long: a_qemu_that_somebody_ends_beside_a_silent_store_is_said_to_end,
];

const BOUND: Duration = Duration::from_secs(20);
const DISK_BYTES: u64 = 8 << 20;
/// From the first request left unanswered.
const SHOWN_WITHIN: Duration = Duration::from_secs(2);
/// A command waits for a silent store once, for two seconds, or not at all.
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
            &["hpvm", "why", "web"],
        ] {
            answered(&self.host, command, 0);
        }
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

/// A file system whose server never answers, over a folder: as one whose server is out of reach.
struct Hung {
    server: Child,
    folder: PathBuf,
}

impl Hung {
    fn over(folder: PathBuf) -> Hung {
        let mount = "exec 3<>/dev/fuse; mount -i -t fuse -o fd=3,rootmode=40000,user_id=0,group_id=0 hung \"$0\" && exec sleep 120";
        let mut command = Command::new("sh");
        let server = command.arg("-c").arg(mount).arg(&folder).spawn().expect("a shell");
        let hung = Hung { server, folder };
        let mounted = format!(" {} ", hung.folder.display());
        wait_until(BOUND, "it is mounted", || {
            fs::read_to_string("/proc/mounts").expect("mounts").contains(&mounted)
        });
        hung
    }
}

impl Drop for Hung {
    fn drop(&mut self) {
        // Without its server all who wait for it are told that it is gone.
        let _ = self.server.kill();
        let _ = self.server.wait();
        let _ = Command::new("umount").arg("--lazy").arg(&self.folder).status();
    }
}

fn a_file_system_that_hangs_holds_no_change_up() {
    let host = VmHost::new(Engine::Fake);
    let folder = host.path("far");
    fs::create_dir(&folder).expect("a folder");
    let far = folder.join("far.img");
    File::create(&far).and_then(|file| file.set_len(DISK_BYTES)).expect("a disk");
    let far_path = far.display().to_string();
    let far = format!("disk:avio_stor:0,0,0:file:{far_path}");
    let near = host.disk("near.img", DISK_BYTES).display().to_string();
    let kept = format!("gdev:{far_path}:attr:PRESERVE=YES");
    let preserved = format!("gdev:{near}:attr:PRESERVE=YES");
    let near = format!("disk:avio_stor:0,0,1:file:{near}");
    host.ok(&["hpvmcreate", "-P", "web", "-a", &far]);
    let made = folder.join("made.img").display().to_string();
    let copy = format!("disk:avio_stor:0,0,0:file:{}", host.path("copy.img").display());
    let hung = Hung::over(folder);
    for (command, status) in [
        (&["hpvmstatus", "-P", "web"][..], 0),
        (&["hpvmstart", "-P", "web"], 1),
        (&["hpvm", "why", "web"], 0),
        (&["hpvm", "doctor"], 0),
        (&["hpvmhostrdev"], 0),
        (&["hpvmclone", "-P", "web", "-N", "copy", "-b", &copy], 1),
        (&["hpvmdevmgmt", "-S", "8M", &made], 1),
        (&["hpvmmodify", "-P", "web", "-l", "changed meanwhile"], 0),
        (&["hpvmmodify", "-P", "web", "-a", &near], 0),
        (&["hpvmdevmgmt", "-l", "all"], 0),
        (&["hpvmdevmgmt", "-m", &preserved], 0),
        (&["hpvmdevmgmt", "-m", &kept], 0),
        (&["hpvmmodify", "-P", "web", "-d", &far], 0),
        (&["hpvmstart", "-P", "web"], 0),
    ] {
        answered(&host, command, status);
    }
    to_be_given(&host, &far_path);
    drop(hung);
}

/// Runs a command, which takes no longer than it may beside a silent store, and ends so.
#[track_caller]
fn answered(host: &VmHost, command: &[&str], status: i32) -> Outcome {
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

/// Every command looks at all loop devices, and so at what each is attached to. Its whole process is gone within the bound, with
/// all its locks, though the server lets nobody go who asked.
fn a_loop_device_on_a_silent_store_holds_nobody_up() {
    let host = VmHost::new(Engine::Fake);
    let server = FileServer::over(&host.path("far"), DISK_BYTES);
    let far = server.file.display().to_string();
    let device = LoopDevice::on(&server.file, &[]);
    let disk = |path: &str| format!("disk:avio_stor:0,0,0:file:{path}");
    let beside = host.disk("beside.img", DISK_BYTES).display().to_string();
    host.ok(&["hpvmcreate", "-P", "web", "-r", "64M", "-a", &disk(&far)]);
    host.ok(&["hpvmcreate", "-P", "beside", "-r", "64M", "-a", &disk(&beside)]);
    host.ok(&["hpvmstart", "-P", "beside"]);
    host.ok(&["hpvmdevmgmt", "-a", &format!("gdev:{beside}")]);
    let [more, third] = ["more.img", "third.img"]
        .map(|name| disk(&host.disk(name, DISK_BYTES).display().to_string()));
    host.ok(&["hpvmcreate", "-P", "third", "-r", "64M", "-a", &third]);
    let copy = |name: &str| disk(&host.path(name).display().to_string());
    let (beside, preserved) = (format!("gdev:{beside}"), "attr:PRESERVE=YES");
    server.leave_unanswered(|silence| &silence.looking);
    server.leave_unanswered(|silence| &silence.interrupts);
    together(
        &host,
        &[
            (&["hpvmcreate", "-P", "more", "-r", "64M", "-a", &more], 0),
            (&["hpvmmodify", "-P", "beside", "-l", "changed meanwhile"], 0),
            (&["hpvmmodify", "-P", "web", "-l", "changed meanwhile"], 0),
            (&["hpvmdevmgmt", "-m", &format!("{beside}:{preserved}")], 0),
            (&["hpvmhostrdev", "-u"], 0),
            (&["hpvm", "why", "web"], 0),
        ],
    );
    together(
        &host,
        &[
            (&["hpvmstatus"], 0),
            (&["hpvmstatus", "-P", "web", "-V"], 0),
            (&["hpvmdevmgmt", "-l", "all"], 0),
            (&["hpvmdevmgmt", "-m", &format!("gdev:{far}:{preserved}")], 0),
            (&["hpvmdevmgmt", "-d", &format!("{beside}:attr:PRESERVE")], 0),
            (&["hpvm", "doctor"], 0),
        ],
    );
    together(
        &host,
        &[
            (&["hpvmdevmgmt", "-d", &format!("gdev:{far}")], 1),
            (&["hpvmclone", "-P", "web", "-N", "one", "-b", &copy("one.img")], 1),
            (&["hpvmclone", "-P", "more", "-N", "two", "-b", &copy("two.img")], 0),
            (&["hpvmclone", "-P", "third", "-N", "three", "-b", &disk(&far)], 1),
            (&["hpvmcreate", "-P", "new", "-r", "64M", "-a", &disk(&far)], 1),
            (&["hpvmhostrdev"], 0),
        ],
    );
    together(
        &host,
        &[
            (&["hpvmstart", "-P", "more"], 0),
            (&["hpvm", "gvsdmgr", "get_info", "-P", "beside"], 0),
            (&["hpvm", "gvsdmgr", "get_info", "-P", "web"], 0),
        ],
    );
    // What it is attached to cannot be compared with anything.
    let given = answered(&host, &["hpvmcreate", "-P", "new", "-a", &device.disk()], 1);
    assert!(given.stderr.contains("does not answer, so nobody knows"), "{given}");
}

/// The same of several commands at once, since most of their time is the wait for what is silent.
#[track_caller]
fn together(host: &VmHost, commands: &[(&[&str], i32)]) {
    std::thread::scope(|scope| {
        for (command, status) in commands {
            scope.spawn(move || answered(host, command, *status));
        }
    });
}

/// From the look at it to its opening no time passes, and yet it may hang just then, or for those alone who would write. The
/// command is gone within the bound, with all its locks, though the server lets nobody go who asked.
fn a_store_that_falls_silent_while_it_is_opened_ends_the_command() {
    let host = VmHost::new(Engine::Fake);
    let server = FileServer::over(&host.path("far"), DISK_BYTES);
    let disk = format!("disk:avio_stor:0,0,0:file:{}", server.file.display());
    host.ok(&["hpvmcreate", "-P", "web", "-r", "64M", "-a", &disk]);
    host.ok(&["hpvmcreate", "-P", "beside", "-r", "64M"]);
    host.ok(&["hpvmstart", "-P", "beside"]);
    server.leave_unanswered(|silence| &silence.opening);
    server.leave_unanswered(|silence| &silence.interrupts);
    let told = format!(
        "cannot open '{}': its file system has not answered for 2 s",
        server.file.display()
    );
    for command in [&["hpvmstart", "-P", "web"][..], &["hpvmmodify", "-P", "beside", "-a", &disk]] {
        let refused = answered(&host, command, 1);
        assert!(refused.stderr.contains(&told), "{refused}");
    }
    let extend = ["hpvmdevmgmt", "-S", "16M", &server.file.display().to_string()];
    let refused = answered(&host, &extend, 1);
    assert!(refused.stderr.contains("has not answered for 2 s"), "{refused}");
    assert_eq!(host.state("web"), "Off");
    host.ok(&["hpvmmodify", "-P", "web", "-d", &disk]);
    host.ok(&["hpvmstart", "-P", "web"]);
}

/// A store under a linked clone's disk, and the image in a drive, which was put in while the guest ran.
fn what_backs_a_drive_or_lies_under_a_disk_is_watched_too() {
    const DRIVE: &str = "dvd:avio_stor:0,1,0";
    let mut host = VmHost::new(Engine::Fake);
    host.engine_behaves("requests=busy");
    let server = FileServer::over(&host.path("far"), DISK_BYTES);
    let far = server.file.display().to_string();
    let disk = format!("disk:avio_stor:0,0,0:file:{far}");
    host.ok(&["hpvmcreate", "-P", "base", "-r", "64M", "-a", &disk]);
    host.ok(&["hpvmclone", "-P", "base", "-N", "linked", "--linked"]);
    let empty = format!("{DRIVE}:null:{}", host.path("discs").display());
    fs::create_dir(host.path("discs")).expect("a folder");
    host.ok(&["hpvmcreate", "-P", "reader", "-r", "64M", "-a", &empty]);
    for guest in ["linked", "reader"] {
        host.ok(&["hpvmstart", "-P", guest]);
        host.wait_for_state(guest, "On (OS)", BOUND);
    }
    let image = format!("{DRIVE}:file:{far}");
    host.ok(&["hpvmmodify", "-P", "reader", "-m", &image]);

    server.leave_unanswered(|silence| &silence.reading);
    for (guest, device) in [("linked", "disk at 0,0,0"), ("reader", "dvd at 0,1,0")] {
        host.wait_for_state(guest, "On (ATTN)", BOUND);
        let told = format!("'{far}', which backs the {device}, does not answer");
        let shown = host.ok(&["hpvmstatus", "-P", guest]);
        assert!(shown.contains(&told), "{shown}");
    }
    for command in [
        &["hpvm", "gvsdmgr", "get_info", "-P", "linked"][..],
        &["hpvm", "why", "linked"],
        &["hpvm", "doctor"],
        &["hpvmhostrdev"],
    ] {
        answered(&host, command, 0);
    }
    to_be_given(&host, &far);
    let shared = format!("gdev:{far}:attr:SHARE=YES");
    answered(&host, &["hpvmdevmgmt", "-m", &shared], 1);
    let copy = format!("disk:avio_stor:0,0,0:file:{}", host.path("copy.img").display());
    let clone = answered(&host, &["hpvmclone", "-P", "base", "-N", "copy", "-b", &copy], 1);
    assert!(clone.stderr.contains("has not answered for 2 s"), "{clone}");
    // What is in the drive no more is of no interest any more.
    let eject = ["hpvmmodify", "-P", "reader", "-m", &empty];
    let left = answered(&host, &eject, 1);
    assert!(left.stderr.contains(&format!("'{far}', which backs the dvd at 0,1,0")), "{left}");
    server.answer_again();
    host.wait_for_state("reader", "On (OS)", BOUND);
    host.ok(&eject);
    server.leave_unanswered(|silence| &silence.reading);
    host.wait_for_state("linked", "On (ATTN)", BOUND);
    assert_eq!(host.state("reader"), "On (OS)");
}

/// Of many disks each is watched, those that the guest starts with and those that one command adds while it runs; by the next
/// supervisors too.
fn the_last_of_many_disks_is_watched() {
    let mut host = VmHost::new(Engine::Fake);
    host.engine_behaves("requests=busy");
    let disks = |bus: u32, count: u32, last: &FileServer| {
        let statement = |n: u32| {
            let file = if n + 1 == count {
                last.file.clone()
            } else {
                host.disk(&format!("{bus}-{n}"), 4096)
            };
            [
                "-a".to_owned(),
                format!("disk:avio_stor:{bus},{},{}:file:{}", n / 100, n % 100, file.display()),
            ]
        };
        (0..count).flat_map(statement).collect::<Vec<String>>()
    };
    let servers = ["far", "farther"].map(|name| FileServer::over(&host.path(name), DISK_BYTES));
    let line = |command: &[&str], disks: &[String]| {
        let disks: Vec<&str> = disks.iter().map(String::as_str).collect();
        host.ok(&[command, &disks].concat());
    };
    line(&["hpvmcreate", "-P", "web", "-r", "64M"], &disks(0, 250, &servers[0]));
    host.ok(&["hpvmstart", "-P", "web"]);
    host.wait_for_state("web", "On (OS)", BOUND);
    line(&["hpvmmodify", "-P", "web"], &disks(1, 150, &servers[1]));
    for (name, adoptions) in [("hpvmapp", 1), ("hpvmkeeper", 2), ("hpvmapp", 3)] {
        process(&host, name).expect("it lives").kill();
        let is_followed = || host.snapshot(1).is_some_and(|s| s.adoptions == adoptions);
        wait_until(BOUND, "the next worker is there", is_followed);
        host.wait_for_state("web", "On (OS)", BOUND);
    }
    assert!(!guest_log(&host).contains("is not watched"), "{}", guest_log(&host));
    for (server, device) in servers.iter().zip(["0,2,49", "1,1,49"]) {
        server.leave_unanswered(|silence| &silence.reading);
        let told = format!(
            "'{}', which backs the disk at {device}, does not answer",
            server.file.display()
        );
        wait_until(BOUND, "it is shown", || host.ok(&["hpvmstatus", "-P", "web"]).contains(&told));
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

/// QEMU has it open from when it is told, and looks at it with all the others.
fn a_store_that_waits_for_a_reset_is_watched_too() {
    let mut host = VmHost::new(Engine::Fake);
    host.engine_behaves("boot=os:1000");
    let server = FileServer::over(&host.path("far"), DISK_BYTES);
    let far = format!("disk:scsi:0,0,1:file:{}", server.file.display());
    let near = |name: &str| host.disk(name, 4096).display().to_string();
    let disks = ["0,0,0", "0,0,1"].map(|at| format!("disk:scsi:{at}:file:{}", near(at)));
    let other = format!("disk:avio_stor:0,1,0:file:{}", near("other"));
    host.ok(&["hpvmcreate", "-P", "web", "-r", "64M", "-a", &disks[0], "-a", &disks[1]]);
    host.ok(&["hpvmstart", "-P", "web"]);
    host.wait_for_state("web", "On (OS)", BOUND);
    host.ok(&["hpvmmodify", "-P", "web", "-m", &far]);
    let has_come = || guest_log(&host).contains(&format!("adding {far}, is done"));
    let resets = || {
        let mut rescue = Client::connect(&host.run_dir(1).join("rescue")).expect("QEMU answers");
        let before = guest_log(&host).matches("the guest restarts").count();
        rescue.execute(&SystemReset {}).expect("it is reset");
        let restarts = || guest_log(&host).matches("the guest restarts").count() > before;
        wait_until(BOUND, "the guest to restart", restarts);
    };

    server.leave_unanswered(|silence| &silence.reading);
    resets();
    host.wait_for_state("web", "On (ATTN)", BOUND);
    let told = format!("'{}', which backs the disk at 0,0,1", server.file.display());
    let refused = ended(&host, &["hpvmmodify", "-P", "web", "-a", &other], PATIENCE_WITHIN);
    assert!(refused.stderr.contains(&told), "{refused}");
    assert!(!has_come(), "{}", guest_log(&host));

    server.answer_again();
    host.wait_for_state("web", "On (OS)", BOUND);
    resets();
    wait_until(BOUND, "it comes", has_come);
    host.ok(&["hpvmmodify", "-P", "web", "-a", &other]);
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
