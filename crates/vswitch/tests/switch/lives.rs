//! A port's life: features for ever the same, a switch that goes and returns under its guests, migration's dirty log.

use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use hpvm_model::NicKind;
use hpvm_vswitch::{
    Beginning, Clock, Event, FEATURES, GuestMemory, PortLink, PortOptions, SwitchError,
};
use vhost::VhostBackend;

use crate::guest::{Driver, EVENT_IDX, Guest, LINUX, LOG_ALL};
use crate::memory::{BYTES, GUEST_BASE, Memory, Seals};
use crate::net::{Net, frame, mac, open_rules, port};

#[test]
fn a_port_offers_what_it_was_given_first() {
    let net = Net::new();
    let given = FEATURES & !EVENT_IDX;
    let options = net.options(1, NicKind::AvioLan, open_rules());
    net.switch.add_port(port(1), PortOptions { features: Some(given), ..options }).expect("a port");
    let driver = Driver { features: LINUX & !EVENT_IDX, ..Driver::LINUX };
    let _guest = Guest::connect(&net.path(1), driver);
    net.wait_until("agreement", |event| {
        *event == Event::Negotiated { port: port(1), offered: given, acknowledged: driver.features }
    });
    assert_eq!(net.switch.port(port(1)).expect("a port").offered, Some(given));
    let options = net.options(2, NicKind::AvioLan, open_rules());
    let unknown = PortOptions { features: Some(FEATURES | 1 << 40), ..options };
    let refused = net.switch.add_port(port(2), unknown);
    assert!(matches!(refused, Err(SwitchError::Features { .. })), "{refused:?}");
}

#[test]
fn memory_that_could_shrink_is_refused_unless_trusted() {
    let net = Net::new();
    net.add(1, NicKind::AvioLan, open_rules());
    let begun = Guest::begin(&net.path(1), Driver::LINUX, Memory::new(Seals::None), [0, 0]);
    assert!(begun.is_err());
    net.wait_until(
        "refusal",
        |event| matches!(event, Event::Refused { reason, .. } if reason.contains("not sealed")),
    );
    let options = net.options(2, NicKind::AvioLan, open_rules());
    let trusting = PortOptions { memory: GuestMemory::Trusted, ..options };
    net.switch.add_port(port(2), trusting).expect("a port");
    let begun = Guest::begin(&net.path(2), Driver::LINUX, Memory::new(Seals::None), [0, 0]);
    assert!(begun.is_ok());
}

/// What the first sends to all is there for whoever comes a moment later, and comes when that guest can know that it has a link.
#[test]
fn a_switch_that_goes_on_has_frames_wait_for_whoever_comes_back() {
    let time = Arc::new(AtomicU64::new(0));
    let net = Net::beginning(Beginning::Together, Clock::Manual(Arc::clone(&time)));
    let at = |ms: u64| {
        time.store(ms * 1_000_000, Ordering::Relaxed);
        net.switch.wake().expect("the switch looks");
    };
    let asked = frame([0xff; 6], mac(1), 80, 1);
    let mut avio = net.avio(1, open_rules(), Driver::LINUX);
    avio.send(&asked);
    at(74);
    let mut late = net.avio(2, open_rules(), Driver::LINUX);
    let mut vio = net.vio(3, open_rules());
    let answer = frame(mac(1), mac(3), 80, 2);
    vio.send(&answer);
    at(153);
    assert_eq!((late.try_receive(), avio.try_receive()), (None, None));
    assert_eq!(net.counters(1).out_other, 0);
    at(154);
    assert_eq!(late.receive().frame, asked);
    assert_eq!(avio.receive().frame, answer);
    // Whoever comes later has nobody wait.
    let mut last = net.avio(4, open_rules(), Driver::LINUX);
    avio.send(&frame(mac(4), mac(1), 80, 3));
    assert_eq!(last.receive().frame, frame(mac(4), mac(1), 80, 3));
}

/// The guest's hypervisor connects to the next switch with the rings as they are; nothing in the guest is done anew.
#[test]
fn another_switch_goes_on_where_the_last_one_was() {
    let mut stands = None;
    for round in 0..4u8 {
        let net = Net::new();
        let mut other = net.avio(2, open_rules(), Driver::LINUX);
        net.add(1, NicKind::AvioLan, open_rules());
        let mut guest = match stands.take() {
            None => Guest::connect(&net.path(1), Driver::LINUX),
            Some(guest) => Guest::again(&net.path(1), guest),
        };
        for mark in 0..100 {
            guest.send(&frame(mac(2), mac(1), 80, mark ^ round));
            assert_eq!(other.receive().frame, frame(mac(2), mac(1), 80, mark ^ round));
            other.send(&frame(mac(1), mac(2), 90, mark ^ round));
            assert_eq!(guest.receive().frame, frame(mac(1), mac(2), 90, mark ^ round));
        }
        stands = Some(guest);
    }
}

#[test]
fn a_driver_that_stops_and_starts_goes_on() {
    let net = Net::new();
    let mut guest = net.avio(1, open_rules(), Driver::LINUX);
    let mut other = net.avio(2, open_rules(), Driver::LINUX);
    guest.send(&frame(mac(2), mac(1), 80, 0));
    other.receive();
    other.send(&frame(mac(1), mac(2), 80, 0));
    guest.receive();
    for mark in 1..10 {
        assert_eq!(guest.stop(), [u16::from(mark); 2]);
        assert_eq!(net.switch.port(port(1)).expect("a port").link, PortLink::Connected);
        guest.start().expect("rings");
        guest.send(&frame(mac(2), mac(1), 80, mark));
        assert_eq!(other.receive().frame, frame(mac(2), mac(1), 80, mark));
        other.send(&frame(mac(1), mac(2), 80, mark));
        assert_eq!(guest.receive().frame, frame(mac(1), mac(2), 80, mark));
    }
}

#[test]
fn what_is_written_while_migrating_is_in_the_log() {
    let net = Net::new();
    let mut guest = net.avio(1, open_rules(), Driver::LINUX);
    let mut other = net.avio(2, open_rules(), Driver::LINUX);
    let bytes = (GUEST_BASE + BYTES as u64) / 4096 / 8;
    let log = guest.set_log(bytes);
    let dirty = |address: u64| {
        let mut byte = [0];
        log.read_exact_at(&mut byte, address / 4096 / 8).expect("the log");
        byte[0] & (1 << (address / 4096 % 8)) != 0
    };
    let [buffer, used] = guest.next_receive_addresses();
    assert!(!dirty(buffer) && !dirty(used));
    guest.frontend.set_features(LINUX | LOG_ALL).expect("features");
    guest.log_used();
    other.send(&frame(mac(1), mac(2), 9000, 1));
    assert_eq!(guest.receive().frame, frame(mac(1), mac(2), 9000, 1));
    assert!(dirty(buffer) && dirty(buffer + 8192) && dirty(used));
    assert!(!dirty(buffer + (1 << 20)), "only what was written");
}
