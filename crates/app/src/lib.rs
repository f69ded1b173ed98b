//! The worker of one running guest, and what others need to know of it: its control protocol and its status snapshot.
//! The worker itself is the binary `hpvmapp`; commands use this library to talk to it and to read what it published.

pub mod client;
pub mod counters;
pub mod protocol;
pub mod snapshot;
