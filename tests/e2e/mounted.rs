//! File systems that a test mounts for itself, and that go with it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use hpvm_testkit::vm_host::VmHost;

use crate::loop_device::LoopDevice;

/// A file system on a folder, until it is dropped.
pub(crate) struct Mounted(PathBuf);

impl Mounted {
    /// Of so many bytes, over a folder that is there.
    pub(crate) fn tmpfs(folder: &Path, bytes: u64) -> Mounted {
        let options = format!("size={bytes},mode=755");
        Mounted::by(&["-t", "tmpfs", "-o", &options, "hpvm-test"], folder)
    }

    /// What a device holds, on a new folder.
    pub(crate) fn device(device: &Path, at: &Path) -> Mounted {
        fs::create_dir(at).expect("a folder");
        Mounted::by(&[&device.to_string_lossy()], at)
    }

    /// As these words of mount(8) say.
    pub(crate) fn by(words: &[&str], at: &Path) -> Mounted {
        mount(words, at);
        Mounted(at.to_owned())
    }

    pub(crate) fn remount(&self, option: &str) {
        mount(&["-o", &format!("remount,{option}")], &self.0);
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

/// Makes one with nothing in it, on a device or in a file.
pub(crate) fn make_file_system(on: &Path) {
    let made = Command::new("mkfs.ext4").arg("-q").arg(on).status();
    assert!(made.expect("mkfs.ext4 runs").success(), "{}", on.display());
}

fn mount(words: &[&str], at: &Path) {
    let status = Command::new("mount").args(words).arg(at).status().expect("mount runs");
    assert!(status.success(), "mount {words:?} {}", at.display());
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // Lazily: a test that failed may have left a guest that still has files of it open.
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

/// A file system of this machine's own, which can be had take no changes for a while.
pub(crate) struct Freezable {
    mounted: Mounted,
    _device: LoopDevice,
}

impl Freezable {
    pub(crate) fn over(host: &VmHost) -> Freezable {
        Freezable::of(host, 16 << 20)
    }

    pub(crate) fn of(host: &VmHost, bytes: u64) -> Freezable {
        let device = LoopDevice::on(&host.disk("freezable.img", bytes), &[]);
        make_file_system(device.path());
        Freezable { mounted: Mounted::device(device.path(), &host.path("near")), _device: device }
    }

    pub(crate) fn folder(&self) -> &Path {
        self.mounted.path()
    }

    pub(crate) fn freeze(&self) {
        assert!(self.is_told("--freeze"));
    }

    pub(crate) fn thaw(&self) {
        assert!(self.is_told("--unfreeze"));
    }

    fn is_told(&self, word: &str) -> bool {
        Command::new("fsfreeze").arg(word).arg(self.folder()).status().is_ok_and(|s| s.success())
    }
}

impl Drop for Freezable {
    fn drop(&mut self) {
        // A test that failed left it frozen, and whoever waits there.
        if std::thread::panicking() {
            self.is_told("--unfreeze");
        }
    }
}
