//! Rules of `block` that hold for every host: random hosts against the rule said in a few lines, random bytes in any file,
//! and the time that reading may take.

mod tree;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use hpvm_host::block::{Blocks, Store};
use proptest::prelude::*;
use tree::Tree;

/// A device of a random host, over those made before it.
#[derive(Clone, Debug)]
enum Made {
    Disk,
    Partition { of: usize },
    Raid { over: BTreeSet<usize> },
}

/// A random host, which of its devices are mounted, which are in /etc/fstab, and of which partitions a machine may start.
#[derive(Clone, Debug)]
struct Host {
    made: Vec<Made>,
    mounted: Vec<bool>,
    expected: Vec<bool>,
    boots: Vec<bool>,
}

fn host() -> impl Strategy<Value = Host> {
    let one = (0_u8..3, any::<prop::sample::Index>(), any::<prop::sample::Index>(), 0_u8..10);
    prop::collection::vec(one, 1..9).prop_map(|drawn| {
        let mut host =
            Host { made: Vec::new(), mounted: Vec::new(), expected: Vec::new(), boots: Vec::new() };
        for (kind, first, second, said) in drawn {
            let count = host.made.len();
            let made = match kind {
                _ if count == 0 => Made::Disk,
                0 => Made::Disk,
                1 => match first.index(count) {
                    // Partitions have no partitions.
                    of if matches!(host.made[of], Made::Partition { .. }) => Made::Disk,
                    of => Made::Partition { of },
                },
                _ => Made::Raid { over: [first.index(count), second.index(count)].into() },
            };
            host.boots.push(matches!(made, Made::Partition { .. }) && (2..6).contains(&said));
            host.made.push(made);
            host.mounted.push(said == 0);
            host.expected.push(said == 1);
        }
        host
    })
}

impl Host {
    fn under(&self, device: usize) -> BTreeSet<usize> {
        match &self.made[device] {
            Made::Disk => BTreeSet::new(),
            Made::Partition { of } => [*of].into(),
            Made::Raid { over } => over.clone(),
        }
    }

    fn all_under(&self, device: usize) -> BTreeSet<usize> {
        let mut all = self.under(device);
        for under in self.under(device) {
            all.extend(self.all_under(under));
        }
        all
    }

    /// Mounted or to be mounted, or made of something.
    fn counts(&self, device: usize) -> bool {
        let is_kept = self.mounted[device] || self.expected[device];
        is_kept || matches!(self.made[device], Made::Raid { .. })
    }

    fn on(&self, device: usize) -> impl Iterator<Item = usize> {
        (0..self.made.len()).filter(move |on| self.all_under(*on).contains(&device))
    }

    /// The rule for what machines are started from: another partition of its disk, or what lies on it, counts.
    fn boots_host(&self, device: usize) -> bool {
        let Made::Partition { of } = self.made[device] else { return false };
        let is_beside = |other: &usize| {
            *other != device
                && matches!(self.made[*other], Made::Partition { of: disk } if disk == of)
        };
        let mut beside = (0..self.made.len()).filter(is_beside);
        self.boots[device]
            && beside.any(|other| {
                self.mounted[other]
                    || self.expected[other]
                    || self.on(other).any(|on| self.counts(on))
            })
    }

    /// The rule: mounted or to be mounted, or something on it is, or something was made of it; and for a partition, its disk as
    /// a whole. The host starts from it, or from something on it.
    fn is_used(&self, device: usize) -> bool {
        let whole = match self.made[device] {
            Made::Partition { of } => {
                let held =
                    |on: usize| matches!(&self.made[on], Made::Raid { over } if over.contains(&of));
                self.mounted[of] || self.expected[of] || (0..self.made.len()).any(held)
            }
            _ => false,
        };
        let is_kept = |device: usize| {
            self.mounted[device] || self.expected[device] || self.boots_host(device)
        };
        is_kept(device) || self.on(device).any(|on| self.counts(on) || is_kept(on)) || whole
    }

