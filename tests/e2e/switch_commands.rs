//! Several commands that change one virtual switch at once, and what becomes of a change whose command ended, or found no room,
//! between the registry and the switch's process.

use std::fs;
use std::sync::Barrier;
use std::thread;
use std::time::Duration;

use hpvm_testkit::vm_host::{Engine, VmHost};
use hpvm_testkit::wait::wait_until;
use rustix::process::Signal;
use serde_json::Value;

use crate::Test;
use crate::guest_processes::process;
use crate::networks::SOUND;

pub(crate) const TESTS: &[Test] = crate::tests![
    changes_of_one_switch_at_once_are_all_kept,
    a_switch_is_renamed_while_its_guests_change,
    several_rules_are_given_at_once_also_to_a_port_that_no_guest_has,
    what_cannot_be_written_beside_the_registry_keeps_no_rule_from_the_process,
    what_the_process_was_not_told_the_next_boot_tells_it,
    what_the_process_cannot_write_down_it_does_not_do,
    a_process_that_does_not_answer_is_named_with_the_cure_and_holds_up_no_stop,
];

const COMMANDS: usize = 16;
const BOUND: Duration = Duration::from_secs(20);

/// Each port has the rule that was asked for it, in the registry, in its text, and in the process that runs.
fn changes_of_one_switch_at_once_are_all_kept() {
    let host = with_a_guest();
    let together = Barrier::new(COMMANDS);
    thread::scope(|scope| {
        for port in 1..=COMMANDS {
            let (host, together) = (&host, &together);
            scope.spawn(move || {
                let rule = format!("portid:{port}:vlanid:{}", 100 + port);
                together.wait();
                host.ok(&["hpvmnet", "-S", "localnet", "-u", &rule]);
            });
        }
    });
    let shown: Value = serde_json::from_str(&host.ok(&["hpvmnet", "--json"])).expect("JSON");
    let shown = shown.to_string();
    for port in 1..=COMMANDS {
        let vlan = format!("\"vlan\":\"{}\"", 100 + port);
        assert!(shown.contains(&vlan), "the rule of port {port} is lost: {shown}");
    }
    assert_eq!(rules_of_the_process(&host)["vlan"]["untagged"], 101, "{}", ports(&host));
    assert_eq!(host.ok(&["hpvm", "doctor"]), SOUND, "the text is that of the last change");
}

/// The guest's NIC names a switch that is there, whichever command came first.
fn a_switch_is_renamed_while_its_guests_change() {
    let host = VmHost::new(Engine::Fake);
    host.ok(&["hpvmnet", "-c", "-S", "sw0"]);
    host.ok(&["hpvmcreate", "-P", "web", "-a", "network:lan:0,1:vswitch:sw0"]);
    for round in 0..8 {
        let (old, new) = (format!("sw{round}"), format!("sw{}", round + 1));
        let together = Barrier::new(2);
        thread::scope(|scope| {
            scope.spawn(|| {
                together.wait();
                host.ok(&["hpvmnet", "-S", &old, "-C", "-N", &new]);
            });
            scope.spawn(|| {
                together.wait();
                host.ok(&["hpvmmodify", "-P", "web", "-l", &format!("round {round}")]);
            });
        });
        let statements = host.ok(&["hpvmstatus", "-P", "web", "-d"]);
        assert!(statements.contains(&format!(":vswitch:{new}")), "round {round}: {statements}");
        let shown = host.ok(&["hpvmstatus", "-P", "web", "-V"]);
        assert!(shown.contains(&format!("round {round}")), "{shown}");
        assert_eq!(host.ok(&["hpvm", "doctor"]), SOUND, "guest.json has both");
    }
}

