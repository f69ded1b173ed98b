//! Opens devices to look at their content, or to learn whether the kernel keeps them for somebody.
//!
//! Called by `uses` through the trait [`Probe`], so that tests need no device. A device may never answer (a multipath volume
//! without paths queues for ever): questions are asked by another thread, one after the other, and waited for no longer than
//! [`BOUND`]. A thread that a device keeps is left behind for a new one. Such a read can be killed, so it does not keep the
//! program from ending.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use rustix::fs::OFlags;

use super::device::{Device, DeviceNumber, Medium};
use super::places::Places;

/// How long one device may take to answer: a sleeping disk needs some seconds to spin up.
const BOUND: Duration = Duration::from_secs(10);

/// Why a device's content is not known.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    #[error("it does not answer")]
    Silent,
    #[error("it cannot be read")]
    Failed(#[source] io::Error),
}

/// What can be learnt only by opening a device.
pub trait Probe {
    /// `length` bytes at `offset`, or fewer when the device ends before.
    fn read(&self, device: &Device, offset: u64, length: usize) -> Result<Vec<u8>, ProbeError>;

    /// Whether the kernel refuses it to a second exclusive user.
    fn is_claimed(&self, device: &Device) -> bool;
}

/// Asks the devices of this machine.
#[derive(Debug)]
pub struct DeviceProbe {
    dev: PathBuf,
    /// Devices that did not answer are not asked again.
    silent: Mutex<BTreeSet<DeviceNumber>>,
    /// Waits for the next question: a thread for each would cost more than most answers.
    asker: Mutex<Option<Asker>>,
}

/// A thread that asks what it is given until this is dropped.
#[derive(Debug)]
struct Asker(Sender<Box<dyn FnOnce() + Send>>);

impl Asker {
    fn new() -> io::Result<Asker> {
        let (questions, asked) = channel::<Box<dyn FnOnce() + Send>>();
        let thread = thread::Builder::new().name("probe".to_owned());
        thread.spawn(move || asked.into_iter().for_each(|ask| ask()))?;
        Ok(Asker(questions))
    }
}

impl DeviceProbe {
    #[must_use]
    pub fn new(places: &Places) -> Self {
        Self { dev: places.dev.clone(), silent: Mutex::default(), asker: Mutex::default() }
    }

    /// Asks within the bound.
    fn ask<T: Send + 'static>(
        &self,
        device: &Device,
        question: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> Result<T, ProbeError> {
        let silent = || self.silent.lock().unwrap_or_else(PoisonError::into_inner);
        let idle = || self.asker.lock().unwrap_or_else(PoisonError::into_inner);
        if silent().contains(&device.number) {
            return Err(ProbeError::Silent);
        }
        let (answer, answered) = sync_channel(1);
        let waiting = idle().take();
        let asker = waiting.map_or_else(Asker::new, Ok).map_err(ProbeError::Failed)?;
        let ask = Box::new(move || {
            // Nobody listens when the answer comes late.
            let _ = answer.send(question());
        });
        // Where it cannot be given, no answer comes either.
        let _ = asker.0.send(ask);
        match answered.recv_timeout(BOUND) {
            Ok(result) => {
                *idle() = Some(asker);
                result.map_err(ProbeError::Failed)
            }
            Err(RecvTimeoutError::Timeout) => {
                silent().insert(device.number);
                Err(ProbeError::Silent)
            }
            Err(RecvTimeoutError::Disconnected) => {
                Err(ProbeError::Failed(io::Error::other("the question was not asked")))
            }
        }
    }
}

impl Probe for DeviceProbe {
    fn read(&self, device: &Device, offset: u64, length: usize) -> Result<Vec<u8>, ProbeError> {
        let (node, number) = (self.dev.join(device.kernel_name()), device.number);
        self.ask(device, move || {
            let file = open(&node, number, OFlags::empty())?;
            let mut bytes = vec![0; length];
            let mut filled = 0;
            while filled < length {
                match file.read_at(&mut bytes[filled..], offset + filled as u64) {
                    Ok(0) => break,
                    Ok(count) => filled += count,
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    Err(error) => return Err(error),
                }
            }
            bytes.truncate(filled);
            Ok(bytes)
        })
    }

    /// To ask is to claim it for a moment. Drives with removable media are left alone: opening one may load it.
    fn is_claimed(&self, device: &Device) -> bool {
        if device.medium == Medium::Removable {
            return false;
        }
        let (node, number) = (self.dev.join(device.kernel_name()), device.number);
        let claimed = self.ask(device, move || match open(&node, number, OFlags::EXCL) {
            Err(error) => Ok(error.kind() == ErrorKind::ResourceBusy),
            Ok(_) => Ok(false),
        });
        claimed.unwrap_or(false)
    }
}

/// Opens the node when it is the device it should be.
pub(super) fn open(node: &Path, number: DeviceNumber, flags: OFlags) -> io::Result<File> {
    let flags = (flags | OFlags::NONBLOCK).bits() as i32;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(node)?;
    let metadata = file.metadata()?;
    let is_it =
        metadata.file_type().is_block_device() && DeviceNumber::from_raw(metadata.rdev()) == number;
    if is_it { Ok(file) } else { Err(io::Error::new(ErrorKind::NotFound, "it is another device")) }
}
