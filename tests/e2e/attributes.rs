//! What a guest is called and said to be: name, label, start type, entitlement, whether it may run. Each is kept as it was
//! given and shown wherever people look.

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use hpvm_testkit::vm_host::{Engine, VmHost};

use crate::Test;
use crate::limits::{fields, warned_once};
use crate::refusals::{refused, stored};

pub(crate) const TESTS: &[Test] = crate::tests![
    attributes_are_kept_and_shown,
    a_guest_may_be_marked_not_runnable,
    entitlements_are_kept_as_given,
    the_texts_say_what_a_guest_has_and_will_have,
    a_guest_is_renamed_off_and_running,
];

const UP: Duration = Duration::from_secs(20);

fn attributes_are_kept_and_shown() {
    let host = VmHost::new(Engine::Fake);
    host.ok(&["hpvmcreate", "-P", "web", "-l", "The web server 1.0", "-B", "AUTO"]);
    let all = |host: &VmHost| fields(host, "web").into_values().collect::<BTreeSet<_>>();
    assert!(all(&host).contains("The web server 1.0"), "{:?}", fields(&host, "web"));
    assert!(all(&host).contains("Auto"), "{:?}", fields(&host, "web"));
    host.ok(&["hpvmmodify", "-P", "web", "-l", "", "-B", "Manual"]);
    assert!(!all(&host).contains("The web server 1.0"));
    assert!(all(&host).contains("Manual"), "{:?}", fields(&host, "web"));
}

fn a_guest_may_be_marked_not_runnable() {
    let host = VmHost::new(Engine::Fake);
    host.ok(&["hpvmcreate", "-P", "web", "-r", "64M", "-x", "runnable_status=disabled"]);
    let outcome = host.run(&["hpvmstart", "-P", "web"]);
    assert_eq!(outcome.status.code(), Some(1), "{outcome}");
    assert!(outcome.stderr.contains("not runnable"), "{outcome}");
    let why = host.ok(&["hpvm", "why", "web"]);
    assert!(why.contains("hpvmmodify -P web -x runnable_status=enabled"), "{why}");
    host.ok(&["hpvmmodify", "-P", "web", "-x", "runnable_status=ENABLED"]);
    host.ok(&["hpvmstart", "-P", "web"]);
    // A guest that runs goes on when it is marked.
    host.ok(&["hpvmmodify", "-P", "web", "-x", "runnable_status=disabled"]);
    host.wait_for_state("web", "On (OS)", UP);
}

/// Settles 83, 85.
fn entitlements_are_kept_as_given() {
    let host = VmHost::new(Engine::Fake);
    for (name, letter, given, shown) in [
        ("a", "-e", "12.5", "12.5%"),
        ("b", "-e", "5", "5.0%"),
        ("c", "-e", "20:50", "20.0%:50.0%"),
        ("d", "-E", "1000", "1000 MHz"),
        ("e", "-E", "1000:1500", "1000 MHz:1500 MHz"),
    ] {
        let outcome = host.run(&["hpvmcreate", "-P", name, letter, given]);
        warned_once(&outcome, "nothing enforces it yet");
        let dry = host.run(&["hpvmcreate", "-P", "new", letter, given, "-s"]);
        assert!(dry.stdout.contains(shown), "{dry}");
        let text = fs::read_to_string(
            host.path(&format!("var/opt/hpvm/guests/{name}/vmm_config.current")),
        );
        let line = format!("entitlement={shown}");
        assert!(text.expect("the text for people").lines().any(|l| l == line), "{name}: {line}");
    }
    let outcome = host.run(&["hpvmcreate", "-P", "f", "-e", "10", "-E", "100"]);
    assert_eq!(outcome.status.code(), Some(2), "{outcome}");
    // Nothing was asked, so there is nothing to warn of.
    assert_eq!(host.run(&["hpvmmodify", "-P", "a", "-l", "x"]).stderr, "");
}

fn the_texts_say_what_a_guest_has_and_will_have() {
    let host = VmHost::new(Engine::Fake);
    host.ok(&["hpvmcreate", "-P", "web", "-c", "1"]);
    host.ok(&["hpvmstart", "-P", "web"]);
    host.wait_for_state("web", "On (OS)", UP);
    let folder = host.path("var/opt/hpvm/guests/web");
    let vcpus = |name: &str| {
        let text = fs::read_to_string(folder.join(name)).ok()?;
        text.lines().find_map(|line| Some(line.strip_prefix("vcpus=")?.to_owned()))
    };
    let both = || (vcpus("vmm_config.current"), vcpus("vmm_config.next"));
    assert_eq!(both(), (Some("1".into()), None));
    host.ok(&["hpvmmodify", "-P", "web", "-c", "2"]);
    assert_eq!(both(), (Some("1".into()), Some("2".into())));
    host.ok(&["hpvmstop", "-P", "web", "-F"]);
    host.ok(&["hpvmstart", "-P", "web"]);
    assert_eq!(both(), (Some("2".into()), None));
}

fn a_guest_is_renamed_off_and_running() {
    let host = VmHost::new(Engine::Fake);
    host.ok(&["hpvmcreate", "-P", "old", "-r", "64M"]);
    let target = |name: &str| fs::read_link(host.path(&format!("var/opt/hpvm/guests/{name}"))).ok();
    let folder = target("old").expect("a link");
    let config = stored(&host, "old");
    let uuid = config["uuid"].as_str().expect("a uuid");
    assert_eq!(folder.to_str(), Some(format!("../uuids/{uuid}").as_str()));
    host.ok(&["hpvmmodify", "-P", "old", "-N", "new"]);
    assert_eq!((target("old"), target("new").as_ref()), (None, Some(&folder)));
    refused(&host, &["hpvmstatus", "-P", "old"]);
    host.ok(&["hpvmstart", "-P", "new"]);
    host.wait_for_state("new", "On (OS)", UP);
    let engine = host.snapshot(1).expect("it runs").qemu.pid;
    host.ok(&["hpvmmodify", "-P", "new", "-N", "newer"]);
    assert_eq!((target("new"), target("newer").as_ref()), (None, Some(&folder)));
    assert_eq!(host.state("newer"), "On (OS)");
    assert_eq!(host.snapshot(1).expect("it runs").qemu.pid, engine, "it runs on");
    // Its name, uuid and number lead to the same guest; the old name is free.
    host.ok(&["hpvmcreate", "-P", "new", "-r", "64M"]);
    refused(&host, &["hpvmmodify", "-P", "newer", "-N", "new"]);
    host.ok(&["hpvmmodify", "-p", "1", "-N", "newer", "-l", "the same name is no rename"]);
    host.ok(&["hpvmstop", "-P", "newer", "-F"]);
    assert_eq!(host.state("newer"), "Off");
    let doctor = host.run(&["hpvm", "doctor"]);
    assert!(doctor.status.success(), "{doctor}");
}
