//! A registry that is lost, damaged or older than the guests' folders: commands refuse to go on with it, and `hpvm doctor` makes it
//! anew without losing what anybody knows.

use std::fs;
use std::path::Path;

use hpvm_registry::{Access, Registry};
use hpvm_testkit::vm_host::{Engine, VmHost};

use super::{Known, NOTHING, folder, forget, host_with_guests, number, number_of_the_dead};
use crate::Test;
use crate::terminal::Terminal;

pub(crate) const TESTS: &[Test] = crate::tests![
    a_lost_registry_is_refused_and_rebuilt,
    a_damaged_registry_is_refused_and_rebuilt,
    a_registry_without_its_log_is_refused_and_rebuilt,
    an_older_registry_is_refused_and_rebuilt,
    a_first_guest_whose_creation_was_cut_off_is_made_known,
    a_guest_that_the_registry_lost_keeps_its_number,
    a_sound_registry_survives_a_rebuild,
    a_rebuild_names_each_guest_that_it_cannot_bring_back,
    what_changes_while_a_rebuild_asks_is_not_lost,
    a_rebuild_takes_no_draft_for_a_guest,
];

fn a_lost_registry_is_refused_and_rebuilt() {
    rebuilt_after(|host| {
        for name in ["hpvm.db", "hpvm.db-wal", "hpvm.db-shm"] {
            let _ = fs::remove_file(host.path("var/opt/hpvm").join(name));
        }
    });
}

fn a_damaged_registry_is_refused_and_rebuilt() {
    rebuilt_after(|host| {
        let db = host.path("var/opt/hpvm/hpvm.db");
        fs::write(&db, b"this was a registry".repeat(1000)).expect("the registry is damaged");
    });
}

fn a_registry_without_its_log_is_refused_and_rebuilt() {
    let host = host_with_guests();
    host.ok(&["hpvmstart", "-P", "full"]);
    let engine = host.snapshot(number(&host, "full")).expect("it runs").qemu;
    host.ok(&["hpvmremove", "-P", "old", "-F"]);
    let before = Known::to(&host);
    fs::remove_file(host.path("var/opt/hpvm/hpvm.db-wal")).expect("the log is lost");
    for line in [&["hpvmstatus"][..], &["hpvmstart", "-P", "web"], &["hpvmcreate", "-P", "new"]] {
        let said = host.refused(line);
        assert!(said.contains("hpvm doctor --rebuild"), "{}: {said}", line.join(" "));
    }
    let told = host.run(&["hpvm", "doctor"]);
    assert!(told.stdout.contains("the registry does not know guest"), "{told}");
    assert!(told.stdout.ends_with("is lost\n  next: hpvm doctor --rebuild\n"), "{told}");
    host.ok(&["hpvm", "doctor", "--rebuild"]);
    assert_eq!(Known::to(&host), before);
    assert_eq!(host.ok(&["hpvm", "doctor"]), NOTHING);
    assert_eq!(host.snapshot(number(&host, "full")).map(|s| s.qemu), Some(engine));
}

/// Some guests are in the file, and the others were in the log alone.
fn an_older_registry_is_refused_and_rebuilt() {
    let host = VmHost::new(Engine::Fake);
    host.ok(&["hpvmcreate", "-P", "first"]);
    move_log(&host);
    host.ok(&["hpvmcreate", "-P", "second"]);
    host.ok(&["hpvmcreate", "-P", "third"]);
    let before = Known::to(&host);
    fs::write(host.path("var/opt/hpvm/hpvm.db-wal"), "").expect("the log is emptied");
    assert_eq!(Known::to(&host).guests.len(), 1, "an older registry");
    for line in [&["hpvmstatus"][..], &["hpvmcreate", "-P", "new"], &["hpvmnet"]] {
        let said = host.refused(line);
        let told = "does not know guest 'second', nor 1 more, whose folder is there";
        assert!(said.contains(told) && said.contains("hpvm doctor --rebuild"), "{said}");
    }
    host.ok(&["hpvm", "doctor", "--rebuild"]);
    assert_eq!(Known::to(&host), before);
    assert_eq!(host.ok(&["hpvm", "doctor"]), NOTHING);
    // A log that others moved to the file is no loss.
    move_log(&host);
    host.ok(&["hpvmstatus"]);
}

