//! What whoever asks cannot see, since he only looks on: whether a store or the firmware variables can be used is not his to judge.

use std::collections::BTreeSet;

use hpvm_model::Problem;
use hpvm_plan::facts::{BlockFact, FileFact, HostFacts, Lack, Provision, Writable};

use crate::{VmHost, stores};

/// The paths whose use nobody can judge with the rights of whoever asks.
pub(super) struct Unseen(BTreeSet<String>);

impl Unseen {
    pub(super) fn of(host: &VmHost, facts: &HostFacts) -> Unseen {
        if host.is_ours() {
            return Unseen(BTreeSet::new());
        }
        let nvram = facts.start.as_ref().map(|start| &start.nvram);
        let variables = nvram.into_iter().filter_map(|nvram| match nvram {
            Provision { path, missing: Some(Lack::Forbidden) } => Some(path.clone()),
            _ => None,
        });
        let mut unseen: BTreeSet<String> = variables.collect();
        let mut protected = Vec::new();
        for (path, fact) in &facts.files {
            match fact {
                FileFact::Unreadable(Lack::Forbidden) => drop(unseen.insert(path.clone())),
                FileFact::Regular { writable: Writable::No, .. }
                | FileFact::Block(BlockFact { writable: Writable::No, .. }) => {
                    protected.push(path.as_str());
                }
                _ => {}
            }
        }
        let found = stores::found(protected).into_iter();
        let is_for_others = |found: std::io::Result<std::fs::Metadata>| {
            found.is_ok_and(|found| stores::is_meant_to_be_written(&found))
        };
        unseen.extend(found.filter_map(|(path, found)| is_for_others(found).then_some(path)));
        Unseen(unseen)
    }

    /// Takes away what was judged of these.
    pub(super) fn set_aside(&self, problems: &mut Vec<Problem>) {
        problems.retain(|problem| !self.0.contains(&problem.item));
    }

    pub(super) fn is_nothing(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn note(&self) -> Option<String> {
        let paths: Vec<&str> = self.0.iter().map(String::as_str).collect();
        (!self.is_nothing()).then(|| {
            format!(
                "whether '{}' can be used cannot be seen by this user; run this as its owner or as root",
                paths.join("', '")
            )
        })
    }
}
