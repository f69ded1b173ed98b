//! The commands we send, each a type that says its name, its arguments and its answer.
//!
//! Properties of devices and block nodes are lists made elsewhere (the plan prints the same list on QEMU's command line),
//! so [`DeviceAdd`] and [`BlockdevAdd`] carry [`Properties`].

use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};
use serde_json::Value;

use crate::answer::{
    AddedFd, BlockDevice, BlockNode, BlockStats, Chardev, Done, FdSet, Job, PciBus, PrManager,
    QomProperty, QomValue, Status, Version, VirtQueue,
};
use crate::deadline;
use crate::occupant::Registers;
use crate::power_button::PowerButton;

/// A request to QEMU. It serializes to its arguments.
pub trait Command: Serialize {
    const NAME: &'static str;
    /// How long we wait for the answer.
    const DEADLINE: Duration = deadline::DEFAULT;
    type Answer: DeserializeOwned;
}

/// One line a command: type, QEMU's name, type of the answer, and within how many seconds it comes where that is not
/// [`deadline::DEFAULT`].
macro_rules! commands {
    ($($command:ty: $name:literal => $answer:ty $(, within $seconds:literal s)?;)*) => {
        $(impl Command for $command {
            const NAME: &'static str = $name;
            $(const DEADLINE: Duration = Duration::from_secs($seconds);)?
            type Answer = $answer;
        })*

        /// Every command we send, for the check against QEMU's schema. A name may be there twice.
        pub const NAMES: &[&str] = &[$($name),*];
    };
}

commands! {
    Capabilities: "qmp_capabilities" => Done;
    // The beat: after this the guest is shown as unresponsive, so it must not take longer than a reader's patience.
    QueryStatus: "query-status" => Status, within 3 s;
    QueryVersion: "query-version" => Version;
    // What does not obey is ended by force.
    Quit: "quit" => Done, within 2 s;
    // Stops every processor and waits for all I/O under way.
    Stop: "stop" => Done, within 30 s;
    Cont: "cont" => Done;
    SystemReset: "system_reset" => Done;
    SystemPowerdown: "system_powerdown" => Done;
    AddFd: "add-fd" => AddedFd;
    RemoveFd: "remove-fd" => Done;
    QueryFdsets: "query-fdsets" => Vec<FdSet>;
    // Opens the image, takes its locks and may read a chain of layers from slow storage.
    BlockdevAdd: "blockdev-add" => Done, within 30 s;
    // Drains and flushes what the guest wrote, as do all that end or resize a node or take a medium away.
    BlockdevDel: "blockdev-del" => Done, within 30 s;
    BlockResize: "block_resize" => Done, within 30 s;
    // Drains what the guest has under way to put a filter between it and its disk.
    BlockdevMirror: "blockdev-mirror" => Done, within 30 s;
    BlockJobCancel: "block-job-cancel" => Done, within 30 s;
    // Ends mirrors: drains each disk.
    JobFinalize: "job-finalize" => Done, within 30 s;
    JobDismiss: "job-dismiss" => Done;
    QueryJobs: "query-jobs" => Vec<Job>;
    // Realizes a device in the main loop: option ROM, memory regions of every processor under emulation.
    DeviceAdd: "device_add" => Done, within 10 s;
    DeviceDel: "device_del" => Done, within 10 s;
    ObjectAdd: "object-add" => Done;
    QueryPrManagers: "query-pr-managers" => Vec<PrManager>;
    OpenTray: "blockdev-open-tray" => Done;
    CloseTray: "blockdev-close-tray" => Done;
    RemoveMedium: "blockdev-remove-medium" => Done, within 30 s;
    InsertMedium: "blockdev-insert-medium" => Done;
    ChangeMedium: "blockdev-change-medium" => Done, within 30 s;
    Eject: "eject" => Done, within 30 s;
    QueryBlock: "query-block" => Vec<BlockDevice>;
    QueryNodes: "query-named-block-nodes" => Vec<BlockNode>;
    QueryBlockstats: "query-blockstats" => Vec<BlockStats>;
    // Asked at each beat: an answer that comes later tells nothing any more.
    QueryVirtQueue: "x-query-virtio-queue-status" => VirtQueue, within 3 s;
    QueryPci: "query-pci" => Vec<PciBus>;
    QueryChardev: "query-chardev" => Vec<Chardev>;
    QomList: "qom-list" => Vec<QomProperty>;
    QomGet: "qom-get" => QomValue;
    Human: "human-monitor-command" => String;
    ReadRegisters: "human-monitor-command" => Registers;
    ReadPowerButton: "human-monitor-command" => PowerButton;
    ChardevAdd: "chardev-add" => Value;
    ChardevRemove: "chardev-remove" => Done;
    // Waits in the main loop until the switch has answered for a new port.
    NetdevAdd: "netdev_add" => Done, within 10 s;
    NetdevDel: "netdev_del" => Done;
    SetLink: "set_link" => Done;
    // 1,200 entries, 236 KB.
    QuerySchema: "query-qmp-schema" => Value, within 10 s;
}

