//! Disks and DVDs of a running guest: they come, change and go, the guest sees it, and nothing that was written is lost.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use hpvm_testkit::guest::{BOOT_BOUND, Console};
use hpvm_testkit::vm_host::{Engine, VmHost};
use hpvm_testkit::wait::wait_until;

use crate::pool::{Leased, image};
use crate::{Test, exchange};

pub(crate) const TESTS: &[Test] = crate::tests![
    a_disk_comes_is_written_and_goes,
    one_disk_of_several_leaves_when_it_is_quiet,
    one_disk_of_several_leaves_by_force,
    a_medium_stays_until_it_is_changed,
    a_scsi_adapter_comes_with_its_disk_and_goes,
    a_guest_boots_from_the_second_adapter_and_gets_both_while_it_runs,
    status_names_a_disk_as_firmware_and_guest_do,
    a_list_counts_what_the_running_guest_has,
    ; long:
    disks_are_to_the_guest_what_they_were_said_to_be,
];

/// Until a guest has seen what came or went.
pub(crate) const SEEN_BOUND: Duration = Duration::from_secs(30);

/// A guest is to stand still for 20 ms at most; four times that, at best of some rounds, with room for a busy machine.
const HELD_MS_MAX: u32 = 4 * 20;
const HELD_ROUNDS: usize = 3;

/// Adds a device statement to the pool's guest.
#[track_caller]
fn add(host: &VmHost, statement: &str) {
    host.ok(&["hpvmmodify", "-P", "pool", "-a", statement]);
}

/// Takes away what was used a moment ago, and has been written out.
#[track_caller]
fn delete(host: &VmHost, statement: &str) {
    host.ok(&["hpvmmodify", "-P", "pool", "-F", "-d", statement]);
}

fn statement(place: &str, file: &Path) -> String {
    format!("{place}:file:{}", file.display())
}

/// Waits until the guest has a block device.
#[track_caller]
pub(crate) fn wait_for(console: &mut Console, disk: &str) {
    let there = format!("until [ -b /dev/{disk} ]; do usleep 20000; done");
    console.run_within(&there, SEEN_BOUND);
}

#[track_caller]
pub(crate) fn wait_gone(console: &mut Console, disk: &str) {
    let there = format!("while [ -e /sys/class/block/{disk} ]; do usleep 20000; done");
    console.run_within(&there, SEEN_BOUND);
}

/// The text at the beginning of a disk's file.
fn text_of(file: &Path) -> String {
    let bytes = fs::read(file).expect("the disk's file");
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).trim().to_owned()
}

fn a_disk_comes_is_written_and_goes() {
    let mut guest = Leased::take();
    let file = guest.host().disk("added.img", 8 << 20);
    let disk = statement("disk:avio_stor:0,5,0", &file);
    for round in ["once", "again"] {
        add(guest.host(), &disk);
        let console = guest.console();
        wait_for(console, "sdb");
        assert_eq!(console.run("cat /sys/class/block/sdb/size"), "16384");
        let path = console.run("readlink -f /sys/class/block/sdb");
        // Device 5 of bus 0 is port 5, whatever came and went before.
        assert!(path.starts_with("/sys/devices/pci0000:00/0000:00:08.5/"), "{path}");
        console.run(&format!("echo written {round} | dd of=/dev/sdb conv=sync,fsync"));
        console.run("echo 3 >/proc/sys/vm/drop_caches");
        assert_eq!(console.run("head -n 1 /dev/sdb"), format!("written {round}"));

        delete(guest.host(), &disk);
        wait_gone(guest.console(), "sdb");
        assert_eq!(text_of(&file), format!("written {round}"));
        // The guest lets its adapter go a moment after the disk.
        wait_until(SEEN_BOUND, "the disk is gone from the machine", || {
            !guest.host().ok(&["hpvmstatus", "-P", "pool"]).contains("added.img")
        });
        wait_until(SEEN_BOUND, "QEMU has let its file go", || !holds(guest.host(), &file));
    }
}

/// Whether QEMU of guest 1 has a file open.
pub(crate) fn holds(host: &VmHost, file: &Path) -> bool {
    let qemu = host.snapshot(1).expect("it runs").qemu.pid;
    let descriptors = fs::read_dir(format!("/proc/{qemu}/fd")).expect("descriptors").flatten();
    let mut targets = descriptors.filter_map(|link| fs::read_link(link.path()).ok());
    targets.any(|target| target == file)
}

