//! The folders of images that users of the console choose from, held since the worker's start. Called by the owner.
//!
//! A folder may lie on a file system that does not answer, so it is looked at by a thread of its own, one at a time: the
//! owner never waits, and a thread that hangs is the only one.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hpvm_console::door::{Drive, DriveAddress};
use hpvm_host::{identity, media_folder};
use hpvm_model::{Bytes, DeviceKind, StorageAddress, StorageDevice};
use hpvm_plan::drives::{self, Image};
use hpvm_plan::record::Machine;
use jiff::Timestamp;
use tokio::sync::oneshot;
use tokio::time::timeout;

/// A folder of thousands of files is read in milliseconds.
const LOOK_BOUND: Duration = Duration::from_secs(5);
const STACK_BYTES: usize = 256 << 10;
const OF_HOST: &str = "this drive belongs to the VM Host, whose administrator changes it";

/// Clones share the folders.
#[derive(Clone, Debug)]
pub(crate) struct ImageFolders {
    held: Arc<Vec<(String, OwnedFd)>>,
    /// Those the machine was started with, held or not.
    at_start: Arc<BTreeSet<String>>,
    /// What the folders hold was looked at before.
    started: Timestamp,
    is_looking: Arc<AtomicBool>,
}

impl ImageFolders {
    pub(crate) fn new(held: Vec<(String, OwnedFd)>, machine: Option<&Machine>) -> ImageFolders {
        let at_start = machine.map(drives::folders_at_start).unwrap_or_default();
        let started = machine.and_then(|m| m.base.started_at.parse().ok());
        ImageFolders {
            held: Arc::new(held),
            at_start: Arc::new(at_start),
            started: started.unwrap_or(Timestamp::UNIX_EPOCH),
            is_looking: Arc::default(),
        }
    }

