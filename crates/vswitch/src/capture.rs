//! Captures of a port's frames in pcap's format (pcap-savefile(5)), microseconds and Ethernet.
//!
//! The forwarding thread gathers a batch's records in memory and gives them to a thread that writes; when that one falls
//! behind, records are lost and not time.

use std::fs::File;
use std::io::{self, Write};
use std::sync::mpsc::{self, SyncSender, TrySendError};
use std::thread;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::frame::View;
use crate::options::Capture;

const MAGIC: u32 = 0xa1b2_c3d4;
const ETHERNET: u32 = 1;
/// How many batches may wait to be written.
const WAITING_MAX: usize = 256;

pub(crate) struct Capturing {
    snap_bytes: usize,
    records: Vec<u8>,
    writer: SyncSender<Vec<u8>>,
}

impl Capturing {
    pub(crate) fn start(capture: Capture) -> io::Result<Capturing> {
        let Capture { file, snap_bytes } = capture;
        let (writer, written) = mpsc::sync_channel::<Vec<u8>>(WAITING_MAX);
        thread::Builder::new().name("capture".into()).spawn(move || {
            let mut file = File::from(file);
            // Whoever reads may go: then the capture ends with its last record.
            while let Ok(records) = written.recv()
                && file.write_all(&records).is_ok()
            {}
        })?;
        let mut records = Vec::new();
        for word in [MAGIC, 2 | 4 << 16, 0, 0, snap_bytes, ETHERNET] {
            records.extend(word.to_ne_bytes());
        }
        let mut capturing = Capturing { snap_bytes: snap_bytes as usize, records, writer };
        capturing.flush();
        Ok(capturing)
    }

    pub(crate) fn frame(&mut self, view: &View<'_>) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let kept = (view.octets as usize).min(self.snap_bytes);
        for word in [now.as_secs() as u32, now.subsec_micros(), kept as u32, view.octets] {
            self.records.extend(word.to_ne_bytes());
        }
        let start = self.records.len();
        self.records.resize(start + kept, 0);
        view.copy_start(&mut self.records[start..]);
    }

    /// Hands the records on. Returns whether anybody still writes them.
    pub(crate) fn flush(&mut self) -> bool {
        if self.records.is_empty() {
            return true;
        }
        let records = std::mem::take(&mut self.records);
        !matches!(self.writer.try_send(records), Err(TrySendError::Disconnected(_)))
    }
}
