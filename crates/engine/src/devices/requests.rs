//! How the guest's requests to its AVIO disks stand, as QEMU tells of each queue: for the disks of an adapter together, since
//! whose a request is stands in the guest's memory.

use std::time::{Duration, Instant};

use hpvm_model::{PciSlot, Vcpus};
use hpvm_plan::command_line::adapter_id;
use hpvm_qmp::answer::VirtQueue;
use hpvm_qmp::client::Client;
use hpvm_qmp::command::QueryVirtQueue;
use hpvm_qmp::{Class, Error as QmpError};

/// Before them are the one for what is done about requests, and the one where QEMU keeps the guest's room for events.
const FIRST_REQUEST_QUEUE: u16 = 2;
/// As many as a monitor of QEMU takes in before it has answered them: they cost one way there and back together.
const QUESTIONS_AT_ONCE: usize = 8;
/// After it no further answer is waited for: what a QEMU tells that is so slow is of no use, and the next beat asks again. One
/// that does not answer at all is waited for as long as each question's deadline says.
const BOUND: Duration = Duration::from_secs(1);

/// A queue of an AVIO adapter that the guest's requests come by. There is one for each processor of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RequestQueue {
    pub adapter: PciSlot,
    pub number: u16,
}

/// How the queues of these adapters stand, of which QEMU tells within the bound. Nothing is told of an adapter that QEMU has
/// not.
pub async fn standing(
    client: &Client,
    adapters: &[PciSlot],
    vcpus: Vcpus,
) -> Result<Vec<(RequestQueue, VirtQueue)>, QmpError> {
    let end = u16::try_from(vcpus.get()).unwrap_or(u16::MAX).saturating_add(FIRST_REQUEST_QUEUE);
    let of_adapter =
        |&adapter| (FIRST_REQUEST_QUEUE..end).map(move |number| RequestQueue { adapter, number });
    let queues: Vec<RequestQueue> = adapters.iter().flat_map(of_adapter).collect();
    let began = Instant::now();
    let mut told = Vec::with_capacity(queues.len());
    for together in queues.chunks(QUESTIONS_AT_ONCE) {
        let mut sent = Vec::with_capacity(together.len());
        for queue in together {
            sent.push(client.send(&question(*queue)).await?);
        }
        for (queue, sent) in together.iter().zip(sent) {
            if began.elapsed() >= BOUND {
                return Ok(told);
            }
            match sent.answer().await {
                Ok(state) => told.push((*queue, state)),
                Err(error) if is_about_the_queue(&error) => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(told)
}

fn question(queue: RequestQueue) -> QueryVirtQueue {
    let path = format!("/machine/peripheral/{}/virtio-backend", adapter_id(queue.adapter));
    QueryVirtQueue { path, queue: queue.number }
}

/// QEMU has none such; it may have others.
fn is_about_the_queue(error: &QmpError) -> bool {
    error.refusal().is_some_and(|refusal| refusal.class != Class::CommandNotFound)
}
