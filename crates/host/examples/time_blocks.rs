//! Times what commands read of block devices: on a tree of 1,000 devices, or on this machine.
//!
//! ```text
//! cargo run --release -p hpvm-host --example time_blocks [host]
//! ```
//!
//! Prints one line a measurement, the quickest of ten: name, devices, microseconds.

#[path = "../tests/tree/mod.rs"]
mod tree;

use std::env;
use std::time::Instant;

use hpvm_host::block::{Blocks, Lead, Places};

fn main() {
    if env::args().nth(1).as_deref() == Some("host") {
        measure(&Places::default());
    } else {
        let tree = tree::large(400);
        measure(&tree.places());
    }
}

fn measure(places: &Places) {
    let blocks = Blocks::read_all(places);
    print("read_all", blocks.devices().count(), || Blocks::read_all(places));
    print("host_used", blocks.devices().count(), || blocks.host_used());
    if let Some(last) = blocks.devices().last() {
        let lead = [Lead::Block(last.number)];
        let count = Blocks::read_around(places, &lead).devices().count();
        print("read_around", count, || Blocks::read_around(places, &lead));
    }
}

fn print<T>(name: &str, devices: usize, work: impl Fn() -> T) {
    let times = (0..10).map(|_| {
        let start = Instant::now();
        work();
        start.elapsed().as_micros()
    });
    println!("{name} {devices} {}", times.min().unwrap_or_default());
}
