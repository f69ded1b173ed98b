//! Interfaces, their events and the search for a MAC address, on interfaces in a network of the test's own.

mod nics;
mod probe;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Failed, Trial};

type Case = fn();

const CASES: &[(&str, Case)] = &[
    ("interfaces_are_listed_with_kind_and_addresses", nics::listed),
    ("link_mtu_and_end_of_an_interface_are_told", nics::followed),
    ("a_station_with_ipv6_is_found", probe::ipv6),
    ("a_station_whose_address_is_not_of_its_mac_is_found", probe::other_address),
    ("a_station_that_answers_to_all_by_ipv4_is_found", probe::ipv4),
    ("an_address_that_nobody_has_is_free", probe::free),
    ("what_answers_for_every_address_is_recognised", probe::everything),
    ("what_answers_for_some_sooner_is_recognised_too", probe::everything_in_time),
    ("nobody_is_asked_where_there_is_no_link_or_no_wish", probe::not_asked),
    ("many_addresses_on_many_interfaces_take_no_longer", probe::many),
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
