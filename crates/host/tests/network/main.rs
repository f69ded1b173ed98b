//! Interfaces, their events and the search for a MAC address, on interfaces in a network of the test's own.

mod nics;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Failed, Trial};

type Case = fn();

const CASES: &[(&str, Case)] = &[
    ("interfaces_are_listed_with_kind_and_addresses", nics::listed),
    ("link_mtu_and_end_of_an_interface_are_told", nics::followed),
];

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    if !arguments.list {
        hpvm_netlab::enter();
    }
    let trial = |(name, case): &(&str, Case)| {
        let case = *case;
        Trial::test(*name, move || {
            std::panic::catch_unwind(case).map_err(|_| Failed::from("see above"))
        })
    };
    libtest_mimic::run(&arguments, CASES.iter().map(trial).collect()).exit_code()
}
