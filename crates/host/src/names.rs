//! The names of the files of guests and virtual switches, each said once for those who make, read and remove them. ARCHITECTURE.md, 'Paths', says what
//! each file is.

/// In the guest's folder, `uuids/UUID`.
pub mod guest_folder {
    /// What a lost registry is rebuilt from.
    pub const IDENTITY: &str = "guest.json";
    pub const NVRAM: &str = "nvram";
    /// The copy that was good at the last start.
    pub const NVRAM_PREVIOUS: &str = "nvram.prev";
    /// What a repair put aside.
    pub const NVRAM_DAMAGED: &str = "nvram.damaged";
    pub const BOOT_RECORD: &str = "boot.record";
    pub const LOG: &str = "log";
    pub const CONSOLE_LOG: &str = "console.log";
    /// QEMU's standard error.
    pub const QEMU_LOG: &str = "qemu.log";
    pub const BUSY: &str = "busy";
    pub const CONFIG_CURRENT: &str = "vmm_config.current";
    pub const CONFIG_NEXT: &str = "vmm_config.next";

    /// What is made beside its place, and put there whole.
    pub const REPLACED: [&str; 6] =
        [IDENTITY, NVRAM, NVRAM_PREVIOUS, BOOT_RECORD, CONFIG_CURRENT, CONFIG_NEXT];

    /// The image of a linked clone's disk.
    #[must_use]
    pub fn image(address: hpvm_model::StorageAddress) -> String {
        let (slot, target) = (address.slot, address.target);
        format!("disk-{}-{}-{target}.qcow2", slot.bus(), slot.device())
    }
}

/// In the run folder of a running guest, `run/NUMBER`.
pub mod run_folder {
    pub const LOCK: &str = "lock";
    pub const STATUS: &str = "status";
    /// QEMU's first monitor, the worker's.
    pub const MONITOR: &str = "qmp";
    /// QEMU's second monitor, for a forced stop.
    pub const RESCUE: &str = "rescue";
    pub const SERIAL: &str = "serial";
    /// The channel of the guest agent.
    pub const AGENT: &str = "agent";
    pub const CONTROL: &str = "control";
    pub const DOOR: &str = "door";
    /// Where QEMU has reservations made, of a guest with shared disks.
    pub const RESERVATIONS: &str = "reservations";
    /// The folder of the sockets to which QEMU connects its NICs, one for each.
    pub const NETWORK: &str = "net";

    /// What leads nowhere once the run has ended.
    pub const SOCKETS: [&str; 7] = [MONITOR, RESCUE, SERIAL, AGENT, CONTROL, DOOR, RESERVATIONS];
}

/// The folder of all switches' run folders, in `run`.
pub const SWITCHES: &str = "net";

/// In the run folder of a running virtual switch, `run/net/NUMBER`.
pub mod switch_folder {
    pub const LOCK: &str = "lock";
    /// What the switch is to be: what it is started again from.
    pub const PORTS: &str = "ports";
    pub const STATUS: &str = "status";
    /// One word: whether the wire is there. Guests' workers watch it.
    pub const WIRE: &str = "wire";
    pub const CONTROL: &str = "control";
    /// The socket of the process that does NAT, to which the switch connects, and the one at which commands ask it.
    pub const NAT: &str = "nat";
    pub const NAT_CONTROL: &str = "nat-control";
    /// Lock of the command that starts the switch or changes its ports; content names it.
    pub const BUSY: &str = "busy";
}
