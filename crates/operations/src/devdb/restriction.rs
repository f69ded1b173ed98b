//! Which restriction holds for a store. The nearest decides: an entry of the store itself, then of what has its bytes, then
//! of the folders above it, one after the other. Pure, but that a file with several names is looked for among hpvm's own.

use std::path::Path;

use hpvm_model::{Choice, Origin};
use hpvm_plan::facts::Restriction;
use hpvm_registry::Entry;

use super::presets::Presets;
use super::trail::{Names, Spot, Trail};
use crate::stores::way::Sight;

/// `entries` are rdev entries that the trail's keys found, and no hints that are wrong by now.
pub(crate) fn restriction(trail: &Trail, entries: &[Entry], presets: &Presets) -> Restriction {
    if trail.sight == Sight::Hidden {
        return Restriction::Hidden;
    }
    let decisive: Vec<&Entry> = entries.iter().filter(|entry| is_decisive(entry)).collect();
    let among = |names: &Names| {
        let mut found = decisive.iter().filter(|entry| names.have(entry)).peekable();
        found.peek()?;
        let found: Vec<&Entry> = found.copied().collect();
        Some(*found.iter().find(|entry| allows(entry)).unwrap_or(&found[0]))
    };
    if let Some(entry) = among(&trail.own).or_else(|| among(&trail.under)) {
        return verdict(entry);
    }
    // That guests may have a part says nothing of the whole.
    if let Some(entry) = among(&trail.over).filter(|entry| !allows(entry)) {
        return verdict(entry);
    }
    let along = |real: &str, spots: &[Spot]| by_folder(real, spots, &decisive, presets);
    let elsewhere =
        trail.elsewhere.iter().map(|way| along(&way.real.to_string_lossy(), &way.spots));
    let ways: Vec<Restriction> =
        [along(&trail.real_path, &trail.way)].into_iter().chain(elsewhere).collect();
    // Whoever gives away the folders on one way has said nothing of those on another.
    let strictest = ways.iter().find(|found| found.why().is_some());
    let lifted = || ways.iter().find(|found| **found != Restriction::None);
    let own_file = || {
        let file = presets.own_file(trail.namesakes.as_ref()?.file.identity)?;
        Some(Restriction::HostFile { file: file.display().to_string() })
    };
    strictest.cloned().or_else(own_file).or_else(|| lifted().cloned()).unwrap_or_default()
}

/// What the folders on one way say, the nearest first.
fn by_folder(
    real_path: &str,
    spots: &[Spot],
    decisive: &[&Entry],
    presets: &Presets,
) -> Restriction {
    for spot in spots {
        let mut folders = decisive.iter().filter(|_| spot.path != real_path);
        if let Some(entry) = folders.find(|entry| spot.is(entry)) {
            return match allows(entry) {
                true => verdict(entry),
                false => Restriction::Below { folder: entry.id.name().to_owned() },
            };
        }
        let below = Path::new(real_path).strip_prefix(&spot.path).unwrap_or(Path::new(""));
        let of_state = || presets.state_at(spot.identity, below);
        if let Some(folder) = presets.at(spot.identity).or_else(of_state) {
            return Restriction::HostFolder { folder };
        }
    }
    match presets.state_of(real_path) {
        Some(folder) => Restriction::HostFolder { folder },
        None => Restriction::None,
    }
}

/// What the VM Host was seen to use may be free by now, and is looked at each time: such an entry forbids nothing by itself.
fn is_decisive(entry: &Entry) -> bool {
    entry.origin != Origin::Host || allows(entry)
}

pub(super) fn allows(entry: &Entry) -> bool {
    entry.attributes.allow_guests == Choice::Yes
}

fn verdict(entry: &Entry) -> Restriction {
    let name = entry.id.name().to_owned();
    match (entry.attributes.allow_guests, entry.origin, &entry.reason) {
        (Choice::Yes, ..) => Restriction::Lifted { name },
        (Choice::No, Origin::Signature, Some(reason)) => {
            Restriction::Signature { name, reason: reason.clone() }
        }
        _ => Restriction::Entry { name },
    }
}

impl Names {
    fn have(&self, entry: &Entry) -> bool {
        let identifier = entry.identity.as_ref().and_then(|identity| identity.identifier.as_ref());
        let is_known = identifier.is_some_and(|text| self.identifiers.contains(text));
        // Names such as /dev/sdb move to other devices at the next boot; what was seen of the one, and said of it, does not.
        let is_another = identifier.is_some_and(|text| !self.serials.contains(text)) && !is_known;
        let is_moved = entry.origin.is_automatic() && is_another;
        let is_named = self.paths.contains(&entry.real_path)
            || self.paths.contains(entry.id.name())
            || entry.file.is_some_and(|file| self.files.contains(&file));
        is_known || is_named && !is_moved
    }
}

