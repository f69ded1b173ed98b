//! The commands that change what is the VM Host's: its switches, its device database, and whatever `hpvm autostart`, `autostop`
//! and `doctor` do for all guests. Scenes as in the module beside.

use std::fs;

use hpvm_model::{Choice, EntryId, EntryType, Origin, SwitchState};
use hpvm_registry::{Access, Entry, Registry};
use hpvm_testkit::vm_host::VmHost;

use super::scenes::{AGAIN, EITHER, Scene};
use super::{WEB, guest, is_listed, is_supervised, registry, removed_names};
use crate::doctor::{forget, kill_supervisors, leave_interrupted};
use crate::removal::make_overdue;

const SWITCH_STEPS: &[&str] = &["vswitch.committed"];

pub(super) const SWITCH: Scene = Scene {
    prepare: |_| {},
    command: &["hpvmnet", "-c", "-S", "sw1"],
    steps: SWITCH_STEPS,
    then: EITHER,
    is_done: |host| host.ok(&["hpvmnet"]).contains("sw1           2 Down"),
};

/// A switch that a guest has a NIC on, which names it anew.
pub(super) const SWITCH_RENAME: Scene = Scene {
    prepare: |host| {
        host.ok(&["hpvmnet", "-c", "-S", "sw1"]);
        host.ok(&["hpvmmodify", "-P", "web", "-a", "network:avio_lan::vswitch:sw1"]);
    },
    command: &["hpvmnet", "-S", "sw1", "-C", "-N", "sw2"],
    steps: SWITCH_STEPS,
    then: AGAIN,
    is_done: |host| {
        let on = guest(host, "web").map(|web| web.nics[0].vswitch.clone());
        on.is_some_and(|on| on.as_str() == "sw2") && host.ok(&["hpvmnet"]).contains("sw2")
    },
};

pub(super) const SWITCH_DELETE: Scene = Scene {
    prepare: |host| drop(host.ok(&["hpvmnet", "-c", "-S", "sw1"])),
    command: &["hpvmnet", "-S", "sw1", "-d", "-F"],
    steps: SWITCH_STEPS,
    then: AGAIN,
    is_done: |host| !host.ok(&["hpvmnet"]).contains("sw1"),
};

pub(super) const SWITCH_BOOT: Scene = Scene {
    prepare: |host| drop(host.ok(&["hpvmnet", "-S", "localnet", "-h", "-F"])),
    command: &["hpvmnet", "-S", "localnet", "-b"],
    steps: SWITCH_STEPS,
    then: AGAIN,
    is_done: |host| localnet_is(host, SwitchState::Up),
};

pub(super) const SWITCH_RESET: Scene =
    Scene { command: &["hpvmnet", "-S", "localnet", "-r", "-F"], ..SWITCH_BOOT };

pub(super) const SWITCH_HALT: Scene = Scene {
    prepare: |_| {},
    command: &["hpvmnet", "-S", "localnet", "-h", "-F"],
    steps: SWITCH_STEPS,
    then: EITHER,
    is_done: |host| localnet_is(host, SwitchState::Halted),
};

pub(super) const PORT: Scene = Scene {
    prepare: |_| {},
    command: &["hpvmnet", "-S", "localnet", "-u", "portid:1:isolated:on"],
    steps: SWITCH_STEPS,
    then: AGAIN,
    is_done: |host| !registry(host).vswitches().expect("the switches")[0].ports.is_empty(),
};

fn localnet_is(host: &VmHost, state: SwitchState) -> bool {
    registry(host).vswitches().expect("the switches")[0].state == state
}

pub(super) const AUTOSTART: Scene = Scene {
    prepare: |host| {
        // What the VM Host itself uses is another on each machine.
        host.ok(&["hpvmhostrdev", "-D"]);
        host.ok(&["hpvmmodify", "-P", "web", "-B", "auto"]);
    },
    command: &["hpvm", "autostart"],
    steps: &["start.claimed", "start.record", "start.keeper", "start.running"],
    then: AGAIN,
    is_done: |host| host.state("web").starts_with("On (") && host.state("web") != "On (ATTN)",
};

