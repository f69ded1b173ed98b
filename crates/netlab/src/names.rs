//! A name server for programs that ask the VM Host's own.

use std::fs;
use std::net::UdpSocket;
use std::os::unix::fs::PermissionsExt;
use std::thread;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use crate::{FAR, ip};

/// Gives a test that runs [`crate::apart`], and whatever it starts from now on, the address [`FAR`] on loopback, and a name
/// server that knows every name as an address of it.
///
/// # Panics
///
/// When it is not root.
pub fn answer_names() {
    unshare(CloneFlags::CLONE_NEWNS).expect("mounts of its own, which root may have");
    use_loopback();
    serve();
    ip(&format!("address add {FAR}/32 dev lo"));
}

/// Has the host's name server be 127.0.0.1, in this mount namespace.
pub(crate) fn use_loopback() {
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).expect("mounts of our own");
    let resolver = tempfile::NamedTempFile::new().expect("a file");
    fs::write(resolver.path(), "nameserver 127.0.0.1\n").expect("written");
    fs::set_permissions(resolver.path(), PermissionsExt::from_mode(0o644)).expect("readable");
    let place = fs::canonicalize("/etc/resolv.conf").expect("a list of name servers");
    mount(Some(resolver.path()), &place, none, MsFlags::MS_BIND, none).expect("a list of our own");
}

/// Answers for names in this network namespace, until the test program ends: every name is at [`FAR`].
///
/// # Panics
///
/// When another name server is there.
pub fn serve() {
    let server = UdpSocket::bind("127.0.0.1:53").expect("a name server's port");
    thread::spawn(move || {
        let mut question = [0; 512];
        while let Ok((length, from)) = server.recv_from(&mut question) {
            if let Some(answer) = answer(&question[..length]) {
                // Whoever asked may be gone.
                let _ = server.send_to(&answer, from);
            }
        }
    });
}

/// The question again, as an answer of one record that points back to the name (RFC 1035, section 4.1). Who asks for another
/// kind of address is told that there is none.
fn answer(question: &[u8]) -> Option<Vec<u8>> {
    const ADDRESS: [u8; 4] = [0, 1, 0, 1];
    // No head, no question.
    let body = question.get(12..)?;
    let end = body.iter().position(|length| *length == 0)? + 1;
    let kind = body.get(end..end + 4)?;
    let mut answer = question[..12 + end + 4].to_vec();
    let records = u8::from(kind == ADDRESS);
    answer[2..4].copy_from_slice(&[0x81, 0x80]);
    answer[6..12].copy_from_slice(&[0, records, 0, 0, 0, 0]);
    if records == 1 {
        answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
        answer.extend(FAR.octets());
    }
    Some(answer)
}
