//! The worker's side of QEMU's monitor: connecting again and again, asking without waiting. Answers reach the owner as
//! [`News`], so that it never stands still for a QEMU that does.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

use hpvm_app::protocol::CopiedState;
use hpvm_console::door::Drive;
use hpvm_console::fanout::SessionId;
use hpvm_engine::copying;
use hpvm_engine::devices::present::Present;
use hpvm_engine::devices::requests::RequestQueue;
use hpvm_engine::devices::{DeviceError, Performed};
use hpvm_host::names::run_folder;
use hpvm_host::paths::within;
use hpvm_model::{PciSlot, StorageAddress};
use hpvm_qmp::answer::{BlockCounters, Chardev, Status, VirtQueue};
use hpvm_qmp::client::{Client, Events, Notice};
use hpvm_qmp::command::Quit;
use hpvm_qmp::occupant::Registers;
use hpvm_qmp::{Command, Error, PowerButton};
use tokio::sync::mpsc;
use tokio::task::spawn_local;
use tokio::time::sleep;

use crate::changes::Made;
use crate::copying::Unmade;
use crate::driver::OpenedImage;
use crate::machine::Ticket;

/// Between two attempts to connect.
const AGAIN: Duration = Duration::from_millis(100);

/// How long each disk has been without I/O, in milliseconds, and its size in bytes.
#[derive(Debug)]
pub(crate) struct Disks {
    pub(crate) idle_ms: Vec<(StorageAddress, u64)>,
    pub(crate) size_bytes: Vec<(StorageAddress, u64)>,
}

/// How many changes were ever asked for, how many of them are not settled, and the one that is being made: other figures tell
/// of another machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Journal {
    pub(crate) asked: u64,
    pub(crate) unsettled: usize,
    /// What waits for a reset when it is over was brought by it, and is not settled.
    pub(crate) under_way: Option<u64>,
}

/// What came of something that was asked before.
#[derive(Debug)]
pub(crate) enum News {
    Connected(Client, Events),
    Status(Result<Status, Error>),
    Registers(Result<Registers, Error>),
    Button(Result<PowerButton, Error>),
    Idle(Ticket, Result<Disks, Error>),
    Counted(Ticket, Result<Vec<(StorageAddress, BlockCounters)>, Error>),
    /// How the guest's requests stood at a look.
    Requests {
        look: u64,
        told: Result<Vec<(RequestQueue, VirtQueue)>, Error>,
    },
    /// What the machine had at a look, and how the journal stood when it began.
    Present {
        journal: Journal,
        answer: Result<Present, Error>,
    },
    Changed {
        seq: u64,
        made: Made,
    },
    Undone {
        seq: u64,
    },
    /// What became of a change that had waited.
    DueMade {
        seq: u64,
        result: Result<Performed, DeviceError>,
    },
    /// An adapter has left whose place the next one of them needs.
    DuePlaceFree {
        slot: PciSlot,
    },
    /// All of them are over.
    DueOver,
    /// The guest has its operating system again, and what is due is not made.
    DueTooLate,
    Chardevs(Result<Vec<Chardev>, Error>),
    /// Whether the agent answered the question whether it does.
    AgentGreeted(Result<(), hpvm_agent::Error>),
    /// How the agent took a request.
    AgentUsed(Result<(), hpvm_agent::Error>),
    Drives(SessionId, Result<Vec<Drive>, String>),
    ImageOpened(OpenedImage),
    /// Copies are made what they are to be, which holds the guest for an instant.
    CopyHolds,
    /// It stood still for so long.
    CopyHeld(Duration),
    Copied {
        ticket: Ticket,
        result: Result<CopiedState, Unmade>,
        /// Why something of it is still there.
        left: Option<String>,
    },
    /// What became of a copy that a worker before us may have left.
    CopyTakenBack(copying::Left, Result<(), Error>),
    /// Whether the reservation helper did.
    Reservations {
        answers: bool,
    },
}

#[derive(Debug)]
pub(crate) struct Monitor {
    client: Option<Client>,
    /// QEMU said so itself.
    ends: bool,
    path: PathBuf,
    news: mpsc::Sender<News>,
    /// Keeps the folder that the path goes through.
    _run_folder: OwnedFd,
}

impl Monitor {
    pub(crate) fn new(run_folder: OwnedFd, news: mpsc::Sender<News>) -> Monitor {
        let path = within(&run_folder, run_folder::MONITOR);
        let monitor = Monitor { client: None, ends: false, path, news, _run_folder: run_folder };
        monitor.connect();
        monitor
    }

    /// Tries until it succeeds; another client may hold the monitor for a while.
    fn connect(&self) {
        let (path, news) = (self.path.clone(), self.news.clone());
        spawn_local(async move {
            loop {
                if let Ok((client, events)) = Client::connect(&path).await {
                    let _ = news.send(News::Connected(client, events)).await;
                    return;
                }
                sleep(AGAIN).await;
            }
        });
    }

    pub(crate) fn connected(&mut self, client: Client) {
        if self.ends {
            client.be_done();
        }
        self.client = Some(client);
    }

    pub(crate) fn lost(&mut self) {
        if self.client.take().is_some() && !self.ends {
            self.connect();
        }
    }

    /// Tells QEMU to end, unless it was told. It is asked nothing behind that, by no task.
    pub(crate) fn end_qemu(&self) {
        let Some(client) = self.client().cloned() else { return };
        client.be_done();
        spawn_local(async move {
            let _ = client.execute_last(&Quit {}).await;
        });
    }

    /// QEMU said that it ends.
    pub(crate) fn qemu_ends(&mut self) {
        self.ends = true;
        self.client.iter().for_each(Client::be_done);
    }

    pub(crate) fn client(&self) -> Option<&Client> {
        self.client.as_ref().filter(|client| !client.is_done() && !client.is_ended())
    }

    pub(crate) fn news(&self) -> mpsc::Sender<News> {
        self.news.clone()
    }

    /// Asks; the answer comes as news. `false`: there is no connection to ask through.
    pub(crate) fn ask<C>(
        &self,
        command: C,
        then: impl FnOnce(Result<C::Answer, Error>) -> News + 'static,
    ) -> bool
    where
        C: Command + 'static,
    {
        let Some(client) = self.client().cloned() else { return false };
        let news = self.news.clone();
        spawn_local(async move {
            let answer = client.execute(&command).await;
            let _ = news.send(then(answer)).await;
        });
        true
    }

    /// Asks for something whose outcome shows by itself.
    pub(crate) fn tell<C: Command + 'static>(&self, command: C) {
        let Some(client) = self.client().cloned() else { return };
        spawn_local(async move {
            let _ = client.execute(&command).await;
        });
    }
}

/// The next notice; never, while there is no connection.
pub(crate) async fn next_notice(events: &mut Option<Events>) -> Option<Notice> {
    match events {
        Some(events) => events.next().await,
        None => std::future::pending().await,
    }
}
