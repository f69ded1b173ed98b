//! Captures under way, each with the connection of whoever asked for it: when he goes it ends, and when it ends he hears what
//! became of it and is let go.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use hpvm_model::PortNumber;
use hpvm_vswitch::{Capture, CaptureId};
use hpvm_vswitchd::protocol::Reply;

use super::{Daemon, Refused};
use crate::Input;

/// The last word fits into any socket that is read.
const LAST_WORD_BOUND: Duration = Duration::from_secs(1);

impl Daemon {
    pub(super) fn capture(
        &mut self,
        port: PortNumber,
        capture: Capture,
        asker: UnixStream,
    ) -> Result<(), Refused> {
        let mut watched = asker.try_clone().map_err(Refused::Watch)?;
        watched.set_read_timeout(None).map_err(Refused::Watch)?;
        let capture = self.switch.capture(port, capture)?;
        self.askers.insert(capture, asker);
        let owner = self.to_owner.clone();
        let watch = move || {
            let _ = watched.read(&mut [0]);
            let _ = owner.send(Input::AskerGone(port, capture));
        };
        let watching = std::thread::Builder::new().name(format!("capture {port}")).spawn(watch);
        if let Err(error) = watching {
            self.askers.remove(&capture);
            self.switch.end_capture(port, capture)?;
            return Err(Refused::Watch(error));
        }
        Ok(())
    }

    pub(super) fn capture_over(
        &mut self,
        port: PortNumber,
        capture: CaptureId,
        lost: u64,
        failure: Option<&str>,
    ) {
        if let Some(why) = failure {
            self.log.say(&format!("the capture of port {port} cannot be written any more: {why}"));
        }
        // One that nobody writes ends with its next frame, and there may be none.
        let _ = self.switch.end_capture(port, capture);
        let Some(mut asker) = self.askers.remove(&capture) else { return };
        let over = Reply::CaptureOver { lost, failure: failure.map(str::to_owned) };
        if let Ok(mut line) = serde_json::to_vec(&over) {
            line.push(b'\n');
            let _ = asker.set_write_timeout(Some(LAST_WORD_BOUND));
            let _ = asker.write_all(&line);
        }
        let _ = asker.shutdown(Shutdown::Both);
    }
}
