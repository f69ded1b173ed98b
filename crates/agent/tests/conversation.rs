//! Conversations with agents of every sort: good ones, slow ones, and ones that lie.

use std::cell::RefCell;
use std::future::Future;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, Instant};

use hpvm_agent::command::{Info, Ping};
use hpvm_agent::disk::Release;
use hpvm_agent::freeze::Held;
use hpvm_agent::{Channel, Error, deadline};
use proptest::prelude::*;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::{LocalSet, spawn_local};

/// How an agent takes one line; `None` says nothing.
type Manner = Box<dyn FnMut(&Value) -> Option<Vec<u8>>>;

/// An agent at a socket, and the commands it has heard.
struct Agent {
    folder: tempfile::TempDir,
    heard: Rc<RefCell<Vec<String>>>,
}

impl Agent {
    fn with(manner: Manner) -> Agent {
        let agent = Agent { folder: tempfile::tempdir().unwrap(), heard: Rc::default() };
        let listener = UnixListener::bind(agent.path()).unwrap();
        let (heard, mut manner) = (Rc::clone(&agent.heard), manner);
        spawn_local(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                serve(stream, &heard, &mut manner).await;
            }
        });
        agent
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("agent")
    }

    fn channel(&self) -> Channel {
        Channel::new(&self.path())
    }

    /// What it heard besides syncs.
    fn heard(&self) -> Vec<String> {
        let heard = self.heard.borrow();
        heard.iter().filter(|command| *command != "guest-sync-delimited").cloned().collect()
    }
}

async fn serve(mut stream: UnixStream, heard: &RefCell<Vec<String>>, manner: &mut Manner) {
    let mut bytes = Vec::new();
    let mut part = [0; 4096];
    loop {
        match stream.read(&mut part).await {
            Ok(count) if count > 0 => bytes.extend_from_slice(&part[..count]),
            _ => return,
        }
        while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = bytes.drain(..=end).collect();
            let begin = line.iter().rposition(|byte| *byte == 0xff).map_or(0, |at| at + 1);
            let message: Value = serde_json::from_slice(&line[begin..]).expect("a command");
            heard.borrow_mut().push(name(&message).to_owned());
            if let Some(answer) = manner(&message)
                && stream.write_all(&answer).await.is_err()
            {
                return;
            }
        }
    }
}

fn name(message: &Value) -> &str {
    message["execute"].as_str().expect("a command")
}

fn says(value: &Value) -> Option<Vec<u8>> {
    Some(format!("{}\n", json!({ "return": value })).into_bytes())
}

/// An agent that answers syncs, and all else as `others` says.
fn polite(mut others: impl FnMut(&str) -> Option<Vec<u8>> + 'static) -> Manner {
    Box::new(move |message| match name(message) {
        "guest-sync-delimited" => {
            let mut line = says(&message["arguments"]["id"])?;
            line.insert(0, 0xff);
            Some(line)
        }
        other => others(other),
    })
}

/// Both ends on one thread.
fn run<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, test)
}

#[test]
fn a_good_agent_is_understood() {
    run(async {
        let agent = Agent::with(polite(|command| match command {
            "guest-ping" => says(&json!({})),
            _ => says(&json!({ "version": "7.2", "supported_commands": [
                { "name": "guest-exec", "enabled": false, "success-response": true }] })),
        }));
        let mut channel = agent.channel();
        let mut conversation = channel.converse().await.unwrap();
        conversation.execute(&Ping {}).await.unwrap();
        let abilities = conversation.execute(&Info {}).await.unwrap();
        assert_eq!(abilities.version, "7.2");
        assert!(!abilities.supported_commands[0].enabled);
        assert_eq!(agent.heard(), ["guest-ping", "guest-info"]);
    });
}

#[test]
fn a_silent_agent_costs_its_deadline() {
    run(async {
        let agent = Agent::with(Box::new(|_| None));
        let began = Instant::now();
        let error = agent.channel().converse().await.expect_err("silent");
        assert!(matches!(error, Error::Deadline { .. }), "{error}");
        let took = began.elapsed();
        assert!(took >= deadline::DEFAULT && took < deadline::DEFAULT * 2, "{took:?}");
    });
}

