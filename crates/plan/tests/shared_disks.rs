//! Disks that several guests have at once: which may be, how each gets its own, and what is said of the others.

mod common;

use common::*;
use hpvm_model::*;
use hpvm_plan::command_line::{Handle, arguments, json, node_properties};
use hpvm_plan::facts::*;
use hpvm_plan::judge::{Purpose, problems};
use hpvm_plan::record::{Access, BootRecord, Cache, Sharing};
use proptest::prelude::*;

const PATH: &str = "/dev/sda";
const DISK: &str = "disk:avio_stor:0,0,1:disk:/dev/sda";

fn marked(statement: &str, reservations: Reservations) -> (GuestConfig, HostFacts) {
    let config = guest(&[statement]);
    let mut facts = HostFacts { start: Some(ready()), ..host(&config) };
    let kind = if statement.contains(":lv:") { BlockKind::Volume } else { BlockKind::Other };
    let (identity, size) = (FileIdentity::of_device(0x800), Bytes(1 << 30));
    let block = BlockFact { identity, size, writable: Writable::Yes, kind, reservations };
    facts.files.insert(PATH.into(), FileFact::Block(block));
    let known = Registered { share: Choice::Yes, ..Registered::default() };
    facts.registered.insert(PATH.into(), known);
    (config, facts)
}

fn said(config: &GuestConfig, facts: &HostFacts) -> Vec<String> {
    let found = problems(config, facts, Purpose::Start);
    found.iter().map(|p| format!("{}: {}", p.severity, p.text)).collect()
}

fn sharer(holds_it: bool, tenancy: Tenancy) -> Sharer {
    Sharer {
        guest: "other".parse().expect("a name"),
        address: "0,0,0".parse().expect("an address"),
        held_for: holds_it.then_some(Access::ReadWrite),
        role: StoreRole::Store,
        standing: Standing::Present,
        tenancy,
    }
}

/// Settles 79: what is marked is shared only where reservations can keep its guests apart, and the reason is told.
#[test]
fn only_whole_disks_that_reservations_hold_on_are_shared() {
    use Reservations::{Hold, HoldOnOnePath, Never};
    let (config, facts) = marked(DISK, Hold);
    assert_eq!(said(&config, &facts), [""; 0]);
    for (statement, reservations, words) in [
        (DISK, Never, "whole SCSI disks"),
        (DISK, HoldOnOnePath, "by several paths"),
        ("disk:scsi:0,0,1:disk:/dev/sda", Hold, "need the adapter avio_stor"),
        ("disk:avio_stor:0,0,1:lv:/dev/sda", Never, "a disk (lv) is one guest's alone"),
    ] {
        let (config, facts) = marked(statement, reservations);
        let said = said(&config, &facts);
        assert_eq!(said.len(), 1, "{said:?}");
        assert!(said[0].starts_with("ERROR: '/dev/sda' is marked SHARE=YES"), "{said:?}");
        assert!(said[0].contains(words), "{said:?}");
    }
    let (config, mut facts) = marked(DISK, Hold);
    facts.registered.entry(PATH.into()).and_modify(|known| known.read_only = Choice::Yes);
    assert!(said(&config, &facts)[0].contains("READONLY=YES too"));
}

#[test]
fn a_host_without_the_helper_starts_no_guest_with_a_shared_disk() {
    let (config, mut facts) = marked(DISK, Reservations::Hold);
    let reservation_helper =
        Provision { path: "/helper".into(), missing: Some("it does not exist".into()) };
    facts.start = Some(StartFacts { reservation_helper, ..ready() });
    let text = said(&config, &facts).concat();
    assert!(text.starts_with("ERROR: the program that makes reservations"), "{text}");
    facts.registered.clear();
    assert_eq!(said(&config, &facts), [""; 0], "the others need none");
}

/// Settles 79: a disk is never shared in silence, and whether the disk itself can tell its guests apart is said.
#[test]
fn who_shares_a_disk_is_told_and_by_which_path() {
    for (tenancy, words) in [
        (Tenancy::SharedBySamePath, "a reservation of one does not keep the other out"),
        (Tenancy::SharedByOtherPath, "reservations keep them apart"),
    ] {
        let (config, mut facts) = marked(DISK, Reservations::Hold);
        let identity = facts.identity(PATH).expect("an identity");
        facts.sharers.insert(identity, vec![sharer(true, tenancy)]);
        let said = said(&config, &facts);
        assert_eq!(said.len(), 1, "{said:?}");
        assert!(
            said[0].starts_with("WARNING: '/dev/sda' is shared with the running guest 'other'")
        );
        assert!(said[0].contains(words), "{said:?}");
    }
}

#[test]
fn the_guest_commands_a_shared_disk_and_its_helper_reserves() {
    let (config, mut facts) = marked(DISK, Reservations::Hold);
    let attached = facts.attach(&config.storage[0]);
    assert_eq!((attached.sharing, attached.cache), (Sharing::Reserved, Cache::Direct));
    let shared = BootRecord { storage: vec![attached.clone()], ..record(&config) };
    let wanted = |word: &String| word.contains("reserv") || word.contains("scsi-block");
    let said: Vec<String> = arguments(&shared).into_iter().filter(wanted).collect();
    let id = "device-0-0-1,bus=adapter-0-0.0,scsi-id=1,lun=0";
    assert_eq!(said, [
        "pr-manager-helper,id=reservations,path=/run/hpvm/7/reservations".to_owned(),
        "driver=host_device,node-name=medium-0-0-1,discard=unmap,pr-manager=reservations,filename=/dev/fdset/17,cache.direct=on,aio=io_uring".into(),
        format!("scsi-block,id={id},share-rw=on,drive=medium-0-0-1,bootindex=10001"),
    ]);
    let node = node_properties(&attached, "n", Handle { set: 5, number: 5 });
    let node = json(&hpvm_plan::command_line::Value::Group(node));
    assert_eq!(node["pr-manager"], "reservations");

    facts.registered.clear();
    let alone = facts.attach(&config.storage[0]);
    assert_eq!(alone.sharing, Sharing::Alone);
    let line = serde_json::to_string(&alone).expect("JSON");
    assert!(!line.contains("sharing"), "an older hpvm reads what it knows: {line}");
    let alone = BootRecord { storage: vec![alone], ..record(&config) };
    assert!(!arguments(&alone).join(" ").contains("reserv"));
}

proptest! {
    /// Two guests have one disk at once only if both share it.
    #[test]
    fn nobody_has_a_disk_at_once_with_who_wants_it_alone(
        we_share in any::<bool>(),
        holds_it in any::<bool>(),
        tenancy in prop_oneof![
            Just(Tenancy::Alone),
            Just(Tenancy::SharedBySamePath),
            Just(Tenancy::SharedByOtherPath),
        ],
    ) {
        let (config, mut facts) = marked(DISK, Reservations::Hold);
        if !we_share {
            facts.registered.clear();
        }
        let identity = facts.identity(PATH).expect("an identity");
        facts.sharers.insert(identity, vec![sharer(holds_it, tenancy)]);
        let found = problems(&config, &facts, Purpose::Start);
        let is_refused = found.iter().any(|p| p.severity == Severity::Error);
        let both_share = we_share && tenancy != Tenancy::Alone;
        prop_assert_eq!(is_refused, holds_it && !both_share);
        prop_assert!(found.iter().all(|p| p.text.contains("'other'")), "{:?}", found);
        prop_assert_eq!(found.len(), 1);
    }
}
