//! NICs: what a request makes of them, where they go, what is wrong with them, and what a running guest takes now.

mod common;

use std::collections::BTreeSet;

use common::*;
use hpvm_model::*;
use hpvm_plan::clone::{CloneRequest, Disks, Inheritance, design};
use hpvm_plan::difference::{Effect, created, fields, waiting, with_refusals, without_drawn};
use hpvm_plan::facts::network::{LanAnswer, MacHold, MacHolder, NetworkFacts, PortHolder};
use hpvm_plan::facts::{HostFacts, Provision, StartFacts};
use hpvm_plan::hotplug::{Force, Live, Planned, When, plan};
use hpvm_plan::judge::{Purpose, problems};
use hpvm_plan::placement::ports;
use hpvm_plan::record::*;
use hpvm_plan::request::{NicRequest, Request, apply};
use proptest::prelude::*;

const LAN: &str = "network:lan:0,1,0x56e9e3096a22:vswitch:sw1:portid:1";
const AVIO: &str = "network:avio_lan:0,2,0x52b2aef63e66:vswitch:sw1:portid:2";

fn networked(nics: &[&str]) -> GuestConfig {
    with_nics(guest(&["disk:avio_stor:0,0,0:file:/a"]), nics)
}

fn ask(text: &str, form: StatementForm) -> NicRequest {
    let statement = NicStatement::parse(text, form).unwrap();
    match form {
        StatementForm::Add => NicRequest::Add(statement),
        StatementForm::Modify => NicRequest::Modify(statement),
        StatementForm::Delete => NicRequest::Delete(statement),
    }
}

fn after(
    config: &GuestConfig,
    nics: Vec<NicRequest>,
    network: &NetworkFacts,
) -> Result<GuestConfig, String> {
    let mut random = (1..).map(|n: u64| n << 16);
    let request = Request { nics, ..Request::default() };
    apply(config, None, &request, network, &mut || random.next().unwrap())
        .map_err(|error| error.to_string())
}

fn texts(config: &GuestConfig) -> Vec<String> {
    config.nics.iter().map(ToString::to_string).collect()
}

#[test]
fn a_nic_gets_the_lowest_place_and_port_and_an_address_of_its_own() {
    let config = networked(&[LAN]);
    let mut network = networks(&config);
    let switch = network.switches.get_mut(&config.nics[0].vswitch).unwrap();
    switch.held.insert(PortNumber::new(2).unwrap(), Vec::new());
    switch.ruled.insert(PortNumber::new(3).unwrap());
    network.macs.insert("0x020000000001".parse().unwrap(), held_by_other(MacHold::Resting));
    let add = |text| ask(text, StatementForm::Add);
    let next = after(
        &config,
        vec![add("network:avio_lan::vswitch:sw1"), add("network:lan:0,2:vswitch:sw1:portid:9")],
        &network,
    );
    assert_eq!(
        texts(&next.unwrap()),
        [
            "network:lan:0,1,0x56E9E3096A22:vswitch:sw1:portid:1",
            "network:lan:0,2,0x020000000002:vswitch:sw1:portid:9",
            "network:avio_lan:0,4,0x020000000003:vswitch:sw1:portid:4",
        ]
    );
}

#[test]
fn a_dry_run_shows_no_address_that_it_drew() {
    let before = networked(&[LAN]);
    let network = networks(&before);
    let add = |text| ask(text, StatementForm::Add);
    let nics = vec![
        add("network:avio_lan:0,4:vswitch:sw1:portid:4"),
        add("network:lan:0,5,0x52b2aef63e66:vswitch:sw1:portid:5"),
    ];
    let after = after(&before, nics.clone(), &network).unwrap();
    let request = Request { nics, ..Request::default() };
    let changes = without_drawn(fields(&before, &after, None), Some(&before), &after, &request);
    let to: Vec<&str> = changes.iter().map(|change| change.to.as_str()).collect();
    assert_eq!(
        to,
        [
            "network:avio_lan:0,4:vswitch:sw1:portid:4",
            "network:lan:0,5,0x52B2AEF63E66:vswitch:sw1:portid:5"
        ]
    );
    add(to[0]);
}

