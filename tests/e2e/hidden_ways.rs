//! The ways to what is restricted that a path does not show: a link, a folder or a file that is mounted once more, what another
//! process has, another name of a file. Those through loop devices and mounts are in the modules below.

pub(crate) mod loop_devices;
pub(crate) mod mounts;

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use hpvm_testkit::vm_host::{Engine, Outcome, VmHost};

use crate::Test;
use crate::loop_device::LoopDevice;
use crate::refusals::{State, refused, refused_by};
use crate::shell::typed;
use crate::statements::{disk_at, disk_on, entry};

pub(crate) const TESTS: &[Test] = crate::tests![
    the_hosts_own_files_are_the_hosts_wherever_they_lie,
    what_is_mounted_once_more_is_restricted_as_before,
    what_another_process_leads_to_is_restricted_or_refused,
    another_name_of_a_file_is_warned_of,
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
    symlink(links.join("cwd/disk.img"), &link).expect("a link");
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