/// The answer to a command that came too late is not taken for the answer to the next one.
#[test]
fn a_late_answer_is_nobodys() {
    run(async {
        let mut pings = 0;
        let mut owed: Vec<u8> = Vec::new();
        let agent = Agent::with(Box::new(move |message| match name(message) {
            "guest-ping" => {
                pings += 1;
                owed.extend(says(&json!({ "late": pings })).unwrap());
                None
            }
            "guest-fsfreeze-status" => says(&json!("frozen")),
            _ => {
                let mut line = std::mem::take(&mut owed);
                line.push(0xff);
                line.extend(says(&message["arguments"]["id"]).unwrap());
                Some(line)
            }
        }));
        let mut channel = agent.channel();
        let mut conversation = channel.converse().await.unwrap();
        for _ in 0..3 {
            let bound = Duration::from_millis(20);
            let error = conversation.execute_within(&Ping {}, bound).await.expect_err("late");
            assert!(matches!(error, Error::Deadline { .. }), "{error}");
        }
        let status = conversation.execute(&hpvm_agent::command::FreezeStatus {}).await.unwrap();
        assert_eq!(status, hpvm_agent::command::Freeze::Frozen);
    });
}

/// QEMU closes the connection when its port goes; the next conversation makes a new one.
#[test]
fn a_connection_that_broke_is_made_anew() {
    run(async {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("agent");
        let mut channel = Channel::new(&path);
        assert!(matches!(channel.converse().await, Err(Error::Connect(_))), "nobody is there yet");
        let listener = UnixListener::bind(&path).unwrap();
        spawn_local(async move {
            drop(listener.accept().await.unwrap());
            let (stream, _) = listener.accept().await.unwrap();
            serve(stream, &RefCell::default(), &mut polite(|_| says(&json!({})))).await;
        });
        assert!(matches!(channel.converse().await, Err(Error::Closed)));
        channel.converse().await.unwrap().execute(&Ping {}).await.unwrap();
    });
}

#[test]
fn a_guest_that_talks_without_end_is_left() {
    run(async {
        let agent = Agent::with(Box::new(|_| Some(b"{\"return\": {}}\n".repeat(200_000))));
        let began = Instant::now();
        let error = agent.channel().converse().await.expect_err("no sync");
        assert!(matches!(error, Error::Nonsense), "{error}");
        assert!(began.elapsed() < deadline::DEFAULT, "{:?}", began.elapsed());
    });
}

#[test]
fn words_of_a_refusal_are_harmless() {
    run(async {
        let agent = Agent::with(polite(|_| {
            let error = json!({ "error": { "class": "GenericError", "desc": "no\u{1b}[2J\n!" } });
            Some(format!("{error}\n").into_bytes())
        }));
        let mut channel = agent.channel();
        let error = channel.converse().await.unwrap().execute(&Ping {}).await.expect_err("no");
        assert_eq!(error.to_string(), "the guest agent refused 'guest-ping': no?[2J !");
        assert!(error.is_an_answer());
    });
}

/// An agent whose script for disks ends so.
fn script_ends(status: i64, output: &'static str) -> Manner {
    let mut looks = 0;
    polite(move |command| match command {
        "guest-exec" => says(&json!({ "pid": 7 })),
        "guest-exec-status" => {
            looks += 1;
            says(&match looks {
                1 | 2 => json!({ "exited": false }),
                _ => json!({ "exited": true, "exitcode": status, "out-data": output }),
            })
        }
        _ => None,
    })
}

#[test]
fn a_disk_is_let_go_or_the_guest_says_why_not() {
    run(async {
        for (status, output, expected) in [
            (0, "", Release::LetGo),
            (3, "bW91bnRlZAo=", Release::Refused("mounted".into())),
            (4, "bm8K", Release::Cannot("no".into())),
            (127, "", Release::Cannot(String::new())),
        ] {
            let agent = Agent::with(script_ends(status, output));
            let mut channel = agent.channel();
            let mut conversation = channel.converse().await.unwrap();
            assert_eq!(conversation.release_disk(0x3000_0000_0000_0001).await.unwrap(), expected);
        }
    });
}

#[test]
fn a_guest_is_frozen_while_the_work_is_done() {
    run(async {
        let agent = Agent::with(polite(|_| says(&json!(2))));
        let mut channel = agent.channel();
        let mut conversation = channel.converse().await.unwrap();
        let work = async { agent.heard() };
        let frozen = conversation.while_frozen(deadline::FROZEN, work).await.unwrap();
        assert_eq!(frozen.outcome, ["guest-fsfreeze-freeze"], "frozen before, not thawed before");
        assert_eq!(frozen.held, Held::Throughout);
        frozen.thawed.unwrap();
        assert_eq!(agent.heard(), ["guest-fsfreeze-freeze", "guest-fsfreeze-thaw"]);
    });
}

