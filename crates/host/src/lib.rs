//! What this machine is and what it lets us do: paths, settings, locks, processes, descriptors, users, network interfaces,
//! confinement.
//!
//! Called by the commands, the engine and the worker. One module is one idea, and none of them knows what a guest means
//! beyond its number, name or uuid; nothing here speaks SQL or QMP.

pub mod accel;
pub mod answers;
pub mod asking;
pub mod block;
pub mod bounded_log;
pub mod conf;
pub mod confine;
pub mod copy;
pub mod deputy;
pub mod durable;
pub mod dying_memory;
pub mod engines;
pub mod facts;
pub mod fdpass;
pub mod fingerprint;
pub mod generic;
pub mod identity;
pub mod image_lock;
pub mod inherited;
pub mod keeper_link;
pub mod launch;
pub mod lines;
pub mod listen;
pub mod lock;
pub mod lodging;
pub mod media_folder;
pub mod names;
pub mod nic;
pub mod openers;
pub mod optical;
pub mod paths;
pub mod process;
pub mod qcow2;
pub mod qemu_version;
pub mod removal;
pub mod reservations;
pub mod restarts;
pub mod signals;
pub mod stdio;
pub mod supervision;
pub mod threads;
pub mod time_slice;
pub mod users;

pub use fingerprint::fingerprint;
pub use paths::Root;
