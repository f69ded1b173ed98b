//! The guest monitor log: one line per event, `TIME hpvmapp: sentence`. The keeper appends to it too.
//!
//! Bounded, see [`bounded_log`]. A full disk loses lines and nothing else.

use std::fs::File;
use std::io::Write;

use hpvm_host::bounded_log;

#[derive(Debug)]
pub(crate) struct GuestLog {
    file: File,
    lost: u32,
}

impl GuestLog {
    pub(crate) fn new(file: File) -> GuestLog {
        GuestLog { file, lost: 0 }
    }

    pub(crate) fn say(&mut self, sentence: &str) {
        let mut line = format!("{} hpvmapp: ", now());
        if self.lost > 0 {
            line += &format!("({} lines before this one could not be written) ", self.lost);
        }
        line.extend(sentence.chars().map(|c| if c.is_control() { ' ' } else { c }));
        line.push('\n');
        match self.file.write_all(line.as_bytes()) {
            Ok(()) => self.lost = 0,
            Err(_) => self.lost += 1,
        }
        // What cannot be cut now is tried again at the next line.
        let _ = bounded_log::cut(&self.file);
    }
}

/// RFC 3339, in whole seconds of universal time.
pub(crate) fn now() -> String {
    jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Settles 158, 161: nobody rotates it, and no older part is left lying about.
    #[test]
    fn a_log_that_grew_too_long_keeps_whole_lines_of_its_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let file = File::options().read(true).append(true).create(true).open(&path).unwrap();
        let mut log = GuestLog::new(file);
        let filler = "x".repeat(10_000);
        let mut longest = 0;
        for number in 0..250 {
            log.say(&format!("{number} {filler}"));
            longest = longest.max(std::fs::metadata(&path).unwrap().len());
        }
        assert!(longest <= bounded_log::BYTES_MAX, "{longest}");
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.lines().all(|line| line.contains("Z hpvmapp: ")), "a cut line");
        assert!(text.lines().next_back().unwrap().contains(" 249 "));
        assert!(text.lines().count() > 40, "the end is there");
    }

    #[test]
    fn a_sentence_is_one_line_whatever_it_holds() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        GuestLog::new(File::create(&path).unwrap()).say("one\ntwo\u{1b}[31m");
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text.lines().count(), 1);
        assert!(text.ends_with("one two [31m\n"), "{text:?}");
    }
}
