//! A longer backing store, offered to the running guest. QEMU never notices by itself that a store grew, and cuts the file of
//! an administrator who is told a smaller size: so the size is read from our own descriptor right before, and only a larger
//! one than QEMU has is ever told.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::os::fd::OwnedFd;

use hpvm_model::{Bytes, StorageAddress};
use hpvm_plan::command_line::device_id;
use hpvm_plan::growth::node_bytes;
use hpvm_plan::record::Machine;
use hpvm_qmp::Error as QmpError;
use hpvm_qmp::client::Client;
use hpvm_qmp::command::{BlockResize, QueryBlock};

use super::media::names;
use super::{Bench, DeviceError, Performed};

/// The sizes of its disks that the guest sees.
pub async fn sizes(
    client: &Client,
    machine: &Machine,
) -> Result<BTreeMap<StorageAddress, u64>, QmpError> {
    let devices = client.execute(&QueryBlock {}).await?;
    let size = |address: StorageAddress| {
        let id = device_id(address);
        let device = devices.iter().find(|device| names(device.qdev.as_deref(), &id))?;
        Some((address, device.inserted.as_ref()?.image.virtual_size))
    };
    Ok(machine.storage.iter().filter_map(|attached| size(attached.device.address)).collect())
}

impl Bench<'_> {
    pub(super) async fn grow(
        &mut self,
        address: StorageAddress,
        descriptor: Option<OwnedFd>,
    ) -> Result<Performed, DeviceError> {
        let mut store = File::from(descriptor.ok_or(DeviceError::NoDescriptor(address))?);
        let drive = self.drive(address).await?.inserted.ok_or(DeviceError::NoDevice(address))?;
        let node_name = drive.node_name.ok_or(DeviceError::NoDevice(address))?;
        // A block device has its length there too.
        let length =
            store.seek(SeekFrom::End(0)).map_err(|source| DeviceError::Size { address, source })?;
        let (size, shown) = (node_bytes(length), drive.image.virtual_size);
        if size < shown {
            let (store, shown) = (Bytes(length), Bytes(shown));
            return Err(DeviceError::Shorter { address, store, shown });
        }
        if size > shown {
            self.client.execute(&BlockResize { node_name, size }).await?;
        }
        Ok(Performed::Done)
    }
}
