//! Frames find their way, in every form they can have, and never back.

use hpvm_model::{NicKind, SwitchState};
use hpvm_vswitch::{Counters, Event, MacOrigin, Place, PortLink};

use crate::guest::{
    Driver, EVENT_IDX, Guest, INDIRECT_DESC, LINUX, MRG_RXBUF, PROTOCOL_FEATURES, Shape, VERSION_1,
};
use crate::net::{BROADCAST, Net, frame, mac, open_rules, port};

#[test]
fn frames_pass_both_ways_at_every_length() {
    let net = Net::new();
    let mut first = net.avio(1, open_rules(), Driver::LINUX);
    let mut second = net.avio(2, open_rules(), Driver::LINUX);
    for bytes in [14, 15, 31, 32, 60, 64, 65, 127, 128, 129, 130, 1514, 1524, 1525, 9014, 65_553] {
        let sent = frame(mac(2), mac(1), bytes, bytes as u8);
        first.send(&sent);
        let received = second.receive();
        assert_eq!(received.frame, sent, "{bytes} bytes");
        assert_eq!(usize::from(received.buffers), (bytes + 12).div_ceil(1536), "{bytes} bytes");
        assert_eq!(received.header, [0; 10]);
        let back = frame(mac(1), mac(2), bytes, 0);
        second.send(&back);
        assert_eq!(first.receive().frame, back, "{bytes} bytes back");
    }
}

#[test]
fn every_shape_of_chain_and_every_driver_is_understood() {
    let basic = PROTOCOL_FEATURES | VERSION_1;
    let legacy = 0;
    let shapes = [
        Shape::One,
        Shape::HeaderApart,
        Shape::Pieces(5),
        Shape::Pieces(100),
        Shape::Indirect(7),
        Shape::Indirect(1000),
    ];
    for features in [legacy, basic, basic | EVENT_IDX, basic | MRG_RXBUF, MRG_RXBUF, LINUX] {
        for shape in shapes {
            let features = match shape {
                Shape::Indirect(_) => features | INDIRECT_DESC,
                _ => features,
            };
            let net = Net::new();
            let driver = Driver { features, shape, receive_buffer_bytes: 2048, ..Driver::LINUX };
            let mut sender = net.avio(1, open_rules(), driver);
            let mut receiver = net.avio(2, open_rules(), Driver { shape: Shape::One, ..driver });
            for bytes in [60, 128, 300, 700] {
                let sent = frame(mac(2), mac(1), bytes, 3);
                sender.send(&sent);
                let received = receiver.receive().frame;
                assert_eq!(received, sent, "{bytes} bytes, {shape:?}, features {features:#x}");
            }
        }
    }
}

#[test]
fn many_frames_keep_their_order_and_none_is_lost_while_there_is_room() {
    let net = Net::new();
    let mut first = net.avio(1, open_rules(), Driver::LINUX);
    let mut second = net.avio(2, open_rules(), Driver::LINUX);
    for round in 0..200u32 {
        let frames: Vec<Vec<u8>> = (0..150u32)
            .map(|index| {
                let mut frame = frame(mac(2), mac(1), 64 + index as usize, 0);
                frame[14..18].copy_from_slice(&(round * 150 + index).to_be_bytes());
                frame
            })
            .collect();
        first.send_all(&frames);
        for sent in &frames {
            assert_eq!(&second.receive().frame, sent);
        }
    }
    let octets = 200 * (64..64 + 150).sum::<u64>();
    let wanted = Counters { in_octets: octets, in_unicast_local: 30_000, ..Counters::default() };
    net.wait_for_counters(2, &wanted);
}

/// A frame to many stations reaches each once and its sender never: IPv6's duplicate address detection rests on it.
/// Settles 69.
#[test]
fn no_frame_returns_to_its_source_port() {
    let net = Net::new();
    let mut guests: Vec<Guest> =
        (1..=4).map(|number| net.avio(number, open_rules(), Driver::LINUX)).collect();
    let mut vio = net.vio(5, open_rules());
    let solicited = [0x33, 0x33, 0xff, 0, 0, 1];
    for to in [BROADCAST, solicited, mac(99)] {
        let sent = frame(to, mac(1), 86, 1);
        guests[0].send(&sent);
        for guest in &mut guests[1..] {
            assert_eq!(guest.receive().frame, sent);
        }
        assert_eq!(vio.receive(), sent);
    }
    // What comes next shows that nothing came before.
    let last = frame(mac(1), mac(2), 60, 9);
    guests[1].send(&last);
    assert_eq!(guests[0].receive_until(&last), Vec::<Vec<u8>>::new());
}

