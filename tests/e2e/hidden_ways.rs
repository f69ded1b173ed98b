//! The ways to what is restricted that a path does not show: a loop device over a file, a folder or a file that is mounted
//! once more, what another process has, another name of a file. What is given away on purpose is given in fact, though the VM Host has it.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use hpvm_testkit::vm_host::{Engine, Outcome, VmHost};

use crate::Test;
use crate::loop_device::{LoopDevice, Partition};
use crate::mounted::Mounted;
use crate::refusals::{State, refused, refused_by};
use crate::shell::typed;
use crate::statements::{disk_at, disk_on, entry};

pub(crate) const TESTS: &[Test] = crate::tests![
    a_loop_device_is_restricted_as_its_file_is,
    a_loop_device_on_the_hosts_own_files_is_the_hosts,
    the_hosts_own_files_are_the_hosts_wherever_they_lie,
    a_folder_with_a_file_under_a_loop_device_is_in_use,
    a_loop_device_hides_nothing_that_the_host_uses,
    a_loop_device_hides_nothing_that_another_guest_has,
    the_journal_of_a_file_system_elsewhere_is_the_hosts,
    what_a_loop_device_shows_of_a_disk_may_be_given_away_alone,
    what_is_mounted_once_more_is_restricted_as_before,
    what_another_process_leads_to_is_restricted_or_refused,
    what_the_host_mounts_on_demand_is_the_hosts,
    another_name_of_a_file_is_warned_of,
    what_is_given_away_is_given_though_the_host_has_it,
    an_image_is_a_guests_while_the_host_only_reads_it,
    what_somebody_has_mounted_is_neither_copied_nor_replaced,
];

/// A real guest without a system comes to its firmware.
const UP: Duration = Duration::from_secs(60);

/// A folder `kept`, restricted, with a file deep in it.
fn with_kept_folder() -> (VmHost, PathBuf) {
    let host = VmHost::new(Engine::Fake);
    fs::create_dir_all(host.path("kept/deep")).expect("a folder");
    let file = host.disk("kept/deep/disk.img", 1 << 20);
    host.ok(&["hpvmdevmgmt", "-a", &entry("rdev", &host.path("kept"))]);
    (host, file)
}

/// Asserts that no command gives a store away, and what they say.
#[track_caller]
fn assert_kept(host: &VmHost, statement: &str, why: &str) {
    let before = State::of(host);
    for line in [
        &["hpvmcreate", "-P", "new", "-a", statement, "-F"][..],
        &["hpvmmodify", "-P", "runs", "-a", statement, "-F"],
    ] {
        let said = refused(host, line);
        assert!(said.contains("is restricted") && said.contains(why), "{why}: {said}");
        before.assert_unchanged(host, &line.join(" "));
    }
}

/// A guest that runs, for what is added to one.
fn with_running_guest(host: &VmHost) {
    host.ok(&["hpvmcreate", "-P", "runs", "-r", "64M"]);
    host.ok(&["hpvmstart", "-P", "runs"]);
    host.wait_for_state("runs", "On (OS)", UP);
}

fn a_loop_device_is_restricted_as_its_file_is() {
    let (host, file) = with_kept_folder();
    with_running_guest(&host);
    let device = LoopDevice::on(&file, &[]);
    let why = format!("rdev:{} restricts what lies below it", host.path("kept").display());
    assert_kept(&host, &device.disk(), &why);
    let said = refused(&host, &["hpvmdevmgmt", "-a", &format!("gdev:{}", device.path().display())]);
    assert!(said.contains("no device for guests"), "{said}");
    // By another name of the file, which the kernel remembers.
    let link = host.path("link.img");
    std::os::unix::fs::symlink(&file, &link).expect("a link");
    assert_kept(&host, &LoopDevice::on(&link, &[]).disk(), &why);
    // A loop device on a loop device.
    let upper = LoopDevice::on(device.path(), &[]);
    assert_kept(&host, &upper.disk(), &why);
    drop(upper);
    // A loop device on a file beside it is like any other.
    let beside = LoopDevice::on(&host.disk("beside.img", 1 << 20), &[]);
    host.ok(&["hpvmcreate", "-P", "new", "-a", &beside.disk()]);
    host.ok(&["hpvmremove", "-P", "new", "-F", "--purge"]);

    let allow = format!("{}:attr:ALLOW=GUEST", entry("rdev", &host.path("kept")));
    host.ok(&["hpvmdevmgmt", "-m", &allow, "--reason", "a test"]);
    host.ok(&["hpvmcreate", "-P", "new", "-r", "64M", "-a", &device.disk()]);
    host.ok(&["hpvmdevmgmt", "-d", &allow.replace("=GUEST", "")]);
    assert!(host.refused(&["hpvmstart", "-P", "new"]).contains("is restricted"));
}

