//! What `block` learns by looking at a device's content, and by asking the kernel for it: signatures and claims.

mod tree;

use std::collections::BTreeMap;

use hpvm_host::block::{
    Blocks, Device, DeviceProbe, Fact, Medium, Places, Probe, ProbeError, Signature, Store, Use,
};
use tree::{Tree, plain};

/// Contents by device name, as pieces at offsets; everything else is zero.
#[derive(Default)]
struct Pieces {
    pieces: BTreeMap<String, Vec<(u64, Vec<u8>)>>,
    claimed: Vec<&'static str>,
    silent: Vec<&'static str>,
}

impl Pieces {
    fn put(&mut self, device: &str, offset: u64, bytes: &[u8]) {
        self.pieces.entry(device.to_owned()).or_default().push((offset, bytes.to_vec()));
    }
}

impl Probe for Pieces {
    fn read(&self, device: &Device, offset: u64, length: usize) -> Result<Vec<u8>, ProbeError> {
        if self.silent.contains(&device.name.as_str()) {
            return Err(ProbeError::Silent);
        }
        assert!(offset + length as u64 <= device.size_bytes, "read beyond the end");
        let mut bytes = vec![0; length];
        for (at, piece) in self.pieces.get(&device.name).into_iter().flatten() {
            for (index, byte) in piece.iter().enumerate() {
                let place = (at + index as u64).checked_sub(offset);
                let place = place.and_then(|place| usize::try_from(place).ok());
                if let Some(slot) = place.and_then(|place| bytes.get_mut(place)) {
                    *slot = *byte;
                }
            }
        }
        Ok(bytes)
    }

    fn is_claimed(&self, device: &Device) -> bool {
        self.claimed.contains(&device.name.as_str())
    }
}

const MIB: u64 = 1 << 20;

/// Bytes at an offset.
type Piece = (u64, Vec<u8>);

/// What makes each sign, on a disk of 64 MiB and three pages: its end is no round number.
fn signs() -> Vec<(&'static str, Piece, Signature)> {
    let end = 64 * MIB + 12 * 1024;
    let md = |sector: u64| {
        let mut block = vec![0; 256];
        block[..4].copy_from_slice(&0xa92b_4efc_u32.to_le_bytes());
        block[4] = 1;
        block[128..136].copy_from_slice(&sector.to_le_bytes());
        block
    };
    let mut lvm = b"LABELONE".to_vec();
    lvm.extend(1_u64.to_le_bytes());
    lvm.extend([0; 8]);
    lvm.extend(b"LVM2 001");
    let md_0 = [0xfc, 0x4e, 0x2b, 0xa9, 0, 0, 0, 0].to_vec();
    let bcache = vec![
        0xc6, 0x85, 0x73, 0xf6, 0x4e, 0x1a, 0x45, 0xca, 0x82, 0x65, 0xf5, 0x7f, 0x48, 0xba, 0x6d,
        0x81,
    ];
    let zfs = 0x00ba_b10c_u64;
    let sector_1_0 = end / 512 - 16;
    assert_eq!(sector_1_0 % 8, 0);
    let label = 256 * 1024;
    let last_label = end / label * label - label;
    let luks = |version: u8| [b"LUKS\xba\xbe\0".as_slice(), &[version]].concat();
    vec![
        ("LVM2", (512, lvm), Signature::Lvm),
        ("md 1.1", (0, md(0)), Signature::Raid),
        ("md 1.2", (4096, md(8)), Signature::Raid),
        ("md 1.0", (sector_1_0 * 512, md(sector_1_0)), Signature::Raid),
        ("md 0.90", (64 * MIB - 64 * 1024, md_0), Signature::Raid),
        ("Intel", (end - 1024, b"Intel Raid ISM Cfg Sig. 1".to_vec()), Signature::FirmwareRaid),
        ("DDF", (end - 512, vec![0xde, 0x11, 0xde, 0x11]), Signature::FirmwareRaid),
        ("LUKS1", (0, luks(1)), Signature::Luks { version: 1 }),
        ("LUKS2", (0, luks(2)), Signature::Luks { version: 2 }),
        ("btrfs", (65_600, b"_BHRfS_M".to_vec()), Signature::Btrfs),
        ("ZFS", (128 * 1024 + 4096, zfs.to_le_bytes().to_vec()), Signature::Zfs),
        ("ZFS at the end", (last_label + 128 * 1024, zfs.to_be_bytes().to_vec()), Signature::Zfs),
        ("swap", (4086, b"SWAPSPACE2".to_vec()), Signature::Swap),
        ("swap, 64 KiB pages", (65_526, b"SWAPSPACE2".to_vec()), Signature::Swap),
        ("bcache", (4096 + 24, bcache), Signature::Bcache),
        ("Ceph", (0, b"bluestore block device\n".to_vec()), Signature::Ceph),
    ]
}