#[test]
fn stations_are_learned_and_their_moves_too() {
    let net = Net::new();
    let mut first = net.avio(1, open_rules(), Driver::LINUX);
    let mut second = net.avio(2, open_rules(), Driver::LINUX);
    let mut third = net.avio(3, open_rules(), Driver::LINUX);
    let station = [0x02, 9, 9, 9, 9, 9];
    for (from, place) in [(1, 1), (3, 3)] {
        let guest = if from == 1 { &mut first } else { &mut third };
        guest.send(&frame(BROADCAST, station, 60, 0));
        second.receive();
        let entries = net.switch.macs().expect("a table");
        let entry = entries.iter().find(|entry| entry.mac.bytes() == station).expect("an entry");
        assert_eq!(entry.place, Place::Port(port(place)));
        assert!(matches!(entry.origin, MacOrigin::Learned { .. }), "{entry:?}");
    }
    first.receive();
    third.receive();
    second.send(&frame(station, mac(2), 60, 5));
    assert_eq!(third.receive().frame, frame(station, mac(2), 60, 5));
    let last = frame(BROADCAST, mac(3), 60, 6);
    third.send(&last);
    assert_eq!(first.receive_until(&last), Vec::<Vec<u8>>::new(), "only the third got it");
}

#[test]
fn both_kinds_of_port_talk_to_each_other() {
    let net = Net::new();
    let mut avio = net.avio(1, open_rules(), Driver::LINUX);
    let mut vio = net.vio(2, open_rules());
    let mut other = net.vio(3, open_rules());
    for bytes in [60, 128, 1514, 9014] {
        let there = frame(mac(2), mac(1), bytes, 1);
        avio.send(&there);
        assert_eq!(vio.receive(), there);
        let back = frame(mac(1), mac(2), bytes, 2);
        vio.send(&back);
        assert_eq!(avio.receive().frame, back);
        let across = frame(BROADCAST, mac(2), bytes, 3);
        vio.send(&across);
        assert_eq!(other.receive_until(&across).len(), if bytes == 60 { 1 } else { 0 });
        assert_eq!(avio.receive().frame, across);
    }
}

#[test]
fn a_halted_switch_forwards_nothing_and_loses_nobody() {
    let net = Net::new();
    let mut first = net.avio(1, open_rules(), Driver::LINUX);
    let mut second = net.avio(2, open_rules(), Driver::LINUX);
    net.switch.set_state(SwitchState::Halted).expect("halted");
    first.send(&frame(mac(2), mac(1), 60, 1));
    first.wait_until_sent();
    assert_eq!(net.counters(1).discards.halted, 1);
    net.switch.set_state(SwitchState::Up).expect("up");
    first.send(&frame(mac(2), mac(1), 60, 2));
    assert_eq!(second.receive().frame, frame(mac(2), mac(1), 60, 2));
    assert_eq!(net.switch.port(port(1)).expect("a port").link, PortLink::Started);
}

#[test]
fn a_port_that_went_is_told_of_and_can_come_again() {
    let net = Net::new();
    let mut first = net.avio(1, open_rules(), Driver::LINUX);
    let second = net.avio(2, open_rules(), Driver::LINUX);
    net.wait_for(&Event::Started { port: port(2) });
    drop(second);
    net.wait_for(&Event::Disconnected { port: port(2) });
    first.send(&frame(mac(2), mac(1), 60, 1));
    first.wait_until_sent();
    let mut again = Guest::connect(&net.path(2), Driver::LINUX);
    net.wait_for(&Event::Started { port: port(2) });
    first.send(&frame(mac(2), mac(1), 60, 2));
    assert_eq!(again.receive().frame, frame(mac(2), mac(1), 60, 2));
    net.switch.remove_port(port(2)).expect("removed");
    net.add(2, NicKind::Lan, open_rules());
    let mut vio = crate::net::Vio::connect(&net.path(2));
    net.wait_for(&Event::Started { port: port(2) });
    first.send(&frame(mac(2), mac(1), 60, 3));
    assert_eq!(vio.receive(), frame(mac(2), mac(1), 60, 3));
}
