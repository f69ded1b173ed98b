//! Whether KVM really works here.
//!
//! `/dev/kvm` opening is not enough: some hosts offer it without hardware virtualization, and a guest then crawls. The
//! processor's flags decide first (neither vmx nor svm: TCG); else a tiny real-mode loop is run for at most 300 ms. The
//! answer is kept in the run folder for this boot of the host. `HPVM_ACCEL=kvm|tcg` overrides: tcg without a question, kvm
//! if the trial bears it out.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use hpvm_model::Accelerator;

use crate::durable;
use crate::process::boot_id;

mod trial;

/// How long the trial may take, the opening of /dev/kvm included.
pub const TRIAL_BOUND: Duration = Duration::from_millis(300);

/// What guests of this host run with, and why, in a sentence for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    pub accelerator: Accelerator,
    pub reason: String,
}

impl Choice {
    fn kvm(reason: impl Into<String>) -> Choice {
        Choice { accelerator: Accelerator::Kvm, reason: reason.into() }
    }

    fn tcg(reason: impl Into<String>) -> Choice {
        Choice { accelerator: Accelerator::Tcg, reason: reason.into() }
    }
}

/// Why there is no choice.
#[derive(Debug, thiserror::Error)]
pub enum AccelError {
    #[error("HPVM_ACCEL is {0:?}; it should be kvm or tcg, or not set")]
    Unknown(OsString),
    #[error("HPVM_ACCEL=kvm, but KVM does not work here: {0}; unset HPVM_ACCEL, or set it to tcg")]
    KvmUnfit(String),
    #[error("the host's boot id cannot be read")]
    BootId(#[source] io::Error),
}

/// What guests run with. `run` is the run folder, where the answer is kept.
pub fn choose(run: &Path) -> Result<Choice, AccelError> {
    match env::var_os("HPVM_ACCEL") {
        None => automatic(run),
        Some(wish) => match wish.to_str() {
            Some("") => automatic(run),
            Some("tcg") => Ok(Choice::tcg("HPVM_ACCEL=tcg asks for it")),
            Some("kvm") => trial::run(TRIAL_BOUND)
                .map(|()| Choice::kvm("HPVM_ACCEL=kvm asks for it"))
                .map_err(AccelError::KvmUnfit),
            _ => Err(AccelError::Unknown(wish)),
        },
    }
}

fn automatic(run: &Path) -> Result<Choice, AccelError> {
    let boot_id = boot_id().map_err(AccelError::BootId)?;
    let kept = run.join("accel");
    if let Some(choice) = remembered(&kept, &boot_id) {
        return Ok(choice);
    }
    let choice = decide();
    let text = format!("{boot_id} {} {}\n", choice.accelerator.as_str(), choice.reason);
    // Whoever may not write there just tries again.
    let _ = durable::swap_file(&kept, text.as_bytes(), 0o644);
    Ok(choice)
}

fn remembered(kept: &Path, boot_id: &str) -> Option<Choice> {
    let text = fs::read_to_string(kept).ok()?;
    let rest = text.strip_prefix(boot_id)?.strip_prefix(' ')?.strip_suffix('\n')?;
    match rest.split_once(' ')? {
        ("kvm", reason) => Some(Choice::kvm(reason)),
        ("tcg", reason) => Some(Choice::tcg(reason)),
        _ => None,
    }
}

fn decide() -> Choice {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    if !virtualizes(&cpuinfo) {
        return Choice::tcg("the processor shows neither vmx nor svm");
    }
    match trial::run(TRIAL_BOUND) {
        Ok(()) => Choice::kvm("the processor has it and a trial went well"),
        Err(reason) => Choice::tcg(reason),
    }
}

fn virtualizes(cpuinfo: &str) -> bool {
    cpuinfo
        .lines()
        .find(|line| line.starts_with("flags"))
        .is_some_and(|line| line.split_whitespace().any(|flag| flag == "vmx" || flag == "svm"))
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn flags_are_whole_words() {
        assert!(virtualizes("processor : 0\nflags\t\t: fpu vmx sse\n"));
        assert!(virtualizes("flags\t\t: fpu svm\n"));
        assert!(!virtualizes("flags\t\t: fpu vmx_like svmx\nbugs : vmx\n"));
    }

    #[test]
    fn an_answer_is_kept_for_this_boot_only() {
        let run = tempfile::tempdir().expect("a folder");
        let first = automatic(run.path()).expect("a choice");
        let kept = run.path().join("accel");
        let boot_id = boot_id().expect("a boot id");
        assert_eq!(remembered(&kept, &boot_id), Some(first));
        assert_eq!(remembered(&kept, "another-boot"), None);
        fs::write(&kept, format!("{boot_id} kvm kept by hand\n")).expect("written");
        assert_eq!(automatic(run.path()).expect("a choice"), Choice::kvm("kept by hand"));
    }

    #[test]
    fn the_trial_keeps_its_bound_and_finds_nothing_where_nothing_is() {
        let begin = Instant::now();
        let outcome = trial::run(TRIAL_BOUND);
        let took = begin.elapsed();
        assert!(took < TRIAL_BOUND + Duration::from_millis(200), "{took:?}: {outcome:?}");
        // What a processor cannot do goes well nowhere, whatever its flags say.
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").expect("the processor");
        if !virtualizes(&cpuinfo) {
            assert!(outcome.is_err(), "a trial of what is not there");
        }
    }
}
