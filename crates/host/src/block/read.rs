//! Gathers [`Blocks`]: all devices, or those that hang together with a few.
//!
//! Called through `Blocks::read_all` and `Blocks::read_around`. It decides nothing about uses; it only makes sure that what
//! `lineage` and `uses` will look at has been read. Around a store that is: all that lies on it, all that lies under any of
//! these, and what holds the disk a partition is a part of. Its neighbours, such as the other volumes of its group, are not
//! read, so the price does not grow with the host.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::{fs, panic, thread};

use super::boot;
use super::device::{Device, DeviceNumber, Identifier, Kind, Mapping};
use super::expected::{self, Expected, Named};
use super::far::{Answer, Asker};
use super::keys::{self, Keys};
use super::lead::{FileLead, Lead, Store};
use super::mounts::{self, Mount};
use super::places::Places;
use super::sysfs::Found;
use super::{Blocks, MountPoint, sysfs};

/// More devices than a host has; a hostile tree shall not fill our memory.
const DEVICES_MAX: usize = 100_000;

impl Blocks {
    /// Reads every device of the host.
    #[must_use]
    pub fn read_all(places: &Places) -> Self {
        Self::read_all_with(places, &[])
    }

    /// Reads every device of the host, and on which of them these files lie.
    #[must_use]
    pub fn read_all_with(places: &Places, files: &[Lead]) -> Self {
        let mut reader = Reader::new(places);
        let attached = sysfs::attached(&places.sysfs).into_iter();
        reader.asker.prepare(attached.map(|(_, path)| path).collect());
        for file in files {
            reader.add_file(file);
        }
        let listed = sysfs::entries(&places.sysfs.join("dev/block"));
        let listed: Vec<DeviceNumber> =
            listed.iter().filter_map(|number| number.parse().ok()).collect();
        let named = |number| Some((number, sysfs::name(&places.sysfs, number)?));
        let named: Vec<(DeviceNumber, String)> = listed.into_iter().filter_map(named).collect();
        for found in read_each(&places.sysfs, &named) {
            reader.take_in(found);
        }
        reader.finish()
    }

    /// Whether these leads are files and nothing else. Quick, since the disks of most guests are such files, and of those nothing
    /// more need be known than that the VM Host itself does not have them.
    pub fn are_plain_files(leads: &[Lead], has_any: impl FnOnce(&BTreeSet<Store>) -> bool) -> bool {
        let stores: BTreeSet<Store> = leads.iter().filter_map(Lead::store).collect();
        stores.iter().all(|store| matches!(store, Store::File(_)))
            && (stores.is_empty() || !has_any(&stores))
    }

    /// Reads the stores that these leads are, and what hangs together with them.
    ///
    /// Another path to the same disk is found when multipath holds both, when the host mounts it or swaps on it, or when it
    /// is among the starts: who knows of others asks for [`Blocks::world_wide_names`] and reads again with them. That an
    /// unmounted volume group lies on it is seen by [`Blocks::read_all`] only.
    #[must_use]
    pub fn read_around(places: &Places, starts: &[Lead]) -> Self {
        let mut reader = Reader::new(places);
        reader.list_loops();
        for start in starts {
            reader.add_file(start);
        }
        let stores: Vec<Store> = starts.iter().filter_map(Lead::store).collect();
        reader.follow(stores.iter().map(|store| (*store, Direction::Over)).collect());
        if reader.has_wwid() {
            reader.follow_host();
            reader.blocks.keys = Keys::new(&reader.blocks.devices);
            let faces = stores.iter().flat_map(|store| reader.blocks.keys.faces(*store));
            let faces = faces.map(|face| (face, Direction::Over)).collect();
            reader.follow(faces);
        }
        reader.finish()
    }
}

/// What a loop device is attached to, and the path that the kernel remembers it by.
struct Backing {
    path: PathBuf,
    answer: Answer,
}

/// Which way a store's relations are followed. What lies under something that lies over is always read too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Direction {
    Under,
    Over,
}

struct Reader<'places> {
    places: &'places Places,
    asker: Asker<'places>,
    blocks: Blocks,
    mounts: Vec<Mount>,
    /// The members of each btrfs file system in use.
    btrfs: Vec<Vec<DeviceNumber>>,
    visited: BTreeSet<(Store, Direction)>,
}

