//! Every counter against traffic of a known kind, captures and mirrors, and the wire as a test holds it.

use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixDatagram;

use hpvm_model::{PortRules, SpoofGuard};
use hpvm_vswitch::{
    Capture, CaptureId, Counters, Discards, Event, OffloadHeader, Offloads, Wire, WireFrame,
    WireOptions, WireSlot,
};

use crate::guest::{Driver, Guest};
use crate::net::{BROADCAST, Net, frame, mac, open_rules, port};

/// Where a wire has the tags of frames that come from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tags {
    Within,
    /// As a packet socket has them.
    Beside,
}

/// A wire whose far end is a datagram socket: one datagram is a header and a frame.
pub(crate) struct Datagrams(UnixDatagram, Tags);

impl Datagrams {
    pub(crate) fn attach(net: &Net) -> UnixDatagram {
        Datagrams::attach_with(net, Tags::Within)
    }

    pub(crate) fn attach_with(net: &Net, tags: Tags) -> UnixDatagram {
        let (near, far) = UnixDatagram::pair().expect("a pair of sockets");
        near.set_nonblocking(true).expect("a flag");
        far.set_read_timeout(Some(crate::guest::PATIENCE)).expect("a timeout");
        let wire = WireOptions::Device(Box::new(Datagrams(near, tags)));
        net.switch.attach_wire(wire).expect("a wire");
        far
    }
}

