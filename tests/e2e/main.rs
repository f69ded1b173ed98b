//! End to end: the programs as built, on VM Hosts of their own, with scripted engines where those can judge and real guests
//! where only those can. Each module is a subject; each test is a function without arguments.
//!
//! `cargo test -p hpvm-tests [FILTER]`. The run ends with the ten slowest tests and with why any failed. Long tests, whose decisions are judged by others
//! and which see that QEMU, firmware, kernels and systemd do as those say, run in `make soak`, and when they are asked for:
//! `cargo test -p hpvm-tests -- --include-ignored FILTER`.

mod agent;
mod at_reset;
mod attached;
mod attributes;
mod avio_service;
mod beside_clones;
mod both_kinds;
mod chance;
mod clone;
mod clone_options;
mod commands;
mod company;
mod counted;
mod crash_steps;
mod damage;
mod device_database;
mod device_identities;
mod devices;
mod doctor;
mod documented_options;
mod dry_run;
mod exchange;
mod failing_store;
mod file_log;
mod file_server;
mod flush;
mod foreign_users;
mod full;
mod fuse;
mod golden;
mod growth;
mod guest_host;
mod guest_processes;
mod guests;
mod hidden_ways;
mod hostile;
mod input;
mod installing;
mod interrupted_clones;
mod interruption;
mod lan;
mod lan_boot;
mod layers;
mod limits;
mod loop_device;
mod luns;
mod macs;
mod many_at_once;
mod media;
mod mounted;
mod net_load;
mod networks;
mod one_owner;
mod pool;
mod ports_kept;
mod power_cut;
mod read_only_root;
mod records;
mod refusals;
mod removal;
mod report;
mod running_clone;
mod scsi_server;
mod served;
mod server_entries;
mod session;
mod shared_disks;
mod sharing;
mod shell;
mod shutdown;
mod silent_store;
mod started;
mod statements;
mod supervision;
mod switch_commands;
mod switch_life;
mod switch_process;
mod terminal;
mod users;
mod waiting;
mod why;
mod wires;
mod write_log;

use libtest_mimic::{Arguments, Trial};

/// A test, and by what it is called.
pub(crate) struct Test {
    pub(crate) path: &'static str,
    pub(crate) run: fn(),
    pub(crate) is_long: bool,
}

/// Lists functions of a module as tests: `tests![creates, removes; long: lives]`.
#[macro_export]
macro_rules! tests {
    ($($test:ident),* $(,)? $(; long: $($long:ident),* $(,)?)?) => {
        &[$($crate::listed_test!($test, false),)* $($($crate::listed_test!($long, true),)*)?]
    };
}

#[macro_export]
macro_rules! listed_test {
    ($test:ident, $is_long:literal) => {
        $crate::Test {
            path: concat!(module_path!(), "::", stringify!($test)),
            run: $test,
            is_long: $is_long,
        }
    };
}

const SUBJECTS: &[&[Test]] = &[
    both_kinds::TESTS,
    agent::TESTS,
    at_reset::TESTS,
    attached::TESTS,
    avio_service::TESTS,
    commands::TESTS,
    clone::TESTS,
    clone::linked::TESTS,
    clone::targets::TESTS,
    clone_options::TESTS,
    foreign_users::TESTS,
    running_clone::TESTS,
    running_clone::interfered::TESTS,
    running_clone::one_moment::TESTS,
    running_clone::silent::TESTS,
    running_clone::to_devices::TESTS,
    interrupted_clones::TESTS,
    beside_clones::TESTS,
    company::TESTS,
    counted::TESTS,
    interruption::TESTS,
    damage::TESTS,
    crash_steps::TESTS,
    device_database::TESTS,
    device_database::disk_files::TESTS,
    device_database::known_by::TESTS,
    device_database::read_only::TESTS,
    device_database::renamed::TESTS,
    device_database::restricted::TESTS,
    device_database::used_by_host::TESTS,
    devices::TESTS,
    layers::TESTS,
    failing_store::TESTS,
    flush::TESTS,
    growth::TESTS,
    guests::TESTS,
    hidden_ways::TESTS,
    hidden_ways::loop_devices::TESTS,
    hidden_ways::mounts::TESTS,
    supervision::TESTS,
    doctor::TESTS,
    doctor::rebuild::TESTS,
    session::TESTS,
    waiting::TESTS,
    why::TESTS,
    why::disks::TESTS,
    why::engines::TESTS,
    why::provisions::TESTS,
    wires::TESTS,
    full::TESTS,
    hostile::TESTS,
    input::TESTS,
    input::files::TESTS,
    input::lost_output::TESTS,
    input::names::TESTS,
    input::provisions::TESTS,
    input::questions::TESTS,
    input::registry::TESTS,
    read_only_root::TESTS,
    installing::TESTS,
    device_identities::TESTS,
    lan::TESTS,
    lan_boot::TESTS,
    limits::TESTS,
    attributes::TESTS,
    documented_options::TESTS,
    dry_run::TESTS,
    records::TESTS,
    many_at_once::TESTS,
    luns::TESTS,
    power_cut::TESTS,
    removal::TESTS,
    macs::TESTS,
    media::TESTS,
    net_load::TESTS,
    networks::TESTS,
    one_owner::TESTS,
    ports_kept::TESTS,
    shared_disks::TESTS,
    server_entries::TESTS,
    sharing::TESTS,
    shutdown::TESTS,
    silent_store::TESTS,
    silent_store::commands::TESTS,
    silent_store::copied::TESTS,
    silent_store::watched::TESTS,
    switch_commands::TESTS,
    switch_life::TESTS,
    switch_process::TESTS,
    users::TESTS,
];

fn main() {
    let mut arguments = Arguments::from_args();
    // As many tests with emulated guests as there are processors, and one of those that mostly wait.
    arguments.test_threads = arguments.test_threads.or(Some(3));
    let tests = spread(mixed(SUBJECTS), mixed(guest_host::TESTS));
    let conclusion = libtest_mimic::run(&arguments, tests);
    pool::end();
    guest_host::end();
    report::slowest(10);
    report::failures();
    conclusion.exit();
}

/// The first test of each subject, then the second of each, and so on: those with guests are among those without.
fn mixed(subjects: &[&[Test]]) -> Vec<Trial> {
    let rounds = subjects.iter().map(|tests| tests.len()).max().unwrap_or(0);
    let round = |n| subjects.iter().filter_map(move |tests: &&[Test]| tests.get(n));
    (0..rounds).flat_map(round).map(trial).collect()
}

/// Tests of which one runs at a time come evenly among the others: one after the other they would leave a processor idle.
fn spread(others: Vec<Trial>, one_at_a_time: Vec<Trial>) -> Vec<Trial> {
    let (all, ones) = (others.len() + one_at_a_time.len(), one_at_a_time.len().max(1));
    let (mut others, mut one_at_a_time) = (others.into_iter(), one_at_a_time.into_iter());
    let place = |place: usize| match place * ones / all < (place + 1) * ones / all {
        true => one_at_a_time.next().or_else(|| others.next()),
        false => others.next().or_else(|| one_at_a_time.next()),
    };
    (0..all).filter_map(place).collect()
}

fn trial(&Test { path, run, is_long }: &Test) -> Trial {
    let name = path.split_once("::").map_or(path, |(_, name)| name);
    let trial = Trial::test(name, move || {
        report::timed(name, run);
        Ok(())
    });
    trial.with_ignored_flag(is_long)
}
