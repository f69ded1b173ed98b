//! What waits for a guest's reset, from the side of the commands, on the scripted engine: what becomes of it when they fail, die
//! or want something else.

use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::time::Duration;

use hpvm_app::snapshot::Agent;
use hpvm_host::process::Signal;
use hpvm_plan::record::{DeviceChange, Machine, Pending};
use hpvm_qmp::blocking::Client as Rescue;
use hpvm_qmp::command::SystemReset;
use hpvm_testkit::vm_host::{Engine, VmHost};
use hpvm_testkit::wait::wait_until;

use crate::Test;
use crate::devices::holds;
use crate::hostile::worker;
use crate::started::Started;
use crate::statements::disk_at;

pub(crate) const TESTS: &[Test] = crate::tests![
    an_exchange_whose_command_dies_is_told_by_the_next,
    half_an_exchange_takes_nothing_away,
    a_refused_command_leaves_what_waited,
    a_command_that_fails_tells_again_what_waited,
    what_becomes_of_one_of_two_is_no_matter_of_the_other,
    whoever_asks_is_told_of_a_store_that_comes,
    what_waits_to_leave_comes_nowhere_else,
    what_a_live_adapter_is_given_comes_at_the_reset,
    what_a_leaving_adapter_is_given_comes_with_the_next_one,
    what_firmware_does_not_let_go_is_shown_to_leave_at_the_reset,
    who_extends_a_disk_hears_when_the_guest_sees_it,
    what_firmware_did_not_let_go_is_asked_for_again,
    what_has_its_adapter_alone_waits_with_it,
    what_a_removal_may_lose_is_told,
];

const BOUND: Duration = Duration::from_secs(20);
const SIGABRT: i32 = 6;

/// A running guest with two disks on one adapter, which have just been used.
struct Waits {
    host: VmHost,
    adapter: &'static str,
}

impl Waits {
    fn on(adapter: &'static str, behaviour: &str) -> Waits {
        let mut host = VmHost::new(Engine::Fake);
        host.engine_behaves(&format!("idle=1000,{behaviour}"));
        let waits = Waits { host, adapter };
        let [first, second] = [waits.disk(0, "first"), waits.disk(1, "second")];
        waits.host.create("web", "512M", &[first, second]);
        waits.host.ok(&["hpvmstart", "-P", "web"]);
        waits
    }

    fn file(&self, name: &str) -> PathBuf {
        self.host.path(&format!("{name}.img"))
    }

    fn disk(&self, target: u8, name: &str) -> String {
        if !self.file(name).exists() {
            let _made = self.host.disk(&format!("{name}.img"), 1 << 20);
        }
        format!("disk:{}:0,1,{target}:file:{}", self.adapter, self.file(name).display())
    }

    fn modify(&self, words: &[&str]) -> Vec<String> {
        [&["hpvmmodify", "-P", "web"], words].concat().into_iter().map(str::to_owned).collect()
    }

    /// Resets the guest, and waits until nothing waits for that.
    fn reset(&self) {
        let mut rescue =
            Rescue::connect(&self.host.run_dir(1).join("rescue")).expect("the second monitor");
        rescue.execute(&SystemReset {}).expect("a reset");
        wait_until(BOUND, "what was due to be made", || self.machine().pending.is_empty());
        assert_eq!(self.shown(), "");
    }

    fn exchange(&self, target: u8, name: &str) -> Vec<String> {
        self.modify(&["-m", &self.disk(target, name)])
    }

    fn ok(&self, line: &[String]) -> String {
        let line: Vec<&str> = line.iter().map(String::as_str).collect();
        let outcome = self.host.run(&line);
        assert!(outcome.status.success(), "{outcome}");
        outcome.stderr
    }

    fn refused(&self, line: &[String]) -> String {
        let line: Vec<&str> = line.iter().map(String::as_str).collect();
        let outcome = self.host.run(&line);
        assert_eq!(outcome.status.code(), Some(1), "{outcome}");
        outcome.stderr
    }

