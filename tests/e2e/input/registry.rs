//! Something else in the registry's place, a registry of another version, or none.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use hpvm_testkit::vm_host::{Engine, VmHost};

use super::inhabited;
use crate::Test;
use crate::refusals::{State, refused};

pub(crate) const TESTS: &[Test] = crate::tests![
    a_registry_that_is_no_database,
    a_registry_of_a_newer_version,
    what_is_no_log_beside_the_registry,
    a_registry_that_somebody_keeps_is_waited_for_once,
    dry_runs_and_refusals_in_a_registry_of_an_older_version,
    dry_runs_make_no_vm_host,
];

/// Commands that need the registry.
const NEED_THE_REGISTRY: &[&[&str]] = &[
    &["hpvmcreate", "-P", "new"],
    &["hpvmmodify", "-P", "web", "-l", "x"],
    &["hpvmremove", "-P", "web", "-F"],
    &["hpvmstart", "-P", "web"],
    &["hpvmstop", "-P", "other", "-F"],
    &["hpvmstop", "-a", "-F"],
    &["hpvmstatus"],
    &["hpvmstatus", "-P", "other"],
    &["hpvmconsole", "-P", "other", "-c", "x"],
    &["hpvm", "why", "web"],
    &["hpvm", "undelete", "-P", "gone"],
    &["hpvm", "undelete", "--list"],
    &["hpvm", "nvram", "-P", "web"],
    &["hpvm", "autostart"],
    &["hpvm", "autostop"],
    &["hpvmclone", "-P", "web", "-N", "new"],
    &["hpvmnet"],
    &["hpvmnet", "-c", "-S", "sw1"],
    &["hpvmdevmgmt", "-l", "all"],
    &["hpvmdevmgmt", "-a", "rdev:/media"],
    &["hpvmhostrdev"],
    &["hpvm", "gvsdmgr", "get_info", "-P", "other"],
];

/// Puts something else in the registry's place for as long as it lives.
struct Exchanged<'a> {
    host: &'a VmHost,
}

impl Exchanged<'_> {
    fn begin(host: &VmHost) -> Exchanged<'_> {
        for (path, aside) in Exchanged::paths(host) {
            fs::rename(path, aside).expect("the registry goes aside");
        }
        Exchanged { host }
    }

    fn paths(host: &VmHost) -> impl Iterator<Item = (std::path::PathBuf, std::path::PathBuf)> + '_ {
        ["hpvm.db", "hpvm.db-wal", "hpvm.db-shm"]
            .map(|name| (host.path("var/opt/hpvm").join(name), host.path(name)))
            .into_iter()
            .filter(|(path, aside)| path.exists() || aside.exists())
    }
}

impl Drop for Exchanged<'_> {
    fn drop(&mut self) {
        let db = self.host.path("var/opt/hpvm/hpvm.db");
        let _ = fs::remove_dir(&db).or_else(|_| fs::remove_file(&db));
        for (path, aside) in Exchanged::paths(self.host) {
            let _ = fs::remove_file(&path);
            let _ = fs::rename(aside, path);
        }
    }
}

