//! `hpvmapp`, the worker of one running guest: the only one who speaks QMP to its QEMU, reads its console, takes requests
//! of commands and publishes its status. `hpvmkeeper` starts it and starts it again; ARCHITECTURE.md, 'Worker's
//! descriptors', is all it gets.
//!
//! ```text
//!  keeper ──link──┐                       ┌── machine (decides, pure)
//!  commands ──────┼──► driver (one owner) ┤
//!  QEMU ──QMP─────┘        │              └── performs: QMP, snapshot, log, journal
//!  QEMU ──serial──► console (its own tasks) ◄──door── hpvmconsole
//!  QEMU ──agent───► agent (asked by tasks of the driver)
//! ```

mod agent;
mod changes;
mod consent;
mod console;
mod console_log;
mod control;
mod copying;
mod descriptors;
mod driver;
mod guest_log;
mod image_folders;
mod link;
mod machine;
mod monitor;
mod publisher;
mod recorded;
mod request_watch;
mod store_watch;
mod successor;
mod wires;

use std::process::ExitCode;

use crate::descriptors::Descriptors;
use crate::driver::Failure;

fn main() -> ExitCode {
    match work() {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            // The keeper lets this go into the guest's log.
            eprintln!("hpvmapp: {}", hpvm_model::chain(&failure));
            ExitCode::FAILURE
        }
    }
}

fn work() -> Result<(), Failure> {
    // Started through a descriptor we would be called by its number.
    let _ = rustix::thread::set_name(c"hpvmapp");
    let descriptors = Descriptors::take()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build()
        .map_err(Failure::Runtime)?;
    tokio::task::LocalSet::new().block_on(&runtime, driver::work(descriptors))
}