impl Wire for Datagrams {
    fn descriptor(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    fn offloads(&self) -> Offloads {
        Offloads::all()
    }

    fn receive(&mut self, slots: &mut [WireSlot]) -> io::Result<usize> {
        for (count, slot) in slots.iter_mut().enumerate() {
            match self.0.recv(slot.buffer()) {
                Ok(bytes) => match self.1 {
                    Tags::Within => slot.fill(bytes, None),
                    Tags::Beside => take_tag_out(slot, bytes),
                },
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(count),
                Err(error) => return Err(error),
            }
        }
        Ok(slots.len())
    }

    fn send(&mut self, frames: &[WireFrame<'_>]) -> io::Result<usize> {
        for (count, frame) in frames.iter().enumerate() {
            let bytes: Vec<u8> = frame.parts.iter().flat_map(|part| part.iter().copied()).collect();
            assert_eq!(bytes.len(), OffloadHeader::BYTES + frame.octets);
            if self.0.send(&bytes).is_err() {
                return Ok(count);
            }
        }
        Ok(frames.len())
    }
}

/// Does as a kernel does with a frame that has a tag: what its header says is true of what is left.
fn take_tag_out(slot: &mut WireSlot, bytes: usize) {
    const AT: usize = OffloadHeader::BYTES + 12;
    let buffer = slot.buffer();
    if bytes < AT + 4 || buffer[AT..AT + 2] != [0x81, 0x00] {
        return slot.fill(bytes, None);
    }
    let tag = u16::from_be_bytes([buffer[AT + 2], buffer[AT + 3]]);
    buffer.copy_within(AT + 4..bytes, AT);
    for (word, is_there) in [(2, buffer[1] != 0), (6, buffer[0] & 1 != 0)] {
        let place = u16::from_le_bytes([buffer[word], buffer[word + 1]]);
        let place = if is_there { place - 4 } else { place };
        buffer[word..word + 2].copy_from_slice(&place.to_le_bytes());
    }
    slot.fill(bytes - 4, Some(tag));
}

/// What the far end of a wire got: header and frame.
pub(crate) fn from_wire(far: &UnixDatagram) -> (OffloadHeader, Vec<u8>) {
    let mut bytes = vec![0; 70_000];
    let length = far.recv(&mut bytes).expect("a frame on the wire");
    let header = OffloadHeader::from_bytes(bytes[..10].try_into().expect("a header"));
    (header, bytes[10..length].to_vec())
}

pub(crate) fn to_wire(far: &UnixDatagram, frame: &[u8]) {
    let mut bytes = vec![0; OffloadHeader::BYTES];
    bytes.extend(frame);
    far.send(&bytes).expect("the wire takes it");
}

/// Frames of every kind between two ports and a station beyond the wire.
fn traffic(far: &UnixDatagram, first: &mut Guest, second: &mut Guest) {
    let station = [0x02, 7, 7, 7, 7, 7];
    // The wire's station is known from its first frame, which is for many and reaches both.
    to_wire(far, &frame(BROADCAST, station, 100, 0));
    first.receive();
    second.receive();
    to_wire(far, &frame([0x01, 0, 0x5e, 0, 0, 1], station, 110, 0));
    first.receive();
    second.receive();
    second.send(&frame(mac(1), mac(2), 200, 0));
    first.receive();
    second.send(&frame(BROADCAST, mac(2), 210, 0));
    first.receive();
    from_wire(far);
    from_wire(far);
    first.send(&frame(mac(2), mac(1), 300, 0));
    second.receive();
    first.send(&frame(station, mac(1), 310, 0));
    from_wire(far);
    to_wire(far, &frame(mac(1), station, 120, 0));
    first.receive();
    first.send(&frame(BROADCAST, mac(1), 320, 0));
    second.receive();
    from_wire(far);
}

/// Another's address, a tag, a header with a checksum beyond the frame, a frame to oneself, one to the link.
fn send_what_goes_nowhere(first: &mut Guest) {
    first.send(&frame(mac(2), mac(9), 60, 0));
    let mut tagged = frame(mac(2), mac(1), 64, 0);
    tagged[12..16].copy_from_slice(&[0x81, 0, 0, 5]);
    first.send(&tagged);
    let beyond = OffloadHeader {
        flags: OffloadHeader::NEEDS_CHECKSUM,
        checksum_start: 50,
        checksum_offset: 16,
        ..OffloadHeader::default()
    };
    first.send_with(&beyond.to_bytes(), &frame(mac(2), mac(1), 60, 0));
    first.send(&frame(mac(1), mac(1), 60, 0));
    first.send(&frame([0x01, 0x80, 0xc2, 0, 0, 0x0e], mac(1), 60, 0));
    first.wait_until_sent();
}

#[test]
fn every_counter_counts_what_it_says() {
    let net = Net::new();
    let far = Datagrams::attach(&net);
    let guarded = PortRules { spoof_guard: SpoofGuard::On, ..PortRules::default() };
    let mut first = net.avio(1, guarded, Driver { receive_buffers: 8, ..Driver::LINUX });
    let mut second = net.avio(2, open_rules(), Driver::LINUX);
    traffic(&far, &mut first, &mut second);
    send_what_goes_nowhere(&mut first);
    let discards =
        Discards { spoofed: 1, vlan: 1, malformed: 1, filtered: 2, ..Discards::default() };
    let sent = 300 + 310 + 320 + 60 + 64 + 60 + 60;
    let wanted = Counters {
        in_octets: 100 + 110 + 200 + 210 + 120,
        in_unicast_wire: 1,
        in_unicast_local: 1,
        in_other_wire: 2,
        in_other_local: 1,
        out_octets: sent,
        out_unicast_wire: 1,
        out_unicast_local: 1,
        out_other: 1,
        out_other_wire: 1,
        out_other_local: 1,
        out_discards: 5,
        discards,
        ..Counters::default()
    };
    net.wait_for_counters(1, &wanted);
    let beyond_the_wire = net.switch.wire_counters();
    assert_eq!(beyond_the_wire.out_other, 2);
    assert_eq!(beyond_the_wire.out_unicast_local, 1);
    assert_eq!(beyond_the_wire.in_octets, 200 + 210 + 310 + 320);
    assert_eq!((beyond_the_wire.in_unicast_local, beyond_the_wire.in_other_local), (2, 2));

    net.switch.clear_counters(port(1)).expect("cleared");
    net.wait_for_counters(1, &Counters::default());
    assert_ne!(net.counters(2), Counters::default());
}

/// Settles 4: for both kinds of ports what goes to many stations is counted apart, by whether it went beyond the wire, and whether
/// somebody on the switch was to get it; the counter of A.03.50 has each once.
#[test]
fn what_goes_to_many_counts_for_wire_and_switch() {
    let net = Net::new();
    let counted = |number: u16| {
        let Counters { out_other, out_other_wire, out_other_local, .. } = net.counters(number);
        (out_other, out_other_wire, out_other_local)
    };
    let settled = |number: u16, wanted: (u64, u64, u64)| {
        let deadline = std::time::Instant::now() + crate::guest::PATIENCE;
        while counted(number) != wanted {
            assert!(std::time::Instant::now() < deadline, "{:?}, not {wanted:?}", counted(number));
            std::thread::yield_now();
        }
    };
    let vlan = |text: &str| {
        let mut rules = open_rules();
        let change: hpvm_model::network::PortChange = text.parse().expect("a change");
        change.apply(&mut rules);
        rules
    };
    let mut avio = net.avio(1, open_rules(), Driver::LINUX);
    avio.send(&frame(BROADCAST, mac(1), 60, 0));
    settled(1, (1, 0, 0));
    let mut vio = net.vio(2, open_rules());
    vio.send(&frame(BROADCAST, mac(2), 60, 1));
    avio.receive();
    settled(2, (1, 0, 1));
    let far = Datagrams::attach(&net);
    vio.send(&frame([0x33, 0x33, 0, 0, 0, 1], mac(2), 60, 2));
    avio.receive();
    from_wire(&far);
    settled(2, (2, 1, 2));
    avio.send(&frame(BROADCAST, mac(1), 60, 3));
    from_wire(&far);
    settled(1, (2, 1, 1));
    // Alone in its VLAN, it has the wire alone.
    let mut apart = net.avio(3, vlan("portid:3:vlanid:7"), Driver::LINUX);
    apart.send(&frame(BROADCAST, mac(3), 60, 4));
    from_wire(&far);
    settled(3, (1, 1, 0));
}

#[test]
fn a_full_receiver_loses_frames_and_nobody_else_does() {
    let net = Net::new();
    let mut sender = net.avio(1, open_rules(), Driver::LINUX);
    let mut slow = net.avio(2, open_rules(), Driver { receive_buffers: 4, ..Driver::LINUX });
    let mut quick = net.avio(3, open_rules(), Driver::LINUX);
    let frames: Vec<Vec<u8>> = (0..10).map(|mark| frame(BROADCAST, mac(1), 60, mark)).collect();
    sender.send_all(&frames);
    for sent in &frames {
        assert_eq!(&quick.receive().frame, sent);
    }
    let wanted = Counters {
        in_octets: 4 * 60,
        in_other_local: 4,
        in_discards: 6,
        discards: Discards { no_room: 6, ..Discards::default() },
        ..Counters::default()
    };
    net.wait_for_counters(2, &wanted);
    for sent in &frames[..4] {
        assert_eq!(&slow.receive().frame, sent);
    }
}

#[test]
fn a_capture_holds_what_passed_the_port_both_ways() {
    let net = Net::new();
    let mut first = net.avio(1, open_rules(), Driver::LINUX);
    let mut second = net.avio(2, open_rules(), Driver::LINUX);
    let mut file = tempfile::tempfile().expect("a file");
    let copy: OwnedFd = file.try_clone().expect("a copy").into();
    let capture = Capture { file: copy, snap_bytes: 96 };
    let capture = net.switch.capture(port(1), capture).expect("a capture");
    let (there, back) = (frame(mac(2), mac(1), 70, 1), frame(mac(1), mac(2), 200, 2));
    first.send(&there);
    second.receive();
    second.send(&back);
    first.receive();
    net.switch.end_capture(port(1), capture).expect("its end");
    net.wait_for(&over(capture, None));
    let mut bytes = Vec::new();
    file.rewind().expect("its start");
    file.read_to_end(&mut bytes).expect("its content");
    let word = |at: usize| u32::from_ne_bytes(bytes[at..at + 4].try_into().expect("a word"));
    assert_eq!((word(0), word(16), word(20)), (0xa1b2_c3d4, 96, 1));
    assert_eq!((word(32), word(36)), (70, 70));
    assert_eq!(bytes[40..110], there);
    assert_eq!((word(118), word(122)), (96, 200));
    assert_eq!(bytes[126..], back[..96]);
}

fn over(capture: CaptureId, failure: Option<String>) -> Event {
    Event::CaptureOver { port: port(1), capture, lost: 0, failure }
}

#[test]
fn a_capture_is_ended_by_its_own_end_and_by_what_takes_its_place() {
    let net = Net::new();
    let mut first = net.avio(1, open_rules(), Driver::LINUX);
    let mut second = net.avio(2, open_rules(), Driver::LINUX);
    let file = tempfile::tempfile().expect("a file");
    let begin = |file: &File| {
        let file = file.try_clone().expect("a copy").into();
        let capture = Capture { file, snap_bytes: 96 };
        net.switch.capture(port(1), capture).expect("a capture")
    };
    let full = File::options().write(true).open("/dev/full").expect("a device");
    let failed = begin(&full);
    let why = io::Error::from_raw_os_error(28).to_string();
    net.wait_for(&over(failed, Some(why)));
    let [replaced, last] = [begin(&file), begin(&file)];
    net.wait_for(&over(replaced, None));
    for other in [failed, replaced] {
        net.switch.end_capture(port(1), other).expect("no end");
    }
    first.send(&frame(mac(2), mac(1), 70, 1));
    second.receive();
    first.wait_until_sent();
    net.switch.remove_port(port(1)).expect("removed");
    net.wait_for(&over(last, None));
    assert_eq!(file.metadata().expect("its length").len(), 2 * 24 + 16 + 70);
}

#[test]
fn a_mirror_gets_a_copy_of_each_frame_both_ways_and_nothing_of_its_own() {
    let net = Net::new();
    let mirrored = PortRules { mirror: Some(port(3)), ..open_rules() };
    let mut first = net.avio(1, mirrored, Driver::LINUX);
    let mut second = net.avio(2, open_rules(), Driver::LINUX);
    let mut third = net.avio(3, open_rules(), Driver::LINUX);
    second.send(&frame(BROADCAST, mac(2), 60, 0));
    first.receive();
    assert_eq!(third.receive().frame, third.receive().frame, "as everybody, and as mirror");
    first.send(&frame(mac(2), mac(1), 61, 1));
    second.receive();
    assert_eq!(third.receive().frame, frame(mac(2), mac(1), 61, 1));
    second.send(&frame(mac(1), mac(2), 62, 2));
    first.receive();
    assert_eq!(third.receive().frame, frame(mac(1), mac(2), 62, 2));
    third.send(&frame(mac(1), mac(3), 63, 3));
    assert_eq!(first.receive().frame, frame(mac(1), mac(3), 63, 3));
    second.send(&frame(mac(3), mac(2), 64, 4));
    assert_eq!(third.receive().frame, frame(mac(3), mac(2), 64, 4));
}

#[test]
fn a_wire_that_fails_is_told_of_and_another_can_be_attached() {
    struct Broken(UnixDatagram);
    impl Wire for Broken {
        fn descriptor(&self) -> BorrowedFd<'_> {
            self.0.as_fd()
        }
        fn offloads(&self) -> Offloads {
            Offloads::default()
        }
        fn receive(&mut self, _: &mut [WireSlot]) -> io::Result<usize> {
            Err(io::Error::from_raw_os_error(19))
        }
        fn send(&mut self, frames: &[WireFrame<'_>]) -> io::Result<usize> {
            Ok(frames.len())
        }
    }
    let net = Net::new();
    let (near, _far) = UnixDatagram::pair().expect("a pair of sockets");
    let _ = net.switch.attach_wire(WireOptions::Device(Box::new(Broken(near))));
    net.wait_until("lost wire", |event| matches!(event, hpvm_vswitch::Event::WireLost { .. }));
    let far = Datagrams::attach(&net);
    let mut guest = net.avio(1, open_rules(), Driver::LINUX);
    guest.send(&frame(BROADCAST, mac(1), 60, 1));
    assert_eq!(from_wire(&far).1, frame(BROADCAST, mac(1), 60, 1));
}
