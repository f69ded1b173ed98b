//! hpvm completions: writes the completions of the shells, at installation.

use std::path::PathBuf;

use crate::dispatch::{Context, Perform};
use crate::exit::Failure;
use crate::reference;

/// Write the completions of bash, zsh and fish into a folder
#[derive(Debug, clap::Parser)]
pub struct Completions {
    /// An existing folder
    #[arg(value_name = "DIR")]
    pub folder: PathBuf,
}

impl Perform for Completions {
    fn perform(self, _context: &Context) -> Result<(), Failure> {
        Ok(reference::write_all(&self.folder, &reference::completions())?)
    }
}
