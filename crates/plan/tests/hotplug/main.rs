//! Which device changes a running guest takes now, in what order, and which wait.

#[path = "../common/mod.rs"]
mod common;
mod until_reset;

use std::collections::BTreeSet;
use std::time::Duration;

use common::*;
use hpvm_model::*;
use hpvm_plan::difference::{Effect, again, fields, in_firmware, waiting};
use hpvm_plan::hotplug::{
    Agent, Force, Live, Planned, When, held_elsewhere, not_written_out, plan, waiting_removals,
};
use hpvm_plan::placement::{SPARE_PORTS, place, ports};
use hpvm_plan::record::*;
use proptest::prelude::*;
use until_reset::{reset, take_all, tell};

fn running(statements: &[&str]) -> Machine {
    Machine::new(record(&guest(statements)))
}

fn changes(machine: &Machine, wanted: &[&str], idle: Option<u64>, force: Force) -> Vec<Planned> {
    let idle = machine
        .storage
        .iter()
        .filter_map(|a| idle.map(|seconds| (a.device.address, Duration::from_secs(seconds))));
    let wanted = guest(wanted);
    let live = Live { idle: idle.collect(), ..Live::default() };
    alone(machine, &wanted, &live, force)
}

/// A change beside which nothing waits.
fn alone(machine: &Machine, wanted: &GuestConfig, live: &Live, force: Force) -> Vec<Planned> {
    plan(&BTreeSet::new(), machine, wanted, &host(wanted), live, force)
}

/// What the machine is once a change is made.
fn take(machine: &mut Machine, seq: u64, change: &DeviceChange) {
    let (at, outcome) = (String::new(), Outcome::Done);
    machine.replay(JournalLine::Asked {
        seq,
        at: at.clone(),
        change: change.clone(),
        due: Due::Now,
    });
    machine.replay(JournalLine::Settled { seq, at, outcome });
}

fn reason(planned: &Planned) -> &str {
    match &planned.when {
        When::NextStart(reason) | When::NextReset { why: reason, .. } => reason,
        When::Now(change) => panic!("made now: {change:?}"),
    }
}

fn now(planned: &Planned) -> &DeviceChange {
    match &planned.when {
        When::Now(change) => change,
        waits => panic!("waits: {waits:?}"),
    }
}

/// What the worker is told of a change that waits for the reset; `None` when it knows.
fn at_reset(planned: &Planned) -> Option<&DeviceChange> {
    match &planned.when {
        When::NextReset { told, .. } => told.as_ref(),
        other => panic!("not at the reset: {other:?}"),
    }
}

#[test]
fn a_disk_joins_a_live_avio_adapter() {
    let machine = running(&["disk:avio_stor:0,0,0:file:/a"]);
    let planned = changes(
        &machine,
        &["disk:avio_stor:0,0,0:file:/a", "disk:avio_stor:0,0,1:file:/b"],
        None,
        Force::No,
    );
    assert_eq!(planned.len(), 1);
    assert!(matches!(
        now(&planned[0]),
        DeviceChange::Attach { adapter: AdapterPresence::Present, devices, .. } if devices.len() == 1
    ));
}

#[test]
fn a_disk_on_a_live_vio_adapter_waits_and_on_a_new_one_comes_with_it() {
    let machine = running(&["disk:scsi:0,0,0:file:/a"]);
    let wanted = [
        "disk:scsi:0,0,0:file:/a",
        "disk:scsi:0,0,1:file:/b",
        "disk:scsi:0,1,0:file:/c",
        "disk:scsi:0,1,1:file:/d",
    ];
    let planned = changes(&machine, &wanted, None, Force::No);
    assert_eq!(planned.len(), 2);
    assert!(reason(&planned[0]).contains("never sees"));
    assert!(matches!(
        at_reset(&planned[0]),
        Some(DeviceChange::Attach { adapter: AdapterPresence::Present, devices, .. })
            if devices.len() == 1
    ));
    assert!(matches!(
        now(&planned[1]),
        DeviceChange::Attach { adapter: AdapterPresence::New, devices, .. } if devices.len() == 2
    ));
}

