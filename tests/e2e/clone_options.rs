//! hpvmclone with each of its options: what the clone is then, field by field, and what somebody at a terminal sees meanwhile.

use std::path::Path;
use std::time::Duration;

use hpvm_testkit::vm_host::{Engine, VmHost};
use serde_json::{Value, json};

use crate::Test;
use crate::clone::{fill, on};
use crate::terminal::Terminal;

pub(crate) const TESTS: &[Test] = crate::tests![
    every_option_at_once_is_as_hpvmstatus_shows_it,
    every_option_of_a_linked_clone_at_once,
    a_clone_like_its_source_takes_its_place,
    progress_is_told_on_a_terminal,
    a_store_in_use_is_told_once,
];

const MIB: u64 = 1 << 20;
/// Four times what a stop needs on a quiet machine, and room for a busy one.
const BOUND: Duration = Duration::from_secs(20);

/// `web`, number 1, off, with all kinds of things to be kept, copied, moved and left out, and files for what comes.
fn with_web() -> VmHost {
    let host = VmHost::new(Engine::Fake);
    fill(&host.disk("web.img", 16 * MIB), 4);
    for name in ["data.img", "other.img", "more.img", "base.img"] {
        let _ = host.disk(name, 16 * MIB);
    }
    let devices = [
        file(&host, "disk:avio_stor:0,1,0", "web.img"),
        "dvd:avio_stor:0,1,1:null:/srv".to_owned(),
        file(&host, "disk:avio_stor:0,2,0", "data.img"),
        "network:lan:0,4:vswitch:localnet".to_owned(),
    ];
    let mut line = vec!["hpvmcreate", "-P", "web", "-O", "linux:12", "-r", "512M", "-l", "site"];
    devices.iter().for_each(|device| line.extend(["-a", device]));
    host.ok(&line);
    host
}

fn file(host: &VmHost, place: &str, name: &str) -> String {
    format!("{place}:file:{}", host.path(name).display())
}

fn shown(host: &VmHost, name: &str) -> Value {
    let text = host.ok(&["hpvmstatus", "-P", name, "--json"]);
    let document: Value = serde_json::from_str(&text).expect("JSON");
    document["guests"][0].clone()
}

/// A field of each of a guest's configured devices.
fn each(guest: &Value, devices: &str, field: &str) -> Vec<Value> {
    let devices = guest["configured"][devices].as_array().expect("devices");
    devices.iter().map(|device| device[field].clone()).collect()
}

/// Takes away what differs from guest to guest, and is compared apart from the rest.
fn without_identities(mut guest: Value) -> Value {
    let fields = guest.as_object_mut().expect("a guest");
    fields.retain(|name, _| !["uuid", "serial_number"].contains(&name.as_str()));
    for (devices, fields) in [
        ("storage", &["id", "guest_pci_path", "efi_path"][..]),
        ("networks", &["mac_address", "statement", "guest_pci_path"]),
    ] {
        for device in guest["configured"][devices].as_array_mut().expect("devices") {
            let known = device.as_object_mut().expect("a device");
            known.retain(|name, _| !fields.contains(&name.as_str()));
        }
    }
    guest
}

fn storage(statement: &str, layers: &Value) -> Value {
    let [kind, adapter, address, storage, path] =
        statement.split(':').collect::<Vec<_>>().try_into().expect("a statement");
    let [bus, device, target] =
        address.split(',').map(|n| n.parse::<u32>().expect("a number")).collect::<Vec<_>>()[..]
    else {
        panic!("{address} is an address");
    };
    json!({
        "kind": kind, "adapter": adapter, "bus": bus, "device": device, "target": target,
        "storage": storage, "path": path, "layers": layers, "read_only": false,
        "statement": statement,
    })
}

fn network(adapter: &str, device: u32, port: u32) -> Value {
    json!({
        "adapter": adapter, "bus": 0, "device": device, "mac_address_in_use": null,
        "vswitch": "localnet", "port": port,
    })
}