/// Two disks on one adapter of the pool's guest, `sdb` and `sdc`; the second one has just been written.
fn two_disks(guest: &mut Leased) -> [(String, std::path::PathBuf); 2] {
    let disks = [0, 1].map(|target| {
        let file = guest.host().disk(&format!("several-{target}.img"), 8 << 20);
        (statement(&format!("disk:avio_stor:0,5,{target}"), &file), file)
    });
    let (first, second) = (&disks[0].0, &disks[1].0);
    guest.host().ok(&["hpvmmodify", "-P", "pool", "-a", first, "-a", second]);
    wait_for(guest.console(), "sdb");
    wait_for(guest.console(), "sdc");
    guest.console().run("echo written just now | dd of=/dev/sdc conv=sync,fsync");
    disks
}

/// A disk that was used a moment ago waits, is shown so, and works on; when it was quiet for ten seconds it leaves.
/// Settles 81.
fn one_disk_of_several_leaves_when_it_is_quiet() {
    let mut guest = Leased::take();
    let disks = two_disks(&mut guest);
    let since = Instant::now();
    let outcome = guest.host().run(&["hpvmmodify", "-P", "pool", "-d", &disks[1].0]);
    assert!(outcome.status.success(), "{outcome}");
    assert!(outcome.stderr.contains("waits for the guest's next reset"), "{outcome}");
    let shown = guest.host().ok(&["hpvmstatus", "-P", "pool"]);
    let (_, waiting) = shown.split_once("[Waiting for Next ").expect("a section of it");
    assert!(waiting.starts_with("Reset or Start]") && waiting.contains("several-1.img"), "{shown}");
    assert_eq!(guest.console().run("head -n 1 /dev/sdc"), "written just now");

    // What has nothing to do with it leaves it alone, however quiet it is; asked for again, it is looked at again.
    wait_until(Duration::from_secs(40), "the disk was quiet", || {
        since.elapsed() > Duration::from_secs(11)
    });
    guest.host().ok(&["hpvmmodify", "-P", "pool", "-l", "another label"]);
    assert_eq!(guest.console().run("ls -d /sys/class/block/sdc"), "/sys/class/block/sdc");
    let again = ["hpvmmodify", "-P", "pool", "-d", &disks[1].0];
    wait_until(Duration::from_secs(40), "the disk has left", || {
        guest.host().ok(&again);
        let shown = guest.host().ok(&["hpvmstatus", "-P", "pool"]);
        !shown.contains("[Waiting for Next ")
    });
    assert!(since.elapsed() >= Duration::from_secs(10), "it was quiet for ten seconds");
    wait_gone(guest.console(), "sdc");
    assert_eq!(text_of(&disks[1].1), "written just now");
    assert_eq!(guest.console().run("ls -d /sys/class/block/sdb"), "/sys/class/block/sdb");
    guest.host().ok(&["hpvmmodify", "-P", "pool", "-l", ""]);
    delete(guest.host(), &disks[0].0);
    wait_gone(guest.console(), "sdb");
}

fn one_disk_of_several_leaves_by_force() {
    let mut guest = Leased::take();
    let disks = two_disks(&mut guest);
    guest.host().ok(&["hpvmmodify", "-P", "pool", "-F", "-d", &disks[1].0]);
    wait_gone(guest.console(), "sdc");
    assert_eq!(text_of(&disks[1].1), "written just now");
    delete(guest.host(), &disks[0].0);
    wait_gone(guest.console(), "sdb");
}

