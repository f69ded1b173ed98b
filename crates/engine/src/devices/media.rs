//! Media of a running guest: nodes and descriptors behind its devices, and the trays of its drives.

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::time::Duration;

use hpvm_model::{PciSlot, StorageAddress};
use hpvm_plan::command_line::{
    Handle, Property, device_id, layer_id, layer_properties, node_id, node_properties,
};
use hpvm_plan::record::Attached;
use hpvm_qmp::answer::BlockDevice;
use hpvm_qmp::command::{
    AddFd, BlockdevAdd, BlockdevDel, CloseTray, InsertMedium, OpenTray, QueryBlock, QueryFdsets,
    QueryNodes, RemoveFd, RemoveMedium,
};
use hpvm_qmp::{Error as QmpError, Happening};
use tokio::time::{Instant, sleep, timeout_at};

use super::{Bench, DeviceError, LOOK_AGAIN, Performed, properties};

/// How long a guest that locked its tray is waited for: whoever asked is told within 5 s.
const TRAY_BOUND: Duration = Duration::from_secs(4);
/// The same for a drive that is to leave, for which the command has more to do. A guest that opens its tray does so at once.
const UNLOCK_BOUND: Duration = Duration::from_secs(2);

/// Which of the nodes that were meant are gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Discarded {
    All,
    /// A device has one.
    AllUnused,
}

/// Until a device that is out of the tree has let its node go.
const LEFT_BOUND: Duration = Duration::from_secs(5);

/// The node that a change of this number makes.
pub(super) fn node(address: StorageAddress, seq: u64) -> String {
    node_id(address, seq)
}

