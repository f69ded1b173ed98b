//! The process that does NAT for a switch, as those see it who show, explain or examine switches. Nothing is changed here.

use hpvm_host::names::switch_folder;
use hpvm_model::{Forward, Vswitch, Wire};
pub use hpvm_nat::control::Lease;
use hpvm_nat::control::{self, Reply, Request};

use crate::VmHost;

/// How the NAT of a switch is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NatView {
    /// No guest runs on the switch, so there is none.
    AtRest,
    There {
        /// The port forwards that work.
        forwards: Vec<Forward>,
        /// The guests that have an address of it.
        leases: Vec<Lease>,
    },
    /// It was killed under the guests.
    Gone,
    /// It listens and does not answer.
    Silent,
    /// Who asks may not.
    Unknown,
}

impl NatView {
    /// Whether a port forward that the switch is to have is known not to work.
    #[must_use]
    pub fn lacks(&self, forward: &Forward) -> bool {
        match self {
            NatView::There { forwards, .. } => !forwards.contains(forward),
            NatView::Gone | NatView::Silent => true,
            NatView::AtRest | NatView::Unknown => false,
        }
    }
}

/// How the NAT of a switch is; `None` of one that has another wire.
pub(crate) fn of(host: &VmHost, switch: &Vswitch) -> Option<NatView> {
    (switch.wire == Wire::Nat).then(|| ask(host, switch))
}

/// Asks it, and waits [`control::DEADLINE`] at most.
fn ask(host: &VmHost, switch: &Vswitch) -> NatView {
    if super::status(host, switch.number.get()).is_none() {
        return NatView::AtRest;
    }
    let asking = host.root.switch_dir(switch.number.get()).join(switch_folder::NAT_CONTROL);
    match control::ask(&asking, &Request::Status) {
        Ok(Reply::Status(control::Status { forwards, leases, .. })) => {
            NatView::There { forwards, leases }
        }
        Err(error) if error.is_absence() => NatView::Gone,
        Err(error) if error.is_forbidden() => NatView::Unknown,
        Ok(_) | Err(_) => NatView::Silent,
    }
}
