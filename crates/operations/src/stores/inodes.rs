//! What the kernel knows paths by, of many looked at together: whether two lead to the same, and whether anything is there. Who
//! asks waits for an answer in time, and no longer.

use std::collections::{BTreeMap, BTreeSet};

use hpvm_host::identity;
use hpvm_model::FileIdentity;

use super::asked::Asking;

/// Of a path at which nobody answered nothing is known.
#[derive(Debug)]
pub(crate) struct Inodes(BTreeMap<String, Option<FileIdentity>>);

impl Inodes {
    pub(crate) fn at<'a>(paths: impl IntoIterator<Item = &'a str>) -> Inodes {
        let paths: BTreeSet<String> = paths.into_iter().map(str::to_owned).collect();
        Inodes(Asking::begin(&paths, identity::at).answers().own)
    }

    /// Of one path alone.
    pub(crate) fn one(path: &str) -> Option<FileIdentity> {
        Inodes::at([path]).of(path)
    }

    /// `None`: nothing is there, or nobody answers.
    pub(crate) fn of(&self, path: &str) -> Option<FileIdentity> {
        *self.0.get(path)?
    }

    /// Whether it is known that nothing is there.
    pub(crate) fn lack(&self, path: &str) -> bool {
        matches!(self.0.get(path), Some(None))
    }
}
