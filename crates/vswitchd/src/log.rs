//! The switch's log: who came and went, and what went wrong. What a hostile guest can repeat at will is told now and then.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::time::{Duration, Instant};

use hpvm_model::PortNumber;

/// A port's troubles are told once in so long.
const TROUBLE_APART: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(crate) struct Log {
    file: File,
    told_at: BTreeMap<PortNumber, Instant>,
}

impl Log {
    pub(crate) fn new(file: File) -> Log {
        Log { file, told_at: BTreeMap::new() }
    }

    /// A line that cannot be written is lost; nobody could be told.
    pub(crate) fn say(&mut self, sentence: &str) {
        let now = jiff::Timestamp::now();
        let _ = self.file.write_all(format!("{now:.3} hpvmnetd: {sentence}\n").as_bytes());
    }

    pub(crate) fn tell_trouble(&mut self, port: PortNumber, sentence: &str) {
        let is_due = self.told_at.get(&port).is_none_or(|at| at.elapsed() >= TROUBLE_APART);
        if is_due {
            self.told_at.insert(port, Instant::now());
            self.say(sentence);
        }
    }
}
