//! Wires over real interfaces: the kernel of this machine is the other end, in a network of the test's own.

mod links;
mod packets;
mod switched;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Failed, Trial};

type Case = fn();

const CASES: &[(&str, Case)] = &[
    ("tags_come_beside_a_frame_and_go_in_it", packets::tags),
    ("tags_of_another_kind_stay_in_the_frame", packets::foreign_tags),
    ("neither_own_frames_nor_those_of_the_host_come_back", packets::own_frames),
    ("a_frame_too_long_is_lost_alone", packets::too_long),
    ("a_guest_talks_over_an_interface", switched::over_an_interface),
    ("a_guest_talks_with_the_host_over_a_tap", switched::over_a_tap),
    ("a_link_that_was_down_goes_on", links::down_and_up),
    ("a_card_put_in_for_another_goes_on", links::replaced),
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
