//! `hpvmstatus -r`: what each guest is promised of the processors, and what it used. Nothing enforces entitlements yet, so
//! the percentage in use is not measured and shown as 0.0%.

use std::fmt::Write as _;
use std::time::Duration;

use super::Shown;

/// What a guest's vCPUs used since it started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub processor_time: Duration,
}

const PERCENT_USED: &str = "0.0%";

/// All guests.
#[must_use]
pub fn all(guests: &[(Shown<'_>, Usage)]) -> String {
    let mut text = String::from(
        "[Virtual Machine Resource Entitlement]\n\
         [Virtual CPU entitlement]\n                                                      \
         Percent       Cumulative\n\
         Virtual Machine Name VM #  #VCPUs Entitlement Maximum   Usage            Usage\n\
         ==================== ===== ====== =========== ======= ======= ================\n",
    );
    for (guest, usage) in guests {
        let config = &guest.view.config;
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "{:<20} {:>5} {}",
            config.name,
            config.number.get(),
            columns(guest, *usage)
        );
    }
    text
}

/// One guest, then each of its vCPUs.
#[must_use]
pub fn one(guest: &Shown<'_>, usage: Usage) -> String {
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
    let each = usage.processor_time / guest.vcpus.get();
    for vcpu in 0..guest.vcpus.get() {
        let _ = writeln!(
            text,
            "{vcpu:>2}   {:>16} {PERCENT_USED:>7} {PERCENT_USED:>7} {:>8} {:>11}",
            each.as_millis(),
            "0MHz",
            "0 seconds"
        );
    }
    text
}

fn columns(guest: &Shown<'_>, usage: Usage) -> String {
    format!(
        "{:>6} {:>11} {:>7} {PERCENT_USED:>7} {:>16}",
        guest.vcpus.get(),
        guest.entitled,
        guest.maximum,
        usage.processor_time.as_millis()
    )
}
