//! How large a guest can be: what each type gets unless told otherwise, the bounds of its processors, memory and devices, and
//! what is made of a value between two steps.

use std::collections::BTreeMap;
use std::thread;

use hpvm_testkit::vm_host::{Engine, Outcome, VmHost};

use crate::Test;
use crate::refusals::{refused, stored};

pub(crate) const TESTS: &[Test] = crate::tests![
    types_have_their_defaults,
    maxima_follow_the_host,
    the_old_table_comes_back_on_request,
    memory_is_rounded_up_and_said_so,
    as_many_devices_as_a_guest_can_have_start,
];

/// `key : value` lines of hpvmstatus -V.
pub(crate) fn fields(host: &VmHost, name: &str) -> BTreeMap<String, String> {
    let text = host.ok(&["hpvmstatus", "-V", "-P", name]);
    let pair = |line: &str| {
        let (key, value) = line.split_once(" : ").or_else(|| line.split_once(':'))?;
        Some((key.trim().to_owned(), value.trim().to_owned()))
    };
    text.lines().filter_map(pair).collect()
}

#[track_caller]
pub(crate) fn warned_once(outcome: &Outcome, about: &str) {
    assert!(outcome.status.success(), "{outcome}");
    let warnings: Vec<&str> = outcome.stderr.lines().filter(|l| l.contains("WARNING")).collect();
    assert_eq!(warnings.len(), 1, "{outcome}");
    assert!(warnings[0].contains(about), "{outcome}");
}

/// Settles 41: the help tells what a guest gets.
fn types_have_their_defaults() {
    let host = VmHost::new(Engine::Fake);
    let types = [
        ("a", None, "UNKNOWN"),
        ("b", Some("hpux"), "HPUX"),
        ("c", Some("HPUX:11i v3"), "HPUX"),
        ("d", Some("LiNuX"), "LINUX"),
        ("e", Some("windows"), "WINDOWS"),
        ("f", Some("Unknown"), "UNKNOWN"),
    ];
    for (name, asked, shown) in types {
        let mut line = vec!["hpvmcreate", "-P", name];
        line.extend(asked.iter().flat_map(|asked| ["-O", asked]));
        let made = host.run(&line);
        assert!(made.status.success(), "{made}");
        assert_eq!((made.stdout.as_str(), made.stderr.as_str()), ("", ""), "{made}");
        let text = host.ok(&["hpvmstatus"]);
        let row = text.lines().find(|l| l.split_whitespace().next() == Some(name)).expect("a row");
        let words: Vec<&str> = row.split_whitespace().collect();
        assert_eq!(words[2..], [shown, "Off", "1", "0", "0", "2", "GB", "0"], "{row}");
        let guest = stored(&host, name);
        assert!(guest.to_string().to_lowercase().contains("manual"), "started by command only");
        let section = host.ok(&["hpvmstatus", "-P", name]);
        assert!(section.contains("10.0%  100.0%"), "{section}");
    }
    assert!(stored(&host, "c").to_string().contains("11i v3"), "the version is kept");
    let (help, made) = (host.ok(&["hpvmcreate", "--help"]), fields(&host, "a"));
    for (option, key) in [
        ("--os-type", "Operating System"),
        ("--vcpus", "Number of virtual CPUs"),
        ("--entitlement ", "Entitlement as given"),
        ("--memory", "Memory"),
        ("--boot", "Start type"),
    ] {
        let line = help.lines().find(|line| line.contains(option)).expect("it is listed");
        assert!(line.ends_with(&format!("[default: {}]", made[key])), "{key}: {line}");
    }
}

/// Settles 33, 93.
fn maxima_follow_the_host() {
    let host = VmHost::new(Engine::Fake);
    let processors = thread::available_parallelism().expect("processors").get();
    for kind in ["hpux", "windows", "linux", "unknown"] {
        host.ok(&["hpvmcreate", "-P", kind, "-O", kind, "-c", &processors.to_string()]);
        let more = (processors + 1).to_string();
        warned_once(
            &host.run(&["hpvmmodify", "-P", kind, "-c", &more]),
            "processors of this VM Host",
        );
        let outcome = host.run(&["hpvmstart", "-P", kind]);
        assert_eq!(outcome.status.code(), Some(1), "{outcome}");
        assert!(outcome.stderr.contains("processors of this VM Host"), "{outcome}");
        refused(&host, &["hpvmmodify", "-P", kind, "-c", "289"]);
        refused(&host, &["hpvmmodify", "-P", kind, "-r", "513G"]);
    }
}

