//! The media of a guest's drives: commands and virtual console change the same drive and see the same state, users of the
//! console stay within what the administrator set up, and a medium stays until somebody changes it.

use std::fs;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::time::Duration;

use hpvm_testkit::guest::Console;
use hpvm_testkit::vm_host::{Engine, VmHost};

use crate::Test;
use crate::pool::image;
use crate::statements::disk_at;

pub(crate) const TESTS: &[Test] = crate::tests![
    a_medium_is_changed_at_the_console_and_by_command,
    a_drive_in_use_is_taken_by_force_alone,
    a_console_reaches_no_other_file,
    a_drive_of_the_vm_host_is_given_back_as_hpvmmodify_does,
    a_folder_with_a_file_of_the_vm_hosts_own_gives_nothing,
    an_empty_drive_into_which_nothing_can_be_put_is_told_once,
    ; long:
    a_medium_of_the_console_stays_over_reset_and_restart,
];

const DRIVE: &str = "dvd:avio_stor:0,4,0";
const SEEN_BOUND: Duration = Duration::from_secs(30);

/// A running guest whose empty drive may be given the images of one folder.
struct Rig {
    host: VmHost,
    folder: PathBuf,
    console: Console,
}

impl Rig {
    fn new() -> Rig {
        let host = VmHost::new(Engine::Real);
        let folder = host.path("images");
        fs::create_dir(&folder).expect("a folder");
        for name in ["first", "second disc"] {
            let text = format!("the {name}\n{}", "\0".repeat(128 * 1024));
            fs::write(folder.join(format!("{name}.iso")), text).expect("an image");
        }
        let disk = host.copy_of(&image("test-cloud"), "boot.img");
        let disk = disk_at("0,0,0", &disk);
        let drive = format!("{DRIVE}:null:{}", folder.display());
        let create = ["hpvmcreate", "-P", "web", "-O", "linux", "-r", "512M", "-a", &disk, "-a"];
        host.ok(&[&create[..], &[&drive]].concat());
        host.ok(&["hpvmstart", "-P", "web"]);
        let mut console = Console::attach(&host.run_dir(1));
        console.wait_for_shell();
        Rig { host, folder, console }
    }

    fn image(&self, name: &str) -> String {
        self.folder.join(name).display().to_string()
    }

    #[track_caller]
    fn at_console(&self, command: &str) -> String {
        self.host.ok(&["hpvmconsole", "-P", "web", "-q", "-c", command])
    }

    /// The drive's statement, of the machine now and of the next start.
    #[track_caller]
    fn statements(&self) -> [String; 2] {
        let drive = |options: &[&str]| {
            let line = [&["hpvmstatus", "-P", "web"], options].concat();
            let text = self.host.ok(&line);
            let found = text.lines().find(|line| line.starts_with(DRIVE));
            found.unwrap_or_else(|| panic!("no drive: {text}")).to_owned()
        };
        [drive(&["-d"]), drive(&["-D", "-d"])]
    }

    /// What the guest reads first from its drive.
    fn disc(&mut self) -> String {
        self.console.run("head -n 1 /dev/sr0 2>&1")
    }
}

/// One image in drives of several running guests, behind either adapter, which all read it and none writes. It goes and comes
/// in one while the others read on.
pub(crate) fn an_image_is_shared(host: &VmHost, guests: [(&str, &mut Console); 2]) {
    let image = host.path("shared.iso");
    let content = format!("the shared disc\n{}", "\0".repeat(128 * 1024));
    fs::write(&image, &content).expect("an image");
    let drive = |adapter: &str, backing: &str| format!("dvd:{adapter}:0,7,0:{backing}");
    let file = format!("file:{}", image.display());
    let [(first, one), (second, other)] = guests;
    let read = "until [ -b /dev/sr0 ]; do usleep 20000; done; head -n 1 /dev/sr0";
    for (guest, adapter, console) in
        [(first, "scsi", &mut *one), (second, "avio_stor", &mut *other)]
    {
        host.ok(&["hpvmmodify", "-P", guest, "-a", &drive(adapter, &file)]);
        assert_eq!(console.run(read), "the shared disc");
    }
    one.run("echo written | dd of=/dev/sr0 conv=fsync 2>&1; true");
    host.ok(&["hpvmmodify", "-P", second, "-m", &drive("avio_stor", "null:/var/empty")]);
    assert_eq!(one.run("echo 3 >/proc/sys/vm/drop_caches; head -n 1 /dev/sr0"), "the shared disc");
    host.ok(&["hpvmmodify", "-P", second, "-m", &drive("avio_stor", &file)]);
    assert_eq!(other.run(read), "the shared disc");
    assert!(fs::read(&image).expect("the image") == content.as_bytes(), "nobody wrote");
}

