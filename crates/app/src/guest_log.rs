//! The guest monitor log: one line per event, `TIME hpvmapp: sentence`. The keeper appends to it too.
//!
//! Bounded: when it has grown beyond [`LOG_BYTES_MAX`], its last half is kept, from the beginning of a line. A line that
//! another process appends in that very instant may be lost. A full disk loses lines and nothing else.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;

const LOG_BYTES_MAX: u64 = 1 << 20;

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
        if self.file.metadata().is_ok_and(|m| m.len() > LOG_BYTES_MAX) {
            // Without its older half the log is as good as before; if it cannot be cut, the next line tries again.
            let _ = keep_last_half(&mut self.file);
        }
    }
}

/// RFC 3339, in whole seconds of universal time.
pub(crate) fn now() -> String {
    jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

fn keep_last_half(file: &mut File) -> std::io::Result<()> {
    let length = file.metadata()?.len();
    let mut half = vec![0; usize::try_from(LOG_BYTES_MAX / 2).unwrap_or(0)];
    let count = file.read_at(&mut half, length - LOG_BYTES_MAX / 2)?;
    let half = &half[..count];
    let line = half.iter().position(|byte| *byte == b'\n').map_or(0, |end| end + 1);
    file.set_len(0)?;
    file.write_all(&half[line..])
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
        assert!(longest <= LOG_BYTES_MAX, "{longest}");
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