impl Bench<'_> {
    /// Gives the engine a descriptor and opens a node on it. Nothing stays when it fails.
    pub(super) async fn add_medium(
        &mut self,
        seq: u64,
        attached: &Attached,
        descriptor: Option<OwnedFd>,
    ) -> Result<String, DeviceError> {
        let address = attached.device.address;
        let descriptor = descriptor.ok_or(DeviceError::NoDescriptor(address))?;
        let name = node(address, seq);
        let set = self
            .add_node(&name, descriptor, |handle| node_properties(attached, &name, handle))
            .await?;
        if attached.device.kind.is_attached() {
            // It was opened anew, and the descriptor that led there is of no use any more.
            let _ = self.client.execute(&RemoveFd { fdset_id: set }).await;
        }
        Ok(name)
    }

    /// What lies under an image that is to come, the lowest first, since each names the one below it.
    pub(super) async fn add_layers(
        &mut self,
        attached: &Attached,
        descriptors: Vec<OwnedFd>,
    ) -> Result<(), DeviceError> {
        let address = attached.device.address;
        if descriptors.len() != attached.layers.len() {
            return Err(DeviceError::NoDescriptor(address));
        }
        for (place, descriptor) in descriptors.into_iter().enumerate().rev() {
            let name = layer_id(address, place);
            let wanted = |handle: Handle| layer_properties(attached, place, handle.set);
            self.add_node(&name, descriptor, wanted).await?;
        }
        Ok(())
    }

    /// A node on a descriptor, and the set the engine has that in.
    async fn add_node(
        &mut self,
        name: &str,
        descriptor: OwnedFd,
        wanted: impl FnOnce(Handle) -> Vec<Property>,
    ) -> Result<i64, DeviceError> {
        let add = AddFd { fdset_id: None, opaque: Some(name.to_owned()) };
        let added = self.client.pass(&add, descriptor).await?;
        let wanted = wanted(Handle { set: added.fdset_id, number: added.fd });
        let opened = self.client.execute(&BlockdevAdd(properties(&wanted))).await;
        if opened.is_err() {
            let _ = self.client.execute(&RemoveFd { fdset_id: added.fdset_id }).await;
        }
        opened?;
        Ok(added.fdset_id)
    }

    pub(super) async fn change_medium(
        &mut self,
        seq: u64,
        attached: &Attached,
        descriptor: Option<OwnedFd>,
    ) -> Result<Performed, DeviceError> {
        let address = attached.device.address;
        let node = match attached.device.backing.store() {
            Some(_) => Some(self.add_medium(seq, attached, descriptor).await?),
            None => None,
        };
        let exchanged = self.exchange(address, node).await;
        // The old node after success, the new one after failure: whichever is not in the drive.
        self.discard_unused_media(address).await;
        exchanged.map(|()| Performed::Done)
    }

    async fn exchange(
        &mut self,
        address: StorageAddress,
        node: Option<String>,
    ) -> Result<(), DeviceError> {
        let id = device_id(address);
        let old = self.drive(address).await?.inserted.and_then(|medium| medium.node_name);
        self.open_tray(address, TRAY_BOUND).await?;
        let mut exchanged = self.client.execute(&RemoveMedium { id: id.clone() }).await;
        if let (Ok(_), Some(node_name)) = (&exchanged, node) {
            let insert = InsertMedium { id: id.clone(), node_name };
            exchanged = self.client.execute(&insert).await;
            if let (Err(_), Some(node_name)) = (&exchanged, old) {
                // Best effort: the drive as it was is better than an empty one.
                let _ = self.client.execute(&InsertMedium { id: id.clone(), node_name }).await;
            }
        }
        let shut = self.client.execute(&CloseTray { id }).await;
        exchanged?;
        shut?;
        Ok(())
    }

    pub(super) async fn drive(
        &mut self,
        address: StorageAddress,
    ) -> Result<BlockDevice, DeviceError> {
        let id = device_id(address);
        let devices = self.client.execute(&QueryBlock {}).await?;
        let found = devices.into_iter().find(|device| names(device.qdev.as_deref(), &id));
        found.ok_or(DeviceError::NoDevice(address))
    }

    /// A guest that keeps the tray of a drive locked uses what is in it.
    pub async fn unlock(&mut self, address: StorageAddress) -> Result<(), DeviceError> {
        if !self.drive(address).await?.locked {
            return Ok(());
        }
        self.open_tray(address, UNLOCK_BOUND).await.map_err(|error| match error {
            DeviceError::TrayLocked(address) => DeviceError::DriveInUse(address),
            other => other,
        })
    }

    /// A tray that the guest locked is asked for; the guest opens it when it has unmounted the medium.
    async fn open_tray(
        &mut self,
        address: StorageAddress,
        bound: Duration,
    ) -> Result<(), DeviceError> {
        let id = device_id(address);
        self.client.execute(&OpenTray { id: id.clone(), force: false }).await?;
        let until = Instant::now() + bound;
        while self.drive(address).await?.tray_open != Some(true) {
            let opened = |happening: &Happening| matches!(happening, Happening::TrayMoved(moved) if moved.id == id && moved.tray_open);
            loop {
                match timeout_at(until, self.happenings.recv()).await {
                    Ok(Some(happening)) if opened(&happening) => break,
                    Ok(Some(_)) => {}
                    Ok(None) | Err(_) => return Err(DeviceError::TrayLocked(address)),
                }
            }
        }
        Ok(())
    }

    /// Removes an address's nodes that no device has or is to have, and their descriptors. Best effort: a node that stays costs a
    /// descriptor, and is tried again with the next change of the same address.
    pub(super) async fn discard_unused_media(&mut self, address: StorageAddress) {
        let _ = self.try_discard(|name| is_node_of(name, address)).await;
    }

    /// The same of a device whose end nobody heard of: it may be out of the tree and have its node still, for a moment.
    pub(super) async fn discard_media_of_left(&mut self, address: StorageAddress) {
        let until = Instant::now() + LEFT_BOUND;
        let is_it = |name: &str| is_node_of(name, address);
        while Instant::now() < until && !matches!(self.try_discard(is_it).await, Ok(Discarded::All))
        {
            sleep(LOOK_AGAIN).await;
        }
    }

    /// The same for everything that was on an adapter; called once the guest has let it go.
    pub(super) async fn discard_media_in(&mut self, slot: PciSlot) {
        let prefix = format!("medium-{}-{}-", slot.bus(), slot.device());
        let _ = self.try_discard(|name| name.starts_with(&prefix)).await;
    }

    /// Closes what nobody has: media of devices that did not come or have left while nobody saw to it. To be called while
    /// nothing is changed. Best effort.
    pub async fn close_strays(&mut self) {
        let _ = self.try_close_strays().await;
    }

    async fn try_close_strays(&mut self) -> Result<(), QmpError> {
        let in_use = self.media_in_use().await?;
        let nodes = self.client.execute(&QueryNodes { flat: true }).await?;
        let nodes: BTreeSet<String> = nodes.into_iter().filter_map(|node| node.node_name).collect();
        let is_stray = |name: &&String| {
            layer_place(name).is_none() && !in_use.contains(*name) && !self.spared.contains(*name)
        };
        let strays = nodes.iter().filter(is_stray).filter_map(|name| place_of(name));
        for address in strays.collect::<BTreeSet<StorageAddress>>() {
            self.discard_unused_media(address).await;
        }
        // A descriptor that came and from which no node was opened.
        for set in self.client.execute(&QueryFdsets {}).await? {
            let mut names = set.fds.iter().filter_map(|fd| fd.opaque.as_deref());
            if names.any(|name| place_of(name).is_some() && !nodes.contains(name)) {
                self.client.execute(&RemoveFd { fdset_id: set.fdset_id }).await?;
            }
        }
        Ok(())
    }

    async fn media_in_use(&mut self) -> Result<BTreeSet<String>, QmpError> {
        let devices = self.client.execute(&QueryBlock {}).await?;
        Ok(devices.into_iter().filter_map(|device| device.inserted?.node_name).collect())
    }

    async fn try_discard(&mut self, wanted: impl Fn(&str) -> bool) -> Result<Discarded, QmpError> {
        let mut discarded = Discarded::All;
        let in_use = self.media_in_use().await?;
        let mut nodes = self.client.execute(&QueryNodes { flat: true }).await?;
        // What lies under another node is in use until that one is gone.
        nodes.sort_by_cached_key(|node| node.node_name.as_deref().and_then(layer_place));
        for node in nodes {
            let Some(node_name) = node.node_name else { continue };
            if !wanted(&node_name) || self.spared.contains(&node_name) {
                continue;
            }
            if in_use.contains(&node_name) {
                discarded = Discarded::AllUnused;
                continue;
            }
            self.client.execute(&BlockdevDel { node_name }).await?;
            if let Some(fdset_id) = fdset_of(&node.file) {
                self.client.execute(&RemoveFd { fdset_id }).await?;
            }
        }
        Ok(discarded)
    }
}