/// First as a dry run, which says the same and makes nothing.
fn every_option_at_once_is_as_hpvmstatus_shows_it() {
    let host = with_web();
    let copied = file(&host, "disk:avio_stor:0,1,0", "copy.img");
    let moved = file(&host, "disk:scsi:0,2,0", "other.img");
    let added = file(&host, "disk:scsi:0,5,0", "more.img");
    let mut asked: Vec<&str> =
        "hpvmclone -P web -N new -O linux:13 -c 2 -e 20:40 -r 1G".split(' ').collect();
    for option in [
        ["-l", "a clone"],
        ["-B", "auto"],
        ["-a", &added],
        ["-a", "network:avio_lan:0,6:vswitch:localnet"],
        ["-d", "dvd:avio_stor:0,1,1"],
        ["-m", &moved],
        ["-b", &copied],
        ["-x", "mac_address=same"],
        ["-x", "serial_number=same"],
        ["-x", "runnable_status=disabled"],
        ["--reason", "all of it"],
    ] {
        asked.extend(option);
    }
    let dry = host.ok(&[&asked[..], &["-s", "--json"]].concat());
    let dry: Value = serde_json::from_str(&dry).expect("JSON");
    assert!(dry.to_string().contains(&copied), "{dry}");
    assert!(
        !host.path("copy.img").exists()
            && host.refused(&["hpvmstatus", "-P", "new"]).contains("new")
    );
    std::fs::write(host.path("copy.img"), "somebody's").expect("a file");
    assert!(host.refused(&asked).contains("exists and is not empty"));
    let said = host.run(&[&asked[..], &["-F"]].concat());
    assert!(said.status.success(), "{said}");
    assert!(said.stderr.contains("is also that of guest 'web'"), "{said}");

    let (web, new) = (shown(&host, "web"), shown(&host, "new"));
    assert_ne!(web["uuid"], new["uuid"]);
    assert_eq!(web["serial_number"], new["serial_number"]);
    let (theirs, ours) = (each(&web, "storage", "id"), each(&new, "storage", "id"));
    assert!(ours.len() == 3 && ours.iter().all(|id| !theirs.contains(id)), "{ours:?} {theirs:?}");
    let (theirs, ours) =
        (each(&web, "networks", "mac_address"), each(&new, "networks", "mac_address"));
    assert!(ours.len() == 2 && ours[0] == theirs[0] && ours[1] != theirs[0], "{ours:?} {theirs:?}");
    let none = json!([]);
    assert_eq!(
        without_identities(new),
        json!({
            "name": "new", "number": 2, "label": "a clone",
            "os": {"family": "LINUX", "version": "13"},
            "state": "off", "state_shown": "Off", "since": null, "start": "auto", "runnable": false,
            "entitlement": {"given": "20.0%:40.0%", "percent": 20.0, "maximum_percent": 40.0},
            "configured": {
                "vcpus": 2, "memory_bytes": 1 << 30,
                "storage": [storage(&copied, &none), storage(&moved, &none), storage(&added, &none)],
                "networks": [network("lan", 4, 2), network("avio_lan", 6, 3)],
            },
            "running": null, "waiting": [], "health": [], "last_run": null,
        })
    );
    let content = |name| std::fs::read(host.path(name)).expect("a disk");
    assert!(content("copy.img") == content("web.img"), "what -b names is copied");
    let records = host.ok(&["hpvmstatus", "-e"]);
    assert!(records.contains("all of it"), "{records}");
    host.ok(&["hpvmmodify", "-P", "new", "-x", "runnable_status=enabled"]);
    host.ok(&["hpvmstart", "-P", "new"]);
    assert_eq!(host.ok(&["hpvm", "doctor"]), "Nothing to complain of.\n");
}

/// The options that the first call has no room for: by number, in MHz, linked, and an image with what lies under it.
fn every_option_of_a_linked_clone_at_once() {
    let host = with_web();
    let image = host.path("top.qcow2").display().to_string();
    let base = host.path("base.img").display().to_string();
    qemu_img(&["create", "-q", "-f", "qcow2", "-F", "raw", "-b", &base, &image]);
    let named = on(&host.path("named.qcow2"), "qcow2");
    let (added, layer) = (format!("disk:avio_stor:0,5,0:qcow2:{image}"), format!("file:{base}"));
    host.ok(&[
        "hpvmclone",
        "-p",
        "1",
        "-N",
        "new",
        "-E",
        "1000:1500",
        "-B",
        "manual",
        "-a",
        &added,
        "--layer",
        &layer,
        "-d",
        "network:lan:0,4",
        "-b",
        &named,
        "--linked",
        "-x",
        "mac_address=new",
        "-x",
        "serial_number=new",
        "--force",
    ]);
    let (web, new) = (shown(&host, "web"), shown(&host, "new"));
    assert_ne!(web["serial_number"], new["serial_number"]);
    let own = host.path("var/opt/hpvm/uuids").join(new["uuid"].as_str().expect("a uuid"));
    let own = format!("disk:avio_stor:0,2,0:qcow2:{}", own.join("disk-0-2-0.qcow2").display());
    let over = |name: &str| json!([{"storage": "file", "path": host.path(name)}]);
    let entitled = &new["entitlement"]["given"];
    assert_eq!((entitled, &new["start"]), (&json!("1000 MHz:1500 MHz"), &json!("manual")));
    let configured = &without_identities(new.clone())["configured"];
    assert_eq!(
        configured,
        &json!({
            "vcpus": 1, "memory_bytes": 512 * MIB,
            "storage": [
                storage(&named, &over("web.img")),
                storage("dvd:avio_stor:0,1,1:null:/srv", &json!([])),
                storage(&own, &over("data.img")),
                storage(&added, &over("base.img")),
            ],
            "networks": [],
        })
    );
    host.ok(&["hpvmstart", "-P", "new"]);
}

