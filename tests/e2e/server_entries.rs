//! Entries of VM Hosts in the device database, by the command line alone: made, listed, changed, deleted, and what is refused.

use hpvm_testkit::vm_host::{Engine, VmHost};

use crate::Test;
use crate::refusals::{State, refused};

pub(crate) const TESTS: &[Test] =
    crate::tests![a_vm_host_has_an_entry_from_its_addition_to_its_deletion];

/// The lines of a list that are about VM Hosts.
fn listed(host: &VmHost, what: &str) -> Vec<String> {
    let list = host.ok(&["hpvmdevmgmt", "-l", what]);
    list.lines().filter(|line| line.contains("CONFIG=server")).map(str::to_owned).collect()
}

fn a_vm_host_has_an_entry_from_its_addition_to_its_deletion() {
    let host = VmHost::new(Engine::Fake);
    let own = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let own_line = format!("{own}:CONFIG=server,EXIST=YES::");
    assert_eq!(listed(&host, "server"), [&*own_line], "this VM Host is listed without an entry");

    host.ok(&["hpvmdevmgmt", "-a", "server:host-2.example"]);
    let with = |attributes: &str| {
        let mut lines = vec![own_line.clone()];
        lines.push(format!("host-2.example:CONFIG=server,EXIST=YES{attributes}::"));
        lines.sort();
        lines
    };
    assert_eq!(listed(&host, "server"), with(""));
    assert_eq!(listed(&host, "all"), with(""));
    host.ok(&["hpvmdevmgmt", "-m", "server:host-2.example:attr:PRESERVE=YES"]);
    assert_eq!(listed(&host, "server"), with(",PRESERVE=YES"));
    assert_eq!(listed(&host, "server:PRESERVE=YES").len(), 1);
    what_is_no_such_entry_is_refused(&host, &own);
    host.ok(&["hpvmdevmgmt", "-d", "server:host-2.example:attr:PRESERVE"]);
    assert_eq!(listed(&host, "server"), with(""));
    host.ok(&["hpvmdevmgmt", "-d", "server:host-2.example"]);
    assert_eq!(listed(&host, "server"), [&*own_line]);
}

fn what_is_no_such_entry_is_refused(host: &VmHost, own: &str) {
    let before = State::of(host);
    let own = format!("server:{own}");
    for (line, why) in [
        (["-a", "server:host-2.example"], "server:host-2.example is there already"),
        (["-a", "server:"], "names no entry"),
        (["-a", "server:a/b"], "is no name of a VM Host"),
        (["-a", "server:a b"], "is no name of a VM Host"),
        (["-m", "server:host-2.example:attr:SHARE=YES"], "those are PRESERVE"),
        (["-m", "server:host-2.example:attr:ALLOW=GUEST"], "those are PRESERVE"),
        (["-m", "server:host-2.example:attr:PRESERVE=2"], "PRESERVE"),
        (["-m", "server:host-3:attr:PRESERVE=YES"], "there is no entry server:host-3"),
        (["-d", "server:host-3"], "there is no entry server:host-3"),
        (["-d", &own], "is this VM Host itself"),
        (["-n", "server:host-2.example:host-3"], "has no path that could be replaced"),
        (["-l", "server:host-3"], "no entry has the name 'host-3'"),
    ] {
        let said = refused(host, &["hpvmdevmgmt", line[0], line[1]]);
        assert!(said.contains(why), "{line:?}: {said}");
        before.assert_unchanged(host, &line.join(" "));
    }
}
