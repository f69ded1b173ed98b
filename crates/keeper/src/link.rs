//! The messages between keeper and worker: 16 bytes, little endian `u32 kind, u32 value, u64 extra`.

/// Number of the link in a worker.
pub(crate) const LINK: i32 = 3;

/// Number of a pidfd of QEMU in a worker.
pub(crate) const ENGINE_PIDFD: i32 = 13;

/// QEMU's status where nobody could see it.
pub(crate) const UNSEEN: u32 = u32::MAX;

/// What the keeper tells.
#[derive(Clone, Copy)]
pub(crate) enum ToWorker {
    /// Always first: QEMU's pid, and whether it is the keeper's child.
    Engine { pid: i32, is_child: bool },
    /// QEMU's wait status, and how many processes the kernel had killed for memory when the keeper started.
    Exited { status: u32, oom_kills: u64 },
    /// With a descriptor that a worker asked to be kept.
    Kept { tag: u32 },
    /// Every descriptor that is kept has been handed over.
    AllKept,
}

impl ToWorker {
    pub(crate) fn bytes(self) -> [u8; 16] {
        let (kind, value, extra) = match self {
            ToWorker::Engine { pid, is_child } => (1, pid.cast_unsigned(), u64::from(is_child)),
            ToWorker::Exited { status, oom_kills } => (2, status, oom_kills),
            ToWorker::Kept { tag } => (5, tag, 0),
            ToWorker::AllKept => (7, 0, 0),
        };
        let mut bytes = [0; 16];
        bytes[..4].copy_from_slice(&u32::to_le_bytes(kind));
        bytes[4..8].copy_from_slice(&u32::to_le_bytes(value));
        bytes[8..].copy_from_slice(&u64::to_le_bytes(extra));
        bytes
    }
}

/// What a worker asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FromWorker {
    /// All is written: no worker is needed any more.
    Finished,
    /// End QEMU by SIGKILL.
    Kill,
    /// Keep the descriptor that came along for every later worker, in place of one kept under the same tag.
    Keep { tag: u32 },
    /// Close what is kept under a tag.
    Release { tag: u32 },
}

impl FromWorker {
    /// `None`: not a message of this version, which is passed over.
    pub(crate) fn read(bytes: [u8; 16]) -> Option<FromWorker> {
        let tag = u32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]);
        match u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) {
            3 => Some(FromWorker::Finished),
            4 => Some(FromWorker::Kill),
            5 => Some(FromWorker::Keep { tag }),
            6 => Some(FromWorker::Release { tag }),
            _ => None,
        }
    }
}