fn the_old_table_comes_back_on_request() {
    let mut host = VmHost::new(Engine::Fake);
    for kind in ["hpux", "windows", "linux", "unknown"] {
        host.ok(&["hpvmcreate", "-P", kind, "-O", kind]);
    }
    let accepted = |host: &VmHost, kind: &str, option: [&str; 2]| {
        let outcome = host.run(&["hpvmmodify", "-P", kind, option[0], option[1]]);
        assert!(outcome.status.success(), "{outcome}");
    };
    let denied = |host: &VmHost, kind: &str, option: [&str; 2], limit: &str| {
        let said = refused(host, &["hpvmmodify", "-P", kind, option[0], option[1]]);
        assert!(said.contains(limit), "{said}");
    };
    accepted(&host, "linux", ["-c", "5"]);
    accepted(&host, "linux", ["-r", "65G"]);
    accepted(&host, "linux", ["-c", "1"]);
    accepted(&host, "linux", ["-r", "2G"]);
    host.set("HPVMLIMITS", "A.03.50");
    for kind in ["hpux", "windows", "linux", "unknown"] {
        accepted(&host, kind, ["-c", "4"]);
        denied(&host, kind, ["-c", "5"], "more than the 4");
        let (least, below, most, above) = match kind {
            "unknown" => ("64M", None, "128G", ("131136M", "128 GB")),
            _ => ("512M", Some("448M"), "64G", ("65600M", "64 GB")),
        };
        accepted(&host, kind, ["-r", least]);
        if let Some(below) = below {
            denied(&host, kind, ["-r", below], "less than the 512 MB");
        }
        accepted(&host, kind, ["-r", most]);
        denied(&host, kind, ["-r", above.0], above.1);
    }
    // What became too much since only warns, and may be made less.
    host.set("HPVMLIMITS", "");
    accepted(&host, "linux", ["-c", "6"]);
    host.set("HPVMLIMITS", "A.03.50");
    accepted(&host, "linux", ["-l", "six"]);
    accepted(&host, "linux", ["-c", "2"]);
}

/// Settles 84.
fn memory_is_rounded_up_and_said_so() {
    let host = VmHost::new(Engine::Fake);
    for (index, (given, made)) in [
        ("1", "64 MB"),
        ("65", "128 MB"),
        ("100M", "128 MB"),
        ("1.1G", "1152 MB"),
        ("2047M", "2 GB"),
    ]
    .into_iter()
    .enumerate()
    {
        let name = format!("rounded{index}");
        let outcome = host.run(&["hpvmcreate", "-P", &name, "-r", given]);
        warned_once(&outcome, given);
        assert!(outcome.stderr.contains(made), "{outcome}");
        assert!(host.ok(&["hpvmstatus"]).contains(made));
        warned_once(&host.run(&["hpvmmodify", "-P", &name, "-r", given]), made);
    }
    for (given, made) in
        [("2048", "2 GB"), ("1.5G", "1536 MB"), ("0.5g", "512 MB"), ("64m", "64 MB")]
    {
        let name = format!("exact{}", made.replace(' ', ""));
        let outcome = host.run(&["hpvmcreate", "-P", &name, "-r", given]);
        assert!(outcome.status.success() && outcome.stderr.is_empty(), "{outcome}");
        let row = host.ok(&["hpvmstatus"]);
        let row = row.lines().find(|line| line.starts_with(&name)).expect("a row");
        assert!(row.contains(made), "{row}");
    }
}

/// The bound that is told is one that the whole way of a start keeps, on QEMU and on its like. Settles 134.
fn as_many_devices_as_a_guest_can_have_start() {
    const MOST: usize = 1024;
    for engine in [Engine::Fake, Engine::Real] {
        let host = VmHost::new(engine);
        let device = |n: usize| {
            let file = host.disk(&format!("{n}.img"), 4096);
            let (slot, target) = (n / 100, n % 100);
            format!("disk:avio_stor:{},{},{target}:file:{}", 1 + slot / 8, slot % 8, file.display())
        };
        let devices: Vec<String> = (0..MOST).map(device).collect();
        host.create("web", "512M", &devices);
        let told = host.refused(&["hpvmmodify", "-P", "web", "-a", &device(MOST)]);
        assert!(told.contains("1025 devices are more than the 1024 a guest can have"), "{told}");
        host.ok(&["hpvmstart", "-P", "web"]);
        let shown = host.ok(&["hpvmstatus", "-P", "web", "-d"]);
        assert_eq!(shown.lines().filter(|line| line.contains(":file:")).count(), MOST, "{shown}");
        host.ok(&["hpvmstop", "-P", "web", "-h", "-F"]);
    }
}
