//! hpvm man: writes the manual pages, at installation.

use std::path::PathBuf;

use crate::dispatch::{Context, Perform};
use crate::exit::Failure;
use crate::reference;

/// Write the manual pages into a folder
#[derive(Debug, clap::Parser)]
pub struct Man {
    /// An existing folder; man1 and man5 are made in it
    #[arg(value_name = "DIR")]
    pub folder: PathBuf,
}

impl Perform for Man {
    fn perform(self, _context: &Context) -> Result<(), Failure> {
        Ok(reference::write_all(&self.folder, &reference::manual_pages()?)?)
    }
}
