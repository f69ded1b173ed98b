//! What is restricted no guest gets, by whatever name, unless a reason is given; and what guests have is not restricted.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;

use hpvm_registry::{Access, Registry};
use hpvm_testkit::vm_host::{Engine, Outcome, VmHost};

use crate::Test;
use crate::clone::{on, with_web};
use crate::refusals::{State, refused};
use crate::statements::{disk_on, entry};

pub(crate) const TESTS: &[Test] = crate::tests![
    a_restricted_folder_gives_nothing_away,
    a_folder_in_use_is_not_restricted,
    the_hosts_own_folders_are_restricted_always,
    only_a_reason_gives_away_what_is_restricted,
    hpvms_own_files_are_not_given_away_by_other_names,
    running_programs_are_given_to_no_guest,
    what_is_restricted_is_chosen_from_no_folder,
    what_is_kept_for_disks_is_chosen_from_no_folder,
];

/// A folder with a file, reached by its name, by links to either, and through a folder beside it.
fn ways(host: &VmHost) -> Vec<std::path::PathBuf> {
    fs::create_dir_all(host.path("kept/deep")).expect("a folder");
    let file = host.path("kept/deep/disk.img");
    fs::File::create(&file).and_then(|file| file.set_len(1 << 20)).expect("a file");
    symlink(&file, host.path("link.img")).expect("a link");
    symlink(host.path("kept"), host.path("way")).expect("a link");
    vec![
        file,
        host.path("link.img"),
        host.path("way/deep/disk.img"),
        host.path("kept/../way/deep/disk.img"),
        Path::new("/proc/self/root")
            .join(host.path("kept/deep/disk.img").strip_prefix("/").expect("rooted")),
    ]
}

fn a_restricted_folder_gives_nothing_away() {
    let host = VmHost::new(Engine::Fake);
    let ways = ways(&host);
    host.ok(&["hpvmcreate", "-P", "web"]);
    // By a link: what counts is where it leads.
    host.ok(&["hpvmdevmgmt", "-a", &entry("rdev", &host.path("way")), "--reason", "secrets"]);
    let before = State::of(&host);
    for way in &ways {
        for statement in [disk_on(way), format!("dvd:scsi::file:{}", way.display())] {
            for line in [
                &["hpvmcreate", "-P", "new", "-a", &statement, "-F"][..],
                &["hpvmmodify", "-P", "web", "-a", &statement, "-F"],
            ] {
                let said = refused(&host, line);
                assert!(said.contains("is restricted") && said.contains("/way"), "{said}");
                before.assert_unchanged(&host, &line.join(" "));
            }
        }
    }
    let folder = format!("dvd:scsi::null:{}", host.path("kept/deep").display());
    assert!(refused(&host, &["hpvmcreate", "-P", "new", "-a", &folder]).contains("restricted"));
    let said = refused(&host, &["hpvmdevmgmt", "-a", &entry("gdev", &ways[1])]);
    assert!(said.contains("no device for guests"), "{said}");
    let made = host.path("kept/new.img").display().to_string();
    assert!(refused(&host, &["hpvmdevmgmt", "-S", "1M", &made]).contains("restricts it"));
    host.ok(&["hpvmdevmgmt", "-d", &entry("rdev", &host.path("way"))]);
    host.ok(&["hpvmcreate", "-P", "new", "-a", &disk_on(&ways[1])]);
}

/// Settles 3: the refusal lists which guest uses which path.
fn a_folder_in_use_is_not_restricted() {
    let host = VmHost::new(Engine::Fake);
    let ways = ways(&host);
    host.ok(&["hpvmcreate", "-P", "web", "-a", &disk_on(&ways[1])]);
    let iso = host.path("kept/cd.iso");
    fs::write(&iso, vec![0; 4096]).expect("an image");
    host.ok(&["hpvmcreate", "-P", "db", "-a", &format!("dvd:scsi::file:{}", iso.display())]);
    for name in ["kept", "way", "kept/deep"] {
        let said = refused(&host, &["hpvmdevmgmt", "-a", &entry("rdev", &host.path(name))]);
        let user = format!("guest 'web' uses '{}'", ways[1].display());
        assert!(said.contains(&user), "{said}");
        let lists_db = said.contains(&format!("guest 'db' uses '{}'", iso.display()));
        assert_eq!(lists_db, name != "kept/deep", "{said}");
    }
    let said = refused(&host, &["hpvmdevmgmt", "-a", &entry("rdev", &ways[0])]);
    assert!(said.contains("guest 'web'") && !said.contains("guest 'db'"), "{said}");
    for name in ["web", "db"] {
        host.ok(&["hpvmremove", "-P", name, "-F"]);
    }
    host.ok(&["hpvmdevmgmt", "-a", &entry("gdev", &host.path("kept"))]);
    let added = host.run(&["hpvmdevmgmt", "-a", &entry("rdev", &host.path("kept"))]);
    let overruled = format!("there is {} too, which stays", entry("gdev", &host.path("kept")));
    assert!(added.status.success() && added.stderr.contains(&overruled), "{added}");
    // A guest that was removed and comes back is told at its start.
    host.ok(&["hpvm", "undelete", "-P", "web"]);
    assert!(host.refused(&["hpvmstart", "-P", "web"]).contains("is restricted"));
    let script = host.ok(&["hpvmdevmgmt", "-r"]);
    assert!(script.contains("guest 'web' has"), "{script}");
}

