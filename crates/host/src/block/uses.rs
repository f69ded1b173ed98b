//! What the VM Host itself does with a store, as values that say so in one clause each.
//!
//! Called before a store is given to a guest, and by `host_used` for the list of what is to be restricted. The rule:
//!
//! - A store is used when it is mounted, is swap space or belongs to a file system in use; when the same is true of
//!   something that lies on it; or when a volume was made of it, even one that nobody uses yet.
//! - It is used too when /etc/fstab, /etc/crypttab, an enabled unit of systemd or the table of ZFS's pools names it, by a path, whether it is in use now or
//!   not, and when machines are started from
//!   such partitions and it lies on a disk of which the VM Host uses another.
//! - That a partition or a loop device of it exists is no use.
//! - A partition is also used when its disk is used as a whole. A volume is not used because its group has others that are.
//! - Another name of the same bytes counts as the store: a second path, a loop device on it, another on the same file. It counts
//!   too for what was made of the one, through any number of them.
//!
//! Signatures and claims are asked for separately: they open the device, and a signature may be a guest's own work. So may the
//! label or the UUID be by which these name a device (`labels`).

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::path::PathBuf;

use super::boot::Boot;
use super::device::{Device, Kind, Mapping};
use super::expected::Expected;
use super::lead::Store;
use super::probe::{Probe, ProbeError};
use super::signature::{self, Signature};
use super::{Blocks, DeviceNumber, MountPoint, names};

/// How many devices between a store and its use are named.
const NAMED_MAX: usize = 3;

/// One use of a store.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Use {
    /// The disk that is used as a whole, when the store is a partition of it.
    pub whole: Option<String>,
    /// What leads from the store up to what is used; empty when it is the store itself.
    pub steps: Vec<Step>,
    pub fact: Fact,
}

/// A device that lies on the store.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Step {
    pub label: String,
    pub kind: StepKind,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum StepKind {
    Partition,
    Raid,
    Volume { group: String, volume: String },
    Encrypted,
    Multipath,
    Mapped,
    Loop,
    Other,
}

/// What is done with the store, or with the last of the steps.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fact {
    Mounted(PathBuf),
    MountedReadOnly(PathBuf),
    Swap,
    /// A member of a btrfs file system in use; where it is mounted, when that is known.
    Btrfs(Option<PathBuf>),
    /// The journal of a mounted file system that lies elsewhere.
    Journal,
    /// /etc/fstab, /etc/crypttab, a unit of systemd or the table of ZFS's pools says what it is for.
    Expected(Expected),
    /// Machines are started from such partitions, and it lies on a disk that the VM Host uses.
    Boot(Boot),
    /// The last step was made of it, and nobody is seen to use that.
    Held,
    /// The kernel gave it to somebody exclusively, who is not seen: another namespace, or a driver such as ZFS.
    Claimed,
    Signature(Signature),
    /// Its content could not be had in time, or of a loop device what it is attached to.
    Silent,
}

impl Blocks {
    /// What the VM Host does with a store, each use once. Empty: it may be given to a guest.
    #[must_use]
    pub fn uses(&self, store: Store) -> Vec<Use> {
        let faces = self.keys.faces(store);
        let mut found = BTreeSet::new();
        // A loop device on another face is reached from there.
        let starts =
            faces.iter().filter(|face| **face != store && !self.is_loop_on(**face, &faces));
        let starts: Vec<Store> = [store].into_iter().chain(starts.copied()).collect();
        self.climb(&starts, |_| false, &mut found);
        // From below, the store itself is no use of what it is made of, nor is another volume of its group.
        let below = self.closure(&[store], Self::under);
        let groups: BTreeSet<&str> = below.iter().filter_map(|under| self.group(*under)).collect();
        let barred = |other: Store| {
            let is_sibling = self.group(other).is_some_and(|group| groups.contains(group));
            is_sibling || below.contains(&other) || faces.contains(&other)
        };
        let ground = self.ground(&faces);
        self.climb(&ground.doors, barred, &mut found);
        for whole in ground.wholes {
            self.use_as_a_whole(whole, barred, &mut found);
        }
        found.into_iter().collect()
    }

    /// Every device that the VM Host uses with its uses, by number; those under a used one are among them.
    #[must_use]
    pub fn host_used(&self) -> Vec<(DeviceNumber, Vec<Use>)> {
        let all = self.devices.keys().map(|number| (*number, self.uses(Store::Device(*number))));
        all.filter(|(_, uses)| !uses.is_empty()).collect()
    }

