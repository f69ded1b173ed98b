//! `hpvmapp`, the worker of one running guest.

mod machine;

fn main() {}
