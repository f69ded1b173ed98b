//! The commands that change guests, each with what has to be there before it, the steps it passes, and how to see that it did
//! what it promises. A new command gets a scene here and a line in the list of the module above.

use crate::statements::disk_at;
use std::fs;

use hpvm_testkit::vm_host::VmHost;

use super::{Then, WEB, guest, is_listed, names, removed_names};

/// A command and the steps it passes.
pub(super) struct Scene {
    /// On a host with the guest `web`, number 2, off, with one disk.
    pub(super) prepare: fn(&VmHost),
    /// `{root}` stands for the VM Host's.
    pub(super) command: &'static [&'static str],
    pub(super) steps: &'static [&'static str],
    /// What comes first after it was killed.
    pub(super) then: &'static [Then],
    /// Whether the state after the command is what the command promises.
    pub(super) is_done: fn(&VmHost) -> bool,
}

pub(super) const EITHER: &[Then] = &[Then::Again, Then::Repair];
/// Enough where another scene passes the same steps and is repaired.
pub(super) const AGAIN: &[Then] = &[Then::Again];

impl Scene {
    pub(super) fn command_on(&self, host: &VmHost) -> Vec<String> {
        let root = host.root().display().to_string();
        self.command.iter().map(|word| word.replace("{root}", &root)).collect()
    }
}

pub(super) const CREATE: Scene = Scene {
    prepare: |_| {},
    command: &["hpvmcreate", "-P", "new", "-O", "linux", "-c", "1", "-r", "512M", "-l", "fresh"],
    steps: &["create.folder", "create.nvram", "create.link", "create.committed"],
    then: EITHER,
    is_done: |host| host.path("var/opt/hpvm/guests/new/nvram").exists() && is_listed(host, "new"),
};

pub(super) const MODIFY: Scene = Scene {
    prepare: |_| {},
    command: &["hpvmmodify", "-P", "web", "-r", "1G", "-l", "changed"],
    steps: &["modify.applied", "modify.committed"],
    then: EITHER,
    is_done: |host| guest(host, "web").is_some_and(|web| web.label.as_str() == "changed"),
};

pub(super) const ATTACH: Scene = Scene {
    prepare: |host| drop(host.ok(&["hpvmstart", "-P", "web"])),
    command: &["hpvmmodify", "-P", "web", "-a", DRIVE],
    steps: &["modify.applied", "modify.committed"],
    then: EITHER,
    is_done: |host| guest(host, "web").is_some_and(|web| web.storage.len() == 2),
};

const DRIVE: &str = "dvd:avio_stor:0,2,0:null:/srv";

/// Another medium for a drive.
pub(super) const EXCHANGE: Scene = Scene {
    prepare: |host| {
        drop(host.disk("disc.iso", 1 << 20));
        start_with_drive(host);
    },
    command: &["hpvmmodify", "-P", "web", "-m", "dvd:avio_stor:0,2,0:file:{root}/disc.iso"],
    steps: &["modify.applied", "modify.committed"],
    then: AGAIN,
    is_done: |host| {
        let drive = guest(host, "web").map(|web| web.storage[1].backing.path.clone());
        drive.is_some_and(|path| path.ends_with("/disc.iso"))
    },
};

/// A running guest sees no new disk on an emulated adapter, so one is exchanged at its next reset.
pub(super) const EXCHANGE_AT_RESET: Scene = Scene {
    prepare: |host| {
        let [used, beside, _later] =
            ["used.img", "beside.img", "later.img"].map(|name| host.disk(name, 1 << 20));
        let used = format!("disk:scsi:0,5,0:file:{}", used.display());
        let beside = format!("disk:scsi:0,5,1:file:{}", beside.display());
        host.ok(&["hpvmmodify", "-P", "web", "-a", &used, "-a", &beside]);
        host.ok(&["hpvmstart", "-P", "web"]);
    },
    command: &["hpvmmodify", "-P", "web", "-m", "disk:scsi:0,5,0:file:{root}/later.img"],
    steps: &["modify.applied", "modify.committed", "modify.noted"],
    then: EITHER,
    is_done: |host| has_disk(host, "later.img") && waits_for_reset(host),
};

