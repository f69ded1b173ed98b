//! The control protocol: a stream socket, one JSON value a line each way, one request a connection. Descriptors ride on the
//! line that names them (SCM_RIGHTS). Only root and the owner of this VM Host may ask.

use hpvm_model::{
    GuestNumber, InterfaceName, MacAddress, PortNumber, PortRules, SwitchName, SwitchState, VlanId,
};
use serde::{Deserialize, Serialize};

use crate::wanted::{Plug, WireKind};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "ask")]
pub enum Request {
    Ping,
    /// With the port's listening socket.
    Attach {
        plug: Plug,
    },
    /// A guest gives a port up, or all it has. After the last one of all guests the process ends.
    Detach {
        guest: GuestNumber,
        port: Option<PortNumber>,
    },
    Rules {
        port: PortNumber,
        rules: PortRules,
    },
    State {
        state: SwitchState,
    },
    /// With the packet socket or the tap, and the interface that it is to follow.
    Wire {
        kind: WireKind,
        #[serde(default)]
        interface: Option<InterfaceName>,
    },
    Rename {
        name: SwitchName,
    },
    /// Counters of one port, or of all, begin anew.
    Clear {
        port: Option<PortNumber>,
    },
    /// Write the status with the counters of this moment.
    Publish,
    Macs,
    /// Give way to hpvmnetd as it is installed now, which goes on with the same ports and wire.
    Renew,
    /// With a file that gets the port's frames (pcap-savefile(5)). Whoever asked stays connected: when he goes, or says that he
    /// will say no more, it ends. After `done` he hears `capture_over`, whoever ended it.
    Capture {
        port: PortNumber,
        snap_bytes: u32,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "reply")]
pub enum Reply {
    Done,
    Macs { stations: Vec<Station> },
    CaptureOver { lost: u64, failure: Option<String> },
    Denied { reason: String },
    Failed { error: String },
}

/// Where a station was heard, or is known to be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Station {
    pub mac: MacAddress,
    /// `None`: without a tag.
    pub vlan: Option<VlanId>,
    /// `None`: beyond the wire.
    pub port: Option<PortNumber>,
    /// Seconds since it was heard last; `None` of a port's own address.
    pub age_seconds: Option<u64>,
}
