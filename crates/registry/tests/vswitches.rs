//! Virtual switches and NICs as rows: what goes in comes out, names and MAC addresses are unique, guests follow a switch
//! that is renamed, and what a registry of version 3 becomes.

mod common;

use common::*;
use hpvm_model::{
    GuestConfig, PortNumber, PortRules, PortVlan, SwitchName, SwitchNumber, SwitchState, VlanId,
};
use hpvm_model::{Vswitch, Wire};
use hpvm_registry::{Identities, Registry, RegistryError, SwitchSelector, portable};
use rusqlite::Connection;

fn switch(number: u32, name: &str) -> Vswitch {
    Vswitch::new(SwitchNumber::new(number).unwrap(), name.parse().unwrap())
}

/// A switch with every field filled.
fn full() -> Vswitch {
    let mut full = switch(2, "sw1");
    full.wire = Wire::Nic("eth0".parse().unwrap());
    full.state = SwitchState::Up;
    full.forwards = vec![
        "tcp:2222:10.0.2.15:22".parse().unwrap(),
        "udp:127.0.0.1:53:10.0.2.15:53".parse().unwrap(),
    ];
    let vlan = PortVlan::Untagged(VlanId::new(20).unwrap());
    full.set_rules(PortNumber::new(8).unwrap(), PortRules { vlan, ..PortRules::default() });
    full
}

#[test]
fn localnet_is_there_from_the_first_and_what_goes_in_comes_out() {
    let place = Place::new();
    let mut registry = place.open();
    let localnet = registry.vswitches().unwrap();
    assert_eq!(localnet.len(), 1);
    assert_eq!(
        (localnet[0].number, &localnet[0].name),
        (SwitchNumber::LOCALNET, &SwitchName::localnet())
    );
    let change = registry.change().unwrap();
    assert_eq!(change.next_switch_number().unwrap(), full().number);
    change.insert_vswitch(&full()).unwrap();
    change.commit().unwrap();
    let by_name = SwitchSelector::Name(full().name);
    assert_eq!(place.reader().vswitch(&by_name).unwrap(), Some(full()));
    let change = registry.change().unwrap();
    let changed = Vswitch { forwards: Vec::new(), wire: Wire::Nat, ..full() };
    assert_eq!(change.update_vswitch(&changed).unwrap(), []);
    change.commit().unwrap();
    assert_eq!(registry.vswitch(&by_name).unwrap(), Some(changed));
    let change = registry.change().unwrap();
    change.remove_vswitch(full().number).unwrap();
    assert!(matches!(change.remove_vswitch(full().number), Err(RegistryError::NoSwitch(_))));
    change.commit().unwrap();
    assert_eq!(registry.vswitches().unwrap(), localnet);
}

#[test]
fn names_are_unique_and_guests_follow_them() {
    let place = Place::new();
    let mut registry = place.open();
    let mut user = guest_on_a_network(1);
    user.nics[0].vswitch = full().name;
    add(&mut registry, &user);
    add(&mut registry, &guest_on_a_network(2));
    let change = registry.change().unwrap();
    change.insert_vswitch(&full()).unwrap();
    let taken = change.insert_vswitch(&switch(3, "sw1")).unwrap_err();
    assert!(matches!(taken, RegistryError::SwitchNameTaken { .. }), "{taken}");
    user.nics[0].vswitch = "sw2".parse().unwrap();
    let renamed = Vswitch { name: "sw2".parse().unwrap(), ..full() };
    assert_eq!(change.update_vswitch(&renamed).unwrap(), [user.clone()]);
    change.commit().unwrap();
    assert_eq!(registry.all().unwrap(), [user, guest_on_a_network(2)]);
}

/// Adds two guests on a network; gives a third one with the first one's NICs.
fn add_two_and_make_a_third(registry: &mut Registry) -> GuestConfig {
    add(registry, &guest_on_a_network(1));
    add(registry, &guest_on_a_network(2));
    GuestConfig { nics: guest_on_a_network(1).nics, ..guest(3) }
}