fn a_loop_device_on_the_hosts_own_files_is_the_hosts() {
    let host = VmHost::new(Engine::Fake);
    with_running_guest(&host);
    let own = host.path("var/opt/hpvm");
    let database = LoopDevice::on(&own.join("hpvm.db"), &[]);
    let of_state = format!("{} is a folder of this VM Host itself", own.display());
    assert_kept(&host, &database.disk(), &of_state);
    for (device, why) in [
        (&database, &*of_state),
        (
            &LoopDevice::on(Path::new("/etc/passwd"), &["--read-only"]),
            "/etc is a folder of this VM Host itself",
        ),
    ] {
        let said =
            refused(&host, &["hpvmdevmgmt", "-a", &format!("gdev:{}", device.path().display())]);
        assert!(said.contains(why), "{said}");
    }
}

/// The state is a link to where there is more room, and the guests' folders are one to elsewhere again.
fn the_hosts_own_files_are_the_hosts_wherever_they_lie() {
    let host = VmHost::new(Engine::Fake);
    let (state, there, apart) =
        (host.path("var/opt/hpvm"), host.path("srv/there"), host.path("srv/apart"));
    for folder in [&there, &apart, &host.path("var/opt")] {
        fs::create_dir_all(folder).expect("a folder");
    }
    symlink(&there, &state).expect("a link");
    symlink(&apart, there.join("uuids")).expect("a link");
    with_running_guest(&host);
    let of_state = format!("{} is a folder of this VM Host itself", state.display());
    let folder = fs::canonicalize(state.join("guests/runs")).expect("the guest's folder");
    assert!(folder.starts_with(&apart), "{}", folder.display());
    for path in [
        there.join("hpvm.db"),
        state.join("hpvm.db"),
        folder.join("nvram"),
        state.join("guests/runs/nvram"),
        there.join("common/claims"),
    ] {
        assert_kept(&host, &disk_on(&path), &of_state);
    }
    for folder in [&host.path("srv"), &there, &apart] {
        let choosing = format!("dvd:scsi::null:{}", folder.display());
        refused(&host, &["hpvmcreate", "-P", "new", "-a", &choosing]);
    }
    fs::create_dir(there.join("ISO-images")).expect("a folder");
    let image = host.disk("srv/there/ISO-images/disk.img", 1 << 20);
    host.ok(&["hpvmcreate", "-P", "new", "-a", &disk_on(&image)]);
    host.ok(&["hpvmclone", "-P", "new", "-N", "linked", "--linked"]);
    host.ok(&["hpvmstart", "-P", "linked"]);
}

/// The refusal of a restriction lists who has a loop device on a file below the folder.
fn a_folder_with_a_file_under_a_loop_device_is_in_use() {
    let host = VmHost::new(Engine::Fake);
    fs::create_dir_all(host.path("kept/deep")).expect("a folder");
    let device = LoopDevice::on(&host.disk("kept/deep/disk.img", 1 << 20), &[]);
    host.ok(&["hpvmcreate", "-P", "web", "-a", &device.disk()]);
    for name in ["kept", "kept/deep", "kept/deep/disk.img"] {
        let said = refused(&host, &["hpvmdevmgmt", "-a", &entry("rdev", &host.path(name))]);
        assert!(
            said.contains(&format!("guest 'web' uses '{}'", device.path().display())),
            "{name}: {said}"
        );
    }
    fs::create_dir(host.path("other")).expect("a folder");
    host.ok(&["hpvmdevmgmt", "-a", &entry("rdev", &host.path("other"))]);
    host.ok(&["hpvmremove", "-P", "web", "-F", "--purge"]);
}

