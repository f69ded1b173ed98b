//! Where each station is: a table from address and domain to a place, filled by the frames' sources (IEEE 802.1Q, 8.8).
//!
//! A bucket is one cache line of four entries, chosen by a hash that differs from start to start, so that nobody can aim
//! at a bucket. A bucket that is full loses what has aged, else what was seen longest ago; an entry that is pinned, which
//! is the own address of a port that runs, is never lost and never moves. How many entries of either kind one port may have
//! is bounded, so that no port keeps the table from others.

use std::hash::{BuildHasher, RandomState};

use crate::port::{PlaceIndex, WIRE};
use crate::ring::prefetch_to_read;

/// How long a station that is silent is remembered, in seconds (IEEE 802.1Q, 8.8.3).
pub(crate) const AGE_SECONDS_MAX: u32 = 300;
/// How many addresses a port may teach; the wire may teach all the table holds.
const LEARNED_MAX: u32 = 4096;
/// In how many domains a port's own address is pinned; a trunk that speaks in more is known there as others are.
const PINNED_MAX: u32 = 16;
const BUCKETS: usize = 4096;
const WAYS: usize = 4;
/// Keys have bit 63 set, so that 0 is an empty entry.
const USED: u64 = 1 << 63;

/// An address and the domain it is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Station {
    key: u64,
}

impl Station {
    /// `address`: as of `shared::bits`.
    #[inline]
    pub(crate) fn new(address: u64, domain: u16) -> Station {
        Station { key: address | u64::from(domain & 0x0fff) << 48 | USED }
    }

    pub(crate) fn address(self) -> u64 {
        self.key & 0xffff_ffff_ffff
    }

    pub(crate) fn domain(self) -> u16 {
        (self.key >> 48) as u16 & 0x0fff
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Entry {
    key: u64,
    seen_seconds: u32,
    place: PlaceIndex,
    pinned: u16,
}

#[derive(Clone, Copy, Debug, Default)]
#[repr(align(64))]
struct Bucket([Entry; WAYS]);

/// An entry as it is listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Listed {
    pub(crate) station: Station,
    pub(crate) place: PlaceIndex,
    /// None: pinned.
    pub(crate) age_seconds: Option<u32>,
}

pub(crate) struct MacTable {
    buckets: Vec<Bucket>,
    multiplier: u64,
    /// How many entries each place has.
    counts: Vec<Counts>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    learned: u32,
    pinned: u32,
}

impl MacTable {
    pub(crate) fn new(places: usize) -> MacTable {
        let multiplier = RandomState::new().hash_one(0u64) | 1;
        MacTable {
            buckets: vec![Bucket::default(); BUCKETS],
            multiplier,
            counts: vec![Counts::default(); places],
        }
    }

    #[inline]
    fn bucket(&self, station: Station) -> usize {
        let mixed = station.key.wrapping_mul(self.multiplier);
        ((mixed ^ mixed >> 29).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 52) as usize
    }

    /// Brings what is known of a station nearer.
    #[inline]
    pub(crate) fn prefetch(&self, station: Station) {
        prefetch_to_read((&raw const self.buckets[self.bucket(station)]).cast());
    }

    /// Where a station is.
    #[inline]
    pub(crate) fn find(&self, station: Station, now_seconds: u32) -> Option<PlaceIndex> {
        let bucket = &self.buckets[self.bucket(station)];
        let entry = bucket.0.iter().find(|entry| entry.key == station.key)?;
        (!entry.aged(now_seconds)).then_some(entry.place)
    }

    /// Notes that a frame of a station came from a place.
    #[inline]
    pub(crate) fn learn(&mut self, station: Station, place: PlaceIndex, now_seconds: u32) {
        let at = self.bucket(station);
        match self.buckets[at].0.iter_mut().find(|entry| entry.key == station.key) {
            Some(entry) if entry.place == place || entry.pinned != 0 => {
                // A line that is only read stays where it is.
                if entry.seen_seconds != now_seconds {
                    entry.seen_seconds = now_seconds;
                }
            }
            Some(_) | None => self.learn_anew(at, station, place, now_seconds),
        }
    }

