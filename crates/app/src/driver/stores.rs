//! Stores that do not answer: noticed, told and forgotten.

use hpvm_app::snapshot::SilentStore;

use super::*;

impl Driver {
    /// Of what came after the guest's start the worker that was handed it looked alone.
    pub(super) fn tell_what_is_unwatched(&mut self) {
        let Ok(known) = &self.recorded.machine else { return };
        for (address, path) in self.store_watch.unwatched(known.file.machine().held()) {
            self.log.say(&format!(
                "'{path}' at {address} is not watched any more: who was handed it when it came has ended, so nobody is told when it does not answer"
            ));
        }
    }

    /// Looks who has not answered since the beat before, then reads a little of each store.
    pub(super) fn watch_stores(&mut self) {
        self.look_at_stores();
        if let Ok(known) = &self.recorded.machine {
            self.store_watch.beat(known.file.machine());
        }
    }

    fn look_at_stores(&mut self) {
        let Ok(known) = &self.recorded.machine else { return };
        let silent = self.store_watch.silent();
        let mut changed = Vec::new();
        self.silent_stores.retain(|store| {
            let stays = silent.contains(&(store.address, store.path.clone()));
            if !stays {
                changed.push(match self.store_watch.has(store.address, &store.path) {
                    true => format!("{store}, answers again; it did not since {}", store.since),
                    false => format!("{store}, is of no use to the guest any more"),
                });
            }
            stays
        });
        for (address, path) in silent {
            let is_told = |store: &SilentStore| (store.address, &store.path) == (address, &path);
            // Of a store that comes at the next reset the guest wants nothing yet.
            let Some(kind) = StoreWatch::kind_of(known.file.machine(), address, &path) else {
                continue;
            };
            if self.silent_stores.iter().any(is_told) {
                continue;
            }
            let store = SilentStore { address, kind, path, since: now() };
            changed.push(format!("{store}, does not answer"));
            self.silent_stores.push(store);
        }
        if changed.is_empty() {
            return;
        }
        changed.iter().for_each(|sentence| self.log.say(sentence));
        self.publish();
        let silent = self.silent_stores.iter();
        let silent =
            silent.map(|store| format!("{store} and has not answered since {}", store.since));
        let silent = silent.collect::<Vec<_>>().join(" and ");
        self.feed(Input::Stores(Some(silent).filter(|silent| !silent.is_empty())));
    }
}