/// What was put into a drive is there until something else is, also over a reboot of the guest, and no change of a medium
/// stops it. Settles 43, 48, 146.
fn a_medium_stays_until_it_is_changed() {
    const DRIVE: &str = "dvd:avio_stor:0,4,0";
    let mut guest = Leased::take();
    let discs = ["first", "second"].map(|name| {
        let file = guest.host().path(&format!("{name}.iso"));
        fs::write(&file, format!("the {name} disc\n{}", "\0".repeat(128 * 1024))).expect("an ISO");
        file
    });
    let change = |guest: &Leased, backing: &str| {
        let statement = format!("{DRIVE}:{backing}");
        guest.host().ok(&["hpvmmodify", "-P", "pool", "-m", &statement]);
    };
    let file = |disc: &Path| format!("file:{}", disc.display());
    let is_on = guest.host().snapshot(1).expect("it runs").qemu;

    add(guest.host(), &statement(DRIVE, &discs[0]));
    wait_for(guest.console(), "sr0");
    assert_eq!(guest.console().run("head -n 1 /dev/sr0"), "the first disc");
    change(&guest, &file(&discs[1]));
    assert_eq!(guest.console().run("head -n 1 /dev/sr0"), "the second disc");

    guest.console().type_in("reboot -f\n");
    guest.host().wait_for_state("pool", "On (EFI)", SEEN_BOUND);
    guest.console().wait_for_shell();
    assert_eq!(guest.console().run("head -n 1 /dev/sr0"), "the second disc");

    change(&guest, "null:/var/empty");
    let empty = guest.console().run("head -n 1 /dev/sr0 2>&1");
    assert!(empty.contains("No medium"), "{empty}");
    let shown = guest.host().ok(&["hpvmstatus", "-P", "pool", "-d"]);
    assert!(shown.contains(&format!("{DRIVE}:null")), "{shown}");
    change(&guest, &file(&discs[0]));
    assert_eq!(guest.console().run("head -n 1 /dev/sr0"), "the first disc");

    delete(guest.host(), DRIVE);
    wait_gone(guest.console(), "sr0");
    assert_eq!(guest.host().snapshot(1).expect("it runs").qemu, is_on);
}

fn a_scsi_adapter_comes_with_its_disk_and_goes() {
    let host = VmHost::new(Engine::Real);
    let boot = host.copy_of(&image("test-full"), "boot.img");
    let boot = statement("disk:avio_stor:0,0,0", &boot);
    host.ok(&["hpvmcreate", "-P", "vio", "-O", "linux", "-r", "576M", "-a", &boot]);
    host.ok(&["hpvmstart", "-P", "vio"]);
    let mut console = Console::attach(&host.run_dir(1));
    console.expect("HPVM GUEST READY", BOOT_BOUND);
    console.run_within("true", BOOT_BOUND);

    held_for_a_moment(&host, &mut console);
    let files = [0, 1].map(|target| host.disk(&format!("scsi-{target}.img"), 8 << 20));
    let disks = [0, 1].map(|target| statement(&format!("disk:scsi:0,5,{target}"), &files[target]));
    host.ok(&["hpvmmodify", "-P", "vio", "-a", &disks[0]]);
    wait_for(&mut console, "sdb");
    let path = console.run("readlink -f /sys/class/block/sdb");
    assert!(path.starts_with("/sys/devices/pci0000:00/0000:00:08.5/"), "{path}");
    console.run("echo written over scsi | dd of=/dev/sdb conv=sync,fsync");
    assert_eq!(text_of(&files[0]), "written over scsi");

    // A target that comes later would not be seen before the guest is reset; it waits for that, and says so.
    let outcome = host.run(&["hpvmmodify", "-P", "vio", "-a", &disks[1]]);
    assert!(outcome.status.success(), "{outcome}");
    let told = "0,5,1: waits for the guest's next reset: a running guest never sees a new target";
    assert!(outcome.stderr.contains(told), "{outcome}");
    let shown = host.ok(&["hpvmstatus", "-P", "vio"]);
    assert!(shown.contains("waits for the guest's next reset since 20"), "{shown}");
    host.ok(&["hpvmmodify", "-P", "vio", "-d", &disks[1]]);
    let shown = host.ok(&["hpvmstatus", "-P", "vio"]);
    assert!(!shown.contains("[Waiting for Next ") && !holds(&host, &files[1]), "{shown}");

    // When the adapter leaves with what it has, it comes with another one.
    host.ok(&["hpvmmodify", "-P", "vio", "-a", &disks[1]]);
    host.ok(&["hpvmmodify", "-P", "vio", "-F", "-d", &disks[0]]);
    wait_until(SEEN_BOUND, "the adapter has left and come", || !holds(&host, &files[0]));
    let disk = disk_behind(&mut console, "disk:scsi:0,5,1");
    console.run(&format!("echo written later | dd of=/dev/{disk} conv=sync,fsync"));
    assert_eq!(
        [&files[0], &files[1]].map(|file| text_of(file)),
        ["written over scsi", "written later"]
    );
    host.ok(&["hpvmmodify", "-P", "vio", "-F", "-d", &disks[1]]);
    wait_gone(&mut console, &disk);
}

