//! The power of the VM Host is cut at any moment of commands that make, copy, rename, change and remove what it has. The folder
//! of its state is a file system that remembers what was done to it, and what was synced. Of each moment just before something
//! is synced there are three VM Hosts: one has of all the rest nothing, one the names, one the contents; at some, drawn by lot,
//! one has of each file and folder what the lot says. So a sync that is missing anywhere is missed here, however little a real
//! file system needs it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::PathBuf;

use hpvm_testkit::vm_host::{Engine, VmHost};
use serde_json::Value;

use crate::Test;
use crate::chance::Lot;
use crate::file_log::{Event, FileLog, Tree, Unsynced};
use crate::refusals::export;

pub(crate) const TESTS: &[Test] = crate::tests![what_was_told_is_done_survives_a_power_cut,];

const DISK_BYTES: u64 = 256 << 10;
/// So many more, of moments that are drawn by lot, with something that was not synced.
const DRAWN: usize = 40;
/// What a command that died may leave; anything else that is found once all commands have ended was lost.
const LEFT_OVER: &[&str] = &[
    "is left of the removed guest",
    "is left of an interrupted creation",
    "is the name of no guest",
    "belongs to no guest",
    "was never finished",
    "was interrupted",
];

/// `DISKS` stands for a folder of disks within the state's.
const COMMANDS: &[&str] = &[
    "hpvmcreate -P web -r 64M -l first",
    "hpvmcreate -P db -r 64M -a disk:avio_stor:0,0,0:file:DISKS/db.img",
    "hpvmmodify -P web -N site",
    "hpvmmodify -P db -r 1G -l second",
    "hpvmclone -P db -N copy -b disk:avio_stor:0,0,0:file:DISKS/copy.img",
    "hpvmclone -P db -N linked --linked",
    "hpvmnet -c -S lan",
    "hpvmdevmgmt -S 64K DISKS/made.img",
    "hpvm nvram -P db --reset -F",
    "hpvmremove -P site -F",
    "hpvm undelete -P site",
    "hpvmremove -P copy -F --purge",
];

/// What there is after a command.
struct Told {
    known: Value,
    disks: BTreeMap<PathBuf, Vec<u8>>,
    events_count: usize,
}

fn what_was_told_is_done_survives_a_power_cut() {
    let (mut lot, host) = (Lot::new(), VmHost::new(Engine::Fake));
    let state = host.path("var/opt/hpvm");
    fs::create_dir_all(&state).expect("a folder");
    let (events, ends) = {
        let log = FileLog::over(&state);
        let disks = state.join("disks");
        fs::create_dir(&disks).expect("a folder");
        let disk = disks.join("db.img");
        fs::write(&disk, vec![7; usize::try_from(DISK_BYTES).expect("short")]).expect("a disk");
        for path in [&disk, &disks, &state] {
            fs::File::open(path).and_then(|opened| opened.sync_all()).expect("synced");
        }
        let mut ends = vec![log.events_count()];
        for command in COMMANDS {
            let command = command.replace("DISKS", &disks.display().to_string());
            host.ok(&command.split(' ').collect::<Vec<_>>());
            ends.push(log.events_count());
        }
        (log.events(), ends)
    };
    let told: Vec<Told> = ends.iter().map(|&end| Told::by(&host, &events[..end])).collect();
    let cuts = cuts(&events, &told, &mut lot);
    println!("{} power cuts", cuts.len());
    assert!(cuts.len() >= 4 * COMMANDS.len(), "{} cuts: each command syncs", cuts.len());
    cuts.iter().for_each(|cut| cut.is_survived(&host, &told));
}

impl Told {
    /// All that was done is looked at beside where it was done: whoever serves a file system had better have nothing of it
    /// mapped, as the registry has.
    fn by(host: &VmHost, events: &[Event]) -> Told {
        be(host, &Tree::after_cut(events, |_, count| count));
        Told { known: known(host), disks: disks(host), events_count: events.len() }
    }
}

/// Makes of the VM Host's state what a power cut left.
fn be(host: &VmHost, tree: &Tree) {
    let state = host.path("var/opt/hpvm");
    let _ = fs::remove_dir_all(&state);
    fs::create_dir_all(host.path("var/opt")).expect("a folder");
    tree.write_below(&state, &is_left_out);
}

fn disks(host: &VmHost) -> BTreeMap<PathBuf, Vec<u8>> {
    let entries = fs::read_dir(host.path("var/opt/hpvm/disks")).into_iter().flatten().flatten();
    let named = entries.filter(|entry| !entry.file_name().to_string_lossy().starts_with('.'));
    named.map(|entry| (entry.file_name().into(), fs::read(entry.path()).expect("a disk"))).collect()
}

/// Where in what is known they stand.
const VSWITCHES: usize = 3;

/// What the registry says, but for what was done, which a repair adds to.
fn known(host: &VmHost) -> Value {
    if !host.path("var/opt/hpvm/hpvm.db").exists() {
        return Value::Null;
    }
    let mut export = export(host);
    ["guests", "removed", "entries", "vswitches"].map(|what| export[what].take()).to_vec().into()
}

/// Of what was not synced.
#[derive(Clone, Copy, Debug)]
enum Kept {
    Nothing,
    Names,
    Contents,
    Drawn(u64),
}

/// What a power cut leaves.
struct Cut {
    what: String,
    tree: Tree,
    /// So many commands had ended.
    done: usize,
    is_between: bool,
}