#[test]
fn one_command_names_a_nic_once() {
    use StatementForm::{Add, Delete, Modify};
    let config = networked(&[LAN, AVIO]);
    for (first, second, refused) in [
        (
            ask("network:lan:0,1:vswitch:sw1", Modify),
            ask("network:avio_lan:0,1:vswitch:sw2", Modify),
            "'-m network:lan:0,1:vswitch:sw1' and '-m network:avio_lan:0,1:vswitch:sw2' both name 0,1; name it once",
        ),
        (
            ask("network:lan:,,0x56e9e3096a22", Delete),
            ask("network:lan:0,1:vswitch:sw2", Modify),
            "'-d network:lan:,,0x56e9e3096a22' and '-m network:lan:0,1:vswitch:sw2' both name 0,1; name it once",
        ),
        (
            ask("network:lan:0,1", Delete),
            ask("network:lan:0,1", Delete),
            "'-d network:lan:0,1' and '-d network:lan:0,1' both name 0,1; name it once",
        ),
        (
            ask("network:lan:0,4:vswitch:sw1", Add),
            ask("network:lan:0,4:vswitch:sw2", Add),
            "'-a network:lan:0,4:vswitch:sw1' and '-a network:lan:0,4:vswitch:sw2' both name 0,4; name it once",
        ),
    ] {
        assert_eq!(after(&config, vec![first, second], &networks(&config)), Err(refused.into()));
    }
}

#[test]
fn a_nic_is_changed_and_deleted_by_its_place_its_address_or_its_switch() {
    let config = networked(&[LAN, AVIO]);
    let network = networks(&config);
    let change = |text, form| after(&config, vec![ask(text, form)], &network);
    let modified = change("network:avio_lan:0,1:vswitch:sw2", StatementForm::Modify).unwrap();
    assert_eq!(texts(&modified)[0], "network:avio_lan:0,1,0x56E9E3096A22:vswitch:sw2:portid:1");
    for (text, left) in [
        ("network:lan:0,1", "0,2"),
        ("network:avio_lan:,,0x52b2aef63e66", "0,1"),
        ("network:lan::vswitch:sw1", "0,2"),
    ] {
        let next = change(text, StatementForm::Delete).unwrap();
        assert_eq!(next.nics.len(), 1, "{text}");
        assert_eq!(next.nics[0].slot.to_string(), left, "{text}");
    }
    let error = change("network:lan:0,4", StatementForm::Delete).unwrap_err();
    assert!(error.contains("hpvmstatus -P guest1 -d"), "{error}");
    let two = networked(&[LAN, "network:lan:0,2,0x52b2aef63e66:vswitch:sw1:portid:2"]);
    let by_switch = ask("network:lan::vswitch:sw1", StatementForm::Delete);
    assert!(after(&two, vec![by_switch], &network).unwrap_err().contains("several NICs"));
}

/// A command that was killed left the NIC in the machine alone, which hpvmstatus shows; it is taken away by what that prints.
#[test]
fn a_nic_that_only_the_running_guest_has_can_be_deleted() {
    let config = networked(&[LAN]);
    let machine = Machine::new(record(&networked(&[LAN, AVIO])));
    let delete = |text| {
        let nics = vec![ask(text, StatementForm::Delete)];
        let request = Request { nics, ..Request::default() };
        apply(&config, Some(&machine), &request, &networks(&config), &mut || 7)
    };
    let next = delete(AVIO).unwrap();
    assert_eq!(texts(&next), texts(&config));
    let slot = machine.nics[1].nic.slot;
    assert_eq!(one_now(&machine, &next), DeviceChange::UnplugNic { slot });
    delete("network:avio_lan:0,2:vswitch:sw9").unwrap_err();
}

