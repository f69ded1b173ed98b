//! The device database: entries come and go, are listed and repaired, and cost nothing to judge by. What becomes of what they
//! say is in the modules below.

pub(crate) mod disk_files;
pub(crate) mod known_by;
pub(crate) mod read_only;
pub(crate) mod renamed;
pub(crate) mod restricted;
pub(crate) mod used_by_host;

use std::fs;
use std::path::Path;
use std::time::Duration;

use hpvm_model::{Attributes, Bytes, EntryId, EntryType, Origin, StoreIdentity};
use hpvm_registry::{Access, Entry, Registry};
use hpvm_testkit::vm_host::{Engine, VmHost};
use serde_json::Value;

use crate::Test;
use crate::refusals::refused;
use crate::shell::typed;
use crate::statements::{disk_on, entry};

pub(crate) const TESTS: &[Test] = crate::tests![
    entries_come_and_go_with_guests,
    only_images_are_shared,
    a_repair_script_can_be_run,
    a_repair_script_repairs,
    vm_hosts_have_entries_too,
    judging_is_as_quick_with_ten_thousand_entries,
];

fn entries_come_and_go_with_guests() {
    let host = VmHost::new(Engine::Fake);
    let (one, other) = (host.disk("one.img", 1 << 20), host.disk("other.img", 1 << 20));
    let list = || host.ok(&["hpvmdevmgmt", "-l", "gdev"]);
    assert_eq!(list(), "");
    host.ok(&["hpvmcreate", "-P", "web", "-a", &disk_on(&one), "-a", &disk_on(&other)]);
    let marked = format!("{}:attr:PRESERVE=YES", entry("gdev", &one));
    host.ok(&["hpvmdevmgmt", "-m", &marked]);
    let line = |path: &Path, attributes: &str, guest: &str| {
        format!(
            "{}:CONFIG=gdev,EXIST=YES,DEVTYPE=FILE,SHARE=NO{attributes}:{guest}:\n",
            path.display()
        )
    };
    let of_web = line(&one, ",PRESERVE=YES", "web") + &line(&other, "", "web");
    assert_eq!(list(), of_web);
    let json: Value =
        serde_json::from_str(&host.ok(&["hpvmdevmgmt", "-l", "gdev", "--json"])).expect("JSON");
    assert_eq!(json["entries"][1]["size_bytes"], 1 << 20, "{json}");
    assert_eq!(host.ok(&["hpvmdevmgmt", "-l", "gdev:depend:web"]), of_web);
    assert!(refused(&host, &["hpvmdevmgmt", "-l", "gdev:depend:db"]).contains("no guest 'db'"));
    for absent in ["all:nope", "gdev:/nope"] {
        assert!(refused(&host, &["hpvmdevmgmt", "-l", absent]).contains("-l all"));
    }
    let said = refused(&host, &["hpvmdevmgmt", "-d", &entry("gdev", &one)]);
    assert!(said.contains("hpvmmodify -P GUEST -d") && said.contains("guest 'web'"), "{said}");
    let said = refused(&host, &["hpvmdevmgmt", "-d", "all:depend:web"]);
    assert!(said.contains("`hpvmmodify -P web -d disk:avio_stor:0,0,0:file:"), "{said}");
    let said = refused(&host, &["hpvmdevmgmt", "-d", "all:depend:db"]);
    assert!(said.contains("there is no guest 'db' on which entries could depend"), "{said}");
    host.ok(&["hpvmremove", "-P", "web", "-F"]);
    assert_eq!(list(), line(&one, ",PRESERVE=YES", ""));
    host.ok(&["hpvmdevmgmt", "-d", &entry("gdev", &one)]);
    assert_eq!(list(), "");
    let said = refused(&host, &["hpvmdevmgmt", "-d", &entry("gdev", &one)]);
    assert!(said.contains("there is no entry"), "{said}");
}

