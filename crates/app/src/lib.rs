//! The worker of one running guest, and what others need to know of it: its control protocol and its status snapshot.
//! The worker itself is the binary `hpvmapp`; commands use this library to talk to it and to read what it published.

/// The commands' side of the control protocol.
pub mod client;
/// Requests of commands and the worker's answers.
pub mod protocol;
/// What the worker publishes for readers who do not ask.
pub mod snapshot;
