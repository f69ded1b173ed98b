//! What nobody can guess, from the kernel.

use hpvm_model::GuestUuid;
use rustix::io::retry_on_intr;
use rustix::rand::{GetRandomFlags, getrandom};

pub(crate) fn uuid() -> GuestUuid {
    GuestUuid(uuid::Builder::from_random_bytes(bytes()).into_uuid())
}

pub(crate) fn bits() -> u64 {
    u64::from_ne_bytes(bytes())
}

/// So few come whole and at once (getrandom(2)). Without them nothing can be told apart from what others made.
fn bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    match retry_on_intr(|| getrandom(&mut bytes, GetRandomFlags::empty())) {
        Ok(count) if count == N => bytes,
        other => panic!("the kernel gives no random bits: {other:?}"),
    }
}
