//! Keeps the list of what the VM Host itself uses: `hpvmhostrdev`. The list informs; each create, change and start looks at
//! the devices anew, whatever it says. Only what was read as a signature, of something that does not run now, or as the label
//! by which a table of the VM Host's names a device, depends on it: a guest may have written those, so they count on devices alone that no
//! guest has.

use std::collections::{BTreeMap, BTreeSet};

use hpvm_host::block::{
    Blocks, Device, DeviceNumber, DeviceProbe, Kind, Lead, Medium, Places, Store, Use,
};
use hpvm_model::{
    Bytes, Choice, EntryId, EntryType, GuestConfig, Origin, StorageDevice, StoreIdentity,
};
use hpvm_registry::{Change, Entry, Step};

use super::carry_out;
use super::trail::is_about;
use crate::refusal::unless_interrupted;
use crate::{Actor, Mode, Refusal, VmHost, stores};

/// What an update looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scan {
    /// What the kernel knows, and udev: quick, and where udev runs no device is opened.
    Known,
    /// The content of devices too.
    Everything,
}

/// How the list changed, or would change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Update {
    pub added: Vec<Entry>,
    /// As they are now.
    pub changed: Vec<Entry>,
    pub removed: Vec<Entry>,
}

impl Update {
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.added.is_empty() && self.changed.is_empty() && self.removed.is_empty()
    }

    /// From what the list has to what it should have. Entries by hand stay as they are, and in the way; what an administrator
    /// said of a device stays as well, unless it is listed by another name now.
    fn between(all: &[Entry], wanted: Vec<Entry>) -> Update {
        let known: BTreeMap<&EntryId, &Entry> =
            all.iter().map(|entry| (&entry.id, entry)).collect();
        let mut update = Update::default();
        let names: BTreeSet<&EntryId> = wanted.iter().map(|entry| &entry.id).collect();
        let is_listed = |old: &Entry| wanted.iter().any(|new| is_same_device(old, new));
        let is_gone = |old: &&Entry| {
            old.origin.is_automatic()
                && !names.contains(&old.id)
                && (!old.attributes.are_worth_keeping() || is_listed(old))
        };
        update.removed = all.iter().filter(is_gone).cloned().collect();
        for entry in wanted {
            match known.get(&entry.id) {
                None => update.added.push(entry),
                Some(old) if !old.origin.is_automatic() || **old == entry => {}
                Some(_) => update.changed.push(entry),
            }
        }
        update
    }
}

/// Brings the list up to date.
pub fn update(host: &mut VmHost, actor: &Actor, scan: Scan, mode: Mode) -> Result<Update, Refusal> {
    carry_out(host, actor, mode, write, |host| {
        let all = restrictions(host)?;
        let wanted = wanted(host, &all, scan)?;
        Ok(Update::between(&all, wanted))
    })
}

/// Removes the entries it made.
pub fn clear(host: &mut VmHost, actor: &Actor, mode: Mode) -> Result<Update, Refusal> {
    carry_out(host, actor, mode, write, |host| {
        Ok(Update::between(&restrictions(host)?, Vec::new()))
    })
}

/// Goes back to the list as it was before its last change, but for what was read on devices that guests have by now.
pub fn restore(host: &mut VmHost, actor: &Actor, mode: Mode) -> Result<Update, Refusal> {
    carry_out(host, actor, mode, write, |host| {
        let (all, before) = (restrictions(host)?, host.registry.entries_before()?);
        let devices = Devices::look(host)?;
        let wanted = restored(&all, &before, &devices.free());
        Ok(Update::between(&all, wanted))
    })
}

/// Says whether the list is brought up to date when the VM Host starts.
pub fn set_at_start(
    host: &mut VmHost,
    actor: &Actor,
    at_start: Choice,
    mode: Mode,
) -> Result<(), Refusal> {
    if mode == Mode::DryRun {
        return Ok(());
    }
    let change = host.begin()?;
    change.set_hostrdev_at_start(at_start)?;
    change.record(&actor.done(None, None))?;
    change.commit()?;
    Step::HostrdevCommitted.reached();
    Ok(())
}

