//! How the guest's requests to its virtio disks stand, queue by queue as QEMU tells it.

use serde_json::json;

use super::{Answer, Arguments, Machine, Refusal};
use crate::fake::behaviour;

/// What virtio-scsi has before the queues of requests: one for what is done about them, and one for events.
const FIRST_QUEUES: i64 = 2;

/// Of each queue alike.
#[derive(Debug, Default)]
pub(super) struct Requests {
    taken: u32,
    answered: u16,
}

impl Requests {
    /// One more is taken, and left unanswered.
    pub(super) fn stick(&mut self) {
        self.taken += 1;
    }

    /// Nothing is under way after a reset.
    pub(super) fn end(&mut self) {
        *self = Requests::default();
    }
}

impl Machine {
    pub(super) fn query_queue(&mut self, arguments: &Arguments) -> Answer {
        let path = arguments.text("path")?;
        let number = arguments.number("queue").unwrap_or_default();
        if !self.is_virtio_disk_adapter(path) {
            return Err(Refusal::generic(format!("Path {path} is not a VirtIODevice")));
        }
        // One for each processor.
        if number >= FIRST_QUEUES + self.processors {
            return Err(Refusal::generic(format!("Invalid virtqueue number {number}")));
        }
        if self.behaviour.requests == behaviour::Requests::Answered {
            self.requests.answered = self.requests.answered.wrapping_add(1);
        }
        let Requests { taken, answered } = self.requests;
        let taken = taken + u32::from(self.behaviour.requests.are_stuck());
        Ok(json!({
            "name": "virtio-scsi", "queue-index": number, "inuse": taken,
            "vring-num": 128, "vring-num-default": 128, "vring-align": 4096,
            "vring-desc": 0, "vring-avail": 0, "vring-used": 0,
            "used-idx": answered, "signalled-used": 0, "signalled-used-valid": false,
        }))
    }
}
