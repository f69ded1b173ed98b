//! Our types against QEMU's own description of its protocol, `schemas/qemu-10.0.json`.
//!
//! Each command we send must exist and take the arguments we give; each answer and event must be readable with only the
//! members QEMU always sends, and every member we name must be one that QEMU sends. Where QEMU 10.0 is installed, the
//! recording itself is compared with it; `HPVM_RECORD=1` records anew.

#[path = "../examples/record_schema/live.rs"]
mod live;
#[path = "../examples/record_schema/projection.rs"]
mod projection;

use std::collections::BTreeSet;
use std::fs;

use hpvm_qmp::answer::{self, RunState};
use hpvm_qmp::command::{self, Command, Properties};
use hpvm_qmp::event::{self, Event, Happening};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

const RECORDED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/schemas/qemu-10.0.json");

fn schema() -> Value {
    serde_json::from_str(&fs::read_to_string(RECORDED).expect("recorded")).expect("JSON")
}

#[test]
fn the_recording_is_what_qemu_says() {
    let whole = live::schema(live::PROGRAM).expect("QEMU is installed by make test");
    let now = serde_json::to_string_pretty(&projection::project(&whole).expect("known")).unwrap();
    if std::env::var_os("HPVM_RECORD").is_some() {
        fs::write(RECORDED, format!("{now}\n")).expect("written");
    }
    let recorded = fs::read_to_string(RECORDED).expect("recorded");
    assert!(recorded.trim_end() == now, "QEMU's schema changed; look, then HPVM_RECORD=1");
}

/// Sends each kind of command with all arguments we ever give.
fn commands() -> Vec<(&'static str, Value)> {
    fn one<C: Command>(command: &C) -> (&'static str, Value) {
        (C::NAME, serde_json::to_value(command).expect("arguments"))
    }
    let (id, node_name) = (|| "x".to_owned(), || "n".to_owned());
    let properties = |list: &[(&str, Value)]| -> Properties { list.iter().cloned().collect() };
    let node = [
        ("driver", json!("file")),
        ("node-name", json!("n")),
        ("filename", json!("/dev/fdset/1")),
        ("discard", json!("unmap")),
        ("read-only", json!(true)),
        ("auto-read-only", json!(false)),
    ];
    let device = [("driver", json!("scsi-hd")), ("id", json!("x")), ("bus", json!("b"))];
    let manager = [("qom-type", json!("pr-manager-helper")), ("id", json!("x"))];
    vec![
        one(&command::Capabilities {}),
        one(&command::QueryStatus {}),
        one(&command::QueryVersion {}),
        one(&command::Quit {}),
        one(&command::Stop {}),
        one(&command::Cont {}),
        one(&command::SystemReset {}),
        one(&command::SystemPowerdown {}),
        one(&command::AddFd { fdset_id: Some(1), opaque: Some("x".into()) }),
        one(&command::RemoveFd { fdset_id: 1 }),
        one(&command::QueryFdsets {}),
        one(&command::BlockdevAdd(properties(&node))),
        one(&command::BlockdevDel { node_name: node_name() }),
        one(&command::BlockResize { node_name: node_name(), size: 1 }),
        one(&command::BlockdevMirror {
            job_id: id(),
            device: node_name(),
            target: node_name(),
            sync: command::MirrorSync::Top,
            copy_mode: command::CopyMode::WriteBlocking,
            auto_finalize: false,
            auto_dismiss: false,
        }),
        one(&command::BlockJobCancel { device: id(), force: true }),
        one(&command::JobFinalize { id: id() }),
        one(&command::JobDismiss { id: id() }),
        one(&command::QueryJobs {}),
        one(&command::DeviceAdd(properties(&device))),
        one(&command::DeviceDel { id: id() }),
        one(&command::ObjectAdd(properties(&manager))),
        one(&command::QueryPrManagers {}),
        one(&command::OpenTray { id: id(), force: true }),
        one(&command::CloseTray { id: id() }),
        one(&command::RemoveMedium { id: id() }),
        one(&command::InsertMedium { id: id(), node_name: node_name() }),
        one(&command::ChangeMedium { id: id(), filename: "f".into(), format: "raw".into() }),
        one(&command::Eject { id: id(), force: false }),
        one(&command::QueryBlock {}),
        one(&command::QueryNodes { flat: true }),
        one(&command::QueryBlockstats {}),
        one(&command::QueryVirtQueue { path: "/machine".into(), queue: 2 }),
        one(&command::QueryPci {}),
        one(&command::QueryChardev {}),
        one(&command::QomList { path: "/".into() }),
        one(&command::QomGet { path: "/".into(), property: "type".into() }),
        one(&command::Human { command_line: "info version".into() }),
        one(&command::ReadRegisters {}),
        one(&command::ReadPowerButton {}),
        one(&command::ChardevAdd(properties(&[
            ("id", json!("x")),
            ("backend", json!({ "type": "socket" })),
        ]))),
        one(&command::ChardevRemove { id: id() }),
        one(&command::NetdevAdd(properties(&[("type", json!("vhost-user")), ("id", json!("x"))]))),
        one(&command::NetdevDel { id: id() }),
        one(&command::SetLink { name: id(), up: true }),
        one(&command::QuerySchema {}),
    ]
}