    pub(crate) fn all(&self) -> Vec<BorrowedFd<'_>> {
        self.held.iter().map(|(_, folder)| folder.as_fd()).collect()
    }

    /// The drives of a machine and what can be put into each.
    pub(crate) async fn drives(&self, machine: &Machine) -> Result<Vec<Drive>, String> {
        let devices = machine.storage.iter().map(|attached| attached.device.clone());
        let drives: Vec<StorageDevice> =
            devices.filter(|device| device.kind == DeviceKind::Dvd).collect();
        self.look(move |folders| drives.iter().map(|drive| folders.drive(drive)).collect()).await
    }

    /// Opens an image for a drive, by its name in the drive's folder or its whole path.
    pub(crate) async fn open(
        &self,
        drive: &StorageDevice,
        name: &str,
    ) -> Result<(Image, OwnedFd), String> {
        let (drive, name) = (drive.clone(), name.to_owned());
        self.look(move |folders| folders.open_image(&drive, &name)).await?
    }

    async fn look<T: Send + 'static>(
        &self,
        look: impl FnOnce(&ImageFolders) -> T + Send + 'static,
    ) -> Result<T, String> {
        if self.is_looking.swap(true, Ordering::Acquire) {
            return Err("the folder of images is being looked at; try again in a moment".into());
        }
        let (sender, receiver) = oneshot::channel();
        let folders = self.clone();
        let thread = std::thread::Builder::new().stack_size(STACK_BYTES).spawn(move || {
            let seen = look(&folders);
            folders.is_looking.store(false, Ordering::Release);
            // Who asked may have given up.
            let _ = sender.send(seen);
        });
        if let Err(error) = thread {
            self.is_looking.store(false, Ordering::Release);
            return Err(format!("the folder of images cannot be looked at: {error}"));
        }
        match timeout(LOOK_BOUND, receiver).await {
            Ok(Ok(seen)) => Ok(seen),
            Ok(Err(_)) => Err("the look at the folder of images failed".into()),
            Err(_) => Err(format!(
                "the file system of the folder of images has not answered for {} s",
                LOOK_BOUND.as_secs()
            )),
        }
    }

    fn drive(&self, device: &StorageDevice) -> Drive {
        let folder = drives::folder(device);
        let listed = match folder {
            Some(path) => self.list(device, path),
            None => Err(OF_HOST.into()),
        };
        let (mut images, mut trouble) = match listed {
            Ok(images) => (images, None),
            Err(why) => (Vec::new(), Some(why)),
        };
        let fitting = Drive::fitting(&images);
        if fitting < images.len() {
            trouble = Some(format!(
                "{} images more than can be shown; give one of them by its name",
                images.len() - fitting
            ));
            images.truncate(fitting);
        }
        Drive {
            address: drive_address(device.address),
            medium: device.backing.store().map(str::to_owned),
            folder: folder.map(str::to_owned),
            trouble,
            images,
        }
    }

    fn list(&self, drive: &StorageDevice, path: &str) -> Result<Vec<String>, String> {
        let images = media_folder::images(self.held(drive, path)?, self.started)
            .map_err(|error| format!("the folder '{path}' cannot be read by the guest's worker: {error}; it needs to be readable by everyone"))?;
        match images.is_empty() {
            true => Err(format!("there is no image in '{path}' that could be put in")),
            false => Ok(images),
        }
    }

    fn open_image(&self, drive: &StorageDevice, name: &str) -> Result<(Image, OwnedFd), String> {
        let path = drives::folder(drive).ok_or(OF_HOST)?;
        let within = name.strip_prefix(path).map_or(name, |rest| rest.trim_start_matches('/'));
        let (file, metadata) = media_folder::open(self.held(drive, path)?, within, self.started)
            .map_err(|error| hpvm_model::chain(&error))?;
        let identity = identity::of_store(&metadata).ok_or("it is no image")?;
        if drive.hangs_firmware(Bytes(metadata.len())) {
            let least = drive.kind.block_bytes();
            return Err(format!(
                "it has {} bytes, and with an image of less than {least} in a drive on scsi the guest does not boot",
                metadata.len()
            ));
        }
        Ok((Image { name: within.to_owned(), identity }, file))
    }

    fn held(&self, drive: &StorageDevice, path: &str) -> Result<BorrowedFd<'_>, String> {
        let held = self.held.iter().find(|(held, _)| held == path);
        held.map(|(_, folder)| folder.as_fd()).ok_or_else(|| {
            let why = match self.at_start.contains(path) {
                true => "something in it is restricted or kept for another use, or it was no folder when the guest was started",
                false => "the drive came to the guest after its start, and can be used so from its next start on",
            };
            let (adapter, address) = (drive.adapter.as_str(), drive.address);
            format!("nothing can be chosen from the folder '{path}': {why}; until then the VM Host's administrator puts an image in with `hpvmmodify -P GUEST -m dvd:{adapter}:{address}:file:IMAGE`")
        })
    }
}

pub(crate) fn drive_address(address: StorageAddress) -> DriveAddress {
    let StorageAddress { slot, target } = address;
    DriveAddress { bus: slot.bus(), device: slot.device(), target }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};

    use hpvm_model::{AdapterKind, Backing, DiskId, StorageType};

    use super::*;

    #[test]
    fn an_image_that_firmware_hangs_on_is_put_into_no_drive_on_scsi() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().display().to_string();
        fs::write(folder.path().join("small.iso"), [0; 1000]).unwrap();
        let held = vec![(path.clone(), OwnedFd::from(File::open(folder.path()).unwrap()))];
        let folders = ImageFolders::new(held, None);
        let opened = |adapter| {
            let drive = StorageDevice {
                kind: DeviceKind::Dvd,
                adapter,
                address: "0,1,0".parse().unwrap(),
                backing: Backing::new(StorageType::Null, path.clone()),
                layers: Vec::new(),
                id: DiskId::from_random(7),
            };
            folders.open_image(&drive, "small.iso").map(|(image, _)| image.name)
        };
        assert_eq!(opened(AdapterKind::AvioStor).as_deref(), Ok("small.iso"));
        let refused = opened(AdapterKind::Scsi).unwrap_err();
        assert!(refused.starts_with("it has 1000 bytes"), "{refused}");
    }
}