fn qemu_img(arguments: &[&str]) {
    let done = std::process::Command::new("qemu-img").args(arguments).status();
    assert!(done.expect("qemu-img").success(), "qemu-img {arguments:?}");
}

/// With the same address only one of the two runs, and it does not matter which.
fn a_clone_like_its_source_takes_its_place() {
    let host = with_web();
    let line = [
        "hpvmclone",
        "-P",
        "web",
        "-N",
        "new",
        "-x",
        "mac_address=same",
        "-d",
        "disk:avio_stor:0,2,0",
    ];
    let copy = on(&host.path("copy.img"), "file");
    host.ok(&[&line[..], &["-b", &copy]].concat());
    host.ok(&["hpvmmodify", "-P", "new", "-l", "changed as any guest is"]);
    for (first, second) in [("new", "web"), ("web", "new")] {
        host.ok(&["hpvmstart", "-P", first]);
        let said = host.refused(&["hpvmstart", "-P", second]);
        assert!(said.contains(&format!("in use by a NIC of guest {first}, which runs")), "{said}");
        host.ok(&["hpvmstop", "-P", first, "-F"]);
        host.wait_for_state(first, "Off", BOUND);
    }
    assert_eq!(host.ok(&["hpvm", "doctor"]), "Nothing to complain of.\n");
    host.ok(&["hpvm", "doctor", "--rebuild", "-F"]);
    assert_eq!(
        each(&shown(&host, "web"), "networks", "mac_address"),
        each(&shown(&host, "new"), "networks", "mac_address"),
        "a lost registry comes back with both"
    );
    host.ok(&["hpvmremove", "-P", "web", "-F"]);
    host.ok(&["hpvmstart", "-P", "new"]);
    for (words, reason) in [
        (["hpvmclone", "-P", "new", "-N", "x", "-x", "mac_address=old"], "neither new nor same"),
        (["hpvmclone", "-P", "new", "-N", "x", "-x", "mac=new"], "mac_address, serial_number and"),
        (["hpvmmodify", "-P", "new", "-l", "x", "-x", "mac_address=new"], "is no keyword"),
    ] {
        let outcome = host.run(&words);
        assert_eq!(outcome.status.code(), Some(2), "{outcome}");
        assert!(outcome.stderr.contains(reason), "{outcome}");
    }
}

/// One line, written over and over, and gone when what was done is told.
fn progress_is_told_on_a_terminal() {
    let host = VmHost::new(Engine::Fake);
    fill(&host.disk("web.img", 256 * MIB), 256);
    host.ok(&["hpvmcreate", "-P", "web", "-a", &on(&host.path("web.img"), "file")]);
    let copy = on(&host.path("copy.img"), "file");
    let line = ["hpvmclone", "-P", "web", "-N", "new", "-b", &copy];
    let mut session = Terminal::of(host.command(&line));
    session.expect(&format!("\r\x1b[Khpvmclone: {}: ", host.path("web.img").display()));
    session.expect(" of 256 MB");
    let copied = format!("is copied to {}\r\n", host.path("copy.img").display());
    session.expect(&format!("\r\x1b[Khpvmclone: the device at 0,1,0 {copied}"));
    session.expect("hpvmclone: Virtual storage cloned successfully.");
    assert_eq!(session.ended(), Some(0));
}

/// Whatever else would be wrong with the clone follows from that.
fn a_store_in_use_is_told_once() {
    let host = VmHost::new(Engine::Fake);
    let [own, other] = ["own.img", "other.img"].map(|name| host.disk(name, MIB));
    let disk = |at: &str, path: &Path| format!("disk:avio_stor:{at}:file:{}", path.display());
    let (one, two) = (disk("0,0,0", &own), disk("0,0,1", &other));
    host.ok(&["hpvmcreate", "-P", "web", "-a", &one, "-a", &two]);
    let onto = disk("0,0,0", &other);
    let said = host.refused(&["hpvmclone", "-P", "web", "-N", "new", "-b", &onto]);
    let told: Vec<&str> = said.lines().collect();
    let expected = format!(
        "hpvmclone: ERROR (new): '{}' belongs to guest 'web' (0,0,1) and is not overwritten",
        other.display()
    );
    assert_eq!(told, [expected], "{said}");
}