/// A disk with a partition, and what loop devices make of them.
fn a_loop_device_hides_nothing_that_the_host_uses() {
    let host = VmHost::new(Engine::Fake);
    with_running_guest(&host);
    let disk = LoopDevice::on(&host.disk("disk.img", 16 << 20), &[]);
    let part = Partition::of(&disk, host.path("part"));
    let once_more = LoopDevice::on(disk.path(), &[]);
    let part_once_more = Partition::of(&once_more, host.path("part-once-more"));
    let on_part = LoopDevice::on(part.path(), &[]);
    let twice = LoopDevice::on(on_part.path(), &[]);
    let elsewhere = LoopDevice::on(disk.path(), &["--offset", "1048576"]);
    let ways: Vec<String> = [
        disk.path(),
        part.path(),
        once_more.path(),
        part_once_more.path(),
        on_part.path(),
        twice.path(),
        elsewhere.path(),
    ]
    .map(|path| format!("disk:avio_stor::disk:{}", path.display()))
    .into();
    let made = Command::new("mkfs.ext4").arg("-q").arg(part.path()).status();
    assert!(made.expect("mkfs runs").success());
    let at = host.path("mounted");
    fs::create_dir(&at).expect("a folder");
    let mounted = HostMount::of(part.path(), &at);
    let before = State::of(&host);
    for way in &ways {
        for line in [
            &["hpvmcreate", "-P", "new", "-a", way, "-F"][..],
            &["hpvmmodify", "-P", "runs", "-a", way, "-F"],
        ] {
            let said = refused(&host, line);
            let why = format!("is mounted at {}", at.display());
            assert!(said.contains("is in use by this VM Host") && said.contains(&why), "{said}");
        }
    }
    before.assert_unchanged(&host, "commands that were refused");
    drop(mounted);
    for way in &ways {
        host.ok(&["hpvmcreate", "-P", "new", "-r", "64M", "-a", way]);
        host.ok(&["hpvmremove", "-P", "new", "-F", "--purge"]);
    }
}

fn a_loop_device_hides_nothing_that_another_guest_has() {
    let host = VmHost::new(Engine::Fake);
    let disk = LoopDevice::on(&host.disk("disk.img", 16 << 20), &[]);
    let part = Partition::of(&disk, host.path("part"));
    let once_more = LoopDevice::on(disk.path(), &[]);
    let part_once_more = Partition::of(&once_more, host.path("part-once-more"));
    let twice = LoopDevice::on(once_more.path(), &[]);
    let ways = [part.path(), once_more.path(), part_once_more.path(), twice.path()];
    for (number, way) in ways.iter().enumerate() {
        let statement = format!("disk:avio_stor::disk:{}", way.display());
        host.ok(&["hpvmcreate", "-P", &format!("g{number}"), "-r", "64M", "-a", &statement]);
    }
    for first in 0..ways.len() {
        let owner = format!("g{first}");
        host.ok(&["hpvmstart", "-P", &owner]);
        for other in (0..ways.len()).filter(|other| *other != first) {
            let said = host.refused(&["hpvmstart", "-P", &format!("g{other}")]);
            assert!(said.contains(&format!("in use by the running guest '{owner}'")), "{said}");
        }
        host.ok(&["hpvmstop", "-P", &owner, "-F"]);
        host.wait_for_state(&owner, "Off", UP);
    }
}

/// No mount names it, nor anything that lies on it.
fn the_journal_of_a_file_system_elsewhere_is_the_hosts() {
    let host = VmHost::new(Engine::Fake);
    with_running_guest(&host);
    let [journal, data] =
        ["journal.img", "data.img"].map(|name| LoopDevice::on(&host.disk(name, 16 << 20), &[]));
    let make = |program: &str, words: &[&str], device: &LoopDevice| {
        let made = Command::new(program).arg("-q").args(words).arg(device.path()).status();
        assert!(made.expect("it runs").success(), "{program} {words:?}");
    };
    make("mke2fs", &["-O", "journal_dev"], &journal);
    make("mkfs.ext4", &["-J", &format!("device={}", journal.path().display())], &data);
    let at = host.path("mounted");
    fs::create_dir(&at).expect("a folder");
    let mounted = HostMount::of(data.path(), &at);
    let why = "it is the journal of a mounted file system";
    let before = State::of(&host);
    for line in [
        &["hpvmcreate", "-P", "new", "-a", &journal.disk(), "-F"][..],
        &["hpvmmodify", "-P", "runs", "-a", &journal.disk(), "-F"],
    ] {
        let said = refused(&host, line);
        assert!(said.contains("is in use by this VM Host") && said.contains(why), "{said}");
    }
    before.assert_unchanged(&host, "commands that were refused");
    let listed = host.ok(&["hpvm", "hostrdev", "--dry-run", "--update"]);
    let entry = format!("+ rdev:{}: {why}", journal.path().display());
    assert!(listed.contains(&entry), "{listed}");
    drop(mounted);
    host.ok(&["hpvmcreate", "-P", "new", "-r", "64M", "-a", &journal.disk()]);
}

