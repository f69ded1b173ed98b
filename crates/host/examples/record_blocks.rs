//! Writes what `hpvm_host::block` reads of this machine into a folder, so that its set-up becomes a test.
//!
//! ```text
//! cargo run -p hpvm-host --example record_blocks FOLDER
//! ```
//!
//! The recording has the names, sizes and serial numbers of all disks and the table of mounts; no device is opened.

use std::env;
use std::path::Path;
use std::process::ExitCode;

use hpvm_host::block::{Places, record};

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [folder] = arguments.as_slice() else {
        eprintln!("usage: record_blocks FOLDER");
        return ExitCode::from(2);
    };
    match record::record(&Places::default(), Path::new(folder)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("record_blocks: ERROR: cannot record into {folder}: {error}");
            ExitCode::FAILURE
        }
    }
}
