//! What becomes of a guest that is removed: it is kept for a while, comes back as it was, and is gone when it is purged. What
//! the administrator named as a disk is never touched.

use std::fs;

use hpvm_testkit::vm_host::{Engine, VmHost};

use crate::Test;
use crate::mounted::Mounted;
use crate::refusals::{export, refused, stored};
use crate::statements::{disk_at, disk_on};

pub(crate) const TESTS: &[Test] = crate::tests![
    a_number_is_not_given_again_while_kept,
    a_removed_guest_comes_back_as_it_was,
    a_removed_guest_without_its_folder_does_not_come_back,
    a_disk_that_two_had_is_told_of_to_who_comes_second,
    a_purged_guest_is_gone,
    a_number_is_free_only_when_nothing_in_run_has_it,
    removed_guests_are_kept_as_long_as_configured,
    what_cannot_be_cleared_is_told_of_and_keeps_nothing_else,
    an_administrators_files_are_touched_by_no_removal,
];

fn number_of(host: &VmHost, name: &str) -> u64 {
    stored(host, name)["number"].as_u64().expect("a number")
}

fn a_number_is_not_given_again_while_kept() {
    let host = VmHost::new(Engine::Fake);
    for name in ["a", "b", "c"] {
        host.ok(&["hpvmcreate", "-P", name]);
    }
    assert_eq!(["a", "b", "c"].map(|name| number_of(&host, name)), [1, 2, 3]);
    host.ok(&["hpvmremove", "-P", "c", "-F"]);
    host.ok(&["hpvmcreate", "-P", "c"]);
    assert_eq!(number_of(&host, "c"), 4, "3 is kept, although its name was free");
    refused(&host, &["hpvm", "undelete", "-P", "c"]);
    host.ok(&["hpvmremove", "-P", "c", "-F"]);
    // Two were called so: the number tells which.
    let said = refused(&host, &["hpvm", "undelete", "-P", "c"]);
    assert!(said.contains("-p"), "{said}");
    host.ok(&["hpvm", "undelete", "-p", "3"]);
    assert_eq!(number_of(&host, "c"), 3);
    host.ok(&["hpvmremove", "-P", "b", "-F", "--purge"]);
    host.ok(&["hpvmcreate", "-P", "d"]);
    assert_eq!(number_of(&host, "d"), 5);
}

fn a_removed_guest_comes_back_as_it_was() {
    let host = VmHost::new(Engine::Fake);
    let disk = host.disk("web.img", 1 << 20);
    let statement = disk_at("0,1,3", &disk);
    let line = ["hpvmcreate", "-P", "web", "-O", "linux:12", "-r", "512M", "-l", "the web"];
    host.ok(&[&line[..], &["-B", "auto", "-a", &statement]].concat());
    host.ok(&["hpvmstart", "-P", "web"]);
    host.ok(&["hpvmstop", "-P", "web", "-F"]);
    let uuid = stored(&host, "web")["uuid"].clone();
    let nvram = host.path(&format!("var/opt/hpvm/uuids/{}/nvram", uuid.as_str().expect("uuid")));
    let mut variables = fs::read(&nvram).expect("variables");
    variables[100_000] = 0x5a;
    fs::write(&nvram, &variables).expect("they are the guest's own");
    let before = stored(&host, "web");
    host.ok(&["hpvmremove", "-P", "web", "-F"]);
    assert!(!host.path("var/opt/hpvm/guests/web").exists(), "the link is gone at once");
    refused(&host, &["hpvmstart", "-P", "web"]);
    assert!(host.ok(&["hpvm", "undelete", "--list"]).contains("web"));
    // The name was free, so somebody took it; it comes back when that is renamed.
    host.ok(&["hpvmcreate", "-P", "web", "-r", "64M"]);
    refused(&host, &["hpvm", "undelete", "-P", "web"]);
    host.ok(&["hpvmmodify", "-P", "web", "-N", "web2"]);
    host.ok(&["hpvm", "undelete", "-P", "web"]);
    assert_eq!(stored(&host, "web"), before, "uuid, number, devices and all");
    assert!(fs::read(&nvram).expect("variables") == variables);
    assert!(host.path("var/opt/hpvm/guests/web/nvram").exists(), "the link is back");
    assert!(!host.ok(&["hpvm", "undelete", "--list"]).contains("web"));
    host.ok(&["hpvmstart", "-P", "web"]);
}