/// The administrator gives away some bytes of a disk, by a loop device on them, and not the disk.
fn what_a_loop_device_shows_of_a_disk_may_be_given_away_alone() {
    let host = VmHost::new(Engine::Fake);
    with_running_guest(&host);
    let disk = LoopDevice::on(&host.disk("disk.img", 4 << 20), &[]);
    let options = ["--offset", "1048576", "--sizelimit", "1048576"];
    let some = LoopDevice::on(disk.path(), &options);
    let beside = LoopDevice::on(disk.path(), &[]);
    for device in [&disk, &some] {
        host.ok(&["hpvmdevmgmt", "-a", &entry("rdev", device.path())]);
    }
    let allow = format!("{}:attr:ALLOW=GUEST", entry("rdev", some.path()));
    host.ok(&["hpvmdevmgmt", "-m", &allow, "--reason", "a test"]);
    for kept in [&disk, &beside] {
        assert_kept(&host, &kept.disk(), &disk.path().display().to_string());
    }
    host.ok(&["hpvmcreate", "-P", "new", "-r", "64M", "-a", &some.disk()]);
    host.ok(&["hpvmremove", "-P", "new", "-F", "--purge"]);
    // What nobody said of the disk, nobody said of the rest of it.
    host.ok(&["hpvmdevmgmt", "-d", &entry("rdev", disk.path())]);
    host.ok(&["hpvmdevmgmt", "-d", &format!("{}:attr:ALLOW", entry("rdev", some.path()))]);
    for way in [&disk, &some, &beside] {
        assert_kept(&host, &way.disk(), &some.path().display().to_string());
    }
}

/// A mount that the VM Host's first process sees.
struct HostMount(PathBuf);

impl HostMount {
    fn of(device: &Path, at: &Path) -> HostMount {
        let done = Command::new("mount").args([device, at]).status();
        assert!(done.expect("mount runs").success());
        HostMount(at.to_owned())
    }
}

impl Drop for HostMount {
    fn drop(&mut self) {
        let done = Command::new("umount").arg(&self.0).status();
        assert!(done.is_ok_and(|status| status.success()) || std::thread::panicking());
    }
}

/// A command line as a shell runs it that has mounts of its own.
fn with_mounts(host: &VmHost, mounts: &str, line: &str) -> Outcome {
    typed(host, &format!("unshare --mount sh -c '{mounts} && exec {line}'"))
}

fn what_is_mounted_once_more_is_restricted_as_before() {
    let (host, file) = with_kept_folder();
    host.ok(&["hpvmcreate", "-P", "web"]);
    fs::create_dir_all(host.path("seen/too")).expect("a folder");
    let _ = host.disk("seen/file.img", 1 << 20);
    let root = host.root().display();
    let seen = host.path("seen").display().to_string();
    let why = format!("rdev:{root}/kept restricts what lies below it");
    let bind = |from: &str, to: &str| format!("mount --bind {from} {seen}/{to}");
    let deep = host.path("kept/deep").display().to_string();
    let etc = "/etc is a folder of this VM Host itself".to_owned();
    for (mounts, path, why) in [
        (bind(&format!("{root}/kept"), "too"), "too/deep/disk.img", &why),
        (bind(&deep, "too"), "too/disk.img", &why),
        (bind(&file.display().to_string(), "file.img"), "file.img", &why),
        (
            format!(
                "{} && {}",
                bind(&deep, "too"),
                bind(&format!("{seen}/too/disk.img"), "file.img")
            ),
            "file.img",
            &why,
        ),
        (bind("/etc/passwd", "file.img"), "file.img", &etc),
        (bind("/etc/ssl", "too"), "too/openssl.cnf", &etc),
    ] {
        let before = State::of(&host);
        for command in ["hpvmcreate -P new", "hpvmmodify -P web"] {
            let line = format!("{command} -F -a disk:avio_stor::file:{seen}/{path}");
            let said = refused_by(|| with_mounts(&host, &mounts, &line));
            assert!(said.contains("is restricted") && said.contains(why), "{mounts}: {said}");
            before.assert_unchanged(&host, &line);
        }
    }
    // What is not there yet will lie where its folder lies.
    let line = format!("hpvmdevmgmt -S 1M {seen}/too/new.img");
    let said = refused_by(|| with_mounts(&host, &bind(&deep, "too"), &line));
    assert!(said.contains(&why), "{said}");
    // Nor is a folder one to choose from where it is another name of one that holds something restricted.
    let line = format!("hpvmcreate -P new -a dvd:scsi::null:{seen}/too");
    let said = refused_by(|| with_mounts(&host, &bind(&root.to_string(), "too"), &line));
    assert!(said.contains("is a folder to choose images from, and rdev:"), "{said}");
    // Other mounts give what lies there.
    let beside = format!("mount -t tmpfs tmpfs {seen}/too && truncate -s 1M {seen}/too/disk.img");
    let line = format!("hpvmcreate -P new -a disk:avio_stor::file:{seen}/too/disk.img");
    let made = with_mounts(&host, &beside, &line);
    assert!(made.status.success(), "{made}");
}