impl<'places> Reader<'places> {
    fn new(places: &'places Places) -> Self {
        let mut reader = Self {
            places,
            asker: Asker::new(places),
            blocks: Blocks::default(),
            mounts: read_mounts(&places.proc),
            btrfs: read_btrfs(&places.sysfs),
            visited: BTreeSet::new(),
        };
        reader.note_mounts();
        reader.note_swap();
        reader.blocks.journals = read_journals(places);
        reader.note_expected();
        reader
    }

    fn note_mounts(&mut self) {
        let mut best: BTreeMap<DeviceNumber, &Mount> = BTreeMap::new();
        let mut best_btrfs: BTreeMap<usize, &Mount> = BTreeMap::new();
        for mount in &self.mounts {
            let named = blocks_named(self.places, mount);
            if mount.file_system == "btrfs" {
                let found = self.btrfs.iter().position(|set| named.iter().any(|n| set.contains(n)));
                if let Some(found) = found {
                    let kept = best_btrfs.entry(found).or_insert(mount);
                    *kept = if mounts::better(mount, kept) { mount } else { kept };
                    continue;
                }
            }
            let own = (mount.number.major != 0).then_some(mount.number);
            for number in named.into_iter().chain(own) {
                let kept = best.entry(number).or_insert(mount);
                *kept = if mounts::better(mount, kept) { mount } else { kept };
            }
        }
        let point = |mount: &Mount| {
            let Mount { at, is_read_only, .. } = mount;
            MountPoint { at: at.clone(), is_read_only: *is_read_only }
        };
        self.blocks.mounted =
            best.into_iter().map(|(number, mount)| (number, point(mount))).collect();
        for (position, set) in self.btrfs.iter().enumerate() {
            let at = best_btrfs.get(&position).map(|mount| mount.at.clone());
            self.blocks.btrfs.extend(set.iter().map(|number| (*number, at.clone())));
        }
    }

    fn note_swap(&mut self) {
        for path in swaps(self.asker.places) {
            let Some(lead) = self.asker.answer(&path).lead().cloned() else { continue };
            self.add_file(&lead);
            self.blocks.swap.extend(lead.store());
        }
    }

    fn note_expected(&mut self) {
        for (named, expected, lead) in expected(&self.asker) {
            self.add_file(&lead);
            let Some(store) = lead.store() else { continue };
            let noted = match named {
                Named::Path(_) => &mut self.blocks.expected,
                Named::Content(_) => &mut self.blocks.labelled,
            };
            let first = noted.entry(store).or_insert_with(|| expected.clone());
            // Who writes counts more than who was named first and reads.
            if first.is_read_only() {
                *first = expected;
            }
        }
    }

    /// Notes what every attached loop device is attached to, without reading more of it.
    fn list_loops(&mut self) {
        for (name, backing) in attached(&self.asker) {
            let Some(number) = sysfs::number(&self.places.sysfs, &name) else { continue };
            self.note_loop(number, &backing);
        }
    }

    fn note_loop(&mut self, number: DeviceNumber, backing: &Backing) {
        if backing.answer == Answer::Silent {
            self.blocks.silent.insert(number);
        }
        let Some(lead) = backing.answer.lead() else { return };
        self.add_file(lead);
        let Some(store) = lead.store() else { return };
        self.blocks.attached.entry(store).or_default().insert(backing.path.clone());
        let loops = self.blocks.loops.entry(store).or_default();
        if !loops.contains(&number) {
            loops.push(number);
        }
    }

    fn add(&mut self, number: DeviceNumber) {
        if self.blocks.devices.contains_key(&number) {
            return;
        }
        let sysfs = &self.places.sysfs;
        let Some(name) = sysfs::name(sysfs, number) else { return };
        if let Some(found) = sysfs::read(sysfs, number, name, |name| sysfs::number(sysfs, name)) {
            self.take_in(found);
        }
    }

