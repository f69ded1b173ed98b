//! By what a guest knows its devices: no two devices of a VM Host have the same, whatever was done with their guests, and each
//! keeps its own.

use std::collections::{BTreeMap, BTreeSet};

use hpvm_testkit::vm_host::{Engine, VmHost};
use rusqlite::{Connection, OpenFlags};

use crate::Test;

pub(crate) const TESTS: &[Test] = crate::tests![no_two_devices_have_the_same_identity];

/// Ways through the commands, and how many of them each takes.
const WALKS: u64 = 4;
const STEPS: usize = 14;
const NAMES: [&str; 4] = ["one", "two", "three", "four"];

/// Where a device is, by the uuid of its guest, and what it is known by.
type Identities = BTreeMap<(String, String), String>;

/// Settles 130: no tool that counts disks by their identities takes two for one, nor one for two.
fn no_two_devices_have_the_same_identity() {
    let mut taken = BTreeSet::new();
    for seed in 1..=WALKS {
        let mut walk = Walk { host: VmHost::new(Engine::Fake), random: seed, files: 0 };
        let mut before = Identities::new();
        for _ in 0..STEPS {
            let (words, subject) = walk.step(&mut taken);
            let after = walk.identities();
            let distinct: BTreeSet<&String> = after.values().collect();
            assert_eq!(distinct.len(), after.len(), "after {words}: {after:?}");
            for (place, identity) in &before {
                let now = after.get(place);
                let is_same = now == Some(identity) || subject.as_ref() == Some(&place.0);
                assert!(is_same, "after {words}: {place:?} was {identity} and is {now:?}");
            }
            before = after;
        }
    }
    let missed: Vec<&&str> = VERBS.iter().filter(|verb| !taken.contains(*verb)).collect();
    assert!(missed.is_empty(), "no walk took {missed:?}");
}

const VERBS: [&str; 8] =
    ["create", "add", "exchange", "rename", "clone", "remove", "undelete", "rebuild"];

/// A VM Host and what is done on it next.
struct Walk {
    host: VmHost,
    random: u64,
    files: usize,
}

impl Walk {
    /// Takes one step that can be taken; gives its words, and the guest of which a device may be another afterwards.
    fn step(&mut self, taken: &mut BTreeSet<&'static str>) -> (String, Option<String>) {
        loop {
            let verb = VERBS[self.draw(VERBS.len())];
            let Some((words, subject)) = self.words(verb) else { continue };
            taken.insert(verb);
            let line: Vec<&str> = words.iter().map(String::as_str).collect();
            self.host.ok(&line);
            return (words.join(" "), subject);
        }
    }

    fn words(&mut self, verb: &str) -> Option<(Vec<String>, Option<String>)> {
        let guests = self.guests("removed_at IS NULL");
        let free: Vec<&str> = NAMES
            .into_iter()
            .filter(|name| guests.iter().all(|(known, _)| known != name))
            .collect();
        let pick = self.draw(guests.len().max(1));
        let guest = guests.get(pick).cloned();
        let fresh = free.first().map(|name| (*name).to_owned());
        let words = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect();
        let (place, disk) = (format!("disk:avio_stor:0,0,{}", 4 + self.files), self.file());
        let only = |line: &[&str]| Some((words(line), None));
        match verb {
            "create" => {
                let dvd = "dvd:avio_stor:0,0,1:null:/srv";
                let scsi = self.file();
                let (first, second) = (
                    format!("disk:avio_stor:0,0,0:file:{disk}"),
                    format!("disk:scsi:0,1,0:file:{scsi}"),
                );
                only(&["hpvmcreate", "-P", &fresh?, "-a", &first, "-a", dvd, "-a", &second])
            }
            "add" => {
                let added = format!("{place}:file:{disk}");
                only(&["hpvmmodify", "-P", &guest?.0, "-a", &added])
            }
            "exchange" => {
                let exchanged = format!("disk:avio_stor:0,0,0:file:{disk}");
                let (name, uuid) = guest?;
                Some((words(&["hpvmmodify", "-P", &name, "-m", &exchanged]), Some(uuid)))
            }
            "rename" => only(&["hpvmmodify", "-P", &guest?.0, "-N", &fresh?]),
            "clone" => only(&["hpvmclone", "-P", &guest?.0, "-N", &fresh?]),
            "remove" => only(&["hpvmremove", "-P", &guest?.0, "-F"]),
            "undelete" => {
                let removed = self.guests("removed_at IS NOT NULL").into_iter();
                let mut back = removed.filter(|(name, _)| free.contains(&name.as_str()));
                let number = self.number_of(&back.next()?.1);
                only(&["hpvm", "undelete", "-p", &number])
            }
            _ => {
                guest?;
                only(&["hpvm", "doctor", "--rebuild", "-F"])
            }
        }
    }

    /// Of xorshift (Marsaglia, 2003): the same walks each time.
    fn draw(&mut self, count: usize) -> usize {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        usize::try_from(self.random % count as u64).expect("it is below a count")
    }

    fn file(&mut self) -> String {
        self.files += 1;
        self.host.disk(&format!("disk-{}.img", self.files), 1 << 20).display().to_string()
    }

    fn rows<const N: usize>(&self, sql: &str) -> Vec<[String; N]> {
        let file = self.host.path("var/opt/hpvm/hpvm.db");
        if !file.exists() {
            return Vec::new();
        }
        let database = Connection::open_with_flags(file, OpenFlags::SQLITE_OPEN_READ_WRITE);
        let database = database.expect("the registry");
        let mut statement = database.prepare(sql).expect("a question");
        let mut rows = statement.query([]).expect("an answer");
        let mut found = Vec::new();
        while let Some(row) = rows.next().expect("a row") {
            found.push(std::array::from_fn(|column| row.get(column).expect("text")));
        }
        found
    }

    fn identities(&self) -> Identities {
        let rows = self.rows(
            "SELECT hex(uuid), bus || ',' || device || ',' || target, id
             FROM device JOIN guest ON guest = number",
        );
        rows.into_iter().map(|[guest, place, id]| ((guest, place), id)).collect()
    }

    /// By name and uuid.
    fn guests(&self, which: &str) -> Vec<(String, String)> {
        let sql = format!("SELECT name, hex(uuid) FROM guest WHERE {which} ORDER BY number");
        self.rows(&sql).into_iter().map(|[name, uuid]| (name, uuid)).collect()
    }

    fn number_of(&self, uuid: &str) -> String {
        let sql = format!("SELECT CAST(number AS TEXT) FROM guest WHERE hex(uuid) = '{uuid}'");
        let [number] = self.rows(&sql).pop().expect("a guest");
        number
    }
}
