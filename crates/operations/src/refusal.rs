//! Why an operation did not happen. One variant per thing that can stand in the way, each with what to do next.

use std::path::PathBuf;

use hpvm_app::client::ClientError;
use hpvm_app::protocol::{Denial, NotStopped};
use hpvm_engine::launch::LaunchError;
use hpvm_engine::media::MediaError;
use hpvm_host::conf::ConfError;
use hpvm_host::durable::DurableError;
use hpvm_host::listen::ListenError;
use hpvm_host::lock::BusyError;
use hpvm_host::paths::{ProgramError, RootError};
use hpvm_host::signals::{self, Interruption};
use hpvm_model::{GuestName, GuestNumber, Problem, chain};
use hpvm_plan::clone::CloneError;
use hpvm_plan::record::RecordError;
use hpvm_plan::request::RequestError;
use hpvm_registry::RegistryError;

use crate::adapters::ResetError;
use crate::devdb::disk_file::DiskRefused;
use crate::devdb::entries::EntryRefused;
use crate::forgotten::Forgotten;
use crate::network::SwitchRefused;

#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// The problems say it all; among them is at least one error.
    #[error("the configuration has problems")]
    Problems(Vec<Problem>),
    #[error("No Guest by that name or number: '{called}'; {}", hint.as_deref().unwrap_or("`hpvmstatus` lists the guests"))]
    NoGuest { called: String, hint: Option<String> },
    #[error("a guest called '{name}' exists already (number {number}); choose another name")]
    NameTaken { name: GuestName, number: GuestNumber },
    #[error(
        "a guest called '{name}' exists by now (number {number}); bring this one back under another name with -N NEWNAME"
    )]
    NameTakenSince { name: GuestName, number: GuestNumber },
    #[error("the guest is running; stop it first with `hpvmstop -P {0} -g`")]
    Running(GuestName),
    #[error(
        "its QEMU (process {pid}) runs, though its files in /run are gone or damaged and nobody can reach it; shut it down from within, \
         or end it with `hpvmstop -P {name} -h`"
    )]
    Lost { name: GuestName, pid: i32 },
    #[error(
        "its folder {} is missing; bring it back from a backup, or remove the guest with `hpvmremove -P {name}`",
        path.display()
    )]
    NoFolder { name: GuestName, path: PathBuf },
    #[error(
        "it cannot come back, since its folder {} is missing; bring that back from a backup, or forget the guest with `hpvmremove -p {number} --purge`",
        path.display()
    )]
    NoKeptFolder { number: GuestNumber, path: PathBuf },
    #[error(
        "its QEMU (process {pid}) runs, though its folder and its files in /run are gone; shut it down from within, or end that process"
    )]
    RunsWithoutFolder { pid: i32 },
    #[error(
        "'{name}' cannot be removed for good: a disk of '{by}' lies in its folder; remove '{by}' for good first, with `hpvmremove -P {by} --purge`"
    )]
    Needed { name: GuestName, by: GuestName },
    #[error(
        "process {pid}, which its worker says is its QEMU, does not hold '{}' as that would; it is left alone, and `hpvm doctor` looks for the guest's own",
        path.display()
    )]
    NotItsEngine { pid: i32, path: PathBuf },
    #[error("the guest is not running; start it with `hpvmstart -P {0}`")]
    NotRunning(GuestName),
    #[error(
        "'{0}' names no removed guest that is still kept; `hpvm undelete --list` shows those that are"
    )]
    NotRemoved(String),
    #[error("'{0}' names several removed guests; choose one by its number (-p)")]
    SeveralRemoved(String),
    #[error(
        "'{path}' is shared, and the guest writes to it past its engine, which could not copy it as it was at one moment; stop '{guest}' and the others that have it, or copy it in a guest"
    )]
    SharedDisk { path: String, guest: hpvm_model::GuestName },
    #[error("the running guest could not take the change, and nothing was changed: {0}")]
    NotTaken(String),
    #[error("the running guest did not take the change within {seconds} s; {left}")]
    Late { seconds: u64, left: Left },
    #[error(
        "another command has been giving one of the stores to a guest, or changing it, for {seconds} s; try again when that has ended"
    )]
    StoreClaimed { seconds: u64 },
    #[error(
        "others have been changing the registry for {seconds} s, each time while the devices were looked at; try again when there are fewer"
    )]
    Disturbed { seconds: u64 },
    #[error(
        "no thread can be started, as many processes run as may; try again when some have ended"
    )]
    NoThread(#[source] std::io::Error),
    #[error("QEMU cannot be used: {0}")]
    Engine(String),
    #[error("no accelerator can be used: {0}")]
    Accelerator(String),
    #[error(transparent)]
    Denied(#[from] Denial),
    #[error(
        "{why}; the guest runs on: try `hpvmstop -P {name} -g` again later, or end it like a power cut with `hpvmstop -P {name} -h`"
    )]
    NotStopped { name: GuestName, why: NotStopped },
    #[error("what its LUNs have done is not known: {0}")]
    Uncounted(String),
    #[error("the guest could not be stopped: {0}")]
    StopFailed(String),
    #[error(
        "its QEMU is killed, and the kernel does not let it go before its requests come back from {by}; it ends by itself as soon as they do, and `hpvmstatus -P {name}` shows it until then"
    )]
    HeldByStore { name: GuestName, by: String },
    #[error("cannot {action} '{}'", path.display())]
    File { action: &'static str, path: PathBuf, source: std::io::Error },
    #[error(
        "the guest's boot record '{}' cannot be used; stopping and starting the guest makes a new one", path.display()
    )]
    Record { path: PathBuf, source: RecordError },
    #[error(transparent)]
    Entry(Box<EntryRefused>),
    #[error(transparent)]
    Disk(#[from] DiskRefused),
    #[error(transparent)]
    Reset(#[from] ResetError),
    #[error(transparent)]
    Request(#[from] RequestError),
    #[error("cannot copy '{from}' to '{to}'")]
    Copy { from: String, to: String, source: std::io::Error },
    #[error("'{}' is not what it was when the clone was begun, so it stays, and no clone was made; look whose it is, then clone again or name another", .0.display())]
    TargetChanged(PathBuf),
    #[error(transparent)]
    Clone(#[from] CloneError),
    #[error(
        "the guest is running and writes its disks, while what a linked clone lies over must only be read: stop it first with `hpvmstop -P {0} -g`, or copy its disks with -b"
    )]
    LinkOfRunning(GuestName),
    #[error("the disks of the running guest '{name}' could not be copied: {error}")]
    CopyOfRunning { name: GuestName, error: String },
    /// Why there is no clone, though devices have been copied to.
    #[error("{}; the content of '{}' is partly overwritten", chain(.why), .overwritten.join("', '"))]
    NotCloned { why: Box<Refusal>, overwritten: Vec<String> },
    #[error(
        "the registry {} is gone, and folders of guests are there; `hpvm doctor --rebuild` makes it again from them",
        .0.display()
    )]
    RegistryLost(PathBuf),
    #[error("{}; {}", .0, .0.remedy())]
    RegistryBehind(Forgotten),
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// Asked to end by a signal; what is left is told.
    #[error("interrupted; {left}")]
    Interrupted { interruption: Interruption, left: Left },
    #[error(transparent)]
    Busy(BusyError),
    #[error(transparent)]
    Durable(#[from] DurableError),
    #[error(transparent)]
    Listen(#[from] ListenError),
    #[error(transparent)]
    Launch(#[from] LaunchError),
    #[error(transparent)]
    Media(#[from] MediaError),
    #[error(transparent)]
    Worker(#[from] ClientError),
    #[error(transparent)]
    Conf(#[from] ConfError),
    #[error(transparent)]
    Switch(#[from] SwitchRefused),
    #[error(transparent)]
    Root(#[from] RootError),
    #[error(transparent)]
    Program(#[from] ProgramError),
}

/// What an interrupted command leaves.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Left {
    #[error("nothing was changed")]
    AsItWas,
    #[error(
        "guest '{0}' goes on with the part of the change that it is at, and begins no other; `hpvmstatus -P {0}` shows what it has, and the same command again makes the rest"
    )]
    Changing(GuestName),
    #[error("the clone was not made; the content of '{}' is partly overwritten", .0.join("', '"))]
    Overwritten(Vec<String>),
    #[error(
        "the clone was not made; '{}' stays where nobody answers, and `hpvm doctor --repair` removes it when its store answers", joined(.0)
    )]
    Unremoved(Vec<PathBuf>),
    #[error("guest '{0}' goes on starting; `hpvmstatus -P {0}` shows it")]
    Starting(GuestName),
    #[error("guest '{0}' is being stopped all the same; `hpvmstatus -P {0}` shows it")]
    Stopping(GuestName),
    #[error(
        "guest '{0}' goes on shutting down if its OS does; `hpvmstatus -P {0} -V` shows it, `hpvmstop -P {0} -h` ends it"
    )]
    ShuttingDown(GuestName),
}

fn joined(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join("', '")
}

/// Who waits for another command has done nothing yet.
impl From<BusyError> for Refusal {
    fn from(error: BusyError) -> Refusal {
        match error {
            BusyError::Interrupted(interruption) => {
                Refusal::Interrupted { interruption, left: Left::AsItWas }
            }
            other => Refusal::Busy(other),
        }
    }
}

impl From<EntryRefused> for Refusal {
    fn from(refused: EntryRefused) -> Refusal {
        Refusal::Entry(Box::new(refused))
    }
}

impl Refusal {
    /// The same refusal, or if it comes of an interruption, with what that leaves.
    pub(crate) fn leaving(self, left: impl FnOnce() -> Left) -> Refusal {
        match self {
            Refusal::Launch(LaunchError::Interrupted(interruption))
            | Refusal::Worker(ClientError::Interrupted(interruption)) => {
                Refusal::Interrupted { interruption, left: left() }
            }
            other => other,
        }
    }

    pub(crate) fn file(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(std::io::Error) -> Refusal {
        let path = path.into();
        move |source| Refusal::File { action, path, source }
    }
}

/// Refuses to begin what was interrupted before anything was done.
pub(crate) fn unless_interrupted() -> Result<(), Refusal> {
    match signals::interrupted() {
        Some(interruption) => Err(Refusal::Interrupted { interruption, left: Left::AsItWas }),
        None => Ok(()),
    }
}
