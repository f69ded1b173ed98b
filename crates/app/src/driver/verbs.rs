//! The verbs of console sessions: the media of the guest's drives. Power is switched by commands, hpvmconsole among them.

use hpvm_console::door::{Drive, MediumRequest};
use hpvm_console::fanout::Verb;
use hpvm_plan::drives::{self, Image};
use hpvm_plan::record::ChangedBy;

use super::*;
use crate::changes::Payload;
use crate::image_folders::drive_address;

/// An image that was opened for a drive.
#[derive(Debug)]
pub(crate) struct OpenedImage {
    pub(crate) ticket: Ticket,
    pub(crate) drive: StorageDevice,
    pub(crate) user: String,
    pub(crate) opened: Result<(Image, OwnedFd), String>,
}

/// What a user puts into a drive, or nothing.
pub(super) struct Medium {
    /// As it was when he asked.
    drive: StorageDevice,
    user: String,
    image: Option<(Image, OwnedFd)>,
}

impl Driver {
    pub(super) fn verb_asked(&mut self, asked: VerbAsked) {
        let VerbAsked { session, user, verb } = asked;
        match verb {
            Verb::Drives => self.look_at_drives(session),
            Verb::Medium(request) => self.medium_asked(session, user, request),
        }
    }

    fn look_at_drives(&self, session: SessionId) {
        let Ok(known) = &self.recorded.machine else {
            return self.console.verb_done(session, Err(Denial::NoRecord.to_string()));
        };
        let (machine, folders) = (known.file.machine().clone(), self.image_folders.clone());
        let news = self.monitor.news();
        spawn_local(async move {
            let drives = folders.drives(&machine).await;
            let _ = news.send(News::Drives(session, drives)).await;
        });
    }

    pub(super) fn drives_seen(&self, session: SessionId, drives: Result<Vec<Drive>, String>) {
        match drives {
            Ok(drives) => self.console.drives_known(session, drives),
            Err(why) => self.console.verb_done(session, Err(why)),
        }
    }

    fn medium_asked(&mut self, session: SessionId, user: String, request: MediumRequest) {
        let ticket = self.requests.ticket(Asker::Session(session));
        let drive = match self.drive(request.drive) {
            Ok(drive) => drive,
            Err(error) => return self.reply(ticket, Reply::Failed { error }),
        };
        let Some(name) = request.image else {
            return self.change_medium(ticket, Medium { drive, user, image: None });
        };
        let (folders, news) = (self.image_folders.clone(), self.monitor.news());
        spawn_local(async move {
            let opened = folders.open(&drive, &name).await;
            let opened = OpenedImage { ticket, drive, user, opened };
            let _ = news.send(News::ImageOpened(opened)).await;
        });
    }

    fn drive(&self, address: DriveAddress) -> Result<StorageDevice, String> {
        let machine = match &self.recorded.machine {
            Ok(known) => known.file.machine(),
            Err(_) => return Err(Denial::NoRecord.to_string()),
        };
        let mut devices = machine.storage.iter().map(|attached| &attached.device);
        let found = devices.find(|device| {
            device.kind == DeviceKind::Dvd && drive_address(device.address) == address
        });
        found.cloned().ok_or_else(|| format!("the guest has no drive at {address}"))
    }

    pub(super) fn image_opened(&mut self, opened: OpenedImage) {
        let OpenedImage { ticket, drive, user, opened } = opened;
        match opened {
            Ok(image) => self.change_medium(ticket, Medium { drive, user, image: Some(image) }),
            Err(error) => self.reply(ticket, Reply::Failed { error }),
        }
    }

    /// From here on it is a change like a command's, but for whose it is.
    fn change_medium(&mut self, ticket: Ticket, medium: Medium) {
        self.requests.media.insert(ticket, medium);
        self.feed(Input::Asked { ticket, ask: Ask::Change });
    }

    /// What a user wants of a drive, which may have gone, or got another folder, before his turn came.
    pub(super) fn payload_of(&self, medium: Medium) -> Result<Payload, String> {
        let Medium { drive, user, image } = medium;
        let (image, descriptor) = image.unzip();
        let attached = drives::with_medium(&drive, image.as_ref());
        let (now, address) = (self.drive(drive_address(drive.address))?, drive.address);
        if drives::with_medium(&now, image.as_ref()) != attached {
            return Err(format!("the drive at {address} is another one by now"));
        }
        let watched = descriptor.as_ref().and_then(|image| image.try_clone().ok());
        let stores = watched.into_iter().map(|image| (address, image.into())).collect();
        let changes = vec![DeviceChange::Medium { attached, by: ChangedBy::Console { user } }];
        let descriptors = descriptor.into_iter().collect();
        Ok(Payload { changes, descriptors, stores, ..Payload::default() })
    }
}
