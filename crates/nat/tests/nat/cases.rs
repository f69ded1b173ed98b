//! What is tried, by subject.

pub(crate) mod connections;
pub(crate) mod forwards;
pub(crate) mod hostile;
pub(crate) mod leases;
pub(crate) mod switched;