    /// What the signatures say that are left on a store, its partitions and its loop devices. Whoever wrote them may have
    /// been a guest: ask only for a store that no guest has had.
    #[must_use]
    pub fn signatures(&self, store: Store, probe: &dyn Probe) -> Vec<Use> {
        let mut found = BTreeSet::new();
        for (steps, device) in self.parts(store) {
            let facts = match signature::signatures(probe, device) {
                Ok(signatures) => signatures.into_iter().map(Fact::Signature).collect(),
                Err(ProbeError::Silent) => vec![Fact::Silent],
                // An empty drive, a device that is gone, or one we may not read.
                Err(ProbeError::Failed(_)) => Vec::new(),
            };
            let uses = facts.into_iter();
            found.extend(uses.map(|fact| Use { whole: None, steps: steps.clone(), fact }));
        }
        found.into_iter().collect()
    }

    /// What these tables say of a store, its partitions and its loop devices by what is written on them. Whoever wrote that may
    /// have been a guest: ask only for a store that no guest has had.
    #[must_use]
    pub fn labels(&self, store: Store) -> Vec<Use> {
        let labelled = |(steps, device): (Vec<Step>, &Device)| {
            let expected = self.labelled.get(&Store::Device(device.number))?.clone();
            Some(Use { whole: None, steps, fact: Fact::Expected(expected) })
        };
        self.parts(store).into_iter().filter_map(labelled).collect()
    }

    /// Whether the kernel keeps a store for somebody whom neither mounts nor holders show. Only worth asking for a store
    /// without other uses.
    #[must_use]
    pub fn claims(&self, store: Store, probe: &dyn Probe) -> Vec<Use> {
        let parts = self.parts(store);
        let claimed = parts.into_iter().filter(|(_, device)| probe.is_claimed(device));
        let uses: Vec<Use> =
            claimed.map(|(steps, _)| Use { whole: None, steps, fact: Fact::Claimed }).collect();
        // A disk is kept too when its partition is: the partition says more.
        let deepest = uses.iter().map(|found| found.steps.len()).max().unwrap_or(0);
        uses.into_iter().filter(|found| found.steps.len() == deepest).collect()
    }

    /// Notes each use of the starts and of what lies on them. What is barred is not climbed through.
    fn climb(&self, starts: &[Store], barred: impl Fn(Store) -> bool, found: &mut BTreeSet<Use>) {
        let tree = Tree::grow(self, starts, barred);
        let mut explained = BTreeSet::new();
        for store in &tree.order {
            if let Some(fact) = self.fact(*store) {
                found.insert(Use { whole: None, steps: tree.steps(self, *store), fact });
                tree.mark_below(*store, &mut explained);
            }
        }
        // Of volumes that nobody uses only the lowest is told, and one volume of a group.
        let mut told = BTreeSet::new();
        let mut groups = BTreeSet::new();
        for store in &tree.order {
            let holds = self.holds(*store) && !starts.contains(store);
            if !holds || explained.contains(store) || tree.lies_on(*store, &told) {
                continue;
            }
            told.insert(*store);
            let steps = tree.steps(self, *store);
            let group = steps.last().and_then(|step| match &step.kind {
                StepKind::Volume { group, .. } => Some(group.clone()),
                _ => None,
            });
            let known = |group: &String| {
                groups.contains(group) || found.iter().any(|found| found.is_in_group(group))
            };
            if !group.as_ref().is_some_and(known) {
                groups.extend(group);
                found.insert(Use { whole: None, steps, fact: Fact::Held });
            }
        }
    }

    fn use_as_a_whole(
        &self,
        whole: Store,
        barred: impl Fn(Store) -> bool,
        found: &mut BTreeSet<Use>,
    ) {
        let label = self.label(whole);
        if let Some(fact) = self.fact(whole) {
            found.insert(Use { whole: Some(label.clone()), steps: Vec::new(), fact });
        }
        for holder in self.over(whole) {
            if self.holds(holder) && !barred(holder) {
                let steps = vec![self.step(holder)];
                found.insert(Use { whole: Some(label.clone()), steps, fact: Fact::Held });
            }
        }
    }

    fn is_loop_on(&self, store: Store, some: &[Store]) -> bool {
        let Store::Device(number) = store else { return false };
        match self.devices.get(&number).map(|device| &device.kind) {
            Some(Kind::Loop { backing: Some(backing) }) => some.contains(backing),
            _ => false,
        }
    }

    /// The volume group that a volume is of.
    fn group(&self, store: Store) -> Option<&str> {
        let Store::Device(number) = store else { return None };
        match &self.devices.get(&number)?.kind {
            Kind::Mapped { mapping: Mapping::Volume { group, .. }, .. } => Some(group),
            _ => None,
        }
    }