#[test]
fn one_of_several_leaves_only_when_quiet_or_forced() {
    let machine = running(&["disk:avio_stor:0,0,0:file:/a", "disk:avio_stor:0,0,1:file:/b"]);
    let keep = ["disk:avio_stor:0,0,0:file:/a"];
    assert!(reason(&changes(&machine, &keep, Some(9), Force::No)[0]).contains("9 s ago"));
    assert!(reason(&changes(&machine, &keep, None, Force::No)[0]).contains("does not say"));
    for planned in [
        changes(&machine, &keep, Some(10), Force::No),
        changes(&machine, &keep, Some(0), Force::Yes),
    ] {
        assert!(matches!(now(&planned[0]), DeviceChange::Detach { .. }));
    }
}

/// Whoever changes something else does not expect a disk to go that waited, nor the adapter under it.
#[test]
fn what_waits_to_leave_is_left_alone_until_it_is_named() {
    let all = ["disk:avio_stor:0,0,0:file:/a", "disk:avio_stor:0,0,1:file:/b"];
    let machine = running(&all);
    let address = machine.storage[1].device.address;
    for (keep, waiting, left) in [
        (&all[..1], Some(address), 0),
        (&all[..1], None, 1),
        // The last one that is wanted goes alone, since the other stays on the adapter.
        (&[], Some(address), 1),
    ] {
        let wanted = guest(keep);
        let waiting = waiting.into_iter().collect();
        let live = Live::default();
        let planned = plan(&waiting, &machine, &wanted, &host(&wanted), &live, Force::Yes);
        assert_eq!(planned.len(), left, "{planned:?}");
        assert!(planned.iter().all(|p| matches!(now(p), DeviceChange::Detach { .. })));
    }
    let wanted = guest(&all[..1]);
    let planned = changes(&machine, &all[..1], Some(3), Force::No);
    let named = BTreeSet::from([address]);
    let rows = again(&named, &wanted, &machine, &planned);
    assert!(
        matches!(&rows[..], [row] if matches!(&row.effect, Effect::NextReset(reason) if reason.contains("3 s ago")))
    );
    let forced = changes(&machine, &all[..1], Some(3), Force::Yes);
    assert_eq!(again(&named, &wanted, &machine, &forced)[0].effect, Effect::Now);
    assert_eq!(waiting_removals(&machine, &wanted).count(), 1);
}

/// What waits to leave a place is not free for another one: an exchange would take the old disk away before QEMU says so.
#[test]
fn a_store_that_the_guest_has_still_comes_nowhere_else() {
    let before = ["disk:avio_stor:0,0,0:file:/a", "disk:avio_stor:0,0,1:file:/b"];
    let mut machine = running(&before);
    let address = machine.storage[1].device.address;
    for (wanted, waits, force, is_refused) in [
        (&["disk:avio_stor:0,0,0:file:/b"][..], true, Force::No, true),
        (&["disk:avio_stor:0,0,0:file:/b"], true, Force::Yes, true),
        (&["disk:avio_stor:0,0,0:file:/b"], false, Force::No, true),
        (&["disk:avio_stor:0,0,0:file:/b"], false, Force::Yes, false),
        (&[before[0], "disk:avio_stor:0,1,0:file:/b"], true, Force::No, true),
        (&[before[0], "disk:avio_stor:0,1,0:file:/b"], false, Force::Yes, false),
        (&[before[0], "disk:avio_stor:0,1,0:file:/c"], true, Force::No, false),
        (&[before[0], "dvd:avio_stor:0,1,0:file:/b"], true, Force::No, true),
        (&before, true, Force::No, false),
    ] {
        let wanted = guest(wanted);
        let facts = host(&wanted);
        machine.storage[1].identity = facts.identity("/b");
        let waiting = waits.then_some(address).into_iter().collect();
        let planned = plan(&waiting, &machine, &wanted, &facts, &Live::default(), force);
        let problems = held_elsewhere(&wanted.name, &machine, &planned, &facts);
        assert_eq!(!problems.is_empty(), is_refused, "{planned:?} {problems:?}");
        assert!(problems.iter().all(|p| p.text.contains("is the running guest's at 0,0,1")));
    }
}

