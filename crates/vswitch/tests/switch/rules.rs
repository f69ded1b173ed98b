//! What a port's rules make of its frames: VLANs, the spoof guard, rates.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use hpvm_model::{Isolation, PortRules, PortVlan, Rate, SpoofGuard, VlanId};
use hpvm_vswitch::Clock;

use crate::counting::{Datagrams, from_wire, to_wire};
use crate::guest::Driver;
use crate::net::{BROADCAST, Net, frame, mac, open_rules, port};

fn vlan(vlan: PortVlan) -> PortRules {
    PortRules { vlan, ..open_rules() }
}

fn untagged(number: u16) -> PortRules {
    vlan(PortVlan::Untagged(VlanId::new(number).expect("a VLAN")))
}

/// The frame with a tag behind its addresses.
fn tagged(frame: &[u8], tag: u16) -> Vec<u8> {
    let mut tagged = frame[..12].to_vec();
    tagged.extend([0x81, 0]);
    tagged.extend(tag.to_be_bytes());
    tagged.extend(&frame[12..]);
    tagged
}

#[test]
fn vlans_part_ports_and_tags_come_and_go_where_they_should() {
    let net = Net::new();
    let far = Datagrams::attach(&net);
    let mut none = net.avio(1, open_rules(), Driver::LINUX);
    let mut ten = net.avio(2, untagged(10), Driver::LINUX);
    let mut also_ten = net.avio(3, untagged(10), Driver::LINUX);
    let mut twenty = net.avio(4, untagged(20), Driver::LINUX);
    let mut trunk =
        net.avio(5, vlan(PortVlan::Trunk("10,30-40".parse().expect("a list"))), Driver::LINUX);
    for bytes in [60, 126, 127, 128, 129, 132, 1514] {
        let sent = frame(BROADCAST, mac(2), bytes, 1);
        ten.send(&sent);
        assert_eq!(also_ten.receive().frame, sent);
        assert_eq!(trunk.receive().frame, tagged(&sent, 10));
        assert_eq!(from_wire(&far).1, tagged(&sent, 10));
        // A priority is kept.
        let sent = frame(BROADCAST, mac(5), bytes, 2);
        trunk.send(&tagged(&sent, 0xa00a));
        assert_eq!(ten.receive().frame, sent);
        assert_eq!(also_ten.receive().frame, sent);
        assert_eq!(from_wire(&far).1, tagged(&sent, 0xa00a));
        let sent = frame(BROADCAST, [2, 8, 8, 8, 8, 8], bytes, 3);
        to_wire(&far, &tagged(&sent, 20));
        assert_eq!(twenty.receive().frame, sent);
        let sent = frame(BROADCAST, mac(1), bytes, 4);
        none.send(&sent);
        assert_eq!(from_wire(&far).1, sent);
        to_wire(&far, &sent);
        assert_eq!(none.receive().frame, sent);
        // A tag that says only a priority is none.
        ten.send(&tagged(&frame(BROADCAST, mac(2), bytes, 5), 0xe000));
        assert_eq!(also_ten.receive().frame, frame(BROADCAST, mac(2), bytes, 5));
        assert_eq!(trunk.receive().frame, tagged(&frame(BROADCAST, mac(2), bytes, 5), 0xe00a));
        from_wire(&far);
    }
    trunk.send(&tagged(&frame(BROADCAST, mac(5), 60, 6), 20));
    trunk.send(&frame(BROADCAST, mac(5), 60, 7));
    trunk.wait_until_sent();
    assert_eq!(net.counters(5).discards.vlan, 2);
    let last = frame(BROADCAST, [2, 8, 8, 8, 8, 8], 60, 8);
    to_wire(&far, &tagged(&last, 20));
    assert_eq!(twenty.receive_until(&last), Vec::<Vec<u8>>::new());
}

