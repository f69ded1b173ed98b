//! The guest-host: a Debian guest with systemd, device-mapper, md and SCSI that plays VM Host, so that tests see what the
//! machine they run on lacks. `cargo xtask guest-host` builds its disk and runs scripts in it; the end-to-end tests share
//! one boot of it.
//!
//! Plain QEMU boots it, emulated, and nothing of the product has a part in that. The guest writes to no file of ours but
//! those of `machine`'s empty disks: its own disk takes changes that are gone when it ends. What is under test comes as a
//! [`Payload`]. Scripts go in, and status and output come back, by a port of which this process holds the other end: the
//! guest switches itself off when this process is gone.

mod kept_off;
mod machine;
mod payload;
mod port;

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

pub use kept_off::KeptOff;
pub use payload::Payload;

use machine::Machine;
use port::Port;

/// Four times what it takes on two processors that are busy with nothing else.
const BOOT_BOUND: Duration = Duration::from_secs(270);
/// However busy the machine is, nobody waits longer than so many times that. Units there wait longer (`patient.conf`).
const BUSY_FACTOR_MAX: u32 = 4;
const INSTALL_BOUND: Duration = Duration::from_secs(60);
/// What the answer of a script that ran into its bound may take longer.
const ANSWER_BOUND: Duration = Duration::from_secs(20);

/// Puts the payload in place; the second part as after a boot that went well.
const INSTALL: &str = "
tar --extract --no-same-owner --directory=/ --file=/dev/disk/by-id/virtio-payload
systemctl daemon-reload
";
const SETTLE: &str = "systemctl is-system-running --wait || systemctl --failed --no-legend";

/// A guest-host that runs. It ends when the value is dropped.
pub struct GuestHost {
    machine: Machine,
    port: Port,
    boot_time: Duration,
    _payload: Payload,
}

/// What a script did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ran {
    /// As a shell tells it; 124 and 137: it ran into its bound.
    pub status: i32,
    /// Standard output and standard error as they came.
    pub output: String,
}

impl GuestHost {
    /// Boots the disk `image`, installs the payload, and returns when all units are started.
    pub fn boot(image: &Path, payload: Payload) -> Result<GuestHost> {
        let began = Instant::now();
        let (machine, port) = Machine::start(image, payload.path())?;
        let mut host = GuestHost { machine, port, boot_time: Duration::ZERO, _payload: payload };
        host.wait_until_booted()?;
        host.boot_time = began.elapsed();
        let installed = host.run(INSTALL, INSTALL_BOUND)?;
        ensure!(installed.status == 0, "installing hpvm in the guest-host:\n{}", installed.output);
        Ok(host)
    }

    /// From power-on until all units were started.
    #[must_use]
    pub fn boot_time(&self) -> Duration {
        self.boot_time
    }

    /// Runs `script` by bash, which ends at the first command that fails. One that is not done after `bound` is ended.
    ///
    /// # Errors
    ///
    /// The guest-host does not answer; whatever the script itself does is no error.
    pub fn run(&mut self, script: &str, bound: Duration) -> Result<Ran> {
        let answer = self.port.ask(script, bound, ANSWER_BOUND);
        answer.with_context(|| self.machine.last_words())
    }

    /// Starts the operating system anew, as a person would, and waits until all units are started; what was not saved to
    /// a disk is gone. Gives the time it took.
    pub fn reboot(&mut self) -> Result<Duration> {
        let began = Instant::now();
        self.port.tell("systemctl reboot")?;
        self.wait_until_booted()?;
        Ok(began.elapsed())
    }

    /// Time in which other programs had the processors that the guest-host was ready to use does not count.
    fn wait_until_ready(&mut self) -> Result<()> {
        let (began, kept_off) = (Instant::now(), KeptOff::by(Some(self.machine.process())));
        let mut bound = BOOT_BOUND;
        loop {
            let Err(error) = self.port.wait_until_ready(bound) else { return Ok(()) };
            let waited = began.elapsed();
            bound = BOOT_BOUND.saturating_sub(waited.saturating_sub(kept_off.since_then()));
            if bound.is_zero() || waited > BOOT_BOUND * BUSY_FACTOR_MAX || self.machine.has_ended()
            {
                return Err(error);
            }
        }
    }

    fn wait_until_booted(&mut self) -> Result<()> {
        self.wait_until_ready().with_context(|| self.machine.last_words())?;
        let settled = self.run(SETTLE, BOOT_BOUND)?;
        if settled.status != 0 {
            bail!("the guest-host did not finish its boot:\n{}", settled.output);
        }
        Ok(())
    }
}