    fn tree(&self) -> Tree {
        let mut tree = Tree::new();
        for (number, made) in self.made.iter().enumerate() {
            match made {
                Made::Disk => tree.disk(&name(self, number)),
                Made::Partition { of } => {
                    let number_of = u32::try_from(number).expect("small");
                    tree.partition(&name(self, *of), number_of, &name(self, number));
                }
                Made::Raid { over } => {
                    let over: Vec<String> = over.iter().map(|under| name(self, *under)).collect();
                    let over: Vec<&str> = over.iter().map(String::as_str).collect();
                    tree.raid(&name(self, number), &over);
                }
            }
            if self.mounted[number] {
                tree.mount(&name(self, number), "/x");
            }
            if self.expected[number] {
                tree.expects(&format!("/dev/{} /x ext4 noauto", name(self, number)));
            }
            if self.boots[number] {
                tree.partition_type(&name(self, number), "c12a7328-f81f-11d2-ba4b-00a0c93ec93b");
            }
        }
        tree
    }
}

fn name(host: &Host, device: usize) -> String {
    match host.made[device] {
        Made::Disk => format!("vd{}", char::from(b'a' + u8::try_from(device).expect("small"))),
        Made::Partition { of } => format!("{}p{device}", name(host, of)),
        Made::Raid { .. } => format!("md{device}"),
    }
}

/// Every plain file of a tree, links left alone.
fn files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder").flatten() {
        let kind = entry.file_type().expect("a kind");
        if kind.is_dir() {
            files(&entry.path(), found);
        } else if kind.is_file() {
            found.push(entry.path());
        }
    }
}

fn ask_everything(tree: &Tree, blocks: &Blocks) {
    let stores: Vec<Store> = tree.names().iter().map(|name| tree.store(name)).collect();
    for one in &stores {
        assert!(!blocks.lineage(*one).under.contains(one), "a device under itself");
        for found in blocks.uses(*one) {
            assert!(!found.to_string().contains(char::is_control), "{found:?}");
        }
        for other in &stores {
            assert_eq!(blocks.overlap(*one, *other), blocks.overlap(*other, *one));
        }
    }
}

