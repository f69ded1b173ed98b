//! The seven commands in their everyday use.

use hpvm_testkit::guest::Console;

use crate::Test;
use crate::pool::{Leased, image};
use hpvm_testkit::vm_host::{Engine, VmHost};

pub(crate) const TESTS: &[Test] =
    crate::tests![a_guest_is_created_listed_and_removed, a_guest_boots_from_avio_stor];

fn a_guest_is_created_listed_and_removed() {
    let host = VmHost::new(Engine::Fake);
    assert_eq!(host.ok(&["hpvmcreate", "-P", "web"]), "");
    assert_eq!(host.state("web"), "Off");
    host.ok(&["hpvmremove", "-P", "web", "-F"]);
    assert!(!host.ok(&["hpvmstatus"]).contains("web"));
    host.ok(&["hpvm", "undelete", "-P", "web"]);
    assert_eq!(host.state("web"), "Off");
}

fn a_guest_boots_from_avio_stor() {
    let mut guest = Leased::take();
    assert_eq!(guest.host().state("pool"), "On (OS)");
    assert!(guest.console().run("cat /proc/cmdline").contains("quiet"));
    let _ = (image("test-cloud"), Console::attach(&guest.host().run_dir(1)));
}
