//! What a registry knows that neither folders nor texts tell: the device database, what was done, and when guests were removed.
//! A rebuild takes it over from the old registry as far as that can still be read, part by part.

use std::collections::BTreeMap;
use std::fmt;

use hpvm_model::{Choice, GuestUuid};
use jiff::Timestamp;

use crate::change::Change;
use crate::entry::Entry;
use crate::error::RegistryError;
use crate::open::Registry;
use crate::operation::RecordedOperation;

/// A part that is read by itself: damage in one leaves the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    DeviceDatabase,
    Operations,
    Removals,
}

impl Part {
    pub(crate) const ALL: [Part; 3] = [Part::DeviceDatabase, Part::Operations, Part::Removals];
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Part::DeviceDatabase => "the restrictions and marks of the device database",
            Part::Operations => "the record of what was done",
            Part::Removals => "when guests were removed",
        })
    }
}

/// A part that a rebuild could not take over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lost {
    pub part: Part,
    pub why: String,
}

/// What could be read.
#[derive(Debug, Default)]
pub(crate) struct Remembered {
    pub(crate) entries: Vec<Entry>,
    /// As hpvmhostrdev would go back to them.
    entries_before: Vec<Entry>,
    hostrdev_at_start: Option<Choice>,
    /// Newest first.
    pub(crate) operations: Vec<RecordedOperation>,
    /// When each removed guest was removed, and until when it is kept.
    pub(crate) removals: BTreeMap<GuestUuid, (Timestamp, Timestamp)>,
}

impl Remembered {
    /// Reads what can be read of it; the rest is put among the lost.
    pub(crate) fn of(old: &Result<Registry, String>, lost: &mut Vec<Lost>) -> Remembered {
        let mut remembered = Remembered::default();
        for part in Part::ALL {
            let read = match old {
                Ok(old) => remembered.read(old, part).map_err(|error| error.without_advice()),
                Err(why) => Err(why.clone()),
            };
            lost.extend(read.err().map(|why| Lost { part, why }));
        }
        remembered
    }

    fn read(&mut self, old: &Registry, part: Part) -> Result<(), RegistryError> {
        match part {
            Part::DeviceDatabase => {
                let (now, before) = (old.entries()?, old.entries_before()?);
                self.hostrdev_at_start = Some(old.hostrdev_at_start()?);
                (self.entries, self.entries_before) = (now, before);
            }
            Part::Operations => self.operations = old.operations(None, usize::MAX)?,
            Part::Removals => {
                let times = |guest: crate::RemovedGuest| {
                    (guest.config.uuid, (guest.removed_at, guest.keep_until))
                };
                self.removals = old.removed()?.into_iter().map(times).collect();
            }
        }
        Ok(())
    }

    /// Puts all but the removals into another registry, in the order in which it came to be.
    pub(crate) fn restore(&self, change: &Change<'_>) -> Result<(), RegistryError> {
        for entry in &self.entries {
            change.put_entry(entry)?;
        }
        for entry in &self.entries_before {
            change.put_entry_before(entry)?;
        }
        if let Some(at_start) = self.hostrdev_at_start {
            change.set_hostrdev_at_start(at_start)?;
        }
        for recorded in self.operations.iter().rev() {
            change.record(&recorded.operation)?;
        }
        Ok(())
    }
}
