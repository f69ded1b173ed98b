//! How the guest's requests to its AVIO disks stand, as QEMU tells of each queue: for the disks of an adapter together, since
//! whose a request is stands in the guest's memory.

use hpvm_model::{PciSlot, Vcpus};
use hpvm_plan::command_line::adapter_id;
use hpvm_qmp::Error as QmpError;
use hpvm_qmp::answer::VirtQueue;
use hpvm_qmp::client::Client;
use hpvm_qmp::command::QueryVirtQueue;

/// Before them are the one for what is done about requests, and the one where QEMU keeps the guest's room for events.
const FIRST_REQUEST_QUEUE: u16 = 2;

/// A queue of an AVIO adapter that the guest's requests come by. There is one for each processor of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RequestQueue {
    pub adapter: PciSlot,
    pub number: u16,
}

/// How the queues of these adapters stand. Nothing is told of an adapter that QEMU has not.
pub async fn standing(
    client: &Client,
    adapters: &[PciSlot],
    vcpus: Vcpus,
) -> Result<Vec<(RequestQueue, VirtQueue)>, QmpError> {
    let end = u16::try_from(vcpus.get()).unwrap_or(u16::MAX).saturating_add(FIRST_REQUEST_QUEUE);
    let mut told = Vec::new();
    for &adapter in adapters {
        let path = format!("/machine/peripheral/{}/virtio-backend", adapter_id(adapter));
        for number in FIRST_REQUEST_QUEUE..end {
            match client.execute(&QueryVirtQueue { path: path.clone(), queue: number }).await {
                Ok(queue) => told.push((RequestQueue { adapter, number }, queue)),
                Err(QmpError::Refused { .. }) => break,
                Err(error) => return Err(error),
            }
        }
    }
    Ok(told)
}