/// Whoever changed it last: hpvmmodify needs no look at what the console did, nor an address where there is one drive, and
/// no change stops the guest. Settles 43, 145.
fn a_medium_is_changed_at_the_console_and_by_command() {
    let mut rig = Rig::new();
    let engine = rig.host.snapshot(1).expect("it runs").qemu;
    assert!(rig.disc().contains("No medium"));

    rig.at_console("in -filedvd first.iso");
    assert_eq!(rig.disc(), "the first");
    let first = format!("{DRIVE}:file:{}", rig.image("first.iso"));
    assert_eq!(rig.statements(), [first.clone(), first]);

    let second = format!("dvd:avio_stor::file:{}", rig.image("second disc.iso"));
    rig.host.ok(&["hpvmmodify", "-P", "web", "-m", &second]);
    assert_eq!(rig.disc(), "the second disc");
    let second = format!("{DRIVE}:file:{}", rig.image("second disc.iso"));
    assert_eq!(rig.statements(), [second.clone(), second]);

    // Chosen from a list, by its place.
    let choose = ["hpvmconsole", "-P", "web", "-c", "in"];
    let chosen = rig.host.run_with_input(&choose, b"1\n");
    assert!(chosen.status.success(), "{chosen}");
    assert!(chosen.stdout.contains("second disc.iso"), "{chosen}");
    assert_eq!(rig.disc(), "the first");

    rig.at_console("ej");
    assert!(rig.disc().contains("No medium"));
    let empty = format!("{DRIVE}:null:{}", rig.folder.display());
    assert_eq!(rig.statements(), [empty.clone(), empty]);
    assert_eq!(rig.at_console("ej"), "\n   The drive at 0,4,0 is empty already.\n\n");

    // A guest that uses its medium is asked, and neither stopped nor robbed of it.
    rig.at_console("in -filedvd first.iso");
    rig.console.run("exec 7</dev/sr0");
    let kept = rig.host.refused(&["hpvmconsole", "-P", "web", "-q", "-c", "ej"]);
    assert!(kept.contains("keeps the tray of 0,4,0 locked"), "{kept}");
    assert_eq!(rig.disc(), "the first");
    rig.console.run("exec 7<&-");
    rig.at_console("ej");
    assert_eq!(rig.host.snapshot(1).expect("it runs").qemu, engine);
}

/// One beside another device, which the engine could take without a word to the guest.
fn a_drive_in_use_is_taken_by_force_alone() {
    let mut rig = Rig::new();
    let beside = disk_at("0,4,1", &rig.host.disk("beside", 1 << 20));
    rig.host.ok(&["hpvmmodify", "-P", "web", "-a", &beside]);
    rig.at_console("in -filedvd first.iso");
    let delete = ["hpvmmodify", "-P", "web", "-d", DRIVE];
    for force in [&[][..], &["-F"]] {
        rig.console.run("exec 7</dev/sr0");
        let kept = rig.host.refused(&delete);
        assert!(kept.contains("keeps the tray of 0,4,0 locked"), "{kept}");
        assert!(kept.contains("force it with -F"), "{kept}");
        assert_eq!(rig.disc(), "the first");
        if force.is_empty() {
            rig.console.run("exec 7<&-");
        }
        rig.host.ok(&[&delete[..], force].concat());
        assert_eq!(rig.console.run("ls -d /sys/block/sr0 2>/dev/null; echo gone"), "gone");
        let back = format!("{DRIVE}:file:{}", rig.image("first.iso"));
        rig.host.ok(&["hpvmmodify", "-P", "web", "-a", &back]);
        assert_eq!(
            rig.console.run("until head -n 1 /dev/sr? 2>/dev/null; do :; done"),
            "the first"
        );
    }
}