    /// How many devices are shown to come or leave at the reset.
    fn waiting(&self) -> usize {
        let shown = self.host.ok(&["hpvmstatus", "-P", "web", "--json"]);
        shown.matches("\"next_reset\"").count()
    }

    fn shown(&self) -> String {
        let shown = self.host.ok(&["hpvmstatus", "-P", "web"]);
        shown.split_once("[Waiting for Next ").map_or(String::new(), |(_, rest)| rest.into())
    }

    fn machine(&self) -> Machine {
        let record = self.host.path("var/opt/hpvm/guests/web/boot.record");
        let text = std::fs::read_to_string(record).expect("a boot record");
        Machine::read(&text).expect("a boot record")
    }

    fn holds(&self, name: &str) -> bool {
        holds(&self.host, &self.file(name))
    }
}

/// What the guest was not told waits for its next start, and nothing of it is open.
fn an_exchange_whose_command_dies_is_told_by_the_next() {
    for (step, told) in [("modify.applied", 0), ("modify.committed", 0), ("modify.noted", 1)] {
        let mut guest = Waits::on("scsi", "boot=os");
        let exchange = guest.exchange(0, "later");
        guest.host.environment("HPVM_ABORT_AT", step);
        let line: Vec<&str> = exchange.iter().map(String::as_str).collect();
        let killed = guest.host.run(&line);
        guest.host.without_environment("HPVM_ABORT_AT");
        assert_eq!(killed.status.signal(), Some(SIGABRT), "{killed}");
        assert_eq!((guest.waiting(), guest.holds("later")), (told, told == 1), "{step}");

        guest.ok(&exchange);
        assert_eq!((guest.waiting(), guest.holds("later")), (1, true), "after {step}");
        assert!(guest.holds("first"));
    }
}

/// Whoever of command and worker dies first: what leaves is told last, so nothing leaves for which nothing comes.
fn half_an_exchange_takes_nothing_away() {
    let guest = Waits::on("scsi", "boot=os,slow=blockdev-add:1500");
    let exchange = guest.exchange(0, "later");
    let line: Vec<&str> = exchange.iter().map(String::as_str).collect();
    let command = Started::of(&guest.host, &line);
    wait_until(BOUND, "it to be told", || guest.machine().waiting().next().is_some());
    let worker = worker(&guest.host);
    command.gets(Signal::KILL);
    worker.signal(Signal::KILL).expect("it lives");
    command.end();
    wait_until(BOUND, "the next worker", || {
        guest.host.snapshot(1).is_some_and(|snapshot| snapshot.adoptions == 1)
    });
    let machine = guest.machine();
    let leaves = |pending: &Pending| matches!(pending.change, DeviceChange::Detach { .. });
    assert!(!machine.waiting().any(leaves), "{:?}", machine.pending);

    guest.ok(&exchange);
    assert_eq!((guest.waiting(), guest.holds("later")), (1, true), "{}", guest.shown());
    assert!(guest.machine().waiting().any(leaves));
}

/// The guest's agent answers by now, and says that the disk is used.
fn a_refused_command_leaves_what_waited() {
    let guest = Waits::on("avio_stor", "boot=os:6000,agent=busy:/data is mounted");
    let exchange = guest.exchange(1, "later");
    let told = guest.ok(&exchange);
    assert!(told.contains("waits for the guest's next reset: the disk had I/O"), "{told}");
    let before = guest.shown();
    let since = "waits for the guest's next reset since 20";
    assert!(before.contains(since), "{before}");
    for option in ["-V", "--json"] {
        let shown = guest.host.ok(&["hpvmstatus", "-P", "web", option]);
        assert!(shown.contains(since), "{shown}");
    }

    wait_until(BOUND, "the agent to answer", || {
        matches!(guest.host.snapshot(1).map(|s| s.agent), Some(Agent::Answers { .. }))
    });
    let refused = guest.refused(&exchange);
    assert!(refused.contains("/data is mounted"), "{refused}");
    assert_eq!(guest.shown(), before, "and since when");
    assert!(guest.holds("later") && guest.holds("second"));
}

