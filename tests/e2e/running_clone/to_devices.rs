//! Disks of a running guest that are copied to devices, which keep their names and are others' meanwhile for nobody.

use std::fs;

use hpvm_testkit::vm_host::{Engine, VmHost};
use hpvm_testkit::wait::wait_until;

use super::slow::{Slow, Still, engine_is_as_it_was, left_in_engine};
use super::{BOUND, MIB};
use crate::Test;
use crate::clone::{fill, on, with_web};
use crate::guest_processes::process;
use crate::loop_device::LoopDevice;
use crate::started::Started;

pub(crate) const TESTS: &[Test] = crate::tests![
    a_disk_of_a_running_guest_is_copied_to_a_device,
    a_device_that_gets_a_running_guests_disk_is_given_to_nobody,
    only_a_device_that_may_be_written_is_told_to_be,
];

/// Its engine has it to write, and nobody else; what lies behind the copy becomes zeroes.
fn a_disk_of_a_running_guest_is_copied_to_a_device() {
    let host = VmHost::new(Engine::Real);
    let disk = host.disk("web.img", 64 * MIB);
    fill(&disk, 64);
    host.ok(&["hpvmcreate", "-P", "web", "-r", "512M", "-a", &on(&disk, "file")]);
    host.ok(&["hpvmstart", "-P", "web"]);
    let behind = host.disk("behind.img", 65 * MIB);
    fill(&behind, 65);
    let device = LoopDevice::on(&behind, &[]);
    host.ok(&["hpvmclone", "-P", "web", "-N", "new", "-b", &on(device.path(), "disk")]);
    let mut wanted = fs::read(&disk).expect("the disk");
    wanted.resize(65 << 20, 0);
    assert!(fs::read(device.path()).expect("the device") == wanted);
    engine_is_as_it_was(&host);
    host.ok(&["hpvmstart", "-P", "new"]);
    host.ok(&["hpvmstop", "-P", "new", "-F"]);
}

/// Neither while the engine has not begun to write it, however long that takes, nor while it writes it. The worker is held
/// still at both, so that none of it passes meanwhile.
fn a_device_that_gets_a_running_guests_disk_is_given_to_nobody() {
    let slow = Slow::start();
    let host = &slow.host;
    let device = LoopDevice::on(&host.disk("device.img", 512 * MIB), &[]);
    let (steps, torn) = (host.path("steps"), on(&host.path("torn.img"), "file"));
    let statement = on(device.path(), "disk");
    let is_refused = |clone: &Started| {
        host.ok(&["hpvmcreate", "-P", "other", "-r", "64M", "-a", &statement]);
        let number = clone.number();
        let said = host.refused(&["hpvmstart", "-P", "other"]);
        assert!(said.contains(&format!("process {number}")), "{number}: {said}");
        // Who only reads it meets nothing but the locks on it.
        let said = host.refused(&["hpvmclone", "-P", "other", "-N", "torn", "-b", &torn]);
        let told = format!("is being overwritten by hpvmclone (process {number})");
        assert!(said.contains(&told), "{told}: {said}");
        host.ok(&["hpvmremove", "-P", "other", "-F", "--purge"]);
    };
    let worker = process(host, "hpvmapp").expect("a worker");
    for _ in 0..10 {
        let mut command = host.command(&["hpvmclone", "-P", "web", "-N", "new", "-b", &statement]);
        command.env("HPVM_STEPS_TO", &steps);
        let clone = Started::by(command);
        let has_recorded =
            || fs::read_to_string(&steps).is_ok_and(|steps| steps.contains("clone.recorded"));
        wait_until(BOUND, "the copy is about to begin", has_recorded);
        let held = Still::hold(&worker);
        let is_asked = || has_socket(&clone) || clone.has_ended();
        wait_until(BOUND, "its worker is asked for the copy", is_asked);
        let mut is_met = left_in_engine(host).is_empty() && !clone.has_ended();
        if is_met {
            is_refused(&clone);
        }
        drop(held);
        let is_under_way = || left_in_engine(host).contains("job copy-0");
        wait_until(BOUND, "the engine copies", || is_under_way() || clone.has_ended());
        let held = Still::hold(&worker);
        is_met &= is_under_way();
        if is_met {
            is_refused(&clone);
        }
        drop(held);
        let (status, said) = clone.end();
        assert_eq!(status, Some(0), "{said}");
        assert!(fs::read(device.path()).unwrap() == fs::read(host.path("web.img")).unwrap());
        engine_is_as_it_was(host);
        if is_met {
            return;
        }
        host.ok(&["hpvmremove", "-P", "new", "-F", "--purge"]);
        fs::remove_file(&steps).expect("the steps");
    }
    panic!("none of ten was met at both");
}

/// An engine that refuses to begin has written nothing; one that fails at the end has.
fn only_a_device_that_may_be_written_is_told_to_be() {
    for (refused, wanted) in [("blockdev-add", 0), ("blockdev-mirror", 0), ("stop", 1)] {
        let mut host = with_web();
        host.engine_behaves(&format!("fail={refused}:not today"));
        host.ok(&["hpvmstart", "-P", "web"]);
        let device = LoopDevice::on(&host.disk("device.img", 64 * MIB), &[]);
        let statement = on(device.path(), "disk");
        let said = host.refused(&["hpvmclone", "-P", "web", "-N", "new", "-b", &statement]);
        assert!(said.contains("not today"), "{said}");
        assert_eq!(said.matches("partly overwritten").count(), wanted, "{refused}: {said}");
    }
}

fn has_socket(command: &Started) -> bool {
    let descriptors = fs::read_dir(format!("/proc/{}/fd", command.number())).into_iter().flatten();
    let targets = descriptors.flatten().filter_map(|entry| fs::read_link(entry.path()).ok());
    targets.into_iter().any(|target| target.to_string_lossy().starts_with("socket:"))
}