/// A thing that a test puts in the registry's place.
type Occupant = (&'static str, fn(&Path));

fn a_registry_that_is_no_database() {
    let host = inhabited();
    let before = State::of(&host);
    let occupants: &[Occupant] = &[
        ("text", |path| fs::write(path, "root:x:0:0:\x1b[2J\n".repeat(100)).expect("a file")),
        ("zeros", |path| fs::write(path, vec![0; 8192]).expect("a file")),
        ("an empty file", |path| fs::write(path, "").expect("a file")),
        ("a folder", |path| fs::create_dir(path).expect("a folder")),
        ("a pipe", |path| {
            assert!(Command::new("mkfifo").arg(path).status().expect("mkfifo").success());
        }),
        ("a device", |path| std::os::unix::fs::symlink("/dev/zero", path).expect("a link")),
        ("another program's database", |path| {
            let table = rusqlite::Connection::open(path).and_then(|c| {
                c.execute_batch("CREATE TABLE guest (name TEXT); INSERT INTO guest VALUES ('x')")
            });
            table.expect("a database");
        }),
    ];
    for (what, make) in occupants {
        let _exchanged = Exchanged::begin(&host);
        let db = host.path("var/opt/hpvm/hpvm.db");
        make(&db);
        let bytes = db.is_file().then(|| fs::read(&db).expect("it can be read"));
        for line in NEED_THE_REGISTRY {
            let said = refused(&host, line);
            assert!(said.contains("hpvm doctor --rebuild"), "{what}: {said}");
        }
        let now = db.is_file().then(|| fs::read(&db).expect("it can be read"));
        assert!(bytes == now, "{what} was changed");
        assert!(host.qemu(1).is_some(), "the running guest runs on");
    }
    before.assert_unchanged(&host, "the registry came back");
    assert_eq!(host.state("other"), "On (OS)");
}

fn a_registry_of_a_newer_version() {
    let host = inhabited();
    let db = host.path("var/opt/hpvm/hpvm.db");
    let version = |set: Option<i64>| {
        let connection = rusqlite::Connection::open(&db).expect("a database");
        if let Some(to) = set {
            connection.pragma_update(None, "user_version", to).expect("it is set");
        }
        connection.pragma_query_value(None, "user_version", |row| row.get(0)).expect("a number")
    };
    let ours: i64 = version(None);
    let before = State::of(&host);
    version(Some(ours + 98));
    let rebuild = ["hpvm", "doctor", "--rebuild", "-F"];
    for line in NEED_THE_REGISTRY.iter().copied().chain([&rebuild[..]]) {
        let said = refused(&host, line);
        assert!(said.contains(&format!("version {}", ours + 98)), "{said}");
        assert!(said.contains("newer hpvm"), "{said}");
    }
    assert_eq!(version(None), ours + 98, "it was not touched");
    version(Some(ours));
    before.assert_unchanged(&host, "the version came back");
}

/// Who opens a pipe waits for somebody at its other end, and a device has no end.
fn what_is_no_log_beside_the_registry() {
    let host = inhabited();
    let before = State::of(&host);
    for suffix in ["-wal", "-shm"] {
        let log = host.path(&format!("var/opt/hpvm/hpvm.db{suffix}"));
        let aside = host.path("log");
        for made in ["mkfifo", "ln -s /dev/zero"] {
            fs::rename(&log, &aside).expect("the log goes aside");
            let mut words = made.split(' ');
            let program = words.next().expect("a program");
            let made = Command::new(program).args(words).arg(&log).status();
            assert!(made.expect("it runs").success());
            for line in NEED_THE_REGISTRY {
                let said = refused(&host, line);
                assert!(said.contains(&format!("hpvm.db{suffix} is no file")), "{said}");
            }
            fs::remove_file(&log).expect("it goes");
            fs::rename(&aside, &log).expect("the log comes back");
        }
    }
    before.assert_unchanged(&host, "the log came back");
}

/// Ten seconds, and not another ten for the record of the refusal. Who only looks waits for nobody.
fn a_registry_that_somebody_keeps_is_waited_for_once() {
    const WAITED: Duration = Duration::from_secs(10);
    let host = inhabited();
    let before = State::of(&host);
    let keeper = rusqlite::Connection::open(host.path("var/opt/hpvm/hpvm.db")).expect("a database");
    // Whoever closes it last would take its log away.
    let stays = rusqlite::config::DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE;
    keeper.set_db_config(stays, true).expect("the log stays");
    keeper.execute_batch("BEGIN IMMEDIATE").expect("its turn");
    let outcome = host.run(&["hpvmmodify", "-P", "web", "-l", "x"]);
    assert_eq!(outcome.status.code(), Some(1), "{outcome}");
    assert!(outcome.stderr.contains("busy for 10 s; try again"), "{outcome}");
    assert!(outcome.took < WAITED + WAITED / 2, "took {:?}", outcome.took);
    for line in [&["hpvmstatus"][..], &["hpvmstatus", "-P", "web"], &["hpvm", "why", "web"]] {
        let looked = host.run(line);
        assert!(looked.status.success(), "{looked}");
        looked.assert_prompt();
    }
    drop(keeper);
    before.assert_unchanged(&host, "somebody kept the registry");
    host.ok(&["hpvmmodify", "-P", "web", "-l", "x"]);
}

fn dry_runs_and_refusals_in_a_registry_of_an_older_version() {
    const WITHOUT_NETWORKS: &str = "DROP TABLE nic; DROP TABLE switch_port; DROP TABLE forward;
        DROP TABLE vswitch; ALTER TABLE guest DROP COLUMN nic_count; PRAGMA user_version = 3;";
    let host = inhabited();
    let db = host.path("var/opt/hpvm/hpvm.db");
    let version = || {
        let connection = rusqlite::Connection::open(&db).expect("a database");
        let version = connection.pragma_query_value(None, "user_version", |row| row.get(0));
        version.map(|version: i64| version).expect("a number")
    };
    let ours = version();
    let old = rusqlite::Connection::open(&db).and_then(|db| db.execute_batch(WITHOUT_NETWORKS));
    old.expect("a registry as it was");
    let nic = "network:avio_lan::vswitch:localnet";
    let dry_runs: &[&[&str]] = &[
        &["hpvmcreate", "-P", "new", "-a", nic, "--dry-run"],
        &["hpvmmodify", "-P", "web", "-a", nic, "--dry-run"],
        &["hpvmclone", "-P", "web", "-N", "twin", "--linked", "--dry-run"],
        &["hpvmremove", "-P", "web", "--dry-run"],
        &["hpvm", "undelete", "gone", "--dry-run"],
        &["hpvmnet", "-c", "-S", "new", "--dry-run"],
        &["hpvmdevmgmt", "-a", "rdev:/srv", "--dry-run"],
        &["hpvmstart", "-P", "web", "--dry-run"],
        &["hpvm", "doctor"],
    ];
    for line in dry_runs {
        host.ok(line);
        assert_eq!(version(), 3, "{line:?}");
    }
    refused(&host, &["hpvmmodify", "-P", "web", "-c", "4000"]);
    assert_eq!(version(), 3);
    let copy = host.path("var/opt/hpvm/hpvm.db.version-3");
    assert!(!copy.exists());
    host.ok(&["hpvmmodify", "-P", "web", "-a", nic]);
    assert_eq!(version(), ours);
    assert!(copy.exists());
}

/// Where there is no registry they tell what would be done, and leave the folder as it was.
fn dry_runs_make_no_vm_host() {
    let host = VmHost::new(Engine::Fake);
    let file = host.path("new.img").display().to_string();
    let tell: &[&[&str]] = &[
        &["hpvmcreate", "-P", "web", "-s"],
        &["hpvmstop", "-a", "--dry-run"],
        &["hpvm", "autostart", "--dry-run"],
        &["hpvm", "autostop", "--dry-run"],
        &["hpvm", "doctor", "--rebuild", "--dry-run"],
        &["hpvmnet", "-c", "-S", "sw0", "--dry-run"],
        &["hpvmnet", "-b", "-S", "localnet", "--dry-run"],
        &["hpvmnet", "-h", "-S", "localnet", "--dry-run"],
        &["hpvmnet", "-r", "-S", "localnet", "--dry-run"],
        &["hpvmnet", "-S", "localnet", "-u", "portid:3:vlanid:5", "--dry-run"],
        &["hpvmdevmgmt", "-a", "rdev:/media", "--dry-run"],
        &["hpvmdevmgmt", "-I", "--dry-run"],
        &["hpvmdevmgmt", "-S", "1M", &file, "--dry-run"],
        &["hpvmhostrdev", "-E", "--dry-run"],
        &["hpvmhostrdev", "-u", "--dry-run"],
    ];
    let refuse: &[&[&str]] = &[
        &["hpvmmodify", "-P", "web", "-c", "2", "-s"],
        &["hpvmclone", "-P", "web", "-N", "new", "-s"],
        &["hpvmremove", "-P", "web", "--dry-run"],
        &["hpvmstart", "-P", "web", "-s"],
        &["hpvm", "undelete", "-P", "web", "--dry-run"],
        &["hpvm", "nvram", "-P", "web", "--reset", "--dry-run"],
        &["hpvm", "gvsdmgr", "clear_stat", "-P", "web", "--dry-run"],
        &["hpvmnet", "-C", "-S", "sw0", "-N", "sw1", "--dry-run"],
        &["hpvmnet", "-d", "-S", "localnet", "--dry-run"],
        &["hpvmdevmgmt", "-d", "rdev:/media", "--dry-run"],
        &["hpvmdevmgmt", "-n", "rdev:/media:/mnt", "--dry-run"],
    ];
    let nothing_is_made = |line: &[&str]| {
        let run_folder = host.run_dir(1).parent().expect("all guests'").to_owned();
        for made in [host.path("var"), host.path("run"), run_folder, host.path("new.img")] {
            assert!(!made.exists(), "{line:?} made {}", made.display());
        }
    };
    for line in tell {
        host.ok(line);
        nothing_is_made(line);
    }
    for line in refuse {
        let outcome = host.run(line);
        assert_eq!(outcome.status.code(), Some(1), "{outcome}");
        nothing_is_made(line);
    }
}