/// One disk is to stay after all, which was done when another one could not come.
fn a_command_that_fails_tells_again_what_waited() {
    let guest = Waits::on("avio_stor", "boot=os,fail=device_add:no room for it");
    guest.ok(&guest.exchange(1, "later"));
    let mut stays = guest.exchange(1, "second");
    stays.extend(["-a".to_owned(), guest.disk(2, "third")]);
    let refused = guest.refused(&stays);
    assert!(refused.contains("no room for it"), "{refused}");
    assert_eq!((guest.waiting(), guest.holds("later")), (1, true), "{}", guest.shown());
    assert!(!guest.holds("third"));

    guest.ok(&guest.exchange(1, "second"));
    assert_eq!((guest.shown().as_str(), guest.holds("later")), ("", false));
}

/// Both are exchanged with their adapter, which the guest does not let go.
fn what_becomes_of_one_of_two_is_no_matter_of_the_other() {
    let guest = Waits::on("scsi", "boot=os,delete=never");
    let mut both = guest.exchange(0, "later-first");
    both.extend(["-m".to_owned(), guest.disk(1, "later-second")]);
    guest.ok(&both);
    assert_eq!(guest.waiting(), 2, "{}", guest.shown());

    guest.ok(&guest.exchange(0, "another"));
    assert_eq!(guest.waiting(), 2, "{}", guest.shown());
    for (file, is_held) in [("later-first", false), ("another", true), ("later-second", true)] {
        assert_eq!(guest.holds(file), is_held, "{file}");
    }
    // What waits is no obstacle to saying it again.
    guest.ok(&guest.exchange(1, "later-second"));
    assert_eq!((guest.waiting(), guest.holds("later-second")), (2, true));
}

/// It is open in the guest's QEMU, and the guest will have it as it is opened now.
fn whoever_asks_is_told_of_a_store_that_comes() {
    let guest = Waits::on("scsi", "boot=os");
    guest.ok(&guest.exchange(0, "later"));
    let file = guest.file("later");
    let path = file.display().to_string();
    let longer = guest.host.run(&["hpvmdevmgmt", "-S", "2M", &path]);
    let told =
        "the running guest 'web' gets the disk at its next reset as long as it was, and sees";
    assert!(longer.stderr.contains(told), "{longer}");
    std::fs::remove_file(&file).expect("it is there");
    for ask in [&["hpvm", "why", "-P", "web"][..], &["hpvm", "doctor"]] {
        let said = guest.host.run(ask).stdout;
        assert!(said.contains(&format!("{path} was deleted")), "{said}");
    }
}

/// QEMU would refuse it, and only when the disk has left whose place it was to take.
fn what_waits_to_leave_comes_nowhere_else() {
    let guest = Waits::on("avio_stor", "boot=os");
    let line = |words: &[&str]| guest.modify(words);
    let told = guest.ok(&line(&["-d", "disk:avio_stor:0,1,1"]));
    assert!(told.contains("waits for the guest's next reset"), "{told}");
    let before = guest.machine();
    let elsewhere = disk_at("0,2,0", &guest.file("second"));
    for change in [guest.exchange(0, "second"), line(&["-a", &elsewhere])] {
        for change in [[change.clone(), vec!["-s".into()]].concat(), change] {
            let said = guest.refused(&change);
            assert!(said.contains("is the running guest's at 0,1,1 until it has left"), "{said}");
            assert_eq!(guest.machine(), before, "nothing was asked of it");
        }
    }
    guest.ok(&line(&["-F", "-d", "disk:avio_stor:0,1,1"]));
    guest.ok(&line(&["-a", &elsewhere]));
    assert!(guest.holds("second"));
}

/// With the last disk leaves the adapter, of which the guest is asked: nothing that runs there answers.
fn what_firmware_does_not_let_go_is_shown_to_leave_at_the_reset() {
    for (boot, state, when) in
        [("boot=firmware", "On (EFI)", "next_reset"), ("boot=os,idle=60000", "On (OS)", "now")]
    {
        let guest = Waits::on("avio_stor", boot);
        guest.host.wait_for_state("web", state, BOUND);
        let [first, second] = [guest.disk(0, "first"), guest.disk(1, "second")];
        let words = ["hpvmmodify", "-P", "web", "-s", "--json", "-d", &first, "-d", &second];
        let shown = guest.host.ok(&words);
        assert_eq!(shown.matches(&format!("\"when\": \"{when}\"")).count(), 2, "{shown}");
    }
}

