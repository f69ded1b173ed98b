//! How much each device of the guest has done, as QEMU counts it.

use hpvm_model::StorageAddress;
use hpvm_plan::command_line::device_id;
use hpvm_plan::record::Machine;
use hpvm_qmp::Error as QmpError;
use hpvm_qmp::answer::BlockCounters;
use hpvm_qmp::client::Client;
use hpvm_qmp::command::QueryBlockstats;

use super::media::names;

/// The counters of each device that QEMU has of this machine, since it was made.
pub async fn counted(
    client: &Client,
    machine: &Machine,
) -> Result<Vec<(StorageAddress, BlockCounters)>, QmpError> {
    let stats = client.execute(&QueryBlockstats {}).await?;
    let addresses = machine.storage.iter().map(|attached| attached.device.address);
    let counted = addresses.filter_map(|address| {
        let id = device_id(address);
        let device = stats.iter().find(|stats| names(stats.qdev.as_deref(), &id))?;
        Some((address, device.stats.clone()))
    });
    Ok(counted.collect())
}
