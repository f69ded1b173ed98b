//! How storage adapters and LUNs are printed, after gvsdmgr of A.03.50: the date, then lines of key and value; and as JSON.

use std::fmt::Write as _;
use std::time::Duration;

use hpvm_app::counters::{Counted, Counters};
use hpvm_model::AdapterKind;
use hpvm_operations::adapters::{Adapter, Lun, LunState, Statistics};
use hpvm_plan::guest_path;
use serde::Serialize;

use crate::messages::printable;

/// Whether adapters are told of or what is behind them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    Adapters,
    Luns,
}

/// Grows when a reader of older documents would misread a newer one.
const FORMAT: u32 = 1;
const KEY_COLUMNS: usize = 38;

pub(crate) fn information(adapters: &[Adapter], shape: Shape) -> String {
    let mut text = date();
    for adapter in adapters {
        match shape {
            Shape::Adapters => block(&mut text, &adapter_lines(adapter)),
            Shape::Luns => {
                adapter.luns.iter().for_each(|lun| block(&mut text, &lun_lines(lun)));
            }
        }
    }
    text
}

pub(crate) fn statistics(adapters: &[Statistics], shape: Shape) -> String {
    let mut text = date();
    for statistics in adapters {
        let adapter = &statistics.adapter;
        match shape {
            Shape::Adapters => {
                let mut lines = vec![
                    ("Adapter", adapter.kind.as_str().into()),
                    ("Guest address", adapter.slot.to_string()),
                    ("LUNs", statistics.luns.len().to_string()),
                ];
                lines.extend(counter_lines(statistics.sum()));
                block(&mut text, &lines);
            }
            Shape::Luns => {
                for counted in &statistics.luns {
                    let since = counted.since.clone();
                    let mut lines = vec![
                        ("VSD LUN Id", lun_id(counted.address.target)),
                        ("Guest address", counted.address.to_string()),
                        ("Counted since", since.unwrap_or_else(|| "the guest has it".into())),
                    ];
                    lines.extend(counter_lines(counted.counters));
                    block(&mut text, &lines);
                }
            }
        }
    }
    text
}

/// As `ctime` writes it, which the original printed.
fn date() -> String {
    format!("{}\n", jiff::Timestamp::now().strftime("%a %b %e %H:%M:%S UTC %Y"))
}

fn block(text: &mut String, lines: &[(&str, String)]) {
    text.push('\n');
    for (key, value) in lines {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{key:<KEY_COLUMNS$}: {}", printable(value));
    }
}

fn adapter_lines(adapter: &Adapter) -> Vec<(&'static str, String)> {
    let (vendor, device) = pci_ids(adapter.kind);
    let state = if adapter.is_online() { "ONLINE" } else { "OFFLINE" };
    vec![
        ("Adapter", adapter.kind.as_str().into()),
        ("Guest address", adapter.slot.to_string()),
        ("PCI Vendor ID", format!("{vendor:#06x}")),
        ("PCI Device ID", format!("{device:#06x}")),
        ("State of HBA", state.into()),
        ("Hardware Path", paths(adapter).join(" ")),
        ("LUNs", adapter.luns.len().to_string()),
    ]
}

/// The second adapter behind an address, if there is one, too.
fn paths(adapter: &Adapter) -> Vec<String> {
    let paths = adapter.luns.iter().map(|lun| guest_path::pci(adapter.kind, lun.device.address));
    let mut paths: Vec<String> = paths.collect();
    paths.dedup();
    paths
}

/// As a guest sees the adapters that QEMU makes (PCI ids of virtio: Virtio 1.2, 4.1.2; of the other: LSI SAS1068).
fn pci_ids(kind: AdapterKind) -> (u16, u16) {
    match kind {
        AdapterKind::AvioStor => (0x1af4, 0x1048),
        AdapterKind::Scsi => (0x1000, 0x0054),
    }
}

fn lun_lines(lun: &Lun) -> Vec<(&'static str, String)> {
    let device = &lun.device;
    let address = device.address;
    let name = lun.naa.map(|naa| ("Lun DSF", format!("/dev/disk/by-id/{}", by_id(naa))));
    let others = [
        ("VSD LUN Id", lun_id(address.target)),
        ("Guest address", address.to_string()),
        ("Lun Hardware path", guest_path::pci(device.adapter, address)),
        ("EFI path", guest_path::efi(device.adapter, address)),
        ("LUN State", state(&lun.state)),
        ("Backing store", format!("{} {}", device.backing.storage.as_str(), device.backing.path)),
    ];
    name.into_iter().chain(others).collect()
}

/// As udev of a Linux guest names it.
fn by_id(naa: u64) -> String {
    format!("wwn-{naa:#018x}")
}

fn state(state: &LunState) -> String {
    match state {
        LunState::Online => "ONLINE".into(),
        LunState::Silent { since } => {
            format!("SILENT, its backing store does not answer since {since}")
        }
        LunState::NextReset => "OFFLINE until the next reset of the guest".into(),
        LunState::NextStart => "OFFLINE until the next start of the guest".into(),
        LunState::Off => "OFFLINE".into(),
    }
}

/// The target, as the original writes it.
fn lun_id(target: u8) -> String {
    format!("{target:#x}")
}

