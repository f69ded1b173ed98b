//! hpvmclone of a running guest: what is copied and what is not, and that its engine is afterwards as it was. That a copy is of one
//! moment, and what becomes of one that is interfered with, are in the modules below.

pub(crate) mod interfered;
pub(crate) mod one_moment;
pub(crate) mod silent;
mod slow;
pub(crate) mod to_devices;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::process::Command;
use std::time::Duration;

use hpvm_app::snapshot::Agent;
use hpvm_testkit::vm_host::{Engine, VmHost};
use hpvm_testkit::wait::wait_until;

use self::slow::engine_is_as_it_was;
use crate::Test;
use crate::clone::{fill, nothing_is_left, on, with_web};

pub(crate) const TESTS: &[Test] = crate::tests![
    a_running_guest_is_copied_and_told_how,
    disks_of_a_running_guest_are_not_linked,
    no_link_to_a_running_guests_own_image_is_proposed,
    images_of_a_running_guest_are_copied,
];

const BOUND: Duration = Duration::from_secs(30);
const MIB: u64 = 1 << 20;

/// With an agent, without one, and with one that may not hold file systems.
fn a_running_guest_is_copied_and_told_how() {
    for (behaviour, told) in [
        ("agent=answers", None),
        ("text=login:", Some("no agent runs in it")),
        ("agent=cannot", Some("has been disabled")),
    ] {
        let mut host = with_web();
        host.engine_behaves(behaviour);
        host.ok(&["hpvmstart", "-P", "web"]);
        if behaviour.starts_with("agent") {
            let answers =
                || matches!(host.snapshot(1).expect("it runs").agent, Agent::Answers { .. });
            wait_until(BOUND, "the agent answers", answers);
        }
        for name in ["new", "another"] {
            let copy = host.path(&format!("{name}.img"));
            let said = host.run(&["hpvmclone", "-P", "web", "-N", name, "-b", &on(&copy, "file")]);
            assert!(said.status.success(), "{said}");
            assert_eq!(said.stderr.matches("at one moment").count(), told.iter().count(), "{said}");
            assert!(said.stderr.contains(told.unwrap_or_default()), "{said}");
            assert_eq!(fs::read(&copy).unwrap(), fs::read(host.path("web.img")).unwrap());
            assert_eq!(variables(&host, "web"), variables(&host, name));
            engine_is_as_it_was(&host);
        }
        host.wait_for_state("web", "On (OS)", BOUND);
        assert_eq!(host.ok(&["hpvm", "doctor"]), "Nothing to complain of.\n");
    }
}

fn disks_of_a_running_guest_are_not_linked() {
    let host = with_web();
    host.ok(&["hpvmstart", "-P", "web"]);
    let said = host.refused(&["hpvmclone", "-P", "web", "-N", "new", "--linked"]);
    assert!(
        said.contains("must only be read") && said.contains("copy its disks with -b"),
        "{said}"
    );
    nothing_is_left(&host, host.root());
    // The configuration alone can be had.
    host.ok(&["hpvmclone", "-P", "web", "-N", "new"]);
}

/// An image that is its guest's alone gets a copy; as long as the guest runs nothing else is proposed.
fn no_link_to_a_running_guests_own_image_is_proposed() {
    let host = VmHost::new(Engine::Real);
    let disk = host.disk("web.img", MIB);
    host.ok(&["hpvmcreate", "-P", "web", "-r", "512M", "-a", &on(&disk, "file")]);
    host.ok(&["hpvmclone", "-P", "web", "-N", "own", "--linked"]);
    let clone = ["hpvmclone", "-P", "own", "-N", "new"];
    assert!(host.refused(&clone).contains("--linked gives 'new'"), "it is off");
    host.ok(&["hpvmstart", "-P", "own"]);
    let said = host.refused(&clone);
    let proposed = "-b disk:avio_stor:0,1,0:qcow2:/PATH";
    assert!(!said.contains("--linked") && said.contains(proposed), "{said}");
    let copy = host.path("copy.qcow2");
    let typed = proposed.replace("/PATH", &copy.to_string_lossy());
    let mut line = clone.to_vec();
    line.extend(typed.split(' '));
    host.ok(&line);
    assert!(copy.exists());
}

fn variables(host: &VmHost, name: &str) -> Vec<u8> {
    fs::read(host.path("var/opt/hpvm/guests").join(name).join("nvram")).expect("variables")
}

/// An image of its own, and one over another, which its copy is over too.
fn images_of_a_running_guest_are_copied() {
    let host = VmHost::new(Engine::Real);
    fill(&host.disk("web.img", 64 * MIB), 8);
    let (image, own) = (host.path("own.qcow2"), host.path("web.img"));
    let convert = ["convert", "-f", "raw", "-O", "qcow2"];
    let made = Command::new("qemu-img").args(convert).args([&own, &image]).status();
    assert!(made.expect("qemu-img").success());
    let second = format!("disk:avio_stor:0,1,1:qcow2:{}", image.display());
    host.ok(&["hpvmcreate", "-P", "base", "-r", "512M", "-a", &on(&own, "file"), "-a", &second]);
    host.ok(&["hpvmclone", "-P", "base", "-N", "web", "--linked"]);
    host.ok(&["hpvmstart", "-P", "web"]);
    let (a, b) = (host.path("a.qcow2"), host.path("b.qcow2"));
    let second = format!("disk:avio_stor:0,1,1:qcow2:{}", b.display());
    host.ok(&["hpvmclone", "-P", "web", "-N", "new", "-b", &on(&a, "qcow2"), "-b", &second]);
    for (copy, size) in [(&a, 64 * MIB), (&b, 64 * MIB)] {
        let allocated = fs::metadata(copy).expect("a copy").blocks() * 512;
        assert!(allocated < MIB, "what lies below is not copied: {allocated} of {size} bytes");
        let same = ["compare", "-f", "qcow2", "-F", "raw"];
        let same = Command::new("qemu-img").args(same).args([copy, &own]).output();
        assert!(same.expect("qemu-img").status.success(), "{}", copy.display());
        let check = Command::new("qemu-img").args(["check", "-f", "qcow2"]).arg(copy).output();
        assert!(check.expect("qemu-img").status.success(), "{}", copy.display());
    }
    host.ok(&["hpvmstart", "-P", "new"]);
    host.ok(&["hpvmstop", "-P", "new", "-F"]);
    // One that stands alone.
    host.ok(&["hpvmstop", "-P", "web", "-F"]);
    host.ok(&["hpvmremove", "-P", "new", "-F", "--purge"]);
    host.ok(&["hpvmremove", "-P", "web", "-F", "--purge"]);
    host.ok(&["hpvmstart", "-P", "base"]);
    let alone = host.path("alone.qcow2");
    let statement = format!("disk:avio_stor:0,1,1:qcow2:{}", alone.display());
    host.ok(&["hpvmclone", "-P", "base", "-N", "new", "-b", &statement]);
    let same = ["compare", "-f", "qcow2", "-F", "qcow2"];
    let same = Command::new("qemu-img")
        .args(same)
        .args(["-U".as_ref(), alone.as_os_str(), image.as_os_str()])
        .output();
    assert!(same.expect("qemu-img").status.success());
    engine_is_as_it_was(&host);
}