/// The text of a link in /proc says where its process is, not where we are.
fn what_another_process_leads_to_is_restricted_or_refused() {
    let (host, file) = with_kept_folder();
    with_running_guest(&host);
    fs::create_dir(host.path("seen")).expect("a folder");
    // What the text leads to here is another file, which guests may have.
    let decoy = host.disk("seen/disk.img", 1 << 20);
    let (deep, seen) = (host.path("kept/deep"), host.path("seen"));
    let process = Apart::after(&format!(
        "mount --bind {} {} && cd {1} && exec 3<disk.img",
        deep.display(),
        seen.display()
    ));
    let links = PathBuf::from(format!("/proc/{}", process.0.id()));
    let by_root = links.join("root").join(decoy.strip_prefix("/").expect("below /"));
    let link = host.path("link.img");
    std::os::unix::fs::symlink(links.join("cwd/disk.img"), &link).expect("a link");
    let why = "leads where only another process, or an open descriptor, leads";
    for path in [&by_root, &links.join("cwd/disk.img"), &links.join("fd/3"), &link] {
        assert_kept(&host, &disk_on(path), why);
        let said = refused(&host, &["hpvmdevmgmt", "-a", &entry("gdev", path)]);
        assert!(said.contains(why), "{said}");
    }
    let node = format!("disk:avio_stor::disk:/proc/{}/root/dev/null", process.0.id());
    assert!(refused(&host, &["hpvmcreate", "-P", "new", "-a", &node]).contains("storage type"));
    let folder = format!("dvd:scsi::null:{}", links.join("cwd").display());
    assert_kept(&host, &folder, why);
    let made = links.join("cwd/new.img").display().to_string();
    assert!(refused(&host, &["hpvmdevmgmt", "-S", "1M", &made]).contains(why));
    let copy = format!("disk:avio_stor:0,0,0:file:{made}");
    let own = disk_at("0,0,0", &decoy);
    host.ok(&["hpvmcreate", "-P", "source", "-r", "64M", "-a", &own]);
    let said = refused(&host, &["hpvmclone", "-P", "source", "-N", "new", "-b", &copy]);
    assert!(said.contains(why), "{said}");
    assert_eq!(fs::read_dir(&deep).expect("a folder").count(), 1, "nothing was made there");

    // A process that is where we are leads where its links' texts say.
    let below = format!("rdev:{} restricts what lies below it", host.path("kept").display());
    let own_root = format!("/proc/self/root{}", file.display());
    assert_kept(&host, &format!("disk:avio_stor::file:{own_root}"), &below);
    let open = |path: &Path, then: &str| {
        let line = "hpvmcreate -P new -F -a disk:avio_stor::file:/proc/self/fd/3";
        typed(&host, &format!("exec 3<>{}; {then} exec {line}", path.display()))
    };
    assert!(refused_by(|| open(&file, "")).contains(&below));
    let gone = host.disk("gone.img", 1 << 20);
    assert!(refused_by(|| open(&gone, &format!("rm {};", gone.display()))).contains(why));
    let single = format!("/proc/self/root{}", host.disk("single.img", 1 << 20).display());
    host.ok(&["hpvmcreate", "-P", "new", "-a", &format!("disk:avio_stor::file:{single}")]);
}

