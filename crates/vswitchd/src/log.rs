//! The switch's log: who came and went, and what went wrong. What a hostile guest can repeat at will is told now and then, and
//! the log is bounded, see [`bounded_log`].

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::time::{Duration, Instant};

use hpvm_host::bounded_log;
use hpvm_model::PortNumber;

/// What became of a port is told once in so long, each kind by itself.
const APART: Duration = Duration::from_secs(10);

/// What may become of a port. A guest that errs does so when it is just up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum News {
    Up,
    Lost,
    Refused,
}

#[derive(Debug)]
pub(crate) struct Log {
    file: File,
    told_at: BTreeMap<(PortNumber, News), Instant>,
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

    pub(crate) fn tell(&mut self, port: PortNumber, news: News, sentence: &str) {
        let is_due = self.told_at.get(&(port, news)).is_none_or(|at| at.elapsed() >= APART);
        if is_due {
            self.told_at.insert((port, news), Instant::now());
            self.say(sentence);
        }
    }

    /// To be done now and then: hpvmnat writes here too.
    pub(crate) fn cut(&self) {
        let _ = bounded_log::cut(&self.file);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_of_news_is_told_and_none_again_and_again() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut log = Log::new(file.reopen().unwrap());
        let port = PortNumber::new(1).unwrap();
        for _ in 0..2 {
            log.tell(port, News::Up, "port 1 is up");
            log.tell(port, News::Lost, "port 1 is lost: a fault");
        }
        let text = std::fs::read_to_string(file.path()).unwrap();
        let told: Vec<&str> =
            text.lines().filter_map(|l| l.split_once("hpvmnetd: ")).map(|(_, t)| t).collect();
        assert_eq!(told, ["port 1 is up", "port 1 is lost: a fault"]);
    }
}