/// The disk is to stay after all.
pub(super) const TAKE_BACK: Scene = Scene {
    prepare: |host| {
        (EXCHANGE_AT_RESET.prepare)(host);
        let later = EXCHANGE_AT_RESET.command_on(host);
        host.ok(&later.iter().map(String::as_str).collect::<Vec<_>>());
    },
    command: &["hpvmmodify", "-P", "web", "-m", "disk:scsi:0,5,0:file:{root}/used.img"],
    steps: &["modify.applied", "modify.committed"],
    then: EITHER,
    is_done: |host| has_disk(host, "used.img") && !waits_for_reset(host),
};

fn has_disk(host: &VmHost, file: &str) -> bool {
    let web = guest(host, "web");
    web.is_some_and(|web| web.storage.iter().any(|disk| disk.backing.path.ends_with(file)))
}

fn waits_for_reset(host: &VmHost) -> bool {
    host.ok(&["hpvmstatus", "-P", "web", "--json"]).contains("\"next_reset\"")
}

pub(super) const DETACH: Scene = Scene {
    prepare: start_with_drive,
    command: &["hpvmmodify", "-P", "web", "-d", DRIVE],
    steps: &["modify.applied", "modify.committed"],
    then: AGAIN,
    is_done: |host| guest(host, "web").is_some_and(|web| web.storage.len() == 1),
};

fn start_with_drive(host: &VmHost) {
    host.ok(&["hpvmmodify", "-P", "web", "-a", DRIVE]);
    host.ok(&["hpvmstart", "-P", "web"]);
}

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
    then: EITHER,
    is_done: |host| is_listed(host, "new") && is_copied(host),
};

/// Two copies, one into a file that is there and empty.
pub(super) const CLONE_OF_TWO: Scene = Scene {
    prepare: |host| {
        drop(host.disk(COPY, 0));
        fs::write(host.disk("second.img", 1 << 20), vec![7; 1 << 20]).expect("content");
        let disk = disk_at("0,2,0", &host.path("second.img"));
        host.ok(&["hpvmmodify", "-P", "web", "-a", &disk]);
    },
    command: &[
        "hpvmclone",
        "-P",
        "web",
        "-N",
        "new",
        "-b",
        "disk:avio_stor:0,1,0:file:{root}/copy.img",
        "-b",
        "disk:avio_stor:0,2,0:file:{root}/second-copy.img",
    ],
    is_done: |host| {
        let second = ["second.img", "second-copy.img"].map(|name| fs::read(host.path(name)).ok());
        (CLONE.is_done)(host) && second[0] == second[1]
    },
    ..CLONE
};

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
    then: EITHER,
    is_done: |host| {
        is_listed(host, "new") && host.path("var/opt/hpvm/guests/new/disk-0-1-0.qcow2").is_file()
    },
};

/// With an image that lies elsewhere.
pub(super) const LINKED_ELSEWHERE: Scene = Scene {
    command: &[
        "hpvmclone",
        "-P",
        "web",
        "-N",
        "new",
        "--linked",
        "-b",
        "disk:avio_stor:0,1,0:qcow2:{root}/copy.img",
    ],
    is_done: |host| is_listed(host, "new") && host.path(COPY).is_file() && has_one_name_each(host),
    ..CLONE
};

/// The copy is whole, and has no other name any more.
fn is_copied(host: &VmHost) -> bool {
    let whole = fs::read(host.path("web.img")).ok() == fs::read(host.path(COPY)).ok();
    whole && has_one_name_each(host)
}

fn has_one_name_each(host: &VmHost) -> bool {
    !names(host, "").iter().any(|name| name.ends_with(".new"))
}