fn the_hosts_own_folders_are_restricted_always() {
    let host = VmHost::new(Engine::Fake);
    symlink("/etc", host.path("innocent")).expect("a link");
    let own = host.path("var/opt/hpvm/hpvm.db");
    host.ok(&["hpvmcreate", "-P", "web"]);
    for path in [Path::new("/etc/passwd"), &host.path("innocent/passwd"), &own] {
        let said = refused(&host, &["hpvmcreate", "-P", "new", "-a", &disk_on(path)]);
        assert!(said.contains("is a folder of this VM Host itself"), "{said}");
    }
    for below in ["opt/hpvm/lbin", "etc/opt/hpvm"] {
        fs::create_dir_all(host.path(below)).expect("a folder");
        let file = host.disk(&format!("{below}/file"), 1 << 20);
        let said = refused(&host, &["hpvmcreate", "-P", "new", "-F", "-a", &disk_on(&file)]);
        assert!(said.contains("hpvm is a folder of this VM Host itself"), "{said}");
    }
    for folder in ["/bin", "/boot", "/etc", "/lib", "/opt/hpvm", "/sbin", "/stand", "/usr"] {
        let Some(file) = a_file_in(Path::new(folder)) else { continue };
        for line in [
            &["hpvmcreate", "-P", "new", "-F", "-a", &disk_on(&file)][..],
            &["hpvmmodify", "-P", "web", "-F", "-a", &disk_on(&file)],
        ] {
            let said = refused(&host, line);
            assert!(said.contains("is a folder of this VM Host itself"), "{said}");
        }
    }
    let said = refused(&host, &["hpvmdevmgmt", "-a", "gdev:/etc/passwd"]);
    assert!(said.contains("/etc is a folder of this VM Host itself"), "{said}");
    let said = refused(&host, &["hpvmdevmgmt", "-d", "rdev:/etc"]);
    assert!(said.contains("restricted without an entry"), "{said}");
    assert!(host.ok(&["hpvmdevmgmt", "-l", "rdev:PRESET=YES"]).contains("/etc:CONFIG=rdev"));
    let state = host.path("var/opt/hpvm");
    for folder in [Path::new("/"), host.root(), &state] {
        let choosing = format!("dvd:scsi::null:{}", folder.display());
        let said = refused(&host, &["hpvmcreate", "-P", "new", "-a", &choosing]);
        assert!(said.contains("is a folder to choose images from, and rdev:/"), "{said}");
    }
    fs::create_dir_all(host.path("var/opt/hpvm/ISO-images")).expect("a folder");
    let iso = host.path("var/opt/hpvm/ISO-images/cd.iso");
    fs::write(&iso, vec![0; 4096]).expect("an image");
    let iso = format!("dvd:scsi::file:{}", iso.display());
    host.ok(&["hpvmcreate", "-P", "new", "-a", &iso]);
}

/// A file somewhere below a folder; not every machine has each.
fn a_file_in(folder: &Path) -> Option<std::path::PathBuf> {
    let (files, folders): (Vec<_>, Vec<_>) = fs::read_dir(folder)
        .ok()?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| !path.is_symlink())
        .partition(|path| path.is_file());
    files.into_iter().next().or_else(|| folders.iter().find_map(|folder| a_file_in(folder)))
}

