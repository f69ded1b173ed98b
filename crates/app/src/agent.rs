//! The agent in the guest: the one way to it, and what is known of it. Called by the owner and by tasks of the owner.
//!
//! One conversation at a time; the next one waits its turn, for a bounded time. Nothing is read while nothing is asked, so that
//! one that writes to the port unasked is held by its own full buffer. Whether an agent answers is asked when [`watch::Watch`] says so.

pub(crate) mod watch;

use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;

use hpvm_agent::disk::Release;
use hpvm_agent::freeze::Frozen;
use hpvm_agent::{Channel, Error, deadline};
use hpvm_host::names::run_folder;
use hpvm_host::paths::within;
use tokio::sync::{Mutex, MutexGuard};
use tokio::time::timeout;

/// How long a request waits for an earlier one. Those that take longer than this are rare and their guest is busy.
const TURN_BOUND: Duration = Duration::from_secs(5);

/// The way to the agent; clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Agent {
    channel: Rc<Mutex<Channel>>,
    /// Keeps the folder that the path goes through.
    _run_folder: Rc<OwnedFd>,
}

impl Agent {
    pub(crate) fn new(run_folder: OwnedFd) -> Agent {
        let channel = Channel::new(&within(&run_folder, run_folder::AGENT));
        Agent { channel: Rc::new(Mutex::new(channel)), _run_folder: Rc::new(run_folder) }
    }

    /// Whether somebody answers. What a worker before us left frozen goes on.
    pub(crate) async fn greet(&self) -> Result<(), Error> {
        self.turn().await?.converse().await?.thaw_if_frozen().await
    }

    /// Asks the guest to write out the disk of this NAA number and to forget it.
    pub(crate) async fn release(&self, naa: u64) -> Result<Release, Error> {
        self.turn().await?.converse().await?.release_disk(naa).await
    }

    /// Asks the guest's file systems to write out what they hold.
    pub(crate) async fn write_out(&self) -> Result<(), Error> {
        self.turn().await?.converse().await?.write_out().await
    }

    /// Holds the guest's file systems still while `work` is done, for as long as users may be kept waiting and no longer.
    pub(crate) async fn while_frozen<T>(
        &self,
        work: impl Future<Output = T>,
    ) -> Result<Frozen<T>, Error> {
        self.turn().await?.converse().await?.while_frozen(deadline::FROZEN, work).await
    }

    async fn turn(&self) -> Result<MutexGuard<'_, Channel>, Error> {
        timeout(TURN_BOUND, self.channel.lock()).await.map_err(|_| Error::Busy)
    }
}