/// Settles 79: what several guests would write to is never marked as shared, and the reason is told.
fn only_images_are_shared() {
    let host = VmHost::new(Engine::Fake);
    let disk = host.disk("disk.img", 1 << 20);
    let iso = host.disk("cd.iso", 1 << 20);
    let dvd = format!("dvd:scsi::file:{}", iso.display());
    host.ok(&["hpvmcreate", "-P", "web", "-a", &disk_on(&disk), "-a", &dvd]);
    let share = |path: &Path| format!("{}:attr:SHARE=YES", entry("gdev", path));
    let said = refused(&host, &["hpvmdevmgmt", "-m", &share(&disk)]);
    assert!(said.contains("only images of dvds are shared, and guest 'web' uses"), "{said}");
    host.ok(&["hpvmdevmgmt", "-m", &share(&iso)]);
    host.ok(&["hpvmcreate", "-P", "db", "-a", &dvd]);
    let said = refused(&host, &["hpvmcreate", "-P", "new", "-a", &disk_on(&iso)]);
    assert!(said.contains("marked SHARE=YES"), "{said}");
    let listed = host.ok(&["hpvmdevmgmt", "-l", "gdev:SHARE=YES"]);
    assert!(listed.contains("cd.iso") && listed.contains(":db,web:"), "{listed}");
}

/// They are names: nothing depends on them, and there is no path to be replaced. This VM Host is always listed.
fn vm_hosts_have_entries_too() {
    let host = VmHost::new(Engine::Fake);
    let node = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let list = |filter: &str| host.ok(&["hpvmdevmgmt", "-l", filter]);
    let own = format!("{node}:CONFIG=server,EXIST=YES::\n");
    assert_eq!(list("server"), own);
    host.ok(&["hpvmdevmgmt", "-a", "server:other-host.example"]);
    let other = "other-host.example:CONFIG=server,EXIST=YES::\n";
    assert_eq!(list("server:other-host.example"), other);
    for filter in ["server", "all"] {
        let listed = list(filter);
        assert!(listed.contains(other) && listed.contains(&own), "{listed}");
    }
    host.ok(&["hpvmdevmgmt", "-m", "server:other-host.example:attr:PRESERVE=YES"]);
    let kept = "other-host.example:CONFIG=server,EXIST=YES,PRESERVE=YES::\n";
    assert_eq!(list("server:PRESERVE=YES"), kept);
    host.ok(&["hpvmcreate", "-P", "web"]);
    assert_eq!(list("server:depend:web"), "");
    host.ok(&["hpvmdevmgmt", "-I"]);
    assert!(list("server").contains(kept));
    host.ok(&["hpvmdevmgmt", "-d", "server:other-host.example:attr:PRESERVE"]);
    assert_eq!(list("server:other-host.example"), other);

    for (words, status, reason) in [
        (["-a", "server:other-host.example"], 1, "is there already"),
        (["-a", "server:a b"], 2, "is no name of a VM Host"),
        (["-m", "server:third:attr:PRESERVE=YES"], 1, "there is no entry server:third"),
        (["-m", "server:other-host.example:attr:SHARE=YES"], 2, "those are PRESERVE"),
        (["-n", "server:other-host.example:third"], 2, "no path that could be replaced"),
        (["-d", "server:third"], 1, "there is no entry server:third"),
        (["-d", &format!("server:{node}")], 1, "is this VM Host itself"),
    ] {
        let said = host.run(&["hpvmdevmgmt", words[0], words[1]]);
        assert_eq!(said.status.code(), Some(status), "{said}");
        assert!(said.stderr.contains(reason), "{said}");
    }
    host.ok(&["hpvmdevmgmt", "-d", "server:other-host.example"]);
    assert_eq!(list("server"), own);
}

fn a_repair_script_can_be_run() {
    let host = VmHost::new(Engine::Fake);
    let disk = host.disk("it's.img", 1 << 20);
    host.ok(&["hpvmdevmgmt", "-a", &entry("gdev", &disk)]);
    assert!(host.ok(&["hpvmdevmgmt", "-r"]).contains("nothing to repair"));
    fs::remove_file(&disk).expect("the file");
    let script = host.ok(&["hpvmdevmgmt", "-r"]);
    assert!(
        script.contains(r"# if that is right: hpvmdevmgmt -d 'gdev:")
            && script.contains(r"it'\''s.img'"),
        "{script}"
    );
    let path = entry("gdev", &disk);
    host.ok(&["hpvmdevmgmt", "-d", &path]);
    assert!(host.ok(&["hpvmdevmgmt", "-r"]).contains("nothing to repair"));
}

