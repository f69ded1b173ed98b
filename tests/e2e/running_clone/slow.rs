//! A guest whose copy takes long enough to be met in the middle, and what a copy leaves in a guest's engine.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use hpvm_host::lock::pause_for;
use hpvm_host::process::Signal;
use hpvm_plan::copying::is_of_copy;
use hpvm_qmp::RunState;
use hpvm_qmp::blocking::Client;
use hpvm_qmp::command::{QueryFdsets, QueryJobs, QueryNodes, QueryStatus};
use hpvm_testkit::vm_host::{Engine, VmHost};
use hpvm_testkit::wait::wait_until;

use super::{BOUND, MIB};
use crate::clone::{fill, on};
use crate::guest_processes::Process;
use crate::started::Started;

/// A guest in its firmware whose disk takes long enough to be copied to be met in the middle.
pub(super) struct Slow {
    pub(super) host: VmHost,
    pub(super) copy: PathBuf,
}

impl Slow {
    pub(super) fn start() -> Slow {
        let host = VmHost::new(Engine::Real);
        fill(&host.disk("web.img", 512 * MIB), 512);
        host.create("web", "512M", &[on(&host.path("web.img"), "file")]);
        host.ok(&["hpvmstart", "-P", "web"]);
        let copy = host.path("copy.img");
        Slow { host, copy }
    }

    pub(super) fn clone(&self) -> Started {
        let statement = on(&self.copy, "file");
        Started::of(&self.host, &["hpvmclone", "-P", "web", "-N", "new", "-b", &statement])
    }

    /// Interferes with a clone as soon as QEMU writes its copy; gives what became of the command. On a busy machine the copy may
    /// be there first: then it is tried again.
    pub(super) fn in_the_middle(&self, interfere: impl Fn(&Started)) -> (Option<i32>, String) {
        for _ in 0..10 {
            let clone = self.clone();
            self.until_it_copies();
            interfere(&clone);
            let (status, said) = clone.end();
            if status != Some(0) && !said.contains("is made already") {
                return (status, said);
            }
            self.host.ok(&["hpvmremove", "-P", "new", "-F", "--purge"]);
            fs::remove_file(&self.copy).expect("the copy");
            wait_until(BOUND, "the guest is off or on", || {
                matches!(self.host.state("web").as_str(), "Off" | "On (EFI)")
            });
            if self.host.state("web") == "Off" {
                self.host.ok(&["hpvmstart", "-P", "web"]);
            }
        }
        panic!("none of ten was met in its middle");
    }

    pub(super) fn until_it_copies(&self) {
        wait_until(BOUND, "the copy begins", || self.is_copying());
    }

    /// Whether the copy is begun, or done.
    pub(super) fn is_copying(&self) -> bool {
        if self.copy.exists() {
            return true;
        }
        let names = fs::read_dir(self.host.root()).expect("the root").flatten();
        let ours = |name: &str| name.starts_with(".copy.img.");
        let mut fresh = names.filter(|entry| ours(&entry.file_name().to_string_lossy()));
        fresh.any(|entry| entry.metadata().is_ok_and(|copy| copy.blocks() > 0))
    }

    #[track_caller]
    pub(super) fn runs_on(&self) {
        assert_eq!(self.host.state("web"), "On (EFI)");
        engine_is_as_it_was(&self.host);
    }
}

/// Nothing of a copy is in the guest's engine, and the guest is not held.
#[track_caller]
pub(super) fn engine_is_as_it_was(host: &VmHost) {
    let mut left = String::new();
    let deadline = Instant::now() + BOUND;
    while Instant::now() < deadline {
        left = left_in_engine(host);
        if left.is_empty() {
            return;
        }
        pause_for(Duration::from_millis(20));
    }
    panic!("left in the engine: {left}");
}

pub(super) fn left_in_engine(host: &VmHost) -> String {
    let mut client = Client::connect(&host.run_dir(1).join("rescue")).expect("the second monitor");
    let jobs = client.execute(&QueryJobs {}).expect("told");
    let nodes = client.execute(&QueryNodes { flat: true }).expect("told");
    let nodes = nodes.into_iter().filter_map(|node| node.node_name).filter(|name| is_of_copy(name));
    let sets = client.execute(&QueryFdsets {}).expect("told");
    let opaque = sets.into_iter().flat_map(|set| set.fds).filter_map(|fd| fd.opaque);
    let opaque = opaque.filter(|name| is_of_copy(name));
    let status = client.execute(&QueryStatus {}).expect("told").status;
    let held = (status != RunState::Running).then(|| format!("the guest is {status}"));
    let jobs = jobs.into_iter().map(|job| format!("job {}", job.id));
    jobs.chain(nodes).chain(opaque).chain(held).collect::<Vec<_>>().join(", ")
}

/// A process that goes on in the end.
pub(super) struct Still<'a>(&'a Process);

impl Still<'_> {
    pub(super) fn hold(process: &Process) -> Still<'_> {
        process.signal(Signal::STOP);
        Still(process)
    }
}

impl Drop for Still<'_> {
    fn drop(&mut self) {
        self.0.signal_if_alive(Signal::CONT);
    }
}
