//! Descriptors that a worker has its keeper hold, so that the next worker goes on with them: a virtual switch's listening
//! sockets and its wire, the stores that came to a running guest. Each has a tag of the worker's choice, which means nothing
//! here.

use crate::sys::{Fd, close_fd};

/// A switch's ports and its wire, and some to spare.
pub(crate) const KEPT_MAX: usize = 640;

/// All room is taken at once, since a keeper allocates nothing later.
pub(crate) struct Kept {
    held: Vec<(u32, Fd)>,
}

impl Kept {
    pub(crate) fn new(inherited: Vec<(u32, Fd)>) -> Kept {
        let mut held = Vec::with_capacity(KEPT_MAX);
        held.extend(inherited);
        Kept { held }
    }

    /// Holds a descriptor; one that there is no room for is closed.
    pub(crate) fn keep(&mut self, tag: u32, fd: Fd) {
        self.release(tag);
        match self.held.len() < KEPT_MAX {
            true => self.held.push((tag, fd)),
            false => close_fd(fd),
        }
    }

    pub(crate) fn release(&mut self, tag: u32) {
        while let Some(index) = self.held.iter().position(|(other, _)| *other == tag) {
            close_fd(self.held.swap_remove(index).1);
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, Fd)> + '_ {
        self.held.iter().copied()
    }
}
