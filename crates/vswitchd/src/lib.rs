//! The process of one running virtual switch, and what others need to know of it: what it is started with, its control
//! protocol and its status. The process itself is the binary `hpvmnetd`, kept by `hpvmkeeper` as a guest's worker is;
//! commands use this library to talk to it and to read what it published. It knows nothing of QEMU or of the registry.

pub mod client;
pub mod fds;
pub mod kept;
pub mod protocol;
pub mod status;
pub mod wanted;
