//! The asking side of a control socket: one JSON value a line each way, descriptors on the line that names them
//! (SCM_RIGHTS), each wait within a bound of the caller's.
//!
//! The clients of hpvmapp, hpvmnetd and hpvmnat are made of this. What the values mean, and how a failure is put to an
//! administrator, is theirs.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::fdpass;

/// No request or reply is longer.
pub const LINE_BYTES_MAX: usize = 1 << 20;

/// Why nothing was heard.
#[derive(Debug, thiserror::Error)]
pub enum Unheard {
    #[error("no answer came in time")]
    Late,
    #[error("the connection ended in the middle of an answer")]
    Closed,
    #[error("the answer is not understood")]
    Malformed(#[source] serde_json::Error),
}

/// A connection to a control socket. It lasts until it is dropped, as do some requests.
#[derive(Debug)]
pub struct Connection {
    lines: BufReader<UnixStream>,
}

impl Connection {
    pub fn open(socket: &Path) -> io::Result<Connection> {
        Ok(Connection { lines: BufReader::new(UnixStream::connect(socket)?) })
    }

    /// Sends a value. Where descriptors are more than one message carries, a byte of the line goes with each portion of them.
    pub fn say(
        &self,
        value: &impl Serialize,
        descriptors: &[BorrowedFd<'_>],
        bound: Duration,
    ) -> io::Result<()> {
        let mut stream = self.lines.get_ref();
        stream.set_write_timeout(Some(bound))?;
        let mut line = serde_json::to_vec(value)?;
        line.push(b'\n');
        let mut rest = &line[..];
        let mut portions = descriptors.chunks(fdpass::DESCRIPTORS_MAX);
        while let Some(portion) = portions.next() {
            let bytes = if portions.len() == 0 { rest } else { &rest[..rest.len().min(1)] };
            let sent = fdpass::send(stream, bytes, portion)?;
            rest = &rest[sent..];
        }
        stream.write_all(rest)
    }

    /// Ends our half: nothing more will be asked.
    pub fn say_no_more(&self) -> io::Result<()> {
        self.lines.get_ref().shutdown(Shutdown::Write)
    }

    /// Waits for a value, or the end; `false`: neither came within the bound, or a signal did.
    pub fn has_more(&self, bound: Duration) -> io::Result<bool> {
        if !self.lines.buffer().is_empty() {
            return Ok(true);
        }
        let timeout = Timespec::try_from(bound).unwrap_or_default();
        match poll(&mut [PollFd::new(self.lines.get_ref(), PollFlags::IN)], Some(&timeout)) {
            Ok(count) => Ok(count > 0),
            Err(Errno::INTR) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// The next value.
    pub fn hear<T: DeserializeOwned>(&mut self, bound: Duration) -> Result<T, Unheard> {
        self.lines.get_ref().set_read_timeout(Some(bound)).map_err(|_| Unheard::Closed)?;
        let mut line = Vec::new();
        match (&mut self.lines).take(LINE_BYTES_MAX as u64).read_until(b'\n', &mut line) {
            Ok(_) if line.last() == Some(&b'\n') => {
                serde_json::from_slice(&line).map_err(Unheard::Malformed)
            }
            Err(error)
                if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) =>
            {
                Err(Unheard::Late)
            }
            Ok(_) | Err(_) => Err(Unheard::Closed),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::thread;

    use super::*;

    const BOUND: Duration = Duration::from_secs(10);

    /// What a client hears of a server that says this and goes.
    fn heard(said: &'static [u8]) -> Result<Vec<u32>, Unheard> {
        let (client, mut server) = UnixStream::pair().unwrap();
        let saying = thread::spawn(move || server.write_all(said));
        let mut connection = Connection { lines: BufReader::new(client) };
        let value = connection.hear(BOUND);
        // Whoever did not listen to the end must not hold the writer.
        drop(connection);
        let _ = saying.join().unwrap();
        value
    }

    #[test]
    fn a_line_is_a_value_and_nothing_less_is() {
        assert_eq!(heard(b"[1, 2]\n").unwrap(), [1, 2]);
        assert!(matches!(heard(b"[1, 2]"), Err(Unheard::Closed)));
        assert!(matches!(heard(b""), Err(Unheard::Closed)));
        assert!(matches!(heard(b"[1, x]\n"), Err(Unheard::Malformed(_))));
        let endless: &'static [u8] = Vec::leak(vec![b' '; LINE_BYTES_MAX + 1]);
        assert!(matches!(heard(endless), Err(Unheard::Closed)));
    }

    #[test]
    fn values_that_came_together_are_heard_one_by_one() {
        let (client, mut server) = UnixStream::pair().unwrap();
        let mut connection = Connection { lines: BufReader::new(client) };
        assert!(!connection.has_more(Duration::ZERO).unwrap());
        assert!(matches!(connection.hear::<u32>(Duration::from_millis(1)), Err(Unheard::Late)));
        server.write_all(b"1\n2\n").unwrap();
        assert_eq!(connection.hear::<u32>(BOUND).unwrap(), 1);
        assert!(connection.has_more(Duration::ZERO).unwrap());
        assert_eq!(connection.hear::<u32>(BOUND).unwrap(), 2);
        assert!(!connection.has_more(Duration::ZERO).unwrap());
    }

    #[test]
    fn descriptors_come_however_many_they_are() {
        let (client, server) = UnixStream::pair().unwrap();
        let connection = Connection { lines: BufReader::new(client) };
        let many = vec![connection.lines.get_ref().as_fd(); 2 * fdpass::DESCRIPTORS_MAX + 1];
        for count in [0, 1, fdpass::DESCRIPTORS_MAX, fdpass::DESCRIPTORS_MAX + 1, many.len()] {
            connection.say(&"value", &many[..count], BOUND).unwrap();
            let (mut line, mut came) = (Vec::new(), 0);
            while !line.ends_with(b"\n") {
                let mut part = [0; 64];
                let (length, descriptors) = fdpass::receive(&server, &mut part).unwrap();
                line.extend_from_slice(&part[..length]);
                came += descriptors.len();
            }
            assert_eq!((line.as_slice(), came), (&b"\"value\"\n"[..], count));
        }
    }

    #[test]
    fn who_says_no_more_still_hears() {
        let (client, mut server) = UnixStream::pair().unwrap();
        let mut connection = Connection { lines: BufReader::new(client) };
        connection.say(&7, &[], BOUND).unwrap();
        connection.say_no_more().unwrap();
        let mut asked = String::new();
        server.read_to_string(&mut asked).unwrap();
        assert_eq!(asked, "7\n");
        server.write_all(b"8\n").unwrap();
        assert_eq!(connection.hear::<u32>(BOUND).unwrap(), 8);
    }
}