#[test]
fn nor_do_its_bytes_by_another_way() {
    let mut machine = running(&["disk:avio_stor:0,0,0:file:/a", "disk:avio_stor:0,0,1:file:/b"]);
    let both = ["disk:avio_stor:0,0,0:file:/a", "disk:avio_stor:0,1,0:file:/loop"];
    let wanted = guest(&both);
    let mut facts = host(&wanted);
    let (has, comes) = (FileIdentity { device: 1, inode: 7 }, facts.identity("/loop").unwrap());
    machine.storage[1].identity = Some(has);
    let waiting = BTreeSet::from([machine.storage[1].device.address]);
    let planned = plan(&waiting, &machine, &wanted, &facts, &Live::default(), Force::No);
    assert_eq!(held_elsewhere(&wanted.name, &machine, &planned, &facts), []);
    facts.overlaps = [(has, [comes].into()), (comes, [has].into())].into();
    let problems = held_elsewhere(&wanted.name, &machine, &planned, &facts);
    assert!(problems[0].text.contains("'/loop' is the running guest's at 0,0,1"), "{problems:?}");
    let leaves = plan(&BTreeSet::new(), &machine, &wanted, &facts, &Live::default(), Force::Yes);
    assert_eq!(held_elsewhere(&wanted.name, &machine, &leaves, &facts), problems);
}

/// The same disk by the same rules as if another guest had it still.
#[test]
fn a_shared_disk_comes_elsewhere_while_it_waits_to_leave() {
    use Sharing::{Alone, Reserved};
    let mut machine = running(&["disk:avio_stor:0,0,0:file:/a", "disk:avio_stor:0,0,1:file:/b"]);
    let wanted = guest(&["disk:avio_stor:0,0,0:file:/a", "disk:avio_stor:0,1,0:file:/b"]);
    let facts = host(&wanted);
    machine.storage[1].identity = facts.identity("/b");
    let waiting = BTreeSet::from([machine.storage[1].device.address]);
    for (has, comes) in [(Reserved, Reserved), (Alone, Reserved), (Reserved, Alone)] {
        machine.storage[1].sharing = has;
        let live = Live::default();
        let mut planned = plan(&waiting, &machine, &wanted, &facts, &live, Force::No);
        for planned in &mut planned {
            if let When::Now(DeviceChange::Attach { devices, .. }) = &mut planned.when {
                devices.iter_mut().for_each(|comer| comer.sharing = comes);
            }
        }
        let problems = held_elsewhere(&wanted.name, &machine, &planned, &facts);
        assert_eq!(problems.is_empty(), has == comes, "{planned:?} {problems:?}");
    }
}

/// A change back to what the guest runs with waits for nothing.
#[test]
fn what_the_guest_runs_with_counts_at_once() {
    let mut before = guest(&[]);
    let machine = Machine::new(record(&before));
    let has = before.clone();
    before.vcpus = Vcpus::try_from(1).unwrap();
    before.memory = Memory::at_least(Bytes(1 << 30)).unwrap();
    let effects = |from: &GuestConfig, to: &GuestConfig| {
        let rows = fields(from, to, Some((&machine, &[])));
        rows.into_iter().map(|row| row.effect).collect::<Vec<_>>()
    };
    assert_eq!(effects(&before, &has), [Effect::Now, Effect::Now]);
    let waits = |effect: &Effect| matches!(effect, Effect::NextStart(_));
    assert!(effects(&has, &before).iter().all(waits));
    assert_eq!((waiting(&has, &machine).len(), waiting(&before, &machine).len()), (0, 2));
}

/// What leaves without being asked for leaves there too.
#[test]
fn firmware_is_known_to_let_nothing_go() {
    let statements = [
        "disk:avio_stor:0,0,0:file:/a",
        "disk:avio_stor:0,1,0:file:/b",
        "disk:avio_stor:0,1,1:file:/c",
        "disk:avio_stor:0,2,0:file:/d",
        "disk:avio_stor:0,2,1:file:/e",
    ];
    let machine = running(&statements);
    let (before, after) = (guest(&statements), guest(&[statements[0], statements[3]]));
    let planned = alone(&machine, &after, &Live::default(), Force::Yes);
    let in_os = fields(&before, &after, Some((&machine, &planned)));
    assert!(in_os.iter().all(|field| field.effect == Effect::Now), "{in_os:?}");
    let shown = in_firmware(in_os, &machine, &planned);
    let when: Vec<(&str, &str)> =
        shown.iter().map(|field| (field.field.as_str(), field.effect.reason())).collect();
    let why = "the guest is in its firmware, which lets nothing go";
    assert_eq!(when, [("storage 0,1,0", why), ("storage 0,1,1", why), ("storage 0,2,1", "")]);
}