/// Settles 48, 146.
fn a_medium_of_the_console_stays_over_reset_and_restart() {
    let mut rig = Rig::new();
    rig.at_console("in -filedvd first.iso");
    rig.console.type_in("reboot -f\n");
    rig.host.wait_for_state("web", "On (EFI)", SEEN_BOUND);
    rig.console.wait_for_shell();
    assert_eq!(rig.disc(), "the first");

    rig.host.ok(&["hpvmstop", "-P", "web", "-h", "-F"]);
    let first = format!("{DRIVE}:file:{}", rig.image("first.iso"));
    assert_eq!(rig.statements(), [first.clone(), first.clone()], "shown before it is kept");
    rig.host.ok(&["hpvmstart", "-P", "web"]);
    rig.console = Console::attach_from_now(&rig.host.run_dir(1));
    rig.console.wait_for_shell();
    assert_eq!(rig.disc(), "the first");
    let events = rig.host.ok(&["hpvmstatus", "-e"]);
    let told = format!("put '{}' into the drive at 0,4,0 at the console", rig.image("first.iso"));
    assert!(events.contains(&told), "{events}");

    // What a command says afterwards, while the guest is off, is not undone by what the console did before.
    rig.at_console("ej");
    rig.host.ok(&["hpvmstop", "-P", "web", "-h", "-F"]);
    let second = format!("{DRIVE}:file:{}", rig.image("second disc.iso"));
    rig.host.ok(&["hpvmmodify", "-P", "web", "-m", &second]);
    rig.host.ok(&["hpvmmodify", "-P", "web", "-l", "another change"]);
    assert_eq!(rig.statements(), [second.clone(), second]);
    rig.host.ok(&["hpvmstart", "-P", "web"]);
    rig.console = Console::attach_from_now(&rig.host.run_dir(1));
    rig.console.wait_for_shell();
    assert_eq!(rig.disc(), "the second disc");
}

fn a_console_reaches_no_other_file() {
    let rig = Rig::new();
    fs::write(rig.host.path("secret"), "not for guests").expect("a file");
    fs::write(rig.folder.join("anybody.iso"), "swapped by anybody").expect("a file");
    let all = Permissions::from_mode(0o666);
    fs::set_permissions(rig.folder.join("anybody.iso"), all).expect("a mode");
    symlink("../secret", rig.folder.join("out.iso")).expect("a link");
    fs::hard_link(rig.host.path("boot.img"), rig.folder.join("disk.iso")).expect("its own disk");
    let refused = |file: &str| {
        let command = format!("in -filedvd {file}");
        rig.host.refused(&["hpvmconsole", "-P", "web", "-q", "-c", &command])
    };
    let before = rig.statements();
    for file in ["../secret", "/etc/passwd", "out.iso"] {
        let said = refused(file);
        assert!(said.contains("leads out of the folder of images"), "{said}");
    }
    assert!(refused("anybody.iso").contains("may be written by everyone"));
    assert!(refused("disk.iso").contains("is a disk that a guest, or another program, writes to"));
    assert!(refused("none.iso").contains("there is no 'none.iso'"));
    let listed = rig.host.run_with_input(&["hpvmconsole", "-P", "web", "-c", "in"], b"q\n");
    assert!(listed.stdout.contains("first.iso"), "{listed}");
    for never in ["anybody", "out.iso", "disk.iso"] {
        assert!(!listed.stdout.contains(never), "{listed}");
    }
    assert_eq!(rig.statements(), before);
}

/// Of a drive that was ejected at the console the statement says null. This one has left the VM Host meanwhile.
fn a_drive_of_the_vm_host_is_given_back_as_hpvmmodify_does() {
    let host = VmHost::new(Engine::Fake);
    let drive = format!("{DRIVE}:null:/dev/drive-that-left");
    host.ok(&["hpvmcreate", "-P", "web", "-r", "64M", "-a", &drive]);
    host.ok(&["hpvmstart", "-P", "web"]);
    let at_console =
        |command: &str| host.refused(&["hpvmconsole", "-P", "web", "-q", "-c", command]);
    let given = at_console("in");
    let by_command =
        host.refused(&["hpvmmodify", "-P", "web", "-m", &drive.replace("null", "disk")]);
    let why = "the dvd's block device '/dev/drive-that-left' does not exist";
    assert!(given.contains(why) && by_command.contains(why), "{given}{by_command}");
    let refused = at_console("in -filedvd disc.iso");
    assert!(refused.contains("is the VM Host's own and takes no image"), "{refused}");
    assert!(host.ok(&["hpvmstatus", "-P", "web", "-d"]).contains(&drive));
}