/// As a power cut leaves it: the folder is there, and the commit is not. Nothing older can be meant, so a repair does.
fn a_first_guest_whose_creation_was_cut_off_is_made_known() {
    let host = VmHost::new(Engine::Fake);
    host.ok(&["hpvmcreate", "-P", "first"]);
    let before = Known::to(&host);
    fs::write(host.path("var/opt/hpvm/hpvm.db-wal"), "").expect("the log is emptied");
    for line in [&["hpvmstatus"][..], &["hpvmcreate", "-P", "new"], &["hpvmstart", "-P", "first"]] {
        let said = host.refused(line);
        let told = "does not know guest 'first', whose folder is there: its creation was cut off";
        assert!(said.contains(told), "{said}");
        assert!(said.ends_with("`hpvm doctor --repair` makes it known\n"), "{said}");
    }
    host.ok(&["hpvm", "doctor", "--repair"]);
    assert_eq!(Known::to(&host).guests, before.guests);
    assert_eq!(host.ok(&["hpvm", "doctor"]), NOTHING);
}

/// As the sqlite3 shell does at its end.
fn move_log(host: &VmHost) {
    let registry = rusqlite::Connection::open(host.path("var/opt/hpvm/hpvm.db")).expect("it");
    let moved = registry.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0));
    assert_eq!(moved, Ok(0), "all of it");
}

fn a_guest_that_the_registry_lost_keeps_its_number() {
    let host = VmHost::new(Engine::Fake);
    host.ok(&["hpvmcreate", "-P", "first"]);
    host.ok(&["hpvmcreate", "-P", "second"]);
    host.ok(&["hpvmstart", "-P", "second"]);
    let lost = number(&host, "second");
    forget(&host, "second");
    host.ok(&["hpvmcreate", "-P", "third"]);
    assert_eq!(number(&host, "third"), lost + 1);
    let identity = fs::read_to_string(folder(&host, "third").join("guest.json")).expect("a text");
    assert!(identity.contains(&format!("\"number\": {},", lost + 1)), "{identity}");
    host.ok(&["hpvm", "doctor", "--repair"]);
    assert_eq!(host.state("second"), "On (EFI)");
    host.ok(&["hpvmstop", "-P", "second", "-F"]);
    // Of no guest at all nothing is shown while there are folders of some.
    for name in ["first", "second", "third"] {
        forget(&host, name);
    }
    for line in [&["hpvmstatus"][..], &["hpvmstatus", "-P", "first"], &["hpvmcreate", "-P", "new"]]
    {
        let said = host.refused(line);
        assert!(said.contains("does not know guest 'first', nor 2 more"), "{said}");
    }
    host.ok(&["hpvm", "doctor", "--repair"]);
    host.ok(&["hpvmcreate", "-P", "new"]);
    assert_eq!(number(&host, "new"), lost + 2);
}

/// Whatever the registry loses, the folders bring back: every guest with every field, removed ones as removed, while a guest
/// runs.
fn rebuilt_after(fault: fn(&VmHost)) {
    let host = host_with_guests();
    host.ok(&["hpvmstart", "-P", "full"]);
    let engine = host.snapshot(number(&host, "full")).expect("it runs").qemu;
    host.ok(&["hpvmremove", "-P", "old", "-F"]);
    let before = Known::to(&host);
    fault(&host);
    for line in [
        &["hpvmstatus"][..],
        &["hpvmcreate", "-P", "new"],
        &["hpvmstart", "-P", "web"],
        &["hpvmremove", "-P", "web", "-F"],
        &["hpvm", "doctor"],
        &["hpvm", "doctor", "--repair"],
    ] {
        let said = host.refused(line);
        assert!(said.contains("hpvm doctor --rebuild"), "{}: {said}", line.join(" "));
    }
    host.ok(&["hpvm", "doctor", "--rebuild"]);
    assert_eq!(Known::to(&host), before);
    assert_eq!(host.ok(&["hpvm", "doctor"]), NOTHING);
    assert_eq!(host.snapshot(number(&host, "full")).map(|s| s.qemu), Some(engine));
    host.ok(&["hpvmstop", "-P", "full", "-F"]);
    host.ok(&["hpvm", "undelete", "-P", "old"]);
    for name in ["web", "full", "old"] {
        host.ok(&["hpvmstart", "-P", name]);
    }
}

