//! By which commands of an administrator the VM Host leaves a store alone. Pure.

use hpvm_model::quoted;

use super::uses::{Fact, Step, StepKind, Use};

impl Use {
    /// What ends it, in this order, of a store by its path. Nothing where no command alone does, and of what the VM Host cannot
    /// run without.
    #[must_use]
    pub fn ended_by(&self, path: &str) -> Vec<String> {
        self.commands(path).unwrap_or_default()
    }

    fn commands(&self, path: &str) -> Option<Vec<String>> {
        let mut commands = Vec::new();
        match &self.fact {
            Fact::Mounted(at) | Fact::MountedReadOnly(at) | Fact::Btrfs(Some(at)) => {
                let at = at.to_str().filter(|at| *at != "/" && !at.contains(char::is_control))?;
                commands.push(format!("umount {}", quoted(at)));
            }
            Fact::Swap => commands.push(format!("swapoff {}", quoted(&self.node(path)))),
            Fact::Held => {}
            _ => return None,
        }
        for step @ Step { label, kind } in self.steps.iter().rev() {
            let (label, node) = (quoted(label), quoted(&step.node()));
            commands.push(match kind {
                // They are no use of what they are on, and may stay.
                StepKind::Partition | StepKind::Loop => continue,
                StepKind::Raid => format!("mdadm --stop {node}"),
                StepKind::Volume { group, .. } => format!("vgchange -an {}", quoted(group)),
                StepKind::Encrypted => format!("cryptsetup close {label}"),
                StepKind::Multipath => format!("multipath -f {label}"),
                StepKind::Mapped => format!("dmsetup remove {label}"),
                StepKind::Other => return None,
            });
        }
        Some(commands)
    }

    /// The device that is used.
    fn node(&self, path: &str) -> String {
        match (self.steps.last(), &self.whole) {
            (Some(step), _) => step.node(),
            (None, Some(whole)) => format!("/dev/{whole}"),
            (None, None) => path.to_owned(),
        }
    }
}

impl Step {
    fn node(&self) -> String {
        let folder = match self.kind {
            StepKind::Partition | StepKind::Raid | StepKind::Loop | StepKind::Other => "/dev",
            StepKind::Volume { .. }
            | StepKind::Encrypted
            | StepKind::Multipath
            | StepKind::Mapped => "/dev/mapper",
        };
        format!("{folder}/{}", self.label)
    }
}
