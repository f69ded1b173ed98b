//! A guest's folder, `uuids/UUID`, and the link to it, `guests/NAME`. What is made here is synced before the registry says
//! that the guest exists; what is removed goes after the registry forgot it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use hpvm_host::durable::{self, Batch, DurableError, Prepared, Replaced, Unsynced};
use hpvm_host::names::guest_folder;
use hpvm_host::paths::Root;
use hpvm_host::{lock, process, removal};
use hpvm_model::{GuestConfig, GuestName, GuestUuid};
use hpvm_plan::record::Machine;
use hpvm_registry::portable;

/// The folder of one guest.
#[derive(Clone, Debug)]
pub(crate) struct Folder {
    path: PathBuf,
}

/// A file, empty yet, for what a lost registry would be rebuilt from.
#[derive(Debug)]
pub(crate) struct Identity {
    path: PathBuf,
    file: File,
}

impl Identity {
    pub(crate) fn write(
        mut self,
        config: &GuestConfig,
        batch: &mut Batch,
    ) -> Result<(), DurableError> {
        let written = self.file.write_all(portable::write(config).as_bytes());
        written.map_err(durable::failed("write", &self.path))?;
        batch.include(&self.path, self.file);
        Ok(())
    }
}

impl Folder {
    pub(crate) fn of(root: &Root, uuid: GuestUuid) -> Folder {
        Folder { path: root.guest_dir(&uuid.to_string()) }
    }

