//! What whoever watches a clone sees of its copies: how far they are, and which store they wait for.

use std::fmt::{self, Display, Formatter};

use hpvm_app::snapshot::SilentStore;
use hpvm_host::answers;
use hpvm_host::copy::Progress;
use hpvm_host::deputy;

use super::standstill::Hindrance;

/// How far which copy is.
#[derive(Clone, Copy, Debug)]
pub struct Stage<'a> {
    /// Of the source.
    pub from: &'a str,
    pub progress: Progress,
    /// What the copy waits for, told once each time that this is known anew.
    pub silence: Option<&'a Silence>,
}

/// What a copy waits for, and whether Ctrl-C lets the command go all the same, as a sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Silence {
    stores: String,
    waits: Waits,
}

/// Who waits for the stores.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Waits {
    /// This process, as long as they wish: the kernel ends none of which a thread waits for storage.
    Command,
    /// This process, whose principal goes after Ctrl-C.
    Deputy,
    /// The QEMU of the guest that is copied, and we for its worker, which answers Ctrl-C.
    Engine,
}

impl Silence {
    /// Of stores that we read and write ourselves.
    pub(super) fn holding_us(silent: &[&str]) -> Silence {
        let verb = if silent.len() == 1 { "does" } else { "do" };
        let stores = format!("'{}' {verb} not answer", silent.join("' and '"));
        let waits = if deputy::is_appointed() { Waits::Deputy } else { Waits::Command };
        Silence { stores, waits }
    }

    /// Of what QEMU copies to `targets`. Which of them take no changes now is asked where nobody knows what holds QEMU.
    pub(super) fn of_running(
        why: &Hindrance,
        targets: &[String],
        takes_changes: impl Fn(&str) -> bool,
    ) -> Silence {
        let frozen = || {
            let targets = targets.iter().map(String::as_str);
            let frozen: Vec<&str> = targets.filter(|target| !takes_changes(target)).collect();
            (!frozen.is_empty()).then(|| {
                format!("'{}' cannot be written: {}", frozen.join("' and '"), answers::silence())
            })
        };
        let stores = match why {
            Hindrance::Stores(stores) => {
                let clause = |store: &SilentStore| format!("{store}, does not answer");
                stores.iter().map(clause).collect::<Vec<_>>().join("; ")
            }
            Hindrance::Engine => frozen().unwrap_or_else(|| "QEMU does not answer".to_owned()),
            Hindrance::NothingWritten { seconds } => frozen().unwrap_or_else(|| {
                format!("nothing was written to '{}' for {seconds} s", targets.join("' or '"))
            }),
        };
        Silence { stores, waits: Waits::Engine }
    }
}

impl Display for Silence {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let end = match self.waits {
            Waits::Command => "and so does the command after Ctrl-C",
            Waits::Deputy => "and Ctrl-C ends it",
            Waits::Engine => "and perhaps the guest with it; Ctrl-C ends the command",
        };
        write!(f, "{}; the copy waits, {end}", self.stores)
    }
}