#[test]
fn ports_are_made_for_nics_and_disks_never_get_their_slots() {
    let config = networked(&["network:lan:2,5,0x56e9e3096a22:vswitch:sw1:portid:1"]);
    assert!(ports(&config).contains(&PciSlot::new(2, 5).unwrap()));
    let statement = Statement::parse("disk:scsi::file:/b", StatementForm::Add).unwrap();
    let devices = vec![hpvm_plan::request::DeviceRequest::Add(statement)];
    let request = Request { devices, ..Request::default() };
    let config = networked(&[LAN, AVIO]);
    let next = apply(&config, None, &request, &networks(&config), &mut || 7).unwrap();
    assert_eq!(next.storage[1].address.to_string(), "0,4,0");
}

#[test]
fn a_clone_has_other_addresses_and_ports_on_the_same_switches() {
    let source = networked(&[LAN, AVIO]);
    let mut network = networks(&source);
    let held = &mut network.switches.get_mut(&source.nics[0].vswitch).unwrap().held;
    for nic in &source.nics {
        held.insert(nic.port, vec![PortHolder { guest: source.name.clone(), runs: true }]);
    }
    let mut asked = CloneRequest {
        name: "new".parse().unwrap(),
        request: Request {
            nics: vec![ask("network:lan:0,1:vswitch:sw2", StatementForm::Modify)],
            ..Request::default()
        },
        copies: Vec::new(),
        disks: Disks::Kept,
        macs: Inheritance::New,
        serial_number: Inheritance::New,
    };
    let own_image = |address: StorageAddress| format!("/own/{address}");
    let uuid = GuestUuid(uuid::Uuid::from_u128(7));
    let mut random = (1..).map(|n: u64| n << 16);
    let mut made = |asked: &CloneRequest| {
        design(&source, asked, uuid, &own_image, &network, &mut || random.next().unwrap())
    };
    assert_eq!(
        texts(&made(&asked).unwrap().config),
        [
            "network:lan:0,1,0x020000000001:vswitch:sw2:portid:1",
            "network:avio_lan:0,2,0x020000000002:vswitch:sw1:portid:4",
        ]
    );
    (asked.macs, asked.serial_number) = (Inheritance::Same, Inheritance::Same);
    let same = made(&asked).unwrap().config;
    assert_eq!(same.serial_number, source.serial_number);
    assert_eq!(
        texts(&same),
        [
            "network:lan:0,1,0x56E9E3096A22:vswitch:sw2:portid:1",
            "network:avio_lan:0,2,0x52B2AEF63E66:vswitch:sw1:portid:4",
        ]
    );
}

fn found(config: &GuestConfig, change: impl FnOnce(&mut NetworkFacts)) -> Vec<String> {
    let mut facts = host(config);
    change(&mut facts.network);
    problems(config, &facts, Purpose::Change { before: None })
        .into_iter()
        .map(|p| format!("{}: {}", p.severity, p.text))
        .collect()
}

#[test]
fn a_good_network_has_no_problems() {
    assert_eq!(found(&networked(&[LAN, AVIO]), |_| {}), Vec::<String>::new());
}

#[test]
fn what_could_never_run_is_refused_with_a_way_out() {
    let one = |nics: &[&str], change: &dyn Fn(&mut NetworkFacts), word: &str| {
        let found = found(&networked(nics), change);
        assert!(found.iter().any(|f| f.contains(word)), "{word}: {found:?}");
        assert!(found.iter().all(|f| f.starts_with("ERROR")), "{found:?}");
    };
    let nothing: &dyn Fn(&mut NetworkFacts) = &|_| {};
    one(&[LAN], &|n| n.switches.clear(), "there is no virtual switch 'sw1'");
    one(&[&LAN.replace("0,1", "0,0")], nothing, "address of an avio_stor adapter");
    one(&[LAN, &AVIO.replace("0,2", "0,1")], nothing, "given to two NICs");
    one(
        &[LAN, &AVIO.replace("52b2aef63e66", "56e9e3096a22")],
        nothing,
        "the NICs at 0,1 and 0,2 have one MAC address",
    );
    let shared = [LAN, &AVIO.replace("portid:2", "portid:1")];
    one(&shared, nothing, "port 1 of virtual switch 'sw1'");
    assert_eq!(found(&networked(&shared), nothing).len(), 1, "told once");
    let theirs: &dyn Fn(&mut NetworkFacts) = &|n| {
        n.macs.insert("0x56e9e3096a22".parse().unwrap(), held_by_other(MacHold::Resting));
    };
    one(&[LAN], theirs, "belongs to guest other");
}

