//! Both clients against a peer that follows a script: late answers, silence, garbage, hang-ups, descriptors, floods.

use std::fs::File;
use std::io::{BufRead, BufReader, IoSliceMut, Read, Seek, SeekFrom, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use hpvm_qmp::client::{Client, Events, Notice};
use hpvm_qmp::command::{AddFd, QueryStatus, QueryVersion, Quit, Stop};
use hpvm_qmp::{Class, Error, RunState, blocking};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketAddrUnix,
    SocketFlags, SocketType, bind, connect, listen, recvmsg, socket_with,
};

const GREETING: &str = r#"{"QMP": {"version": {"qemu": {"micro": 2, "minor": 0, "major": 10}, "package": ""}, "capabilities": []}}"#;
const SHORT: Duration = Duration::from_millis(40);
const LONG: Duration = Duration::from_secs(10);

/// The other end, speaking from a thread of its own.
struct Peer {
    stream: UnixStream,
    lines: BufReader<UnixStream>,
}

impl Peer {
    fn greet(&mut self) {
        self.say(GREETING);
        let id = self.hear("qmp_capabilities");
        self.say(&format!(r#"{{"return": {{}}, "id": {id}}}"#));
    }

    fn say(&mut self, line: &str) {
        self.stream.write_all(format!("{line}\r\n").as_bytes()).expect("the client reads");
    }

    /// The id of the next command, which must be this one.
    fn hear(&mut self, command: &str) -> u64 {
        let mut line = String::new();
        self.lines.read_line(&mut line).expect("the client writes");
        let heard: serde_json::Value = serde_json::from_str(&line).expect("JSON");
        assert_eq!(heard["execute"], command);
        heard["id"].as_u64().expect("an id")
    }

    /// Reads until the client is gone.
    fn wait_for_end(&mut self) {
        let mut rest = Vec::new();
        let _ = self.lines.read_to_end(&mut rest);
    }
}

/// Starts a peer that follows the script; joined by the test, so that its assertions count.
fn peer(script: impl FnOnce(&mut Peer) + Send + 'static) -> (UnixStream, JoinHandle<()>) {
    let (ours, theirs) = UnixStream::pair().expect("a pair");
    theirs.set_read_timeout(Some(LONG)).expect("a bound");
    let lines = BufReader::new(theirs.try_clone().expect("a second descriptor"));
    let handle = std::thread::spawn(move || script(&mut Peer { stream: theirs, lines }));
    (ours, handle)
}

async fn client(stream: UnixStream) -> Result<(Client, Events), Error> {
    stream.set_nonblocking(true).expect("nonblocking");
    Client::from_stream(tokio::net::UnixStream::from_std(stream).expect("a socket")).await
}

fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("runtime")
        .block_on(future)
}

/// Answers the first query too late, then stands in with the second answer and an event between.
fn late_script(peer: &mut Peer) {
    peer.greet();
    let first = peer.hear("query-status");
    let second = peer.hear("query-status");
    peer.say(&format!(r#"{{"return": {{"status": "paused", "running": false}}, "id": {first}}}"#));
    peer.say(r#"{"event": "STOP", "timestamp": {"seconds": 1, "microseconds": 0}}"#);
    peer.say(&format!(r#"{{"return": {{"status": "running", "running": true}}, "id": {second}}}"#));
    peer.wait_for_end();
}

#[test]
fn blocking_a_late_answer_is_never_taken_for_the_next() {
    let (stream, script) = peer(late_script);
    let mut client = blocking::Client::from_stream(stream).expect("greeted");
    let late = client.execute_within(&QueryStatus {}, SHORT);
    assert!(matches!(late, Err(Error::Deadline { command: "query-status", after: SHORT })));
    assert_eq!(client.execute(&QueryStatus {}).expect("answered").status, RunState::Running);
    let event = client.next_event(LONG).expect("connected").expect("kept");
    assert_eq!(event.name, "STOP");
    assert_eq!(client.next_event(SHORT).expect("connected"), None);
    drop(client);
    script.join().expect("script");
}

#[test]
fn tokio_a_late_answer_is_never_taken_for_the_next() {
    let (stream, script) = peer(late_script);
    run(async {
        let (client, mut events) = client(stream).await.expect("greeted");
        let late = client.execute_within(&QueryStatus {}, SHORT).await;
        assert!(matches!(late, Err(Error::Deadline { command: "query-status", after: SHORT })));
        let status = client.execute(&QueryStatus {}).await.expect("answered");
        assert_eq!(status.status, RunState::Running);
        assert!(matches!(events.next().await, Some(Notice::Event(e)) if e.name == "STOP"));
    });
    script.join().expect("script");
}

#[test]
fn tokio_nothing_goes_behind_the_last_command() {
    let (stream, script) = peer(|peer| {
        peer.greet();
        let status = peer.hear("query-status");
        let quit = peer.hear("quit");
        peer.say(&format!(r#"{{"return": {{}}, "id": {quit}}}"#));
        peer.say(&format!(
            r#"{{"return": {{"status": "running", "running": true}}, "id": {status}}}"#
        ));
        let mut rest = String::new();
        let _ = peer.lines.read_to_string(&mut rest);
        assert_eq!(rest, "", "somebody asked on");
    });
    run(async {
        let (client, _events) = client(stream).await.expect("greeted");
        let other = client.clone();
        let before = other.send(&QueryStatus {}).await.expect("sent");
        client.execute_last(&Quit {}).await.expect("answered");
        assert_eq!(before.answer().await.expect("answered").status, RunState::Running);
        assert!(matches!(other.execute(&QueryVersion {}).await, Err(Error::Closed)));
        assert!(matches!(client.execute(&QueryVersion {}).await, Err(Error::Closed)));
    });
    script.join().expect("script");
}

#[test]
fn tokio_answers_may_come_in_any_order() {
    let (stream, script) = peer(|peer| {
        peer.greet();
        let status = peer.hear("query-status");
        let version = peer.hear("query-version");
        peer.say(&format!(
            r#"{{"return": {{"qemu": {{"major": 10, "minor": 0, "micro": 2}}, "package": ""}}, "id": {version}}}"#
        ));
        peer.say(&format!(
            r#"{{"id": {status}, "error": {{"class": "GenericError", "desc": "not now"}}}}"#
        ));
        peer.wait_for_end();
    });
    run(async {
        let (client, _events) = client(stream).await.expect("greeted");
        let (status, version) =
            tokio::join!(client.execute(&QueryStatus {}), client.execute(&QueryVersion {}));
        let error = status.expect_err("refused");
        assert_eq!(error.refusal().map(|r| &r.class), Some(&Class::Generic));
        assert_eq!(error.to_string(), "QEMU refused query-status: not now");
        assert_eq!(version.expect("answered").qemu.to_string(), "10.0.2");
    });
    script.join().expect("script");
}

#[test]
fn a_monitor_that_is_held_by_another_gives_no_greeting() {
    let (stream, script) = peer(Peer::wait_for_end);
    let began = Instant::now();
    let outcome = blocking::Client::from_stream(stream);
    assert!(matches!(outcome, Err(Error::NoGreeting { .. })));
    assert!(began.elapsed() >= hpvm_qmp::deadline::CONNECT);
    script.join().expect("script");
}

/// A QEMU stopped by SIGSTOP with a full queue of connections: the kernel would hold us until somebody accepts.
#[test]
fn a_monitor_whose_queue_is_full_is_given_up() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("qmp");
    let socket = || {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).expect("a socket")
    };
    let address = SocketAddrUnix::new(&path).expect("a short path");
    let listener = socket();
    bind(&listener, &address).expect("bound");
    listen(&listener, 0).expect("listening");
    let mut waiting = Vec::new();
    loop {
        let client = socket();
        match connect(&client, &address) {
            Ok(()) => waiting.push(client),
            Err(Errno::AGAIN) => break,
            Err(error) => panic!("{error}"),
        }
    }
    let began = Instant::now();
    let outcome = blocking::Client::connect(&path);
    assert!(matches!(outcome, Err(Error::Connect { .. })), "{outcome:?}");
    assert!(began.elapsed() < hpvm_qmp::deadline::CONNECT * 2);
}

#[test]
fn a_hang_up_ends_waiting_commands_and_all_later_ones() {
    fn script(peer: &mut Peer) {
        peer.greet();
        peer.hear("stop");
        // Both descriptors of the peer go with the thread.
    }
    let (stream, handle) = peer(script);
    let mut blocking = blocking::Client::from_stream(stream).expect("greeted");
    assert!(matches!(blocking.execute(&Stop {}), Err(Error::Closed)));
    assert!(matches!(blocking.execute(&Stop {}), Err(Error::Closed)));
    handle.join().expect("script");

    let (stream, handle) = peer(script);
    run(async {
        let (client, mut events) = client(stream).await.expect("greeted");
        assert!(matches!(client.execute(&Stop {}).await, Err(Error::Closed)));
        assert!(matches!(client.execute(&Stop {}).await, Err(Error::Closed)));
        assert_eq!(events.next().await, None);
    });
    handle.join().expect("script");
}

#[test]
fn garbage_ends_the_connection_with_its_first_words() {
    fn script(peer: &mut Peer) {
        peer.greet();
        peer.hear("stop");
        peer.say("(qemu) hello");
        peer.wait_for_end();
    }
    let told = |error: Error| {
        assert!(error.ends_connection());
        assert!(error.to_string().contains("(qemu) hello"), "{error}");
    };
    let (stream, handle) = peer(script);
    let mut blocking = blocking::Client::from_stream(stream).expect("greeted");
    told(blocking.execute(&Stop {}).expect_err("garbage"));
    drop(blocking);
    handle.join().expect("script");

    let (stream, handle) = peer(script);
    run(async {
        let (client, _events) = client(stream).await.expect("greeted");
        told(client.execute(&Stop {}).await.expect_err("garbage"));
        told(client.execute(&Stop {}).await.expect_err("still"));
    });
    handle.join().expect("script");
}

/// Takes one command with its descriptor and reads the file behind it.
fn take_descriptor(peer: &mut Peer) {
    peer.greet();
    let mut bytes = [0; 4096];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(
        peer.stream.as_fd(),
        &mut [IoSliceMut::new(&mut bytes)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    )
    .expect("a command");
    let fds: Vec<OwnedFd> = control
        .drain()
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(fds) => Some(fds),
            _ => None,
        })
        .flatten()
        .collect();
    let [fd] = <[OwnedFd; 1]>::try_from(fds).expect("one descriptor");
    let mut text = String::new();
    let mut file = File::from(fd);
    file.seek(SeekFrom::Start(0)).expect("a file");
    file.read_to_string(&mut text).expect("text");
    assert_eq!(text, "passed");
    let heard: serde_json::Value = serde_json::from_slice(&bytes[..received.bytes]).expect("whole");
    assert_eq!(heard["arguments"]["fdset-id"], 7);
    let id = &heard["id"];
    peer.say(&format!(r#"{{"return": {{"fd": 18, "fdset-id": 7}}, "id": {id}}}"#));
    peer.wait_for_end();
}

#[test]
fn a_descriptor_rides_on_its_command() {
    let file = || {
        let mut file = tempfile::tempfile().expect("a file");
        file.write_all(b"passed").expect("written");
        file
    };
    let command = AddFd { fdset_id: Some(7), opaque: None };

    let (stream, handle) = peer(take_descriptor);
    let mut blocking = blocking::Client::from_stream(stream).expect("greeted");
    assert_eq!(blocking.pass(&command, file().as_fd()).expect("taken").fd, 18);
    drop(blocking);
    handle.join().expect("script");

    let (stream, handle) = peer(take_descriptor);
    run(async {
        let (client, _events) = client(stream).await.expect("greeted");
        assert_eq!(client.pass(&command, file().into()).await.expect("taken").fd, 18);
    });
    handle.join().expect("script");
}

#[test]
fn a_flood_of_events_delays_no_answer_and_says_what_was_lost() {
    const FLOOD: u64 = 2_000;
    let (stream, script) = peer(|peer| {
        peer.greet();
        let id = peer.hear("stop");
        for _ in 0..FLOOD {
            peer.say(r#"{"event": "RTC_CHANGE", "data": {"offset": 1}}"#);
        }
        peer.say(&format!(r#"{{"return": {{}}, "id": {id}}}"#));
        peer.wait_for_end();
    });
    run(async {
        let (client, mut events) = client(stream).await.expect("greeted");
        client.execute(&Stop {}).await.expect("answered though nobody reads events");
        drop(client);
        let (mut kept, mut lost) = (0, 0);
        while let Some(notice) = events.next().await {
            match notice {
                Notice::Event(_) => kept += 1,
                Notice::Lost(count) => lost += count,
            }
        }
        assert_eq!(kept + lost, FLOOD);
        assert!(lost > 0 && kept > 0, "{kept} kept, {lost} lost");
    });
    script.join().expect("script");
}

/// A QEMU stopped by SIGSTOP: the socket fills up, each command ends at its deadline, and the client does not grow.
#[test]
fn commands_to_a_peer_that_reads_nothing_end_at_their_deadline() {
    let (stream, script) = peer(|peer| {
        peer.greet();
        // Reads again only when all commands were given up.
        std::thread::park_timeout(LONG);
        let mut first = String::new();
        peer.lines.read_line(&mut first).expect("what was sent is still there");
        peer.wait_for_end();
    });
    run(async {
        let (client, _events) = client(stream).await.expect("greeted");
        let bound = Duration::from_millis(1);
        for _ in 0..1_000 {
            let outcome = client.execute_within(&QueryStatus {}, bound).await;
            assert!(matches!(outcome, Err(Error::Deadline { .. })), "{outcome:?}");
        }
    });
    script.thread().unpark();
    script.join().expect("script");
}