/// Of a removed guest that is over its time.
pub(super) const AUTOSTART_CLEARS: Scene = Scene {
    prepare: |host| {
        host.ok(&["hpvmhostrdev", "-D"]);
        host.ok(&["hpvmremove", "-P", "web", "-F"]);
        make_overdue(host, "web");
    },
    command: &["hpvm", "autostart"],
    steps: &["purge.committed", "purge.removed"],
    then: EITHER,
    is_done: |host| removed_names(host).is_empty(),
};

/// Of one guest: those of several are passed at the same time.
pub(super) const AUTOSTOP: Scene = Scene {
    prepare: |host| {
        host.ok(&["hpvmstart", "-P", "web"]);
        host.ok(&["hpvmstop", "-P", "other", "-F"]);
    },
    command: &["hpvm", "autostop"],
    steps: &["stop.asked", "stop.ended", "stop.cleaned"],
    then: AGAIN,
    is_done: |host| host.state("web") == "Off",
};

pub(super) const REPAIR: Scene = Scene {
    prepare: |host| {
        for uuid in ["4c2bd2f2-1b8e-4f0c-a9a7-6f5f1a8e0001", "4c2bd2f2-1b8e-4f0c-a9a7-6f5f1a8e0002"]
        {
            fs::create_dir(host.path("var/opt/hpvm/uuids").join(uuid)).expect("a leftover");
        }
    },
    command: &["hpvm", "doctor", "--repair"],
    steps: &["doctor.cleaned"],
    then: EITHER,
    is_done: |host| host.run(&["hpvm", "doctor"]).status.success(),
};

/// A guest's link and identity, and what a switch is rebuilt from.
pub(super) const REPAIR_TEXTS: Scene = Scene {
    prepare: |host| {
        host.ok(&["hpvmnet", "-c", "-S", "sw1"]);
        fs::write(host.path("var/opt/hpvm/guests/web/guest.json"), "{").expect("a damaged text");
        fs::remove_file(host.path("var/opt/hpvm/guests/web")).expect("a link");
        fs::remove_file(host.path("var/opt/hpvm/common/vswitch-2.json")).expect("a text");
    },
    then: AGAIN,
    ..REPAIR
};

/// A guest and a switch that a registry from a backup has not.
pub(super) const REPAIR_UNKNOWN: Scene = Scene {
    prepare: |host| {
        host.ok(&["hpvmnet", "-c", "-S", "sw1"]);
        let text = host.path("var/opt/hpvm/common/vswitch-2.json");
        let kept = fs::read(&text).expect("a text");
        host.ok(&["hpvmnet", "-S", "sw1", "-d", "-F"]);
        fs::write(&text, kept).expect("the text is back");
        forget(host, "web");
    },
    is_done: |host| is_listed(host, "web") && host.ok(&["hpvmnet"]).contains("sw1"),
    then: AGAIN,
    ..REPAIR
};

pub(super) const REPAIR_ADOPT: Scene = Scene {
    prepare: |host| {
        host.ok(&["hpvmstop", "-P", "other", "-F"]);
        host.ok(&["hpvmstart", "-P", "web"]);
        kill_supervisors(host);
    },
    is_done: |host| is_supervised(host, WEB),
    then: AGAIN,
    ..REPAIR
};

pub(super) const REPAIR_SETTLE: Scene = Scene { prepare: leave_interrupted, then: AGAIN, ..REPAIR };

pub(super) const REBUILD: Scene = Scene {
    prepare: |_| {},
    command: &["hpvm", "doctor", "--rebuild", "-F"],
    steps: &["doctor.written", "doctor.saved", "doctor.replaced"],
    then: EITHER,
    is_done: |host| is_listed(host, "web") && is_listed(host, "other"),
};

pub(super) const DEVMGMT: Scene = Scene {
    prepare: |_| {},
    command: &["hpvmdevmgmt", "-a", "rdev:/media"],
    steps: &["devmgmt.committed"],
    then: EITHER,
    is_done: |host| host.run(&["hpvmdevmgmt", "-l", "rdev:/media"]).status.success(),
};

