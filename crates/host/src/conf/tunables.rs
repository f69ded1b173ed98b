//! The tunables there are, each once: what it is called, what it says, what a value should be and what counts without one.
//! What reads hpvmconf goes by this table, and so do its manual page and docs/files.md.

/// A tunable as people are told of it.
#[derive(Clone, Copy, Debug)]
pub struct Tunable {
    pub name: &'static str,
    pub says: &'static str,
    /// What counts while it is not set.
    pub otherwise: &'static str,
    /// What a value should be. A path is looked at by those who use it.
    pub(super) wanted: &'static str,
}

const PATH: &str = "a path";

pub(super) const ENABLE: Tunable = Tunable {
    name: "HPVMENABLE",
    says: "0: no guest starts with the host",
    otherwise: "1",
    wanted: "0 or 1",
};
pub(super) const STOP: Tunable = Tunable {
    name: "HPVMSTOP",
    says: "seconds that a guest may take to shut down when `hpvmstop -g` asks it to, from 1 to 3600",
    otherwise: "300; 120 while no operating system listens",
    wanted: "a number of seconds from 1 to 3600",
};
pub(super) const AUTOSTOP: Tunable = Tunable {
    name: "HPVMAUTOSTOP",
    says: "seconds that guests may take when the host shuts down, up to 3600; 0: they are not asked",
    otherwise: "120",
    wanted: "a number of seconds, 3600 at most",
};
pub(super) const KEEP_REMOVED: Tunable = Tunable {
    name: "HPVMKEEPREMOVED",
    says: "days for which a removed guest is kept, up to 36500",
    otherwise: "7",
    wanted: "a number of days, 36500 at most",
};
pub(super) const LIMITS: Tunable = Tunable {
    name: "HPVMLIMITS",
    says: "`A.03.50`: the maxima of that version",
    otherwise: "those of this host and its QEMU",
    wanted: "A.03.50, or not set",
};
pub(super) const AVIO_SERVICE: Tunable = Tunable {
    name: "HPVMAVIOSERVICE",
    says: "who serves what a guest asks of its AVIO storage, from its next start on: `processor`, the guest's own that asks, is the quicker one for a request at a time and for many handed over at once; `thread`, one of QEMU's, for many handed over one by one, as programs with many threads do",
    otherwise: "`processor` where QEMU emulates, `thread` with KVM",
    wanted: "processor or thread",
};
pub(super) const MAC_FRAMES: Tunable = Tunable {
    name: "HPVMMACADDRFRAMES",
    says: "frames by which a new MAC address is asked for, up to 30; 0: it is not. `HPVMACADDRFRAMES` is the same",
    otherwise: "3",
    wanted: "a number of frames from 0 (no check) to 30",
};
/// Documents of the product spell the name in two ways.
pub(super) const MAC_FRAMES_TOO: &str = "HPVMACADDRFRAMES";
pub(super) const NAT_REACHABLE: Tunable = Tunable {
    name: "HPVMNATREACHABLE",
    says: "names of switches with NAT whose guests reach this host's loopback",
    otherwise: "none",
    wanted: "names of virtual switches, with blanks between",
};
pub(super) const UID_BASE: Tunable = Tunable {
    name: "HPVMUIDBASE",
    says: "the first user id of guests and their workers, from 1000 to 4000000000",
    otherwise: "1000000; of another root than `/` what its run folder's link `uids` says",
    wanted: "a user id from 1000 to 4000000000",
};
pub(super) const QEMU: Tunable = Tunable {
    name: "HPVMQEMU",
    says: "the QEMU, by its path or its name in PATH",
    otherwise: "`qemu-system-x86_64`",
    wanted: PATH,
};
pub(super) const FIRMWARE: Tunable = Tunable {
    name: "HPVMFIRMWARE",
    says: "the firmware",
    otherwise: "`/usr/share/OVMF/OVMF_CODE_4M.fd`",
    wanted: PATH,
};
pub(super) const NVRAM: Tunable = Tunable {
    name: "HPVMNVRAM",
    says: "firmware variables as a new guest gets them",
    otherwise: "`common/nvram` of the guest images, or of those installed with the program, else `/usr/share/OVMF/OVMF_VARS_4M.fd`",
    wanted: PATH,
};
pub(super) const SCSI_ROM: Tunable = Tunable {
    name: "HPVMSCSIROM",
    says: "the option ROM that boots from `scsi`",
    otherwise: "`common/mptsas1068.rom` of the guest images, else of those installed with the program",
    wanted: PATH,
};
pub(super) const LAN_ROM: Tunable = Tunable {
    name: "HPVMLANROM",
    says: "the option ROM that boots over `lan`",
    otherwise: "`/usr/lib/ipxe/qemu/efi-e1000.rom`",
    wanted: PATH,
};
pub(super) const RESERVATION_HELPER: Tunable = Tunable {
    name: "HPVMRESERVATIONHELPER",
    says: "the program that makes reservations on shared disks",
    otherwise: "`/usr/bin/qemu-pr-helper`",
    wanted: PATH,
};

/// In the order in which they are told of.
pub const TUNABLES: [Tunable; 15] = [
    ENABLE,
    STOP,
    AUTOSTOP,
    KEEP_REMOVED,
    LIMITS,
    AVIO_SERVICE,
    MAC_FRAMES,
    NAT_REACHABLE,
    UID_BASE,
    QEMU,
    FIRMWARE,
    NVRAM,
    SCSI_ROM,
    LAN_ROM,
    RESERVATION_HELPER,
];

/// Whether anything here goes by this name.
pub(super) fn is_one(name: &str) -> bool {
    name == MAC_FRAMES_TOO || TUNABLES.iter().any(|tunable| tunable.name == name)
}