/// An agent is asked even when the disk was quiet, since a quiet disk may be mounted; by force nobody is asked.
#[test]
fn one_of_several_leaves_by_consent_of_an_agent() {
    let machine = running(&[
        "disk:avio_stor:0,0,0:file:/a",
        "disk:avio_stor:0,0,1:file:/b",
        "dvd:avio_stor:0,0,2:file:/c",
    ]);
    let consents = |force| {
        let live = Live { agent: Agent::Answers, ..Live::default() };
        let keep = guest(&["disk:avio_stor:0,0,0:file:/a"]);
        let planned = alone(&machine, &keep, &live, force);
        let consent = |planned: &Planned| match now(planned) {
            DeviceChange::Detach { consent, .. } => *consent,
            other => panic!("{other:?}"),
        };
        planned.iter().map(consent).collect::<Vec<_>>()
    };
    assert_eq!(consents(Force::No), [Consent::OfGuest, Consent::OfGuest]);
    assert_eq!(consents(Force::Yes), [Consent::Given, Consent::Given]);
}

/// The agent would be asked for a name that the guest does not know, and a mounted disk of a cluster may be quiet for long.
#[test]
fn a_shared_disk_leaves_by_no_consent_of_an_agent() {
    let mut machine =
        running(&["disk:avio_stor:0,0,0:file:/a", "disk:avio_stor:0,0,1:disk:/dev/sdb"]);
    machine.storage[1].sharing = Sharing::Reserved;
    let address = machine.storage[1].device.address;
    let idle = [(address, Duration::from_secs(1000))].into();
    let live = Live { agent: Agent::Answers, idle, ..Live::default() };
    let keep = guest(&["disk:avio_stor:0,0,0:file:/a"]);
    let leaves = |force| alone(&machine, &keep, &live, force);
    assert!(reason(&leaves(Force::No)[0]).contains("cannot be asked"));
    let forced = DeviceChange::Detach { address, consent: Consent::Given };
    assert_eq!(*now(&leaves(Force::Yes)[0]), forced);
}