pub(super) const RENAME: Scene = Scene {
    prepare: |_| {},
    command: &["hpvmmodify", "-P", "web", "-N", "site"],
    steps: &["modify.applied", "rename.linked", "modify.committed", "rename.unlinked"],
    then: EITHER,
    is_done: |host| {
        is_listed(host, "site")
            && !is_listed(host, "web")
            && host.path("var/opt/hpvm/guests/site/nvram").exists()
    },
};

pub(super) const RENAME_RUNNING: Scene =
    Scene { prepare: |host| drop(host.ok(&["hpvmstart", "-P", "web"])), then: AGAIN, ..RENAME };

pub(super) const REMOVE: Scene = Scene {
    prepare: |_| {},
    command: &["hpvmremove", "-P", "web", "-F"],
    steps: &["remove.committed", "remove.unlinked"],
    then: EITHER,
    is_done: |host| !is_listed(host, "web") && removed_names(host) == ["web"],
};

pub(super) const PURGE: Scene = Scene {
    prepare: |_| {},
    command: &["hpvmremove", "-P", "web", "-F", "--purge"],
    steps: &["remove.committed", "remove.unlinked", "purge.removed"],
    then: EITHER,
    is_done: |host| !is_listed(host, "web") && removed_names(host).is_empty(),
};

pub(super) const PURGE_KEPT: Scene = Scene {
    prepare: |host| drop(host.ok(&["hpvmremove", "-P", "web", "-F"])),
    command: &["hpvmremove", "-P", "web", "-F", "--purge"],
    steps: &["purge.committed", "purge.removed"],
    then: EITHER,
    is_done: |host| removed_names(host).is_empty(),
};

pub(super) const UNDELETE: Scene = Scene {
    prepare: |host| drop(host.ok(&["hpvmremove", "-P", "web", "-F"])),
    command: &["hpvm", "undelete", "-P", "web"],
    steps: &["undelete.linked", "undelete.committed"],
    then: EITHER,
    is_done: |host| is_listed(host, "web") && removed_names(host).is_empty(),
};

pub(super) const UNDELETE_RENAMED: Scene = Scene {
    command: &["hpvm", "undelete", "-P", "web", "-N", "site"],
    is_done: |host| is_listed(host, "site") && removed_names(host).is_empty(),
    then: AGAIN,
    ..UNDELETE
};

pub(super) const START: Scene = Scene {
    prepare: |_| {},
    command: &["hpvmstart", "-P", "web"],
    steps: &["start.claimed", "start.record", "start.keeper", "start.running"],
    then: EITHER,
    is_done: |host| host.state("web").starts_with("On (") && host.state("web") != "On (ATTN)",
};

pub(super) const STOP: Scene = Scene {
    prepare: |host| drop(host.ok(&["hpvmstart", "-P", "web"])),
    command: &["hpvmstop", "-P", "web", "-h", "-F"],
    steps: &["stop.asked", "stop.ended", "stop.cleaned"],
    then: EITHER,
    is_done: |host| host.state("web") == "Off" && !host.run_dir(WEB).join("qmp").exists(),
};

pub(super) const STOP_GRACEFULLY: Scene =
    Scene { command: &["hpvmstop", "-P", "web", "-g", "-F"], then: AGAIN, ..STOP };

pub(super) const NVRAM: Scene = Scene {
    prepare: |host| {
        host.ok(&["hpvmstart", "-P", "web"]);
        host.ok(&["hpvmstop", "-P", "web", "-F"]);
        fs::write(host.path("var/opt/hpvm/guests/web/nvram"), "damaged").expect("the variables");
    },
    command: &["hpvm", "nvram", "-P", "web", "--restore"],
    steps: &["nvram.replaced"],
    then: EITHER,
    is_done: |host| host.run(&["hpvm", "nvram", "-P", "web"]).status.success(),
};

pub(super) const NVRAM_RESET: Scene = Scene {
    prepare: |host| {
        fs::write(host.path("var/opt/hpvm/guests/web/nvram"), "damaged").expect("the variables");
    },
    command: &["hpvm", "nvram", "-P", "web", "--reset"],
    then: AGAIN,
    ..NVRAM
};