    #[cold]
    fn learn_anew(&mut self, at: usize, station: Station, place: PlaceIndex, now_seconds: u32) {
        let full = place != WIRE && self.counts[usize::from(place)].learned >= LEARNED_MAX;
        let entries = &mut self.buckets[at].0;
        let known = entries.iter().position(|entry| entry.key == station.key);
        let candidate = known.or_else(|| {
            let may_go = |entry: &(usize, &Entry)| {
                entry.1.pinned == 0 && (!full || (entry.1.key != 0 && entry.1.place == place))
            };
            // An empty entry was never seen, so it is the oldest.
            let oldest = |entry: &(usize, &Entry)| match entry.1.key {
                0 => (0, 0),
                _ => (1, u64::from(entry.1.seen_seconds)),
            };
            entries.iter().enumerate().filter(may_go).min_by_key(oldest).map(|(way, _)| way)
        });
        let Some(way) = candidate else { return };
        if known.is_some() && full {
            return;
        }
        self.put(at, way, Entry { key: station.key, seen_seconds: now_seconds, place, pinned: 0 });
    }

    /// Makes a station a place's own, whatever others claim. Where the place has as many as it may, the station is learned as
    /// others are.
    pub(crate) fn pin(&mut self, station: Station, place: PlaceIndex, now_seconds: u32) {
        let at = self.bucket(station);
        let entries = &self.buckets[at].0;
        let known = entries.iter().position(|entry| entry.key == station.key);
        if known.is_some_and(|way| entries[way].pinned != 0 && entries[way].place == place) {
            return;
        }
        let other = || {
            let free = |entry: &(usize, &Entry)| entry.1.pinned == 0;
            let age = |entry: &(usize, &Entry)| (entry.1.key != 0, entry.1.seen_seconds);
            entries.iter().enumerate().filter(free).min_by_key(age).map(|(way, _)| way)
        };
        match known.or_else(other) {
            Some(way) if self.counts[usize::from(place)].pinned < PINNED_MAX => {
                self.put(at, way, Entry { key: station.key, seen_seconds: 0, place, pinned: 1 });
            }
            _ => self.learn(station, place, now_seconds),
        }
    }

    /// Has an entry where another was, or none.
    fn put(&mut self, at: usize, way: usize, entry: Entry) {
        let before = std::mem::replace(&mut self.buckets[at].0[way], entry);
        if before.key != 0 {
            *before.counted(&mut self.counts) -= 1;
        }
        *entry.counted(&mut self.counts) += 1;
    }

    /// Forgets all stations of a place.
    pub(crate) fn forget(&mut self, place: PlaceIndex) {
        self.retain(|entry| entry.place != place);
    }

    /// Forgets what has aged.
    pub(crate) fn sweep(&mut self, now_seconds: u32) {
        self.retain(|entry| !entry.aged(now_seconds));
    }

    fn retain(&mut self, stays: impl Fn(&Entry) -> bool) {
        for entry in self.buckets.iter_mut().flat_map(|bucket| &mut bucket.0) {
            if entry.key != 0 && !stays(entry) {
                *entry.counted(&mut self.counts) -= 1;
                *entry = Entry::default();
            }
        }
    }

    pub(crate) fn list(&self, now_seconds: u32) -> Vec<Listed> {
        let entries = self.buckets.iter().flat_map(|bucket| &bucket.0);
        entries
            .filter(|entry| entry.key != 0 && !entry.aged(now_seconds))
            .map(|entry| Listed {
                station: Station { key: entry.key },
                place: entry.place,
                age_seconds: (entry.pinned == 0).then(|| now_seconds - entry.seen_seconds),
            })
            .collect()
    }
}

impl Entry {
    /// Where its place counts such.
    fn counted(self, counts: &mut [Counts]) -> &mut u32 {
        let Counts { learned, pinned } = &mut counts[usize::from(self.place)];
        if self.pinned == 0 { learned } else { pinned }
    }