/// Changes entries as an older version may have left them.
fn as_it_was_left(host: &VmHost, sql: &str) {
    let db = host.path("var/opt/hpvm/hpvm.db");
    let changed = rusqlite::Connection::open(db).and_then(|db| db.execute(sql, []));
    assert_eq!(changed.expect("it is set"), 1, "{sql}");
}

/// What came with a guest, and no guest has any more, needs nobody's word to go; what an administrator added stays.
fn a_repair_script_repairs() {
    let host = VmHost::new(Engine::Fake);
    let disks = ["left.img", "added.img"].map(|name| host.disk(name, 1 << 20));
    for disk in &disks {
        host.ok(&["hpvmdevmgmt", "-a", &entry("gdev", disk)]);
        fs::remove_file(disk).expect("the file");
    }
    as_it_was_left(&host, "UPDATE entry SET origin = 'guest' WHERE name LIKE '%left.img'");
    let listed = || host.ok(&["hpvmdevmgmt", "-l", "gdev"]);
    let repaired = typed(&host, "hpvmdevmgmt -r >$HPVM_ROOT/script && sh -e $HPVM_ROOT/script");
    assert!(repaired.status.success(), "{repaired}");
    assert!(!listed().contains("left.img") && listed().contains("added.img"), "{}", listed());
    let left = host.ok(&["hpvmdevmgmt", "-r"]);
    assert!(!left.contains("left.img") && left.contains("added.img"), "{left}");
}

/// 2 ms are allowed for what the device database costs a create; four times that tells a flat price from a growing one. Both
/// VM Hosts have their turns one after the other, so that what else the machine does slows both.
fn judging_is_as_quick_with_ten_thousand_entries() {
    const BOUND: Duration = Duration::from_millis(8);
    const TURNS: usize = 20;
    let prepare = || {
        let host = VmHost::new(Engine::Fake);
        let disk = disk_on(&host.disk("disk.img", 1 << 20));
        fs::create_dir(host.path("images")).expect("a folder");
        host.ok(&["hpvmcreate", "-P", "web"]);
        (host, disk)
    };
    let (few, many) = (prepare(), prepare());
    put_ten_thousand_entries(&many.0);
    let took = |(host, disk): &(VmHost, String)| {
        let choosing = format!("dvd:avio_stor:0,4,0:null:{}", host.path("images").display());
        let judged = host.run(&["hpvmcreate", "-P", "new", "-a", disk, "-a", &choosing, "-s"]);
        assert!(judged.status.success(), "{judged}");
        judged.took
    };
    let turns = (0..TURNS).map(|_| (took(&few), took(&many)));
    let (few, many) = turns.reduce(|(a, b), (c, d)| (a.min(c), b.min(d))).expect("some");
    assert!(many < few + BOUND, "with none {few:?}, with ten thousand {many:?}");
    println!("hpvmcreate -s: with no entries {few:?}, with ten thousand {many:?}");
}

fn put_ten_thousand_entries(host: &VmHost) {
    let images = host.path("images").display().to_string();
    let path = host.path("var/opt/hpvm/hpvm.db");
    let mut registry = Registry::open(&path, Access::ReadWrite).expect("the registry");
    let change = registry.change().expect("a change");
    for n in 0..10_000_u64 {
        let (of, origin, folder) = match n % 4 {
            0 | 2 => (EntryType::Guest, Origin::Guest, &*images),
            1 => (EntryType::Restricted, Origin::Host, &*images),
            _ => (EntryType::Restricted, Origin::Signature, "/srv"),
        };
        let name = format!("{folder}/{n}/disk");
        let id = EntryId::new(of, &name).expect("an entry");
        let identity = StoreIdentity { identifier: Some(format!("wwid:{n}")), size: Bytes(n) };
        let entry = Entry {
            origin,
            reason: Some("it holds swap space".into()),
            identity: Some(identity),
            attributes: Attributes::default(),
            ..Entry::by_hand(id, name)
        };
        change.put_entry(&entry).expect("an entry");
    }
    change.commit().expect("a commit");
}