impl Spot {
    fn is(&self, entry: &Entry) -> bool {
        entry.real_path == self.path || entry.file == Some(self.identity)
    }
}

#[cfg(test)]
mod tests {
    use hpvm_host::Root;
    use hpvm_model::{Attributes, Bytes, EntryId, EntryType, FileIdentity, StoreIdentity};

    use super::*;
    use crate::stores::way::Way;

    fn presets() -> Presets {
        Presets::of(&Root::at("/nonexistent/root".as_ref()).unwrap())
    }

    fn entry(name: &str) -> Entry {
        Entry::by_hand(EntryId::new(EntryType::Restricted, name).unwrap(), name.into())
    }

    fn allowing(entry: Entry) -> Entry {
        let attributes = Attributes { allow_guests: Choice::Yes, ..Attributes::default() };
        Entry { attributes, ..entry }
    }

    fn names(paths: &[&str]) -> Names {
        let paths = paths.iter().map(|&path| path.to_owned()).collect();
        Names { paths, ..Names::default() }
    }

    /// /a/b/disk, each with an inode of its own.
    fn file() -> Trail {
        let spot = |path: &str, inode| Spot {
            path: path.into(),
            identity: FileIdentity { device: u64::MAX, inode },
        };
        Trail {
            real_path: "/a/b/disk".into(),
            own: names(&["/a/b/disk"]),
            way: vec![spot("/a/b/disk", 4), spot("/a/b", 3), spot("/a", 2)],
            ..Trail::default()
        }
    }

    #[test]
    fn the_nearest_entry_decides() {
        let presets = presets();
        let of = |entries: &[Entry]| restriction(&file(), entries, &presets);
        let below = |folder: &str| Restriction::Below { folder: folder.into() };
        let lifted = |name: &str| Restriction::Lifted { name: name.into() };
        assert_eq!(of(&[]), Restriction::None);
        assert_eq!(of(&[entry("/a")]), below("/a"));
        assert_eq!(of(&[entry("/a"), entry("/a/b")]), below("/a/b"));
        assert_eq!(of(&[entry("/a"), allowing(entry("/a/b"))]), lifted("/a/b"));
        assert_eq!(of(&[allowing(entry("/a")), entry("/a/b")]), below("/a/b"));
        let own = Restriction::Entry { name: "/a/b/disk".into() };
        assert_eq!(of(&[allowing(entry("/a/b")), entry("/a/b/disk")]), own);
        assert_eq!(of(&[entry("/a/b"), allowing(entry("/a/b/disk"))]), lifted("/a/b/disk"));
    }

    #[test]
    fn a_folder_of_the_hosts_is_restricted_itself_too() {
        let etc = std::fs::canonicalize("/etc").unwrap();
        let path = etc.to_str().unwrap().to_owned();
        let identity = crate::stores::inodes::Inodes::one(&path).unwrap();
        let way = vec![Spot { path: path.clone(), identity }];
        let trail =
            Trail { real_path: path.clone(), own: names(&[&path]), way, ..Trail::default() };
        let restricted = Restriction::HostFolder { folder: path };
        assert_eq!(restriction(&trail, &[], &presets()), restricted);
    }

    #[test]
    fn a_folder_is_known_by_its_inode() {
        let moved = Entry {
            file: Some(FileIdentity { device: u64::MAX, inode: 2 }),
            ..entry("/elsewhere")
        };
        let below = Restriction::Below { folder: "/elsewhere".into() };
        assert_eq!(restriction(&file(), &[moved], &presets()), below);
    }

    #[test]
    fn one_way_that_is_forbidden_forbids() {
        let other = Way {
            real: "/c/disk".into(),
            spots: vec![Spot {
                path: "/c".into(),
                identity: FileIdentity { device: u64::MAX, inode: 9 },
            }],
            names: 1,
            elsewhere: Vec::new(),
            sight: Sight::Seen,
        };
        let trail = Trail { elsewhere: vec![other], ..file() };
        let presets = presets();
        let of = |entries: &[Entry]| restriction(&trail, entries, &presets);
        let below = |folder: &str| Restriction::Below { folder: folder.into() };
        assert_eq!(of(&[entry("/c")]), below("/c"));
        assert_eq!(of(&[entry("/c"), allowing(entry("/a"))]), below("/c"));
        assert_eq!(of(&[entry("/a"), allowing(entry("/c"))]), below("/a"));
        assert_eq!(of(&[allowing(entry("/c"))]), Restriction::Lifted { name: "/c".into() });
        let itself = allowing(entry("/a/b/disk"));
        let lifted = Restriction::Lifted { name: "/a/b/disk".into() };
        assert_eq!(of(&[entry("/c"), itself]), lifted, "what is said of it itself is nearer");
    }

