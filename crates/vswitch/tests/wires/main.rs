//! Wires over real interfaces: the kernel of this machine is the other end, in a network of the test's own.

#![allow(unsafe_code)]

#[path = "../switch/guest.rs"]
#[allow(dead_code, reason = "the other program of tests uses more of it")]
mod guest;
mod links;
#[path = "../switch/memory.rs"]
#[allow(dead_code, reason = "the other program of tests uses more of it")]
mod memory;
mod packets;
#[path = "../switch/segment.rs"]
#[allow(dead_code, reason = "the other program of tests uses more of it")]
mod segment;
mod switched;
mod undone;

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
    ("datagrams_that_come_at_once_reach_a_guest", switched::datagrams_at_once),
    ("a_kernel_and_a_guest_leave_work_to_each_other", undone::between_kernel_and_guest),
    ("a_kernel_finishes_what_a_guest_left", undone::finished_on_the_way),
    ("a_link_that_was_down_goes_on", links::down_and_up),
    ("a_card_put_in_for_another_goes_on", links::replaced),
];

/// What not every kernel has. The guest-host's has all of it.
const CASES_OF_KINDS: &[(&str, &str, Case)] = &[
    ("bond", "a_guest_talks_over_a_bond", switched::over_a_bond),
    ("bond", "over_a_bond_a_kernel_and_a_guest_leave_work_to_each_other", undone::over_bonds),
    ("vlan", "in_vlans_a_kernel_and_a_guest_leave_work_to_each_other", undone::in_vlans),
    ("vlan", "a_guest_talks_over_a_vlan_interface", switched::over_a_vlan_interface),
    ("vlan", "a_guest_in_a_vlan_of_its_port_talks_with_a_vlan_interface", switched::in_a_vlan),
    ("vlan", "a_guest_and_its_host_talk_in_a_vlan_over_a_tap", switched::in_a_vlan_of_the_host),
];

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    if !arguments.list {
        hpvm_netlab::enter();
    }
    let mut trials: Vec<Trial> = CASES.iter().map(|(name, case)| trial(name, *case)).collect();
    for (kind, name, case) in CASES_OF_KINDS {
        let missing = arguments.list || !hpvm_netlab::kernel_has(kind);
        trials.push(trial(name, *case).with_kind(*kind).with_ignored_flag(missing));
    }
    libtest_mimic::run(&arguments, trials).exit_code()
}

fn trial(name: &str, case: Case) -> Trial {
    Trial::test(name, move || std::panic::catch_unwind(case).map_err(|_| Failed::from("see above")))
}
