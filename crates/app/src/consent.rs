//! Whether the guest misses nothing when one disk of several leaves. Called before the engine is told, which asks nobody.
//!
//! The agent writes out what the guest holds and makes the guest forget the disk, or says who uses it. Without an agent that
//! answers, or with one that cannot tell, the rule is the plan's: a disk that was quiet for long enough leaves, any other
//! one waits.

use std::time::Duration;

use hpvm_agent::Error;
use hpvm_agent::disk::Release;
use hpvm_engine::devices::{self, DeviceError};
use hpvm_model::StorageAddress;
use hpvm_plan::hotplug::{name_for_agent, why_not_quiet};
use hpvm_plan::record::Machine;
use hpvm_qmp::client::Client;

use crate::agent::Agent;

/// What a decision needs.
#[derive(Debug)]
pub(crate) struct Consent<'a> {
    pub(crate) agent: Option<&'a Agent>,
    pub(crate) client: &'a Client,
    pub(crate) machine: &'a Machine,
    /// How long QEMU has been running.
    pub(crate) uptime: Duration,
}

impl Consent<'_> {
    /// Obtains it, or says why not. Besides that, what the agent was like, when it was asked.
    pub(crate) async fn obtain(
        &self,
        address: StorageAddress,
    ) -> (Result<(), DeviceError>, Option<Result<(), Error>>) {
        let Some(agent) = self.agent else { return (self.rule(address, "").await, None) };
        let Some(attached) = self.machine.device_at(address) else {
            return (Err(DeviceError::NoDevice(address)), None);
        };
        let naa = match name_for_agent(attached) {
            Ok(naa) => naa,
            Err(reason) => return (Err(DeviceError::Waits(reason)), None),
        };
        match agent.release(naa).await {
            Ok(Release::LetGo) => (Ok(()), Some(Ok(()))),
            Ok(Release::Refused(words)) => {
                (Err(DeviceError::InUse { address, words }), Some(Ok(())))
            }
            Ok(Release::Cannot(words)) => {
                let why = format!("the guest agent cannot let it go ({words}), and ");
                (self.rule(address, &why).await, Some(Ok(())))
            }
            Err(error) => {
                let why = format!("{error}, and ");
                (self.rule(address, &why).await, Some(Err(error)))
            }
        }
    }

    async fn rule(&self, address: StorageAddress, why: &str) -> Result<(), DeviceError> {
        let idle = devices::idle(self.client, self.machine, self.uptime).await?;
        let idle = idle.into_iter().find(|(place, _)| *place == address);
        match why_not_quiet(idle.map(|(_, milliseconds)| Duration::from_millis(milliseconds))) {
            None => Ok(()),
            Some(reason) => Err(DeviceError::Waits(format!("{why}{reason}"))),
        }
    }
}
