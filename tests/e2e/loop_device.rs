//! Loop devices of this machine's kernel on a test's files, and partitions of them.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use hpvm_testkit::wait::wait_until;

const DETACHED_BOUND: Duration = Duration::from_secs(20);

/// A loop device on a file, detached in the end.
pub(crate) struct LoopDevice(PathBuf);

impl LoopDevice {
    pub(crate) fn on(file: &Path, options: &[&str]) -> LoopDevice {
        let attach = ["--find", "--show"].iter().chain(options);
        let made = Command::new("losetup").args(attach).arg(file).output().expect("losetup runs");
        assert!(made.status.success(), "{made:?}");
        LoopDevice(PathBuf::from(String::from_utf8(made.stdout).expect("a name").trim()))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    pub(crate) fn disk(&self) -> String {
        format!("disk:avio_stor::disk:{}", self.0.display())
    }

    /// Makes it as long as its file is now.
    pub(crate) fn grow(&self) {
        self.losetup("--set-capacity");
    }

    /// One whose name nobody is given who looks for a free one, as long as some others are. The kernel keeps each device that it
    /// once made, so there are few such names.
    pub(crate) fn of_its_own(file: &Path) -> LoopDevice {
        let mut names = (16..32).map(|number| PathBuf::from(format!("/dev/loop{number}")));
        names.find(|name| attach(name, file)).map(LoopDevice).expect("one of sixteen is free")
    }

    /// Puts another file behind its name.
    pub(crate) fn exchange(&self, file: &Path) {
        self.losetup("--detach");
        // The kernel lets a device go when the last who has it open closes it, which may be another test's look at all devices.
        let name = self.0.file_name().expect("a device");
        let attached = Path::new("/sys/block").join(name).join("loop/backing_file");
        wait_until(DETACHED_BOUND, "the loop device is free", || !attached.exists());
        assert!(attach(&self.0, file), "nobody else takes it");
    }

    fn losetup(&self, option: &str) {
        let done = Command::new("losetup").arg(option).arg(&self.0).status();
        assert!(done.is_ok_and(|status| status.success()) || std::thread::panicking());
    }
}

fn attach(name: &Path, file: &Path) -> bool {
    let made = Command::new("losetup").arg(name).arg(file).output().expect("losetup runs");
    made.status.success()
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        self.losetup("--detach");
    }
}

/// The first partition of a loop device but for its first MiB, under a name of its own.
pub(crate) struct Partition<'device> {
    of: &'device LoopDevice,
    node: PathBuf,
}

impl Partition<'_> {
    pub(crate) fn of<'device>(of: &'device LoopDevice, node: PathBuf) -> Partition<'device> {
        let name = of.0.file_name().and_then(|name| name.to_str()).expect("a device");
        let size = std::fs::read_to_string(format!("/sys/block/{name}/size")).expect("a size");
        let sectors: u64 = size.trim().parse().expect("a number");
        run(Command::new("addpart").arg(&of.0).args(["1", "2048", &(sectors - 2048).to_string()]));
        let partition = Partition { of, node };
        let number = std::fs::read_to_string(format!("/sys/block/{name}/{name}p1/dev"));
        let number = number.expect("a partition");
        let (major, minor) = number.trim().split_once(':').expect("a number");
        run(Command::new("mknod").arg(&partition.node).args(["b", major, minor]));
        partition
    }

    pub(crate) fn path(&self) -> &Path {
        &self.node
    }
}

impl Drop for Partition<'_> {
    fn drop(&mut self) {
        run(Command::new("delpart").arg(&self.of.0).arg("1"));
    }
}

fn run(command: &mut Command) {
    let done = command.status();
    assert!(done.is_ok_and(|status| status.success()) || std::thread::panicking(), "{command:?}");
}