/// One of each content, at most.
fn cuts(events: &[Event], told: &[Told], lot: &mut Lot) -> Vec<Cut> {
    let ends: BTreeSet<usize> = told.iter().map(|told| told.events_count).collect();
    let syncs = (0..events.len()).filter(|&n| matches!(events[n], Event::Synced(_)));
    let begun = told[0].events_count;
    let moments: BTreeSet<usize> =
        syncs.filter(|&n| n >= begun).chain(ends.iter().copied()).collect();
    let moments: Vec<usize> = moments.into_iter().collect();
    let mut drawn = || (moments[lot.index(moments.len())], Kept::Drawn(lot.another_seed()));
    let drawn: Vec<_> = (0..DRAWN).map(|_| drawn()).collect();
    let whole = [Kept::Nothing, Kept::Names, Kept::Contents];
    let chosen = moments.iter().flat_map(|&moment| whole.map(|kept| (moment, kept))).chain(drawn);
    let mut seen = BTreeSet::new();
    let cut = |(moment, kept)| {
        let tree = Tree::after_cut(&events[..moment], keeping(kept));
        let done = told.iter().filter(|told| told.events_count <= moment).count() - 1;
        let is_between = ends.contains(&moment);
        let mut hasher = DefaultHasher::new();
        (tree.image(&is_left_out), done, is_between).hash(&mut hasher);
        let what = format!("{lot}: after {moment} of {} deeds, keeping {kept:?}", events.len());
        seen.insert(hasher.finish()).then_some(Cut { what, tree, done, is_between })
    };
    chosen.filter_map(cut).collect()
}

/// How many of the things done to a node are there that were not synced.
fn keeping(kept: Kept) -> impl FnMut(Unsynced, usize) -> usize {
    let mut lot = match kept {
        Kept::Drawn(seed) => Lot::of(seed),
        _ => Lot::of(0),
    };
    move |what, count| match (kept, what) {
        (Kept::Names, Unsynced::Names) | (Kept::Contents, Unsynced::Content) => count,
        (Kept::Drawn(_), _) => lot.index(count + 1),
        _ => 0,
    }
}

/// The index of the registry's log is made anew by whoever opens it first.
fn is_left_out(name: &[u8]) -> bool {
    name.ends_with(b"-shm")
}

impl Cut {
    /// Whatever is left over is found and cleaned; then all is as the last command left it, or the one that was at work.
    #[track_caller]
    fn is_survived(&self, host: &VmHost, told: &[Told]) {
        let Cut { what, tree, done, is_between } = self;
        be(host, tree);
        let (before, after) = (&told[*done], told.get(done + 1));
        let what = format!("{what}, after {done} commands, at work: {:?}", COMMANDS.get(*done));
        if before.known.is_null() && known(host).is_null() {
            return;
        }
        let found = host.run(&["hpvm", "doctor"]);
        if !found.status.success() {
            let is_left_over = |line: &str| LEFT_OVER.iter().any(|left| line.contains(left));
            let mut lines = found.stdout.lines().filter(|line| !line.starts_with("  "));
            assert!(!is_between || lines.all(is_left_over), "{what}: {found}");
            let repaired = host.run(&["hpvm", "doctor", "--repair"]);
            assert!(repaired.status.success(), "{what}: {found}\n{repaired}");
            let left = host.run(&["hpvm", "doctor"]);
            assert!(left.status.success(), "{what}: {left}");
        }
        let (now, disks) = (known(host), disks(host));
        let is_new = after.is_some_and(|after| after.known == now);
        let is_old = is_as(&now, &before.known) || !is_between && is_half_made(&now, before, after);
        assert!(
            is_old || is_new && !is_between,
            "{what}: {now:#}\nis neither {:#}\nnor what comes next",
            before.known
        );
        // What the repair made known may lack what it was to have: nobody was told of it.
        let is_made =
            is_new && !is_old && !found.stdout.contains("the registry does not know guest");
        let has = if is_made { after } else { Some(before) };
        for (name, content) in has.into_iter().flat_map(|told| &told.disks) {
            assert!(disks.get(name) == Some(content), "{what}: {}: {found}", name.display());
        }
    }
}

/// A registry that was just made has a virtual switch and nothing else.
fn is_as(now: &Value, before: &Value) -> bool {
    let lists = now.as_array().into_iter().flatten();
    let mut guests_and_devices = lists.take(VSWITCHES);
    now == before
        || before.is_null() && guests_and_devices.all(|list| *list == serde_json::json!([]))
}

/// A guest that was being made, and that the registry does not know, but all that tells of it: what may be a guest is removed by
/// no repair, but kept as one, or as a removed one where nothing has its name.
fn is_half_made(now: &Value, before: &Told, after: Option<&Told>) -> bool {
    let mut rest = now.clone();
    let had: Vec<&Value> = uuids(&before.known).collect();
    let come: Vec<&Value> =
        after.iter().flat_map(|after| uuids(&after.known)).filter(|id| !had.contains(id)).collect();
    for list in rest.as_array_mut().into_iter().flatten().filter_map(Value::as_array_mut) {
        list.retain(|guest| !uuid(guest).is_some_and(|uuid| come.contains(&uuid)));
    }
    is_as(&rest, &before.known)
}

/// Of guests and removed guests.
fn uuids(known: &Value) -> impl Iterator<Item = &Value> {
    let lists = known.as_array().into_iter().flatten().filter_map(Value::as_array);
    lists.flatten().filter_map(uuid)
}

fn uuid(guest: &Value) -> Option<&Value> {
    guest.get("uuid").or_else(|| guest.get("guest")?.get("uuid"))
}