fn counter_lines(counters: Counters) -> Vec<(&'static str, String)> {
    let Counters { reads, read_bytes, read_ns, writes, written_bytes, write_ns, .. } = counters;
    let Counters { flushes, flush_ns, failed_reads, failed_writes, failed_flushes, .. } = counters;
    vec![
        ("Reads", reads.to_string()),
        ("Bytes read", read_bytes.to_string()),
        ("Time for reads", time(read_ns, reads)),
        ("Writes", writes.to_string()),
        ("Bytes written", written_bytes.to_string()),
        ("Time for writes", time(write_ns, writes)),
        ("Flushes", flushes.to_string()),
        ("Time for flushes", time(flush_ns, flushes)),
        ("Failed reads", failed_reads.to_string()),
        ("Failed writes", failed_writes.to_string()),
        ("Failed flushes", failed_flushes.to_string()),
    ]
}

/// All together and for each.
fn time(all_ns: u64, count: u64) -> String {
    let all = Duration::from_nanos(all_ns).as_secs_f64();
    match count {
        0 => format!("{all:.3} s"),
        // Nobody reads the last digits of so many requests.
        count => format!("{all:.3} s, {:.3} ms each", all * 1e3 / count as f64),
    }
}

pub(crate) fn information_json(adapters: &[Adapter]) -> Result<String, serde_json::Error> {
    let shown = adapters.iter().map(|adapter| shown(adapter, &[])).collect();
    json(&Document { format: FORMAT, adapters: shown })
}

pub(crate) fn statistics_json(adapters: &[Statistics]) -> Result<String, serde_json::Error> {
    let shown = adapters.iter().map(|known| shown(&known.adapter, &known.luns)).collect();
    json(&Document { format: FORMAT, adapters: shown })
}

fn json(document: &Document) -> Result<String, serde_json::Error> {
    serde_json::to_string_pretty(document).map(|text| text + "\n")
}

#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct Document {
    format: u32,
    /// In order of address.
    adapters: Vec<ShownAdapter>,
}

#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct ShownAdapter {
    kind: String,
    bus: u8,
    device: u8,
    pci_vendor_id: u16,
    pci_device_id: u16,
    online: bool,
    luns: Vec<ShownLun>,
}

#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct ShownLun {
    target: u8,
    /// Its name, as `/dev/disk/by-id` of a Linux guest has it; empty of what has one of its own, as a shared disk.
    id: String,
    /// The adapter, as `lspci -P` prints it in the guest.
    guest_pci_path: String,
    efi_path: String,
    /// online, silent, next_reset, next_start or off.
    state: &'static str,
    /// What backs it does not answer since, RFC 3339.
    silent_since: Option<String>,
    storage: String,
    path: String,
    /// get_stat only.
    statistics: Option<ShownStatistics>,
}

#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct ShownStatistics {
    /// Since clear_stat, RFC 3339; absent: since the guest has it.
    since: Option<String>,
    reads: u64,
    read_bytes: u64,
    read_ns: u64,
    failed_reads: u64,
    writes: u64,
    written_bytes: u64,
    write_ns: u64,
    failed_writes: u64,
    flushes: u64,
    flush_ns: u64,
    failed_flushes: u64,
}

fn shown(adapter: &Adapter, counted: &[Counted]) -> ShownAdapter {
    let (pci_vendor_id, pci_device_id) = pci_ids(adapter.kind);
    ShownAdapter {
        kind: adapter.kind.as_str().into(),
        bus: adapter.slot.bus(),
        device: adapter.slot.device(),
        pci_vendor_id,
        pci_device_id,
        online: adapter.is_online(),
        luns: adapter.luns.iter().map(|lun| shown_lun(lun, counted)).collect(),
    }
}

fn shown_lun(lun: &Lun, counted: &[Counted]) -> ShownLun {
    let device = &lun.device;
    let (state, silent_since) = match &lun.state {
        LunState::Online => ("online", None),
        LunState::Silent { since } => ("silent", Some(since.clone())),
        LunState::NextReset => ("next_reset", None),
        LunState::NextStart => ("next_start", None),
        LunState::Off => ("off", None),
    };
    let counted = counted.iter().find(|counted| counted.address == device.address);
    ShownLun {
        target: device.address.target,
        id: lun.naa.map(by_id).unwrap_or_default(),
        guest_pci_path: guest_path::pci(device.adapter, device.address),
        efi_path: guest_path::efi(device.adapter, device.address),
        state,
        silent_since,
        storage: device.backing.storage.as_str().into(),
        path: device.backing.path.clone(),
        statistics: counted.map(ShownStatistics::from),
    }
}

impl From<&Counted> for ShownStatistics {
    fn from(counted: &Counted) -> ShownStatistics {
        let Counted { counters, since, .. } = counted;
        ShownStatistics {
            since: since.clone(),
            reads: counters.reads,
            read_bytes: counters.read_bytes,
            read_ns: counters.read_ns,
            failed_reads: counters.failed_reads,
            writes: counters.writes,
            written_bytes: counters.written_bytes,
            write_ns: counters.write_ns,
            failed_writes: counters.failed_writes,
            flushes: counters.flushes,
            flush_ns: counters.flush_ns,
            failed_flushes: counters.failed_flushes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_json_keeps_its_schema() {
        crate::schema::keep("luns.json", &schemars::schema_for!(Document));
    }

    #[test]
    fn times_are_told_all_together_and_each() {
        assert_eq!(time(0, 0), "0.000 s");
        assert_eq!(time(3_000_000_000, 1000), "3.000 s, 3.000 ms each");
    }
}