/// A tag that says only a priority is taken away, and what it stood before would be the frame's VLAN.
#[test]
fn no_vlan_hides_behind_a_priority() {
    let net = Net::new();
    let far = Datagrams::attach(&net);
    let mut none = net.avio(1, open_rules(), Driver::LINUX);
    let _twenty = net.avio(2, untagged(20), Driver::LINUX);
    for hidden in [0x8100u16, 0x88a8, 0x9100] {
        let mut inner = tagged(&frame(BROADCAST, mac(1), 60, 1), 20);
        inner[12..14].copy_from_slice(&hidden.to_be_bytes());
        none.send(&tagged(&inner, 0xe000));
    }
    let last = frame(BROADCAST, mac(1), 60, 2);
    none.send(&last);
    assert_eq!(from_wire(&far).1, last);
    none.wait_until_sent();
    assert_eq!(net.counters(1).discards.vlan, 3);
}

/// A tag of another kind is a part of what a frame carries, for a port as for a bridge of customers' VLANs (IEEE 802.1Q, 6.9):
/// the frame is in the port's VLAN, and has that one's tag before its own where tags are.
#[test]
fn a_tag_of_another_kind_is_no_vlan() {
    let net = Net::new();
    let far = Datagrams::attach(&net);
    let mut none = net.avio(1, open_rules(), Driver::LINUX);
    let mut ten = net.avio(2, untagged(10), Driver::LINUX);
    let mut also_ten = net.vio(3, untagged(10));
    let mut twenty = net.avio(4, untagged(20), Driver::LINUX);
    let trunk = vlan(PortVlan::Trunk("10,20".parse().expect("a list")));
    let mut trunk = net.avio(5, trunk, Driver::LINUX);
    for kind in [0x88a8u16, 0x9100] {
        let carries = |from: u16| {
            let mut frame = tagged(&frame(BROADCAST, mac(from), 60, 1), 20);
            frame[12..14].copy_from_slice(&kind.to_be_bytes());
            frame
        };
        ten.send(&carries(2));
        assert_eq!(also_ten.receive(), carries(2));
        assert_eq!(trunk.receive().frame, tagged(&carries(2), 10));
        assert_eq!(from_wire(&far).1, tagged(&carries(2), 10));
        let outside = frame(BROADCAST, [2, 8, 8, 8, 8, 8], 60, 2);
        none.send(&carries(1));
        assert_eq!(from_wire(&far).1, carries(1));
        // Without a tag of its own kind a trunk carries nothing.
        trunk.send(&carries(5));
        trunk.send(&tagged(&carries(5), 10));
        assert_eq!(ten.receive().frame, carries(5));
        assert_eq!(also_ten.receive(), carries(5));
        assert_eq!(from_wire(&far).1, tagged(&carries(5), 10));
        to_wire(&far, &tagged(&outside, 20));
        assert_eq!(twenty.receive().frame, outside, "nobody else's came before");
        assert_eq!(trunk.receive().frame, tagged(&outside, 20));
    }
    assert_eq!(net.counters(5).discards.vlan, 2);
}