/// The registry and the links stay as they are; once the folder is back, so is the guest.
fn a_removed_guest_without_its_folder_does_not_come_back() {
    let host = VmHost::new(Engine::Fake);
    host.ok(&["hpvmcreate", "-P", "web"]);
    let uuid = stored(&host, "web")["uuid"].as_str().expect("uuid").to_owned();
    host.ok(&["hpvmremove", "-P", "web", "-F"]);
    let (folder, away) = (host.path(&format!("var/opt/hpvm/uuids/{uuid}")), host.path("away"));
    fs::rename(&folder, &away).expect("it is moved");
    for line in
        [&["hpvm", "undelete", "-P", "web"][..], &["hpvm", "undelete", "-P", "web", "--dry-run"]]
    {
        let said = refused(&host, line);
        let told = format!("its folder {} is missing", folder.display());
        assert!(said.contains(&told) && said.contains("`hpvmremove -p 1 --purge`"), "{said}");
        assert!(fs::symlink_metadata(host.path("var/opt/hpvm/guests/web")).is_err());
        assert!(host.ok(&["hpvm", "undelete", "--list"]).contains("web"));
    }
    fs::rename(&away, &folder).expect("it is moved back");
    host.ok(&["hpvm", "undelete", "-P", "web"]);
    host.ok(&["hpvmstart", "-P", "web"]);
    host.ok(&["hpvmstop", "-P", "web", "-F"]);
    host.ok(&["hpvmremove", "-P", "web", "-F"]);
    fs::rename(&folder, &away).expect("it is moved");
    host.ok(&["hpvmremove", "-p", "1", "--purge", "-F"]);
    assert!(!host.ok(&["hpvm", "undelete", "--list"]).contains("web"));
}

fn a_disk_that_two_had_is_told_of_to_who_comes_second() {
    let host = VmHost::new(Engine::Fake);
    let disk = disk_on(&host.disk("web.img", 1 << 20));
    host.ok(&["hpvmcreate", "-P", "web", "-r", "64M", "-a", &disk]);
    host.ok(&["hpvmremove", "-P", "web", "-F"]);
    let made = host.run(&["hpvmcreate", "-P", "new", "-r", "64M", "-a", &disk]);
    assert!(made.status.success(), "{made}");
    assert!(made.stderr.contains("guest 'web' (0,0,0), which was removed"), "{made}");
    // Who has it hears nothing more of that.
    let started = host.run(&["hpvmstart", "-P", "new"]);
    assert!(started.status.success() && !started.stderr.contains("web"), "{started}");
    let undelete = ["hpvm", "undelete", "-P", "web"];
    for line in [&[&undelete[..], &["--dry-run"]].concat()[..], &undelete] {
        let said = host.run(line);
        assert!(said.status.success(), "{said}");
        let told = "is in use by the running guest 'new' (0,0,0)";
        assert!(said.stderr.contains("WARNING (web)") && said.stderr.contains(told), "{said}");
    }
    host.ok(&["hpvmstop", "-P", "new", "-F"]);
    host.ok(&["hpvmremove", "-P", "web", "-F"]);
    let said = host.run(&undelete);
    assert!(said.stderr.contains("is also configured in guest 'new' (0,0,0)"), "{said}");
}

fn a_purged_guest_is_gone() {
    let host = VmHost::new(Engine::Fake);
    let folders = || fs::read_dir(host.path("var/opt/hpvm/uuids")).expect("a folder").count();
    host.ok(&["hpvmcreate", "-P", "now"]);
    host.ok(&["hpvmcreate", "-P", "later"]);
    host.ok(&["hpvmremove", "-P", "now", "-F", "--purge"]);
    refused(&host, &["hpvm", "undelete", "-P", "now"]);
    assert_eq!(folders(), 1);
    host.ok(&["hpvmremove", "-P", "later", "-F"]);
    assert_eq!(folders(), 1, "it is kept");
    host.ok(&["hpvmremove", "-P", "later", "-F", "--purge"]);
    assert_eq!(folders(), 0);
    refused(&host, &["hpvm", "undelete", "-P", "later"]);
    let doctor = host.run(&["hpvm", "doctor"]);
    assert!(doctor.status.success(), "{doctor}");
}

/// Whoever gets the number next has a run folder of that name, which no removal may meet.
fn a_number_is_free_only_when_nothing_in_run_has_it() {
    let mut host = VmHost::new(Engine::Fake);
    host.ok(&["hpvmcreate", "-P", "old"]);
    host.ok(&["hpvmstart", "-P", "old"]);
    host.ok(&["hpvmstop", "-P", "old", "-F"]);
    assert!(host.run_dir(1).exists(), "it tells how the guest ended");
    host.environment("HPVM_ABORT_AT", "remove.committed");
    let killed = host.run(&["hpvmremove", "-P", "old", "-F", "--purge"]);
    assert_eq!(killed.status.code(), None, "{killed}");
    host.without_environment("HPVM_ABORT_AT");
    assert!(!host.run_dir(1).exists());
    host.ok(&["hpvmcreate", "-P", "new"]);
    assert_eq!(number_of(&host, "new"), 1);
}

