//! What becomes of frames for a receiver that has no room: they wait with their sender, for a while, and with nobody else.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use hpvm_vswitch::{Clock, Counters, Discards};

use crate::counting::{Datagrams, from_wire, to_wire};
use crate::guest::{Driver, Guest, PATIENCE, Shape};
use crate::net::{BROADCAST, Net, frame, mac, open_rules, port};

/// Longer than any receiver is waited for.
const LONG_NS: u64 = 1_000_000_000;

/// A switch whose time stands still, so that its patience does not end by itself.
struct Scene {
    net: Net,
    time: Arc<AtomicU64>,
    sender: Guest,
    slow: Guest,
    quick: Guest,
}

impl Scene {
    fn new() -> Scene {
        let time = Arc::new(AtomicU64::new(0));
        let net = Net::with_clock(Clock::Manual(Arc::clone(&time)));
        let few = Driver { receive_buffers: 4, ..Driver::LINUX };
        let sender = net.avio(1, open_rules(), Driver::LINUX);
        let slow = net.avio(2, open_rules(), few);
        let quick = net.avio(3, open_rules(), Driver::LINUX);
        let mut scene = Scene { net, time, sender, slow, quick };
        // The switch knows all stations, so that nothing is for everybody from now on.
        let hello = frame(BROADCAST, mac(1), 60, 0);
        scene.sender.send(&hello);
        scene.slow.receive_until(&hello);
        scene.quick.receive_until(&hello);
        for (number, guest) in [(2, &mut scene.slow), (3, &mut scene.quick)] {
            let hello = frame(mac(1), mac(number), 60, 0);
            guest.send(&hello);
            scene.sender.receive_until(&hello);
        }
        for number in 1..=3 {
            scene.net.switch.clear_counters(port(number)).expect("cleared");
        }
        scene
    }

    fn let_time_pass(&self) {
        self.time.fetch_add(LONG_NS, Ordering::Relaxed);
        self.net.switch.wake().expect("it looks");
    }

    fn frames_for(&self, number: u16, marks: std::ops::Range<u8>) -> Vec<Vec<u8>> {
        marks.map(|mark| frame(mac(number), mac(1), 200, mark)).collect()
    }
}

fn check_that_all_arrive(shape: Shape) {
    let mut scene = Scene::new();
    scene.sender.driver.shape = shape;
    let sent = scene.frames_for(2, 0..200);
    scene.sender.send_all(&sent);
    for frame in &sent {
        assert_eq!(&scene.slow.receive().frame, frame);
    }
    scene.sender.wait_until_sent();
    let octets: u64 = sent.iter().map(|frame| frame.len() as u64).sum();
    let counters = scene.net.counters(2);
    assert_eq!(counters.in_discards, 0);
    assert_eq!((counters.in_octets, counters.in_unicast_local), (octets, 200));
    let counters = scene.net.counters(1);
    assert_eq!((counters.out_octets, counters.out_unicast_local), (octets, 200));
}

#[test]
fn a_receiver_that_is_slow_loses_nothing() {
    check_that_all_arrive(Shape::One);
}

#[test]
fn frames_in_tables_of_descriptors_wait_as_well() {
    check_that_all_arrive(Shape::Indirect(50));
}

#[test]
fn who_takes_nothing_is_waited_for_once_and_others_are_served_meanwhile() {
    let mut scene = Scene::new();
    let (first, rest) = (scene.frames_for(2, 0..4), scene.frames_for(2, 4..20));
    scene.sender.send_all(&[first.clone(), rest].concat());
    // The sender is held: its frames wait. Between others everything passes.
    for mark in 0..50 {
        let other = frame(mac(2), mac(3), 60, mark);
        let answer = frame(mac(3), mac(2), 60, mark);
        scene.slow.send(&answer);
        assert_eq!(scene.quick.receive().frame, answer);
        if mark == 0 {
            scene.quick.send(&other);
        }
    }
    scene.let_time_pass();
    scene.let_time_pass();
    scene.sender.wait_until_sent();
    // What comes now is not waited with.
    let for_quick = frame(mac(3), mac(1), 60, 99);
    scene.sender.send_all(&scene.frames_for(2, 20..30));
    scene.sender.send(&for_quick);
    scene.quick.receive_until(&for_quick);
    scene.sender.wait_until_sent();
    for frame in &first {
        assert_eq!(&scene.slow.receive().frame, frame);
    }
    let wanted = Counters {
        in_octets: 4 * 200,
        in_unicast_local: 4,
        in_discards: 27,
        out_octets: 50 * 60,
        out_unicast_local: 50,
        discards: Discards { no_room: 27, ..Discards::default() },
        ..Counters::default()
    };
    scene.net.wait_for_counters(2, &wanted);
    assert_eq!(scene.net.counters(1).out_unicast_local, 31);
}