#[test]
fn work_that_takes_too_long_does_not_hold_the_guest() {
    run(async {
        let agent = Agent::with(polite(|_| says(&json!(1))));
        let mut channel = agent.channel();
        let mut conversation = channel.converse().await.unwrap();
        let bound = Duration::from_millis(100);
        // Takes until the guest goes on, which is longer than it may.
        let work = async {
            let thawed = async {
                while agent.heard().len() < 2 {
                    tokio::task::yield_now().await;
                }
            };
            tokio::time::timeout(Duration::from_secs(20), thawed).await.expect("thawed meanwhile");
            agent.heard()
        };
        let frozen = conversation.while_frozen(bound, work).await.unwrap();
        assert_eq!(frozen.held, Held::Partly);
        assert_eq!(frozen.outcome, ["guest-fsfreeze-freeze", "guest-fsfreeze-thaw"]);
    });
}

/// A guest that takes too long to freeze is thawed whatever becomes of it, and the work is not begun.
#[test]
fn a_freeze_that_is_not_answered_leaves_the_order_to_thaw() {
    run(async {
        let agent = Agent::with(Box::new({
            let mut polite = polite(|_| None);
            let mut is_stuck = false;
            move |message| {
                is_stuck |= name(message) == "guest-fsfreeze-freeze";
                if is_stuck { None } else { polite(message) }
            }
        }));
        let mut channel = agent.channel();
        let mut conversation = channel.converse().await.unwrap();
        let work = async { panic!("not frozen") };
        let bound = Duration::from_millis(50);
        let error = conversation.while_frozen::<()>(bound, work).await.expect_err("stuck");
        assert!(
            matches!(error, Error::Deadline { command: "guest-fsfreeze-freeze", .. }),
            "{error}"
        );
        tokio::task::yield_now().await;
        let until = Instant::now() + Duration::from_secs(5);
        while agent.heard().last().map(String::as_str) != Some("guest-fsfreeze-thaw") {
            assert!(Instant::now() < until, "{:?}", agent.heard());
            tokio::task::yield_now().await;
        }
    });
}

/// Pieces of what an agent says, and of what it never would.
fn any_piece() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        prop::collection::vec(any::<u8>(), 0..200),
        Just(b"\xff".to_vec()),
        Just(b"\n".to_vec()),
        Just(b"{\"return\": 1}\n".to_vec()),
        Just(b"{\"return\": {\"exited\": true, \"out-data\": \"////\"}}\n".to_vec()),
        Just(b"{\"error\": {\"desc\": 7}}\n".to_vec()),
        Just(b"[[[[[[[[".repeat(100)),
        Just(vec![b'z'; 70_000]),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// Whatever a guest says, however it is cut: the conversation ends in an error or an answer within its bound, nothing
    /// grows without limit, and nothing panics. proptest prints the case that fails.
    #[test]
    fn a_guest_may_say_anything(pieces in prop::collection::vec(any_piece(), 1..20)) {
        run(async {
            let mut pieces = pieces.into_iter().cycle();
            let mut is_synced = false;
            let agent = Agent::with(Box::new(move |message| {
                if !std::mem::replace(&mut is_synced, true) {
                    let mut line = says(&message["arguments"]["id"])?;
                    line.insert(0, 0xff);
                    return Some(line);
                }
                pieces.next()
            }));
            let mut channel = agent.channel();
            let mut conversation = channel.converse().await.unwrap();
            let bound = Duration::from_millis(5);
            for _ in 0..3 {
                let began = Instant::now();
                let _ = conversation.execute_within(&Info {}, bound).await;
                assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
            }
        });
    }
}

proptest! {
    /// Cut anywhere, the messages are the same, and never more than one line is kept.
    #[test]
    fn bytes_are_cut_into_messages_wherever_they_break(
        pieces in prop::collection::vec(any_piece(), 0..12),
        cut in 1usize..5_000,
    ) {
        use hpvm_agent::frame::{Decoder, LINE_BYTES_MAX};
        let bytes = pieces.concat();
        let (mut whole, mut parts) = (Default::default(), Default::default());
        Decoder::default().feed(&bytes, &mut whole);
        let mut decoder = Decoder::default();
        for part in bytes.chunks(cut) {
            decoder.feed(part, &mut parts);
            prop_assert!(decoder.pending_bytes() <= LINE_BYTES_MAX);
        }
        prop_assert_eq!(whole, parts);
    }
}
