//! Descriptors that are held back for the switch and for clients. Each connection of a guest is a descriptor, so guests could
//! have all that there may be, and nobody could tell the service anything any more.
//!
//! The service holds them whenever libslirp may open some, and gives one up before it accepts somebody itself.

use std::os::fd::{BorrowedFd, OwnedFd};

#[derive(Debug, Default)]
pub(crate) struct Reserve(Vec<OwnedFd>);

impl Reserve {
    /// Holds so many, all of them copies of one that is there.
    pub(crate) fn hold(&mut self, count: usize, any: BorrowedFd<'_>) {
        self.0.truncate(count);
        while self.0.len() < count
            && let Ok(copy) = any.try_clone_to_owned()
        {
            self.0.push(copy);
        }
    }

    /// Makes room for another.
    pub(crate) fn give_up_one(&mut self) {
        self.0.pop();
    }
}
