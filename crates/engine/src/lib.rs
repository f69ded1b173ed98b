//! Performs plans on QEMU: brings a guest up, takes one over, changes its devices. Commands call the first half, the
//! worker the second; neither half knows the registry or what users type.

pub mod copying;
pub mod devices;
pub mod last_words;
pub mod launch;
pub mod media;
pub mod record_file;
pub mod reservations;
pub mod worker_fd;
