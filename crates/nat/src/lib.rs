//! NAT for the guests of one virtual switch: how `hpvmnat` is started, and what it can be asked while it runs.
//!
//! `hpvmnat` is the wire of a switch on a host without rights or a bridge: guests get addresses by DHCP, a name server, and
//! the connections that the VM Host itself could make. Called by whoever starts a switch and by its data path. Nothing here
//! knows switches, ports or guests; the program itself is in `main.rs`.

pub mod control;
mod settings;
mod start;

pub use settings::{HostAccess, Settings, SettingsError};
pub use start::{Places, StartError, start};

/// The numbers of the descriptors that `hpvmnat` is started with. Its standard error is its log.
pub mod descriptor {
    /// Listening Unix stream socket. The switch connects to it; each message is a frame behind its length in 4 bytes, big
    /// endian (as QEMU's `-netdev stream`). The newest connection counts.
    pub const WIRE: i32 = 3;
    /// Listening Unix stream socket for [`super::control`].
    pub const CONTROL: i32 = 4;
}