#[test]
fn a_mac_address_has_one_guest_even_when_that_was_removed() {
    let place = Place::new();
    let mut registry = place.open();
    let same = add_two_and_make_a_third(&mut registry);
    let change = registry.change().unwrap();
    change.remove(number(1), jiff::Timestamp::now()).unwrap();
    let taken = change.insert(&same, &Identities::new()).unwrap_err();
    assert!(taken.to_string().contains("0x56e9e3090001 belongs to a NIC of guest 'guest1'"));
    let mut second = guest_on_a_network(2);
    second.nics = guest_on_a_network(1).nics;
    assert!(matches!(
        change.update(&second, &Identities::new()),
        Err(RegistryError::MacTaken { .. })
    ));
    change.update(&guest_on_a_network(2), &Identities::new()).unwrap();
    change.commit().unwrap();
    let rows = registry.nics().unwrap();
    assert_eq!(rows.iter().map(|row| row.removed).collect::<Vec<_>>(), [true, false]);
    assert_eq!(registry.list().unwrap()[0].nics, 1);
    assert_eq!(registry.check().unwrap(), Vec::<String>::new());
}

/// A clone with its source's address is changed like any guest, and comes back with a lost registry.
#[test]
fn a_guest_may_be_made_with_the_mac_address_of_another_one() {
    let place = Place::new();
    let mut registry = place.open();
    let mut same = add_two_and_make_a_third(&mut registry);
    let none = Identities::new();
    let change = registry.change().unwrap();
    let taken = change.insert_like(number(2), &same, &none);
    assert!(matches!(taken, Err(RegistryError::MacTaken { .. })), "that is another's");
    change.insert_like(number(1), &same, &none).unwrap();
    let mut third = guest(4);
    third.nics.clone_from(&same.nics);
    change.insert_like(number(1), &third, &none).unwrap();
    same.label = "changed".parse().unwrap();
    change.update(&same, &none).unwrap();
    change.update(&guest_on_a_network(1), &none).unwrap();
    change.commit().unwrap();
    assert_eq!(registry.check().unwrap(), Vec::<String>::new());
}

#[test]
fn a_guests_text_has_its_nics() {
    let text = portable::write(&guest_on_a_network(1));
    assert!(text.contains("0x56e9e3090001"), "{text}");
    assert_eq!(portable::read(&text).unwrap(), guest_on_a_network(1));
}

/// Of version 3: without networks.
#[test]
fn a_registry_of_version_3_gets_networks() {
    let place = Place::new();
    let mut registry = place.open();
    let old_guest = guest(1);
    add(&mut registry, &old_guest);
    drop(registry);
    let old = Connection::open(place.path()).unwrap();
    old.execute_batch(
        "DROP TABLE nic; DROP TABLE switch_port; DROP TABLE forward; DROP TABLE vswitch;
         ALTER TABLE guest DROP COLUMN nic_count;
         PRAGMA user_version = 3; PRAGMA wal_checkpoint(TRUNCATE);",
    )
    .unwrap();
    drop(old);
    let reader = place.reader();
    assert_eq!(reader.all().unwrap(), [old_guest], "readers take it as it is");
    assert_eq!(reader.list().unwrap()[0].nics, 0);
    let seen_before = reader.vswitches().unwrap();
    assert_eq!(reader.nics().unwrap(), []);
    drop(reader);
    let mut registry = place.open();
    let change = registry.change().unwrap();
    change.update(&guest_on_a_network(1), &files(&guest_on_a_network(1))).unwrap();
    change.commit().unwrap();
    assert_eq!(registry.all().unwrap(), [guest_on_a_network(1)]);
    assert!(seen_before[0].name.is_localnet());
    assert_eq!(registry.vswitches().unwrap(), seen_before);
    assert!(place.path().with_file_name("hpvm.db.version-3").exists());
}