    /// Nobody knows which folders ALLOW=GUEST would be said of.
    #[test]
    fn what_is_hidden_is_given_by_no_entry() {
        let trail = Trail { sight: Sight::Hidden, ..file() };
        for entries in [&[][..], &[allowing(entry("/a"))], &[allowing(entry("/a/b/disk"))]] {
            assert_eq!(restriction(&trail, entries, &presets()), Restriction::Hidden);
        }
    }

    #[test]
    fn the_whole_and_its_part_are_restricted_together_and_allowed_downwards_only() {
        let part = Trail { own: names(&["/dev/sda1"]), under: names(&["/dev/sda"]), ..file() };
        let whole = Trail { own: names(&["/dev/sda"]), over: names(&["/dev/sda1"]), ..file() };
        let presets = presets();
        for trail in [&part, &whole] {
            for name in ["/dev/sda", "/dev/sda1"] {
                let found = restriction(trail, &[entry(name)], &presets);
                assert_eq!(found, Restriction::Entry { name: name.into() });
            }
        }
        let allowed = [allowing(entry("/dev/sda1"))];
        assert_eq!(restriction(&whole, &allowed, &presets), Restriction::None);
        let lifted = |name: &str| Restriction::Lifted { name: name.into() };
        assert_eq!(restriction(&part, &allowed, &presets), lifted("/dev/sda1"));
        let allowed = [allowing(entry("/dev/sda"))];
        assert_eq!(restriction(&part, &allowed, &presets), lifted("/dev/sda"));
    }

    #[test]
    fn what_the_host_was_seen_to_use_is_looked_at_anew() {
        let trail = Trail { own: names(&["/dev/sda"]), ..file() };
        let seen = Entry { origin: Origin::Host, ..entry("/dev/sda") };
        assert_eq!(restriction(&trail, std::slice::from_ref(&seen), &presets()), Restriction::None);
        let lifted = Restriction::Lifted { name: "/dev/sda".into() };
        assert_eq!(restriction(&trail, &[allowing(seen.clone())], &presets()), lifted);
        let identity = StoreIdentity { identifier: Some("wwid:another".into()), size: Bytes(1) };
        let another = Entry { identity: Some(identity), ..allowing(seen) };
        assert_eq!(restriction(&trail, &[another], &presets()), Restriction::None);
    }

    #[test]
    fn a_signature_follows_its_device() {
        let identity =
            |text: &str| Some(StoreIdentity { identifier: Some(text.into()), size: Bytes(1) });
        let read = Entry {
            origin: Origin::Signature,
            reason: Some("it holds swap space".into()),
            identity: identity("wwid:a"),
            ..entry("/dev/sdb")
        };
        let with = |path: &str, identifier: &str| Trail {
            own: Names { identifiers: [identifier.to_owned()].into(), ..names(&[path]) },
            ..file()
        };
        let of = |trail: &Trail| restriction(trail, std::slice::from_ref(&read), &presets());
        assert!(matches!(of(&with("/dev/sdb", "wwid:a")), Restriction::Signature { .. }));
        assert!(matches!(of(&with("/dev/sdc", "wwid:a")), Restriction::Signature { .. }));
        assert_eq!(of(&with("/dev/sdb", "wwid:b")), Restriction::None);

        let read = Entry { identity: identity("serial:a"), ..read.clone() };
        let with = |path: &str, serial: &str| Trail {
            own: Names { serials: [serial.to_owned()].into(), ..names(&[path]) },
            real_path: path.into(),
            way: vec![Spot { path: path.into(), identity: FileIdentity::of_device(7) }],
            ..Trail::default()
        };
        let of = |trail: &Trail| restriction(trail, std::slice::from_ref(&read), &presets());
        assert!(matches!(of(&with("/dev/sdb", "serial:a")), Restriction::Signature { .. }));
        assert_eq!(of(&with("/dev/sdc", "serial:a")), Restriction::None, "others may have it too");
        assert_eq!(of(&with("/dev/sdb", "serial:b")), Restriction::None);
    }
}