/// All of them or none, each thing of a port once. A wrong number would otherwise go unnoticed.
fn several_rules_are_given_at_once_also_to_a_port_that_no_guest_has() {
    let host = with_a_guest();
    let twice = ["portid:1:vlanid:7", "portid:9:vlanid:8", "portid:9:trunk:8,9"];
    let line = |rules: &[&str], others: &[&str]| {
        let rules = rules.iter().flat_map(|rule| ["-u", *rule]);
        let line = ["hpvmnet", "-S", "localnet"].into_iter().chain(rules);
        let line: Vec<&str> = line.chain(others.iter().copied()).collect();
        host.run(&line)
    };
    let refused = line(&twice, &[]);
    assert_eq!(refused.status.code(), Some(1), "{refused}");
    let words = "vlanid or trunk of port 9 of virtual switch 'localnet' is given more than once";
    assert!(refused.stderr.contains(words), "{refused}");
    assert_eq!(rules_of_the_process(&host)["vlan"], "none", "none of them is made");

    let rules = ["portid:1:vlanid:7", "portid:1:spoof:off", "portid:9:vlanid:8"];
    let dry = line(&rules, &["--dry-run"]);
    assert_eq!(dry.stdout, "virtual switch 'localnet' would be changed\n");
    let would = "hpvmnet: no guest has port 9 of virtual switch 'localnet'; the next one that gets it would have these rules\n";
    assert_eq!((dry.status.code(), dry.stderr.as_str()), (Some(0), would), "{dry}");
    let made = line(&rules, &[]);
    assert!(made.status.success(), "{made}");
    let note = "hpvmnet: no guest has port 9 of virtual switch 'localnet'; the next one that gets it has these rules\n";
    assert_eq!(made.stderr, note, "and nothing is said of port 1");
    let has = rules_of_the_process(&host);
    assert_eq!((&has["vlan"]["untagged"], &has["spoof_guard"]), (&7.into(), &"off".into()));
    let mirrored = line(&["portid:1:mirror:9"], &[]);
    let note = "hpvmnet: no guest has port 9 of virtual switch 'localnet'; what is mirrored there gets lost until one has\n";
    assert_eq!(mirrored.stderr, note, "and nothing is said of port 1");
    for quiet in [
        line(&rules, &["-Q"]),
        line(&["portid:9:vlanid:none"], &[]),
        line(&["portid:1:mirror:none"], &[]),
    ] {
        assert!(quiet.status.success() && quiet.stderr.is_empty(), "{quiet}");
    }
    host.ok(&["hpvmnet", "-c", "-S", "sw1"]);
    for dry in [
        line(&["portid:1:vlanid:7"], &["--dry-run"]),
        host.run(&["hpvmnet", "-S", "sw1", "-C", "-N", "sw1", "--wire", "none", "--dry-run"]),
    ] {
        assert_eq!(dry.stdout, "Nothing would change.\n", "{dry}");
    }
    for (switch, deed, state) in [("localnet", "-b", "up"), ("sw1", "-h", "halted")] {
        let dry = host.run(&["hpvmnet", "-S", switch, deed, "--dry-run"]);
        let says = format!(
            "virtual switch '{switch}' is {state} already; whoever was not told so would be\n"
        );
        assert_eq!(dry.stdout, says, "{dry}");
    }
    let dry = host.run(&["hpvmnet", "-S", "sw1", "-b", "--dry-run"]);
    assert_eq!(dry.stdout, "virtual switch 'sw1' would be booted\n", "{dry}");
}

/// A port that is to be isolated is, though `/var` takes no text; and the doctor writes it later.
fn what_cannot_be_written_beside_the_registry_keeps_no_rule_from_the_process() {
    let host = with_a_guest();
    let text = host.path("var/opt/hpvm/common/vswitch-1.json");
    // Whatever is written cannot take the place of a folder.
    fs::create_dir_all(text.join("in the way")).expect("a folder");
    let changed = host.run(&["hpvmnet", "-S", "localnet", "-u", "portid:1:isolated:on"]);
    assert!(changed.status.success(), "{changed}");
    let words = "what a lost registry would have 'localnet' from could not be written";
    assert!(changed.stderr.contains(words), "{changed}");
    assert_eq!(rules_of_the_process(&host)["isolation"], "on", "{}", ports(&host));
    fs::remove_dir_all(&text).expect("the folder");
    host.ok(&["hpvm", "doctor", "--repair"]);
    assert_eq!(host.ok(&["hpvm", "doctor"]), SOUND);
}

fn what_the_process_was_not_told_the_next_boot_tells_it() {
    let mut host = with_a_guest();
    host.environment("HPVM_ABORT_AT", "vswitch.committed");
    let died = host.run(&["hpvmnet", "-S", "localnet", "-u", "portid:1:isolated:on"]);
    assert!(!died.status.success(), "{died}");
    host.without_environment("HPVM_ABORT_AT");
    assert_eq!(rules_of_the_process(&host)["isolation"], "off", "{}", ports(&host));
    let told = host.run(&["hpvm", "doctor"]);
    let finding = "virtual switch 'localnet' does not have all as the registry says: the rules of port 1\n  next: hpvmnet -S localnet -b\n";
    assert!(told.stdout.contains(finding), "{told}");
    host.ok(&["hpvmnet", "-S", "localnet", "-b"]);
    assert_eq!(rules_of_the_process(&host)["isolation"], "on", "{}", ports(&host));
    assert_eq!(host.ok(&["hpvm", "doctor"]), SOUND);
}