fn held_by_other(hold: MacHold) -> MacHolder {
    MacHolder { who: "guest other".into(), hold }
}

/// A clone may have been given its source's address on purpose.
#[test]
fn a_start_with_an_address_of_another_guest_waits_for_that_guest() {
    let config = networked(&[LAN]);
    let mut facts = HostFacts { start: Some(ready()), ..host(&config) };
    for (hold, said) in [
        (MacHold::Resting, "WARNING: MAC address 0x56e9e3096a22 is that of guest other too"),
        (MacHold::Running, "ERROR: MAC address 0x56e9e3096a22 is in use by guest other"),
        (MacHold::Always, "ERROR: MAC address 0x56e9e3096a22 belongs to guest other"),
    ] {
        facts.network.macs.insert(config.nics[0].mac, held_by_other(hold));
        let found = problems(&config, &facts, Purpose::Start);
        assert_eq!(found.len(), 1, "{found:?}");
        let found = format!("{}: {}", found[0].severity, found[0].text);
        assert!(found.starts_with(said), "{found}");
    }
}

/// What the LAN told is no hindrance but where somebody there has the address.
#[test]
fn an_address_in_use_on_the_lan_is_refused_and_doubts_are_told() {
    let config = networked(&[LAN]);
    let at = (config.nics[0].vswitch.clone(), config.nics[0].mac);
    let found = |answer: LanAnswer, purpose| {
        let mut facts = host(&config);
        facts.network.lan.insert(at.clone(), answer);
        facts.start = (purpose == Purpose::Start).then(ready);
        let problems = problems(&config, &facts, purpose);
        let [problem] = &problems[..] else { panic!("{problems:?}") };
        (problem.severity, problem.text.clone())
    };
    let change = Purpose::Change { before: None };
    let (severity, text) = found(LanAnswer::InUse, change);
    assert_eq!(severity, Severity::Error);
    assert!(text.contains("a station on the LAN of virtual switch 'sw1'"), "{text}");
    let (severity, text) = found(LanAnswer::InUse, Purpose::Start);
    assert_eq!(severity, Severity::Error);
    assert_eq!(text, "Guest MAC address for switch sw1 is in use.");
    for purpose in [change, Purpose::Start] {
        let (severity, text) = found(LanAnswer::AnswersForAll, purpose);
        assert_eq!(severity, Severity::Warning);
        assert!(text.contains("HPVMACADDRFRAMES=0"), "{text}");
        let (severity, text) = found(LanAnswer::Unknown("no right".into()), purpose);
        assert_eq!(severity, Severity::Warning);
        assert!(text.ends_with("could not be found out: no right"), "{text}");
    }
}

/// The guest has other things to boot from, so it starts; who has only avio_lan NICs to boot over needs no driver.
#[test]
fn a_guest_that_boots_over_a_lan_nic_without_its_driver_is_told_of() {
    let config = networked(&[LAN, AVIO]);
    let missing = Provision { path: "/rom".into(), missing: Some("it does not exist".into()) };
    let found = |ports: &[u16]| {
        let start = StartFacts { lan_rom: missing.clone(), ..ready() };
        let mut facts = HostFacts { start: Some(start), ..host(&config) };
        let switch = facts.network.switches.get_mut(&config.nics[0].vswitch).unwrap();
        switch.booted_over = ports.iter().map(|port| PortNumber::new(*port).unwrap()).collect();
        problems(&config, &facts, Purpose::Start)
    };
    assert_eq!((found(&[]), found(&[2])), (Vec::new(), Vec::new()));
    let problems = found(&[1, 2]);
    let [problem] = &problems[..] else { panic!("{problems:?}") };
    assert_eq!(problem.severity, Severity::Warning);
    assert!(problem.remedy.as_ref().unwrap().ask.as_ref().unwrap().contains("ipxe-qemu"));
}