/// Nobody mounts it now, and whoever does would find what a guest wrote.
fn what_the_host_mounts_on_demand_is_the_hosts() {
    let host = VmHost::new(Engine::Fake);
    host.ok(&["hpvmcreate", "-P", "web"]);
    let device = LoopDevice::on(&host.disk("backup.img", 1 << 20), &[]);
    let swap = host.disk("swap file", 1 << 20);
    let free = host.disk("free.img", 1 << 20);
    let root = host.root().display();
    fs::write(
        host.path("fstab"),
        format!(
            "# LABEL=x {root}\n{} /backup ext4 noauto 0 0\n{root}/swap\\040file none swap sw 0 0\n",
            device.path().display()
        ),
    )
    .expect("a table");
    let mounts = format!("mount --bind {root}/fstab /etc/fstab");
    let swap = format!("\"disk:avio_stor::file:{}\"", swap.display());
    let backup = "it is to be mounted at /backup, says /etc/fstab";
    for (statement, why) in
        [(&device.disk(), backup), (&swap, "it is to be swap space, says /etc/fstab")]
    {
        for command in ["hpvmcreate -P new", "hpvmmodify -P web"] {
            let line = format!("{command} -F -a {statement}");
            let said = refused_by(|| with_mounts(&host, &mounts, &line));
            assert!(said.contains("is in use by this VM Host") && said.contains(why), "{said}");
        }
    }
    let listed = with_mounts(&host, &mounts, "hpvm hostrdev --dry-run --update");
    assert!(
        listed.stdout.contains(&format!("+ rdev:{}: {backup}", device.path().display())),
        "{listed}"
    );
    let line = format!("hpvmcreate -P new -a disk:avio_stor::file:{}", free.display());
    let made = with_mounts(&host, &mounts, &line);
    assert!(made.status.success(), "{made}");
}

/// Which names a file has only the whole file system tells; the command for that is part of the warning.
fn another_name_of_a_file_is_warned_of() {
    let (host, file) = with_kept_folder();
    let hard = host.path("hard.img");
    fs::hard_link(&file, &hard).expect("a hard link");
    let device = LoopDevice::on(&hard, &[]);
    let of_file = |kind| format!("{kind}:avio_stor::file:{}", hard.display());
    for statement in [of_file("disk"), of_file("dvd"), device.disk()] {
        let made = host.run(&["hpvmcreate", "-P", "new", "-r", "64M", "-a", &statement]);
        assert!(made.status.success(), "{made}");
        let warned = made.stderr.lines().find(|line| line.contains("WARNING")).expect("a warning");
        assert!(warned.contains("a file with 2 names (hard links)"), "{made}");
        // With the other folders, /usr among them, it takes long.
        let command = warned.split('`').nth(1).expect("a command");
        let kept = host.path("kept").display().to_string();
        let (folders, file_of_guest) = command.split_once(" -xdev ").expect("what is looked for");
        assert!(folders.split(' ').any(|folder| folder == kept), "{command}");
        let find = format!("find {kept} -xdev {file_of_guest}");
        let found = typed(&host, &find);
        assert!(found.stdout.contains(&file.display().to_string()), "{find}: {found}");
        // Who changes something else is not told again; who starts the guest is.
        let labelled = host.run(&["hpvmmodify", "-P", "new", "-l", "x"]);
        assert!(labelled.status.success() && labelled.stderr.is_empty(), "{labelled}");
        let judged = host.run(&["hpvmstart", "-P", "new", "-s"]);
        assert!(judged.to_string().contains("a file with 2 names (hard links)"), "{judged}");
        host.ok(&["hpvmremove", "-P", "new", "-F", "--purge"]);
    }
    let single = host.disk("single.img", 1 << 20);
    let statement = disk_on(&single);
    let made = host.run(&["hpvmcreate", "-P", "new", "-a", &statement]);
    assert!(made.status.success() && made.stderr.is_empty(), "{made}");
}

/// A process with mounts of its own, until its standard input ends.
struct Apart(Child);

impl Apart {
    fn with_mounted(device: &Path, at: &Path) -> Apart {
        Apart::after(&format!("mount {} {}", device.display(), at.display()))
    }