    pub(super) fn fact(&self, store: Store) -> Option<Fact> {
        if let Store::Device(number) = store {
            if let Some(MountPoint { at, is_read_only }) = self.mounted.get(&number) {
                let at = at.clone();
                let writing = self.expected.get(&store).filter(|said| !said.is_read_only());
                return Some(match writing {
                    Some(said) if *is_read_only => Fact::Expected(said.clone()),
                    _ if *is_read_only => Fact::MountedReadOnly(at),
                    _ => Fact::Mounted(at),
                });
            }
            if let Some(at) = self.btrfs.get(&number) {
                return Some(Fact::Btrfs(at.clone()));
            }
            if self.journals.contains(&number) {
                return Some(Fact::Journal);
            }
            if self.silent.contains(&number) {
                return Some(Fact::Silent);
            }
        }
        if self.swap.contains(&store) {
            return Some(Fact::Swap);
        }
        if let Some(expected) = self.expected.get(&store) {
            return Some(Fact::Expected(expected.clone()));
        }
        let Store::Device(number) = store else { return None };
        self.boot.get(&number).map(|boot| Fact::Boot(*boot))
    }

    /// What the kernel has in use, itself or what lies on it, or the tables name: all that is known before `boot` is.
    pub(super) fn used(&self) -> BTreeSet<Store> {
        let devices = self.mounted.keys().chain(self.btrfs.keys()).chain(&self.journals);
        let devices = devices.map(|number| Store::Device(*number));
        let files = self.swap.iter().chain(self.expected.keys()).copied();
        let is_held = |device: &&Device| {
            !device.slaves.is_empty() && self.holds(Store::Device(device.number))
        };
        let holders =
            self.devices.values().filter(is_held).map(|device| Store::Device(device.number));
        let starts = devices.chain(files).chain(holders);
        let starts: Vec<Store> = starts.flat_map(|store| self.keys.faces(store)).collect();
        self.closure(&starts, Self::under)
    }

    /// Whether a device keeps what it is made of for itself: all but partitions and loop devices do.
    fn holds(&self, store: Store) -> bool {
        !matches!(self.step(store).kind, StepKind::Partition | StepKind::Loop)
    }

    fn label(&self, store: Store) -> String {
        match store {
            Store::Device(number) => {
                self.devices.get(&number).map_or_else(|| number.to_string(), Device::label)
            }
            Store::File(file) => format!("file {}", file.inode),
        }
    }

    fn step(&self, store: Store) -> Step {
        let device = match store {
            Store::Device(number) => self.devices.get(&number),
            Store::File(_) => None,
        };
        let kind = match device.map(|device| &device.kind) {
            Some(Kind::Partition { .. }) => StepKind::Partition,
            Some(Kind::Raid) => StepKind::Raid,
            Some(Kind::Loop { .. }) => StepKind::Loop,
            Some(Kind::Mapped { mapping, .. }) => match mapping.clone() {
                Mapping::Volume { group, volume } => StepKind::Volume { group, volume },
                Mapping::Encrypted => StepKind::Encrypted,
                Mapping::Multipath => StepKind::Multipath,
                Mapping::Partition { .. } => StepKind::Partition,
                Mapping::Other => StepKind::Mapped,
            },
            _ => StepKind::Other,
        };
        Step { label: self.label(store), kind }
    }

    /// A store and what has its very bytes without being a use: partitions and loop devices that nothing was made of.
    fn parts(&self, store: Store) -> Vec<(Vec<Step>, &Device)> {
        let starts = [store];
        let tree = Tree::grow(self, &starts, |next| self.holds(next));
        let devices = tree.order.iter().filter_map(|store| match store {
            Store::Device(number) => self.devices.get(number),
            Store::File(_) => None,
        });
        let free = devices.filter(|device| {
            let store = Store::Device(device.number);
            self.fact(store).is_none() && device.holders.is_empty()
        });
        free.map(|device| (tree.steps(self, Store::Device(device.number)), device)).collect()
    }
}

/// What lies on some stores, nearest first, and how each was reached.
struct Tree {
    order: Vec<Store>,
    /// What each store was first reached from.
    from: BTreeMap<Store, Store>,
    /// Everything each store lies on.
    below: BTreeMap<Store, Vec<Store>>,
}

impl Tree {
    fn grow(blocks: &Blocks, starts: &[Store], barred: impl Fn(Store) -> bool) -> Self {
        let mut tree =
            Self { order: starts.to_vec(), from: BTreeMap::new(), below: BTreeMap::new() };
        let mut reached: BTreeSet<Store> = starts.iter().copied().collect();
        let mut todo: VecDeque<Store> = starts.iter().copied().collect();
        while let Some(store) = todo.pop_front() {
            for next in blocks.over(store).into_iter().filter(|next| !barred(*next)) {
                tree.below.entry(next).or_default().push(store);
                if reached.insert(next) {
                    tree.from.insert(next, store);
                    tree.order.push(next);
                    todo.push_back(next);
                }
            }
        }
        tree
    }