/// The command says so, and the process goes on as its successor would.
fn what_the_process_cannot_write_down_it_does_not_do() {
    let host = with_a_guest();
    let fresh = host.path("run/hpvm/net/1/.ports.new");
    fs::create_dir(&fresh).expect("a folder where its file is to be");
    let refusal = host.refused(&["hpvmnet", "-S", "localnet", "-u", "portid:1:isolated:on"]);
    assert!(refusal.contains("could not be told all of it; `hpvmnet -S localnet -b`"), "{refusal}");
    assert!(refusal.contains("the change cannot be written down"), "{refusal}");
    fs::remove_dir(&fresh).expect("the folder");
    // Another port has it write down all that it knows.
    host.ok(&["hpvmcreate", "-P", "other", "-a", "network:lan::vswitch:localnet:portid:2"]);
    host.ok(&["hpvmstart", "-P", "other"]);
    assert_eq!(rules_of_the_process(&host)["isolation"], "off", "{}", ports(&host));
    host.ok(&["hpvmnet", "-S", "localnet", "-b"]);
    assert_eq!(rules_of_the_process(&host)["isolation"], "on", "{}", ports(&host));
}

/// What it could not be told is not changed, and a guest is off without it.
fn a_process_that_does_not_answer_is_named_with_the_cure_and_holds_up_no_stop() {
    let host = with_a_guest();
    let switch = process(&host, "hpvmnetd").expect("it runs");
    switch.signal(Signal::STOP);
    let silent = "virtual switch 'localnet' did not answer within 2 s";
    for line in [&["-h", "-F"][..], &["-u", "portid:1:isolated:on"]] {
        let line = [&["hpvmnet", "-S", "localnet"], line].concat();
        let refusal = host.refused(&line);
        assert!(refusal.contains(silent) && !refusal.contains("is changed"), "{refusal}");
    }
    let told = [
        format!("(hpvmnetd, {}) does not answer", switch.pid),
        format!("kill -CONT {}", switch.pid),
    ];
    for line in [&["hpvm", "doctor"][..], &["hpvm", "why", "web"]] {
        let said = host.run(line);
        assert!(told.iter().all(|words| said.stdout.contains(words)), "{said}");
    }
    let stopped = host.run(&["hpvmstop", "-P", "web", "-h", "-F"]);
    assert!(stopped.status.success(), "{stopped}");
    assert!(stopped.stderr.contains(&format!("could be cleared away: {silent}")), "{stopped}");
    assert_eq!(host.state("web"), "Off");
    switch.signal(Signal::CONT);
    // It first has what was asked of it while it stood still.
    wait_until(BOUND, "the rest is cleared away", || {
        let again = host.run(&["hpvmstop", "-P", "web", "-h", "-F"]);
        assert!(again.status.success(), "{again}");
        !again.stderr.contains("WARNING")
    });
    assert_eq!(host.ok(&["hpvm", "doctor"]), SOUND);
    assert!(process(&host, "hpvmnetd").is_none(), "nobody has a port of it");
    host.ok(&["hpvmnet", "-S", "localnet", "-h", "-F"]);
}

/// A guest that runs on port 1 of localnet.
fn with_a_guest() -> VmHost {
    let host = VmHost::new(Engine::Fake);
    host.ok(&["hpvmcreate", "-P", "web", "-a", "network:lan::vswitch:localnet:portid:1"]);
    host.ok(&["hpvmstart", "-P", "web"]);
    host
}

/// What the switch is to be, as its process keeps it.
fn ports(host: &VmHost) -> Value {
    let text = fs::read_to_string(host.path("run/hpvm/net/1/ports")).expect("the ports");
    serde_json::from_str(&text).expect("JSON")
}

/// Of port 1.
fn rules_of_the_process(host: &VmHost) -> Value {
    ports(host)["ports"][0]["rules"].clone()
}
