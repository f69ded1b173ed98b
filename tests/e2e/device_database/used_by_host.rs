//! What the VM Host itself uses, as hpvmhostrdev lists it.

use std::time::Duration;

use hpvm_testkit::vm_host::{Engine, VmHost};

use crate::Test;
use crate::refusals::refused;

pub(crate) const TESTS: &[Test] = crate::tests![
    what_the_host_uses_is_listed_and_what_was_typed_stays,
    the_list_is_made_at_the_start_unless_told_otherwise,
];

/// Without loop devices, which other tests on this machine attach and detach meanwhile.
fn lasting(lines: &str) -> String {
    let lasting = lines.lines().filter(|line| !line.contains("/dev/loop"));
    lasting.map(|line| format!("{line}\n")).filter(|line| line != "nothing changed\n").collect()
}

fn what_the_host_uses_is_listed_and_what_was_typed_stays() {
    let host = VmHost::new(Engine::Fake);
    host.ok(&["hpvmdevmgmt", "-a", "rdev:/media"]);
    let list = || lasting(&host.ok(&["hpvmdevmgmt", "-l", "rdev:AUTORDEV=YES"]));
    let dry = host.ok(&["hpvmhostrdev", "-u", "--dry-run"]);
    assert_eq!(list(), "");
    let done = host.ok(&["hpvmhostrdev", "-u"]);
    assert_eq!(lasting(&dry), lasting(&done), "a dry run tells what is done");
    let listed = list();
    let first = listed.split(':').next().filter(|name| name.starts_with("/dev/"));
    let first = first.expect("this machine uses a block device");
    let allow = format!("rdev:{first}:attr:ALLOW=GUEST");
    host.ok(&["hpvmdevmgmt", "-m", &allow, "--reason", "it is given away"]);
    host.ok(&["hpvmhostrdev", "-d"]);
    assert!(list().starts_with(&format!("{first}:")), "what was said of a device stays");
    host.ok(&["hpvmdevmgmt", "-d", &format!("rdev:{first}:attr:ALLOW")]);
    host.ok(&["hpvmhostrdev", "-u"]);
    assert_eq!(list(), listed);
    host.ok(&["hpvmhostrdev", "-d"]);
    assert_eq!(list(), "");
    assert!(host.ok(&["hpvmdevmgmt", "-l", "rdev:/media"]).starts_with("/media:"));
    host.ok(&["hpvmhostrdev", "-r"]);
    assert_eq!(list(), listed);
    for device in listed.lines().filter_map(|line| line.split(':').next()) {
        let said = refused(&host, &["hpvmdevmgmt", "-d", &format!("rdev:{device}")]);
        assert!(said.contains("this VM Host uses"), "{said}");
    }
    let both = host.run(&["hpvmhostrdev", "-u", "-d"]);
    assert_eq!(both.status.code(), Some(2), "{both}");
}

/// Settles 2: nobody has to start a scan; it is quick, and each decision looks anew whatever it said.
fn the_list_is_made_at_the_start_unless_told_otherwise() {
    const BOUND: Duration = Duration::from_secs(5);
    let host = VmHost::new(Engine::Fake);
    let list = || lasting(&host.ok(&["hpvmdevmgmt", "-l", "rdev:AUTORDEV=YES"]));
    host.ok(&["hpvmhostrdev", "-D"]);
    host.ok(&["hpvm", "autostart"]);
    assert_eq!(list(), "");
    host.ok(&["hpvmhostrdev", "-E"]);
    let wanted = lasting(&host.ok(&["hpvmhostrdev", "-u", "--dry-run"])).lines().count();
    assert!(wanted > 0, "this machine uses a block device");
    let listed = host.run(&["hpvm", "autostart"]);
    assert!(listed.status.success() && listed.took < BOUND, "{:?}: {listed}", listed.took);
    assert_eq!(list().lines().filter(|line| line.starts_with('/')).count(), wanted, "{}", list());
}