/// While an emulated adapter comes with its disk the guest stands still, and its log says for how long.
fn held_for_a_moment(host: &VmHost, console: &mut Console) {
    let disk = statement("disk:scsi:0,6,0", &host.disk("held.img", 8 << 20));
    for _ in 0..HELD_ROUNDS {
        host.ok(&["hpvmmodify", "-P", "vio", "-a", &disk]);
        wait_for(console, "sdb");
        host.ok(&["hpvmmodify", "-P", "vio", "-F", "-d", &disk]);
        wait_gone(console, "sdb");
        wait_until(SEEN_BOUND, "its place is free", || {
            !host.ok(&["hpvmstatus", "-P", "vio"]).contains("held.img")
        });
    }
    let events = host.ok(&["hpvmstatus", "-P", "vio", "-e"]);
    let told = events.split("the guest stood still for ").skip(1);
    let held: Vec<u32> = told
        .map(|rest| rest.split(' ').next().and_then(|ms| ms.parse().ok()).expect("milliseconds"))
        .collect();
    println!("held for {held:?} ms");
    assert_eq!(held.len(), HELD_ROUNDS, "{events}");
    assert!(held.iter().any(|ms| *ms <= HELD_MS_MAX), "{held:?}");
}

/// Emulated targets from 8 on sit on a second adapter, which firmware and guest find behind the first.
fn a_guest_boots_from_the_second_adapter_and_gets_both_while_it_runs() {
    let host = VmHost::new(Engine::Real);
    let boot = host.copy_of(&image("test-full"), "boot.img");
    let boot = statement("disk:scsi:0,2,9", &boot);
    host.ok(&["hpvmcreate", "-P", "vio", "-O", "linux", "-r", "576M", "-a", &boot]);
    host.ok(&["hpvmstart", "-P", "vio"]);
    let mut console = Console::attach(&host.run_dir(1));
    console.wait_for_shell();
    let place = |console: &mut Console, disk: &str| {
        console
            .run(&format!("readlink -f /sys/class/block/{disk} | cut -d / -f 5,6,8 | tr ':' ' '"))
    };
    let path = place(&mut console, "sda");
    assert!(path.starts_with("0000 00 08.2/") && path.contains("00.1/"), "{path}");
    let shown = host.ok(&["hpvmstatus", "-P", "vio", "-V"]);
    for name in ["00:08.2/00.1", "PciRoot(0x0)/Pci(0x8,0x2)/Pci(0x0,0x1)/Scsi(0x1,0x0)"] {
        assert!(shown.contains(name), "{shown}");
    }

    let targets = [0, 7, 8, 14];
    let files = targets.map(|target| host.disk(&format!("scsi-{target}.img"), 8 << 20));
    let disks: Vec<String> = (targets.iter().zip(&files))
        .map(|(target, file)| statement(&format!("disk:scsi:0,5,{target}"), file))
        .collect();
    let line = |option: &'static str| {
        let words = disks.iter().flat_map(move |disk| [option, disk]);
        ["hpvmmodify", "-P", "vio", "-F"].into_iter().chain(words).collect::<Vec<_>>()
    };
    for round in ["once", "again"] {
        host.ok(&line("-a"));
        for disk in ["sdb", "sdc", "sdd", "sde"] {
            wait_for(&mut console, disk);
            console.run(&format!("echo {round} on {disk} | dd of=/dev/{disk} conv=sync,fsync"));
        }
        let mut written: Vec<String> = files.iter().map(|file| text_of(file)).collect();
        written.sort_unstable();
        assert_eq!(written, ["sdb", "sdc", "sdd", "sde"].map(|disk| format!("{round} on {disk}")));
        host.ok(&line("-d"));
        for disk in ["sdb", "sdc", "sdd", "sde"] {
            wait_gone(&mut console, disk);
        }
        wait_until(SEEN_BOUND, "QEMU has let the files go", || {
            files.iter().all(|file| !holds(&host, file))
        });
    }
}

