//! What a shell's hard limits, which its guests inherit when nobody may lift them, do to a guest. Called before a start.

use std::fmt::Display;

use hpvm_host::signals::Limits;
use hpvm_model::bytes::Bytes;
use hpvm_model::{GuestConfig, Problem};

const GIB: u64 = 1 << 30;
/// What QEMU maps beside the guest's memory: 1.6 GB of a small guest under emulation, most of that the room for translated
/// code, and 72 MB for each thread that it starts later.
const ADDRESSES_BESIDE_MEMORY: u64 = 4 * GIB;
/// 1.1 GB of the same guest, and 8 MB for each thread. The guest's memory is shared, and so no data.
const DATA_BYTES_MIN: u64 = 2 * GIB;
/// QEMU has up to 64 threads for its disks, and some of its own; keeper and worker have theirs.
const THREADS_BESIDE_VCPUS: u64 = 100;

/// A warning for each limit that is lower than what the guest needs.
pub(crate) fn problems(config: &GuestConfig, limits: &Limits) -> Vec<Problem> {
    let below = |limit: Option<u64>, needed: u64| limit.filter(|limit| *limit < needed);
    let addresses = Bytes::from(config.memory).0 + ADDRESSES_BESIDE_MEMORY;
    let threads = u64::from(config.vcpus.get()) + THREADS_BESIDE_VCPUS;
    let short_of = |limit: &dyn Display, what: &str, needed: &dyn Display| {
        format!("{limit} of {what} where it may need {needed}; QEMU ends when it gets no more")
    };
    let told = [
        limits.cpu_seconds.map(|seconds| {
            ("-t", format!("{seconds} s of processor time, after which QEMU is killed"))
        }),
        limits.file_bytes.map(|limit| {
            ("-f", format!("{} a file, beyond which no disk is written", Bytes(limit)))
        }),
        below(limits.address_bytes, addresses)
            .map(|limit| ("-v", short_of(&Bytes(limit), "address space", &Bytes(addresses)))),
        below(limits.data_bytes, DATA_BYTES_MIN)
            .map(|limit| ("-d", short_of(&Bytes(limit), "data", &Bytes(DATA_BYTES_MIN)))),
        below(limits.processes, threads)
            .map(|limit| ("-u", short_of(&limit, "the user's processes and threads", &threads))),
    ];
    let warning = |(option, what)| {
        let text = format!(
            "a hard limit here (`ulimit -H {option}`) allows the guest only {what}: start it where there is none, see limits.conf(5)"
        );
        Problem::warning("limits", text)
    };
    told.into_iter().flatten().map(warning).collect()
}