/// A guest could have others held back most of the time, if each reset made them patient again.
#[test]
fn who_took_nothing_is_not_waited_for_again_after_a_reset() {
    let mut scene = Scene::new();
    scene.sender.send_all(&scene.frames_for(2, 0..10));
    let taken = Counters { in_octets: 4 * 200, in_unicast_local: 4, ..Counters::default() };
    scene.net.wait_for_counters(2, &taken);
    scene.let_time_pass();
    scene.sender.wait_until_sent();
    assert_eq!(scene.net.counters(2).discards.no_room, 6);
    scene.slow.stop();
    scene.slow.start().expect("rings");
    let known_again = frame(mac(1), mac(2), 60, 1);
    scene.slow.send(&known_again);
    scene.sender.receive_until(&known_again);
    scene.sender.send_all(&scene.frames_for(2, 10..20));
    scene.sender.wait_until_sent();
    assert_eq!(scene.net.counters(2).discards.no_room, 16);
}

/// What was held back for a receiver that takes nothing is lost or taken in the end, from a socket and from a wire as from a
/// ring, though nothing else comes that would wake the switch.
#[test]
fn nothing_waits_for_ever_that_is_read_already() {
    const BURST: u64 = 64;
    for by_wire in [false, true] {
        let net = Net::new();
        let far = Datagrams::attach(&net);
        let mut vio = net.vio(1, open_rules());
        let slow = Driver { receive_buffers: 4, ..Driver::LINUX };
        let mut slow = net.avio(2, open_rules(), slow);
        let hello = frame(BROADCAST, mac(2), 60, 0);
        slow.send(&hello);
        vio.receive_until(&hello);
        assert_eq!(from_wire(&far).1, hello);
        let sent = frame(mac(2), mac(1), 200, 1);
        for burst in 1..=100 {
            for _ in 0..BURST {
                if by_wire { to_wire(&far, &sent) } else { vio.send(&sent) }
            }
            let deadline = Instant::now() + PATIENCE;
            let counted = || {
                let Counters { in_unicast_local, in_unicast_wire, discards, .. } = net.counters(2);
                in_unicast_local + in_unicast_wire + discards.no_room
            };
            while counted() < burst * BURST {
                assert!(Instant::now() < deadline, "{} of {}", counted(), burst * BURST);
                std::thread::yield_now();
            }
        }
    }
}

#[test]
fn frames_for_others_are_not_kept_waiting() {
    let mut scene = Scene::new();
    let mut sent = scene.frames_for(2, 0..10);
    sent.extend(scene.frames_for(3, 0..10));
    scene.sender.send_all(&sent);
    for frame in &sent[10..] {
        assert_eq!(&scene.quick.receive().frame, frame);
    }
    scene.sender.wait_until_sent();
    assert!(scene.net.counters(2).in_unicast_local >= 4);
}

/// A sender that goes, and one whose receiver goes, leave nothing that waits.
#[test]
fn who_waits_and_who_is_waited_for_may_go() {
    let mut scene = Scene::new();
    let sent = scene.frames_for(2, 0..10);
    scene.sender.send_all(&sent);
    for frame in &sent[..4] {
        scene.slow.hears(frame, crate::guest::PATIENCE);
    }
    scene.net.switch.remove_port(port(2)).expect("removed");
    scene.sender.wait_until_sent();
    let other = frame(mac(3), mac(1), 60, 1);
    scene.sender.send(&other);
    scene.quick.receive_until(&other);

    let mut scene = Scene::new();
    scene.sender.send_all(&sent);
    scene.slow.receive();
    scene.net.switch.remove_port(port(1)).expect("removed");
    let other = frame(mac(2), mac(3), 60, 1);
    scene.quick.send(&other);
    scene.slow.receive_until(&other);
}
