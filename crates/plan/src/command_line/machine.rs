//! The machine itself, beside what is at guest addresses: processors, memory, firmware, the monitors, the console, the agent's
//! channel and the root ports.

use hpvm_model::{Accelerator, PciSlot};

use super::{Descriptor, Line, Role, descriptors, number_of, port_id};
use crate::guest_path;
use crate::record::BootRecord;

pub(super) fn base(line: &mut Line, record: &BootRecord) {
    let mib = record.memory.bytes().as_mib();
    let cpu = match record.accelerator {
        Accelerator::Kvm => "host",
        Accelerator::Tcg => "qemu64",
    };
    line.option("-name", format!("guest={},process=hpvm-{}", record.name, record.number));
    line.flag("-nodefaults");
    line.flag("-no-user-config");
    line.option("-display", "none");
    line.option(
        "-machine",
        format!(
            "{},usb=off,vmport=off,memory-backend=ram0,pflash0=firmware-code,pflash1=nvram",
            record.machine_type
        ),
    );
    match descriptors(record).iter().find(|descriptor| descriptor.role == Role::Kvm) {
        Some(Descriptor { number, .. }) => {
            line.option("-add-fd", format!("fd={number},set={number},opaque=kvm"));
            line.option("-accel", format!("kvm,device=/dev/fdset/{number}"));
        }
        None => line.option("-accel", "tcg,thread=multi"),
    }
    line.option("-cpu", cpu);
    line.option("-smp", record.vcpus.to_string());
    line.option("-m", format!("{mib}M"));
    line.option("-object", format!("memory-backend-memfd,id=ram0,size={mib}M,share=on"));
    line.option("-uuid", record.uuid.to_string());
    line.option(
        "-smbios",
        format!(
            "type=1,manufacturer=hpvm,product=server Integrity Virtual Machine,serial={},uuid={}",
            record.serial_number, record.uuid
        ),
    );
    line.option("-rtc", "base=utc");
    // A guest that suspends itself would look hung from outside.
    line.option("-global", "ICH9-LPC.disable_s3=1");
    line.option("-global", "ICH9-LPC.disable_s4=1");
}

/// The block node of the firmware variables.
pub const NVRAM_NODE: &str = "nvram";

pub(super) fn firmware(line: &mut Line) {
    let code = number_of(&Role::FirmwareCode);
    line.option("-add-fd", format!("fd={code},set={code},opaque=firmware-code"));
    line.option(
        "-blockdev",
        format!("driver=file,node-name=firmware-code,filename=/dev/fdset/{code},read-only=on,auto-read-only=off"),
    );
    let nvram = number_of(&Role::Nvram);
    line.option("-add-fd", format!("fd={nvram},set={nvram},opaque=nvram"));
    line.option(
        "-blockdev",
        format!("driver=file,node-name={NVRAM_NODE},filename=/dev/fdset/{nvram}"),
    );
}

pub(super) fn monitors(line: &mut Line) {
    for (id, role) in [("monitor", Role::Monitor), ("rescue", Role::Rescue)] {
        let fd = number_of(&role);
        line.option("-chardev", format!("socket,id={id},fd={fd},server=on,wait=off"));
        line.option("-mon", format!("chardev={id},mode=control"));
    }
}

pub(super) fn console(line: &mut Line) {
    let (serial, log) = (number_of(&Role::Serial), number_of(&Role::ConsoleLog));
    line.option("-add-fd", format!("fd={log},set={log},opaque=console-log"));
    line.option(
        "-chardev",
        format!(
            "socket,id=console,fd={serial},server=on,wait=off,logfile=/dev/fdset/{log},logappend=on"
        ),
    );
    line.option("-serial", "chardev:console");
}

/// Chardev, adapter and port of the guest agent, as QEMU knows them.
pub const AGENT_CHARDEV: &str = "agent";
const AGENT_ADAPTER: &str = "agent-adapter";
/// The name in events of the port being opened and closed by the guest.
pub const AGENT_PORT: &str = "agent-port";

/// The place of the agent's adapter on the root bus, for ever: the root ports have 0x8 to 0xe, the chipset 0 and 0x1f.
const AGENT_PCI_DEVICE: u8 = 0x10;

/// A guest finds the port by its name, which agents of all systems look for. Port 0 would be a console's.
pub(super) fn agent(line: &mut Line) {
    let fd = number_of(&Role::Agent);
    line.option("-chardev", format!("socket,id={AGENT_CHARDEV},fd={fd},server=on,wait=off"));
    line.option(
        "-device",
        format!(
            "virtio-serial-pci,id={AGENT_ADAPTER},bus=pcie.0,addr={AGENT_PCI_DEVICE:#x},disable-legacy=on,max_ports=4"
        ),
    );
    line.option(
        "-device",
        format!(
            "virtserialport,id={AGENT_PORT},bus={AGENT_ADAPTER}.0,nr=1,chardev={AGENT_CHARDEV},name=org.qemu.guest_agent.0"
        ),
    );
}

/// So 56 ports take seven slots of the root bus.
pub(super) fn root_port(slot: PciSlot) -> String {
    let chassis = chassis(slot);
    let (pci_device, function) = guest_path::port(slot);
    let multifunction = if function == 0 { ",multifunction=on" } else { "" };
    format!(
        "pcie-root-port,id={},bus=pcie.0,addr={pci_device:#x}.{function},chassis={chassis},port={chassis}{multifunction}",
        port_id(slot)
    )
}

fn chassis(slot: PciSlot) -> u8 {
    8 * slot.bus() + slot.device() + 1
}
