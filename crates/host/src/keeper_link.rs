//! What a keeper and the process it keeps say to each other over their link: whole messages of 16 bytes, little endian
//! `u32 kind, u32 value, u64 extra`, as ARCHITECTURE.md, 'Keeper', lists them. hpvmapp and hpvmnetd each read and write them
//! in their own way; hpvmkeeper, which has no dependencies, has its own list.

pub const MESSAGE_BYTES: usize = 16;

/// The wait status where nobody saw it.
const UNSEEN: u32 = u32::MAX;

/// What a keeper says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FromKeeper {
    /// QEMU's process: the keeper's own child, or one that it took over.
    Engine { pid: i32, is_child: bool },
    /// QEMU has ended. `wait_status` is `None` when nobody saw how; `oom_kills` is the kernel's count when the keeper started.
    Exited { wait_status: Option<i32>, oom_kills: u64 },
    /// The descriptor beside this message was kept for us.
    Kept { tag: u32 },
    /// There are no more of those.
    AllKept,
}

/// What a keeper is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ToKeeper {
    /// Everything is over: end too.
    Finished,
    /// End QEMU.
    Kill,
    /// Keep the descriptor beside this message for whoever comes after us.
    Keep { tag: u32 },
    /// Close what is kept.
    Release { tag: u32 },
}

impl FromKeeper {
    /// `None`: a message of another version's, to be passed over.
    #[must_use]
    pub fn from_bytes(bytes: [u8; MESSAGE_BYTES]) -> Option<FromKeeper> {
        let [k0, k1, k2, k3, v0, v1, v2, v3, extra @ ..] = bytes;
        let (value, extra) = (u32::from_le_bytes([v0, v1, v2, v3]), u64::from_le_bytes(extra));
        match u32::from_le_bytes([k0, k1, k2, k3]) {
            1 => Some(FromKeeper::Engine { pid: value.cast_signed(), is_child: extra == 1 }),
            2 => {
                let wait_status = (value != UNSEEN).then_some(value.cast_signed());
                Some(FromKeeper::Exited { wait_status, oom_kills: extra })
            }
            5 => Some(FromKeeper::Kept { tag: value }),
            7 => Some(FromKeeper::AllKept),
            _ => None,
        }
    }
}

impl ToKeeper {
    #[must_use]
    pub fn to_bytes(self) -> [u8; MESSAGE_BYTES] {
        let (kind, value): (u32, u32) = match self {
            ToKeeper::Finished => (3, 0),
            ToKeeper::Kill => (4, 0),
            ToKeeper::Keep { tag } => (5, tag),
            ToKeeper::Release { tag } => (6, tag),
        };
        let mut bytes = [0; MESSAGE_BYTES];
        bytes[..4].copy_from_slice(&kind.to_le_bytes());
        bytes[4..8].copy_from_slice(&value.to_le_bytes());
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_laid_out_as_the_keeper_has_them() {
        let read = |kind: u8, value: [u8; 4], extra: u8| {
            let [a, b, c, d] = value;
            FromKeeper::from_bytes([kind, 0, 0, 0, a, b, c, d, extra, 0, 0, 0, 0, 0, 0, 0])
        };
        assert_eq!(read(1, [2, 1, 0, 0], 1), Some(FromKeeper::Engine { pid: 258, is_child: true }));
        assert_eq!(
            read(2, [9, 0, 0, 0], 3),
            Some(FromKeeper::Exited { wait_status: Some(9), oom_kills: 3 })
        );
        assert_eq!(
            read(2, [0xff; 4], 0),
            Some(FromKeeper::Exited { wait_status: None, oom_kills: 0 })
        );
        assert_eq!(read(5, [7, 0, 0, 0], 0), Some(FromKeeper::Kept { tag: 7 }));
        assert_eq!(read(7, [0; 4], 0), Some(FromKeeper::AllKept));
        assert_eq!(read(8, [0; 4], 0), None);

        assert_eq!(ToKeeper::Finished.to_bytes()[..8], [3, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(ToKeeper::Kill.to_bytes()[..8], [4, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(ToKeeper::Keep { tag: 258 }.to_bytes()[..8], [5, 0, 0, 0, 2, 1, 0, 0]);
        assert_eq!(ToKeeper::Release { tag: 258 }.to_bytes()[..8], [6, 0, 0, 0, 2, 1, 0, 0]);
    }
}
