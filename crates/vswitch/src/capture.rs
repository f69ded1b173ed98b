//! Captures of a port's frames in pcap's format (pcap-savefile(5)), microseconds and Ethernet.
//!
//! The forwarding thread gathers a batch's records in memory and gives them to a thread that writes; when that one falls
//! behind, records are lost, and counted, and not time.

use std::fs::File;
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::frame::View;
use crate::options::{Capture, CaptureId};

const MAGIC: u32 = 0xa1b2_c3d4;
const ETHERNET: u32 = 1;
/// So much may wait to be written: some batches of the longest frames.
const WAITING_BYTES_MAX: usize = 16 << 20;

pub(crate) struct Capturing {
    pub(crate) id: CaptureId,
    snap_bytes: usize,
    records: Vec<u8>,
    /// How many frames these are.
    frames: u64,
    writer: Sender<Vec<u8>>,
    progress: Arc<Progress>,
}

/// What both threads know of a capture.
#[derive(Default)]
struct Progress {
    waiting_bytes: AtomicUsize,
    lost: AtomicU64,
}

/// What became of a capture.
pub(crate) struct Over {
    pub(crate) lost: u64,
    pub(crate) failure: Option<String>,
}

impl Capturing {
    /// `over`: called by the thread that writes, when it has written all it will.
    pub(crate) fn start(
        id: CaptureId,
        capture: Capture,
        over: impl FnOnce(Over) + Send + 'static,
    ) -> io::Result<Capturing> {
        let Capture { file, snap_bytes } = capture;
        let (writer, written) = mpsc::channel();
        let progress = Arc::<Progress>::default();
        thread::Builder::new().name("capture".into()).spawn({
            let progress = Arc::clone(&progress);
            move || {
                let failure = write(&mut File::from(file), written, &progress).err();
                // The forwarding thread is to find that nobody takes its records.
                progress.waiting_bytes.store(0, Ordering::Relaxed);
                let lost = progress.lost.load(Ordering::Relaxed);
                over(Over { lost, failure: failure.map(|failure| failure.to_string()) });
            }
        })?;
        let mut records = Vec::new();
        for word in [MAGIC, 2 | 4 << 16, 0, 0, snap_bytes, ETHERNET] {
            records.extend(word.to_ne_bytes());
        }
        let snap_bytes = snap_bytes as usize;
        let mut capturing = Capturing { id, snap_bytes, records, frames: 0, writer, progress };
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
        self.frames += 1;
    }

    /// Hands the records on. Returns whether anybody still writes them.
    pub(crate) fn flush(&mut self) -> bool {
        if self.records.is_empty() {
            return true;
        }
        let Progress { waiting_bytes, lost } = &*self.progress;
        let (records, frames) =
            (std::mem::take(&mut self.records), std::mem::take(&mut self.frames));
        if waiting_bytes.load(Ordering::Relaxed) + records.len() > WAITING_BYTES_MAX {
            lost.fetch_add(frames, Ordering::Relaxed);
            return true;
        }
        waiting_bytes.fetch_add(records.len(), Ordering::Relaxed);
        self.writer.send(records).is_ok()
    }
}

/// Until the capture ends, or the file takes no more.
fn write(
    file: &mut File,
    written: Receiver<Vec<u8>>,
    Progress { waiting_bytes, .. }: &Progress,
) -> io::Result<()> {
    for records in written {
        file.write_all(&records)?;
        waiting_bytes.fetch_sub(records.len(), Ordering::Relaxed);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::offload::plain;
    use std::io::Read;

    #[test]
    fn what_is_not_written_in_time_is_left_out_whole_and_counted() {
        const FRAME_BYTES: usize = 60_000;
        const FRAMES: u64 = 2 * (WAITING_BYTES_MAX / FRAME_BYTES) as u64;
        let (mut reader, file) = io::pipe().expect("a pipe");
        let capture = Capture { file: file.into(), snap_bytes: u32::MAX };
        let (over, ended) = mpsc::channel();
        let tell = move |end| drop(over.send(end));
        let mut capturing = Capturing::start(CaptureId(0), capture, tell).expect("a thread");
        for _ in 0..FRAMES {
            capturing.frame(&plain(&[7; FRAME_BYTES]));
            assert!(capturing.flush());
        }
        drop(capturing);
        let mut all = Vec::new();
        reader.read_to_end(&mut all).expect("what was written");
        let Over { lost, failure } = ended.recv().expect("its end");
        assert!(lost > 0 && lost < FRAMES, "{lost}");
        assert_eq!(failure, None);
        assert_eq!(all.len() as u64, 24 + (FRAMES - lost) * (16 + FRAME_BYTES as u64));
    }
}
