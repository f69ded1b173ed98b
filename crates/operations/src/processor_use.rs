//! What guests use of the processors: since they started, and between two looks a moment apart. The kernel counts; nobody in
//! the guest or its worker is asked.

use std::time::{Duration, Instant};

use hpvm_app::snapshot::Process;
use hpvm_host::lock::pause_for;
use hpvm_host::process;
use hpvm_model::GuestNumber;

use crate::VmHost;
use crate::presence::Presence;

/// Between the two looks. Long against what the kernel lets one thread run at a time, short for who waits.
const MOMENT: Duration = Duration::from_millis(500);

/// What a guest used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProcessorUse {
    /// Processor time since it started.
    pub total: Duration,
    pub lately: Lately,
}

/// The same between two looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Lately {
    #[default]
    Off,
    /// It runs, and the kernel did not tell.
    Unknown,
    Used {
        time: Duration,
        within: Duration,
        /// Processors this VM Host has.
        processors: u32,
    },
}

impl VmHost {
    /// Looks at these guests twice, all at the same time; waits only when one of them runs.
    #[must_use]
    pub fn processor_use(&self, guests: &[GuestNumber]) -> Vec<ProcessorUse> {
        let running: Vec<Option<Process>> =
            guests.iter().map(|guest| self.engine_of(*guest)).collect();
        let look = || running.iter().map(|qemu| qemu.and_then(run_time)).collect::<Vec<_>>();
        let (before, since) = (look(), Instant::now());
        if running.iter().any(Option::is_some) {
            // Ended early by a signal, the moment was shorter.
            pause_for(MOMENT);
        }
        let (after, within) = (look(), since.elapsed());
        let processors = hpvm_host::facts::processors().unwrap_or(1);
        let looks = running.into_iter().zip(before.into_iter().zip(after));
        let uses = looks.map(|(qemu, looks)| match (qemu, looks) {
            (None, _) => ProcessorUse::default(),
            (Some(qemu), looks) => ProcessorUse {
                total: process::processor_time(qemu.pid).unwrap_or_default(),
                lately: match looks {
                    // What a thread that has ended used is in no sum any more.
                    (Some(before), Some(after)) => {
                        Lately::Used { time: after.saturating_sub(before), within, processors }
                    }
                    _ => Lately::Unknown,
                },
            },
        });
        uses.collect()
    }

    fn engine_of(&self, guest: GuestNumber) -> Option<Process> {
        match self.presence(guest) {
            Presence::On { snapshot: Some(snapshot), .. } => Some(snapshot.qemu),
            _ => None,
        }
    }
}

fn run_time(qemu: Process) -> Option<Duration> {
    let time = process::run_time(qemu.pid)?;
    process::is_alive(qemu.pid, qemu.start_time).then_some(time)
}