#[test]
fn every_signature_is_found_where_it_lies_and_not_a_byte_beside() {
    let mut tree = Tree::new();
    tree.disk("sda");
    tree.value("sda", "size", &((64 * MIB + 12 * 1024) / 512).to_string());
    let blocks = tree.read_all();
    let read = |(at, bytes): &Piece, shift: u64| {
        let mut probe = Pieces::default();
        probe.put("sda", at + shift, bytes);
        blocks.signatures(tree.store("sda"), &probe)
    };
    for (name, piece, signature) in signs() {
        let found = read(&piece, 0);
        let texts: Vec<String> = found.iter().map(ToString::to_string).collect();
        assert_eq!(texts, [format!("it {signature}")], "{name}");
        assert_eq!(read(&piece, 1), [], "{name}, one byte further");
    }
}

#[test]
fn signatures_of_free_partitions_speak_for_their_disk() {
    let mut tree = plain();
    let mut probe = Pieces::default();
    probe.put("sda1", 0, b"LUKS\xba\xbe\0\x02");
    probe.put("sda2", 4086, b"SWAPSPACE2");
    let blocks = tree.read_all();
    let found = blocks.signatures(tree.store("sda"), &probe);
    let texts: Vec<String> = found.iter().map(ToString::to_string).collect();
    assert_eq!(texts, ["its partition sda2 holds swap space"], "sda1 is mounted and not read");
    tree.mapped("dm-0", "x", "", &["sda2"]);
    assert_eq!(tree.read_all().signatures(tree.store("sda"), &probe), [], "nor what is held");
}

#[test]
fn a_device_that_does_not_answer_is_told() {
    let tree = plain();
    let probe = Pieces { silent: vec!["sda2"], ..Pieces::default() };
    let found = tree.read_all().signatures(tree.store("sda2"), &probe);
    assert_eq!(found[0].to_string(), "it does not answer, so nobody knows what it holds");
}

#[test]
fn a_claim_that_nobody_explains_is_told() {
    let tree = plain();
    let probe = Pieces { claimed: vec!["sda", "sda2"], ..Pieces::default() };
    let blocks = tree.read_all();
    let texts = |device: &str| -> Vec<String> {
        blocks.claims(tree.store(device), &probe).iter().map(ToString::to_string).collect()
    };
    let kept = "is kept by another program, or by the kernel, for itself alone";
    assert_eq!(texts("sda"), [format!("its partition sda2 {kept}")]);
    assert_eq!(texts("sda2"), [format!("it {kept}")]);
    assert_eq!(texts("sda3"), [""; 0]);
}

#[test]
fn what_this_machine_mounts_is_claimed_where_it_may_be_asked() {
    let places = Places::default();
    let (blocks, probe) = (Blocks::read_all(&places), DeviceProbe::new(&places));
    for device in blocks.devices().filter(|device| device.medium == Medium::Fixed) {
        let may_ask = std::fs::File::open(places.dev.join(device.kernel_name())).is_ok();
        let uses = blocks.uses(Store::Device(device.number));
        let is_mounted =
            |found: &Use| found.steps.is_empty() && matches!(found.fact, Fact::Mounted(_));
        if may_ask && uses.iter().any(is_mounted) {
            assert!(probe.is_claimed(device), "{}", device.name);
            assert_eq!(probe.read(device, 0, 512).expect("read").len(), 512);
        }
    }
}

#[test]
fn a_node_that_is_another_device_is_not_read() {
    let tree = plain();
    let places = tree.places();
    std::fs::create_dir(&places.dev).expect("made");
    std::fs::write(places.dev.join("sda2"), [0; 4096]).expect("written");
    let blocks = tree.read_all();
    let device = blocks.device(tree.number("sda2")).expect("read");
    let probe = DeviceProbe::new(&places);
    assert!(matches!(probe.read(device, 0, 512), Err(ProbeError::Failed(_))));
    assert!(!probe.is_claimed(device));
    assert_eq!(blocks.signatures(tree.store("sda2"), &probe), []);
}