fn restrictions(host: &VmHost) -> Result<Vec<Entry>, Refusal> {
    let mut entries = host.registry.entries()?;
    entries.retain(|entry| entry.id.entry == EntryType::Restricted);
    Ok(entries)
}

fn write(change: Change<'_>, actor: &Actor, update: &Update) -> Result<(), Refusal> {
    if update.is_empty() {
        return Ok(());
    }
    change.back_entries_up()?;
    for entry in &update.removed {
        change.delete_entry(&entry.id)?;
    }
    for entry in update.added.iter().chain(&update.changed) {
        change.put_entry(entry)?;
    }
    change.record(&actor.done(None, None))?;
    change.commit()?;
    Step::HostrdevCommitted.reached();
    Ok(())
}

/// The block devices of this VM Host, and what the guests' own lead to.
struct Devices {
    places: Places,
    blocks: Blocks,
    leads: Vec<Lead>,
    used: Vec<(DeviceNumber, String)>,
}

impl Devices {
    fn look(host: &VmHost) -> Result<Devices, Refusal> {
        let places = Places::default();
        let leads = guests_leads(host)?;
        let blocks = Blocks::read_all_with(&places, &leads);
        let used = blocks.host_used().into_iter().map(|(number, uses)| (number, reason(&uses)));
        Ok(Devices { used: used.collect(), places, blocks, leads })
    }

    /// Those that neither the VM Host uses nor a guest has.
    fn free(&self) -> Vec<&Device> {
        let used: BTreeSet<DeviceNumber> = self.used.iter().map(|(number, _)| *number).collect();
        let taken = guests_stores(&self.blocks, &self.leads);
        let is_free = |device: &&Device| {
            !used.contains(&device.number)
                && !taken.contains(&Store::Device(device.number))
                && device.medium == Medium::Fixed
                && !matches!(device.kind, Kind::Optical | Kind::Memory | Kind::Loop { .. })
        };
        self.blocks.devices().filter(is_free).collect()
    }

    fn read(&self, free: &[&Device], all: &[Entry]) -> Result<Vec<Entry>, Refusal> {
        let probe = DeviceProbe::new(&self.places);
        let mut owned = Vec::new();
        for device in free {
            unless_interrupted()?;
            let mut uses = self.labels(device);
            uses.extend(self.blocks.signatures(Store::Device(device.number), &probe));
            let entry = entry(device, Origin::Signature, reason(&uses), all);
            owned.extend(entry.filter(|_| !uses.is_empty()));
        }
        Ok(owned)
    }

    /// What the VM Host's tables say of a free device.
    fn labels(&self, device: &Device) -> Vec<Use> {
        self.blocks.labels(Store::Device(device.number))
    }

    /// What was read before, and what needs no reading.
    fn known(&self, free: &[&Device], all: &[Entry]) -> Vec<Entry> {
        let mut known = still_free(free, all, all);
        let ids: BTreeSet<EntryId> = known.iter().map(|entry| entry.id.clone()).collect();
        let labelled = free.iter().filter_map(|device| {
            let uses = self.labels(device);
            entry(device, Origin::Signature, reason(&uses), all).filter(|_| !uses.is_empty())
        });
        known.extend(labelled.filter(|entry| !ids.contains(&entry.id)));
        known
    }
}

