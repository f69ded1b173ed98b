//! The descriptors hpvmnetd is started with, by their numbers ([`fds`]); [`Daemon`](super::Daemon) takes them first of all. They
//! are copied and the numbers stay open: a successor keeper is given what stands there.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;

use hpvm_host::inherited::{self, Missing, inherited};
use hpvm_vswitchd::fds;

pub(super) struct Descriptors {
    pub(super) link: OwnedFd,
    pub(super) launch: OwnedFd,
    pub(super) control: UnixListener,
    pub(super) log: File,
    pub(super) folder: OwnedFd,
    /// The first one's, towards the command that waits for the switch.
    pub(super) ready: Option<File>,
    pub(super) keeper_program: Option<OwnedFd>,
}

impl Descriptors {
    /// To be called first of all: what is opened before takes the numbers of those that did not come.
    pub(super) fn take() -> Result<Descriptors, Missing> {
        let ready = inherited(fds::READY).ok().map(File::from);
        let keeper_program = inherited::keeper_program(fds::KEEPER_PROGRAM, fds::BEHIND_ALL);
        let take = |number, what| inherited::from_keeper("hpvmnetd", number, what);
        Ok(Descriptors {
            link: take(fds::LINK, "the link to the keeper")?,
            launch: take(fds::LAUNCH, "the launch description")?,
            control: take(fds::CONTROL, "the control socket")?.into(),
            log: take(fds::LOG, "the switch's log")?.into(),
            folder: take(fds::RUN_FOLDER, "the run folder")?,
            ready,
            keeper_program,
        })
    }
}
