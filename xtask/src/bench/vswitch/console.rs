//! The shell of the small guest, over a console of hpvm's or of a QEMU of our own.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use hpvm_console::attachment::Attachment;
use hpvm_console::door::{ClientFrame, ServerFrame, Want};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

const READY: &str = "HPVM GUEST READY";
/// Printed after a command; the console shows it in two parts while it is typed.
const DONE: &str = "GUEST DID IT";
/// Twenty times what the guest needs on a quiet machine: others may be using it too.
const BOOT: Duration = Duration::from_secs(240);
const COMMAND: Duration = Duration::from_secs(60);
/// All that a guest prints until its shell is there.
const HISTORY_BYTES: u32 = 64 * 1024;

pub(super) struct Console {
    line: Line,
    /// Heard and not used yet.
    heard: String,
}

/// How bytes come and go.
enum Line {
    /// As they are.
    Bare(UnixStream),
    /// In frames of hpvm's console.
    Door(Attachment),
}

impl Console {
    pub(super) fn of_bare(stream: UnixStream) -> Console {
        Console { line: Line::Bare(stream), heard: String::new() }
    }

    pub(super) fn at_the_door(stream: UnixStream) -> Result<Console> {
        let door = Attachment::new(stream, Want::Write, HISTORY_BYTES)?;
        Ok(Console { line: Line::Door(door), heard: String::new() })
    }

    pub(super) fn wait_for_shell(&mut self) -> Result<()> {
        self.hear(READY, BOOT)?;
        self.run("stty -echo").map(drop)
    }

    /// Runs a line in the guest's shell; gives what it printed.
    pub(super) fn run(&mut self, line: &str) -> Result<String> {
        let (begin, end) = DONE.split_at(4);
        self.say(&format!("{line}; echo \"{begin}\"\"{end}\"\n"))?;
        self.hear(DONE, COMMAND).with_context(|| format!("running `{line}`"))
    }

    fn say(&mut self, text: &str) -> Result<()> {
        match &mut self.line {
            Line::Bare(stream) => stream.write_all(text.as_bytes())?,
            Line::Door(door) => {
                door.say(&ClientFrame::Input(text.as_bytes().to_vec()));
                door.send();
            }
        }
        Ok(())
    }

    /// Everything until `words`, which are taken too.
    fn hear(&mut self, words: &str, bound: Duration) -> Result<String> {
        let deadline = Instant::now() + bound;
        loop {
            if let Some(at) = self.heard.find(words) {
                let rest = self.heard.split_off(at + words.len());
                let mut before = std::mem::replace(&mut self.heard, rest);
                before.truncate(at);
                return Ok(before);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            ensure!(!left.is_zero(), "the guest does not say '{words}', but: {}", self.heard);
            self.listen(left)?;
        }
    }

    fn listen(&mut self, bound: Duration) -> Result<()> {
        let bound = Timespec::try_from(bound)?;
        let mut bytes = [0; 65536];
        match &mut self.line {
            Line::Bare(stream) => {
                if poll(&mut [PollFd::new(stream, PollFlags::IN)], Some(&bound))? == 0 {
                    return Ok(());
                }
                match stream.read(&mut bytes)? {
                    0 => bail!("QEMU ended; its console said: {}", self.heard),
                    count => self.heard.push_str(&String::from_utf8_lossy(&bytes[..count])),
                }
            }
            Line::Door(door) => {
                door.send();
                poll(&mut [PollFd::new(door, PollFlags::IN)], Some(&bound))?;
                door.receive();
                ensure!(!door.is_closed(), "the console closed; it said: {}", self.heard);
                while let Some(frame) = door.take()? {
                    if let ServerFrame::History(bytes) | ServerFrame::Live(bytes) = frame {
                        self.heard.push_str(&String::from_utf8_lossy(&bytes));
                    }
                }
            }
        }
        Ok(())
    }
}
