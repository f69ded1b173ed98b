//! Guests behind `hpvmnat`: the real program in a network of the test's own, with whole TCP/IP stacks as its guests.
//!
//! The program enters namespaces first of all, so that nothing of this machine's network is touched and nothing is left
//! behind: a network with loopback alone, which also has the address of a server far away, and a list of name servers that
//! names the test's.

mod cases;
mod nat;
mod nonsense;
mod world;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Failed, Trial};

type Case = fn();

const CASES: &[(&str, Case)] = &[
    ("a_guest_is_told_address_gateway_and_name_server", cases::leases::told),
    ("two_guests_have_two_addresses_and_reach_a_server", cases::connections::two_guests),
    ("more_guests_than_libslirp_knows_get_addresses", cases::leases::many),
    ("a_successor_gives_nobody_the_address_of_another", cases::leases::successor),
    ("the_name_server_of_the_host_answers", cases::connections::names),
    ("the_host_is_hidden_unless_it_is_said_otherwise", cases::connections::hidden_host),
    ("a_connection_survives_the_switch", cases::connections::switch_comes_back),
    ("guests_of_a_whole_switch_get_out_and_reach_each_other", cases::switched::guests),
    ("forwards_come_and_go", cases::forwards::come_and_go),
    ("a_guest_that_is_silent_gets_its_first_datagram", cases::forwards::first_datagram),
    ("a_forward_that_cannot_be_is_refused_with_the_reason", cases::forwards::refused),
    ("nonsense_ends_nothing", cases::hostile::nonsense),
    ("nonsense_that_was_kept_ends_nothing", cases::hostile::kept_nonsense),
    ("an_absurd_length_ends_the_connection_alone", cases::hostile::absurd_length),
    ("a_client_that_says_nonsense_hears_so", cases::hostile::control),
    ("who_has_all_connections_keeps_nobody_from_the_service", cases::hostile::exhausted),
    ("it_is_confined", cases::hostile::confined),
    ("a_worker_that_dies_is_replaced", cases::hostile::comes_back),
    ("one_that_is_killed_is_followed", cases::hostile::is_followed),
    ("nothing_is_left_of_one_that_is_killed", cases::hostile::ends_together),
    ("it_ends_when_asked", cases::hostile::ends),
];

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    if !arguments.list {
        world::enter();
    }
    let trial = |(name, case): &(&str, Case)| {
        let case = *case;
        Trial::test(*name, move || {
            std::panic::catch_unwind(case).map_err(|_| Failed::from("see above"))
        })
    };
    libtest_mimic::run(&arguments, CASES.iter().map(trial).collect()).exit_code()
}
