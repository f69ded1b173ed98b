//! What the boot record tells a worker of its guest. A record that cannot be used – cut, overwritten, removed, of a newer
//! hpvm – is no reason to leave a running guest alone: it is supervised all the same, by what the worker before published,
//! and only its devices stay as they are.

use std::fs::File;

use hpvm_app::snapshot::Snapshot;
use hpvm_engine::record_file::RecordFile;
use hpvm_host::process;
use hpvm_model::chain;
use hpvm_plan::record::AgentChannel;

use crate::machine::Devices;

#[derive(Debug)]
pub(crate) struct Recorded {
    pub(crate) name: String,
    /// The host's boot, which is that of the record.
    pub(crate) boot_id: String,
    pub(crate) accelerator: String,
    /// The machine, or why nobody can tell any more what it is.
    pub(crate) machine: Result<Known, String>,
}

/// A machine that is known.
#[derive(Debug)]
pub(crate) struct Known {
    pub(crate) file: RecordFile,
}

impl Recorded {
    /// Reads the record; `before` is what the worker before us published, `called` the name this worker was started with.
    pub(crate) fn read(file: File, before: Option<&Snapshot>, called: &str) -> Recorded {
        match RecordFile::open(file) {
            Ok(file) => {
                let base = &file.machine().base;
                let (name, boot_id) = (base.name.to_string(), base.boot_id.clone());
                Recorded {
                    name,
                    boot_id,
                    accelerator: base.accelerator.as_str().into(),
                    machine: Ok(Known { file }),
                }
            }
            Err(error) => Recorded {
                name: called.into(),
                boot_id: process::boot_id()
                    .ok()
                    .or_else(|| before.map(|before| before.boot_id.clone()))
                    .unwrap_or_default(),
                accelerator: before.map_or_else(String::new, |before| before.accelerator.clone()),
                machine: Err(chain(&error)),
            },
        }
    }

    /// A change that is under way, as the log names it.
    pub(crate) fn change(&self, seq: u64) -> String {
        let pending = self.machine.as_ref().ok().and_then(|known| {
            let pending = &known.file.machine().pending;
            pending.iter().find(|pending| pending.seq == seq)
        });
        let words = pending.map_or_else(String::new, |p| format!(", {},", p.change.words()));
        format!("device change {seq}{words}")
    }

    pub(crate) fn devices(&self) -> Devices {
        match self.machine {
            Ok(_) => Devices::Known,
            Err(_) => Devices::Unknown,
        }
    }

    /// Whether the guest has an agent's channel; of a machine that nobody knows it is left alone.
    pub(crate) fn agent(&self) -> AgentChannel {
        self.machine.as_ref().map_or(AgentChannel::Absent, |known| known.file.machine().base.agent)
    }

    pub(crate) fn damage(&self) -> Option<&String> {
        self.machine.as_ref().err()
    }
}