    fn take_in(&mut self, mut found: Found) {
        if self.blocks.devices.len() >= DEVICES_MAX {
            return;
        }
        let number = found.device.number;
        if let Some(path) = found.backing {
            let backing = Backing { answer: self.asker.answer(&path), path };
            if let Kind::Loop { backing: store } = &mut found.device.kind {
                *store = backing.answer.lead().and_then(Lead::store);
            }
            self.note_loop(number, &backing);
        }
        self.blocks.devices.insert(number, found.device);
    }

    fn add_file(&mut self, lead: &Lead) {
        if let Lead::File(file) = lead {
            let on = self.devices_of(file);
            self.blocks.files.insert(file.identity, on);
        }
    }

    /// The devices of the file system a file is in. A file system of several devices has a number of its own, with major
    /// 0, and stat shows yet another one for a file in a btrfs subvolume: there only the mount leads further.
    fn devices_of(&self, file: &FileLead) -> Vec<DeviceNumber> {
        let number = DeviceNumber::from_raw(file.identity.device);
        if number.major != 0 {
            return vec![number];
        }
        let by_id = self.mounts.iter().find(|mount| Some(mount.id) == file.mount);
        let by_number = || self.mounts.iter().find(|mount| mount.number == number);
        let Some(mount) = by_id.or_else(by_number) else { return Vec::new() };
        let named = blocks_named(self.places, mount);
        let set = self.btrfs.iter().find(|set| named.iter().any(|number| set.contains(number)));
        set.cloned().unwrap_or(named)
    }

    fn follow(&mut self, mut todo: Vec<(Store, Direction)>) {
        while let Some((store, direction)) = todo.pop() {
            if !self.visited.insert((store, direction)) {
                continue;
            }
            if let Store::Device(number) = store {
                self.add(number);
            }
            todo.extend(self.blocks.under(store).into_iter().map(|s| (s, Direction::Under)));
            todo.extend(self.faces_by_loop(store));
            if direction == Direction::Over {
                todo.extend(
                    self.blocks.named_over(store).into_iter().map(|s| (s, Direction::Over)),
                );
                todo.extend(self.beside(store));
            }
        }
    }

    /// What loop devices make the same as a store, wherever it lies: those on a device, and of a loop device all that is on
    /// what it is attached to.
    fn faces_by_loop(&self, store: Store) -> Vec<(Store, Direction)> {
        let Store::Device(number) = store else { return Vec::new() };
        let mut faces: Vec<(Store, Direction)> = Vec::new();
        if let Some(Device { kind: Kind::Loop { backing }, .. }) = self.blocks.devices.get(&number)
        {
            faces.extend(backing.iter().map(|backing| (*backing, Direction::Over)));
        }
        let loops = self.blocks.loops_on(store).iter();
        faces.extend(loops.map(|number| (Store::Device(*number), Direction::Under)));
        faces
    }

    /// What else tells whether a store is used: what else is done with the paths of a multipath volume, and what holds the
    /// whole of which it is a part.
    fn beside(&mut self, store: Store) -> Vec<(Store, Direction)> {
        let Store::Device(number) = store else { return Vec::new() };
        match self.blocks.devices.get(&number) {
            Some(device) if device.is_multipath() => {
                device.slaves.iter().map(|path| (Store::Device(*path), Direction::Over)).collect()
            }
            _ => self.beside_whole(store),
        }
    }

    /// What holds the whole, and its other parts: a machine may be started from one where another is used.
    fn beside_whole(&mut self, part: Store) -> Vec<(Store, Direction)> {
        let mut beside = Vec::new();
        for whole in self.blocks.wholes(part) {
            let Store::Device(number) = whole else { continue };
            self.add(number);
            let Some(disk) = self.blocks.devices.get(&number) else { continue };
            let (parts, holders) = (disk.partitions.clone(), disk.holders.clone());
            beside.extend(parts.iter().map(|part| (Store::Device(*part), Direction::Over)));
            beside
                .extend(holders.iter().map(|holder| (Store::Device(*holder), self.side(*holder))));
        }
        beside
    }

