//! What the VM Host, or somebody on it, has mounted or is to mount is not given away, copied or replaced behind their back. What
//! is given away on purpose is given in fact, though the VM Host has it.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use hpvm_testkit::vm_host::{Engine, VmHost};

use super::{Apart, UP, with_mounts, with_running_guest};
use crate::Test;
use crate::loop_device::LoopDevice;
use crate::mounted::{Mounted, make_file_system};
use crate::refusals::{State, refused, refused_by};
use crate::shell::typed;

pub(crate) const TESTS: &[Test] = crate::tests![
    the_journal_of_a_file_system_elsewhere_is_the_hosts,
    what_the_host_mounts_on_demand_is_the_hosts,
    what_is_given_away_is_given_though_the_host_has_it,
    an_image_is_a_guests_while_the_host_only_reads_it,
    what_somebody_has_mounted_is_neither_copied_nor_replaced,
];

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
    let mounted = Mounted::device(data.path(), &at);
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

/// A file system that somebody has mounted, which the kernel keeps from whoever wants its device alone.
fn what_is_given_away_is_given_though_the_host_has_it() {
    let host = VmHost::new(Engine::Real);
    let file = host.disk("fs.img", 8 << 20);
    make_file_system(&file);
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
    make_file_system(&file);
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
    make_file_system(&disk);
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
    let of_host = Mounted::device(device.path(), &at);
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