fn removed_guests_are_kept_as_long_as_configured() {
    let mut host = VmHost::new(Engine::Fake);
    let kept_days = |host: &VmHost, name: &str| {
        let export = export(host);
        let removed = export["removed"].as_array().expect("a list").clone();
        let guest = removed.iter().find(|guest| guest["guest"]["name"] == name)?.clone();
        let time = |key: &str| guest[key].as_str()?.parse::<jiff::Timestamp>().ok();
        let kept = time("keep_until")?.duration_since(time("removed_at")?);
        // A day counts from a moment before the guest was marked removed.
        Some((kept.as_secs() + 60) / 86_400)
    };
    for (name, days, kept) in
        [("a", "", Some(7)), ("b", "30", Some(30)), ("c", "1", Some(1)), ("d", "0", None)]
    {
        host.set("HPVMKEEPREMOVED", days);
        host.ok(&["hpvmcreate", "-P", name]);
        host.ok(&["hpvmremove", "-P", name, "-F"]);
        assert_eq!(kept_days(&host, name), kept, "HPVMKEEPREMOVED={days}");
    }
    host.set("HPVMKEEPREMOVED", "");
    // Time passes for a and b; the next hpvmremove clears a, `hpvm autostart` clears b.
    let folders =
        |host: &VmHost| fs::read_dir(host.path("var/opt/hpvm/uuids")).expect("a folder").count();
    make_overdue(&host, "a");
    host.ok(&["hpvmcreate", "-P", "e"]);
    assert!(kept_days(&host, "a").is_some(), "other commands leave it");
    host.ok(&["hpvmremove", "-P", "e", "-F"]);
    assert_eq!(kept_days(&host, "a"), None);
    assert_eq!(folders(&host), 3, "b, c and e are left");
    make_overdue(&host, "b");
    host.ok(&["hpvm", "autostart"]);
    assert_eq!(folders(&host), 2);
    host.ok(&["hpvm", "undelete", "-P", "c"]);
}

/// Time passes for a removed guest.
pub(crate) fn make_overdue(host: &VmHost, name: &str) {
    let connection =
        rusqlite::Connection::open(host.path("var/opt/hpvm/hpvm.db")).expect("a database");
    let sql = "UPDATE guest SET keep_until = removed_at - 1 WHERE name = ?1";
    assert_eq!(connection.execute(sql, [name]).expect("it is set"), 1);
}

/// The command's own guest is removed, another overdue one is cleared, and the warning names the one that is left.
fn what_cannot_be_cleared_is_told_of_and_keeps_nothing_else() {
    let host = VmHost::new(Engine::Fake);
    for remover in [&["hpvmremove", "-P", "new", "-F"][..], &["hpvm", "autostart"]] {
        for name in ["stuck", "old", "new"] {
            host.ok(&["hpvmcreate", "-P", name]);
        }
        let uuid = |name| stored(&host, name)["uuid"].as_str().expect("a uuid").to_owned();
        let folder = |uuid: &str| host.path("var/opt/hpvm/uuids").join(uuid);
        let (stuck, old) = (folder(&uuid("stuck")), folder(&uuid("old")));
        for name in ["stuck", "old"] {
            host.ok(&["hpvmremove", "-P", name, "-F"]);
        }
        make_overdue(&host, "stuck");
        make_overdue(&host, "old");
        let mounted = Mounted::tmpfs(&stuck, 4 << 20);
        let outcome = host.run(remover);
        assert!(outcome.status.success(), "{outcome}");
        let said = &outcome.stderr;
        assert!(said.contains("WARNING: what was kept of removed guest 'stuck'"), "{said}");
        assert!(said.contains("Device or resource busy"), "{said}");
        assert_eq!(said.matches("WARNING").count(), 1, "{said}");
        assert!(!old.exists(), "the other is cleared: {said}");
        drop(mounted);
        host.ok(&["hpvm", "doctor", "--repair"]);
        assert!(!stuck.exists(), "the doctor clears what was left");
        host.run(&["hpvmremove", "-P", "new", "-F", "--purge"]);
        let listed = host.ok(&["hpvmstatus"]);
        assert!(!listed.contains("new"), "{listed}");
    }
}

fn an_administrators_files_are_touched_by_no_removal() {
    let host = VmHost::new(Engine::Fake);
    let disk = host.disk("web.img", 1 << 20);
    fs::write(&disk, "the administrator's").expect("content");
    let statement = disk_on(&disk);
    host.ok(&["hpvmcreate", "-P", "web", "-a", &statement]);
    let metadata = |path| fs::metadata(path).and_then(|m| Ok((m.len(), m.modified()?))).ok();
    let before = metadata(&disk);
    host.ok(&["hpvmremove", "-P", "web", "-F"]);
    host.ok(&["hpvm", "undelete", "-P", "web"]);
    host.ok(&["hpvmremove", "-P", "web", "-F", "--purge"]);
    assert_eq!(metadata(&disk), before);
}