    /// What lies on a part of the same whole matters, what lies on another holder does not.
    fn side(&mut self, holder: DeviceNumber) -> Direction {
        self.add(holder);
        match self.blocks.devices.get(&holder).map(|device| &device.kind) {
            Some(Kind::Mapped { mapping: Mapping::Partition { .. }, .. }) => Direction::Over,
            _ => Direction::Under,
        }
    }

    fn has_wwid(&self) -> bool {
        let wwid = |device: &Device| matches!(device.identifier, Some(Identifier::Wwid(_)));
        self.blocks.devices.values().any(wwid)
    }

    /// Reads what the host mounts and swaps on, down to its disks, to find other paths to a disk that was asked about. Loop
    /// devices on files, of which there can be many, are left out: what they lie on is mounted itself.
    fn follow_host(&mut self) {
        let mounted = self.blocks.mounted.keys().chain(self.blocks.btrfs.keys());
        let mounted = mounted.chain(&self.blocks.journals);
        let mounted = mounted.filter(|number| number.major != 7).map(|n| Store::Device(*n));
        let used = mounted.chain(self.blocks.swap.iter().copied());
        let used = used.chain(self.blocks.expected.keys().copied());
        let is_device = |store: &&Store| matches!(store, Store::Device(_));
        let used = used.chain(self.blocks.loops.keys().filter(is_device).copied());
        let used = used.map(|store| (store, Direction::Under)).collect();
        self.follow(used);
    }

    fn finish(mut self) -> Blocks {
        self.inherit();
        self.blocks.keys = Keys::new(&self.blocks.devices);
        self.note_boot();
        self.blocks
    }

    /// Looks at the types of partitions that nothing uses on disks of which another is used. One that a loop device leads to may
    /// be used by that way alone.
    fn note_boot(&mut self) {
        let Blocks { devices, keys, .. } = &self.blocks;
        let used = self.blocks.used();
        let place = |number: &DeviceNumber| keys.place(*number);
        let is_used = |number: &&DeviceNumber| used.contains(&Store::Device(**number));
        let places: BTreeSet<_> = devices.keys().filter(is_used).filter_map(place).collect();
        let is_beside_used = |(disk, own): (&keys::Whole, &[u32])| {
            let on_disk = places.range((disk, &[][..])..).take_while(|(other, _)| *other == disk);
            on_disk.take(2).any(|(_, other)| *other != own)
        };
        let has_loop = |number: &DeviceNumber| {
            keys.faces(Store::Device(*number)).iter().any(|face| keys.is_attached(*face))
        };
        let is_beside = |number: &&DeviceNumber| {
            (!is_used(number) || has_loop(number)) && place(number).is_some_and(is_beside_used)
        };
        let boot = |number: &DeviceNumber| {
            let partition = devices.get(number)?;
            let (disk, entry) = keys::part(partition)?;
            Some((*number, boot::of(self.places, partition, devices.get(&disk)?, entry)?))
        };
        let found = devices.keys().filter(is_beside).filter_map(boot).collect();
        self.blocks.boot = found;
    }

    /// A partition has from its disk what sysfs tells of the disk alone.
    fn inherit(&mut self) {
        let partitions = self.blocks.devices.values().filter_map(|device| match device.kind {
            Kind::Partition { of, number } => Some((device.number, of, number)),
            _ => None,
        });
        let partitions: Vec<_> = partitions.collect();
        for (partition, of, number) in partitions {
            let Some(disk) = self.blocks.devices.get(&of) else { continue };
            let (medium, block_bytes) = (disk.medium, disk.block_bytes);
            let disk = disk.identifier.clone();
            let identifier = disk.map(|disk| Identifier::Partition { of: Box::new(disk), number });
            if let Some(device) = self.blocks.devices.get_mut(&partition) {
                (device.medium, device.block_bytes) = (medium, block_bytes);
                device.identifier = identifier;
            }
        }
    }
}

