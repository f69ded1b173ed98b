//! The changing commands, each with what has to be there before it, the steps it passes, and how to see that it did what it
//! promises. A new command gets a scene here, a line in [`SCENES`], and a test in the module above.

use std::fs;

use hpvm_model::Choice;
use hpvm_testkit::vm_host::VmHost;

use super::{WEB, guest, is_listed, names, registry, removed_names};

/// A command and the steps it passes.
pub(super) struct Scene {
    /// On a host with the guest `web`, number 2, off, with one disk.
    pub(super) prepare: fn(&VmHost),
    /// `{root}` stands for the VM Host's.
    pub(super) command: &'static [&'static str],
    pub(super) steps: &'static [&'static str],
    /// Whether the state after the command is what the command promises.
    pub(super) is_done: fn(&VmHost) -> bool,
}

pub(super) const SCENES: &[&Scene] = &[
    &CREATE,
    &MODIFY,
    &ATTACH,
    &CLONE,
    &CLONE_OVER,
    &CLONE_RUNNING,
    &LINKED,
    &RENAME,
    &REMOVE,
    &PURGE,
    &PURGE_KEPT,
    &UNDELETE,
    &START,
    &STOP,
    &NVRAM,
    &REPAIR,
    &REBUILD,
    &DEVMGMT,
    &RENAME_DEVICE,
    &MAKE_DISK,
    &HOSTRDEV,
    &SWITCH,
    &HALT,
];

pub(super) const SWITCH: Scene = Scene {
    prepare: |_| {},
    command: &["hpvmnet", "-c", "-S", "sw1"],
    steps: &["vswitch.committed"],
    is_done: |host| host.ok(&["hpvmnet"]).contains("sw1           2 Down"),
};

pub(super) const HALT: Scene = Scene {
    prepare: |_| {},
    command: &["hpvmnet", "-S", "localnet", "-h", "-F"],
    steps: &["vswitch.committed"],
    is_done: |host| host.ok(&["hpvmnet"]).contains("localnet      1 Down"),
};

pub(super) const CREATE: Scene = Scene {
    prepare: |_| {},
    command: &["hpvmcreate", "-P", "new", "-O", "linux", "-c", "1", "-r", "512M", "-l", "fresh"],
    steps: &["create.folder", "create.nvram", "create.link", "create.committed"],
    is_done: |host| host.path("var/opt/hpvm/guests/new/nvram").exists() && is_listed(host, "new"),
};

pub(super) const MODIFY: Scene = Scene {
    prepare: |_| {},
    command: &["hpvmmodify", "-P", "web", "-r", "1G", "-l", "changed"],
    steps: &["modify.applied", "modify.committed"],
    is_done: |host| guest(host, "web").is_some_and(|web| web.label.as_str() == "changed"),
};

pub(super) const ATTACH: Scene = Scene {
    prepare: |host| drop(host.ok(&["hpvmstart", "-P", "web"])),
    command: &["hpvmmodify", "-P", "web", "-a", "dvd:avio_stor:0,2,0:null:/srv"],
    steps: &["modify.applied", "modify.committed"],
    is_done: |host| guest(host, "web").is_some_and(|web| web.storage.len() == 2),
};

/// Where the copies of the scenes lie, below the root.
pub(super) const COPY: &str = "copy.img";

const COPYING: &[&str] =
    &["hpvmclone", "-P", "web", "-N", "new", "-b", "disk:avio_stor:0,1,0:file:{root}/copy.img"];

/// A copy into a file that is not there.
pub(super) const CLONE: Scene = Scene {
    prepare: |_| {},
    command: COPYING,
    steps: &[
        "clone.recorded",
        "clone.copied",
        "clone.folder",
        "clone.nvram",
        "clone.placed",
        "clone.committed",
        "clone.settled",
    ],
    is_done: |host| is_listed(host, "new") && is_copied(host),
};

/// A copy into a file that is there and empty.
pub(super) const CLONE_OVER: Scene = Scene { prepare: |host| drop(host.disk(COPY, 0)), ..CLONE };

/// A copy of what the guest writes meanwhile.
pub(super) const CLONE_RUNNING: Scene = Scene {
    prepare: |host| drop(host.ok(&["hpvmstart", "-P", "web"])),
    steps: &[
        "clone.recorded",
        "clone.copying",
        "clone.copied",
        "clone.folder",
        "clone.nvram",
        "clone.placed",
        "clone.committed",
        "clone.settled",
    ],
    ..CLONE
};

pub(super) const LINKED: Scene = Scene {
    prepare: |_| {},
    command: &["hpvmclone", "-P", "web", "-N", "new", "--linked"],
    steps: &[
        "clone.copied",
        "clone.folder",
        "clone.nvram",
        "clone.placed",
        "clone.committed",
        "clone.settled",
    ],
    is_done: |host| {
        is_listed(host, "new") && host.path("var/opt/hpvm/guests/new/disk-0-1-0.qcow2").is_file()
    },
};

