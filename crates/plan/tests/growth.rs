//! Which disks of a running guest are offered more, and that none is ever offered less.

mod common;

use std::collections::BTreeMap;

use common::{attached, guest, host, record, regular};
use hpvm_model::Severity;
use hpvm_plan::facts::{
    BlockFact, BlockKind, FileFact, FileIdentity, HostFacts, Reservations, Writable,
};
use hpvm_plan::growth::{Growth, growth, node_bytes};
use hpvm_plan::hotplug::When;
use hpvm_plan::record::{DeviceChange, Machine};
use proptest::prelude::*;

const MIB: u64 = 1 << 20;

/// What comes of naming the only disk, when the guest sees `shown` bytes of it and its store is as `fact` says.
fn named(statement: &str, shown: u64, fact: FileFact) -> Growth {
    let config = guest(&[statement]);
    let mut machine = Machine::new(record(&config));
    let identity = FileIdentity { device: 1, inode: 5 };
    machine.storage = vec![attached(&config.storage[0], Some(identity))];
    let mut facts: HostFacts = host(&config);
    facts.files.insert(config.storage[0].backing.path.clone(), fact);
    let address = config.storage[0].address;
    growth(&machine, &config, &[address], &facts, &BTreeMap::from([(address, shown)]))
}

fn offered(growth: &Growth) -> Option<u64> {
    growth.planned.iter().find_map(|planned| match &planned.when {
        When::Now(DeviceChange::Grow { bytes, .. }) => Some(*bytes),
        _ => None,
    })
}

#[test]
fn a_longer_store_is_offered() {
    let grown = named("disk:avio_stor:0,0,0:file:/a", 8 * MIB, regular(5, 16 * MIB));
    assert_eq!(offered(&grown), Some(16 * MIB));
    assert_eq!((grown.fields[0].from.as_str(), grown.fields[0].to.as_str()), ("8 MB", "16 MB"));
    assert!(grown.problems.is_empty() && grown.notes.is_empty());
    let emulated = named("disk:scsi:0,0,0:file:/a", 8 * MIB, regular(5, 16 * MIB));
    assert!(emulated.notes[0].contains("rescan"), "{:?}", emulated.notes);
    let volume = FileFact::Block(BlockFact {
        identity: FileIdentity { device: 1, inode: 5 },
        size: hpvm_model::Bytes(16 * MIB),
        writable: Writable::Yes,
        kind: BlockKind::Volume,
        reservations: Reservations::Never,
    });
    let grown = named("disk:avio_stor:0,0,0:lv:/dev/vg/l", 8 * MIB, volume);
    assert_eq!(offered(&grown), Some(16 * MIB));
}

#[test]
fn what_cannot_be_offered_is_a_warning_and_nothing_is_done() {
    let disk = "disk:avio_stor:0,0,0:file:/a";
    for (fact, words) in [
        (regular(5, 4 * MIB), "has become shorter than the disk at 0,0,0: 4 MB of 8 MB"),
        (regular(6, 16 * MIB), "is another file than the running guest has open"),
    ] {
        let growth = named(disk, 8 * MIB, fact);
        assert_eq!((growth.planned.len(), growth.fields.len()), (0, 0));
        assert_eq!(growth.problems[0].severity, Severity::Warning);
        assert!(growth.problems[0].text.contains(words), "{:?}", growth.problems);
    }
    for (statement, fact) in [
        (disk, regular(5, 8 * MIB)),
        (disk, FileFact::Missing),
        ("dvd:avio_stor:0,0,0:file:/a", regular(5, 16 * MIB)),
    ] {
        assert_eq!(named(statement, 8 * MIB, fact), Growth::default(), "{statement}");
    }
}

/// Its file grows as it is written, and nothing of that is offered; who asks is told what to do instead.
#[test]
fn an_image_is_made_larger_while_its_guest_is_off() {
    for length in [4, 8, 16] {
        let image = "disk:avio_stor:0,0,0:qcow2:/a";
        let growth = named(image, 8 * MIB, regular(5, length * MIB));
        assert_eq!((offered(&growth), growth.problems.len()), (None, 0));
        assert!(growth.notes[0].contains("has 8 MB, as its image says"), "{:?}", growth.notes);
        assert!(growth.notes[0].contains("`qemu-img resize /a SIZE`"), "{:?}", growth.notes);
    }
    let other = named("disk:avio_stor:0,0,0:qcow2:/a", 8 * MIB, regular(6, 8 * MIB));
    assert!(other.problems[0].text.contains("another file"), "{:?}", other.problems);
}

proptest! {
    #[test]
    fn a_disk_is_never_offered_less(shown in 0u64..1 << 40, store in 0u64..1 << 40) {
        let shown = node_bytes(shown);
        let growth = named("disk:scsi:0,0,0:file:/a", shown, regular(5, store));
        match offered(&growth) {
            Some(bytes) => prop_assert!(bytes > shown && bytes >= store && bytes - store < 512),
            None => prop_assert!(store <= shown),
        }
    }
}