    #[inline]
    fn aged(&self, now_seconds: u32) -> bool {
        self.pinned == 0 && now_seconds.saturating_sub(self.seen_seconds) > AGE_SECONDS_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    const PLACES: usize = 8;

    #[derive(Clone, Debug)]
    enum Step {
        Learn(u64, u16, u16),
        Pin(u64, u16, u16),
        Forget(u16),
        Wait(u32),
    }

    fn step() -> impl Strategy<Value = Step> {
        let station = || (0u64..16, 0u16..3, 0u16..PLACES as u16);
        prop_oneof![
            20 => station().prop_map(|(address, domain, place)| Step::Learn(address, domain, place)),
            1 => station().prop_map(|(address, domain, place)| Step::Pin(address, domain, place)),
            1 => (0u16..PLACES as u16).prop_map(Step::Forget),
            2 => (0u32..200).prop_map(Step::Wait),
        ]
    }

    /// What a place is, since when, and whether for ever.
    type Known = HashMap<u64, (u16, u32, bool)>;

    fn heard(known: &mut Known, station: Station, place: PlaceIndex, now: u32) {
        let entry = known.entry(station.key).or_insert((place, now, false));
        if !entry.2 {
            *entry = (place, now, false);
        }
    }

    proptest! {
        /// Against a map without bounds: the table may forget, but never tells a place that is not the last.
        #[test]
        fn the_table_never_errs(steps in prop::collection::vec(step(), 1..400)) {
            let mut table = MacTable::new(PLACES);
            let mut known = Known::new();
            let mut now = 0;
            for step in steps {
                match step {
                    Step::Wait(seconds) => now += seconds,
                    Step::Forget(place) => {
                        table.forget(place);
                        known.retain(|_, (at, ..)| *at != place);
                    }
                    Step::Pin(address, domain, place) => {
                        let station = Station::new(address, domain);
                        table.pin(station, place, now);
                        let own = known.values().filter(|(at, _, pinned)| *at == place && *pinned);
                        match own.count() < PINNED_MAX as usize {
                            true => drop(known.insert(station.key, (place, now, true))),
                            false => heard(&mut known, station, place, now),
                        }
                    }
                    Step::Learn(address, domain, place) => {
                        let station = Station::new(address, domain);
                        table.learn(station, place, now);
                        heard(&mut known, station, place, now);
                    }
                }
                for (key, (place, seen, pinned)) in &known {
                    let fresh = *pinned || now - seen <= AGE_SECONDS_MAX;
                    let told = table.find(Station { key: *key }, now);
                    prop_assert!(told.is_none() || (told == Some(*place) && fresh));
                    // 48 stations in 4,096 buckets of four: not one is lost.
                    prop_assert!(!fresh || told.is_some());
                }
            }
            let counted = |place: u16, pinned: u16| table.buckets.iter().flat_map(|bucket| &bucket.0)
                .filter(|entry| entry.key != 0 && entry.pinned == pinned && entry.place == place).count();
            for place in 0..PLACES as u16 {
                let Counts { learned, pinned } = table.counts[usize::from(place)];
                prop_assert_eq!(learned as usize, counted(place, 0));
                prop_assert_eq!(pinned as usize, counted(place, 1));
            }
        }
    }

    #[test]
    fn one_port_cannot_push_others_out() {
        let mut table = MacTable::new(3);
        let own = Station::new(0x0200_0000_0001, 7);
        table.pin(own, 1, 1);
        for address in 0..100_000 {
            table.learn(Station::new(address << 8 | 2, UNTAGGED_DOMAIN), 2, 1);
        }
        assert_eq!(table.find(own, 1), Some(1));
        assert!(table.counts[2].learned <= LEARNED_MAX, "{:?}", table.counts[2]);
    }

    #[test]
    fn no_trunk_shuts_others_out() {
        let mut table = MacTable::new(7);
        for (trunk, domain) in (1..6).flat_map(|trunk| (0..4095).map(move |domain| (trunk, domain)))
        {
            table.pin(Station::new(trunk.into(), domain), trunk, 1);
        }
        assert!((1..6).all(|trunk| table.counts[trunk].pinned == PINNED_MAX));
        for address in 100..1100 {
            let station = Station::new(address, UNTAGGED_DOMAIN);
            table.learn(station, 6, 2);
            assert_eq!(table.find(station, 2), Some(6));
        }
    }

    const UNTAGGED_DOMAIN: u16 = crate::vlan::UNTAGGED;
}
