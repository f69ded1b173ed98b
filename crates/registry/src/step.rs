//! The steps between which a changing command may die. Commands call [`Step::reached`] after each; tests make a command
//! abort at one by name and look at what is left, and have it write down which it passed. A step stands here only if a
//! command passes it.

use std::fmt;
use std::fs::File;
use std::io::Write;
use std::str::FromStr;
use std::sync::OnceLock;

/// Names the step at which this process is to abort.
const ABORT_AT: &str = "HPVM_ABORT_AT";
/// Names the file in which this process is to leave the steps it passes, one a line.
const STEPS_TO: &str = "HPVM_STEPS_TO";

macro_rules! steps {
    ($($(#[$meta:meta])* $step:ident = $name:literal,)*) => {
        /// A point that a changing command passes, with something done before it and something left to do after it.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Step {
            $($(#[$meta])* $step,)*
        }

        impl Step {
            /// Every step there is, in the order of the commands.
            pub const ALL: &[Step] = &[$(Step::$step,)*];

            /// `command.what-is-done`.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self {
                    $(Step::$step => $name,)*
                }
            }
        }
    };
}

steps! {
    /// The guest's folder is there, empty.
    CreateFolder = "create.folder",
    CreateNvram = "create.nvram",
    /// Folder and link are complete; the registry does not know the guest yet.
    CreateLink = "create.link",
    CreateCommitted = "create.committed",
    /// The record says what is copied where; nothing is yet.
    CloneRecorded = "clone.recorded",
    /// The running source's QEMU copies its disks.
    CloneCopying = "clone.copying",
    /// All content is copied, under names of its own.
    CloneCopied = "clone.copied",
    /// The clone's folder is there, empty.
    CloneFolder = "clone.folder",
    CloneNvram = "clone.nvram",
    /// Copies, folder and link are complete and synced; the registry does not know the clone yet.
    ClonePlaced = "clone.placed",
    CloneCommitted = "clone.committed",
    /// No copy has another name than its own any more; the record still says that it goes on.
    CloneSettled = "clone.settled",
    /// The running guest took what it can take now; the registry still has the old configuration.
    ModifyApplied = "modify.applied",
    /// Both names lead to the guest's folder.
    RenameLinked = "rename.linked",
    ModifyCommitted = "modify.committed",
    /// The running guest's worker knows what it is to do at the guest's reset.
    ModifyNoted = "modify.noted",
    RenameUnlinked = "rename.unlinked",
    /// The guest is ours to start, and nothing was made for it yet.
    StartClaimed = "start.claimed",
    /// The boot record is written.
    StartRecord = "start.record",
    /// Keeper, QEMU and worker are launched.
    StartKeeper = "start.keeper",
    StartRunning = "start.running",
    StopAsked = "stop.asked",
    /// The engine is gone; the run folder is still there.
    StopEnded = "stop.ended",
    StopCleaned = "stop.cleaned",
    RemoveCommitted = "remove.committed",
    /// The name's link is gone; the folder is kept.
    RemoveUnlinked = "remove.unlinked",
    PurgeCommitted = "purge.committed",
    PurgeRemoved = "purge.removed",
    UndeleteLinked = "undelete.linked",
    UndeleteCommitted = "undelete.committed",
    /// The guest has other firmware variables.
    NvramReplaced = "nvram.replaced",
    /// The registry has the virtual switch as it is to be; its process and its guests were not told yet.
    SwitchCommitted = "vswitch.committed",
    /// The device database says what was asked for.
    DevmgmtCommitted = "devmgmt.committed",
    /// A disk's file has its size; nothing is recorded yet.
    DiskSized = "disk.sized",
    HostrdevCommitted = "hostrdev.committed",
    /// A rebuilt registry lies beside the damaged one.
    DoctorWritten = "doctor.written",
    /// The damaged registry has its second name.
    DoctorSaved = "doctor.saved",
    DoctorReplaced = "doctor.replaced",
    /// One leftover is gone.
    DoctorCleaned = "doctor.cleaned",
}

/// A text that is no step's name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is no step; `hpvm crash-steps` prints them all")]
pub struct UnknownStep(String);

/// What a test wants of this process.
struct Asked {
    abort_at: Option<Step>,
    steps_to: Option<File>,
}

impl Asked {
    fn by_environment() -> Asked {
        let abort_at = std::env::var(ABORT_AT).ok().and_then(|name| name.parse().ok());
        let steps_to = std::env::var_os(STEPS_TO)
            .and_then(|path| File::options().append(true).create(true).open(path).ok());
        Asked { abort_at, steps_to }
    }
}

impl Step {
    /// Aborts the process if it was asked to die here. Costs two looks at the environment in a process's life.
    pub fn reached(self) {
        static ASKED: OnceLock<Asked> = OnceLock::new();
        let asked = ASKED.get_or_init(Asked::by_environment);
        if let Some(mut file) = asked.steps_to.as_ref() {
            // A test that misses a step fails; the command has something else to do.
            let _ = file.write_all(format!("{self}\n").as_bytes());
        }
        if asked.abort_at == Some(self) {
            std::process::abort();
        }
    }
}

impl FromStr for Step {
    type Err = UnknownStep;
    fn from_str(text: &str) -> Result<Step, UnknownStep> {
        Step::ALL
            .iter()
            .copied()
            .find(|step| step.name() == text)
            .ok_or_else(|| UnknownStep(hpvm_model::bytes::shown(text)))
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn names_are_unique_and_lead_back() {
        let names: BTreeSet<&str> = Step::ALL.iter().map(|step| step.name()).collect();
        assert_eq!(names.len(), Step::ALL.len());
        for step in Step::ALL {
            assert_eq!(step.name().parse(), Ok(*step));
        }
        assert!("create.".parse::<Step>().is_err());
    }
}
