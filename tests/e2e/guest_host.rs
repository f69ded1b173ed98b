//! Tests inside the guest-host, a Debian guest with systemd, device-mapper, md and SCSI that plays VM Host. They share one
//! boot of it, which the first of them starts, and take turns. A test is a few shell commands and what they must print; it
//! leaves the guest-host as it found it. The functions of `tests/guest-host/blocks.sh` and `networks.sh` are there for all.

mod attached;
mod blocks;
mod clone;
mod device_database;
mod networks;
mod shared_disks;
mod shutdown;
mod stores;
mod units;

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hpvm_guesthost::{GuestHost, Payload, Ran};
use hpvm_testkit::processors;
use hpvm_testkit::vm_host::{program, repository};

use crate::Test;
use crate::pool::image;

pub(crate) const TESTS: &[&[Test]] = &[
    attached::TESTS,
    units::TESTS,
    blocks::TESTS,
    device_database::TESTS,
    clone::TESTS,
    stores::TESTS,
    shutdown::TESTS,
    shared_disks::TESTS,
    networks::TESTS,
];

/// What a script of a test may take; the slowest takes a tenth of it on a quiet machine.
const SCRIPT_BOUND: Duration = Duration::from_secs(240);

static BOOTED: Mutex<Booted> = Mutex::new(Booted::NotYet);

enum Booted {
    NotYet,
    Runs(Box<GuestHost>),
    /// Every test would wait in vain for what failed once.
    Failed(String),
}

/// The turn of a test on the guest-host.
pub(crate) struct Turn {
    booted: MutexGuard<'static, Booted>,
}

impl Turn {
    #[track_caller]
    pub(crate) fn take() -> Turn {
        let mut booted = BOOTED.lock().unwrap_or_else(PoisonError::into_inner);
        processors::take();
        if matches!(*booted, Booted::NotYet) {
            *booted = boot();
        }
        if let Booted::Failed(why) = &*booted {
            panic!("{why}");
        }
        Turn { booted }
    }

    /// Runs shell commands, of which each must succeed; gives what they printed.
    #[track_caller]
    pub(crate) fn ok(&mut self, commands: &str) -> String {
        let Ran { status, output } = self.run(commands);
        assert_eq!(status, 0, "{commands}\nprinted:\n{output}");
        output.trim_end().to_owned()
    }

    #[track_caller]
    pub(crate) fn run(&mut self, commands: &str) -> Ran {
        let functions = ". /opt/guest-host/blocks.sh\n. /opt/guest-host/networks.sh";
        let ran = self.host().run(&format!("{functions}\n{commands}"), SCRIPT_BOUND);
        ran.unwrap_or_else(|error| panic!("{commands}\n{error:#}"))
    }

    #[track_caller]
    pub(crate) fn reboot(&mut self) {
        let took = self.host().reboot().unwrap_or_else(|error| panic!("{error:#}"));
        println!("the guest-host booted anew in {:.1} s", took.as_secs_f64());
    }

    fn host(&mut self) -> &mut GuestHost {
        match &mut *self.booted {
            Booted::Runs(host) => host,
            _ => unreachable!("a turn is only taken on a guest-host that runs"),
        }
    }
}

impl Drop for Turn {
    /// What a test that failed left behind would fail those after it, so they get a guest-host booted anew.
    fn drop(&mut self) {
        if std::thread::panicking() && matches!(*self.booted, Booted::Runs(_)) {
            *self.booted = Booted::NotYet;
        }
    }
}

/// What tests bring along: a client of qemu-pr-helper, an engine without a machine, the talker on ports of switches, and the
/// tests of wires over kinds of interfaces that the kernel of this machine may lack, as `cargo test -p hpvm-vswitch` built them last.
fn programs(built: &Path) -> Vec<PathBuf> {
    let newest = |name: &str| {
        let entries = built.join("deps").read_dir().into_iter().flatten().flatten();
        let its = entries.map(|entry| entry.path()).filter(|path| {
            let stem = path.file_name().and_then(|stem| stem.to_str()).unwrap_or_default();
            path.extension().is_none()
                && stem.strip_prefix(name).is_some_and(|rest| rest.starts_with('-'))
        });
        its.max_by_key(|path| path.metadata().and_then(|file| file.modified()).ok())
    };
    let made = ["ask-helper", "fake-qemu", "hpvm-talker"].map(|name| built.join(name));
    made.into_iter().chain(newest("wires")).collect()
}

/// Ends the guest-host when no test is left.
pub(crate) fn end() {
    *BOOTED.lock().unwrap_or_else(PoisonError::into_inner) = Booted::NotYet;
}

fn boot() -> Booted {
    let hpvm = program("hpvm");
    let built = hpvm.parent().expect("a folder");
    let booted = Payload::of(&repository(), built, &programs(built))
        .and_then(|payload| GuestHost::boot(&image("guest-host"), payload));
    match booted {
        Ok(host) => {
            println!("the guest-host booted in {:.1} s", host.boot_time().as_secs_f64());
            Booted::Runs(Box::new(host))
        }
        Err(error) => Booted::Failed(format!("{error:#}")),
    }
}
