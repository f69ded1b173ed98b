//! Sessions of hpvmconsole as a user has them: the real client, in a process of its own, on a real pseudo terminal or on
//! pipes, against a door server that drives the real fan-out.
//!
//! This program is its own runner: started with `--client` it plays hpvmconsole.

mod client;
mod console;
mod door_server;
mod menu;
mod rig;
mod scripts;
mod terminal;

use libtest_mimic::{Arguments, Trial};

fn main() {
    if std::env::args().nth(1).as_deref() == Some("--client") {
        client::main();
    }
    let groups = [menu::trials(), console::trials(), scripts::trials(), terminal::trials()];
    libtest_mimic::run(&Arguments::from_args(), groups.into_iter().flatten().collect()).exit();
}

/// A test that passes when it returns.
fn trial(name: &str, test: fn()) -> Trial {
    Trial::test(name, move || {
        test();
        Ok(())
    })
}