/// A guest whose disks are all empty: its firmware tries each, and names it. Settles 133, 138.
fn status_names_a_disk_as_firmware_and_guest_do() {
    let host = VmHost::new(Engine::Real);
    let addresses =
        ["avio_stor:0,0,0", "avio_stor:0,0,17", "scsi:0,1,3", "avio_stor:2,7,1", "scsi:0,1,12"];
    let disks: Vec<String> = (0..)
        .zip(addresses)
        .map(|(number, place)| {
            let file = host.disk(&format!("empty-{number}.img"), 8 << 20);
            statement(&format!("disk:{place}"), &file)
        })
        .collect();
    host.create("empty", "512M", &disks);
    host.ok(&["hpvmstart", "-P", "empty"]);
    let shown = host.ok(&["hpvmstatus", "-P", "empty", "-V"]);
    let values = |key: &str| {
        let lines = shown.lines().filter(|line| line.starts_with(key));
        let values: Vec<String> =
            lines.filter_map(|line| Some(line.split_once(':')?.1.to_owned())).collect();
        values
    };
    let paths = values("EFI path");
    assert_eq!(paths.len(), disks.len(), "{shown}");
    assert_eq!(values("Guest PCI path")[2..], ["00:08.1/00.0", "00:08.1/00.1", "00:0a.7/00.0"]);
    let uuid = &values("Virtual Machine UUID")[0];
    let log = host.path("var/opt/hpvm/uuids").join(uuid.trim()).join("console.log");
    for path in paths {
        let told = format!("from {path}: Not Found");
        wait_until(BOOT_BOUND, &told, || {
            String::from_utf8_lossy(&fs::read(&log).unwrap_or_default()).contains(&told)
        });
    }
}

/// A list and `-M` count the same: what runs as it runs, and what waits for the next start from then on.
fn a_list_counts_what_the_running_guest_has() {
    let host = VmHost::new(Engine::Fake);
    let disks = [0, 1, 2].map(|number| host.disk(&format!("{number}.img"), 1 << 20));
    let [first, waiting] =
        [0, 1].map(|n| statement(&format!("disk:scsi:0,1,{n}"), &disks[usize::from(n != 0)]));
    let coming = statement("disk:avio_stor:0,2,0", &disks[2]);
    // vCPUs and storage devices.
    let counted = || {
        let list = host.ok(&["hpvmstatus"]);
        let line = list.lines().find(|line| line.starts_with("web ")).expect("its line");
        let columns: Vec<&str> = line[44..].split_whitespace().collect();
        let machine = host.ok(&["hpvmstatus", "-M"]);
        let fields: Vec<&str> = machine.trim_end().split(':').collect();
        let vcpus = fields[19].split(';').next().expect("a count");
        assert_eq!(columns[..2], [vcpus, fields[15]], "{list}{machine}");
        (vcpus.to_owned(), fields[15].to_owned())
    };
    let is = |vcpus: &str, devices: &str| (vcpus.to_owned(), devices.to_owned());
    host.ok(&["hpvmcreate", "-P", "web", "-r", "64M", "-a", &first]);
    host.ok(&["hpvmstart", "-P", "web"]);
    host.wait_for_state("web", "On (OS)", SEEN_BOUND);
    host.ok(&["hpvmmodify", "-P", "web", "-c", "2", "-a", &waiting]);
    assert_eq!(counted(), is("1", "1"));
    host.ok(&["hpvmmodify", "-P", "web", "-a", &coming]);
    assert_eq!(counted(), is("1", "2"));
    host.ok(&["hpvmstop", "-P", "web", "-F"]);
    assert_eq!(counted(), is("2", "3"));
}

