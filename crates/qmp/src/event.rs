//! Events: what QEMU tells unasked. The raw event is always kept; [`Happening`] is the view of those we act on.
//!
//! Events sent while no client is connected are lost, so a new client asks for the state instead of waiting for one.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// An event as it came.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    pub name: String,
    /// Null when the event has no data.
    pub data: Value,
    pub timestamp: Timestamp,
}

/// The host's clock when it happened; negative when QEMU could not tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timestamp {
    pub seconds: i64,
    pub microseconds: i64,
}

impl Event {
    /// The typed view. An event we do not know, or whose data we do not understand, is [`Happening::Other`].
    #[must_use]
    pub fn happening(&self) -> Happening {
        self.known().unwrap_or(Happening::Other)
    }

    fn known(&self) -> Option<Happening> {
        Some(match self.name.as_str() {
            "SHUTDOWN" => Happening::Shutdown(self.read()?),
            "RESET" => Happening::Reset(self.read()?),
            "POWERDOWN" => Happening::PowerButtonPressed,
            "STOP" => Happening::Stopped,
            "RESUME" => Happening::Resumed,
            "SUSPEND" => Happening::Suspended,
            "WAKEUP" => Happening::Woken,
            "DEVICE_DELETED" => Happening::DeviceDeleted(self.read()?),
            "DEVICE_UNPLUG_GUEST_ERROR" => Happening::UnplugRefused(self.read()?),
            "DEVICE_TRAY_MOVED" => Happening::TrayMoved(self.read()?),
            "BLOCK_IO_ERROR" => Happening::BlockIoError(self.read()?),
            "BLOCK_IMAGE_CORRUPTED" => Happening::ImageCorrupted(self.read()?),
            "GUEST_PANICKED" => Happening::Panicked(self.read()?),
            "WATCHDOG" => Happening::Watchdog(self.read()?),
            "MEMORY_FAILURE" => Happening::MemoryFailure(self.read()?),
            "VSERPORT_CHANGE" => Happening::PortChanged(self.read()?),
            "NETDEV_STREAM_CONNECTED" | "NETDEV_VHOST_USER_CONNECTED" => {
                Happening::SocketConnected(self.read()?)
            }
            "NETDEV_STREAM_DISCONNECTED" | "NETDEV_VHOST_USER_DISCONNECTED" => {
                Happening::SocketBroken(self.read()?)
            }
            "RTC_CHANGE" => Happening::ClockChanged(self.read()?),
            _ => return None,
        })
    }

    fn read<T: for<'de> Deserialize<'de>>(&self) -> Option<T> {
        T::deserialize(&self.data).ok()
    }
}

/// Events we act on or write into a guest's log.
#[derive(Clone, Debug, PartialEq)]
pub enum Happening {
    Shutdown(Shutdown),
    Reset(Reset),
    /// Sent for every press, also for one that is lost because no OS listens.
    PowerButtonPressed,
    Stopped,
    Resumed,
    Suspended,
    Woken,
    DeviceDeleted(DeviceDeleted),
    UnplugRefused(UnplugRefused),
    TrayMoved(TrayMoved),
    BlockIoError(BlockIoError),
    ImageCorrupted(ImageCorrupted),
    Panicked(Panicked),
    Watchdog(Watchdog),
    MemoryFailure(MemoryFailure),
    ClockChanged(ClockChanged),
    PortChanged(PortChanged),
    /// QEMU reached the switch of a NIC.
    SocketConnected(NetdevSocket),
    /// The switch of a NIC is gone; QEMU goes on trying to reach it.
    SocketBroken(NetdevSocket),
    Other,
}

/// The machine was switched off, or QEMU is ending. With `shutdown=pause` QEMU stays in [`crate::RunState::Shutdown`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shutdown {
    /// Whether the guest did it.
    pub guest: bool,
    /// `guest-shutdown`, `host-qmp-quit`, `host-signal`, …
    pub reason: String,
}

impl Shutdown {
    /// QEMU was told so at one of its monitors.
    #[must_use]
    pub fn is_by_monitor(&self) -> bool {
        self.reason == "host-qmp-quit"
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reset {
    pub guest: bool,
    /// `guest-reset`, `host-qmp-system-reset`, …
    pub reason: String,
}

/// The guest let go of a device. A virtio adapter is told twice: first its inner part, without `device`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceDeleted {
    pub device: Option<String>,
    pub path: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnplugRefused {
    pub device: Option<String>,
    pub path: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct TrayMoved {
    /// The device's id.
    pub id: String,
    pub tray_open: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct BlockIoError {
    pub qom_path: String,
    pub node_name: Option<String>,
    /// `read` or `write`.
    pub operation: String,
    /// `ignore`, `report` or `stop`.
    pub action: String,
    /// Set when the host's file system is full.
    #[serde(rename = "nospace")]
    pub no_space: Option<bool>,
    pub reason: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ImageCorrupted {
    pub node_name: Option<String>,
    #[serde(rename = "msg")]
    pub message: String,
    pub fatal: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Panicked {
    /// `pause`, `poweroff` or `run`.
    pub action: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Watchdog {
    pub action: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryFailure {
    /// `hypervisor` or `guest`.
    pub recipient: String,
    pub action: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClockChanged {
    /// Seconds between the guest's clock and the host's.
    pub offset: i64,
}

/// The guest opened or closed a virtio-serial port. QEMU tells at most one change of a port a second, the last one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortChanged {
    /// The port's id.
    pub id: String,
    pub open: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct NetdevSocket {
    /// The id of what is behind the NIC.
    pub netdev_id: String,
}

/// Every event named above, for the check against QEMU's schema.
pub const NAMES: &[&str] = &[
    "SHUTDOWN",
    "RESET",
    "POWERDOWN",
    "STOP",
    "RESUME",
    "SUSPEND",
    "WAKEUP",
    "DEVICE_DELETED",
    "DEVICE_UNPLUG_GUEST_ERROR",
    "DEVICE_TRAY_MOVED",
    "BLOCK_IO_ERROR",
    "BLOCK_IMAGE_CORRUPTED",
    "GUEST_PANICKED",
    "WATCHDOG",
    "MEMORY_FAILURE",
    "RTC_CHANGE",
    "VSERPORT_CHANGE",
    "NETDEV_STREAM_CONNECTED",
    "NETDEV_STREAM_DISCONNECTED",
    "NETDEV_VHOST_USER_CONNECTED",
    "NETDEV_VHOST_USER_DISCONNECTED",
];
