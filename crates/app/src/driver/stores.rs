//! Stores that do not answer: noticed, told and forgotten.

use hpvm_app::snapshot::SilentStore;

use super::*;
use crate::store_watch::LATE;

impl Driver {
    /// Reads a little of each store, and looks soon after who has not answered.
    pub(super) fn watch_stores(&mut self) {
        let Ok(known) = &self.recorded.machine else { return };
        self.store_watch.beat(known.file.machine());
        if self.store_watch.is_empty() {
            return;
        }
        let (any_silent, news) = (self.store_watch.any_silent(), self.monitor.news());
        let any_told = !self.silent_stores.is_empty();
        // The owner is not woken for nothing.
        spawn_local(async move {
            tokio::time::sleep(LATE).await;
            if any_told || any_silent() {
                let _ = news.send(News::StoresAsked).await;
            }
        });
    }

    pub(super) fn look_at_stores(&mut self) {
        let Ok(known) = &self.recorded.machine else { return };
        let silent = self.store_watch.silent();
        let mut changed = Vec::new();
        self.silent_stores.retain(|store| {
            let stays = silent.contains(&store.address);
            if !stays {
                let SilentStore { address, path, since } = store;
                changed.push(format!("'{path}', which backs the disk at {address}, answers again; it did not since {since}"));
            }
            stays
        });
        for address in silent {
            let Some(attached) = known.file.machine().device_at(address) else { continue };
            if self.silent_stores.iter().any(|store| store.address == address) {
                continue;
            }
            let path = attached.device.backing.path.clone();
            changed.push(format!("'{path}', which backs the disk at {address}, does not answer"));
            self.silent_stores.push(SilentStore { address, path, since: now() });
        }
        if changed.is_empty() {
            return;
        }
        changed.iter().for_each(|sentence| self.log.say(sentence));
        self.publish();
        let silent = self.silent_stores.iter().map(|SilentStore { address, path, since }| {
            format!(
                "'{path}', which backs the disk at {address} and has not answered since {since}"
            )
        });
        let silent = silent.collect::<Vec<_>>().join(" and ");
        self.feed(Input::Stores(Some(silent).filter(|silent| !silent.is_empty())));
    }
}
