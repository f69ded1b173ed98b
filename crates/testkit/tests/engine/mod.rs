//! Starts QEMU, the real one or the fake one, with the same line: all files and sockets as descriptors.

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use command_fds::{CommandFdExt, FdMapping};
use hpvm_host::lock::pause_for;
use hpvm_qmp::blocking::Client;
use hpvm_testkit::fake;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use tempfile::TempDir;

pub(crate) const FAKE: &str = env!("CARGO_BIN_EXE_fake-qemu");
#[allow(dead_code, reason = "not every test binary needs it")]
pub(crate) const REAL: &str = "qemu-system-x86_64";

/// A running engine; killed and gone at the end of its test.
pub(crate) struct Engine {
    child: Child,
    folder: TempDir,
}

impl Engine {
    /// Starts a program with the variable of the fake, and an adapter with an empty DVD drive.
    pub(crate) fn start(program: &str, behaviour: &str) -> Engine {
        let folder = tempfile::tempdir().expect("a folder");
        let path = |name: &str| folder.path().join(name);
        std::fs::copy("/usr/share/OVMF/OVMF_VARS_4M.fd", path("nvram")).expect("OVMF is installed");
        let listener =
            |name: &str| OwnedFd::from(UnixListener::bind(path(name)).expect("a listening socket"));
        let open = |path: PathBuf, write: bool| {
            OwnedFd::from(File::options().read(true).write(write).open(path).expect("a file"))
        };
        let log = File::options().append(true).create(true).open(path("console.log"));
        let descriptors = [
            open("/usr/share/OVMF/OVMF_CODE_4M.fd".into(), false),
            open(path("nvram"), true),
            listener("qmp"),
            listener("rescue"),
            listener("serial"),
            OwnedFd::from(log.expect("a log")),
            listener("agent"),
        ];
        let mappings =
            (10..).zip(descriptors).map(|(child_fd, parent_fd)| FdMapping { parent_fd, child_fd });
        let mut command = Command::new(program);
        command
            .args(LINE.split_ascii_whitespace())
            .env(fake::VARIABLE, behaviour)
            .stderr(Stdio::from(File::create(path("stderr")).expect("a file")))
            .fd_mappings(mappings.collect())
            .expect("distinct numbers");
        let child = command.spawn().expect(program);
        Engine { child, folder }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn connect(&self) -> Client {
        Client::connect(&self.path("qmp")).unwrap_or_else(|e| panic!("{e}: {}", self.complaint()))
    }

    #[allow(dead_code, reason = "not every test binary needs it")]
    pub(crate) fn serial(&self) -> UnixStream {
        UnixStream::connect(self.path("serial")).expect("a console")
    }

    pub(crate) fn console_log(&self) -> String {
        let bytes = std::fs::read(self.path("console.log")).expect("a log");
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// What it said on standard error.
    pub(crate) fn complaint(&self) -> String {
        let mut text = String::new();
        let _ = File::open(self.path("stderr")).and_then(|mut f| f.read_to_string(&mut text));
        text
    }

    /// Asks it to end by SIGTERM.
    #[allow(dead_code, reason = "not every test binary needs it")]
    pub(crate) fn terminate(&self) {
        kill_process(Pid::from_child(&self.child), Signal::TERM).expect("not reaped yet");
    }

    /// Waits for its end, with a bound.
    pub(crate) fn end(&mut self) -> ExitStatus {
        let pid = Pid::from_child(&self.child);
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).expect("not reaped yet");
        let timeout = Timespec { tv_sec: 20, tv_nsec: 0 };
        let ready = poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&timeout)).expect("poll");
        assert_eq!(ready, 1, "the engine did not end: {}", self.complaint());
        self.child.wait().expect("our child")
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Asks again until the answer is there.
#[allow(dead_code, reason = "not every test binary needs it")]
pub(crate) fn wait_until<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + Duration::from_secs(10);
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < until, "{what}: not within 10 s");
        pause();
    }
}

/// Between two looks.
pub(crate) fn pause() {
    pause_for(Duration::from_millis(2));
}

const LINE: &str = "-name guest=g1,process=hpvm-1 -nodefaults -no-user-config -display none \
    -machine pc-q35-10.0,usb=off,vmport=off,memory-backend=ram0,pflash0=firmware-code,pflash1=nvram \
    -accel tcg,thread=multi -cpu qemu64 -smp 1 -m 128M \
    -object memory-backend-memfd,id=ram0,size=128M,share=on \
    -add-fd fd=10,set=10,opaque=firmware-code \
    -blockdev driver=file,node-name=firmware-code,filename=/dev/fdset/10,read-only=on,auto-read-only=off \
    -add-fd fd=11,set=11,opaque=nvram -blockdev driver=file,node-name=nvram,filename=/dev/fdset/11 \
    -sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny \
    -chardev socket,id=monitor,fd=12,server=on,wait=off -mon chardev=monitor,mode=control \
    -chardev socket,id=rescue,fd=13,server=on,wait=off -mon chardev=rescue,mode=control \
    -add-fd fd=15,set=15,opaque=console-log \
    -chardev socket,id=console,fd=14,server=on,wait=off,logfile=/dev/fdset/15,logappend=on \
    -serial chardev:console \
    -chardev socket,id=agent,fd=16,server=on,wait=off \
    -device virtio-serial-pci,id=agent-adapter,bus=pcie.0,addr=0x10,disable-legacy=on,max_ports=4 \
    -device virtserialport,id=agent-port,bus=agent-adapter.0,nr=1,chardev=agent,name=org.qemu.guest_agent.0 \
    -device pcie-root-port,id=port-0-0,bus=pcie.0,addr=0x8.0,chassis=1,port=1,multifunction=on \
    -device pcie-root-port,id=port-0-1,bus=pcie.0,addr=0x8.1,chassis=2,port=2 \
    -device virtio-scsi-pci,id=adapter-0-0,bus=port-0-0 \
    -device scsi-cd,id=drive,bus=adapter-0-0.0,scsi-id=1,lun=0 \
    -action shutdown=pause,panic=pause,reboot=reset -msg timestamp=on";