fn reason(uses: &[Use]) -> String {
    uses.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

/// The entries there should be: one for each device in use, one for each that something else owns.
fn wanted(host: &VmHost, all: &[Entry], scan: Scan) -> Result<Vec<Entry>, Refusal> {
    let devices = Devices::look(host)?;
    let in_use = |(number, reason): &(DeviceNumber, String)| {
        entry(devices.blocks.device(*number)?, Origin::Host, reason.clone(), all)
    };
    let mut wanted: Vec<Entry> = devices.used.iter().filter_map(in_use).collect();
    let free = devices.free();
    wanted.extend(match scan {
        Scan::Everything => devices.read(&free, all)?,
        Scan::Known => devices.known(&free, all),
    });
    Ok(wanted)
}

/// What there was before, with what is said of it now. That the VM Host used a device forbids nothing; what was read on one
/// does, and a guest may have it by now.
fn restored(all: &[Entry], before: &[Entry], free: &[&Device]) -> Vec<Entry> {
    let as_is_said = |entry: &Entry| {
        let now = all.iter().find(|now| now.id == entry.id).unwrap_or(entry);
        Entry { attributes: now.attributes, ..entry.clone() }
    };
    let used = before.iter().filter(|entry| entry.origin == Origin::Host).map(as_is_said);
    used.chain(still_free(free, before, &[all, before].concat())).collect()
}

/// What was read and is not read now: it holds while the device is there and still nobody's.
fn still_free(free: &[&Device], read: &[Entry], all: &[Entry]) -> Vec<Entry> {
    let was_read = |entry: &&Entry| entry.origin == Origin::Signature;
    let kept = |known: &Entry| {
        let is_it = |device: &&&Device| {
            is_about(known, identity(device).identifier.as_deref(), &name(device))
        };
        let device = free.iter().find(is_it)?;
        entry(device, Origin::Signature, known.reason.clone().unwrap_or_default(), all)
    };
    read.iter().filter(was_read).filter_map(kept).collect()
}

/// What the administrator said of a device stays with the device, whatever it is called now.
fn entry(device: &Device, origin: Origin, reason: String, all: &[Entry]) -> Option<Entry> {
    let id = EntryId::new(EntryType::Restricted, &name(device)).ok()?;
    let identity = identity(device);
    let is_it = |known: &&Entry| is_about(known, identity.identifier.as_deref(), id.name());
    let known = all.iter().filter(|known| known.origin.is_automatic()).find(is_it);
    Some(Entry {
        attributes: known.map(|known| known.attributes).unwrap_or_default(),
        origin,
        reason: Some(reason),
        identity: Some(identity),
        file: Some(Store::Device(device.number).identity()),
        ..Entry::by_hand(id, format!("/dev/{}", device.kernel_name()))
    })
}

fn is_same_device(old: &Entry, new: &Entry) -> bool {
    let identifier = new.identity.as_ref().and_then(|identity| identity.identifier.as_deref());
    is_about(old, identifier, new.id.name())
}

fn name(device: &Device) -> String {
    match &device.kind {
        Kind::Mapped { name, .. } if !name.is_empty() => format!("/dev/mapper/{name}"),
        _ => format!("/dev/{}", device.kernel_name()),
    }
}

fn identity(device: &Device) -> StoreIdentity {
    let identifier = device.identifier.as_ref().map(ToString::to_string);
    StoreIdentity { identifier, size: Bytes(device.size_bytes) }
}

/// What the devices of all guests lead to, also of those that were removed and may come back.
fn guests_leads(host: &VmHost) -> Result<Vec<Lead>, Refusal> {
    let removed = host.registry.removed()?.into_iter().map(|removed| removed.config);
    let guests: Vec<GuestConfig> = host.registry.all()?.into_iter().chain(removed).collect();
    let paths: BTreeSet<&str> =
        guests.iter().flat_map(|guest| &guest.storage).flat_map(StorageDevice::stores).collect();
    Ok(stores::leads_in_time(paths))
}

/// All that guests may have written to. The disk below a guest's file is not: the file system keeps them apart.
fn guests_stores(blocks: &Blocks, leads: &[Lead]) -> BTreeSet<Store> {
    let stores = leads.iter().filter_map(Lead::store);
    stores
        .flat_map(|store| {
            let lineage = blocks.lineage(store);
            let under = match store {
                Store::Device(_) => lineage.under,
                Store::File(_) => BTreeSet::new(),
            };
            under.into_iter().chain(lineage.over).chain([store]).collect::<Vec<_>>()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use hpvm_host::block::{Access, Identifier};
    use hpvm_model::Attributes;

    use super::*;

    #[test]
    fn what_was_read_is_not_restored_onto_a_guests_disk() {
        let disk = Device {
            number: DeviceNumber { major: 8, minor: 32 },
            name: "sdc".into(),
            kind: Kind::Disk,
            size_bytes: 1,
            access: Access::ReadWrite,
            medium: Medium::Fixed,
            block_bytes: 512,
            identifier: Some(Identifier::Wwid("naa.1".into())),
            partitions: Vec::new(),
            slaves: Vec::new(),
            holders: Vec::new(),
        };
        let used = entry("/dev/sda", Origin::Host);
        let read =
            Entry { identity: Some(identity(&disk)), ..entry("/dev/sdb", Origin::Signature) };
        let before = [used.clone(), read];
        assert_eq!(restored(&[], &before, &[]), [used]);
        let names: Vec<String> = restored(&[], &before, &[&disk])
            .into_iter()
            .map(|entry| entry.id.to_string())
            .collect();
        assert_eq!(names, ["rdev:/dev/sda", "rdev:/dev/sdc"], "it has another name by now");
    }

    /// ALLOW=GUEST was said for a reason, which is on record and in nobody's mind.
    #[test]
    fn what_was_said_of_a_device_stays_with_it() {
        let of = |name: &str, identifier: &str, attributes: Attributes| Entry {
            identity: Some(StoreIdentity { identifier: Some(identifier.into()), size: Bytes(1) }),
            attributes,
            ..entry(name, Origin::Host)
        };
        let said = Attributes { allow_guests: Choice::Yes, ..Attributes::default() };
        let all = [of("/dev/sda", "wwid:a", said), of("/dev/sdb", "wwid:b", Attributes::default())];
        let update = Update::between(&all, Vec::new());
        assert_eq!(update.removed, all[1..], "out of use now, and in use again later");
        let elsewhere = of("/dev/sdc", "wwid:a", said);
        let update = Update::between(&all[..1], vec![elsewhere.clone()]);
        assert_eq!((update.removed, update.added), (all[..1].to_vec(), vec![elsewhere]));
        let another = of("/dev/sda", "wwid:c", Attributes::default());
        let update = Update::between(&all[..1], vec![another.clone()]);
        assert_eq!(update.changed, [another], "what has its name is another device");
    }

    fn entry(name: &str, origin: Origin) -> Entry {
        let id = EntryId::new(EntryType::Restricted, name).unwrap();
        Entry { origin, ..Entry::by_hand(id, name.into()) }
    }

    #[test]
    fn only_its_own_entries_come_and_go() {
        let all = [
            entry("/dev/by-hand", Origin::Hand),
            entry("/dev/gone", Origin::Host),
            entry("/dev/gone-signature", Origin::Signature),
            entry("/dev/same", Origin::Host),
            entry("/dev/used-by-now", Origin::Signature),
        ];
        let wanted = vec![
            entry("/dev/by-hand", Origin::Host),
            entry("/dev/new", Origin::Host),
            entry("/dev/same", Origin::Host),
            entry("/dev/used-by-now", Origin::Host),
        ];
        let update = Update::between(&all, wanted);
        assert_eq!(update.added, [entry("/dev/new", Origin::Host)]);
        assert_eq!(update.changed, [entry("/dev/used-by-now", Origin::Host)]);
        assert_eq!(update.removed, [all[1].clone(), all[2].clone()]);
        assert_eq!(Update::between(&all[..1], Vec::new()), Update::default());
    }
}