    /// The same while nobody knows whether there will be a guest: under a name that tells who makes it.
    pub(crate) fn draft_of(root: &Root, uuid: GuestUuid) -> Folder {
        Folder { path: durable::sibling(Folder::of(root, uuid).path()) }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Whether nothing is there. A folder that cannot be looked at is not missing.
    pub(crate) fn is_missing(&self) -> bool {
        matches!(self.path.try_exists(), Ok(false))
    }

    /// Makes the folder itself; it must not be there yet.
    pub(crate) fn make(&self) -> Result<(), DurableError> {
        durable::create_folder(&self.path, 0o755)
    }

    /// Gives a draft the guest's own name, which is safe once the link is.
    pub(crate) fn settle(&mut self, root: &Root, uuid: GuestUuid) -> Result<(), DurableError> {
        let Folder { path } = Folder::of(root, uuid);
        durable::swap_name(&self.path, &path)?;
        self.path = path;
        Ok(())
    }

    /// Gives the guest its firmware variables, from the pristine copy.
    pub(crate) fn make_nvram(
        &self,
        pristine: &Path,
        batch: &mut Batch,
    ) -> Result<(), DurableError> {
        batch.copy_file(pristine, &self.file(guest_folder::NVRAM), 0o600)
    }

    /// Writes what a lost registry would be rebuilt from, in a folder just made; the names of all that is in it are synced
    /// with it.
    pub(crate) fn make_identity(
        &self,
        config: &GuestConfig,
        batch: &mut Batch,
    ) -> Result<(), DurableError> {
        batch.names_in(&self.path);
        self.blank_identity()?.write(config, batch)
    }

    /// The file for that, of a draft.
    pub(crate) fn blank_identity(&self) -> Result<Identity, DurableError> {
        let path = self.file(guest_folder::IDENTITY);
        let file = durable::create(&path, 0o644)?;
        Ok(Identity { path, file })
    }

    /// Points `guests/NAME` at this folder, whose own name is synced with it.
    pub(crate) fn make_link(
        &self,
        root: &Root,
        config: &GuestConfig,
        batch: &mut Batch,
    ) -> Result<(), DurableError> {
        batch.names_in(self.path.parent().unwrap_or(Path::new("/")));
        batch.replace_symlink(&target(config.uuid), &root.guest_link(config.name.as_str()))
    }

    /// Writes anew, after a change, what a lost registry would be rebuilt from.
    pub(crate) fn replace_identity(&self, config: &GuestConfig) -> Result<(), DurableError> {
        self.clear_unfinished();
        durable::replace_file(
            &self.file(guest_folder::IDENTITY),
            portable::write(config).as_bytes(),
            0o644,
        )
    }

    /// The same for a change that may still fail: it goes back until it is kept, whether or not there is room.
    pub(crate) fn exchange_identity(&self, config: &GuestConfig) -> Result<Replaced, DurableError> {
        self.prepare_identity(config)?.put()
    }

    /// Writes beside its place what a lost registry would be rebuilt from, so that there is room for it later.
    pub(crate) fn prepare_identity(&self, config: &GuestConfig) -> Result<Prepared, DurableError> {
        self.clear_unfinished();
        let text = portable::write(config);
        Prepared::beside(&self.file(guest_folder::IDENTITY), text.as_bytes(), 0o644)
    }

    /// Removes what commands that were killed left of files they were to put into their place. Copies of disks are not among
    /// them: those may still be wanted. What cannot go now goes with the next change, or by `hpvm doctor --repair`.
    fn clear_unfinished(&self) {
        let entries = std::fs::read_dir(&self.path).into_iter().flatten().flatten();
        for entry in entries {
            let name = entry.file_name();
            if let Some((path, pid)) = name.to_str().and_then(durable::made_for)
                && guest_folder::REPLACED.contains(&path)
                && process::start_time(pid).is_none()
            {
                let _ = std::fs::remove_file(entry.path());
            }
        }
    }

    /// The text for people about a new guest. A folder that has it may be a guest's (`may_be_whole`), so it gets its place
    /// when there is one.
    pub(crate) fn prepare_text(&self, config: &GuestConfig) -> Result<Unsynced, DurableError> {
        let path = self.file(guest_folder::CONFIG_CURRENT);
        Unsynced::beside(&path, config_text(config).as_bytes(), 0o644)
    }

    /// Writes the texts for people: what runs, and what the next start will have when that differs.
    pub(crate) fn write_texts(
        &self,
        config: &GuestConfig,
        machine: Option<&Machine>,
    ) -> io::Result<()> {
        let wanted = config_text(config);
        let current = machine.map_or_else(|| wanted.clone(), |m| machine_text(config, m));
        self.replace_text(guest_folder::CONFIG_CURRENT, &current)?;
        if current == wanted {
            removal::file(&self.file(guest_folder::CONFIG_NEXT))
        } else {
            self.replace_text(guest_folder::CONFIG_NEXT, &wanted)
        }
    }

    /// Not synced: after a power cut the next change or start writes it again.
    fn replace_text(&self, name: &str, text: &str) -> io::Result<()> {
        durable::swap_file(&self.file(name), text.as_bytes(), 0o644).map_err(|error| error.source)
    }

    /// What it says about the guest it belongs to.
    pub(crate) fn identity(&self) -> Option<GuestConfig> {
        let identity = durable::read_regular(&self.file(guest_folder::IDENTITY)).ok()?;
        portable::read(std::str::from_utf8(&identity).ok()?).ok()
    }

    /// Whether it has what is written last: such a folder may be whole, and only the registry may have lost it.
    pub(crate) fn may_be_whole(&self) -> bool {
        [guest_folder::BOOT_RECORD, guest_folder::CONFIG_CURRENT]
            .iter()
            .any(|name| self.file(name).exists())
    }

    /// Whether a command is at the guest.
    pub(crate) fn is_being_changed(&self) -> bool {
        matches!(lock::owner(&self.file(guest_folder::BUSY)), Ok(Some(_)))
    }

    /// Removes the folder and everything in it, last the lock, which tells that somebody is at it; fine when it is gone.
    pub(crate) fn remove(&self) -> io::Result<()> {
        for entry in std::fs::read_dir(&self.path).into_iter().flatten().flatten() {
            if entry.file_name() != guest_folder::BUSY {
                removal::either(&entry.path())?;
            }
        }
        removal::folder(&self.path)
    }
}

/// The folders of guests, whether or not the registry knows them.
pub(crate) fn all(root: &Root) -> BTreeMap<GuestUuid, Folder> {
    let entries = std::fs::read_dir(root.uuids()).into_iter().flatten().flatten();
    let uuids = entries.filter_map(|entry| owner(entry.file_name().to_str()?));
    uuids.map(|uuid| (uuid, Folder::of(root, uuid))).collect()
}

/// The guest whose folder has this name in `uuids`. A uuid in any other writing is no name of ours.
pub(crate) fn owner(name: &str) -> Option<GuestUuid> {
    name.parse().ok().filter(|uuid: &GuestUuid| uuid.to_string() == name)
}

/// Points `guests/NAME` at the guest's folder, wherever it led.
pub(crate) fn link(root: &Root, name: &GuestName, uuid: GuestUuid) -> Result<(), DurableError> {
    durable::replace_symlink(&target(uuid), &root.guest_link(name.as_str()))
}

/// Whether a link leads to the folder of this guest.
#[must_use]
pub(crate) fn leads_to(link: &Path, uuid: GuestUuid) -> bool {
    std::fs::read_link(link).is_ok_and(|found| found == target(uuid))
}

/// What a link says, so that it holds wherever the whole tree is moved.
fn target(uuid: GuestUuid) -> PathBuf {
    PathBuf::from(format!("../uuids/{uuid}"))
}

/// Removes `guests/NAME`; fine when it is gone, or leads elsewhere: once the registry has freed a name, it may be another
/// guest's.
pub(crate) fn unlink(root: &Root, name: &GuestName, uuid: GuestUuid) -> io::Result<()> {
    let link = root.guest_link(name.as_str());
    if leads_to(&link, uuid) { removal::file(&link) } else { Ok(()) }
}

/// The folder of the guest that a link as [`link`] makes them leads to.
pub(crate) fn led_to(root: &Root, link: &Path) -> Option<Folder> {
    let led_to = std::fs::read_link(link).ok()?;
    let uuid = owner(led_to.file_name()?.to_str()?)?;
    Some(Folder::of(root, uuid))
}

/// Whether this is a link as [`link`] makes them.
#[must_use]
pub(crate) fn is_ours(link: &Path) -> bool {
    std::fs::read_link(link).is_ok_and(|target| target.starts_with("../uuids"))
}

fn config_text(config: &GuestConfig) -> String {
    let mut text = head_text(config, config.vcpus.get(), &config.memory.to_string());
    for device in &config.storage {
        text.push_str(&format!("resource={device}\n"));
    }
    for nic in &config.nics {
        text.push_str(&format!("resource={nic}\n"));
    }
    text + "resource=serial:com1::tty:console\n"
}

fn machine_text(config: &GuestConfig, machine: &Machine) -> String {
    let base = &machine.base;
    let mut text = head_text(config, base.vcpus.get(), &base.memory.to_string());
    for attached in &machine.storage {
        text.push_str(&format!("resource={}\n", attached.device));
    }
    for attached in &machine.nics {
        text.push_str(&format!("resource={}\n", attached.nic));
    }
    text + "resource=serial:com1::tty:console\n"
}

fn head_text(config: &GuestConfig, vcpus: u32, memory: &str) -> String {
    format!(
        "# Written by hpvm for reading only; changes come from hpvmmodify.\n\
         name={}\nnumber={}\nuuid={}\nserial={}\nlabel={}\nos_type={}\nvcpus={vcpus}\nmemory={memory}\n\
         entitlement={}\nstart_attr={}\nrunnable_status={}\n",
        config.name,
        config.number,
        config.uuid,
        config.serial_number,
        config.label,
        config.os,
        config.entitlement,
        config.auto_start,
        config.runnable,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_goes_with_its_own_guest_alone() {
        let folder = tempfile::tempdir().expect("a folder");
        let root = Root::at(folder.path()).expect("a root");
        std::fs::create_dir_all(root.guests()).expect("a folder");
        let name: GuestName = "web".parse().expect("a name");
        let [old, new] = [1, 2].map(|n| GuestUuid(uuid::Uuid::from_u128(n)));
        link(&root, &name, new).expect("a link");
        unlink(&root, &name, old).expect("nothing to do");
        assert!(leads_to(&root.guest_link("web"), new));
        unlink(&root, &name, new).expect("it goes");
        unlink(&root, &name, new).expect("it is gone");
        assert!(root.guest_link("web").symlink_metadata().is_err());
    }

    #[test]
    fn what_commands_that_died_left_goes_with_the_next_change() {
        let below = tempfile::tempdir().expect("a folder");
        let folder = Folder { path: below.path().to_owned() };
        let mut ended = std::process::Command::new("true").spawn().expect("true runs");
        ended.wait().expect("our own child");
        let name = |file: &str, pid: u32| format!(".{file}.{pid}.7.new");
        let (dead, own) = (ended.id(), std::process::id());
        let left = guest_folder::REPLACED.map(|file| name(file, dead));
        let others = [
            name("guest.json", own),
            name("disk-0-0-0.qcow2", dead),
            "guest.json".into(),
            "console.log".into(),
        ];
        for made in left.iter().chain(&others) {
            std::fs::write(folder.file(made), "some").expect("a file");
        }
        let config =
            crate::create::blank(&"web".parse().expect("a name"), GuestUuid(uuid::Uuid::nil()));
        let prepared = folder.prepare_identity(&config).expect("there is room");
        assert!(left.iter().all(|left| !folder.file(left).exists()), "nobody finishes these");
        assert!(others.iter().all(|other| folder.file(other).exists()), "these are not left over");
        drop(prepared);
    }

    #[test]
    fn a_folder_is_a_guests_by_its_uuid_as_hpvm_writes_it() {
        let folder = tempfile::tempdir().expect("a folder");
        let root = Root::at(folder.path()).expect("a root");
        let uuid = GuestUuid(uuid::Uuid::from_u128(0xabc));
        let written = uuid.to_string();
        let others = [
            written.to_uppercase(),
            format!("{{{written}}}"),
            written.replace('-', ""),
            format!(".{written}.412.0.new"),
            "lost+found".into(),
        ];
        for name in others.iter().chain([&written]) {
            std::fs::create_dir_all(root.uuids().join(name)).expect("a folder");
        }
        let found: Vec<GuestUuid> = all(&root).into_keys().collect();
        assert_eq!(found, [uuid]);
    }
}
