//! The ways to what is restricted that a path does not show: a loop device over a file, a folder or a file that is mounted
//! once more, another name of a file. What is given away on purpose is given in fact, though the VM Host has it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use hpvm_testkit::vm_host::{Engine, Outcome, VmHost};

use crate::Test;
use crate::refusals::{State, refused, refused_by};
use crate::shell::typed;

pub(crate) const TESTS: &[Test] = crate::tests![
    a_loop_device_is_restricted_as_its_file_is,
    a_loop_device_on_the_hosts_own_files_is_the_hosts,
    a_folder_with_a_file_under_a_loop_device_is_in_use,
    what_is_mounted_once_more_is_restricted_as_before,
    another_name_of_a_file_is_warned_of,
];

/// A loop device on a file, detached in the end.
struct LoopDevice(String);

impl LoopDevice {
    fn on(file: &Path, options: &[&str]) -> LoopDevice {
        let attach = ["--find", "--show"].iter().chain(options);
        let made = Command::new("losetup").args(attach).arg(file).output().expect("losetup runs");
        assert!(made.status.success(), "{made:?}");
        LoopDevice(String::from_utf8(made.stdout).expect("a name").trim().to_owned())
    }

    fn disk(&self) -> String {
        format!("disk:avio_stor::disk:{}", self.0)
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let detached = Command::new("losetup").args(["--detach", &self.0]).status();
        assert!(detached.is_ok_and(|status| status.success()) || std::thread::panicking());
    }
}

fn entry(kind: &str, path: &Path) -> String {
    format!("{kind}:{}", path.display())
}

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
}

fn a_loop_device_is_restricted_as_its_file_is() {
    let (host, file) = with_kept_folder();
    with_running_guest(&host);
    let device = LoopDevice::on(&file, &[]);
    let why = format!("rdev:{} restricts what lies below it", host.path("kept").display());
    assert_kept(&host, &device.disk(), &why);
    let said = refused(&host, &["hpvmdevmgmt", "-a", &format!("gdev:{}", device.0)]);
    assert!(said.contains("no device for guests"), "{said}");
    // By another name of the file, which the kernel remembers.
    let link = host.path("link.img");
    std::os::unix::fs::symlink(&file, &link).expect("a link");
    assert_kept(&host, &LoopDevice::on(&link, &[]).disk(), &why);
    // A loop device on a loop device.
    let upper = LoopDevice::on(Path::new(&device.0), &[]);
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
        let said = refused(&host, &["hpvmdevmgmt", "-a", &format!("gdev:{}", device.0)]);
        assert!(said.contains(why), "{said}");
    }
}

/// The refusal of a restriction lists who has a loop device on a file below the folder.
fn a_folder_with_a_file_under_a_loop_device_is_in_use() {
    let host = VmHost::new(Engine::Fake);
    fs::create_dir_all(host.path("kept/deep")).expect("a folder");
    let device = LoopDevice::on(&host.disk("kept/deep/disk.img", 1 << 20), &[]);
    host.ok(&["hpvmcreate", "-P", "web", "-a", &device.disk()]);
    for name in ["kept", "kept/deep", "kept/deep/disk.img"] {
        let said = refused(&host, &["hpvmdevmgmt", "-a", &entry("rdev", &host.path(name))]);
        assert!(said.contains(&format!("guest 'web' uses '{}'", device.0)), "{name}: {said}");
    }
    fs::create_dir(host.path("other")).expect("a folder");
    host.ok(&["hpvmdevmgmt", "-a", &entry("rdev", &host.path("other"))]);
    host.ok(&["hpvmremove", "-P", "web", "-F", "--purge"]);
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

/// Which names a file has only the whole file system tells; the command for that is part of the warning.
fn another_name_of_a_file_is_warned_of() {
    let (host, file) = with_kept_folder();
    let hard = host.path("hard.img");
    fs::hard_link(&file, &hard).expect("a hard link");
    let device = LoopDevice::on(&hard, &[]);
    for statement in [format!("disk:avio_stor::file:{}", hard.display()), device.disk()] {
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
        host.ok(&["hpvmremove", "-P", "new", "-F", "--purge"]);
    }
    let single = host.disk("single.img", 1 << 20);
    let statement = format!("disk:avio_stor::file:{}", single.display());
    let made = host.run(&["hpvmcreate", "-P", "new", "-a", &statement]);
    assert!(made.status.success() && made.stderr.is_empty(), "{made}");
}
