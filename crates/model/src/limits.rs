//! What a guest may have: minima by guest type, maxima by the host and the engine, or the table of A.03.50 when
//! hpvmconf says `HPVMLIMITS=A.03.50`.

use crate::bytes::{Bytes, GIB, MIB};
use crate::os::OsFamily;

/// Which maxima apply.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LimitsTable {
    /// Maxima follow the host and the engine.
    #[default]
    Host,
    /// Table 3-1 of the A.03.50 release notes.
    A0350,
}

/// Bounds of one guest type on one host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    pub vcpus_max: u32,
    pub memory_min: Bytes,
    pub memory_max: Bytes,
    pub storage_devices_max: usize,
}

/// The most vCPUs the engine's machine type takes (pc-q35).
pub const ENGINE_VCPUS_MAX: u32 = 288;
/// The largest guest the engine's default physical address width carries under TCG.
pub const ENGINE_MEMORY_MAX: Bytes = Bytes(1 << 39);
/// One device per target of each adapter would be more than any guest uses; the bus numbers of q35 set this bound.
pub const STORAGE_DEVICES_MAX: usize = 1024;

/// So many NICs are served out of the least memory that a guest may have.
pub const NICS_IN_MEMORY_MIN: usize = 16;
/// What each further one takes: rings full of buffers, twice over what Linux's drivers fill (e1000, virtio_net).
pub const NIC_MEMORY: Bytes = Bytes(4 * MIB);

impl Limits {
    /// The least memory of a guest with so many NICs, in the steps that memory has.
    #[must_use]
    pub fn memory_min_with_nics(&self, nics: usize) -> Bytes {
        let more = nics.saturating_sub(NICS_IN_MEMORY_MIN) as u64 * NIC_MEMORY.0;
        Bytes((self.memory_min.0 + more).next_multiple_of(64 * MIB))
    }
}

impl LimitsTable {
    #[must_use]
    pub fn limits(self, family: OsFamily) -> Limits {
        let memory_min = match family {
            OsFamily::Unknown => Bytes(32 * MIB),
            OsFamily::Hpux | OsFamily::Windows | OsFamily::Linux => Bytes(512 * MIB),
        };
        match self {
            LimitsTable::Host => Limits {
                vcpus_max: ENGINE_VCPUS_MAX,
                memory_min,
                memory_max: ENGINE_MEMORY_MAX,
                storage_devices_max: STORAGE_DEVICES_MAX,
            },
            LimitsTable::A0350 => Limits {
                vcpus_max: 4,
                memory_min,
                memory_max: match family {
                    OsFamily::Unknown => Bytes(128 * GIB),
                    _ => Bytes(64 * GIB),
                },
                storage_devices_max: 128,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_nics_want_more_memory() {
        let needed = |nics| LimitsTable::Host.limits(OsFamily::Linux).memory_min_with_nics(nics);
        let mib = |nics| needed(nics).as_mib();
        assert_eq!([mib(0), mib(16), mib(17), mib(32), mib(33)], [512, 512, 576, 576, 640]);
    }
}