#[test]
fn each_command_exists_with_the_arguments_we_give() {
    let schema = schema();
    let commands = commands();
    let tried: BTreeSet<_> = commands.iter().map(|(name, _)| *name).collect();
    assert_eq!(tried, command::NAMES.iter().copied().collect(), "a command is not tried here");
    for (name, given) in commands {
        let known = schema["commands"][name]["arguments"].as_object().expect(name);
        let given = given.as_object().expect("arguments are an object");
        for (argument, value) in given {
            let known = known.get(argument).unwrap_or_else(|| panic!("{name} takes no {argument}"));
            assert!(
                fits(value, &known["type"]),
                "{name}: {argument}={value}, not {}",
                known["type"]
            );
        }
        for (argument, known) in known {
            let optional = known["optional"] == true;
            assert!(optional || given.contains_key(argument), "{name} needs {argument}");
        }
    }
}

#[test]
fn each_answer_is_read_as_qemu_gives_it() {
    let schema = schema();
    let answer = |name: &str| schema["commands"][name]["answer"].clone();
    reads::<answer::Status>(&answer("query-status"));
    reads::<answer::Version>(&answer("query-version"));
    reads::<answer::AddedFd>(&answer("add-fd"));
    reads::<Vec<answer::FdSet>>(&answer("query-fdsets"));
    reads::<Vec<answer::BlockDevice>>(&answer("query-block"));
    reads::<Vec<answer::BlockNode>>(&answer("query-named-block-nodes"));
    reads::<Vec<answer::BlockStats>>(&answer("query-blockstats"));
    reads::<answer::VirtQueue>(&answer("x-query-virtio-queue-status"));
    reads::<Vec<answer::PciBus>>(&answer("query-pci"));
    reads::<Vec<answer::Job>>(&answer("query-jobs"));
    reads::<Vec<answer::Chardev>>(&answer("query-chardev"));
    reads::<Vec<answer::QomProperty>>(&answer("qom-list"));
    assert_eq!(answer("human-monitor-command"), json!("str"));
}

#[test]
fn each_run_state_known_by_name_exists() {
    let states = &schema()["commands"]["query-status"]["answer"]["members"]["status"]["type"];
    for name in RunState::known_names() {
        assert!(fits(&json!(name), states), "{name}");
    }
    assert!(!fits(&json!("melted"), states), "the check can fail");
}

