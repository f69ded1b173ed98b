//! A switch's process that runs and does not answer, as those see it who explain or examine switches. Nothing is changed here.

use hpvm_host::image_lock::{self, Holder};
use hpvm_host::lock::{KEEPER_BYTE, WORKER_BYTE};
use hpvm_host::names::switch_folder;
use hpvm_host::process::{self, Life};
use hpvm_model::Vswitch;
use hpvm_vswitchd::client::{self, ClientError};
use hpvm_vswitchd::protocol::Request;

use super::runner::{ASK_BOUND, status};
use crate::VmHost;

/// The process's name, as `ps` shows it.
const PROCESS: &str = "hpvmnetd";

/// A process that does not answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Silence {
    pub(crate) cause: String,
    /// What to do about the process.
    pub(crate) cure: String,
}

/// Asks it, and waits [`ASK_BOUND`] at most; `None` when it answers, does not run, or must not be asked.
pub(crate) fn of(host: &VmHost, switch: &Vswitch) -> Option<Silence> {
    let number = switch.number.get();
    status(host, number)?;
    let folder = host.root.switch_dir(number);
    let control = folder.join(switch_folder::CONTROL);
    let Err(ClientError::Deadline(_)) = client::ask(&control, &Request::Ping, &[], ASK_BOUND)
    else {
        return None;
    };
    let lock = folder.join(switch_folder::LOCK);
    let holders = image_lock::holders(&lock, &(KEEPER_BYTE..=WORKER_BYTE)).unwrap_or_default();
    let process = holders.into_iter().find(|holder| holder.program == PROCESS);
    Some(told(switch.name.as_str(), process.as_ref()))
}

fn told(name: &str, process: Option<&Holder>) -> Silence {
    let (who, cure) = match process {
        Some(Holder { pid, .. }) => {
            let life = process::start_time(*pid).map(|since| process::life(*pid, since));
            let cure = match life {
                Some(Life::Stopped) => format!("let it go on: kill -CONT {pid}"),
                _ => format!("end it, and its keeper starts another: kill -9 {pid}"),
            };
            (format!(" ({PROCESS}, {pid})"), cure)
        }
        None => {
            (String::new(), format!("end the {PROCESS} of that switch; its keeper starts another"))
        }
    };
    let cause =
        format!("the process of virtual switch '{name}'{who} does not answer, so no frames pass");
    Silence { cause, cure }
}