/// Settles 112: isolated ports never hear each other, whatever kind they are and to whom a frame is, and hear everybody else.
#[test]
fn isolated_ports_have_the_wire_and_the_others() {
    let net = Net::new();
    let far = Datagrams::attach(&net);
    let isolated = || PortRules { isolation: Isolation::On, ..open_rules() };
    let mut one = net.avio(1, isolated(), Driver::LINUX);
    let mut other = net.avio(2, isolated(), Driver::LINUX);
    let mut emulated = net.vio(3, isolated());
    let mut server = net.avio(4, open_rules(), Driver::LINUX);
    // Everybody is known by then, and isolated ports know the server alone.
    for (mark, number) in (1..=3).enumerate() {
        let sent = frame(BROADCAST, mac(number), 60, mark as u8);
        match number {
            1 => one.send(&sent),
            2 => other.send(&sent),
            _ => emulated.send(&sent),
        }
        assert_eq!(server.receive().frame, sent);
        assert_eq!(from_wire(&far).1, sent);
    }
    for mark in 10..12 {
        one.send(&frame(mac(2), mac(1), 1514, mark));
        one.send(&frame(mac(3), mac(1), 1514, mark));
        emulated.send(&frame(mac(1), mac(3), 1514, mark));
        let sent = frame(mac(4), mac(1), 1514, mark);
        one.send(&sent);
        assert_eq!(server.receive().frame, sent);
    }
    let answers = [20, 21, 22].map(|mark| frame(BROADCAST, mac(4), 60, mark));
    server.send(&answers[0]);
    for guest in [&mut one, &mut other] {
        assert_eq!(guest.receive_until(&answers[0]), Vec::<Vec<u8>>::new());
    }
    assert_eq!(emulated.receive_until(&answers[0]), Vec::<Vec<u8>>::new());
    assert_eq!(net.counters(1).discards.filtered, 4);
    let from_outside = frame(mac(2), [2, 8, 8, 8, 8, 8], 60, 30);
    to_wire(&far, &from_outside);
    assert_eq!(other.receive().frame, from_outside);

    net.switch.change_port(port(2), open_rules()).expect("changed");
    let sent = frame(mac(2), mac(1), 1514, 40);
    one.send(&sent);
    assert_eq!(other.receive().frame, sent);
    net.switch.change_port(port(2), isolated()).expect("changed");
    one.send(&frame(mac(2), mac(1), 1514, 41));
    one.wait_until_sent();
    server.send(&answers[2]);
    assert_eq!(other.receive_until(&answers[2]), Vec::<Vec<u8>>::new());
}

/// Who is known stays so, and frames for it go to nobody else, until the port's VLAN is another, or its guest held to its own.
#[test]
fn a_rule_that_leaves_the_vlan_leaves_the_stations() {
    let net = Net::new();
    let mut guest = net.avio(1, open_rules(), Driver::LINUX);
    let mut sender = net.avio(2, open_rules(), Driver::LINUX);
    let mut other = net.avio(3, open_rules(), Driver::LINUX);
    let all = frame(BROADCAST, mac(1), 60, 0);
    let rate = Some(Rate { bits_per_second: 1 << 40, burst_bytes: 1 << 30 });
    let guarded = PortRules { spoof_guard: SpoofGuard::On, ..PortRules::default() };
    let changes = [
        (PortRules { rate_in: rate, ..open_rules() }, true),
        (PortRules { mirror: Some(port(4)), ..open_rules() }, true),
        (PortRules { isolation: Isolation::On, ..open_rules() }, true),
        (guarded, false),
        (untagged(10), false),
    ];
    for (mark, (rules, is_known)) in (1..).zip(changes) {
        net.switch.change_port(port(1), open_rules()).expect("changed");
        guest.send(&all);
        assert_eq!((sender.receive().frame, other.receive().frame), (all.clone(), all.clone()));
        net.switch.change_port(port(1), rules).expect("changed");
        let (one, last) = (frame(mac(1), mac(2), 60, mark), frame(BROADCAST, mac(2), 60, mark));
        sender.send(&one);
        sender.send(&last);
        let expected = if is_known { Vec::new() } else { vec![one] };
        assert_eq!(other.receive_until(&last), expected, "{mark}");
        while guest.try_receive().is_some() {}
    }
}

#[test]
fn the_same_station_may_be_in_two_vlans() {
    let net = Net::new();
    let mut ten = net.avio(1, untagged(10), Driver::LINUX);
    let mut twenty = net.avio(2, untagged(20), Driver::LINUX);
    let mut trunk =
        net.avio(3, vlan(PortVlan::Trunk("10,20".parse().expect("a list"))), Driver::LINUX);
    let twin = [2, 8, 8, 8, 8, 8];
    for (vlan, guest) in [(10, &mut ten), (20, &mut twenty)] {
        guest.send(&frame(BROADCAST, twin, 60, 0));
        assert_eq!(trunk.receive().frame, tagged(&frame(BROADCAST, twin, 60, 0), vlan));
    }
    for (vlan, guest) in [(10, &mut ten), (20, &mut twenty)] {
        trunk.send(&tagged(&frame(twin, mac(3), 60, 1), vlan));
        assert_eq!(guest.receive().frame, frame(twin, mac(3), 60, 1));
    }
}

