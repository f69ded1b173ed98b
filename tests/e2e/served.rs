//! Files that a server of the test's own shows: exports of qemu-storage-daemon by FUSE. It can be stopped by a signal, as a
//! server of files that hangs, or be killed with all it has not done yet, as a disk that loses its power.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use hpvm_testkit::vm_host::VmHost;
use hpvm_testkit::wait::wait_until;
use rustix::process::{Pid, Signal, kill_process};

const BOUND: Duration = Duration::from_secs(20);

/// A server and the files it shows, in the order of the nodes.
pub(crate) struct Served {
    server: Child,
    pub(crate) paths: Vec<PathBuf>,
}

impl Served {
    /// Each export is the node that some `--blockdev` describe, and how many bytes it has.
    pub(crate) fn new(host: &VmHost, exports: &[(Vec<String>, &str, u64)]) -> Served {
        let mut command = Command::new("qemu-storage-daemon");
        let mut paths = Vec::new();
        for (blockdevs, node, _) in exports {
            let path = host.disk(&format!("served-{node}.img"), 0);
            blockdevs.iter().for_each(|blockdev| {
                command.args(["--blockdev", blockdev]);
            });
            let place = path.display();
            let export =
                format!("type=fuse,id={node},node-name={node},mountpoint={place},writable=on");
            command.args(["--export", &export]);
            paths.push(path);
        }
        let server = command.stdin(Stdio::null()).spawn().expect("qemu-storage-daemon starts");
        let served = Served { server, paths };
        for (path, (.., bytes)) in served.paths.iter().zip(exports) {
            wait_until(BOUND, "the file is served", || length(path) == *bytes);
        }
        served
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.server), signal).expect("it is our child");
    }

    /// Ends the server at once, and gives it no time to write anything.
    pub(crate) fn cut(&mut self) {
        self.server.kill().expect("it is our child");
        self.server.wait().expect("it is our child");
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
        let _ = Command::new("umount").arg("--lazy").args(&self.paths).status();
    }
}

fn length(file: &Path) -> u64 {
    fs::metadata(file).map_or(0, |metadata| metadata.len())
}
