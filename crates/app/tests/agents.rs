//! A guest's agent: one that answers, one that is silent, and none.

use std::time::{Duration, Instant};

use hpvm_app::protocol::*;
use hpvm_app::snapshot::*;
use hpvm_host::process::Signal;
use hpvm_model::*;
use hpvm_plan::record::*;

use crate::guest::{Guest, signal};

/// A guest with an agent of this sort and two disks on one adapter, of which the second was just used.
pub(crate) fn with_agent(behaviour: &str) -> (Guest, StorageAddress) {
    let guest = Guest::fake(&format!("idle=0,{behaviour}"));
    let disks = ["0,1,0", "0,1,1"]
        .map(|address| guest.device(DeviceKind::Disk, AdapterKind::AvioStor, address));
    let address = disks[1].device.address;
    let guest = guest.with(|record| record.storage = disks.into()).start();
    (guest, address)
}

/// Asks for the disk to leave with the agent's consent; how that went, and how long it took.
fn leaves(guest: &Guest, address: StorageAddress) -> (ChangeResult, Duration) {
    let began = Instant::now();
    let changes = vec![DeviceChange::Detach { address, consent: Consent::OfGuest }];
    let reply = guest.ask(&Request::change(changes));
    let Reply::Changed { mut results } = reply else { panic!("{reply:?}\n{}", guest.story()) };
    (results.remove(0), began.elapsed())
}

#[test]
fn an_agent_that_answers_is_shown_and_lets_a_disk_go_at_once() {
    let (guest, address) = with_agent("agent=answers");
    let (snapshot, _) = guest.until(|snapshot| matches!(snapshot.agent, Agent::Answers { .. }));
    let (result, took) = leaves(&guest, address);
    assert_eq!(result, ChangeResult::Done, "{}", guest.story());
    assert!(took < Duration::from_secs(3), "{took:?}");
    assert_eq!(guest.machine().storage.len(), 1);

    // The next worker finds the port open, and an agent that has answered all the time.
    signal(guest.worker().unwrap(), Signal::KILL);
    guest.until(|next| next.adoptions == 1 && next.agent == snapshot.agent);
    let log = std::fs::read_to_string(guest.path("log")).unwrap();
    assert_eq!(log.matches("the guest agent answers").count(), 1, "{log}");
}

#[test]
fn an_agent_goes_with_its_system() {
    let (guest, _) = with_agent("agent=answers,boot=os:200,reboot=1500");
    guest.until(|snapshot| matches!(snapshot.agent, Agent::Answers { .. }));
    guest.until(|snapshot| snapshot.agent == Agent::Absent);
    guest.until(|snapshot| matches!(snapshot.agent, Agent::Answers { .. }));
}

#[test]
fn a_disk_in_use_stays_and_the_guest_says_why() {
    let (guest, address) = with_agent("agent=busy:/dev/sdc is mounted on /data");
    guest.until(|snapshot| matches!(snapshot.agent, Agent::Answers { .. }));
    let (result, _) = leaves(&guest, address);
    let ChangeResult::Failed { error } = &result else { panic!("{result:?}") };
    assert!(error.contains("/dev/sdc is mounted on /data"), "{error}");
    assert_eq!(guest.machine().storage.len(), 2);
    assert!(matches!(guest.snapshot().unwrap().agent, Agent::Answers { .. }), "it answered");
}

/// Without an agent that helps the rule without one holds, and is told with its reason.
#[test]
fn who_cannot_be_asked_is_waited_for() {
    for (agent, bound, reason) in [
        ("agent=cannot", 2, "guest-exec has been disabled"),
        ("agent=silent", 5, "did not answer"),
        ("agent=junk", 5, "the guest agent"),
        ("boot=os", 5, "did not answer"),
    ] {
        let (guest, address) = with_agent(agent);
        guest.until_os();
        let (result, took) = leaves(&guest, address);
        let ChangeResult::Waits { reason: told } = &result else {
            panic!("{agent}: {result:?}\n{}", guest.story())
        };
        assert!(told.contains(reason) && told.contains("the disk had I/O 0 s ago"), "{told}");
        assert!(took < Duration::from_secs(bound + 5), "{agent}: {took:?}");
        assert_eq!((guest.machine().storage.len(), guest.machine().pending.len()), (2, 0));
        guest.stop();
    }
}

