//! Whether the guest's reservation helper answers, of a guest that has shared disks: noticed, told and forgotten. QEMU tells
//! only when the guest reserves something, which may be in the hour of need.

use std::path::{Path, PathBuf};

use hpvm_plan::command_line::shares_disks;
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::*;

/// A helper that is there speaks within milliseconds.
const SPEAKS_WITHIN: Duration = Duration::from_secs(1);
/// Looks in a row that find nobody, before it is told: one that ended is replaced within milliseconds.
const MISSED_MAX: u32 = 2;

/// What is known of the helper.
#[derive(Debug)]
pub(super) struct Helper {
    socket: PathBuf,
    is_asked: bool,
    missed: u32,
    /// When it was told that it does not answer.
    silent_since: Option<String>,
}

impl Helper {
    pub(super) fn at(socket: PathBuf) -> Helper {
        Helper { socket, is_asked: false, missed: 0, silent_since: None }
    }

    /// For the snapshot.
    pub(super) fn note(&self, guest: &str) -> Option<String> {
        let since = self.silent_since.as_ref()?;
        Some(format!(
            "its reservation helper does not answer since {since}: what the guest reserves on shared disks fails; `hpvmstart -P {guest}` starts it again"
        ))
    }
}

impl Driver {
    pub(super) fn watch_reservations(&mut self) {
        let Ok(known) = &self.recorded.machine else { return };
        let shares = shares_disks(known.file.machine().held());
        if !shares || self.reservations.is_asked || self.shown.phase == Phase::Starting {
            return;
        }
        self.reservations.is_asked = true;
        let (socket, news) = (self.reservations.socket.clone(), self.monitor.news());
        spawn_local(async move {
            let spoke = timeout(SPEAKS_WITHIN, first_word(&socket)).await;
            let answers = matches!(spoke, Ok(Ok(())));
            let _ = news.send(News::Reservations { answers }).await;
        });
    }

    pub(super) fn reservations_asked(&mut self, answers: bool) {
        let helper = &mut self.reservations;
        helper.is_asked = false;
        helper.missed = if answers { 0 } else { helper.missed + 1 };
        match (answers, helper.silent_since.take()) {
            (true, None) => return,
            (true, Some(since)) => self
                .log
                .say(&format!("the reservation helper answers again; it did not since {since}")),
            (false, None) if helper.missed < MISSED_MAX => return,
            (false, None) => {
                helper.silent_since = Some(now());
                self.log.say("the reservation helper does not answer");
            }
            (false, known) => {
                helper.silent_since = known;
                return;
            }
        }
        self.publish();
    }
}

async fn first_word(socket: &Path) -> io::Result<()> {
    let mut helper = UnixStream::connect(socket).await?;
    helper.read_exact(&mut [0; hpvm_reserve::FIRST_WORD_BYTES]).await?;
    Ok(())
}