pub(super) const DEVMGMT_MODIFY: Scene = Scene {
    prepare: |host| drop(host.ok(&["hpvmdevmgmt", "-a", "rdev:/media"])),
    command: &["hpvmdevmgmt", "-m", "rdev:/media:attr:PRESERVE=YES"],
    steps: &["devmgmt.committed"],
    then: AGAIN,
    is_done: |host| host.ok(&["hpvmdevmgmt", "-l", "rdev:/media"]).contains("PRESERVE=YES"),
};

pub(super) const DEVMGMT_DELETE: Scene = Scene {
    prepare: |host| drop(host.ok(&["hpvmdevmgmt", "-a", "rdev:/media"])),
    command: &["hpvmdevmgmt", "-d", "rdev:/media"],
    steps: &["devmgmt.committed"],
    then: AGAIN,
    is_done: |host| !is_known(host, EntryType::Restricted, "/media"),
};

/// An entry that came with a guest's device, and that no guest needs.
pub(super) const DEVMGMT_INITIALISE: Scene = Scene {
    prepare: |host| enter(host, EntryType::Guest, Origin::Guest),
    command: &["hpvmdevmgmt", "-I"],
    steps: &["devmgmt.committed"],
    then: AGAIN,
    is_done: |host| !is_known(host, EntryType::Guest, GONE),
};

pub(super) const RENAME_DEVICE: Scene = Scene {
    prepare: |host| drop(host.disk("moved.img", 1 << 20)),
    command: &["hpvmdevmgmt", "-n", "gdev:{root}/web.img:{root}/moved.img"],
    steps: &["devmgmt.committed"],
    then: EITHER,
    is_done: |host| {
        let path = guest(host, "web").map(|web| web.storage[0].backing.path.clone());
        path.is_some_and(|path| path.ends_with("/moved.img"))
    },
};

pub(super) const MAKE_DISK: Scene = Scene {
    prepare: |_| {},
    command: &["hpvmdevmgmt", "-S", "1.5M", "{root}/made.img"],
    steps: &["disk.sized"],
    then: EITHER,
    is_done: |host| fs::metadata(host.path("made.img")).is_ok_and(|made| made.len() == 3 << 19),
};

pub(super) const HOSTRDEV_DISABLE: Scene = Scene {
    prepare: |_| {},
    command: &["hpvmhostrdev", "-D"],
    steps: &["hostrdev.committed"],
    then: EITHER,
    is_done: |host| registry(host).hostrdev_at_start().expect("a setting") == Choice::No,
};

pub(super) const HOSTRDEV_ENABLE: Scene = Scene {
    prepare: |host| drop(host.ok(&["hpvmhostrdev", "-D"])),
    command: &["hpvmhostrdev", "-E"],
    steps: &["hostrdev.committed"],
    then: AGAIN,
    is_done: |host| registry(host).hostrdev_at_start().expect("a setting") == Choice::Yes,
};

/// Whatever this machine uses itself: it does not use what is not there.
pub(super) const HOSTRDEV_UPDATE: Scene = Scene {
    prepare: |host| enter(host, EntryType::Restricted, Origin::Host),
    command: &["hpvmhostrdev", "-u"],
    steps: &["hostrdev.committed"],
    then: AGAIN,
    is_done: |host| !is_known(host, EntryType::Restricted, GONE),
};

pub(super) const HOSTRDEV_DELETE: Scene =
    Scene { command: &["hpvmhostrdev", "-d"], ..HOSTRDEV_UPDATE };

/// A device that is not there any more.
const GONE: &str = "/dev/gone";

/// Has the device database know it.
fn enter(host: &VmHost, entry: EntryType, origin: Origin) {
    let id = EntryId::new(entry, GONE).expect("a name");
    let entry = Entry { origin, ..Entry::by_hand(id, GONE.into()) };
    let path = host.path("var/opt/hpvm/hpvm.db");
    let mut registry = Registry::open(&path, Access::ReadWrite).expect("the registry");
    let change = registry.change().expect("our turn");
    change.put_entry(&entry).expect("an entry");
    change.commit().expect("a commit");
}

fn is_known(host: &VmHost, entry: EntryType, name: &str) -> bool {
    let entries = registry(host).entries().expect("the entries");
    entries.iter().any(|known| known.id.entry == entry && known.id.name() == name)
}