/// The disk was quiet, so it leaves all the same.
#[test]
fn what_may_be_lost_with_a_disk_is_told() {
    for (agent, expected) in [
        ("agent=cannot", "the guest agent is not able (the guest agent refused 'guest-exec'"),
        ("agent=cannot-run", "It had the file systems that it knows write out what they held"),
        ("agent=silent", "no agent answers in the guest (the guest agent did not answer"),
    ] {
        let (guest, address) = with_agent(&format!("{agent},idle=12000"));
        guest.until_os();
        let (result, _) = leaves(&guest, address);
        let ChangeResult::DoneUnasked { loss } = &result else {
            panic!("{agent}: {result:?}\n{}", guest.story())
        };
        assert!(loss.contains(expected) && loss.contains("the disk at 0,1,1"), "{loss}");
        assert_eq!((guest.machine().storage.len(), guest.machine().pending.len()), (1, 0));
        let log = std::fs::read_to_string(guest.path("log")).unwrap();
        assert!(log.contains(loss), "{log}");
        guest.stop();
    }
}

/// Its adapter would take the disk along that waits, and what else is on it.
#[test]
fn an_adapter_waits_with_its_disk() {
    for agent in ["agent=cannot", "agent=silent"] {
        let (guest, address) = with_agent(agent);
        guest.until_os();
        let before = guest.machine();
        let changes = vec![
            DeviceChange::Detach { address, consent: Consent::OfGuest },
            DeviceChange::DetachAdapter { slot: address.slot },
        ];
        let reply = guest.ask(&Request::change(changes));
        let Reply::Changed { results } = &reply else { panic!("{reply:?}") };
        assert!(
            matches!(&results[..], [ChangeResult::Waits { reason }, ChangeResult::Waits { reason: same }] if reason == same),
            "{agent}: {results:?}\n{}",
            guest.story()
        );
        let after = guest.machine();
        assert_eq!((after.storage, after.pending), (before.storage, before.pending));
    }
}

#[test]
fn a_silent_agent_is_shown_so_and_delays_nothing_else() {
    for agent in ["agent=silent", "agent=junk"] {
        let (guest, _) = with_agent(agent);
        guest.until_os();
        for _ in 0..20 {
            let began = Instant::now();
            assert_eq!(guest.ask(&Request::Ping), Reply::Done);
            assert!(matches!(guest.ask(&Request::Idle), Reply::Idle { .. }));
            assert!(began.elapsed() < Duration::from_secs(1), "{agent}: {:?}", began.elapsed());
        }
        guest.until(|snapshot| matches!(snapshot.agent, Agent::Silent { .. }));
        let began = Instant::now();
        guest.stop();
        assert!(began.elapsed() < Duration::from_secs(2), "{agent}: {:?}", began.elapsed());
    }
}

/// A machine of an older hpvm: no channel, nobody is asked for one, and a disk leaves by the rule alone.
#[test]
fn a_machine_without_a_channel_works_as_before() {
    for (idle, expected) in [("idle=12000", "done"), ("idle=0", "waits")] {
        let guest = Guest::fake(&format!("{idle},agent=answers"));
        let disks = ["0,1,0", "0,1,1"]
            .map(|address| guest.device(DeviceKind::Disk, AdapterKind::AvioStor, address));
        let address = disks[1].device.address;
        let guest = guest.with(|record| {
            record.storage = disks.into();
            record.agent = AgentChannel::Absent;
        });
        let guest = guest.start();
        guest.until_os();
        assert_eq!(guest.snapshot().unwrap().agent, Agent::NoChannel);
        let (result, _) = leaves(&guest, address);
        match (&result, expected) {
            (ChangeResult::DoneUnasked { .. }, "done") | (ChangeResult::Waits { .. }, "waits") => {}
            _ => panic!("{idle}: {result:?}\n{}", guest.story()),
        }
        signal(guest.worker().unwrap(), Signal::KILL);
        guest.until(|snapshot| snapshot.adoptions == 1);
        guest.wait("an answer", || guest.try_ask(&Request::Ping, &[]).is_ok());
        assert_eq!(guest.snapshot().unwrap().agent, Agent::NoChannel);
        guest.stop();
    }
}
