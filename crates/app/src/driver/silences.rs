//! What follows when it is looked again who does not answer: what is told goes on, is over, or is told for the first time.
//! Decided here without asking anybody; the driver keeps what comes of it and says the sentences.

use std::time::Duration;

use hpvm_app::snapshot::{DeviceStore, SilentStore};

/// A silence that is told.
pub(super) struct Silent {
    pub(super) store: SilentStore,
    /// By the driver's clock.
    pub(super) since: Duration,
}

/// What is seen of the stores now.
pub(super) struct Sight<'a> {
    /// Who does not answer: of each, all that it may be.
    pub(super) silences: Vec<Vec<DeviceStore>>,
    /// What a worker before us told counts as long as nothing is seen of it.
    pub(super) is_predecessor_believed: bool,
    /// Whether the guest still has a store.
    pub(super) is_there: &'a dyn Fn(&DeviceStore) -> bool,
    /// By the driver's clock, and for people.
    pub(super) now: (Duration, String),
}

/// The silences that there are from now on, and what is said of those that are new or over.
pub(super) fn compare(before: Vec<Silent>, sight: Sight<'_>) -> (Vec<Silent>, Vec<String>) {
    let Sight { silences, is_predecessor_believed, is_there, now: (clock, time) } = sight;
    let goes_on = |told: &Silent| {
        let is_as_told = silences.iter().any(|silence| told.store.is(silence));
        is_as_told || is_predecessor_believed && !told.is_seen(&silences) && told.is_any(is_there)
    };
    let (mut silent, gone): (Vec<Silent>, Vec<Silent>) = before.into_iter().partition(goes_on);
    // One that is only known better now is not over.
    let over = gone.iter().filter(|told| !told.is_seen(&silences));
    let mut sentences: Vec<String> = over.map(|told| told.farewell(is_there)).collect();
    for silence in silences {
        if silent.iter().any(|told| told.store.is(&silence)) {
            continue;
        }
        // Which of several it is may be known only now.
        let known = gone.iter().filter(|told| told.is_any(|store| silence.contains(store)));
        let since = known.map(|told| told.since).min().unwrap_or(clock);
        let Some(store) = SilentStore::one_of(silence, time.clone()) else { continue };
        sentences.push(format!("{store}, does not answer"));
        silent.push(Silent { store, since });
    }
    (silent, sentences)
}

impl Silent {
    fn is_any(&self, is_it: impl Fn(&DeviceStore) -> bool) -> bool {
        self.store.stores().any(is_it)
    }

    /// Whether something that it may be does not answer now.
    fn is_seen(&self, silences: &[Vec<DeviceStore>]) -> bool {
        self.is_any(|store| silences.iter().flatten().any(|silent| silent == store))
    }

    fn farewell(&self, is_there: impl Fn(&DeviceStore) -> bool) -> String {
        let Silent { store, .. } = self;
        match self.is_any(is_there) {
            true => format!("{store}, answers again; it did not since {}", store.since),
            false => format!("{store}, is of no use to the guest any more"),
        }
    }
}

#[cfg(test)]
mod tests {
    use hpvm_app::snapshot::Role;
    use hpvm_model::DeviceKind;

    use super::*;

    fn store(address: &str) -> DeviceStore {
        let path = format!("/{address}");
        let address = address.parse().unwrap();
        DeviceStore { address, kind: DeviceKind::Disk, path, role: Role::Backing }
    }

    fn told(stores: &[&DeviceStore], since: u64) -> Silent {
        let stores = stores.iter().map(|store| (*store).clone()).collect();
        let store = SilentStore::one_of(stores, "before".into()).unwrap();
        Silent { store, since: Duration::from_secs(since) }
    }

    fn seen(silences: &[&[&DeviceStore]]) -> Sight<'static> {
        let all = |silence: &&[&DeviceStore]| silence.iter().map(|s| (*s).clone()).collect();
        let now = (Duration::from_secs(9), "now".into());
        let silences = silences.iter().map(all).collect();
        Sight { silences, is_predecessor_believed: false, is_there: &|_| true, now }
    }

    fn since(silent: &[Silent]) -> Vec<u64> {
        silent.iter().map(|silent| silent.since.as_secs()).collect()
    }

    #[test]
    fn a_silence_is_told_once_and_so_is_its_end() {
        let disk = store("0,1,0");
        let (silent, said) = compare(Vec::new(), seen(&[&[&disk]]));
        assert_eq!(since(&silent), [9]);
        assert_eq!(said, ["'/0,1,0', which backs the disk at 0,1,0, does not answer"]);
        let (silent, said) = compare(silent, seen(&[&[&disk]]));
        assert_eq!((since(&silent), said.len()), (vec![9], 0));
        let (silent, said) = compare(silent, seen(&[]));
        assert!(silent.is_empty() && said[0].ends_with("answers again; it did not since now"));
        let gone = Sight { is_there: &|_| false, ..seen(&[]) };
        let (_, said) = compare(vec![told(&[&disk], 1)], gone);
        assert!(said[0].ends_with("is of no use to the guest any more"), "{said:?}");
    }

    #[test]
    fn a_silence_that_is_known_better_goes_on() {
        let (one, other) = (store("0,1,0"), store("0,1,1"));
        let (silent, said) = compare(vec![told(&[&one, &other], 3)], seen(&[&[&other]]));
        assert_eq!(since(&silent), [3]);
        assert_eq!(said, ["'/0,1,1', which backs the disk at 0,1,1, does not answer"]);
    }

    #[test]
    fn a_worker_before_us_is_believed_of_what_the_guest_has_and_nothing_is_seen_of() {
        let disk = store("0,1,0");
        let believed = || Sight { is_predecessor_believed: true, ..seen(&[]) };
        let (silent, said) = compare(vec![told(&[&disk], 0)], believed());
        assert_eq!((since(&silent), said.len()), (vec![0], 0));
        let gone = Sight { is_there: &|_| false, ..believed() };
        let (silent, said) = compare(vec![told(&[&disk], 0)], gone);
        assert_eq!((silent.len(), said.len()), (0, 1));
    }
}