/// Disks on both adapters of a real guest: what may not be written is not, what the guest discards takes no room any more,
/// and each that comes while the guest runs has the same name at its next boot and its next start. What is exchanged is
/// another disk at once, or at the reset. Settles 15.
fn disks_are_to_the_guest_what_they_were_said_to_be() {
    let host = VmHost::new(Engine::Real);
    let boot = statement("disk:avio_stor:0,0,0", &host.copy_of(&image("test-full"), "boot.img"));
    let kept = ["disk:avio_stor:0,1,0", "disk:scsi:0,2,0"].map(|place| {
        let file = host.disk(&format!("kept-{}.img", &place[5..9]), 4 << 20);
        let entry = format!("gdev:{}:attr:READONLY=YES", file.display());
        (place, file, entry)
    });
    let written = ["disk:avio_stor:0,5,0", "disk:scsi:0,6,0"]
        .map(|place| (place, host.disk(&format!("written-{}.img", &place[5..9]), 8 << 20)));
    host.create("vio", "576M", &[&boot]);
    for (place, file, entry) in &kept {
        host.ok(&["hpvmmodify", "-P", "vio", "-a", &statement(place, file)]);
        host.ok(&["hpvmdevmgmt", "-m", entry]);
    }
    let drive = statement("dvd:scsi:0,7,0", &disc(&host, "first"));
    host.ok(&["hpvmmodify", "-P", "vio", "-a", &drive]);
    host.ok(&["hpvmstart", "-P", "vio"]);
    let mut console = Console::attach(&host.run_dir(1));
    console.wait_for_shell();

    let shown = host.ok(&["hpvmstatus", "-P", "vio", "-V"]);
    assert_eq!(shown.matches("read-only").count(), kept.len(), "{shown}");
    for (place, file, _) in &kept {
        let disk = disk_behind(&mut console, place);
        assert_eq!(console.run(&format!("cat /sys/class/block/{disk}/ro")), "1");
        let write = format!("echo changed | dd of=/dev/{disk} conv=sync,fsync 2>&1; true");
        console.run(&write);
        assert!(fs::read(file).expect("it").iter().all(|byte| *byte == 0), "it was written to");
    }
    let mut names = Vec::new();
    for (place, file) in &written {
        host.ok(&["hpvmmodify", "-P", "vio", "-a", &statement(place, file)]);
        let disk = disk_behind(&mut console, place);
        console.run(&format!("dd if=/dev/urandom of=/dev/{disk} bs=1M count=8 conv=fsync 2>&-"));
        let before = room_of(file);
        assert!(before >= 8 << 20, "{before}");
        println!("{}", console.run(&format!("blkdiscard /dev/{disk} 2>&1; sync; true")));
        wait_until(SEEN_BOUND, "the room is given back", || room_of(file) < before / 2);
        let name = name_of(&mut console, &disk);
        assert!(name.starts_with("naa."), "{name}");
        names.push((*place, name));
    }
    exchange::while_it_runs(&host, &mut console);
    exchange::until_the_reset(&host, &mut console);
    console.type_in("reboot -f\n");
    host.wait_for_state("vio", "On (EFI)", SEEN_BOUND);
    console.wait_for_shell();
    have_names(&mut console, &names);
    exchange::after_the_reset(&host, &mut console);
    let mut console = a_drive_on_scsi_keeps_its_medium(&host, console);
    have_names(&mut console, &names);
}

#[track_caller]
fn have_names(console: &mut Console, names: &[(&str, String)]) {
    for (place, name) in names {
        let disk = disk_behind(console, place);
        assert_eq!(name_of(console, &disk), *name, "not what it was when it came");
    }
}

/// Its medium is taken out and put in while the guest runs, and stays over a new start of the guest. Gives the console after
/// that.
fn a_drive_on_scsi_keeps_its_medium(host: &VmHost, mut console: Console) -> Console {
    let change = |backing: &str| {
        host.ok(&["hpvmmodify", "-P", "vio", "-m", &format!("dvd:scsi:0,7,0:{backing}")]);
    };
    assert_eq!(console.run("head -n 1 /dev/sr0"), "the first disc");
    change("null:/var/empty");
    let empty = console.run("head -n 1 /dev/sr0 2>&1");
    assert!(empty.contains("No medium"), "{empty}");
    change(&format!("file:{}", disc(host, "second").display()));
    assert_eq!(console.run("head -n 1 /dev/sr0"), "the second disc");
    host.ok(&["hpvmstop", "-P", "vio", "-h", "-F"]);
    host.ok(&["hpvmstart", "-P", "vio"]);
    // What was printed before has prompts too.
    let mut console = Console::attach_from_now(&host.run_dir(1));
    console.wait_for_shell();
    assert_eq!(console.run("head -n 1 /dev/sr0"), "the second disc");
    console
}

fn disc(host: &VmHost, name: &str) -> std::path::PathBuf {
    let file = host.path(&format!("{name}.iso"));
    fs::write(&file, format!("the {name} disc\n{}", "\0".repeat(128 * 1024))).expect("an ISO");
    file
}

/// The disk that the guest has behind the adapter of this place, on bus 0, once it is there.
fn disk_behind(console: &mut Console, place: &str) -> String {
    let device = place.split(',').nth(1).expect("a device number");
    let find = format!(
        "for d in /sys/class/block/sd?; do readlink -f $d | grep 0000:00:08.{device}/; done | sed 's:.*/::'"
    );
    let there = format!("until [ \"$({find})\" ]; do usleep 20000; done");
    console.run_within(&there, SEEN_BOUND);
    console.run(&find)
}

/// The room that a file takes, in bytes.
fn room_of(file: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    fs::metadata(file).expect("the disk's file").blocks() * 512
}

fn name_of(console: &mut Console, disk: &str) -> String {
    console.run(&format!("cat /sys/class/block/{disk}/device/wwid"))
}
