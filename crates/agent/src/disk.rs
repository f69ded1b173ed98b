//! Asking the guest to let go of one disk: it writes out what it holds and forgets the disk, or says why not.
//!
//! The work is done by a script that the agent runs. A Linux guest has all it needs; any other system cannot run it, and
//! says so.

use std::time::Duration;

use crate::words::printable;
use crate::{Conversation, Error};

/// Writing out what a busy guest holds takes time; the script gives up by itself before we do.
const SCRIPT_BOUND: Duration = Duration::from_secs(25);
const RUN_BOUND: Duration = Duration::from_secs(30);
const SCRIPT: &str = include_str!("let-go-of-disk.sh");
const REFUSED: i64 = 3;

/// What the guest made of it. Reasons are the guest's words, cleaned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Release {
    /// All that was written is on the disk, and the guest knows the disk no more.
    LetGo,
    /// The guest uses the disk.
    Refused(String),
    /// The guest cannot tell.
    Cannot(String),
}

impl Conversation<'_> {
    /// Asks for the disk whose SCSI name is this NAA number (SPC-4, 7.8.6.6).
    pub async fn release_disk(&mut self, naa: u64) -> Result<Release, Error> {
        let (name, seconds) = (format!("{naa:016x}"), SCRIPT_BOUND.as_secs().to_string());
        let arguments = ["-c", SCRIPT, "hpvm", name.as_str(), seconds.as_str()];
        let finished = match self.run("/bin/sh", &arguments, RUN_BOUND).await {
            Ok(finished) => finished,
            Err(error @ (Error::Refused { .. } | Error::Answer { .. })) => {
                return Ok(Release::Cannot(error.to_string()));
            }
            Err(error) => return Err(error),
        };
        let words = printable(&finished.said);
        Ok(match finished.status {
            Some(0) => Release::LetGo,
            Some(REFUSED) => Release::Refused(words),
            _ => Release::Cannot(words),
        })
    }
}
