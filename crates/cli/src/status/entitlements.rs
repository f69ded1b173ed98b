//! `hpvmstatus -r`: what each guest is promised of the processors, and what it used. Nothing enforces entitlements yet. The VM
//! Host sees a guest's threads as one, so each vCPU is shown with its part of the sum.

use std::fmt::Write as _;
use std::time::Duration;

use hpvm_operations::processor_use::{Lately, ProcessorUse};

use super::{Shown, name_column};

/// What one vCPU used between two looks, as it is shown.
struct Recent {
    /// Of one processor.
    percent: String,
    /// Of all that the VM Host has.
    host_percent: String,
    cycles: String,
    interval: String,
}

impl Recent {
    fn of(guest: &Shown<'_>, usage: &ProcessorUse, mhz: u32) -> Recent {
        let (share, processors, within) = match usage.lately {
            Lately::Unknown => return Recent::unknown(),
            Lately::Off => (0.0, 1, Duration::ZERO),
            Lately::Used { time, within, processors } => {
                let vcpus = f64::from(guest.vcpus.get());
                (time.as_secs_f64() / within.as_secs_f64() / vcpus, processors, within)
            }
        };
        let seconds = within.as_secs_f64();
        Recent {
            percent: format!("{:.1}%", share * 100.0),
            host_percent: format!("{:.1}%", share * 100.0 / f64::from(processors.max(1))),
            // Not every machine says how fast its processors are.
            cycles: match mhz {
                0 if share > 0.0 => "-".into(),
                mhz => format!("{:.0}MHz", share * f64::from(mhz)),
            },
            interval: match within.is_zero() {
                true => "0 seconds".into(),
                false => format!("{seconds:.1} seconds"),
            },
        }
    }

    fn unknown() -> Recent {
        let [percent, host_percent, cycles, interval] = ["-"; 4].map(str::to_owned);
        Recent { percent, host_percent, cycles, interval }
    }
}

/// All guests.
#[must_use]
pub fn all(guests: &[(Shown<'_>, ProcessorUse)]) -> String {
    let width = name_column(guests.iter().map(|(guest, _)| &guest.view.config.name));
    let mut text = format!(
        "[Virtual Machine Resource Entitlement]\n\
         [Virtual CPU entitlement]\n\
         {:width$}                                  Percent       Cumulative\n\
         {:<width$} VM #  #VCPUs Entitlement Maximum   Usage            Usage\n\
         {:=<width$} ===== ====== =========== ======= ======= ================\n",
        "", "Virtual Machine Name", ""
    );
    for (guest, usage) in guests {
        let config = &guest.view.config;
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "{:<width$} {:>5} {}",
            config.name,
            config.number.get(),
            columns(guest, usage)
        );
    }
    text
}

/// One guest, then each of its vCPUs.
#[must_use]
pub fn one(guest: &Shown<'_>, usage: &ProcessorUse, mhz: u32) -> String {
    let mut text = format!(
        "[Virtual Machine entitlements]\n                           \
         Percent       Cumulative\n\
         #VCPUs Entitlement Maximum   Usage            Usage\n\
         ====== =========== ======= ======= ================\n\
         {}\n\n\
         [Virtual CPU details]\n\
         vCPU Cumulative       Guest   Host    Cycles   Sampling\n\
         ID   Usage            percent percent achieved Interval\n\
         ==== ================ ======= ======= ======== ===========\n",
        columns(guest, usage)
    );
    let each = usage.total / guest.vcpus.get();
    let Recent { percent, host_percent, cycles, interval } = Recent::of(guest, usage, mhz);
    for vcpu in 0..guest.vcpus.get() {
        let _ = writeln!(
            text,
            "{vcpu:>2}   {:>16} {percent:>7} {host_percent:>7} {cycles:>8} {interval:>11}",
            each.as_millis(),
        );
    }
    text
}

fn columns(guest: &Shown<'_>, usage: &ProcessorUse) -> String {
    format!(
        "{:>6} {:>11} {:>7} {:>7} {:>16}",
        guest.vcpus.get(),
        guest.entitled,
        guest.maximum,
        Recent::of(guest, usage, 0).percent,
        usage.total.as_millis()
    )
}
