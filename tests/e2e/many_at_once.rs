//! Many commands at once: each sees its own work, and nobody's is lost.

use std::collections::BTreeSet;
use std::sync::Barrier;
use std::thread;

use hpvm_testkit::vm_host::{Engine, VmHost};

use crate::Test;
use crate::refusals::export;

pub(crate) const TESTS: &[Test] = crate::tests![many_commands_at_once,];

const PROCESSES: usize = 8;
const OPERATIONS: usize = 1000;

/// Eight at once create, change and list; each sees its own work at once, and nobody's is lost.
///
/// Settles 80, 82.
fn many_commands_at_once() {
    let host = VmHost::new(Engine::Fake);
    host.ok(&["hpvmcreate", "-P", "shared"]);
    let together = Barrier::new(PROCESSES);
    thread::scope(|scope| {
        for worker in 0..PROCESSES {
            let (host, together) = (&host, &together);
            scope.spawn(move || {
                together.wait();
                for round in 0..OPERATIONS / PROCESSES / 5 {
                    work(host, worker, round);
                }
            });
        }
    });
    let rounds = OPERATIONS / PROCESSES / 5;
    let export = export(&host);
    let guests = export["guests"].as_array().expect("a list");
    let numbers: BTreeSet<u64> = guests.iter().filter_map(|g| g["number"].as_u64()).collect();
    assert_eq!(numbers.len(), PROCESSES * rounds + 1, "each guest has a number of its own");
    for (worker, round) in (0..PROCESSES).flat_map(|w| (0..rounds).map(move |r| (w, r))) {
        let name = format!("w{worker}-{round}");
        let guest = guests.iter().find(|guest| guest["name"] == name.as_str());
        let guest = guest.unwrap_or_else(|| panic!("{name} is lost"));
        assert_eq!(guest["label"], format!("changed {round}"), "{name}");
    }
    let shared = guests.iter().find(|guest| guest["name"] == "shared").expect("it is there");
    let text = shared.to_string();
    for (worker, round) in (0..PROCESSES).flat_map(|w| (0..rounds).map(move |r| (w, r))) {
        assert!(
            text.contains(&format!("/drive/{worker}/{round}\"")),
            "a change of {worker} is lost"
        );
    }
    let made = export["operations"].as_array().expect("a list");
    assert_eq!(made.len(), 1 + PROCESSES * rounds * 3, "a record of each");
    assert!(made.iter().all(|operation| operation["result"] == "done"));
    let doctor = host.run(&["hpvm", "doctor"]);
    assert!(doctor.status.success(), "{doctor}");
}

/// Five commands: a guest made, changed and listed, and a change of a guest that all share.
fn work(host: &VmHost, worker: usize, round: usize) {
    let name = format!("w{worker}-{round}");
    let quiet = |line: &[&str]| {
        let outcome = host.run(line);
        assert!(outcome.status.success(), "{outcome}");
        outcome
    };
    quiet(&["hpvmcreate", "-P", &name, "-r", "64M"]);
    quiet(&["hpvmmodify", "-P", &name, "-l", &format!("changed {round}")]);
    let list = quiet(&["hpvmstatus"]).stdout;
    let own = (0..=round).map(|r| format!("w{worker}-{r}"));
    let names: BTreeSet<&str> = list.lines().filter_map(|l| l.split_whitespace().next()).collect();
    assert!(own.clone().all(|name| names.contains(name.as_str())), "own work is missing:\n{list}");
    let drive = format!("dvd:avio_stor::null:/drive/{worker}/{round}");
    quiet(&["hpvmmodify", "-P", "shared", "-a", &drive]);
    let shown = quiet(&["hpvmstatus", "-P", "shared", "-d"]).stdout;
    assert!(shown.contains(&format!("/drive/{worker}/{round}\n")), "{shown}");
}