fn only_a_reason_gives_away_what_is_restricted() {
    let host = VmHost::new(Engine::Fake);
    let ways = ways(&host);
    let folder = entry("rdev", &host.path("kept"));
    host.ok(&["hpvmdevmgmt", "-a", &folder]);
    let allow = format!("{folder}:attr:ALLOW=GUEST");
    for line in
        [&["hpvmdevmgmt", "-m", &allow][..], &["hpvmdevmgmt", "-m", &allow, "--reason", " "]]
    {
        assert!(refused(&host, line).contains("--reason"));
    }
    assert!(
        refused(&host, &["hpvmcreate", "-P", "web", "-a", &disk_on(&ways[2])])
            .contains("restricted")
    );
    host.ok(&["hpvmdevmgmt", "-m", &allow, "--reason", "the disks moved there"]);
    assert!(host.ok(&["hpvmdevmgmt", "-l", "rdev:ALLOW=GUEST"]).contains("/kept:"));
    host.ok(&["hpvmcreate", "-P", "web", "-a", &disk_on(&ways[2])]);
    let registry = Registry::open(&host.path("var/opt/hpvm/hpvm.db"), Access::ReadOnly);
    let operations = registry.expect("the registry").operations(None, 10).expect("operations");
    let allowed = operations
        .iter()
        .find(|o| o.operation.reason.as_deref() == Some("the disks moved there"))
        .expect("the override is on record");
    assert!(allowed.operation.command_line.contains("ALLOW=GUEST"), "{allowed:?}");
    host.ok(&["hpvmdevmgmt", "-d", &format!("{folder}:attr:ALLOW")]);
    for force in [&["hpvmstart", "-P", "web"][..], &["hpvmstart", "-P", "web", "-F"]] {
        assert!(host.refused(force).contains("is restricted"));
    }
}

/// The registry and a guest's variables are nobody's disk and no medium to read, by whatever name.
fn hpvms_own_files_are_not_given_away_by_other_names() {
    let host = VmHost::new(Engine::Fake);
    let disk = disk_on(&host.disk("web.img", 1 << 20));
    host.ok(&["hpvmcreate", "-P", "web", "-r", "64M", "-a", &disk]);
    let variables = fs::read_dir(host.path("var/opt/hpvm/uuids"))
        .expect("the guests' folders")
        .map(|folder| folder.expect("a folder").path().join("nvram"))
        .next()
        .expect("a guest");
    for (number, own) in [(0, host.path("var/opt/hpvm/hpvm.db")), (1, variables)] {
        let link = host.path(&format!("other-{number}.img"));
        fs::hard_link(&own, &link).expect("another name");
        let dvd = format!("dvd:avio_stor::file:{}", link.display());
        for statement in [disk_on(&link), dvd] {
            let said = refused(&host, &["hpvmmodify", "-P", "web", "-a", &statement]);
            assert!(said.contains("is restricted") && said.contains("hard link"), "{said}");
            assert!(said.contains(own.to_str().expect("text")), "{said}");
        }
        refused(&host, &["hpvmdevmgmt", "-a", &entry("gdev", &link)]);
    }
}

/// Also where they lie apart from the root.
fn running_programs_are_given_to_no_guest() {
    let mut elsewhere = VmHost::new(Engine::Fake);
    elsewhere.install();
    let host = with_web();
    for name in ["bin/hpvm", "lbin/hpvmkeeper"] {
        let program = elsewhere.path("opt/hpvm").join(name);
        let bin = elsewhere.path("opt/hpvm/bin");
        let before = fs::metadata(&program).expect("a program").ino();
        let disk = disk_on(&program);
        for line in [
            &["hpvmcreate", "-P", "new", "-F", "-a", &disk][..],
            &["hpvmclone", "-P", "web", "-N", "new", "-F", "-b", &on(&program, "file")],
        ] {
            let said = Outcome::of(name, host.command_from(&bin, line), b"");
            assert_eq!(said.status.code(), Some(1), "{said}");
            assert!(said.stderr.contains("is a folder of this VM Host itself"), "{said}");
        }
        assert_eq!(fs::metadata(&program).expect("a program").ino(), before);
    }
}

