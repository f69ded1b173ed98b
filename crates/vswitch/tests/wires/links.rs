//! What becomes of a wire when its interface is set down, or is another one.

use std::os::fd::AsFd;

use hpvm_host::nic;
use hpvm_netlab::{ip, pair, wait_until_up};
use hpvm_vswitch::{PacketWire, Wire, WireSlot};

use crate::packets::{frame, receive, send, socket};

pub(crate) fn down_and_up() {
    pair("down0", "down1");
    let (mut one, mut other) = (PacketWire::new(socket("down0")), PacketWire::new(socket("down1")));
    ip("link set down0 down");
    assert_eq!(send(&mut one, &[frame(None, b"lost")]), 0);
    let mut slots = [WireSlot::new()];
    assert_eq!(one.receive(&mut slots).expect("not gone"), 0);
    ip("link set down0 up");
    wait_until_up("down0");
    assert_eq!(send(&mut one, &[frame(None, b"out")]), 1);
    assert_eq!(receive(&mut other, 1)[0].0, frame(None, b"out"));
    send(&mut other, &[frame(None, b"in")]);
    assert_eq!(receive(&mut one, 1)[0].0, frame(None, b"in"));
}

/// The same socket goes on with an interface of the same name, without rights.
pub(crate) fn replaced() {
    pair("card0", "card1");
    let socket_of_switch = socket("card0");
    let kept = socket_of_switch.try_clone().expect("copied");
    let mut wire = PacketWire::new(socket_of_switch);
    ip("link del card0");
    let frames = [frame(None, b"nobody is there")];
    let parts = [std::io::IoSlice::new(&[0; 10]), std::io::IoSlice::new(&frames[0])];
    let sent = wire.send(&[hpvm_vswitch::WireFrame { parts: &parts, octets: frames[0].len() }]);
    assert!(sent.is_err(), "the interface is gone: {sent:?}");
    pair("card0", "card1");
    let card = nic::named("card0").expect("told").expect("there");
    nic::wire::follow(kept.as_fd(), card.index).expect("another interface");
    let mut other = PacketWire::new(socket("card1"));
    send(&mut other, &[frame(None, b"in")]);
    assert_eq!(receive(&mut wire, 1)[0].0, frame(None, b"in"));
    assert_eq!(send(&mut wire, &[frame(None, b"out")]), 1);
    assert_eq!(receive(&mut other, 1)[0].0, frame(None, b"out"));
}