/// A record written before there were agents: its machine has no channel, and its journal asks nobody.
#[test]
fn an_older_boot_record_has_no_agent() {
    let base = BootRecord { agent: AgentChannel::Absent, ..record(&guest(&[])) };
    let line = base.to_line().replace(r#""agent":"absent","#, "");
    assert!(!line.contains("agent"), "{line}");
    assert_eq!(Machine::read(&line).unwrap().base, base);
    let asked = r#"{"line":"asked","seq":1,"at":"t","change":{"do":"detach","address":"0,0,1"}}"#;
    let machine = Machine::read(&format!("{line}{asked}\n")).unwrap();
    assert!(matches!(
        machine.pending[0].change,
        DeviceChange::Detach { consent: Consent::Given, .. }
    ));
}

/// Where an agent is, it lets the disks go first. Without one the guest lets the adapter go with all that it has not written, so
/// the disks have to be quiet.
#[test]
fn the_last_one_takes_its_adapter_along() {
    let stays = "disk:avio_stor:0,0,0:file:/a";
    let machine = running(&[stays, "disk:scsi:0,1,0:file:/b"]);
    for (idle, force) in [(Some(10), Force::No), (Some(0), Force::Yes), (None, Force::Yes)] {
        let planned = changes(&machine, &[stays], idle, force);
        assert_eq!(planned.len(), 1);
        assert!(matches!(now(&planned[0]), DeviceChange::DetachAdapter { .. }));
    }
    let told = |planned: &[Planned], force| {
        not_written_out(&machine, planned, &Live::default(), force).len()
    };
    let planned = changes(&machine, &[stays], Some(10), Force::No);
    assert_eq!((told(&planned, Force::No), told(&planned, Force::Yes)), (1, 0));
    for idle in [Some(0), None] {
        let planned = changes(&machine, &[stays], idle, Force::No);
        assert_eq!(told(&planned, Force::No), 0);
        assert!(matches!(at_reset(&planned[0]), Some(DeviceChange::Detach { .. })), "{planned:?}");
    }
    let live = Live { in_firmware: true, ..Live::default() };
    let planned = alone(&machine, &guest(&[stays]), &live, Force::No);
    assert!(matches!(now(&planned[0]), DeviceChange::DetachAdapter { .. }), "nobody holds back");
    assert_eq!(not_written_out(&machine, &planned, &live, Force::No), []);
    let live = Live { agent: Agent::Answers, ..Live::default() };
    let planned = alone(&machine, &guest(&[stays]), &live, Force::No);
    assert!(
        matches!(
            planned.iter().map(now).collect::<Vec<_>>()[..],
            [
                DeviceChange::Detach { consent: Consent::OfGuest, .. },
                DeviceChange::DetachAdapter { .. }
            ]
        ),
        "{planned:?}"
    );
    assert_eq!(told(&planned, Force::No), 0);
}

/// What comes to an adapter in the same command would go with it, at once or when the guest lets it go.
#[test]
fn an_adapter_that_is_joined_stays() {
    let machine = running(&["disk:avio_stor:0,0,0:file:/a"]);
    let wanted = ["disk:avio_stor:0,0,1:file:/b"];
    let planned = changes(&machine, &wanted, Some(0), Force::Yes);
    assert!(
        matches!(
            [now(&planned[0]), now(&planned[1])],
            [
                DeviceChange::Detach { .. },
                DeviceChange::Attach { adapter: AdapterPresence::Present, .. }
            ]
        ),
        "{planned:?}"
    );
    let planned = changes(&machine, &wanted, Some(0), Force::No);
    assert!(reason(&planned[0]).contains("0 s ago"), "{planned:?}");
    assert!(matches!(now(&planned[1]), DeviceChange::Attach { .. }), "{planned:?}");

    // Where a new target waits, or is none, nothing keeps the adapter.
    for (before, after) in [
        ("disk:scsi:0,0,0:file:/a", "disk:scsi:0,0,1:file:/b"),
        ("disk:avio_stor:0,0,0:file:/a", "disk:avio_stor:0,0,1:null:/b"),
    ] {
        let planned = changes(&running(&[before]), &[after], Some(10), Force::No);
        assert!(matches!(now(&planned[0]), DeviceChange::DetachAdapter { .. }), "{planned:?}");
    }
}

/// When its new disk does not come, the old one goes back to the adapter that is still there.
#[test]
fn a_bare_adapter_is_not_brought_again() {
    let before = ["disk:avio_stor:0,0,0:file:/a"];
    let mut machine = running(&before);
    let planned = changes(&machine, &["disk:avio_stor:0,0,1:file:/b"], None, Force::Yes);
    take(&mut machine, 1, now(&planned[0]));
    let planned = changes(&machine, &before, None, Force::Yes);
    assert!(
        matches!(now(&planned[0]), DeviceChange::Attach { adapter: AdapterPresence::Present, .. }),
        "{planned:?}"
    );
}

#[test]
fn an_address_without_a_port_waits() {
    let machine = running(&["disk:avio_stor:0,0,0:file:/a"]);
    let planned = changes(
        &machine,
        &["disk:avio_stor:0,0,0:file:/a", "disk:avio_stor:6,7,0:file:/b"],
        None,
        Force::No,
    );
    assert!(reason(&planned[0]).contains("no port at 6,7"));
}

#[test]
fn a_dvd_changes_its_medium_in_place() {
    let machine = running(&["dvd:scsi:0,0,0:null:/iso"]);
    let planned = changes(&machine, &["dvd:scsi:0,0,0:file:/iso/x"], None, Force::No);
    assert!(matches!(now(&planned[0]), DeviceChange::Medium { .. }));
    let planned = changes(&machine, &["dvd:avio_stor:0,0,0:null:/iso"], None, Force::No);
    assert!(planned.iter().any(|p| matches!(p.when, When::NextStart(_))), "{planned:?}");
}

#[test]
fn ports_have_room_and_stay() {
    let mut config = guest(&["disk:avio_stor:0,0,0:file:/a", "disk:scsi:2,5,0:file:/b"]);
    let first = ports(&config);
    assert!(first.contains(&PciSlot::new(2, 5).unwrap()));
    assert!(first.contains(&PciSlot::new(2, 0).unwrap()), "function 0 of a used bus");
    assert!(first.len() >= 2 + SPARE_PORTS);
    config.ports = first.clone();
    config.storage.clear();
    let later = ports(&config);
    assert!(first.iter().all(|slot| later.contains(slot)));
}

#[test]
fn automatic_placement_follows_the_original() {
    let config = guest(&[]);
    assert_eq!(
        place(&config, None, AdapterKind::Scsi, DeviceKind::Disk).unwrap().to_string(),
        "0,0,0"
    );
    let config = guest(&["disk:scsi:0,2,0:file:/a"]);
    assert_eq!(
        place(&config, None, AdapterKind::Scsi, DeviceKind::Disk).unwrap().to_string(),
        "0,2,1"
    );
    assert_eq!(
        place(&config, None, AdapterKind::AvioStor, DeviceKind::Disk).unwrap().to_string(),
        "0,0,0"
    );
    let machine = running(&["disk:scsi:0,2,0:file:/a"]);
    assert_eq!(
        place(&config, Some(&machine), AdapterKind::Scsi, DeviceKind::Disk).unwrap().to_string(),
        "0,0,0",
        "a running guest gets an address it can see now"
    );
}

/// The journal says what was asked and what came of it; a cut last line was not acted on.
#[test]
fn a_boot_record_is_read_back_with_its_journal() {
    let base = record(&guest(&["disk:avio_stor:0,0,0:file:/a"]));
    let change = DeviceChange::DetachAdapter { slot: PciSlot::new(0, 0).unwrap() };
    let asked = JournalLine::Asked { seq: 1, at: "t".into(), change, due: Due::Now };
    let settled = JournalLine::Settled { seq: 1, at: "t".into(), outcome: Outcome::Done };
    let text = base.to_line() + &asked.to_line();
    let machine = Machine::read(&text).unwrap();
    assert_eq!((machine.storage.len(), machine.pending.len(), machine.next_seq), (1, 1, 2));
    assert!(waiting(&guest(&[]), &machine)[0].to.contains('-'));
    let text = text + &settled.to_line();
    assert_eq!(Machine::read(&text).unwrap().storage, []);
    let cut = &text[..text.len() - 5];
    assert_eq!(Machine::read(cut).unwrap().pending.len(), 1);
    assert!(Machine::read("").is_err());
    assert!(Machine::read("{}\n").is_err());
}

prop_compose! {
    fn any_device()(bus in 0u8..2, slot in 0u8..3, target in 0u8..3, dvd: bool, vio: bool, file: bool, path in 0u8..3) -> StorageDevice {
        let kind = if dvd { "dvd" } else { "disk" };
        let adapter = if vio { "scsi" } else { "avio_stor" };
        let storage = if file { "file" } else { "null" };
        device(&format!("{kind}:{adapter}:{bus},{slot},{target}:{storage}:/{path}"))
    }
}

fn any_guest() -> impl Strategy<Value = GuestConfig> {
    prop::collection::vec(any_device(), 0..6).prop_map(|devices| {
        let mut config = guest(&[]);
        for device in devices {
            let fits = config.device_at(device.address).is_none()
                && config.adapter_in(device.address.slot).is_none_or(|k| k == device.adapter);
            if fits {
                config.storage.push(device);
            }
        }
        config.sort_devices();
        config
    })
}

/// A disk is exchanged for another one while the guest runs: the old one leaves as if nothing came, and the adapter stays.
#[test]
fn a_disk_is_exchanged_when_it_may_leave() {
    let before = ["disk:avio_stor:0,0,0:file:/a", "disk:avio_stor:0,0,1:file:/b"];
    let wanted = ["disk:avio_stor:0,0,0:file:/a", "disk:avio_stor:0,0,1:file:/c"];
    for before in [&before[..], &before[1..]] {
        let wanted = &wanted[2 - before.len()..];
        let machine = running(before);
        for (idle, force) in [(Some(100), Force::No), (Some(0), Force::Yes)] {
            let planned = changes(&machine, wanted, idle, force);
            assert!(
                matches!(
                    planned.iter().map(now).collect::<Vec<_>>()[..],
                    [
                        DeviceChange::Detach { .. },
                        DeviceChange::Attach { adapter: AdapterPresence::Present, .. }
                    ]
                ),
                "{planned:?}"
            );
        }
        let planned = changes(&machine, wanted, Some(3), Force::No);
        assert!(planned.iter().all(|p| reason(p).contains("3 s ago")), "{planned:?}");
        let told: Vec<_> = planned.iter().map(at_reset).collect();
        assert!(
            matches!(
                told[..],
                [
                    Some(DeviceChange::Detach { consent: Consent::Given, .. }),
                    Some(DeviceChange::Attach { adapter: AdapterPresence::Present, .. })
                ]
            ),
            "{planned:?}"
        );
    }
}

/// The guest looks at an emulated adapter when that comes, and when it boots.
#[test]
fn a_disk_on_an_emulated_adapter_is_exchanged_with_it_or_at_the_reset() {
    let machine = running(&["disk:scsi:0,0,0:file:/a"]);
    let planned = changes(&machine, &["disk:scsi:0,0,0:file:/c"], Some(0), Force::No);
    assert!(planned.iter().all(|p| reason(p).contains("0 s ago")), "{planned:?}");
    let planned = changes(&machine, &["disk:scsi:0,0,0:file:/c"], Some(10), Force::No);
    assert!(
        matches!(
            planned.iter().map(now).collect::<Vec<_>>()[..],
            [
                DeviceChange::DetachAdapter { .. },
                DeviceChange::Attach { adapter: AdapterPresence::New, .. }
            ]
        ),
        "{planned:?}"
    );
    let machine = running(&["disk:scsi:0,0,0:file:/a", "disk:scsi:0,0,1:file:/b"]);
    let wanted = ["disk:scsi:0,0,0:file:/c", "disk:scsi:0,0,1:file:/b"];
    // Nor would one that has become quiet.
    for (idle, force) in [(100, Force::No), (100, Force::Yes), (0, Force::No)] {
        let planned = changes(&machine, &wanted, Some(idle), force);
        assert_eq!(planned.len(), 2, "{planned:?}");
        assert!(planned.iter().all(|p| reason(p).contains("never sees")), "{planned:?}");
        assert!(planned.iter().all(|p| at_reset(p).is_some()), "{planned:?}");
    }
}

/// What cannot be exchanged comes at the next start, and what is there stays until then.
#[test]
fn a_device_on_another_adapter_waits_for_the_next_start() {
    let machine = running(&["disk:avio_stor:0,0,1:file:/b"]);
    let planned = changes(&machine, &["disk:scsi:0,0,1:file:/b"], Some(100), Force::Yes);
    assert_eq!(planned.len(), 2, "{planned:?}");
    assert!(planned.iter().all(|p| matches!(p.when, When::NextStart(_))), "{planned:?}");
}

/// QEMU adds no function to a device that is there.
#[test]
fn the_second_half_of_an_adapter_comes_with_the_first() {
    let joined = |before: &[&str], comes: &str| {
        let wanted = [before, &[comes]].concat();
        changes(&running(before), &wanted, None, Force::No).remove(0)
    };
    let (first, second) = ("disk:scsi:0,0,0:file:/a", "disk:scsi:0,0,9:file:/b");
    let waits = joined(&[first], "disk:scsi:0,0,8:file:/c");
    assert!(
        matches!(&waits.when, When::NextStart(why) if why.contains("second half")),
        "{waits:?}"
    );
    assert!(at_reset(&joined(&[first, second], "disk:scsi:0,0,8:file:/c")).is_some());
    assert!(at_reset(&joined(&[second], "disk:scsi:0,0,7:file:/c")).is_some());
}

/// Settles 139: an attached tape never shares the adapter of a disk, and the other way round.
#[test]
fn attached_devices_keep_to_themselves() {
    let placed = |statements: &[&str], device| {
        place(&guest(statements), None, AdapterKind::Scsi, device).unwrap().to_string()
    };
    let disk = "disk:scsi:0,0,0:file:/a";
    let tape = "tape:scsi:0,1,0:attach:/dev/sg1";
    assert_eq!(placed(&[disk], DeviceKind::Tape), "0,1,0");
    assert_eq!(placed(&[disk, tape], DeviceKind::Changer), "0,1,1");
    assert_eq!(placed(&[disk, tape], DeviceKind::Dvd), "0,0,1");
    assert_eq!(placed(&[tape], DeviceKind::Disk), "0,0,0");
}

proptest! {
    /// Whatever the two are: when all that is planned for now is done and nothing waits, the machine is the configuration;
    /// what waits is exactly what still differs.
    #[test]
    fn a_plan_leads_to_the_configuration(before in any_guest(), after in any_guest(), forced: bool) {
        let force = if forced { Force::Yes } else { Force::No };
        let mut machine = Machine::new(record(&before));
        let planned = alone(&machine, &after, &Live::default(), force);
        for (planned, seq) in planned.iter().zip(1..) {
            if let When::Now(change) = &planned.when {
                if let DeviceChange::Attach { slot, adapter, .. } = change {
                    let is_there = machine.adapter_in(*slot).is_some();
                    prop_assert_eq!(is_there, *adapter == AdapterPresence::Present);
                }
                take(&mut machine, seq, change);
            }
        }
        let waits = planned.iter().filter(|p| !matches!(p.when, When::Now(_)));
        let waits: BTreeSet<String> = waits.map(|p| p.place.to_string()).collect();
        let differs = waiting(&after, &machine).into_iter().map(|change| change.field);
        prop_assert_eq!(waits, differs.collect(), "planned {:?} gave {:?}", planned, machine.storage);

        // At the reset the rest is made, but for what needs a start.
        tell(&mut machine, &planned);
        reset(&mut machine);
        let waits = planned.iter().filter(|p| matches!(p.when, When::NextStart(_)));
        let waits: BTreeSet<String> = waits.map(|p| p.place.to_string()).collect();
        let differs = waiting(&after, &machine).into_iter().map(|change| change.field);
        prop_assert_eq!(waits, differs.collect(), "planned {:?} gave {:?}", planned, machine.storage);
        let same = machine.storage.iter().map(|a| &a.device).eq(after.storage.iter());
        prop_assert_eq!(waiting(&after, &machine).is_empty(), same);
    }

    /// Whatever waits for the reset when something else is wanted: it comes to what is wanted.
    #[test]
    fn what_waits_is_no_obstacle(
        before in any_guest(),
        between in any_guest(),
        after in any_guest(),
    ) {
        let mut machine = Machine::new(record(&before));
        let mut planned = Vec::new();
        for wanted in [&between, &after] {
            planned = alone(&machine, wanted, &Live::default(), Force::No);
            take_all(&mut machine, &planned);
            tell(&mut machine, &planned);
        }
        reset(&mut machine);
        prop_assert_eq!(&machine.pending, &[]);
        let waits = planned.iter().filter(|p| matches!(p.when, When::NextStart(_)));
        let waits: BTreeSet<String> = waits.map(|p| p.place.to_string()).collect();
        let differs = waiting(&after, &machine).into_iter().map(|change| change.field);
        prop_assert_eq!(waits, differs.collect(), "planned {:?} gave {:?}", planned, machine.storage);
    }

    #[test]
    fn a_placed_device_never_collides(before in any_guest(), now in any_guest(), vio: bool) {
        let kind = if vio { AdapterKind::Scsi } else { AdapterKind::AvioStor };
        let machine = Machine::new(record(&before));
        for running in [None, Some(&machine)] {
            let address = place(&now, running, kind, DeviceKind::Disk).unwrap();
            prop_assert!(now.device_at(address).is_none());
            prop_assert!(now.adapter_in(address.slot).is_none_or(|k| k == kind));
            prop_assert!(running.is_none_or(|m| m.device_at(address).is_none()));
        }
    }
}