#[test]
fn each_event_is_understood() {
    let schema = schema();
    for name in event::NAMES {
        let members = json!({ "members": schema["events"][name] });
        for data in [sample(&members, Members::Required), sample(&members, Members::All)] {
            let event = Event { name: (*name).into(), data, timestamp: Default::default() };
            assert_ne!(event.happening(), Happening::Other, "{event:?}");
        }
    }
    reads::<event::Shutdown>(&json!({ "members": schema["events"]["SHUTDOWN"] }));
    reads::<event::Reset>(&json!({ "members": schema["events"]["RESET"] }));
    reads::<event::DeviceDeleted>(&json!({ "members": schema["events"]["DEVICE_DELETED"] }));
    reads::<event::TrayMoved>(&json!({ "members": schema["events"]["DEVICE_TRAY_MOVED"] }));
    reads::<event::BlockIoError>(&json!({ "members": schema["events"]["BLOCK_IO_ERROR"] }));
    reads::<event::ImageCorrupted>(
        &json!({ "members": schema["events"]["BLOCK_IMAGE_CORRUPTED"] }),
    );
    reads::<event::Panicked>(&json!({ "members": schema["events"]["GUEST_PANICKED"] }));
    reads::<event::MemoryFailure>(&json!({ "members": schema["events"]["MEMORY_FAILURE"] }));
    reads::<event::PortChanged>(&json!({ "members": schema["events"]["VSERPORT_CHANGE"] }));
    for name in ["NETDEV_STREAM_CONNECTED", "NETDEV_VHOST_USER_DISCONNECTED"] {
        reads::<event::NetdevSocket>(&json!({ "members": schema["events"][name] }));
    }
    reads::<event::ClockChanged>(&json!({ "members": schema["events"]["RTC_CHANGE"] }));
}

/// Reads the least and the most QEMU may send; of the most, every member we name must have been there.
fn reads<T: DeserializeOwned + Serialize>(kind: &Value) {
    let least = sample(kind, Members::Required);
    let name = std::any::type_name::<T>();
    serde_json::from_value::<T>(least.clone()).unwrap_or_else(|e| panic!("{name}: {e}: {least}"));
    let most = sample(kind, Members::All);
    let read: T = serde_json::from_value(most.clone()).unwrap_or_else(|e| panic!("{name}: {e}"));
    let ours = serde_json::to_value(read).expect("serializable");
    assert!(is_part_of(&ours, &most), "{name} names what QEMU does not send: {ours}");
}

#[derive(Clone, Copy, PartialEq)]
enum Members {
    Required,
    All,
}

/// A value of a recorded type. One element in each array, so that elements are read too.
fn sample(kind: &Value, which: Members) -> Value {
    match kind.as_str() {
        Some("str") => return json!("text"),
        Some("int" | "number") => return json!(7),
        Some("bool") => return json!(true),
        Some("null") => return Value::Null,
        Some(_) => return json!([]),
        None => {}
    }
    if let Some(element) = kind.get("array") {
        return json!([sample(element, which)]);
    }
    if let Some(values) = kind.get("enum") {
        return values[0].clone();
    }
    if let Some(types) = kind.get("one-of") {
        return sample(&types[0], which);
    }
    let members = kind["members"].as_object().expect("a recorded type");
    let wanted = members.iter().filter(|(_, m)| which == Members::All || m["optional"] != true);
    let object: Map<_, _> =
        wanted.map(|(name, m)| (name.clone(), sample(&m["type"], which))).collect();
    object.into()
}

fn is_part_of(part: &Value, whole: &Value) -> bool {
    match (part, whole) {
        (Value::Object(part), Value::Object(whole)) => {
            part.iter().all(|(k, v)| whole.get(k).is_some_and(|w| is_part_of(v, w)))
        }
        (Value::Array(part), Value::Array(whole)) => {
            part.len() == whole.len() && part.iter().zip(whole).all(|(p, w)| is_part_of(p, w))
        }
        (part, whole) => part == whole,
    }
}

fn fits(value: &Value, kind: &Value) -> bool {
    match kind.as_str() {
        Some("str") => return value.is_string(),
        Some("int") => return value.is_i64() || value.is_u64(),
        Some("bool") => return value.is_boolean(),
        Some("any") => return true,
        _ => {}
    }
    if let Some(values) = kind.get("enum").and_then(Value::as_array) {
        return values.contains(value);
    }
    if let (Some(members), Some(given)) = (kind.get("members"), value.as_object()) {
        let known = |(name, value): (&String, &Value)| {
            members.get(name).is_some_and(|member| fits(value, &member["type"]))
        };
        return given.iter().all(known);
    }
    kind.get("one-of")
        .and_then(Value::as_array)
        .is_some_and(|kinds| kinds.iter().any(|kind| fits(value, kind)))
}
