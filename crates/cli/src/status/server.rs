//! `hpvmstatus -s`: what the VM Host has, and what is left of it for guests.

use std::fmt::Write as _;

use hpvm_operations::view::HostView;

use crate::messages::printable;

/// Lines on entitlements for guests of more vCPUs than this would only repeat the line before.
const WAYS_MAX: u32 = 8;

#[must_use]
pub fn render(host: &HostView) -> String {
    let [hpux, windows, linux] = host.vcpus_max;
    let mut text = format!(
        "[HPVM Server System Resources]\n\n\
         Processor speed = {mhz} Mhz\n\
         Total physical memory = {} Mbytes\n\
         Total number of processors = {}\n\
         Available memory = {} Mbytes\n\
         Available swap space = {} Mbytes\n\
         Maximum vcpus for an HP-UX virtual machine = {hpux}\n\
         Maximum vcpus for a Windows (R) virtual machine = {windows}\n\
         Maximum vcpus for a Linux (R) virtual machine = {linux}\n",
        host.memory_total_mib,
        host.processors,
        host.memory_available_mib,
        host.swap_available_mib,
        mhz = host.processor_mhz,
    );
    for ways in 1..=host.processors.min(WAYS_MAX) {
        let mhz = host.processor_mhz;
        // Writing to a string cannot fail.
        let _ =
            writeln!(text, "Available entitlement for a {ways} way virtual machine = {mhz} Mhz");
    }
    let engine = match &host.engine {
        Ok(engine) => format!("QEMU {}, {}", engine.version, engine.program),
        Err(reason) => format!("none: {reason}"),
    };
    let (accelerator, reason) = (&host.accelerator, &host.accelerator_reason);
    let _ = writeln!(text, "Engine = {}", printable(&engine));
    let _ = writeln!(text, "Accelerator = {}: {}", printable(accelerator), printable(reason));
    text
}