/// By a hard link it is a file like any other there, whose other name users of the console cannot see.
fn a_folder_with_a_file_of_the_vm_hosts_own_gives_nothing() {
    let host = VmHost::new(Engine::Fake);
    let folder = host.path("images");
    fs::create_dir(&folder).expect("a folder");
    for name in ["first.iso", "other.iso"] {
        fs::write(folder.join(name), "\0".repeat(128 * 1024)).expect("an image");
    }
    let first = format!("{DRIVE}:file:{}", folder.join("first.iso").display());
    host.ok(&["hpvmcreate", "-P", "web", "-r", "64M", "-a", &first]);
    let own = host.path("var/opt/hpvm/guests/web/vmm_config.current");
    let own = fs::canonicalize(own).expect("its configuration");
    let link = folder.join("own.iso");
    fs::hard_link(&own, &link).expect("another name");

    let drive = format!("{DRIVE}:null:{}", folder.display());
    let said = host.refused(&["hpvmcreate", "-P", "db", "-r", "64M", "-a", &drive]);
    let told = format!("{} is {}, a file of this VM Host itself", link.display(), own.display());
    assert!(said.contains(&told) && said.lines().count() == 1, "{said}");
    host.ok(&["hpvmstart", "-P", "web"]);
    for image in ["own.iso", "other.iso"] {
        let command = format!("in -filedvd {image}");
        let said = host.refused(&["hpvmconsole", "-P", "web", "-q", "-c", &command]);
        assert!(said.contains("nothing can be chosen from the folder"), "{said}");
    }
    host.ok(&["hpvmstop", "-P", "web", "-F"]);
    host.wait_for_state("web", "Off", SEEN_BOUND);
    fs::remove_file(&link).expect("the other name goes");
    // Another name of what is no file of the VM Host's keeps nobody from it.
    fs::hard_link(folder.join("other.iso"), host.path("kept.iso")).expect("another name");
    host.ok(&["hpvmcreate", "-P", "db", "-r", "64M", "-a", &drive]);
    host.ok(&["hpvmstart", "-P", "web"]);
    let listed = |host: &VmHost| {
        host.run_with_input(&["hpvmconsole", "-P", "web", "-c", "in"], b"q\n").stdout
    };
    assert!(listed(&host).contains("other.iso"), "{}", listed(&host));

    // Nobody has looked at what came there since, by whatever way it is chosen.
    let late = folder.join("late.iso");
    fs::hard_link(&own, &late).expect("another name");
    assert!(!listed(&host).contains("late.iso"), "{}", listed(&host));
    let said = host.refused(&["hpvmconsole", "-P", "web", "-q", "-c", "in -filedvd late.iso"]);
    assert!(said.contains("has other names (hard links) and was changed since"), "{said}");
    let medium = format!("{DRIVE}:file:{}", late.display());
    let said = host.refused(&["hpvmmodify", "-P", "web", "-m", &medium]);
    assert!(said.contains("a file of this VM Host itself"), "{said}");
    host.ok(&["hpvmconsole", "-P", "web", "-q", "-c", "in -filedvd other.iso"]);
}

/// When the guest is made and when it starts, with what to do.
fn an_empty_drive_into_which_nothing_can_be_put_is_told_once() {
    let host = VmHost::new(Engine::Fake);
    let file = host.disk("file.iso", 1 << 20).display().to_string();
    let (none, shut) = (host.path("none"), host.path("shut"));
    fs::create_dir(&shut).expect("a folder");
    fs::set_permissions(&shut, Permissions::from_mode(0o700)).expect("a mode");
    let (none, shut) = (none.display().to_string(), shut.display().to_string());
    for (name, path, why, next) in [
        ("none", &none, "does not exist", format!("hpvmmodify -P none -m {DRIVE}:null:FOLDER")),
        ("file", &file, "is a file", format!("hpvmmodify -P file -m {DRIVE}:file:{file}")),
        ("shut", &shut, "cannot be read by", format!("chmod a+rx {shut}")),
    ] {
        let drive = format!("{DRIVE}:null:{path}");
        let create = ["hpvmcreate", "-P", name, "-r", "64M", "-a", &drive];
        for line in
            [&create[..], &["hpvmmodify", "-P", name, "-r", "96M"], &["hpvmstart", "-P", name]]
        {
            let said = host.run(line);
            assert!(said.status.success(), "{said}");
            let told = format!("'{path}' {why}");
            let all = format!("{}{}", said.stdout, said.stderr);
            assert_eq!(all.matches(&told).count(), 1, "{said}");
            assert!(all.contains(&next), "{said}");
        }
        host.ok(&["hpvmstop", "-P", name, "-F"]);
    }
}
