//! Lets one command at a time give a store to a running guest, or replace it. Between the look at who has it and the moment
//! at which that is seen, another command that wants the same store, by whatever name, or one that overlaps it, waits; then
//! it looks, and says whose it is. Commands that want other stores do not meet.

use std::collections::BTreeSet;
use std::time::Duration;

use hpvm_host::fingerprint;
use hpvm_host::lock::ByteLock;
use hpvm_model::{FileIdentity, GuestConfig};

use crate::refusal::unless_interrupted;
use crate::stores::Stores;
use crate::{Refusal, VmHost};

/// As long as a start may take to have its guest seen.
const BOUND: Duration = Duration::from_secs(60);

/// Held until dropped; the kernel ends what a dead command held.
#[derive(Debug)]
pub(crate) struct Claims {
    _locks: Vec<ByteLock>,
}

/// Claims the stores that the guest has for itself.
pub(crate) fn claim(host: &VmHost, config: &GuestConfig) -> Result<Claims, Refusal> {
    let stores = Stores::look([config]).with_other_paths(&host.registry)?.exclusive(config);
    hold(host, stores.into_values().flatten())
}

/// Claims stores, one after the other in one order for all, so that nobody waits in a ring.
pub(crate) fn hold(
    host: &VmHost,
    stores: impl IntoIterator<Item = FileIdentity>,
) -> Result<Claims, Refusal> {
    let path = host.root.claims();
    let bytes: BTreeSet<u64> = stores.into_iter().map(byte).collect();
    let mut locks = Vec::new();
    for byte in bytes {
        let lock = ByteLock::acquire(&path, byte, BOUND).map_err(Refusal::file("lock", &path))?;
        match lock {
            Some(lock) => locks.push(lock),
            None => {
                unless_interrupted()?;
                return Err(Refusal::StoreClaimed { seconds: BOUND.as_secs() });
            }
        }
    }
    Ok(Claims { _locks: locks })
}

/// The place of a store among the bytes that can be locked. Two that share one only wait for each other.
fn byte(identity: FileIdentity) -> u64 {
    let mut key = identity.device.to_le_bytes().to_vec();
    key.extend(identity.inode.to_le_bytes());
    fingerprint(&key) >> 2
}