/// Reads these devices. Of many on as many threads as there are processors, since each takes the kernel some dozen calls.
fn read_each(sysfs: &Path, named: &[(DeviceNumber, String)]) -> Vec<Found> {
    /// What a thread reads while another one starts.
    const WORTH_A_THREAD: usize = 32;
    let numbers: BTreeMap<&str, DeviceNumber> =
        named.iter().map(|(number, name)| (name.as_str(), *number)).collect();
    let number = |name: &str| match numbers.get(name) {
        Some(number) => Some(*number),
        // It came after the list was made.
        None => sysfs::number(sysfs, name),
    };
    let read = |share: &[(DeviceNumber, String)]| -> Vec<Found> {
        let found = share.iter().map(|(n, name)| sysfs::read(sysfs, *n, name.clone(), number));
        found.flatten().collect()
    };
    let processors = thread::available_parallelism().map_or(1, usize::from);
    let share = named.len().div_ceil(processors).max(WORTH_A_THREAD);
    thread::scope(|scope| {
        let mut shares = named.chunks(share);
        let own = shares.next().unwrap_or_default();
        // Who gets no thread reads that share itself.
        let read = &read;
        let begin = |share| {
            let thread = thread::Builder::new().spawn_scoped(scope, move || read(share));
            (share, thread.ok())
        };
        let others: Vec<_> = shares.map(begin).collect();
        let own = read(own);
        let others = others.into_iter().flat_map(|(share, thread)| match thread {
            Some(thread) => thread.join().unwrap_or_else(|panic| panic::resume_unwind(panic)),
            None => read(share),
        });
        own.into_iter().chain(others).collect()
    })
}

/// The mounts of the host's first process, which are the host's own; another's are a container's.
pub(super) fn read_mounts(proc: &Path) -> Vec<Mount> {
    let mounts = mounts::of_process(proc, "1").or_else(|_| mounts::of_process(proc, "self"));
    mounts.unwrap_or_default()
}

/// What the host swaps on.
pub(super) fn swaps(places: &Places) -> Vec<PathBuf> {
    mounts::swaps(&fs::read(places.proc.join("swaps")).unwrap_or_default())
}

/// What the VM Host will use, as far as it is there now.
fn expected(asker: &Asker<'_>) -> Vec<(Named, Expected, Lead)> {
    let all = expected::all(asker.places);
    asker.prepare(all.iter().map(|(named, _)| named.path().to_owned()).collect());
    let with_lead = |(named, expected): (Named, Expected)| {
        let lead = asker.answer(named.path()).lead().cloned()?;
        Some((named, expected, lead))
    };
    all.into_iter().filter_map(with_lead).collect()
}

/// The loop devices in use, by name, with what each is attached to.
fn attached(asker: &Asker<'_>) -> Vec<(String, Backing)> {
    let paths = sysfs::attached(&asker.places.sysfs);
    asker.prepare(paths.iter().map(|(_, path)| path.clone()).collect());
    let backing = |(name, path): (String, PathBuf)| {
        let answer = asker.answer(&path);
        (name, Backing { path, answer })
    };
    paths.into_iter().map(backing).collect()
}

/// A FUSE file system names as its source whatever its user likes.
fn blocks_named(places: &Places, mount: &Mount) -> Vec<DeviceNumber> {
    if mount.file_system == "fuse" || mount.file_system.starts_with("fuse.") {
        return Vec::new();
    }
    let leads = mount.devices.iter().filter_map(|path| places.lead(path).ok());
    let numbers = leads.filter_map(|lead| match lead {
        Lead::Block(number) => Some(number),
        _ => None,
    });
    numbers.collect()
}

/// The journals of mounted file systems that are devices of their own (fs/jbd2/journal.c, jbd2_journal_init_dev). The others are
/// called by their file system's device and an inode number.
fn read_journals(places: &Places) -> BTreeSet<DeviceNumber> {
    let names = sysfs::entries(&places.proc.join("fs/jbd2"));
    names.iter().filter_map(|name| sysfs::number(&places.sysfs, name)).collect()
}

fn read_btrfs(sysfs: &Path) -> Vec<Vec<DeviceNumber>> {
    let folder = sysfs.join("fs/btrfs");
    let file_systems = sysfs::entries(&folder).into_iter();
    let members = file_systems.map(|uuid| {
        let names = sysfs::entries(&folder.join(uuid).join("devices"));
        names.iter().filter_map(|name| sysfs::number(sysfs, name)).collect::<Vec<_>>()
    });
    members.filter(|members| !members.is_empty()).collect()
}