/// Ends the greeting; sent by the transports.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Capabilities {}

#[derive(Clone, Copy, Debug, Serialize)]
pub struct QueryStatus {}

#[derive(Clone, Copy, Debug, Serialize)]
pub struct QueryVersion {}

/// Ends QEMU, whatever `-action` says; within 16 ms as a rule.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Quit {}

/// Holds all processors.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Stop {}

/// Lets processors run. Refused after the guest powered off, until a reset.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Cont {}

#[derive(Clone, Copy, Debug, Serialize)]
pub struct SystemReset {}

/// Presses the power button. QEMU always says yes; see [`crate::power_button`] for what becomes of it.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct SystemPowerdown {}

/// Puts the descriptor that rides along into a set. Sets survive a disconnect: ask before adding again.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct AddFd {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fdset_id: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub opaque: Option<String>,
}

/// Takes a set's descriptors away. A block node that was opened from it keeps its own copy.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct RemoveFd {
    pub fdset_id: i64,
}

#[derive(Clone, Copy, Debug, Serialize)]
pub struct QueryFdsets {}

/// Properties `driver`, `node-name` and those of the driver.
#[derive(Clone, Debug, Serialize)]
#[serde(transparent)]
pub struct BlockdevAdd(pub Properties);

/// Refused while a device has the node; after `device_del` that is until DEVICE_DELETED.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct BlockdevDel {
    pub node_name: String,
}

/// A size below the file's cuts the file off without a question: never ask for less than it has.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct BlockResize {
    pub node_name: String,
    pub size: u64,
}

/// Copies a node to another and, once all is copied, keeps both alike until the job is ended.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct BlockdevMirror {
    pub job_id: String,
    /// The node that is read.
    pub device: String,
    /// The node that is written; it stays when the job ends.
    pub target: String,
    pub sync: MirrorSync,
    pub copy_mode: CopyMode,
    /// Whether a job that has done its work ends without leave.
    pub auto_finalize: bool,
    /// Whether a job that has ended is forgotten before anybody asked how.
    pub auto_dismiss: bool,
}

/// What a mirror copies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum MirrorSync {
    /// What the guest sees.
    Full,
    /// What the image itself has; not what lies under it.
    Top,
}

/// When a mirror copies what the guest writes meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum CopyMode {
    /// Before the guest is told that it is written: the copy is never behind, however much the guest writes.
    WriteBlocking,
}

/// Ends a block job. A mirror that has copied all leaves a whole copy, unless it is forced: then it stops as it is.
#[derive(Clone, Debug, Serialize)]
pub struct BlockJobCancel {
    /// The job's name, whatever QEMU calls the argument.
    pub device: String,
    pub force: bool,
}

/// Lets a job end that has done its work and waits for leave.
#[derive(Clone, Debug, Serialize)]
pub struct JobFinalize {
    pub id: String,
}

/// Forgets a job that has ended.
#[derive(Clone, Debug, Serialize)]
pub struct JobDismiss {
    pub id: String,
}

#[derive(Clone, Copy, Debug, Serialize)]
pub struct QueryJobs {}

/// Properties `driver`, `id`, `bus` and those of the driver.
#[derive(Clone, Debug, Serialize)]
#[serde(transparent)]
pub struct DeviceAdd(pub Properties);

/// Makes an object that is no device. Of a reservation manager QEMU speaks to the helper at once, and fails without one.
#[derive(Clone, Debug, Serialize)]
#[serde(transparent)]
pub struct ObjectAdd(pub Properties);

