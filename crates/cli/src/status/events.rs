//! `hpvmstatus -e`: a log as it was written, safe for a terminal.

use crate::messages::printable;

/// `log` may hold what a guest caused to be written, so its bytes are not trusted.
#[must_use]
pub fn render(log: &[u8]) -> String {
    String::from_utf8_lossy(log).lines().map(|line| format!("{}\n", printable(line))).collect()
}