fn a_sound_registry_survives_a_rebuild() {
    let host = host_with_guests();
    host.ok(&["hpvmremove", "-P", "old", "-F"]);
    let before = Known::to(&host);
    host.ok(&["hpvmdevmgmt", "-a", "rdev:/media"]);
    let kept = host.ok(&["hpvm", "undelete", "--list"]);
    let said = host.refused(&["hpvm", "doctor", "--rebuild"]);
    assert!(said.contains("The registry is sound. Rebuild it all the same?"), "{said}");
    host.ok(&["hpvm", "doctor", "--rebuild", "--dry-run"]);
    let told = host.ok(&["hpvm", "doctor", "--rebuild", "-F"]);
    assert!(told.contains("with 2 guests, 1 removed guest still kept"), "{told}");
    assert!(!told.contains("Not brought back"), "{told}");
    assert!(!host.ok(&["hpvmdevmgmt", "-l", "rdev:/media"]).is_empty());
    assert!(host.ok(&["hpvmstatus", "-e"]).contains("hpvmdevmgmt -a rdev:/media"));
    assert_eq!(host.ok(&["hpvm", "undelete", "--list"]), kept);
    assert_eq!(Known::to(&host), before);
    assert_eq!(host.ok(&["hpvm", "doctor"]), NOTHING);
}

fn a_rebuild_names_each_guest_that_it_cannot_bring_back() {
    let host = host_with_guests();
    let (web, elsewhere) = (folder(&host, "web"), host.path("elsewhere"));
    let before = Known::to(&host);
    fs::rename(&web, &elsewhere).expect("the folder is moved");
    let loss = |how: &str| {
        format!(
            "Guest 'web' (number 1) {how} brought back: its folder {} is missing.",
            web.display()
        )
    };
    let said = host.refused(&["hpvm", "doctor", "--rebuild"]);
    assert!(said.contains(&loss("would not be")) && said.contains("Rebuild it"), "{said}");
    let told = host.ok(&["hpvm", "doctor", "--rebuild", "--dry-run"]);
    assert!(told.contains(&loss("would not be")), "{told}");
    assert_eq!(Known::to(&host), before, "nothing was changed");
    let told = host.ok(&["hpvm", "doctor", "--rebuild", "-F"]);
    assert!(told.contains("with 2 guests") && told.contains(&loss("was not")), "{told}");
    let kept = told.split_once("The old one is kept as ").expect("where it is").1;
    let kept = kept.lines().next().expect("a line").trim_end_matches('.');
    let kept = Registry::open(Path::new(kept), Access::ReadOnly).expect("the old registry");
    assert_eq!(kept.all().expect("its guests"), before.guests);
}

/// Whoever reads the question has time to bring a folder back, and others to make guests, or to lose more.
fn what_changes_while_a_rebuild_asks_is_not_lost() {
    let host = host_with_guests();
    let folders = ["web", "full", "old"].map(|name| folder(&host, name));
    let hide = |n: usize| fs::rename(&folders[n], host.path(&format!("hidden{n}")));
    let show = |n: usize| fs::rename(host.path(&format!("hidden{n}")), &folders[n]);
    let [web, full, old] = ["web", "full", "old"].map(|name| format!("Guest '{name}' (number"));
    hide(0).expect("a folder is moved");
    hide(1).expect("a folder is moved");
    let mut terminal = Terminal::of(host.command(&["hpvm", "doctor", "--rebuild"]));
    terminal.expect(&web);
    terminal.expect(&full);
    terminal.expect("Rebuild it all the same?");
    show(0).expect("the folder is back");
    hide(2).expect("another folder is moved");
    host.ok(&["hpvmcreate", "-P", "new"]);
    terminal.type_in("y\n");
    // To the loss of this one nobody has agreed.
    terminal.expect(&full);
    terminal.expect(&old);
    terminal.expect("Rebuild it all the same?");
    show(1).expect("the folder is back");
    terminal.type_in("y\n");
    terminal.expect("with 3 guests");
    assert_eq!(terminal.ended(), Some(0));
    let names: Vec<String> = Known::to(&host).guests.iter().map(|g| g.name.to_string()).collect();
    assert_eq!(names, ["web", "full", "new"]);
}

/// What an interrupted creation leaves has a guest's text, and another name.
fn a_rebuild_takes_no_draft_for_a_guest() {
    let host = host_with_guests();
    let web = folder(&host, "web");
    let name = web.file_name().expect("a name").to_str().expect("a text");
    let draft = web.with_file_name(format!(".{name}.{}.0.new", number_of_the_dead()));
    forget(&host, "web");
    fs::rename(&web, &draft).expect("the folder gets a draft's name");
    let told = host.ok(&["hpvm", "doctor", "--rebuild", "-F"]);
    assert!(told.contains("with 2 guests") && !told.contains("still kept"), "{told}");
    assert_eq!(host.state("web"), "");
}
