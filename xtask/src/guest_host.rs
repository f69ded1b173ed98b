//! `cargo xtask guest-host`: a Debian 12 with systemd and the full kernel that plays VM Host in tests.
//!
//! Small machines lack device-mapper, SCSI, md, cgroup v2 or systemd; this guest has them, and QEMU and OVMF as a VM Host
//! has. Crate `hpvm-guesthost` boots it and says what is attached to it; `run` here does that for one script.

use std::io::Read;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use hpvm_guesthost::{GuestHost, Payload};

use crate::cache;
use crate::debian::Debian;

const USAGE: &str = "\
usage: cargo xtask guest-host                                   build its disk; prints its path
       cargo xtask guest-host run [--with FILE]... SCRIPT...    run each script in a fresh boot; '-' is standard input

--with puts a program into /opt/guest-host/bin. hpvm is installed from target/debug, as built last.";

const GUEST_HOST: Debian<'static> = Debian {
    name: "guest-host",
    packages: &[
        "ovmf",
        "libpam-systemd",
        "fdisk",
        "lvm2",
        "mdadm",
        "cryptsetup-bin",
        "multipath-tools",
        "kpartx",
        "tgt",
        "open-iscsi",
        "lsscsi",
        "sg3-utils",
        "xfsprogs",
        "btrfs-progs",
    ],
    backported: &["qemu-system-x86", "qemu-system-common", "qemu-system-data", "seabios"],
    left_out: &[
        // Firmware of other machines.
        "/usr/share/qemu/hppa-*",
        "/usr/share/qemu/openbios-*",
        "/usr/share/qemu/opensbi-*",
        "/usr/share/qemu/palcode-*",
        "/usr/share/qemu/s390-*",
        "/usr/share/qemu/skiboot*",
        "/usr/share/qemu/slof*",
        "/usr/share/qemu/u-boot*",
    ],
    files: &[
        ("/usr/local/sbin/guest-host-agent", include_str!("guest_host/agent")),
        ("/etc/systemd/system/guest-host-agent.service", include_str!("guest_host/agent.service")),
        (
            "/etc/systemd/system/serial-getty@ttyS0.service.d/autologin.conf",
            include_str!("guest_host/autologin.conf"),
        ),
        ("/etc/systemd/system.conf.d/patient.conf", include_str!("guest_host/patient.conf")),
        ("/etc/multipath.conf", include_str!("guest_host/multipath.conf")),
    ],
    customize: include_str!("guest_host/customize"),
};

/// What a script that a person wrote may take.
const SCRIPT_BOUND: Duration = Duration::from_secs(600);

pub(crate) fn run(arguments: &[String]) -> Result<()> {
    match arguments {
        [] => {
            println!("{}", GUEST_HOST.image()?.display());
            Ok(())
        }
        [verb, rest @ ..] if verb == "run" => run_scripts(rest),
        _ => bail!("{USAGE}"),
    }
}

/// Boots, runs the scripts in turn, and fails when one of them does.
fn run_scripts(arguments: &[String]) -> Result<()> {
    let mut programs = Vec::new();
    let mut scripts = Vec::new();
    let mut words = arguments.iter();
    while let Some(word) = words.next() {
        match word.as_str() {
            "--with" => programs.push(PathBuf::from(words.next().context(USAGE)?)),
            _ => scripts.push((word, script(word)?)),
        }
    }
    ensure!(!scripts.is_empty(), "{USAGE}");
    let image = GUEST_HOST.image()?;
    let repository = cache::checkout();
    let payload = Payload::of(&repository, &repository.join("target/debug"), &programs)?;
    let mut host = GuestHost::boot(&image, payload)?;
    eprintln!("guest-host: ready after {:.1} s", host.boot_time().as_secs_f64());
    for (name, text) in &scripts {
        let ran = host.run(text, SCRIPT_BOUND)?;
        print!("{}", ran.output);
        ensure!(ran.status == 0, "{name} ended with status {}", ran.status);
    }
    Ok(())
}

fn script(name: &str) -> Result<String> {
    if name == "-" {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).context("reading standard input")?;
        return Ok(text);
    }
    std::fs::read_to_string(name).with_context(|| format!("reading {name}"))
}
