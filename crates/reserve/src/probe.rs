//! Whether a helper answers at a socket: it speaks first, four bytes to whoever connects (QEMU, docs/tools/qemu-pr-helper.rst and
//! scsi/qemu-pr-helper.c: a feature word, which is 0).

use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// What the helper says first.
pub const FIRST_WORD_BYTES: usize = 4;

/// Connects, and waits for the first word no longer than `bound`. A socket at which nobody listens is an error at once.
pub fn answers(socket: &Path, bound: Duration) -> io::Result<()> {
    let mut helper = UnixStream::connect(socket)?;
    helper.set_read_timeout(Some(bound))?;
    helper.read_exact(&mut [0; FIRST_WORD_BYTES])
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn who_speaks_answers_and_who_is_silent_or_gone_does_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let bound = Duration::from_millis(50);
        assert_eq!(answers(&path, bound).unwrap_err().kind(), io::ErrorKind::NotFound);
        let listener = UnixListener::bind(&path).unwrap();
        assert_eq!(answers(&path, bound).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        let speaker = std::thread::spawn(move || {
            // The silent look before is in the queue still.
            let (_left, _) = listener.accept().unwrap();
            listener.accept().unwrap().0.write_all(&[0; 4]).unwrap();
        });
        answers(&path, Duration::from_secs(20)).unwrap();
        speaker.join().unwrap();
        assert_eq!(answers(&path, bound).unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    }
}
