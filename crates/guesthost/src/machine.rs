//! The machine of the guest-host: its QEMU, its disks, and the folder of this one boot.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};
use tempfile::TempDir;

use crate::port::Port;

const FIRMWARE: &str = "/usr/share/OVMF/OVMF_CODE_4M.fd";
const FIRMWARE_VARIABLES: &str = "/usr/share/OVMF/OVMF_VARS_4M.fd";

/// Beside them a USB drive of optical media, with what was installed as its disc.
///
/// Empty disks, `/dev/disk/by-id/scsi-0QEMU_QEMU_HARDDISK_spareN` with N from 0.
const SPARE_DISKS: u32 = 8;
const SPARE_DISK_SIZE: u64 = 256 << 20;
const MEMORY_MIB: u32 = 2048;
const PROCESSORS: u32 = 2;

/// How much of the console a failure tells.
const LAST_WORDS: usize = 2_000;

/// A QEMU that ends with this value.
pub(crate) struct Machine {
    qemu: Child,
    folder: TempDir,
}

impl Machine {
    /// Switches the machine on.
    pub(crate) fn start(image: &Path, payload: &Path) -> Result<(Machine, Port)> {
        let folder = tempfile::Builder::new().prefix("hpvm-guesthost").tempdir();
        let folder = folder.context("making a folder for the guest-host")?;
        let complaints = File::create(folder.path().join("qemu.log")).context("making a log")?;
        let mut command = Command::new("qemu-system-x86_64");
        command.args(arguments(image, payload, folder.path())?);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(complaints);
        let mut qemu = command.spawn().context("starting qemu-system-x86_64")?;
        let port = qemu.stdin.take().zip(qemu.stdout.take());
        let (asking, answers) = port.context("QEMU has no pipes")?;
        Ok((Machine { qemu, folder }, Port::new(asking, answers)))
    }

    pub(crate) fn process(&self) -> i32 {
        i32::try_from(self.qemu.id()).unwrap_or(i32::MAX)
    }

    pub(crate) fn has_ended(&mut self) -> bool {
        !matches!(self.qemu.try_wait(), Ok(None))
    }

    /// What QEMU and the console said last, for a failure.
    pub(crate) fn last_words(&self) -> String {
        let tail = |name: &str| {
            let bytes = fs::read(self.folder.path().join(name)).unwrap_or_default();
            let from = bytes.len().saturating_sub(LAST_WORDS);
            String::from_utf8_lossy(&bytes[from..]).into_owned()
        };
        format!(
            "the guest-host fails; QEMU said:\n{}\nits console shows:\n{}",
            tail("qemu.log"),
            tail("console.log")
        )
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // Nothing on its disks outlives it, so it need not be asked.
        let _ended_already = self.qemu.kill();
        let _reaped = self.qemu.wait();
    }
}

fn arguments(image: &Path, payload: &Path, folder: &Path) -> Result<Vec<String>> {
    let variables = folder.join("variables");
    fs::copy(FIRMWARE_VARIABLES, &variables)
        .with_context(|| format!("copying {FIRMWARE_VARIABLES}"))?;
    let mut options: Vec<(&str, String)> = vec![
        // Emulated also where KVM is: tests find the same machine everywhere.
        ("-machine", "q35,accel=tcg".into()),
        // KVM on an emulated SVM is there at times and at times late: guests inside are emulated too.
        ("-cpu", "qemu64,-svm".into()),
        ("-smp", PROCESSORS.to_string()),
        ("-m", MEMORY_MIB.to_string()),
        ("-display", "none".into()),
        ("-serial", format!("file:{}", folder.join("console.log").display())),
        ("-drive", format!("if=pflash,unit=0,format=raw,readonly=on,file={FIRMWARE}")),
        ("-drive", format!("if=pflash,unit=1,format=raw,file={}", variables.display())),
        ("-drive", format!("if=none,id=system,format=raw,snapshot=on,file={}", image.display())),
        ("-device", "virtio-blk-pci,drive=system,bootindex=1".into()),
        ("-drive", format!("if=none,id=payload,format=raw,readonly=on,file={}", payload.display())),
        ("-device", "virtio-blk-pci,drive=payload,serial=payload".into()),
        ("-device", "virtio-rng-pci".into()),
        ("-device", "virtio-serial-pci".into()),
        ("-chardev", "stdio,id=scripts,signal=off".into()),
        ("-device", "virtserialport,chardev=scripts,name=hpvm.scripts".into()),
        ("-device", "virtio-scsi-pci,id=spares".into()),
        ("-device", "qemu-xhci".into()),
        ("-device", "usb-bot,id=optical".into()),
        ("-drive", format!("if=none,id=disc,format=raw,readonly=on,file={}", payload.display())),
        ("-device", "scsi-cd,bus=optical.0,drive=disc".into()),
    ];
    for number in 0..SPARE_DISKS {
        let path = folder.join(format!("spare{number}"));
        File::create(&path)
            .and_then(|file| file.set_len(SPARE_DISK_SIZE))
            .with_context(|| format!("making {}", path.display()))?;
        let file = format!("if=none,id=spare{number},format=raw,file={}", path.display());
        options.push(("-drive", format!("{file},cache=unsafe")));
        let disk = format!("scsi-hd,bus=spares.0,drive=spare{number},serial=spare{number}");
        options.push(("-device", disk));
    }
    let pairs = options.into_iter().flat_map(|(option, value)| [option.to_owned(), value]);
    Ok(["-nodefaults", "-no-user-config"].map(str::to_owned).into_iter().chain(pairs).collect())
}