/// The system that followed was never asked.
fn what_firmware_did_not_let_go_is_asked_for_again() {
    let guest = Waits::on("avio_stor", "boot=os:15000,idle=60000");
    let (first, second) = (guest.disk(0, "first"), guest.disk(1, "second"));
    let told = guest.ok(&guest.modify(&["-d", &first, "-d", &second]));
    assert!(told.contains("at its next reset at the latest"), "{told}");
    let told = guest.ok(&guest.modify(&["-F", "-d", &first]));
    assert!(told.contains("at its next reset at the latest"), "{told}");
    assert!(!told.contains("next start"), "{told}");
    guest.host.wait_for_state("web", "On (OS)", BOUND);
    let told = guest.ok(&guest.modify(&["-d", &first]));
    assert!(!told.contains("next"), "{told}");
    assert_eq!((guest.shown().as_str(), guest.machine().storage.len()), ("", 0));
}

/// The guest's agent turns out to be no help, and the disk is used. What comes to its place later is not what was to leave.
fn what_has_its_adapter_alone_waits_with_it() {
    let guest = Waits::on("avio_stor", "boot=os,agent=cannot");
    wait_until(BOUND, "the agent to answer", || {
        matches!(guest.host.snapshot(1).map(|s| s.agent), Some(Agent::Answers { .. }))
    });
    let (first, second) = (guest.disk(0, "first"), guest.disk(1, "second"));
    let both = guest.modify(&["-d", &first, "-d", &second]);
    let told = guest.ok(&both);
    for place in ["0,1,0", "0,1,1"] {
        let waits = format!("storage {place}: waits for the guest's next reset: the guest agent");
        assert!(told.contains(&waits), "{told}");
    }
    assert!(guest.holds("first") && guest.holds("second"));
    assert_eq!((guest.waiting(), guest.machine().storage.len()), (2, 2));

    guest.ok(&guest.modify(&["-F", "-d", &first, "-d", &second]));
    assert_eq!((guest.machine().pending.len(), guest.machine().storage.len()), (0, 0));
    guest.ok(&guest.modify(&["-a", &first]));
    guest.reset();
    assert_eq!(guest.machine().storage.len(), 1);
}

/// The guest's agent answers, and only when it is asked it turns out that it may not help.
fn what_a_removal_may_lose_is_told() {
    let guest = Waits::on("avio_stor", "boot=os,agent=cannot,idle=60000");
    wait_until(BOUND, "the agent to answer", || {
        matches!(guest.host.snapshot(1).map(|s| s.agent), Some(Agent::Answers { .. }))
    });
    for target in [(1, "second"), (0, "first")] {
        let told = guest.ok(&guest.modify(&["-d", &guest.disk(target.0, target.1)]));
        let loss = "to write out what it still holds for the disk at 0,1,";
        assert!(told.contains(&format!("{loss}{}: that is lost", target.0)), "{told}");
    }
    assert_eq!((guest.shown().as_str(), guest.machine().storage.len()), ("", 0));
}