/// Whether the reservation managers were connected to their helpers when they were last used.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct QueryPrManagers {}

/// Asks for a device to leave. A PCI device leaves when the guest lets go, told by DEVICE_DELETED; a SCSI device leaves at
/// once and nobody is asked.
#[derive(Clone, Debug, Serialize)]
pub struct DeviceDel {
    pub id: String,
}

/// When the guest has locked the tray, this only asks it, unless forced.
#[derive(Clone, Debug, Serialize)]
pub struct OpenTray {
    pub id: String,
    pub force: bool,
}

#[derive(Clone, Debug, Serialize)]
pub struct CloseTray {
    pub id: String,
}

#[derive(Clone, Debug, Serialize)]
pub struct RemoveMedium {
    pub id: String,
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct InsertMedium {
    pub id: String,
    pub node_name: String,
}

/// Opens, removes, inserts and closes in one, making a nameless node. The separate steps are kinder to bookkeeping.
#[derive(Clone, Debug, Serialize)]
pub struct ChangeMedium {
    pub id: String,
    pub filename: String,
    pub format: String,
}

#[derive(Clone, Debug, Serialize)]
pub struct Eject {
    pub id: String,
    pub force: bool,
}

#[derive(Clone, Copy, Debug, Serialize)]
pub struct QueryBlock {}

/// All nodes by name; `flat` leaves out the chain below each.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct QueryNodes {
    pub flat: bool,
}

#[derive(Clone, Copy, Debug, Serialize)]
pub struct QueryBlockstats {}

/// How one queue between the guest's driver and a virtio device stands. QEMU answers from its main loop, whatever becomes of
/// the requests; by the command's name it promises no later version to have it.
#[derive(Clone, Debug, Serialize)]
pub struct QueryVirtQueue {
    pub path: String,
    pub queue: u16,
}

#[derive(Clone, Copy, Debug, Serialize)]
pub struct QueryPci {}

/// Tells whether the guest has a port open, for those who missed the event.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct QueryChardev {}

/// The end of a socket that a NIC's rings are agreed on over.
#[derive(Clone, Debug, Serialize)]
#[serde(transparent)]
pub struct ChardevAdd(pub Properties);

#[derive(Clone, Debug, Serialize)]
pub struct ChardevRemove {
    pub id: String,
}

/// What is behind a NIC.
#[derive(Clone, Debug, Serialize)]
#[serde(transparent)]
pub struct NetdevAdd(pub Properties);

#[derive(Clone, Debug, Serialize)]
pub struct NetdevDel {
    pub id: String,
}

/// Plugs a NIC's cable in or pulls it out, as the guest sees it.
#[derive(Clone, Debug, Serialize)]
pub struct SetLink {
    pub name: String,
    pub up: bool,
}

#[derive(Clone, Debug, Serialize)]
pub struct QomList {
    pub path: String,
}

#[derive(Clone, Debug, Serialize)]
pub struct QomGet {
    pub path: String,
    pub property: String,
}

/// A line for the human monitor, for what QMP itself cannot tell. Its errors come as text in the answer.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Human {
    pub command_line: String,
}

/// Registers of the first processor, see [`crate::occupant`].
#[derive(Clone, Copy, Debug)]
pub struct ReadRegisters {}

impl Serialize for ReadRegisters {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        human_line(serializer, "info registers")
    }
}

/// The power button's register, see [`crate::power_button`].
#[derive(Clone, Copy, Debug)]
pub struct ReadPowerButton {}

impl Serialize for ReadPowerButton {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        human_line(serializer, crate::power_button::COMMAND_LINE)
    }
}

fn human_line<S: Serializer>(serializer: S, line: &str) -> Result<S::Ok, S::Error> {
    let mut map = serializer.serialize_map(Some(1))?;
    map.serialize_entry("command-line", line)?;
    map.end()
}

/// QEMU's description of its own protocol, for recording.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct QuerySchema {}

/// Named properties in the order given.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(transparent)]
pub struct Properties(serde_json::Map<String, Value>);

impl Properties {
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.0.get(name)
    }
}

impl<K: Into<String>, V: Into<Value>> FromIterator<(K, V)> for Properties {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(properties: I) -> Properties {
        Properties(properties.into_iter().map(|(k, v)| (k.into(), v.into())).collect())
    }
}
