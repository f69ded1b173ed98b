//! What goes wrong and stays wrong, such as a disk that fails: told now and then, and the last of it always shown.

use std::time::Duration;

use tokio::time::Instant;

use super::Driver;
use crate::guest_log::now;

/// Trouble that lasts is told once in so long: a disk that fails does so thousands of times a minute.
const TROUBLE_APART: Duration = Duration::from_secs(10);

#[derive(Default)]
pub(super) struct Trouble {
    told_at: Option<Instant>,
    /// For the snapshot.
    pub(super) last: Option<String>,
}

impl Driver {
    /// A disk or the keeper's succession fails: for the log, and for who looks at the guest.
    pub(super) fn tell_trouble(&mut self, sentence: &str) {
        if self.trouble.told_at.is_none_or(|at| at.elapsed() >= TROUBLE_APART) {
            self.trouble.told_at = Some(Instant::now());
            self.log.say(sentence);
            self.trouble.last = Some(format!("{} (at {})", sentence, now()));
            self.publish();
        }
    }
}
