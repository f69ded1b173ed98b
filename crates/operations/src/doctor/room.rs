//! Whether the VM Host can write where it has its own: the registry, the guests' folders with their logs, `/run`.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::{Cure, Finding};
use crate::facts::shut;
use crate::{VmHost, folder};

/// A file system that has several of these places is told of once.
pub(super) fn examine(host: &VmHost) -> Vec<Finding> {
    let root = &host.root;
    let registry = host.registry.path().parent().map(Path::to_owned);
    let own = [root.uuids(), root.guests(), root.common(), root.run().to_owned()];
    let guests = folder::all(root).into_values().map(|folder| folder.path().to_owned());
    // What is missing would be made on the file system of the folder above.
    let there = |path: PathBuf| path.ancestors().find(|path| path.exists()).map(Path::to_owned);
    let places = registry.into_iter().chain(own).chain(guests).filter_map(there);
    let mut told = Vec::new();
    let mut findings = Vec::new();
    for folder in shut(places) {
        let file_system = fs::metadata(&folder.path).map(|found| found.dev()).ok();
        if !told.contains(&(file_system, folder.why)) {
            let (text, cure) = (folder.lack("hpvm"), Cure::Tell(folder.way_out()));
            findings.push(Finding { text, cure });
            told.push((file_system, folder.why));
        }
    }
    findings
}