/// A host with a bit of everything.
fn varied() -> Tree {
    let mut tree = Tree::new();
    for disk in ["sda", "sdb"] {
        tree.disk(disk);
        tree.value(disk, "device/wwid", "naa.1");
        tree.partition(disk, 1, &format!("{disk}1"));
    }
    tree.mapped("dm-0", "mpatha", "mpath-1", &["sda", "sdb"]);
    tree.mapped("dm-1", "mpatha1", "part1-mpath-1", &["dm-0"]);
    tree.raid("md0", &["dm-1"]);
    tree.mapped("dm-2", "vg-root", "LVM-1", &["md0"]);
    tree.file_on("/image", "dm-2");
    tree.attached("loop0", "/image");
    tree.attached("loop1", "/dev/sda");
    tree.partition("loop1", 1, "loop1p1");
    tree.attached("loop2", "/dev/loop1p1");
    tree.mapped("dm-3", "x", "", &["loop2"]);
    tree.mount("dm-2", "/");
    tree.mount("loop0", "/mnt");
    tree.swap("/dev/sdb1");
    tree.expects("UUID=1 /boot/efi vfat noauto 0 0");
    tree.expects("/image /mnt ext4 loop 0 0");
    tree.partition_type("sda1", "c12a7328-f81f-11d2-ba4b-00a0c93ec93b");
    tree
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, failure_persistence: None, ..Default::default() })]

    #[test]
    fn a_device_is_used_just_when_the_rule_says_so(host in host()) {
        let tree = host.tree();
        let all = tree.read_all();
        for device in 0..host.made.len() {
            let (name, store) = (name(&host, device), tree.store(&name(&host, device)));
            let uses = all.uses(store);
            prop_assert_eq!(!uses.is_empty(), host.is_used(device), "{}: {:?}", name, uses);
            let around = tree.read_around(&[&format!("/dev/{name}")]);
            prop_assert_eq!(around.uses(store), uses, "{} read around", name);
        }
    }

    /// Nothing hides a use, and nothing makes one: neither loop devices nor what is made of one.
    #[test]
    fn what_leads_to_a_device_is_used_just_when_the_device_is(host in host(), picked in any::<prop::sample::Index>()) {
        let device = picked.index(host.made.len());
        let mut tree = host.tree();
        let mut ways = vec!["loop0", "loop1"];
        tree.attached("loop0", &format!("/dev/{}", name(&host, device)));
        tree.attached("loop1", "/dev/loop0");
        if let Made::Partition { of } = host.made[device] {
            tree.attached("loop2", &format!("/dev/{}", name(&host, of)));
            tree.partition("loop2", u32::try_from(device).expect("small"), "loop2p");
            ways.push("loop2p");
        }
        let lies_on = |one: usize, other| one == other || host.all_under(one).contains(&other);
        for way in &ways {
            let around = tree.read_around(&[&format!("/dev/{way}")]);
            let related = around.related(tree.store(way));
            prop_assert_eq!(!around.uses(tree.store(way)).is_empty(), host.is_used(device), "{}", way);
            for other in 0..host.made.len() {
                let found = related.contains(&tree.store(&name(&host, other)));
                let expected = lies_on(device, other) || lies_on(other, device);
                prop_assert_eq!(found, expected, "{} and {}", way, name(&host, other));
            }
        }
        tree.mapped("dm-0", "x", "", &ways[ways.len() - 1..]);
        let all = tree.read_all();
        for way in ways.iter().chain(&["dm-0"]) {
            let around = tree.read_around(&[&format!("/dev/{way}")]).uses(tree.store(way));
            let is_used = *way != "dm-0" || host.is_used(device);
            prop_assert_eq!(!around.is_empty(), is_used, "{} on {}", way, name(&host, device));
            prop_assert_eq!(around, all.uses(tree.store(way)), "{}", way);
        }
    }

    #[test]
    fn two_devices_overlap_just_when_one_lies_under_the_other(host in host()) {
        let tree = host.tree();
        let all = tree.read_all();
        for one in 0..host.made.len() {
            for other in 0..host.made.len() {
                let expected = one == other
                    || host.all_under(one).contains(&other)
                    || host.all_under(other).contains(&one);
                let names = [name(&host, one), name(&host, other)];
                let overlap = all.overlap(tree.store(&names[0]), tree.store(&names[1]));
                prop_assert_eq!(overlap, expected, "{:?}", names);
            }
        }
    }

    #[test]
    fn nonsense_in_any_file_is_no_panic(
        picked in prop::collection::vec((any::<prop::sample::Index>(), prop::collection::vec(any::<u8>(), 0..64)), 1..6),
    ) {
        let tree = varied();
        let places = tree.places();
        let mut all = Vec::new();
        files(tree.path(), &mut all);
        for (index, bytes) in picked {
            fs::write(&all[index.index(all.len())], bytes).expect("written");
        }
        ask_everything(&tree, &Blocks::read_all(&places));
        let starts = ["/dev/sda", "/dev/dm-0", "/dev/loop0", "/dev/dm-3", "/image"];
        let leads: Vec<_> =
            starts.iter().filter_map(|path| places.lead(Path::new(path)).ok()).collect();
        ask_everything(&tree, &Blocks::read_around(&places, &leads));
    }
}

/// The quickest of five, so that a busy machine does not decide.
fn quickest<T>(work: impl Fn() -> T) -> Duration {
    let times = (0..5).map(|_| {
        let start = Instant::now();
        work();
        start.elapsed()
    });
    times.min().expect("five times")
}

/// Four times what a release build is held to, for builds without optimization.
const SLACK: u32 = 4;

#[test]
fn a_thousand_devices_are_read_in_a_tenth_of_a_second_and_one_in_a_millisecond() {
    let tree = tree::large(400);
    let (places, lead) = (tree.places(), [tree.lead("/dev/sd7")]);
    assert_eq!(Blocks::read_all(&places).devices().count(), 1000);
    let time = quickest(|| Blocks::read_all(&places));
    assert!(time < Duration::from_millis(100) * SLACK, "all: {time:?}");
    assert!(Blocks::read_around(&places, &lead).devices().count() < 10);
    let time = quickest(|| Blocks::read_around(&places, &lead));
    assert!(time < Duration::from_millis(1) * SLACK, "one: {time:?}");
}
