//! Single frames over packet sockets at both ends of a pair.

use std::io::IoSlice;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use hpvm_host::nic;
use hpvm_netlab::{ip, pair};
use hpvm_vswitch::{OffloadHeader, PacketWire, Wire, WireFrame, WireSlot};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

const DEADLINE: Duration = Duration::from_secs(10);
/// For experiments (IEEE 802, clause 9.2.4): nothing of the kernel's own.
const ETHERTYPE: [u8; 2] = [0x88, 0xb5];

pub(crate) fn socket(name: &str) -> OwnedFd {
    let nic = nic::named(name).expect("told").expect("there");
    nic::wire::packets(&nic).expect("root of this network may")
}

/// A frame from nobody to everybody: with a tag, if it has one.
pub(crate) fn frame(tag: Option<[u8; 4]>, content: &[u8]) -> Vec<u8> {
    let mut frame = vec![0xff; 6];
    frame.extend([0x56, 9, 9, 9, 9, 9]);
    frame.extend(tag.iter().flatten());
    frame.extend(ETHERTYPE);
    frame.extend(content);
    frame.resize(frame.len().max(60), 0);
    frame
}

pub(crate) fn send(wire: &mut impl Wire, frames: &[Vec<u8>]) -> usize {
    let header = OffloadHeader::default().to_bytes();
    let parts: Vec<[IoSlice; 2]> =
        frames.iter().map(|frame| [IoSlice::new(&header), IoSlice::new(frame)]).collect();
    let frames: Vec<WireFrame> =
        parts.iter().map(|parts| WireFrame { parts, octets: parts[1].len() }).collect();
    wire.send(&frames).expect("the interface is there")
}

/// What comes until there are so many frames of ours: each with its tag. What the kernel says of itself is passed over.
pub(crate) fn receive(wire: &mut impl Wire, wanted: usize) -> Vec<(Vec<u8>, Option<u16>)> {
    let deadline = Instant::now() + DEADLINE;
    let mut slots: Vec<WireSlot> = (0..4).map(|_| WireSlot::new()).collect();
    let mut came = Vec::new();
    while came.len() < wanted {
        let rest = deadline.saturating_duration_since(Instant::now());
        assert!(!rest.is_zero(), "{} of {wanted} frames came", came.len());
        let rest = Timespec::try_from(rest).expect("a time");
        poll(&mut [PollFd::from_borrowed_fd(wire.descriptor(), PollFlags::IN)], Some(&rest))
            .expect("polled");
        let count = wire.receive(&mut slots).expect("the interface is there");
        let ours = slots[..count].iter().filter(|slot| {
            let frame = &slot.filled()[OffloadHeader::BYTES..];
            frame[6..12] == [0x56, 9, 9, 9, 9, 9]
        });
        came.extend(ours.map(|slot| (slot.filled()[OffloadHeader::BYTES..].to_vec(), slot.tag())));
    }
    came
}

pub(crate) fn tags() {
    pair("tag0", "tag1");
    let (mut one, mut other) = (PacketWire::new(socket("tag0")), PacketWire::new(socket("tag1")));
    // VLAN 42 with priority 5, then none.
    let tagged = frame(Some([0x81, 0x00, 0xa0, 42]), b"tagged");
    let bare = frame(None, b"bare");
    assert_eq!(send(&mut one, &[tagged.clone(), bare.clone()]), 2);
    let came = receive(&mut other, 2);
    let mut untagged = tagged.clone();
    untagged.drain(12..16);
    assert_eq!(came, [(untagged, Some(0xa02a)), (bare, None)]);
}

pub(crate) fn foreign_tags() {
    pair("ad0", "ad1");
    let (mut one, mut other) = (PacketWire::new(socket("ad0")), PacketWire::new(socket("ad1")));
    let tagged = frame(Some([0x88, 0xa8, 0x00, 7]), b"a provider's");
    assert_eq!(send(&mut one, std::slice::from_ref(&tagged)), 1);
    assert_eq!(receive(&mut other, 1), [(tagged, None)]);
}

/// Nothing that leaves by an interface is heard at it: neither from this socket nor from the host.
pub(crate) fn own_frames() {
    pair("own0", "own1");
    let (mut one, mut other) = (PacketWire::new(socket("own0")), PacketWire::new(socket("own1")));
    let mut host = PacketWire::new(socket("own0"));
    send(&mut one, &[frame(None, b"the switch's")]);
    send(&mut host, &[frame(None, b"the host's")]);
    send(&mut other, &[frame(None, b"from outside")]);
    assert_eq!(receive(&mut other, 2).len(), 2, "both leave");
    assert_eq!(receive(&mut one, 1)[0].0, frame(None, b"from outside"));
}

pub(crate) fn too_long() {
    pair("long0", "long1");
    ip("link set long1 mtu 1500");
    let (mut one, mut other) = (PacketWire::new(socket("long0")), PacketWire::new(socket("long1")));
    let frames = [frame(None, b"first"), frame(None, &[7; 3000]), frame(None, b"last")];
    assert_eq!(send(&mut one, &frames), 2);
    let came = receive(&mut other, 2);
    assert_eq!(came, [(frames[0].clone(), None), (frames[2].clone(), None)]);
    let largest = frame(Some([0x81, 0x00, 0x00, 42]), &[7; 1500]);
    assert_eq!(send(&mut one, std::slice::from_ref(&largest)), 1, "a tag is not counted");
    assert_eq!(receive(&mut other, 1)[0].0.len(), largest.len() - 4);
}
