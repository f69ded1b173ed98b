//! For tests that meet hpvmclone while it copies the disk of a guest that is off.

use std::fs;
use std::time::Duration;

use hpvm_host::process::Signal;
use hpvm_testkit::vm_host::{Engine, VmHost};
use hpvm_testkit::wait::wait_until;

use super::{MIB, fill, on, registry};
use crate::started::Started;

/// A copy that takes long enough to be met in its middle.
pub(crate) fn with_slow_copy() -> (VmHost, String) {
    let host = VmHost::new(Engine::Fake);
    fill(&host.disk("web.img", 512 * MIB), 512);
    host.ok(&["hpvmcreate", "-P", "web", "-a", &on(&host.path("web.img"), "file")]);
    let copy = on(&host.path("copy.img"), "file");
    (host, copy)
}

/// Until a copy has begun.
pub(crate) const COPYING: Duration = Duration::from_secs(10);

/// Whether the copy is begun, or done.
pub(crate) fn is_copying(host: &VmHost) -> bool {
    let mut names = fs::read_dir(host.root()).unwrap().flatten().map(|entry| entry.file_name());
    names.any(|name| name.to_string_lossy().starts_with(".copy.img."))
        || host.path("copy.img").exists()
}

/// Gives a clone Ctrl-C once its copy has begun, and what it says to that. On a busy machine the copy may be there before the
/// signal: then it is tried again, after what `anew` does.
pub(crate) fn interrupted(
    host: &VmHost,
    copies: &[&str],
    answers_within: Duration,
    has_begun: impl Fn() -> bool,
    anew: impl Fn(),
) -> String {
    for _ in 0..10 {
        let mut command = host.command(&["hpvmclone", "-P", "web", "-N", "new"]);
        command.args(copies.iter().flat_map(|copy| ["-b", copy]));
        let clone = Started::by(command);
        wait_until(COPYING, "the copy begins", &has_begun);
        clone.gets(Signal::INT);
        assert!(clone.ends_within(answers_within), "Ctrl-C is answered");
        let (status, said) = clone.end();
        if guest_names(host) == ["web"] {
            assert_eq!(status, Some(130), "{said}");
            return said;
        }
        host.ok(&["hpvmremove", "-P", "new", "-F", "--purge"]);
        anew();
    }
    panic!("none of ten was met in its middle");
}

pub(crate) fn guest_names(host: &VmHost) -> Vec<String> {
    registry(host).all().expect("the guests").into_iter().map(|g| g.name.to_string()).collect()
}
