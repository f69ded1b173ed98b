//! One copy of disks and firmware variables under way, as a task of its own: the guest runs on meanwhile, and its agent, if
//! one answers, holds its file systems at the moment that the copies are of. Called by the owner; what is done with QEMU is
//! [`hpvm_engine::copying`].

use std::collections::VecDeque;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::time::Duration;

use hpvm_agent::freeze::{Frozen, Held};
use hpvm_app::protocol::{CopiedState, Reply};
use hpvm_engine::copying::{CopyError, Copying, Stage, Targets, abandon};
use hpvm_model::{StorageAddress, chain};
use hpvm_plan::copying::DiskCopy;
use hpvm_plan::record::Machine;
use hpvm_qmp::client::Client;
use tokio::sync::mpsc;
use tokio::time::sleep;

use crate::agent::Agent;
use crate::control::Peer;
use crate::machine::Ticket;
use crate::monitor::News;

/// Between two looks at how far it is.
const LOOK: Duration = Duration::from_millis(100);
const HELD_TOO_SHORT: &str = "its file systems could not be held for as long as it took";

/// What a request for a copy carries.
#[derive(Debug)]
pub(crate) struct Wanted {
    pub(crate) disks: Vec<DiskCopy>,
    /// Their targets' paths.
    pub(crate) targets: Vec<String>,
    pub(crate) descriptors: VecDeque<OwnedFd>,
    pub(crate) replies: mpsc::Sender<Reply>,
    pub(crate) peer: Peer,
}

/// Whom to ask for the guest's file systems to be held, or why there is nobody.
#[derive(Debug)]
pub(crate) enum Holder {
    Agent(Agent),
    Nobody(&'static str),
}

#[derive(Debug)]
pub(crate) struct Copier {
    pub(crate) ticket: Ticket,
    pub(crate) wanted: Wanted,
    pub(crate) client: Client,
    pub(crate) machine: Machine,
    pub(crate) holder: Holder,
    pub(crate) news: mpsc::Sender<News>,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum Unmade {
    /// Before anything was written.
    #[error(transparent)]
    Begin(CopyError),
    #[error(transparent)]
    Copy(#[from] CopyError),
    #[error("whoever asked for it gave up")]
    GivenUp,
}

impl Wanted {
    /// What is written, by the disk that it is to be a copy of.
    pub(crate) fn watched(&self) -> impl Iterator<Item = (StorageAddress, &str, File)> {
        let written = self.disks.iter().zip(&self.targets).zip(&self.descriptors);
        written.filter_map(|((disk, target), descriptor)| {
            Some((disk.address, target.as_str(), descriptor.try_clone().ok()?.into()))
        })
    }
}

impl Copier {
    pub(crate) async fn run(mut self) {
        let result = self.copy().await;
        // What cannot be taken away now is when QEMU answers again.
        let cleared = abandon(&self.client).await.map_err(|error| chain(&error)).err();
        let ticket = self.ticket;
        let _ = self.news.send(News::Copied { ticket, result, left: cleared }).await;
    }

    async fn copy(&mut self) -> Result<CopiedState, Unmade> {
        let client = self.client.clone();
        let mut descriptors = std::mem::take(&mut self.wanted.descriptors).into_iter();
        let disks = std::mem::take(&mut self.wanted.disks);
        let mut copying = Copying::by(&client);
        let begun = copying.begin(&self.machine, &disks, &mut descriptors).await;
        begun.map_err(|error| match copying.targets() {
            Targets::AsTheyWere => Unmade::Begin(error),
            Targets::PerhapsWritten => Unmade::Copy(error),
        })?;
        self.until_it_keeps_up(&copying).await?;
        self.end(&copying).await
    }

    async fn until_it_keeps_up(&mut self, copying: &Copying<'_>) -> Result<(), Unmade> {
        loop {
            let progress = copying.look().await?;
            // Who does not read how far it is, misses that.
            let _ = self
                .wanted
                .replies
                .try_send(Reply::Copying { done: progress.done, whole: progress.whole });
            if progress.stage == Stage::KeepsUp {
                return Ok(());
            }
            tokio::select! {
                _ = &mut self.wanted.peer => return Err(Unmade::GivenUp),
                () = sleep(LOOK) => {}
            }
        }
    }

    /// The agent is asked first; a guest that it cannot hold is copied all the same. Nobody gives up in between: whatever was
    /// frozen must be thawed.
    async fn end(&self, copying: &Copying<'_>) -> Result<CopiedState, Unmade> {
        let agent = match &self.holder {
            Holder::Agent(agent) => agent,
            Holder::Nobody(why) => return self.end_as_it_is(copying, (*why).into()).await,
        };
        match agent.while_frozen(self.hold_and_end(copying)).await {
            Ok(Frozen { outcome, held, thawed }) => {
                let _ = self.news.send(News::AgentUsed(thawed)).await;
                outcome?;
                Ok(match held {
                    Held::Throughout => CopiedState::Clean,
                    Held::Partly => CopiedState::AsAfterPowerFailure { why: HELD_TOO_SHORT.into() },
                })
            }
            Err(error) => {
                let why = format!("its agent could not hold its file systems: {}", chain(&error));
                let _ = self.news.send(News::AgentUsed(Err(error))).await;
                self.end_as_it_is(copying, why).await
            }
        }
    }

    async fn end_as_it_is(
        &self,
        copying: &Copying<'_>,
        why: String,
    ) -> Result<CopiedState, Unmade> {
        self.hold_and_end(copying).await?;
        Ok(CopiedState::AsAfterPowerFailure { why })
    }

    async fn hold_and_end(&self, copying: &Copying<'_>) -> Result<(), CopyError> {
        // Told before, so that nobody takes it for a pause.
        let _ = self.news.send(News::CopyHolds).await;
        let held = copying.end().await?;
        let _ = self.news.send(News::CopyHeld(held)).await;
        Ok(())
    }
}