pub(crate) fn names(qdev: Option<&str>, id: &str) -> bool {
    qdev.and_then(device_named) == Some(id)
}

/// QEMU names a device by its id, or by its place in the object tree, which ends with the id of an unnamed child.
pub(super) fn device_named(qdev: &str) -> Option<&str> {
    qdev.strip_prefix("/machine/peripheral/").unwrap_or(qdev).split('/').next()
}

/// The place of a layer's node under the medium of its device; none of the medium itself.
fn layer_place(name: &str) -> Option<usize> {
    name.rsplit_once("-layer")?.1.parse().ok()
}

pub(super) fn is_node_of(name: &str, address: StorageAddress) -> bool {
    let place = node_id(address, 0);
    name.strip_prefix(&place).is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
}

/// The place of the device that a node was made for.
fn place_of(name: &str) -> Option<StorageAddress> {
    let mut numbers = name.strip_prefix("medium-")?.split('-');
    let [bus, device, target] = [numbers.next()?, numbers.next()?, numbers.next()?];
    format!("{bus},{device},{target}").parse().ok()
}

/// The descriptor set behind a node. Of a format QEMU names the file by a description, of which what lies under it is a part
/// too.
fn fdset_of(file: &str) -> Option<i64> {
    let Some(description) = file.strip_prefix("json:") else {
        return file.strip_prefix("/dev/fdset/")?.parse().ok();
    };
    let description: serde_json::Value = serde_json::from_str(description).ok()?;
    fdset_of(description["file"]["filename"].as_str()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_tells_the_place_of_its_device() {
        let address: StorageAddress = "1,5,12".parse().unwrap();
        for name in [node_id(address, 0), node_id(address, 7), layer_id(address, 2)] {
            assert_eq!(place_of(&name), Some(address), "{name}");
        }
        assert_eq!(place_of("copy-1-5-12"), None);
    }

    #[test]
    fn a_descriptor_is_found_in_either_name_of_a_file() {
        assert_eq!(fdset_of("/dev/fdset/7"), Some(7));
        let text = r#"json:{"driver": "qcow2", "file": {"filename": "/dev/fdset/12"}}"#;
        assert_eq!(fdset_of(text), Some(12));
        let below = r#"{"driver": "qcow2", "file": {"filename": "/dev/fdset/9"}}"#;
        let text = format!(
            r#"json:{{"backing": {below}, "driver": "qcow2", "file": {{"driver": "file", "filename": "/dev/fdset/12"}}}}"#
        );
        assert_eq!(fdset_of(&text), Some(12));
        assert_eq!(fdset_of("/srv/disk"), None);
        assert_eq!(fdset_of("json:cut..."), None);
    }
}
