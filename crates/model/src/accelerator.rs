//! What QEMU runs a guest with, and who serves its accelerated disks there.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accelerator {
    Kvm,
    Tcg,
}

impl Accelerator {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Accelerator::Kvm => "kvm",
            Accelerator::Tcg => "tcg",
        }
    }
}

/// Who serves an AVIO adapter when the guest has put requests into its rings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AvioService {
    /// QEMU's main loop, woken through a descriptor.
    #[default]
    MainLoop,
    /// The virtual processor that asks, before it goes on.
    Processor,
    /// A thread for the AVIO adapters of the guest, woken through a descriptor.
    Thread,
}

impl AvioService {
    /// What suits an accelerator. An emulated processor is in QEMU already when it asks, and waking another thread costs it
    /// more than the work itself; nor is `num_queues` said, so that each processor has a queue. Requests, and processor time for
    /// each, in a guest of two (`cargo xtask bench storage` on 28 Nov 2026 with such adapters added: TCG, 2 busy cores, medians
    /// of 41 pairs; 4 KiB 16 at once, one at a time, 1 MiB in sequence):
    /// - a thread over the processor, two queues each: 0.73 times, 21% more; 0.65, 56% more; 0.97, 10% more;
    /// - two queues over one, served by the processor: 1.51 times, 36% less; 2.46, 61% less; 1.12, 13% less.
    ///
    /// Those stores were in memory. With stores on the disk and a processor to spare (30 Nov 2026, a guest of one), over the
    /// processor, in the same order: the main loop 0.97, 0.80, 0.97 times; a thread 0.94, 0.76, 0.97, whether it polls or not.
    /// There the guest hands over what it has at once. Where it hands over each request by itself, as programs with many threads
    /// do, its processor pays for each as for one at a time: a thread came to 1.5 to 2.3 times (1 Dec 2026), and
    /// so it can be asked for.
    ///
    /// Leaving a guest on KVM costs so much that its processor should be back at once, and what is then done elsewhere should
    /// not wait for the main loop, which every emulated device and the monitor hold up (reasoned; no KVM to measure on).
    #[must_use]
    pub fn on(accelerator: Accelerator) -> AvioService {
        match accelerator {
            Accelerator::Tcg => AvioService::Processor,
            Accelerator::Kvm => AvioService::Thread,
        }
    }
}

/// As hpvmconf says it. What QEMU does unless told otherwise is for nobody to ask for.
impl FromStr for AvioService {
    type Err = ();

    fn from_str(text: &str) -> Result<AvioService, ()> {
        match text {
            "processor" => Ok(AvioService::Processor),
            "thread" => Ok(AvioService::Thread),
            _ => Err(()),
        }
    }
}
