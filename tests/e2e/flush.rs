//! What a guest flushed is on the disk. Below the guest's stores a server of the test's own keeps a log of all that reached it,
//! in order, with the flushes; the power is cut, what came after the last flush is dropped, and everything that the guest
//! had been told was kept must be there.

use std::fs::{self, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use hpvm_testkit::guest::Console;
use hpvm_testkit::vm_host::{Engine, Outcome, VmHost};
use hpvm_testkit::wait::wait_until;

use crate::Test;
use crate::pool::image;
use crate::served::Served;
use crate::statements::disk_at;
use crate::write_log::{Entry, WriteLog};

pub(crate) const TESTS: &[Test] = crate::tests![
    what_a_guest_flushed_survives_a_power_cut,
    what_a_guest_had_written_through_survives_a_power_cut,
];

const BOUND: Duration = Duration::from_secs(60);
const BLOCK: u64 = 4096;
/// Records of each disk that the guest must have reported before the power is cut.
const RECORDS: u64 = 10;
/// The disk whose last record the guest never flushes.
const QUIET: usize = 0;

/// A disk of the guest: how it is attached, and what its store is. The guest tells them apart by their sizes in MiB.
struct Disk {
    place: &'static str,
    format: Format,
    mib: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Format {
    Raw,
    Qcow2,
}

const DISKS: [Disk; 5] = [
    Disk { place: "disk:avio_stor:0,1,0:file", format: Format::Raw, mib: 40 },
    Disk { place: "disk:avio_stor:0,1,1:file", format: Format::Raw, mib: 41 },
    Disk { place: "disk:avio_stor:0,1,2:qcow2", format: Format::Qcow2, mib: 42 },
    Disk { place: "disk:scsi:0,2,0:file", format: Format::Raw, mib: 43 },
    Disk { place: "disk:scsi:0,2,1:qcow2", format: Format::Qcow2, mib: 44 },
];
/// Room for an image's own tables and all that is written into it.
const STORE_BYTES: u64 = 64 << 20;

/// The files of a disk: what the power cut leaves of it, and the log of how that came about.
struct Store {
    content: PathBuf,
    log: PathBuf,
    /// The content as it was before the guest had it.
    before: PathBuf,
}

impl Store {
    fn new(host: &VmHost, number: usize, disk: &Disk) -> Store {
        let content = host.path(&format!("content-{number}.img"));
        if disk.format == Format::Qcow2 {
            let size = format!("{}M", disk.mib);
            make(&["create", "-q", "-f", "qcow2"], &[&content, Path::new(&size)]);
        }
        Store::of(host, number, disk, content)
    }

    /// The same with an ext4 file system on the disk.
    fn with_files(host: &VmHost, number: usize, disk: &Disk) -> Store {
        let flat = host.disk(&format!("content-{number}.img"), disk.mib << 20);
        let at_once = ["-q", "-E", "lazy_itable_init=0,lazy_journal_init=0"];
        let made = Command::new("mkfs.ext4").args(at_once).arg(&flat).status();
        assert!(made.expect("mkfs.ext4 runs").success());
        let content = match disk.format {
            Format::Raw => flat,
            Format::Qcow2 => {
                let image = host.path(&format!("image-{number}.img"));
                make(&["convert", "-f", "raw", "-O", "qcow2"], &[&flat, &image]);
                image
            }
        };
        Store::of(host, number, disk, content)
    }

    /// Made before the server opens it.
    fn of(host: &VmHost, number: usize, disk: &Disk, content: PathBuf) -> Store {
        let file = OpenOptions::new().create(true).append(true).open(&content).expect("a store");
        file.set_len(disk.bytes()).expect("its length");
        let before = host.copy_of(&content, &format!("before-{number}.img"));
        Store { content, log: host.disk(&format!("log-{number}"), 0), before }
    }

    /// The nodes of the server: `logged-NUMBER` is over both files.
    fn nodes(&self, number: usize) -> Vec<String> {
        let (content, log) = (self.content.display(), self.log.display());
        vec![
            format!("driver=file,node-name=content-{number},filename={content}"),
            format!("driver=file,node-name=log-{number},filename={log}"),
            format!(
                "driver=blklogwrites,node-name=logged-{number},file=content-{number},log=log-{number}"
            ),
        ]
    }

    /// The store as a disk that forgets on a power cut what it was not told to keep, as the guest sees it.
    fn kept(&self, host: &VmHost, number: usize, disk: &Disk) -> PathBuf {
        replay(&self.log, &self.before);
        if disk.format == Format::Raw {
            return self.before.clone();
        }
        let flat = host.path(&format!("flat-{number}.img"));
        make(&["convert", "-f", "qcow2", "-O", "raw"], &[&self.before, &flat]);
        flat
    }
}

impl Disk {
    /// Of its store.
    fn bytes(&self) -> u64 {
        if self.format == Format::Raw { self.mib << 20 } else { STORE_BYTES }
    }
}

fn make(words: &[&str], files: &[&Path]) {
    let mut command = Command::new("qemu-img");
    command.args(words).args(files);
    let outcome = Outcome::of("qemu-img", command, b"");
    assert!(outcome.status.success(), "{outcome}");
}

fn what_a_guest_flushed_survives_a_power_cut() {
    let host = VmHost::new(Engine::Real);
    let stores = DISKS.iter().enumerate().map(|(n, disk)| Store::new(&host, n, disk)).collect();
    let (stores, mut served) = serve(&host, stores);
    let mut console = boot(&host, &served.paths);
    let disks = DISKS.each_ref().map(|disk| name_of(&mut console, disk));

    let quiet = &disks[QUIET];
    let told = console.run(&format!("{}; {}", write(quiet, 1, "conv=sync,fsync"), "echo $?"));
    assert_eq!(told, "0");
    // The guest writes out what it has when nobody has the disk open any more; that is no flush.
    let told = console.run(&format!("{}; {}", write(quiet, 2, "conv=sync"), "echo $?"));
    assert_eq!(told, "0");
    for disk in &disks[QUIET + 1..] {
        let record = write(disk, "$n", "conv=sync,fsync");
        console.run(&format!(
            "(n=1; while {record} && echo kept {disk} $n.; do n=$((n+1)); done) & true"
        ));
    }
    wait_until(BOUND, "the guest reports records of each disk", || {
        let log = fs::read_to_string(console_log(&host)).expect("the console's log");
        disks[QUIET + 1..].iter().all(|disk| last_reported(&log, disk) >= RECORDS)
    });
    served.cut();
    host.ok(&["hpvmstop", "-P", "web", "-h", "-F"]);

    let log = fs::read_to_string(console_log(&host)).expect("the console's log");
    for (number, store) in stores.iter().enumerate().skip(QUIET + 1) {
        let kept = fs::read(store.kept(&host, number, &DISKS[number])).expect("the store");
        let last = last_reported(&log, &disks[number]);
        assert!(last >= RECORDS, "{last} records of {}", DISKS[number].place);
        let lost: Vec<u64> = (1..=last).filter(|n| !has(&kept, &disks[number], *n)).collect();
        assert!(lost.is_empty(), "{}: {lost:?} of {last} are lost", DISKS[number].place);
    }
    let written = fs::read(&stores[QUIET].content).expect("the store");
    let kept = fs::read(stores[QUIET].kept(&host, QUIET, &DISKS[QUIET])).expect("the store");
    assert!(has(&written, quiet, 2), "the second record had reached the store");
    assert!(has(&kept, quiet, 1) && !has(&kept, quiet, 2), "only the first was flushed");
}

/// A journal's last block is written by a command that asks for it to be kept (force unit access), where the disk takes such a
/// command, and nothing is flushed after it. Each file that the guest was told is kept must be there when the journal is replayed.
fn what_a_guest_had_written_through_survives_a_power_cut() {
    let host = VmHost::new(Engine::Real);
    let stores =
        DISKS.iter().enumerate().map(|(n, disk)| Store::with_files(&host, n, disk)).collect();
    let (stores, mut served) = serve(&host, stores);
    let mut console = boot(&host, &served.paths);
    let disks = DISKS.each_ref().map(|disk| name_of(&mut console, disk));
    let through: Vec<usize> = (0..DISKS.len())
        .filter(|n| console.run(&format!("cat /sys/block/{}/queue/fua", disks[*n])) == "1")
        .collect();
    println!("written through: {through:?}");
    let is_avio = |n: &usize| DISKS[*n].place.starts_with("disk:avio_stor");
    let avio: Vec<usize> = (0..DISKS.len()).filter(is_avio).collect();
    assert!(avio.iter().all(|n| through.contains(n)), "it is used: {through:?}");
    for n in &through {
        let name = &disks[*n];
        let mounted = format!(
            "modprobe -a crc32c_generic ext4; mkdir -p /mnt/{name}; mount -t ext4 /dev/{name} /mnt/{name}; grep -c /mnt/{name} /proc/mounts"
        );
        assert_eq!(console.run(&mounted), "1", "{}", DISKS[*n].place);
    }
    // All at once, so that the last thing that reaches each store is what keeps its last file.
    let writing = through.iter().map(|n| {
        let name = &disks[*n];
        format!(
            "(n=1; while [ $n -le {RECORDS} ] && echo record $n. | dd of=/mnt/{name}/$n conv=fsync 2>&- && echo kept {name} $n.; do n=$((n+1)); done) & "
        )
    });
    console.run(&format!("{}wait", writing.collect::<String>()));
    served.cut();
    host.ok(&["hpvmstop", "-P", "web", "-h", "-F"]);
    let log = fs::read_to_string(console_log(&host)).expect("the console's log");
    for n in through {
        assert_eq!(last_reported(&log, &disks[n]), RECORDS, "{}", DISKS[n].place);
        has_files(&stores[n].kept(&host, n, &DISKS[n]), DISKS[n].place);
    }
}

/// Each file, once the journal is replayed.
fn has_files(disk: &Path, place: &str) {
    let repaired = Command::new("e2fsck").args(["-f", "-y"]).arg(disk).output();
    let repaired = repaired.expect("e2fsck runs");
    let said = String::from_utf8_lossy(&repaired.stdout).into_owned();
    assert!(repaired.status.code().is_some_and(|code| code <= 1), "{place}: {said}");
    for n in 1..=RECORDS {
        let cat = ["-R".to_owned(), format!("cat /{n}")];
        let shown = Command::new("debugfs").args(cat).arg(disk).output();
        let content = String::from_utf8_lossy(&shown.expect("debugfs runs").stdout).into_owned();
        assert_eq!(
            content,
            format!("record {n}.\n"),
            "{place}: file {n} of {RECORDS} is lost: {said}"
        );
    }
}

/// A server of all these stores.
fn serve(host: &VmHost, stores: Vec<Store>) -> (Vec<Store>, Served) {
    let names: Vec<String> = (0..DISKS.len()).map(|number| format!("logged-{number}")).collect();
    let exports: Vec<_> = stores
        .iter()
        .enumerate()
        .map(|(number, store)| (store.nodes(number), names[number].as_str(), DISKS[number].bytes()))
        .collect();
    let served = Served::new(host, &exports);
    (stores, served)
}

fn boot(host: &VmHost, stores: &[PathBuf]) -> Console {
    let boot = host.copy_of(&image("test-full"), "boot.img");
    let boot = disk_at("0,0,0", &boot);
    let disks = DISKS.iter().zip(stores);
    let disks = disks.map(|(disk, path)| format!("{}:{}", disk.place, path.display()));
    host.create("web", "512M", &std::iter::once(boot).chain(disks).collect::<Vec<String>>());
    host.ok(&["hpvmstart", "-P", "web"]);
    let mut console = Console::attach(&host.run_dir(1));
    console.wait_for_shell();
    console
}

/// The guest's name of the disk of this size.
fn name_of(console: &mut Console, disk: &Disk) -> String {
    let sectors = disk.mib << 11;
    let told = console.run(&format!("grep -x {sectors} /sys/block/sd*/size /dev/null"));
    let name = told.strip_prefix("/sys/block/").and_then(|rest| rest.split('/').next());
    name.unwrap_or_else(|| panic!("a disk of {} MiB: {told}", disk.mib)).to_owned()
}

/// The guest's command that writes a record: a line of text at the beginning of the block of its number.
fn write(disk: &str, n: impl std::fmt::Display, how: &str) -> String {
    format!("echo record {n} of {disk}. | dd of=/dev/{disk} bs={BLOCK} seek={n} {how} 2>&-")
}

fn has(content: &[u8], disk: &str, n: u64) -> bool {
    let at = usize::try_from(n * BLOCK).expect("within memory");
    content
        .get(at..)
        .is_some_and(|rest| rest.starts_with(format!("record {n} of {disk}.").as_bytes()))
}

fn console_log(host: &VmHost) -> PathBuf {
    host.path("var/opt/hpvm/guests/web/console.log")
}

fn last_reported(log: &str, disk: &str) -> u64 {
    let begin = format!("kept {disk} ");
    let numbers = log.match_indices(&begin).filter_map(|(at, _)| {
        log[at + begin.len()..].split_once('.').and_then(|(number, _)| number.parse().ok())
    });
    numbers.max().unwrap_or_default()
}

/// Does to a store what the log tells, up to the last flush.
fn replay(log: &Path, store: &Path) {
    let log = WriteLog::read(log);
    let flushed = log.entries.iter().rposition(Entry::is_flush).expect("a guest that flushed");
    let store = OpenOptions::new().write(true).open(store).expect("the store");
    log.entries[..flushed].iter().for_each(|entry| log.replay(entry, &store));
}