    /// When these shell commands have ended, whose folder and descriptors it keeps.
    fn after(commands: &str) -> Apart {
        let mut process = Command::new("unshare")
            .args(["--mount", "sh", "-c", &format!("{commands} && echo mounted && exec cat")])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("unshare runs");
        let mut said = String::new();
        let stdout = process.stdout.take().expect("its output");
        BufReader::new(stdout).read_line(&mut said).expect("a word");
        assert_eq!(said, "mounted\n");
        Apart(process)
    }
}

impl Drop for Apart {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

/// A file system that somebody has mounted, which the kernel keeps from whoever wants its device alone.
fn what_is_given_away_is_given_though_the_host_has_it() {
    let host = VmHost::new(Engine::Real);
    let file = host.disk("fs.img", 8 << 20);
    let made = Command::new("mkfs.ext4").arg("-q").arg(&file).status().expect("mkfs runs");
    assert!(made.success());
    let device = LoopDevice::on(&file, &[]);
    let at = host.path("mounted");
    fs::create_dir(&at).expect("a folder");
    let mounted = Apart::with_mounted(device.path(), &at);
    let create = |name| host.run(&["hpvmcreate", "-P", name, "-r", "64M", "-a", &device.disk()]);
    let start = |name| host.run(&["hpvmstart", "-P", name]);
    assert!(create("web").status.success());
    let kept = start("web");
    assert!(!kept.status.success() && kept.stderr.contains("is in use"), "{kept}");
    host.ok(&["hpvmremove", "-P", "web", "-F", "--purge"]);

    let entry = format!("rdev:{}", device.path().display());
    let allow = format!("{entry}:attr:ALLOW=GUEST");
    host.ok(&["hpvmdevmgmt", "-a", &entry]);
    host.ok(&["hpvmdevmgmt", "-m", &allow, "--reason", "a test"]);
    // Of the mounts that the VM Host's first process has, create tells.
    let own_host = format!(
        "unshare --mount --pid --fork --mount-proc sh -c 'mount {} {} && hpvmcreate -P web -r 64M -a {}'",
        device.path().display(),
        at.display(),
        device.disk()
    );
    let told = typed(&host, &own_host);
    assert!(
        told.status.success() && told.stderr.contains("given to the guest all the same"),
        "{told}"
    );
    let lifted = start("web");
    assert!(lifted.status.success(), "{lifted}");
    host.wait_for_state("web", "On (EFI)", UP);
    let record = fs::read_to_string(host.path("var/opt/hpvm/guests/web/boot.record"));
    assert!(record.expect("a boot record").contains(r#""sharing":"with_host""#));
    // Not for two guests.
    assert!(create("other").status.success());
    let taken = start("other");
    assert!(taken.stderr.contains("in use by the running guest 'web'"), "{taken}");
    host.ok(&["hpvmstop", "-P", "web", "-F"]);
    host.ok(&["hpvmremove", "-P", "other", "-F", "--purge"]);

    // A running guest is given it as a start does.
    host.ok(&["hpvmcreate", "-P", "runs", "-r", "64M"]);
    host.ok(&["hpvmstart", "-P", "runs"]);
    host.ok(&["hpvmmodify", "-P", "runs", "-a", &device.disk()]);
    host.ok(&["hpvmstop", "-P", "runs", "-F"]);

    drop(mounted);
    // Nobody has it now, so the guest has it alone.
    host.ok(&["hpvmstart", "-P", "web"]);
    let mount = format!("unshare --mount mount {} {}", device.path().display(), at.display());
    assert!(!typed(&host, &mount).status.success(), "what a guest has is not mounted");
    host.ok(&["hpvmstop", "-P", "web", "-F"]);
    host.ok(&["hpvmdevmgmt", "-d", &format!("{entry}:attr:ALLOW")]);
    assert!(host.refused(&["hpvmstart", "-P", "web"]).contains("is restricted"));
}

/// What is mounted to be written is no image for a guest to read, nor is it extended.
fn an_image_is_a_guests_while_the_host_only_reads_it() {
    let host = VmHost::new(Engine::Fake);
    with_running_guest(&host);
    let (file, at) = (host.disk("image.iso", 1 << 20), host.path("mounted"));
    fs::create_dir(&at).expect("a folder");
    let made = Command::new("mkfs.ext4").arg("-q").arg(&file).status();
    assert!(made.expect("mkfs runs").success());
    let device = LoopDevice::on(&file, &[]);
    let dvd = format!("dvd:avio_stor::file:{}", file.display());
    let create = ["hpvmcreate", "-P", "reads", "-r", "64M", "-a", &dvd];
    let add = ["hpvmmodify", "-P", "runs", "-a", &dvd];

    let mounted = Mounted::by(&[&device.path().to_string_lossy()], &at);
    let before = State::of(&host);
    let refusals = [&create[..], &add].map(|line| refused(&host, line));
    let shown = file.display().to_string();
    let grown = refused(&host, &["hpvmdevmgmt", "-S", "2M", &shown]);
    drop(mounted);
    let why = format!("which is mounted at {}", at.display());
    for said in refusals {
        assert!(said.contains("is not given to a guest") && said.contains(&why), "{said}");
    }
    assert!(grown.contains("stays as it is") && grown.contains(&why), "{grown}");
    before.assert_unchanged(&host, "commands that were refused");

    let mounted = Mounted::by(&["-o", "ro", &device.path().to_string_lossy()], &at);
    let read = [&create[..], &add].map(|line| host.run(line));
    drop(mounted);
    for told in read {
        assert!(told.status.success() && told.stderr.is_empty(), "{told}");
    }
}

/// A copy of it would be of many moments, and who replaced it would take what the mount shows with its last user. The mount is the
/// VM Host's, or one that only the kernel knows of.
fn what_somebody_has_mounted_is_neither_copied_nor_replaced() {
    let host = VmHost::new(Engine::Fake);
    let (disk, other) = (host.disk("disk.img", 8 << 20), host.disk("other.img", 8 << 20));
    let at = host.path("mounted");
    fs::create_dir(&at).expect("a folder");
    let made = Command::new("mkfs.ext4").arg("-q").arg(&disk).status();
    assert!(made.expect("mkfs runs").success());
    let device = LoopDevice::on(&disk, &[]);
    let place =
        |storage: &str, path: &Path| format!("disk:avio_stor:0,0,0:{storage}:{}", path.display());
    for (name, storage, path) in
        [("file", "file", &*disk), ("loop", "disk", device.path()), ("other", "file", &other)]
    {
        host.ok(&["hpvmcreate", "-P", name, "-r", "64M", "-a", &place(storage, path)]);
    }
    let copy = place("file", &host.path("copy.img"));
    let copies = [
        vec!["hpvmclone", "-P", "file", "-N", "new", "-b", &copy],
        vec!["hpvmclone", "-P", "loop", "-N", "new", "-b", &copy],
        vec!["hpvmclone", "-P", "file", "-N", "new", "--linked"],
    ];
    let onto = place("file", &disk);
    let replaces = ["hpvmclone", "-P", "other", "-N", "new", "-F", "-b", &onto];
    let refused_while_mounted = |why: &str| {
        let before = State::of(&host);
        for line in &copies {
            let said = refused(&host, line);
            assert!(said.contains(why), "{line:?}: {said}");
        }
        before.assert_unchanged(&host, "commands that were refused");
    };
    let of_host = HostMount::of(device.path(), &at);
    refused_while_mounted(&format!("is mounted at {}", at.display()));
    drop(of_host);
    let apart = Apart::with_mounted(device.path(), &at);
    refused_while_mounted("is in use");
    for name in ["file", "loop"] {
        host.ok(&["hpvmremove", "-P", name, "-F", "--purge"]);
    }
    let before = State::of(&host);
    let said = refused(&host, &replaces);
    assert!(said.contains("is in use"), "{said}");
    before.assert_unchanged(&host, "a command that was refused");
    drop(apart);
    let held = fs::metadata(&disk).expect("the disk");

    host.ok(&["hpvmcreate", "-P", "file", "-r", "64M", "-a", &onto]);
    let read_only = Mounted::by(&["-o", "ro", &device.path().to_string_lossy()], &at);
    host.ok(&copies[0]);
    drop(read_only);
    assert_eq!(fs::read(host.path("copy.img")).expect("the copy"), fs::read(&disk).expect("it"));
    host.ok(&["hpvmremove", "-P", "file", "-F", "--purge"]);
    host.ok(&["hpvmremove", "-P", "new", "-F", "--purge"]);
    host.ok(&replaces);
    assert_ne!(held.ino(), fs::metadata(&disk).expect("the copy").ino(), "replaced");
}
