//! Whether the guest misses nothing when one disk of several leaves. Called before the engine is told, which asks nobody.
//!
//! The agent writes out what the guest holds and makes the guest forget the disk, or says who uses it. Without an agent that
//! answers, or with one that cannot tell, the rule is the plan's: a disk that was quiet for long enough leaves, any other
//! one waits. With what leaves so something may be lost, which is told.

use std::time::Duration;

use hpvm_agent::Error;
use hpvm_agent::disk::Release;
use hpvm_engine::devices::{self, DeviceError};
use hpvm_model::StorageAddress;
use hpvm_plan::hotplug::{NO_AGENT, loss, name_for_agent, why_not_quiet};
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

/// Consent to a disk's leaving.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Leave {
    /// The guest has written out what it held for the disk, and forgotten it.
    LetGo,
    /// Nobody in the guest could let it go: what is lost with it, in words.
    Unasked { loss: String },
}

/// Besides that, what the agent was like, when it was asked.
type Obtained = (Result<Leave, DeviceError>, Option<Result<(), Error>>);

impl Consent<'_> {
    /// Obtains it, or says why not.
    pub(crate) async fn obtain(&self, address: StorageAddress) -> Obtained {
        let unasked = |why: &str| Leave::Unasked { loss: loss(why, address) };
        let Some(agent) = self.agent else {
            return (self.rule(address, "").await.map(|()| unasked(NO_AGENT)), None);
        };
        let Some(attached) = self.machine.device_at(address) else {
            return (Err(DeviceError::NoDevice(address)), None);
        };
        let naa = match name_for_agent(attached) {
            Ok(naa) => naa,
            Err(reason) => return (Err(DeviceError::Waits(reason)), None),
        };
        match agent.release(naa).await {
            Ok(Release::LetGo) => (Ok(Leave::LetGo), Some(Ok(()))),
            Ok(Release::Refused(words)) => {
                (Err(DeviceError::InUse { address, words }), Some(Ok(())))
            }
            Ok(Release::Cannot(words)) => self.without_release(agent, address, &words).await,
            Err(error) => {
                let leaves = self.rule(address, &format!("{error}, and ")).await;
                let leave = leaves.map(|()| unasked(&format!("{NO_AGENT} ({error})")));
                (leave, Some(Err(error)))
            }
        }
    }

    /// An agent that cannot let a disk go may be able to have file systems write out what they hold. That is I/O of the disk, so
    /// it is looked before whether that was quiet, and again when it is not known how far the agent came.
    async fn without_release(
        &self,
        agent: &Agent,
        address: StorageAddress,
        words: &str,
    ) -> Obtained {
        let why = format!("the guest agent cannot let it go ({words}), and ");
        if let Err(error) = self.rule(address, &why).await {
            return (Err(error), Some(Ok(())));
        }
        let Err(error) = agent.write_out().await else {
            let loss = format!(
                "the guest agent could not let the disk at {address} go ({words}). It had the file systems that it knows write out what they held; what else was held for the disk is lost, and a file system that is still mounted there fails from now on"
            );
            return (Ok(Leave::Unasked { loss }), Some(Ok(())));
        };
        let leaves = match error.is_an_answer() {
            true => Ok(()),
            false => self.rule(address, &why).await,
        };
        let unable = format!("the guest agent is not able ({words}; {error})");
        let loss = loss(&unable, address);
        (leaves.map(|()| Leave::Unasked { loss }), Some(Err(error)))
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
