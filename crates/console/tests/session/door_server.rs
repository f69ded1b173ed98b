//! The worker's side for the tests: a thread that drives the real fan-out over real sockets.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use hpvm_console::door::{ClientFrame, Decoder, Drive, DriveAddress, Ended, Frame};
use hpvm_console::fanout::{Fanout, Next, Peer, Rights, SessionId, Verb, VerbAsked};
use hpvm_console::history::History;

use crate::rig::{GUEST, tick};

pub(crate) struct DoorServer {
    shared: Arc<Shared>,
    path: PathBuf,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    fanout: Mutex<Fanout>,
    typed: Mutex<Vec<u8>>,
    rights: Mutex<Rights>,
    stop: AtomicBool,
}

impl DoorServer {
    /// A worker whose guest has printed `before` so far.
    pub(crate) fn start(path: &Path, before: &[u8]) -> DoorServer {
        let mut history = History::new(4096);
        history.push(before);
        let shared = Arc::new(Shared {
            fanout: Mutex::new(Fanout::new(GUEST, "On (OS)", history)),
            typed: Mutex::default(),
            rights: Mutex::new(Rights::Operate),
            stop: AtomicBool::new(false),
        });
        let listener = UnixListener::bind(path).expect("door");
        listener.set_nonblocking(true).expect("door");
        let serves = Arc::clone(&shared);
        let thread = std::thread::spawn(move || serve(&serves, &listener));
        DoorServer { shared, path: path.into(), thread: Some(thread) }
    }

    pub(crate) fn prints(&self, output: &[u8]) {
        self.shared.fanout.lock().expect("fanout").guest_output(output);
    }

    pub(crate) fn ends(&self, how: Ended) {
        self.shared.fanout.lock().expect("fanout").guest_ended(how);
    }

    /// What later sessions may do.
    pub(crate) fn admits_with(&self, rights: Rights) {
        *self.shared.rights.lock().expect("rights") = rights;
    }

    /// What the guest got from its keyboard so far.
    pub(crate) fn typed(&self) -> Vec<u8> {
        self.shared.typed.lock().expect("typed").clone()
    }

    pub(crate) fn sessions(&self) -> usize {
        self.shared.fanout.lock().expect("fanout").audience().0
    }
}

/// As when the worker is killed: all streams break without a word.
impl Drop for DoorServer {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the door server did not panic");
        }
        let _ = std::fs::remove_file(&self.path);
    }
}

struct Client {
    stream: UnixStream,
    decoder: Decoder,
    unsent: Vec<u8>,
}

fn serve(shared: &Shared, listener: &UnixListener) {
    let mut clients: BTreeMap<SessionId, Client> = BTreeMap::new();
    while !shared.stop.load(Ordering::Relaxed) {
        if let Ok((stream, _)) = listener.accept() {
            stream.set_nonblocking(true).expect("stream");
            let rights = *shared.rights.lock().expect("rights");
            let number = clients.len() + 1;
            let peer = Peer { user: format!("user{number}"), rights };
            let session = shared.fanout.lock().expect("fanout").admit(peer).expect("room");
            clients.insert(
                session,
                Client { stream, decoder: Decoder::default(), unsent: Vec::new() },
            );
        }
        let mut fanout = shared.fanout.lock().expect("fanout");
        clients.retain(|session, client| client.is_served(&mut fanout, *session));
        let typed = fanout.guest_input().to_vec();
        fanout.guest_took(typed.len());
        shared.typed.lock().expect("typed").extend(typed);
        drop(fanout);
        tick();
    }
}

impl Client {
    fn is_served(&mut self, fanout: &mut Fanout, session: SessionId) -> bool {
        let stays = self.reads(fanout, session) && self.writes(fanout, session);
        if !stays {
            fanout.leave(session);
        }
        stays
    }

    fn reads(&mut self, fanout: &mut Fanout, session: SessionId) -> bool {
        let mut part = [0; 4096];
        match self.stream.read(&mut part) {
            Ok(0) => return false,
            Ok(length) => self.decoder.push(&part[..length]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(_) => return false,
        }
        loop {
            match self.decoder.take::<ClientFrame>() {
                Ok(Some(frame)) => {
                    if let Some(asked) = fanout.receive(session, frame) {
                        perform(fanout, asked);
                    }
                }
                Ok(None) => return true,
                Err(error) => {
                    fanout.fault(session, &error.to_string());
                    return true;
                }
            }
        }
    }

    fn writes(&mut self, fanout: &mut Fanout, session: SessionId) -> bool {
        loop {
            match self.stream.write(&self.unsent) {
                Ok(sent) => drop(self.unsent.drain(..sent)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return true,
                Err(_) => return false,
            }
            if !self.unsent.is_empty() {
                continue;
            }
            match fanout.next(session) {
                Next::Send(frame) => frame.encode(&mut self.unsent),
                Next::Wait => return true,
                Next::Close => return false,
            }
        }
    }
}

/// A guest with a full and an empty drive, and a second image for either.
fn perform(fanout: &mut Fanout, asked: VerbAsked) {
    let drive = |target, medium: Option<&str>| Drive {
        address: DriveAddress { bus: 0, device: 4, target },
        medium: medium.map(str::to_owned),
        folder: Some("/isos".into()),
        trouble: None,
        images: vec!["first.iso".into(), "second disc.iso".into()],
    };
    match asked.verb {
        Verb::Drives => {
            let drives = vec![drive(0, Some("/isos/first.iso")), drive(1, None)];
            fanout.drives_known(asked.session, drives);
        }
        Verb::Medium(request) => {
            let image = request.image.as_deref();
            fanout.verb_done(
                asked.session,
                match image {
                    Some("none.iso") => {
                        Err("there is no 'none.iso' in the folder of images".into())
                    }
                    _ => Ok("done".into()),
                },
            );
        }
    }
}
