//! The worker's end of the link to its keeper: whole messages of 16 bytes, as ARCHITECTURE.md, 'Keeper', lists them.

use std::io;
use std::os::fd::OwnedFd;

use tokio::net::UnixStream;

/// The wait status where nobody saw it.
const UNSEEN: u32 = u32::MAX;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FromKeeper {
    Engine {
        pid: i32,
        is_child: bool,
    },
    /// `None`: nobody saw how. `oom_kills`: the kernel's count when the keeper started.
    Exited {
        wait_status: Option<i32>,
        oom_kills: u64,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ToKeeper {
    Finished,
    Kill,
}

/// A socket of packets, under the type for streams: each read gives one message, each write is one.
#[derive(Debug)]
pub(crate) struct Link(UnixStream);

impl Link {
    pub(crate) fn new(socket: OwnedFd) -> io::Result<Link> {
        let socket = std::os::unix::net::UnixStream::from(socket);
        socket.set_nonblocking(true)?;
        Ok(Link(UnixStream::from_std(socket)?))
    }

    /// The next message that is understood; `None` when the keeper is gone.
    pub(crate) async fn receive(&self) -> Option<FromKeeper> {
        loop {
            self.0.readable().await.ok()?;
            let mut bytes = [0; 16];
            match self.0.try_read(&mut bytes) {
                Ok(16) => {
                    if let Some(message) = FromKeeper::read(bytes) {
                        return Some(message);
                    }
                }
                Ok(0) => return None,
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => return None,
            }
        }
    }

    /// A message of 16 bytes fits whenever the keeper lives; when it does not, nobody needs it.
    pub(crate) fn send(&self, message: ToKeeper) {
        let kind: u32 = match message {
            ToKeeper::Finished => 3,
            ToKeeper::Kill => 4,
        };
        let mut bytes = [0; 16];
        bytes[..4].copy_from_slice(&kind.to_le_bytes());
        let _ = self.0.try_write(&bytes);
    }
}

impl FromKeeper {
    fn read(bytes: [u8; 16]) -> Option<FromKeeper> {
        let kind = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        let value = u32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]);
        let [.., a, b, c, d, e, f, g, h] = bytes;
        let extra = u64::from_le_bytes([a, b, c, d, e, f, g, h]);
        match kind {
            1 => Some(FromKeeper::Engine { pid: value.cast_signed(), is_child: extra == 1 }),
            2 => {
                let wait_status = (value != UNSEEN).then_some(value.cast_signed());
                Some(FromKeeper::Exited { wait_status, oom_kills: extra })
            }
            _ => None,
        }
    }
}
