//! The files of a guest that is being made, by a thread beside the command: folder, firmware variables, identity, link, in an
//! order that survives a power cut at any point. They go again unless they are kept.

use std::path::{Path, PathBuf};
use std::sync::mpsc;

use hpvm_host::Root;
use hpvm_host::durable::{Batch, Unsynced};
use hpvm_model::{GuestConfig, GuestName, GuestUuid};
use hpvm_registry::Step;

use crate::Refusal;
use crate::folder::{self, Folder};
use crate::helper::{Helper, Pending};

/// The making of a guest's files by another thread. What it made is gone again before this is, but for what is taken.
pub(super) struct Files {
    /// Closed, they have it end soon.
    lines: Option<(mpsc::SyncSender<GuestConfig>, mpsc::Receiver<Batch>)>,
    draft: Option<Pending<Result<Draft, Refusal>>>,
}

impl Files {
    pub(super) fn begin(root: Root, uuid: GuestUuid, pristine: PathBuf, helper: &Helper) -> Files {
        let (decide, decision) = mpsc::sync_channel(1);
        let (name, named) = mpsc::sync_channel(1);
        let make = move || Draft::make(&root, uuid, &pristine, &decision, &name);
        Files { lines: Some((decide, named)), draft: Some(helper.begin(make)) }
    }

    /// There will be this guest: has those files made that tell which.
    pub(super) fn decide(&self, config: &GuestConfig) -> Result<(), Refusal> {
        let begun = self.draft.iter().try_for_each(Pending::hurry);
        begun.map_err(Refusal::NoThread)?;
        if let Some((decide, _)) = &self.lines {
            // It waits for this, or has failed, which it tells at its end.
            let _ = decide.send(config.clone());
        }
        Ok(())
    }

    /// Brings all of it to the disk, together with whoever makes it.
    pub(super) fn sync(&mut self) -> Result<Draft, Refusal> {
        let named = self.lines.as_ref().and_then(|(_, named)| named.recv().ok());
        named.map_or(Ok(()), Batch::sync)?;
        let draft = self.draft.take().expect("files are synced once");
        draft.wait()
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        self.lines = None;
        drop(self.draft.take().and_then(Pending::give_up));
    }
}

/// The folder of a guest that the registry does not know yet, and the name that leads there: both go again unless they are
/// kept.
pub(super) struct Draft {
    folder: Folder,
    link: Option<Link>,
    /// For people.
    text: Option<Unsynced>,
    is_kept: bool,
}

/// The name that leads to the folder of such a guest.
struct Link {
    root: Root,
    name: GuestName,
    uuid: GuestUuid,
}

impl Draft {
    /// Makes all files, each on the disk: first those that every guest has, then, when it is decided that there will be a
    /// guest, what tells which. Whoever decided syncs the names. Where there will be none, the draft is as good as any to be
    /// dropped.
    fn make(
        root: &Root,
        uuid: GuestUuid,
        pristine: &Path,
        decision: &mpsc::Receiver<GuestConfig>,
        name: &mpsc::SyncSender<Batch>,
    ) -> Result<Draft, Refusal> {
        let folder = Folder::draft_of(root, uuid);
        let mut draft = Draft { folder, link: None, text: None, is_kept: false };
        draft.folder.make()?;
        Step::CreateFolder.reached();
        let mut files = Batch::default();
        draft.folder.make_nvram(pristine, &mut files)?;
        Step::CreateNvram.reached();
        let identity = draft.folder.blank_identity()?;
        let Ok(config) = decision.recv() else { return Ok(draft) };
        identity.write(&config, &mut files)?;
        // Who does not hear it has failed.
        let _ = name.send(draft.settle(root, &config)?);
        // A guest without it is whole, and the next change writes it.
        draft.text = draft.folder.prepare_text(&config).ok();
        files.names_in(draft.folder.path());
        files.sync()?;
        Step::CreateLink.reached();
        Ok(draft)
    }

    /// Gives it its names, which are to be synced with its files, so that a journal is written once.
    fn settle(&mut self, root: &Root, config: &GuestConfig) -> Result<Batch, Refusal> {
        self.folder.settle(root, config.uuid)?;
        let mut names = Batch::default();
        let GuestConfig { name, uuid, .. } = config;
        self.link = Some(Link { root: root.clone(), name: name.clone(), uuid: *uuid });
        self.folder.make_link(root, config, &mut names)?;
        Ok(names)
    }

    pub(super) fn keep(mut self) {
        self.is_kept = true;
        let _ = self.text.take().map(Unsynced::put);
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if self.is_kept {
            return;
        }
        // What cannot be removed now is found by `hpvm doctor`; the error that led here is the one to tell.
        if let Some(Link { root, name, uuid }) = &self.link {
            let _ = folder::unlink(root, name, *uuid);
        }
        let _ = self.folder.remove();
    }
}