/// Who sits at a guest's console is asked nothing about the device database, so a folder to choose from holds nothing that is
/// restricted, and nothing in it becomes so while guests have it.
fn what_is_restricted_is_chosen_from_no_folder() {
    let host = VmHost::new(Engine::Fake);
    let folder = host.path("images");
    fs::create_dir(&folder).expect("a folder");
    let [open, secret] =
        ["open.iso", "secret.iso"].map(|name| host.disk(&format!("images/{name}"), 1 << 20));
    let choosing = format!("dvd:avio_stor:0,4,0:null:{}", folder.display());
    let restrict = entry("rdev", &secret);
    host.ok(&["hpvmdevmgmt", "-a", &restrict]);
    let said = refused(&host, &["hpvmcreate", "-P", "web", "-r", "64M", "-a", &choosing]);
    assert!(said.contains(&format!("{restrict} restricts what lies below it")), "{said}");

    // An image that was given by itself is; its neighbours are not to be chosen.
    let image = format!("dvd:avio_stor:0,4,0:file:{}", open.display());
    host.ok(&["hpvmcreate", "-P", "web", "-r", "64M", "-a", &image]);
    host.ok(&["hpvmstart", "-P", "web"]);
    let choose = |image: &Path| {
        let command = format!("in -filedvd {}", image.display());
        host.run(&["hpvmconsole", "-P", "web", "-q", "-c", &command])
    };
    let said = choose(&secret);
    assert!(
        !said.status.success() && said.stderr.contains("something in it is restricted"),
        "{said}"
    );
    host.ok(&["hpvmstop", "-P", "web", "-F"]);

    host.ok(&["hpvmdevmgmt", "-d", &restrict]);
    host.ok(&["hpvmmodify", "-P", "web", "-m", &choosing]);
    host.ok(&["hpvmstart", "-P", "web"]);
    assert!(choose(&secret).status.success(), "it is like any other now");
    let said = refused(&host, &["hpvmdevmgmt", "-a", &restrict]);
    assert!(said.contains("guest 'web' uses"), "{said}");
    let said = refused(&host, &["hpvmdevmgmt", "-a", &entry("rdev", &open)]);
    let chosen =
        format!("the console of guest 'web' may choose images from folder '{}'", folder.display());
    assert!(said.contains(&chosen) && !said.contains("uses"), "{said}");
}

/// The same of what is kept for disks; and a folder's entry depends on the drives whose users choose from it, whatever is in
/// them now.
fn what_is_kept_for_disks_is_chosen_from_no_folder() {
    let host = VmHost::new(Engine::Fake);
    fs::create_dir(host.path("images")).expect("a folder");
    let [iso, disk] =
        ["open.iso", "disk.img"].map(|name| host.disk(&format!("images/{name}"), 1 << 20));
    let folder = entry("gdev", &host.path("images"));
    let choosing = format!("dvd:avio_stor:0,4,0:null:{}", host.path("images").display());
    let kept = format!("{}:attr:USAGE=DISK", entry("gdev", &disk));
    host.ok(&["hpvmdevmgmt", "-a", &entry("gdev", &disk)]);
    host.ok(&["hpvmdevmgmt", "-m", &kept]);
    let said = refused(&host, &["hpvmcreate", "-P", "web", "-r", "64M", "-a", &choosing]);
    assert!(said.contains("says USAGE=DISK; give a folder"), "{said}");
    host.ok(&["hpvmdevmgmt", "-d", &format!("{}:attr:USAGE", entry("gdev", &disk))]);

    host.ok(&["hpvmcreate", "-P", "web", "-r", "64M", "-a", &choosing]);
    let said = refused(&host, &["hpvmdevmgmt", "-m", &kept]);
    assert!(
        said.contains("cannot be kept for a disk: the console of guest 'web' may choose"),
        "{said}"
    );
    host.ok(&["hpvmdevmgmt", "-a", &folder]);
    host.ok(&["hpvmstart", "-P", "web"]);
    let put_in = format!("in -filedvd {}", iso.display());
    host.ok(&["hpvmconsole", "-P", "web", "-q", "-c", &put_in]);
    let said = refused(&host, &["hpvmdevmgmt", "-m", &kept]);
    assert!(said.contains("the console of guest 'web' may choose"), "{said}");
    host.ok(&["hpvmstop", "-P", "web", "-F"]);
    // The next command takes over what the console did.
    host.ok(&["hpvmmodify", "-P", "web", "-l", "has a medium"]);
    let listed = host.ok(&["hpvmdevmgmt", "-l", &folder]);
    assert!(listed.contains(":web:"), "{listed}");
    let said = refused(&host, &["hpvmdevmgmt", "-d", &folder]);
    assert!(said.contains("has dependents"), "{said}");
    host.ok(&["hpvmremove", "-P", "web", "-F", "--purge"]);
    host.ok(&["hpvmdevmgmt", "-d", &folder]);
}