    fn steps(&self, blocks: &Blocks, store: Store) -> Vec<Step> {
        let mut steps = Vec::new();
        let mut at = store;
        while let Some(from) = self.from.get(&at) {
            steps.push(blocks.step(at));
            at = *from;
        }
        steps.reverse();
        steps
    }

    /// Marks a store and all in the tree that it lies on.
    fn mark_below(&self, store: Store, marked: &mut BTreeSet<Store>) {
        let mut todo = vec![store];
        while let Some(store) = todo.pop() {
            if marked.insert(store) {
                todo.extend(self.below.get(&store).into_iter().flatten());
            }
        }
    }

    fn lies_on(&self, store: Store, some: &BTreeSet<Store>) -> bool {
        let mut at = store;
        while let Some(from) = self.from.get(&at) {
            if some.contains(from) {
                return true;
            }
            at = *from;
        }
        false
    }
}

impl Use {
    /// Whether a guest that only reads has nothing to fear, and nothing to see but what all may: an image that is looked into.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        match &self.fact {
            Fact::MountedReadOnly(_) => true,
            Fact::Expected(expected) => expected.is_read_only(),
            _ => false,
        }
    }

    fn is_in_group(&self, wanted: &str) -> bool {
        self.steps
            .iter()
            .any(|step| matches!(&step.kind, StepKind::Volume { group, .. } if group == wanted))
    }

    /// The devices between the store and the last step.
    fn ways(&self) -> String {
        let between = self.steps.len().saturating_sub(1);
        let mut labels: Vec<&str> =
            self.steps[..between].iter().take(NAMED_MAX).map(|step| step.label.as_str()).collect();
        if between > NAMED_MAX {
            labels.push("more");
        }
        match labels.split_last() {
            None => String::new(),
            Some((last, [])) => format!(" by way of {last}"),
            Some((last, others)) => format!(" by way of {} and {last}", others.join(", ")),
        }
    }
}

impl fmt::Display for Use {
    /// One clause: `it is mounted at /home`, `md0 is built on it, which is mounted at /`.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (fact, ways) = (&self.fact, self.ways());
        let it = match &self.whole {
            Some(whole) => format!("{whole}, the disk it is a part of"),
            None => "it".to_owned(),
        };
        let Some(Step { label, kind }) = self.steps.last() else {
            let comma = if self.whole.is_some() { "," } else { "" };
            return write!(out, "{it}{comma} {fact}");
        };
        let whose = match kind {
            StepKind::Partition => return write!(out, "its partition {label}{ways} {fact}"),
            StepKind::Mapped if *fact == Fact::Held => {
                return write!(out, "{it} is open through device-mapper name {label}{ways}");
            }
            StepKind::Volume { group, volume } => {
                write!(out, "volume group {group} (LVM) lies on {it}{ways}")?;
                format!("whose volume {volume}")
            }
            StepKind::Raid => {
                write!(out, "{label} is built on {it}{ways}")?;
                "which".to_owned()
            }
            StepKind::Loop => {
                write!(out, "{label} is attached to {it}{ways}")?;
                "which".to_owned()
            }
            StepKind::Encrypted | StepKind::Multipath | StepKind::Mapped | StepKind::Other => {
                write!(out, "{}{label} lies on {it}{ways}", kind.noun())?;
                "which".to_owned()
            }
        };
        match fact {
            Fact::Held => Ok(()),
            _ => write!(out, ", {whose} {fact}"),
        }
    }
}

impl StepKind {
    fn noun(&self) -> &'static str {
        match self {
            Self::Encrypted => "the encrypted volume ",
            Self::Multipath => "the multipath volume ",
            Self::Mapped => "the device-mapper volume ",
            _ => "",
        }
    }
}

impl fmt::Display for Fact {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mounted(at) => write!(out, "is mounted at {}", names::shown(at)),
            Self::MountedReadOnly(at) => {
                write!(out, "is mounted read-only at {}", names::shown(at))
            }
            Self::Swap => out.write_str("is swap space"),
            Self::Btrfs(Some(at)) => {
                write!(out, "is a member of the btrfs file system mounted at {}", names::shown(at))
            }
            Self::Btrfs(None) => out.write_str("is a member of a btrfs file system in use"),
            Self::Journal => out.write_str("is the journal of a mounted file system"),
            Self::Expected(expected) => expected.fmt(out),
            Self::Boot(boot) => boot.fmt(out),
            Self::Held => out.write_str("is in use"),
            Self::Claimed => {
                out.write_str("is kept by another program, or by the kernel, for itself alone")
            }
            Self::Signature(signature) => signature.fmt(out),
            Self::Silent => out.write_str("does not answer, so nobody knows what it holds"),
        }
    }
}