/// Whoever is told what the wire carries has it; an emulated card has no way to tell.
#[test]
fn a_guest_that_takes_another_packet_size_than_the_wire_has_is_told_of() {
    let config = networked(&[LAN, AVIO]);
    let found = |mtu| {
        let mut facts = HostFacts { start: Some(ready()), ..host(&config) };
        facts.network.switches.get_mut(&config.nics[0].vswitch).unwrap().mtu = mtu;
        problems(&config, &facts, Purpose::Start)
    };
    assert_eq!((found(None), found(Some(1500))), (Vec::new(), Vec::new()));
    for mtu in [1280, 9000] {
        let problems = found(Some(mtu));
        let [problem] = &problems[..] else { panic!("{problems:?}") };
        assert_eq!(problem.severity, Severity::Warning);
        let words =
            format!("packets of {mtu} bytes, and guest guest1 takes 1500 for its NIC at 0,1;");
        assert!(problem.text.contains(&words), "{problem:?}");
    }
}

/// A port may be reserved by several guests; one of them has it.
#[test]
fn a_port_in_use_keeps_others_from_running_and_from_nothing_else() {
    let config = networked(&[LAN]);
    let mut facts = host(&config);
    let switch = facts.network.switches.get_mut(&config.nics[0].vswitch).unwrap();
    let holder = |runs| PortHolder { guest: "other".parse().unwrap(), runs };
    switch.held.insert(config.nics[0].port, vec![holder(false)]);
    let change = Purpose::Change { before: None };
    assert_eq!(problems(&config, &facts, change), []);
    let switch = facts.network.switches.get_mut(&config.nics[0].vswitch).unwrap();
    switch.held.insert(config.nics[0].port, vec![holder(false), holder(true)]);
    let severity = |purpose| problems(&config, &facts, purpose)[0].severity;
    assert_eq!(severity(change), Severity::Warning);
    assert_eq!(severity(Purpose::Start), Severity::Error);
    let bare = networked(&[]);
    assert_eq!(severity(Purpose::ChangeOfRunning { before: &bare }), Severity::Error);
}

fn planned(machine: &Machine, wanted: &GuestConfig) -> Vec<Planned> {
    plan_with(machine, wanted, &host(wanted))
}

fn plan_with(machine: &Machine, wanted: &GuestConfig, facts: &HostFacts) -> Vec<Planned> {
    plan(&BTreeSet::new(), machine, wanted, facts, &Live::default(), Force::No)
}