#[test]
fn the_guard_lets_only_own_addresses_pass_and_shows_what_was_tried() {
    let net = Net::new();
    let address = "10.0.0.1".parse().expect("an address");
    let rules =
        PortRules { spoof_guard: SpoofGuard::On, addresses: vec![address], ..PortRules::default() };
    let mut guest = net.avio(1, rules, Driver::LINUX);
    let mut other = net.avio(2, open_rules(), Driver::LINUX);
    let ipv4 = |source: [u8; 4]| {
        let mut frame = frame(mac(2), mac(1), 60, 0);
        frame[12..16].copy_from_slice(&[8, 0, 0x45, 0]);
        frame[26..30].copy_from_slice(&source);
        frame
    };
    guest.send(&ipv4([10, 0, 0, 9]));
    guest.send(&frame(mac(2), mac(7), 60, 0));
    guest.wait_until_sent();
    let status = net.switch.port(port(1)).expect("a port");
    assert_eq!(status.source.map(|mac| mac.bytes()), Some(mac(7)));
    guest.send(&ipv4([10, 0, 0, 1]));
    assert_eq!(other.receive().frame, ipv4([10, 0, 0, 1]));
    assert_eq!(net.counters(1).discards.spoofed, 2);
    // Rules change while the guest runs.
    net.switch.change_port(port(1), open_rules()).expect("new rules");
    guest.send(&frame(mac(2), mac(7), 60, 0));
    assert_eq!(other.receive().frame, frame(mac(2), mac(7), 60, 0));
}

#[test]
fn rates_hold_both_ways_by_the_clock() {
    let time = Arc::new(AtomicU64::new(0));
    let net = Net::with_clock(Clock::Manual(Arc::clone(&time)));
    // 8,000 bits are a frame of 1,000 bytes a second; ten may pass at once.
    let rate = Some(Rate { bits_per_second: 8_000, burst_bytes: 10_000 });
    let rules = PortRules { rate_in: rate, rate_out: rate, ..open_rules() };
    let mut limited = net.avio(1, rules, Driver::LINUX);
    let mut free = net.avio(2, open_rules(), Driver::LINUX);
    let frames = |from: u16, to: u16, count: u8| -> Vec<Vec<u8>> {
        (0..count).map(|mark| frame(mac(to), mac(from), 1000, mark)).collect()
    };
    // Towards the guest: what is beyond the rate is discarded.
    free.send_all(&frames(2, 1, 15));
    free.wait_until_sent();
    for sent in frames(2, 1, 10) {
        assert_eq!(limited.receive().frame, sent);
    }
    assert_eq!(net.counters(1).discards.rate, 5);
    // From the guest: what is beyond the rate waits, and goes in time.
    let mut come_in_time = |from: u16, sent: &[Vec<u8>]| {
        for sent in &sent[..10] {
            assert_eq!(&free.receive().frame, sent);
        }
        for sent in &sent[10..] {
            assert_eq!(free.try_receive(), None);
            time.fetch_add(1_000_000_000, Ordering::Relaxed);
            net.switch.wake().expect("the switch looks");
            assert_eq!(&free.receive().frame, sent);
        }
        assert_eq!(net.counters(from).out_discards, 0);
    };
    let sent = frames(1, 2, 13);
    limited.send_all(&sent);
    come_in_time(1, &sent);
    // A VIO guest's frames wait in its stream.
    let mut emulated = net.vio(3, PortRules { rate_out: rate, ..open_rules() });
    let sent = frames(3, 2, 13);
    sent.iter().for_each(|frame| emulated.send(frame));
    come_in_time(3, &sent);
}
