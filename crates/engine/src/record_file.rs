//! The boot record as a file: read once, then appended to. Called by the worker, which alone writes its journal.
//!
//! A line counts when it and its newline are on the disk. What a power cut or a full disk left of a line is cut off before
//! the next is written, so that the file stays readable from its beginning.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::FileExt;

use hpvm_plan::record::{DeviceChange, Due, JournalLine, Machine, Outcome, RecordError};

#[derive(Debug, thiserror::Error)]
pub enum RecordFileError {
    #[error("the boot record cannot be read")]
    Read(#[source] io::Error),
    #[error(transparent)]
    Content(#[from] RecordError),
    #[error(
        "the boot record cannot be written; make room where the guest's folder lies and try again"
    )]
    Write(#[source] io::Error),
}

/// Notes that a command has taken what was changed at the console, up to this change, into the configuration. Called by that
/// command, beside a worker that may be writing: a line goes to the end in one piece (write(2), `O_APPEND`), or not at all
/// where the line before it was cut off: a record that is to be repaired, or replaced by the next start's, gets no mark.
pub fn mark_taken_over(mut file: &File, through_seq: u64, at: &str) -> io::Result<()> {
    let line = JournalLine::TakenOver { through_seq, at: at.into() }.to_line();
    let length = file.metadata()?.len();
    let mut last = [0];
    file.read_exact_at(&mut last, length.saturating_sub(1))?;
    if last != *b"\n" {
        return Ok(());
    }
    file.write_all(line.as_bytes())?;
    file.sync_data()
}

/// The machine of this boot and the file that says so.
#[derive(Debug)]
pub struct RecordFile {
    file: File,
    machine: Machine,
}

impl RecordFile {
    /// Takes a descriptor open for reading and appending.
    pub fn open(mut file: File) -> Result<RecordFile, RecordFileError> {
        let mut bytes = Vec::new();
        file.rewind().map_err(RecordFileError::Read)?;
        file.read_to_end(&mut bytes).map_err(RecordFileError::Read)?;
        let whole = bytes.iter().rposition(|b| *b == b'\n').map_or(0, |end| end + 1);
        let machine = Machine::read(&String::from_utf8_lossy(&bytes))?;
        if whole < bytes.len() {
            file.set_len(whole as u64).map_err(RecordFileError::Write)?;
        }
        Ok(RecordFile { file, machine })
    }

    #[must_use]
    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    /// Notes a change that will be asked of the engine now. On the disk when this returns; the number names the change.
    pub fn asked(&mut self, at: &str, change: DeviceChange) -> Result<u64, RecordFileError> {
        self.asked_for(Due::Now, at, change)
    }

    /// The same of one that may be made later.
    pub fn asked_for(
        &mut self,
        due: Due,
        at: &str,
        change: DeviceChange,
    ) -> Result<u64, RecordFileError> {
        let seq = self.machine.next_seq;
        self.append(JournalLine::Asked { seq, at: at.into(), change, due })?;
        Ok(seq)
    }

    /// Notes what became of it.
    pub fn settled(&mut self, at: &str, seq: u64, outcome: Outcome) -> Result<(), RecordFileError> {
        self.append(JournalLine::Settled { seq, at: at.into(), outcome })
    }

    fn append(&mut self, line: JournalLine) -> Result<(), RecordFileError> {
        let length = self.file.metadata().map_err(RecordFileError::Write)?.len();
        let written =
            self.file.write_all(line.to_line().as_bytes()).and_then(|()| self.file.sync_data());
        if let Err(error) = written {
            // The caller's error is the one to tell; a part that stays is cut off when the file is opened again.
            let _ = self.file.set_len(length);
            return Err(RecordFileError::Write(error));
        }
        self.machine.replay(line);
        Ok(())
    }
}