fn one_now(machine: &Machine, wanted: &GuestConfig) -> DeviceChange {
    match &planned(machine, wanted)[..] {
        [Planned { when: When::Now(change), .. }] => change.clone(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn nics_come_and_go_while_the_guest_runs() {
    let (bare, one, both) = (networked(&[]), networked(&[LAN]), networked(&[LAN, AVIO]));
    let machine = Machine::new(record(&one));
    let DeviceChange::PlugNic { attached } = one_now(&machine, &both) else { panic!() };
    assert_eq!(attached.socket, "/run/hpvm/7/net/0-2");
    assert!(attached.features.is_some(), "an AVIO port has its features for ever");
    let slot = one.nics[0].slot;
    assert_eq!(one_now(&machine, &bare), DeviceChange::UnplugNic { slot });
}

/// Another switch or port is another listener at the same socket: the card stays, and with it what the guest was given.
#[test]
fn a_nic_changes_its_switch_without_leaving() {
    let machine = Machine::new(record(&networked(&[AVIO])));
    let moved = networked(&[&AVIO.replace("sw1", "sw2")]);
    let mut facts = host(&moved);
    facts.network.features = 1;
    let planned = plan_with(&machine, &moved, &facts);
    let When::Now(DeviceChange::MoveNic { attached }) = &planned[0].when else {
        panic!("{planned:?}")
    };
    assert_eq!(attached.nic, moved.nics[0]);
    assert_eq!(attached.features, machine.nics[0].features);
}

/// Settles 75: another kind of card waits for the next start, and until then what runs and what comes are shown apart.
#[test]
fn another_card_waits_for_the_next_start_and_is_shown_so() {
    let before = networked(&[LAN]);
    let machine = Machine::new(record(&before));
    for other in [LAN.replace("lan:", "avio_lan:"), LAN.replace("56e9e3096a22", "56e9e3096a23")] {
        let config = networked(&[&other]);
        let planned = planned(&machine, &config);
        let fields = fields(&before, &config, Some((&machine, &planned)));
        assert_eq!(fields.len(), 1);
        assert!(matches!(&fields[0].effect, Effect::NextStart(why) if why.contains("replaces")));
        let waiting = waiting(&config, &machine);
        assert_eq!(waiting[0].field, "network 0,1");
        assert!(waiting[0].from.starts_with("network:lan:"), "{waiting:?}");
    }
    let far = networked(&[LAN, "network:lan:6,0,0x52b2aef63e66:vswitch:sw1:portid:2"]);
    let [Planned { when: When::NextStart(why), .. }] = &planned(&machine, &far)[..] else {
        panic!()
    };
    assert!(why.contains("no port at 6,0"), "{why}");
    assert!(created(&far).iter().any(|field| field.field == "network 6,0"));
}

/// A row of its own would look as if the NIC came all the same.
#[test]
fn a_switch_that_is_not_there_is_refused_where_the_nic_is_shown() {
    let config = networked(&[AVIO, "network:lan:0,1,0x56e9e3096a22:vswitch:lan:portid:1"]);
    let mut facts = host(&config);
    facts.network.switches.remove(&config.nics[0].vswitch);
    let found = problems(&config, &facts, Purpose::Change { before: None });
    let fields = with_refusals(created(&config), &found);
    assert_eq!(fields.len(), created(&config).len());
    let refused = fields.iter().filter(|field| matches!(field.effect, Effect::Refused(_)));
    assert_eq!(refused.map(|field| field.field.as_str()).collect::<Vec<_>>(), ["network 0,1"]);
}

#[test]
fn a_record_without_nics_is_read_and_links_are_kept_in_the_journal() {
    let config = networked(&[LAN, AVIO]);
    let base = record(&config);
    let line = |seq, change| JournalLine::Asked { seq, at: "now".into(), change, due: Due::Now };
    let done = |seq| JournalLine::Settled { seq, at: "now".into(), outcome: Outcome::Done };
    let slot = config.nics[1].slot;
    let text = [
        base.to_line(),
        line(1, DeviceChange::LinkNics { slots: vec![slot], link: Link::Down }).to_line(),
        done(1).to_line(),
        line(2, DeviceChange::UnplugNic { slot: config.nics[0].slot }).to_line(),
    ]
    .concat();
    let machine = Machine::read(&text).unwrap();
    assert_eq!(machine.nics.iter().map(|a| a.link).collect::<Vec<_>>(), [Link::Up, Link::Down]);
    assert!(machine.is_nic_leaving(config.nics[0].slot));
    assert!(waiting(&networked(&[AVIO]), &machine)[0].effect != Effect::Now);
    let old = record(&networked(&[])).to_line();
    assert!(!old.contains("nics"), "as hpvm wrote it before it knew networks");
    assert_eq!(Machine::read(&old).unwrap().nics, []);
}

proptest! {
    /// Whatever is added, no two NICs share a slot, an address or a port, and none sits on a disk's slot.
    #[test]
    fn placement_never_collides(kinds in prop::collection::vec(any::<bool>(), 1..40)) {
        let config = networked(&[LAN]);
        let network = networks(&config);
        let nics = kinds.iter().map(|avio| {
            let kind = if *avio { "avio_lan" } else { "lan" };
            ask(&format!("network:{kind}::vswitch:sw1"), StatementForm::Add)
        });
        let next = after(&config, nics.collect(), &network).unwrap();
        let count = kinds.len() + 1;
        let slots: BTreeSet<PciSlot> = next.nics.iter().map(|nic| nic.slot).collect();
        prop_assert_eq!(slots.len(), count);
        prop_assert!(!slots.contains(&next.storage[0].address.slot));
        prop_assert_eq!(next.nics.iter().map(|n| n.mac).collect::<BTreeSet<_>>().len(), count);
        prop_assert_eq!(next.nics.iter().map(|n| n.port).collect::<BTreeSet<_>>().len(), count);
    }
}
