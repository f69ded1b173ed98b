//! The example, as it is: what it is told is what its guests get.

use std::path::Path;
use std::thread;
use std::time::Instant;

use crate::guest::{Driver, Guest, PATIENCE};
use crate::net::{BROADCAST, Vio, frame};

#[path = "../../examples/bridge.rs"]
#[allow(dead_code, reason = "it is a program too")]
mod example;

#[test]
fn the_example_serves_guests_of_both_kinds_by_their_rules() {
    let folder = tempfile::tempdir().expect("a folder");
    let [first, second, third, last] =
        ["first", "second", "third", "last"].map(|name| folder.path().join(name));
    let words = [
        first.display().to_string(),
        format!("lan:{}", second.display()),
        format!("0x020000000003@{}", third.display()),
        format!("lan:{}", last.display()),
        "portid:2:isolated:on".to_owned(),
        "portid:3:isolated:on".to_owned(),
    ];
    thread::spawn(move || example::serve(words.into_iter()).expect("it serves"));
    wait_for(&last);
    let mut avio = Guest::connect(&first, Driver::LINUX);
    let mut vio = Vio::connect(&second);
    let mut guarded = Guest::connect(&third, Driver::LINUX);

    let [avio_mac, vio_mac, guarded_mac] = [1, 2, 3].map(|last| [2, 0, 0, 0, 0, last]);
    let all = frame(BROADCAST, vio_mac, 60, 1);
    vio.send(&all);
    assert_eq!(avio.receive().frame, all);
    let one = frame(vio_mac, avio_mac, 1514, 2);
    avio.send(&one);
    assert_eq!(vio.receive(), one);

    // From an address that is not its own, then from its own: the two that are isolated do not hear each other.
    guarded.send(&frame(BROADCAST, [2, 0, 0, 0, 0, 9], 60, 3));
    let own = frame(BROADCAST, guarded_mac, 60, 4);
    guarded.send(&own);
    assert_eq!(avio.receive().frame, own);
    let last = frame(BROADCAST, avio_mac, 60, 5);
    avio.send(&last);
    assert_eq!(vio.receive(), last);
    assert_eq!(guarded.receive().frame, last);
}

/// The sockets before it listen then.
fn wait_for(socket: &Path) {
    let deadline = Instant::now() + PATIENCE;
    while !socket.exists() {
        assert!(Instant::now() < deadline, "{} does not come", socket.display());
        thread::yield_now();
    }
}
