//! Writes what the kernel tells `hpvm_host::nic` of this machine's interfaces into a folder, so that its set-up becomes a
//! test.
//!
//! ```text
//! cargo run -p hpvm-host --example record_nics FOLDER
//! ```

use std::env;
use std::fs;
use std::path::Path;

use hpvm_host::nic::Recording;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = env::args().nth(1).ok_or("usage: record_nics FOLDER")?;
    let Recording { links, addresses } = Recording::of_kernel()?;
    fs::write(Path::new(&folder).join("links"), links)?;
    fs::write(Path::new(&folder).join("addresses"), addresses)?;
    Ok(())
}
