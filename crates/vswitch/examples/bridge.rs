//! The library's shortest use: one switch, one forwarding thread, listening on each SOCKET as the vhost-user back-end of a
//! port, or as QEMU's stream sockets do where it is written `lan:SOCKET`. Guests and traffic generators connect there; the
//! benchmark drives it.
//!
//! ```text
//! cargo run --release -p hpvm-vswitch --example bridge -- SOCKET lan:SOCKET MAC@SOCKET portid:3:rate:1G,1G…
//! ```
//!
//! A port has no rules, unless its guest's address is said: then it has a new guest's, by which nobody sends from another
//! address. Whatever else `hpvmnet -u` can ask of ports may stand among the sockets.

use std::error::Error;
use std::os::unix::net::UnixListener;

use hpvm_model::network::PortChange;
use hpvm_model::{MacAddress, NicKind, PortNumber, PortRules, SpoofGuard, SwitchState};
use hpvm_vswitch::{Beginning, Clock, GuestMemory, Options, PortOptions, Switch};

fn main() -> Result<(), Box<dyn Error>> {
    serve(std::env::args().skip(1))
}

/// Serves as these words say, until the program ends.
pub(crate) fn serve(words: impl Iterator<Item = String>) -> Result<(), Box<dyn Error>> {
    let options = Options {
        name: "bridge".into(),
        state: SwitchState::Up,
        clock: Clock::Monotonic,
        beginning: Beginning::AtOnce,
    };
    let (switch, events) = Switch::start(options)?;
    let (changes, sockets): (Vec<String>, Vec<String>) =
        words.partition(|word| word.starts_with("portid:"));
    let changes: Vec<PortChange> =
        changes.iter().map(|word| word.parse()).collect::<Result<_, _>>()?;
    for (number, word) in (1u16..).zip(&sockets) {
        let (kind, word) = match word.strip_prefix("lan:") {
            Some(rest) => (NicKind::Lan, rest),
            None => (NicKind::AvioLan, word.as_str()),
        };
        let [high, low] = number.to_be_bytes();
        let (mac, spoof_guard, path) = match word.split_once('@') {
            Some((mac, path)) => (mac.parse()?, SpoofGuard::On, path),
            None => (MacAddress::for_a_guest([0x52, 0, 0, 0, high, low]), SpoofGuard::Off, word),
        };
        let mut rules = PortRules { spoof_guard, ..PortRules::default() };
        let port = PortNumber::new(number).ok_or("too many sockets")?;
        changes
            .iter()
            .filter(|change| change.port == port)
            .for_each(|change| change.apply(&mut rules));
        let _ = std::fs::remove_file(path);
        let options = PortOptions {
            kind,
            listener: UnixListener::bind(path)?,
            mac,
            features: None,
            memory: GuestMemory::Trusted,
            rules,
        };
        switch.add_port(port, options)?;
    }
    for event in events {
        eprintln!("{event:?}");
    }
    Ok(())
}
