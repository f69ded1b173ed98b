//! An engine that crashed, was killed or hangs.

use std::fs;
use std::path::{Path, PathBuf};

use hpvm_app::snapshot::{Crash, Ending, Phase};
use hpvm_testkit::vm_host::{Engine, program};
use hpvm_testkit::wait::wait_until;
use rustix::process::Signal;

use super::{BOUND, Screen, follow, host_with_web};
use crate::Test;

pub(crate) const TESTS: &[Test] = crate::tests![
    a_crash_is_explained,
    an_engine_killed_for_memory_is_explained,
    a_guest_that_hangs_is_explained,
];

fn a_crash_is_explained() {
    let mut host = host_with_web(Engine::Fake);
    host.engine_after("echo 'qemu-system-x86_64: a device went mad' >&2");
    host.ok(&["hpvmstart", "-P", "web"]);
    let engine = host.qemu(1).expect("the engine runs");
    engine.signal(Signal::ABORT).expect("a signal");
    host.wait_for_state("web", "Off", BOUND);
    let screen = Screen::of(&host, "crash");
    assert_eq!(screen.first, None);
    follow(&host, &screen.next);
}

/// The engine is put in a memory cgroup too small for it; the kernel really kills it.
fn an_engine_killed_for_memory_is_explained() {
    // In this order, so that the engine has ended when its group goes, whatever becomes of the test.
    let group = MemoryGroup::new(32 << 20);
    let mut host = host_with_web(Engine::Fake);
    host.engine_after(&format!(
        "echo $$ > '{}'\nexport HPVM_FAKE_QEMU=eat=500",
        group.path.join("cgroup.procs").display()
    ));
    host.ok(&["hpvmstart", "-P", "web"]);
    host.wait_for_state("web", "Off", BOUND);
    let ended = host.snapshot(1).expect("what the run left").phase;
    let killed = Ending::Crashed { cause: Crash::OutOfMemory };
    assert_eq!(ended, Phase::Ended { how: killed });
    let screen = Screen::of(&host, "out-of-memory");
    assert!(screen.first.is_some_and(|ask| ask.contains("memory")));
    host.set("HPVMQEMU", &program("fake-qemu").to_string_lossy());
    follow(&host, &screen.next);
}

fn a_guest_that_hangs_is_explained() {
    let host = host_with_web(Engine::Fake);
    host.ok(&["hpvmstart", "-P", "web"]);
    let engine = host.qemu(1).expect("the engine runs");
    engine.signal(Signal::STOP).expect("a signal");
    wait_until(BOUND, "the stop is seen", || {
        host.ok(&["hpvm", "why", "web"]).contains("stopped by a signal")
    });
    let screen = Screen::of(&host, "stopped");
    assert!(screen.first.is_some_and(|ask| ask.contains("kill -CONT")));
    engine.signal(Signal::CONT).expect("a signal");
    follow(&host, &screen.next);
}

/// A memory cgroup below our own.
struct MemoryGroup {
    path: PathBuf,
}

impl MemoryGroup {
    fn new(bytes: u64) -> MemoryGroup {
        let own = fs::read_to_string("/proc/self/cgroup").expect("our own groups");
        let line = |name: &str| {
            own.lines().find_map(|line| {
                let (_, rest) = line.split_once(':')?;
                let (controllers, path) = rest.split_once(':')?;
                (controllers == name).then(|| path.trim_start_matches('/').to_owned())
            })
        };
        let name = format!("hpvm-test-{}", std::process::id());
        let (parent, limit) = match line("memory") {
            Some(path) => (Path::new("/sys/fs/cgroup/memory").join(path), "memory.limit_in_bytes"),
            None => {
                let path = line("").expect("a unified group");
                (Path::new("/sys/fs/cgroup").join(path), "memory.max")
            }
        };
        let group = MemoryGroup { path: parent.join(name) };
        fs::create_dir(&group.path).expect("a group");
        fs::write(group.path.join(limit), bytes.to_string()).expect("a limit");
        // The engine puts itself in, as the guest's own user.
        let anybody = std::os::unix::fs::PermissionsExt::from_mode(0o666);
        fs::set_permissions(group.path.join("cgroup.procs"), anybody).expect("open to the engine");
        group
    }
}

impl Drop for MemoryGroup {
    fn drop(&mut self) {
        let removed = || fs::remove_dir(&self.path).is_ok() || !self.path.exists();
        if !std::thread::panicking() {
            wait_until(BOUND, "the group is empty and removed", removed);
        } else {
            removed();
        }
    }
}
