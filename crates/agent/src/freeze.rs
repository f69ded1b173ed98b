//! Holding the guest's file systems still while something is done to its disks, and never for longer than that.

use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use crate::command::{Freeze, FreezeFileSystems, FreezeStatus, ThawFileSystems};
use crate::{Conversation, Error, deadline};

/// What was done while the guest was held.
#[derive(Debug)]
pub struct Frozen<T> {
    pub outcome: T,
    pub held: Held,
    /// An error: the guest's file systems may stand still. The order to go on is left with the guest; whoever asks its
    /// agent next should [`Conversation::thaw_if_frozen`].
    pub thawed: Result<(), Error>,
}

/// Whether the guest's file systems stood still until the work was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Held {
    Throughout,
    /// The work took longer than the guest may be held; it went on before the end.
    Partly,
}

impl Conversation<'_> {
    /// Freezes the guest's file systems, does `work`, and lets them go on, also when the work is not done after `bound`, of
    /// which freezing is a part. The work itself is always waited for; a guest that cannot be frozen in time is an error,
    /// and the work is not begun.
    pub async fn while_frozen<T>(
        &mut self,
        bound: Duration,
        work: impl Future<Output = T>,
    ) -> Result<Frozen<T>, Error> {
        let until = Instant::now() + bound;
        if let Err(error) = self.execute_within(&FreezeFileSystems {}, bound).await {
            // What was asked may still happen, and then nobody would let the guest go on. The error to tell is the first.
            let _ = self.thaw().await;
            return Err(error);
        }
        let mut work = pin!(work);
        let in_time = timeout_at(until, &mut work).await;
        let thawed = self.thaw().await;
        Ok(match in_time {
            Ok(outcome) => Frozen { outcome, held: Held::Throughout, thawed },
            Err(_) => Frozen { outcome: work.await, held: Held::Partly, thawed },
        })
    }

    /// Has the guest's file systems write out what they hold, which freezing them does; they go on at once.
    pub async fn write_out(&mut self) -> Result<(), Error> {
        self.while_frozen(deadline::FROZEN, async {}).await?.thawed
    }

    /// Lets the guest's file systems go on. An agent that does not answer finds the order when it wakes, behind the one to
    /// freeze.
    pub async fn thaw(&mut self) -> Result<(), Error> {
        match self.execute(&ThawFileSystems {}).await {
            Ok(_) => Ok(()),
            Err(error) => {
                if matches!(error, Error::Deadline { .. }) {
                    self.leave_behind(&ThawFileSystems {}).await?;
                }
                Err(error)
            }
        }
    }

    /// Lets go on what a worker before us left frozen. Nobody but us has the agent's channel.
    pub async fn thaw_if_frozen(&mut self) -> Result<(), Error> {
        match self.execute(&FreezeStatus {}).await {
            Ok(Freeze::Frozen) => self.thaw().await,
            Ok(Freeze::Thawed) => Ok(()),
            // An agent that cannot freeze has nothing to thaw.
            Err(error) if error.is_an_answer() => Ok(()),
            Err(error) => Err(error),
        }
    }
}