/// An emulated adapter: the guest would not see it before. Settles 81.
fn what_a_live_adapter_is_given_comes_at_the_reset() {
    let mut guest = Waits::on("scsi", "boot=os:3000");
    guest.host.wait_for_state("web", "On (OS)", BOUND);
    let joins = guest.disk(2, "joins");
    let (add, delete) = (guest.modify(&["-a", &joins]), guest.modify(&["-d", &joins]));
    let told = guest.ok(&add);
    let waits = "storage 0,1,2: waits for the guest's next reset: a running guest never sees";
    assert!(told.contains(waits), "{told}");
    assert!(guest.shown().contains("waits for the guest's next reset since 20"));
    assert_eq!((guest.waiting(), guest.holds("joins")), (1, true), "{}", guest.shown());
    let luns = ["hpvm", "gvsdmgr", "get_info", "-P", "web", "-q", "lun=all"];
    assert!(guest.host.ok(&luns).contains("OFFLINE until the next reset of the guest"));
    guest.ok(&delete);
    assert_eq!((guest.shown().as_str(), guest.holds("joins")), ("", false));

    // A command that dies has told nobody; the next one does.
    guest.host.environment("HPVM_ABORT_AT", "modify.committed");
    let line: Vec<&str> = add.iter().map(String::as_str).collect();
    let killed = guest.host.run(&line);
    guest.host.without_environment("HPVM_ABORT_AT");
    assert_eq!(killed.status.signal(), Some(SIGABRT), "{killed}");
    assert_eq!((guest.waiting(), guest.holds("joins")), (0, false));
    guest.ok(&guest.modify(&["-l", "another label"]));
    assert_eq!((guest.waiting(), guest.holds("joins")), (1, true), "{}", guest.shown());

    guest.reset();
    assert!(guest.holds("first") && guest.holds("second") && guest.holds("joins"));
}

/// A disk, and another medium in a drive. Settles 137.
fn what_a_leaving_adapter_is_given_comes_with_the_next_one() {
    let guest = Waits::on("avio_stor", "boot=os,delete=never");
    let drive = |name: &str| guest.disk(3, name).replacen("disk:", "dvd:", 1);
    guest.ok(&guest.modify(&["-a", &drive("disc")]));
    let all = [guest.disk(0, "first"), guest.disk(1, "second"), drive("disc")];
    let each = all.iter().flat_map(|disk| ["-d", disk]);
    let line: Vec<&str> = ["-F"].into_iter().chain(each).collect();
    let told = guest.ok(&guest.modify(&line));
    assert!(told.contains("when the guest lets it, at its next reset at the latest"), "{told}");
    assert!(guest.shown().contains("asked of the guest since 20"), "{}", guest.shown());

    let told = guest.ok(&guest.modify(&["-a", &guest.disk(2, "joins"), "-a", &drive("other")]));
    for place in ["0,1,2", "0,1,3"] {
        let waits = format!("{place}: waits for the guest's next reset: the guest was asked to");
        assert!(told.contains(&waits), "{told}");
    }
    assert_eq!(guest.waiting(), 4, "what leaves and what comes: {}", guest.shown());
    guest.reset();
    assert!(guest.holds("joins") && guest.holds("other"));
    wait_until(BOUND, "what has left to be closed", || !guest.holds("disc"));
}

fn who_extends_a_disk_hears_when_the_guest_sees_it() {
    let mut guest = Waits::on("scsi", "boot=os");
    let extended = |guest: &Waits, size: &str, name: &str| {
        let file = guest.file(name).display().to_string();
        let outcome = guest.host.run(&["hpvmdevmgmt", "-S", size, &file]);
        assert!(outcome.status.success(), "{outcome}");
        outcome.stderr
    };
    guest.ok(&guest.exchange(0, "later"));
    let tell = |target, name| format!("`hpvmmodify -P web -m {}`", guest.disk(target, name));
    for (name, sight) in [
        ("second", format!("sees the new size after {}\n", tell(1, "second"))),
        ("first", "is to lose the disk, and does not see the new size before that\n".into()),
        (
            "later",
            format!(
                "gets the disk at its next reset as long as it was, and sees the new size after {} then\n",
                tell(0, "later")
            ),
        ),
    ] {
        let told = format!("hpvmdevmgmt: the running guest 'web' {sight}");
        assert_eq!(extended(&guest, "2M", name), told);
    }

    // A command that dies before the guest is told of the disk leaves it for the next start.
    guest.host.environment("HPVM_ABORT_AT", "modify.committed");
    let exchange = guest.exchange(1, "last");
    let killed = guest.host.run(&exchange.iter().map(String::as_str).collect::<Vec<_>>());
    guest.host.without_environment("HPVM_ABORT_AT");
    assert_eq!(killed.status.signal(), Some(SIGABRT), "{killed}");
    assert!(extended(&guest, "2M", "last").contains("'web' gets the disk with its next start\n"));
}
