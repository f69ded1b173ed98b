//! The descriptors a worker is started with, by the numbers that ARCHITECTURE.md gives them.
//!
//! They are copied and the numbers stay open: a successor keeper is given what stands there.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;

use hpvm_engine::worker_fd;
use hpvm_host::inherited::{self, Missing, inherited};
use hpvm_host::process::PidFd;
use hpvm_model::StorageAddress;

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
    /// `None` when QEMU was gone before the keeper could take hold of it.
    pub(crate) qemu: Option<PidFd>,
    /// The keeper's program, out of the way of the numbers a successor is given.
    pub(crate) keeper_program: Option<OwnedFd>,
    /// Folders of images for the guest's drives, by the paths the worker was started with.
    pub(crate) image_folders: Vec<(String, OwnedFd)>,
    /// Stores of devices and what lies under each, opened for us alone, by the device's address.
    pub(crate) stores: Vec<(StorageAddress, File)>,
}

/// The arguments after the guest's name that begin so name what is behind a row of descriptors, in order.
fn named(prefix: &str) -> impl Iterator<Item = String> {
    let names = std::env::args().skip(2);
    names.filter_map(move |name| Some(name.strip_prefix(prefix)?.to_owned()))
}

fn image_folders() -> Vec<(String, OwnedFd)> {
    let held = |(number, path)| Some((path, inherited(number).ok()?));
    (worker_fd::FIRST_FOLDER..).zip(named(worker_fd::FOLDER)).filter_map(held).collect()
}

fn stores() -> Vec<(StorageAddress, File)> {
    let held = |(number, address): (i32, String)| {
        Some((address.parse().ok()?, File::from(inherited(number).ok()?)))
    };
    (worker_fd::FIRST_STORE..).zip(named(worker_fd::STORE)).filter_map(held).collect()
}

/// Above every number that a keeper is started with.
fn behind_all() -> i32 {
    (worker_fd::FIRST_STORE..)
        .zip(named(worker_fd::STORE))
        .map(|(number, _)| number + 1)
        .last()
        .unwrap_or(worker_fd::FIRST_STORE)
}

impl Descriptors {
    /// To be called first of all: what is opened before takes the numbers of those that did not come.
    pub(crate) fn take() -> Result<Descriptors, Missing> {
        let ready = inherited(worker_fd::READY).ok().map(File::from);
        let qemu = inherited(worker_fd::QEMU).ok().map(PidFd::from);
        let keeper_program = inherited::keeper_program(worker_fd::KEEPER_PROGRAM, behind_all());
        let take = |number, what| inherited::from_keeper("hpvmapp", number, what);
        Ok(Descriptors {
            link: take(worker_fd::LINK, "the link to the keeper")?,
            launch: take(worker_fd::LAUNCH, "the launch description")?,
            control: take(worker_fd::CONTROL, "the control socket")?.into(),
            door: take(worker_fd::DOOR, "the console's socket")?.into(),
            record: take(worker_fd::RECORD, "the boot record")?.into(),
            log: take(worker_fd::LOG, "the guest's log")?.into(),
            qemu_log: take(worker_fd::QEMU_LOG, "QEMU's log")?.into(),
            console_log: take(worker_fd::CONSOLE_LOG, "the console log")?.into(),
            run_folder: take(worker_fd::RUN_FOLDER, "the run folder")?,
            ready,
            qemu,
            keeper_program,
            image_folders: image_folders(),
            stores: stores(),
        })
    }
}
