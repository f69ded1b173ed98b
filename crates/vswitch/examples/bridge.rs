//! The library's shortest use: one switch, one forwarding thread, listening on each SOCKET as the vhost-user back-end of a
//! port, or as QEMU's stream sockets do where it is written `lan:SOCKET`. Guests and traffic generators connect there; the
//! benchmark drives it.
//!
//! ```text
//! cargo run --release -p hpvm-vswitch --example bridge -- SOCKET lan:SOCKET…
//! ```

use std::error::Error;
use std::os::unix::net::UnixListener;

use hpvm_model::{MacAddress, NicKind, PortNumber, PortRules, SpoofGuard, SwitchState};
use hpvm_vswitch::{Beginning, Clock, GuestMemory, Options, PortOptions, Switch};

fn main() -> Result<(), Box<dyn Error>> {
    let options = Options {
        name: "bridge".into(),
        state: SwitchState::Up,
        clock: Clock::Monotonic,
        beginning: Beginning::AtOnce,
    };
    let (switch, events) = Switch::start(options)?;
    for (number, word) in (1u16..).zip(std::env::args().skip(1)) {
        let (kind, path) = match word.strip_prefix("lan:") {
            Some(path) => (NicKind::Lan, path),
            None => (NicKind::AvioLan, word.as_str()),
        };
        let _ = std::fs::remove_file(path);
        let rules = PortRules { spoof_guard: SpoofGuard::Off, ..PortRules::default() };
        let [high, low] = number.to_be_bytes();
        let port = PortNumber::new(number).ok_or("too many sockets")?;
        let options = PortOptions {
            kind,
            listener: UnixListener::bind(path)?,
            mac: MacAddress::for_a_guest([0x52, 0, 0, 0, high, low]),
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
