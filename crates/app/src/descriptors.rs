//! The descriptors a worker is started with, by the numbers that ARCHITECTURE.md gives them.
//!
//! They are copied and the numbers stay open: a successor keeper is given what stands there.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;

use hpvm_host::launch::inherited;

const LINK: i32 = 3;
const LAUNCH: i32 = 4;
const CONTROL: i32 = 5;
const DOOR: i32 = 6;
const RECORD: i32 = 7;
const LOG: i32 = 8;
const QEMU_LOG: i32 = 9;
const CONSOLE_LOG: i32 = 10;
const RUN_FOLDER: i32 = 11;
const READY: i32 = 12;

#[derive(Debug, thiserror::Error)]
#[error(
    "descriptor {number} ({what}) did not come from the keeper; hpvmapp is started by hpvmkeeper, not by hand"
)]
pub(crate) struct Missing {
    number: i32,
    what: &'static str,
    source: io::Error,
}

#[derive(Debug)]
pub(crate) struct Descriptors {
    pub(crate) link: OwnedFd,
    pub(crate) launch: OwnedFd,
    pub(crate) control: UnixListener,
    pub(crate) door: UnixListener,
    pub(crate) record: File,
    pub(crate) log: File,
    pub(crate) qemu_log: File,
    pub(crate) console_log: File,
    pub(crate) run_folder: OwnedFd,
    /// The first worker's, towards the command that waits for the start.
    pub(crate) ready: Option<File>,
}

impl Descriptors {
    /// To be called first of all: what is opened before takes the numbers of those that did not come.
    pub(crate) fn take() -> Result<Descriptors, Missing> {
        let ready = inherited(READY).ok().map(File::from);
        let take =
            |number, what| inherited(number).map_err(|source| Missing { number, what, source });
        Ok(Descriptors {
            link: take(LINK, "the link to the keeper")?,
            launch: take(LAUNCH, "the launch description")?,
            control: take(CONTROL, "the control socket")?.into(),
            door: take(DOOR, "the console's socket")?.into(),
            record: take(RECORD, "the boot record")?.into(),
            log: take(LOG, "the guest's log")?.into(),
            qemu_log: take(QEMU_LOG, "QEMU's log")?.into(),
            console_log: take(CONSOLE_LOG, "the console log")?.into(),
            run_folder: take(RUN_FOLDER, "the run folder")?,
            ready,
        })
    }
}