/// The copy is whole, and has no other name any more.
fn is_copied(host: &VmHost) -> bool {
    let whole = fs::read(host.path("web.img")).ok() == fs::read(host.path(COPY)).ok();
    whole && !names(host, "").iter().any(|name| name.ends_with(".new"))
}

pub(super) const RENAME: Scene = Scene {
    prepare: |_| {},
    command: &["hpvmmodify", "-P", "web", "-N", "site"],
    steps: &["modify.applied", "rename.linked", "modify.committed", "rename.unlinked"],
    is_done: |host| {
        is_listed(host, "site")
            && !is_listed(host, "web")
            && host.path("var/opt/hpvm/guests/site/nvram").exists()
    },
};

pub(super) const REMOVE: Scene = Scene {
    prepare: |_| {},
    command: &["hpvmremove", "-P", "web", "-F"],
    steps: &["remove.committed", "remove.unlinked"],
    is_done: |host| !is_listed(host, "web") && removed_names(host) == ["web"],
};

pub(super) const PURGE: Scene = Scene {
    prepare: |_| {},
    command: &["hpvmremove", "-P", "web", "-F", "--purge"],
    steps: &["remove.committed", "remove.unlinked", "purge.removed"],
    is_done: |host| !is_listed(host, "web") && removed_names(host).is_empty(),
};

pub(super) const PURGE_KEPT: Scene = Scene {
    prepare: |host| drop(host.ok(&["hpvmremove", "-P", "web", "-F"])),
    command: &["hpvmremove", "-P", "web", "-F", "--purge"],
    steps: &["purge.committed", "purge.removed"],
    is_done: |host| removed_names(host).is_empty(),
};

pub(super) const UNDELETE: Scene = Scene {
    prepare: |host| drop(host.ok(&["hpvmremove", "-P", "web", "-F"])),
    command: &["hpvm", "undelete", "-P", "web"],
    steps: &["undelete.linked", "undelete.committed"],
    is_done: |host| is_listed(host, "web") && removed_names(host).is_empty(),
};

pub(super) const START: Scene = Scene {
    prepare: |_| {},
    command: &["hpvmstart", "-P", "web"],
    steps: &["start.claimed", "start.record", "start.keeper", "start.running"],
    is_done: |host| host.state("web").starts_with("On (") && host.state("web") != "On (ATTN)",
};

pub(super) const STOP: Scene = Scene {
    prepare: |host| drop(host.ok(&["hpvmstart", "-P", "web"])),
    command: &["hpvmstop", "-P", "web", "-h", "-F"],
    steps: &["stop.asked", "stop.ended", "stop.cleaned"],
    is_done: |host| host.state("web") == "Off" && !host.run_dir(WEB).join("qmp").exists(),
};

pub(super) const NVRAM: Scene = Scene {
    prepare: |host| {
        host.ok(&["hpvmstart", "-P", "web"]);
        host.ok(&["hpvmstop", "-P", "web", "-F"]);
        fs::write(host.path("var/opt/hpvm/guests/web/nvram"), "damaged").expect("the variables");
    },
    command: &["hpvm", "nvram", "-P", "web", "--restore"],
    steps: &["nvram.replaced"],
    is_done: |host| host.run(&["hpvm", "nvram", "-P", "web"]).status.success(),
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
    is_done: |host| host.run(&["hpvm", "doctor"]).status.success(),
};

pub(super) const REBUILD: Scene = Scene {
    prepare: |_| {},
    command: &["hpvm", "doctor", "--rebuild", "-F"],
    steps: &["doctor.written", "doctor.saved", "doctor.replaced"],
    is_done: |host| is_listed(host, "web") && is_listed(host, "other"),
};

pub(super) const DEVMGMT: Scene = Scene {
    prepare: |_| {},
    command: &["hpvmdevmgmt", "-a", "rdev:/media"],
    steps: &["devmgmt.committed"],
    is_done: |host| !host.ok(&["hpvmdevmgmt", "-l", "rdev:/media"]).is_empty(),
};

pub(super) const RENAME_DEVICE: Scene = Scene {
    prepare: |host| drop(host.disk("moved.img", 1 << 20)),
    command: &["hpvmdevmgmt", "-n", "gdev:{root}/web.img:{root}/moved.img"],
    steps: &["devmgmt.committed"],
    is_done: |host| {
        let path = guest(host, "web").map(|web| web.storage[0].backing.path.clone());
        path.is_some_and(|path| path.ends_with("/moved.img"))
    },
};

pub(super) const MAKE_DISK: Scene = Scene {
    prepare: |_| {},
    command: &["hpvmdevmgmt", "-S", "1.5M", "{root}/made.img"],
    steps: &["disk.sized"],
    is_done: |host| fs::metadata(host.path("made.img")).is_ok_and(|made| made.len() == 3 << 19),
};

pub(super) const HOSTRDEV: Scene = Scene {
    prepare: |_| {},
    command: &["hpvmhostrdev", "-D"],
    steps: &["hostrdev.committed"],
    is_done: |host| registry(host).hostrdev_at_start().expect("a setting") == Choice::No,
};
