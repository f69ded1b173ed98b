//! What a Linux guest does with a tape and a changer that are attached to it. The machine of the test need not have any: tgt
//! serves them on the loopback interface, and QEMU's iscsi driver hands them to the very devices that the product makes of
//! `tape:scsi:…:attach:…`. That way is the test's own. What the product does with nodes of the VM Host up to QEMU is seen in
//! `guest_host::attached`.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use hpvm_model::{Backing, DeviceKind, DiskId, StorageDevice, StorageType};
use hpvm_plan::command_line::{Value, device_properties, json, node_id};
use hpvm_plan::record::{Access, Attached, Cache, Sharing};
use hpvm_testkit::guest::Console;
use hpvm_testkit::vm_host::{Engine, Outcome, VmHost, repository};
use hpvm_testkit::wait::wait_until;

use crate::Test;
use crate::pool::image;

pub(crate) const TESTS: &[Test] = crate::tests![a_guest_writes_a_tape_and_finds_a_changer];

const BOUND: Duration = Duration::from_secs(20);
const TARGET: &str = "iqn.2026-11.hpvm:library";

/// A server with a tape as its unit 1 and a changer as unit 2.
struct Library {
    server: Child,
    folder: PathBuf,
    port: u16,
}

impl Library {
    fn open(host: &VmHost) -> Library {
        let folder = host.path("library");
        fs::create_dir(&folder).expect("a folder");
        let archive = repository().join(".cache/images/scsi-target.tar");
        assert!(archive.exists(), "{} is not there; `make test` builds it", archive.display());
        let mut unpack = Command::new("tar");
        unpack.arg("--extract").arg("--file").arg(&archive).arg("--directory").arg(&folder);
        done("tar", unpack);
        // Nobody else takes a port that was just given out, as long as few are asked for.
        let port = TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr());
        let port = port.expect("a free port").port();
        let mut command = Command::new(folder.join("tgtd"));
        command.args(["-f", "--iscsi", &format!("portal=127.0.0.1:{port}")]);
        command.env("TGT_IPC_SOCKET", folder.join("control"));
        let log = fs::File::create(folder.join("log")).expect("a log");
        let server = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn();
        let library = Library { server: server.expect("tgtd starts"), folder, port };
        library.fill();
        library
    }

    fn fill(&self) {
        let path = |name: &str| self.folder.join(name).display().to_string();
        let mut tape = Command::new(self.folder.join("tgtimg"));
        tape.args(["--op", "new", "--device-type", "tape", "--barcode", "TAPE", "--size", "64"]);
        tape.args(["--type", "data", "--file", &path("tape")]);
        done("tgtimg", tape);
        fs::write(self.folder.join("changer"), [0; 1024]).expect("a file for the changer");
        wait_until(BOUND, "the server answers", || {
            Outcome::of("tgtadm", self.control("--op show --mode target"), b"").status.success()
        });
        let unit = "--op new --mode logicalunit --tid 1 --lun";
        for words in [
            format!("--op new --mode target --tid 1 --targetname {TARGET}"),
            format!("{unit} 1 --device-type tape --bstype ssc --backing-store {}", path("tape")),
            format!("{unit} 2 --device-type changer --backing-store {}", path("changer")),
            "--op bind --mode target --tid 1 --initiator-address ALL".into(),
        ] {
            done("tgtadm", self.control(&words));
        }
    }

    fn control(&self, words: &str) -> Command {
        let mut command = Command::new("timeout");
        command.arg("10").arg(self.folder.join("tgtadm")).args(["--lld", "iscsi"]);
        command.env("TGT_IPC_SOCKET", self.folder.join("control"));
        command.args(words.split(' ')).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// The options of QEMU that put unit `lun` into the place of what backs a device.
    fn options(&self, device: &StorageDevice, lun: u8) -> String {
        let node = node_id(device.address, 0);
        let properties = device_properties(&in_machine(device), Some(&node), None);
        let properties = json(&Value::Group(properties));
        let portal = format!("portal=127.0.0.1:{},target={TARGET},lun={lun}", self.port);
        let source = "transport=tcp,initiator-name=iqn.2026-11.hpvm:test";
        format!("-blockdev driver=iscsi,node-name={node},{source},{portal} -device '{properties}'")
    }
}

impl Drop for Library {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

#[track_caller]
fn done(name: &str, mut command: Command) {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let outcome = Outcome::of(name, command, b"");
    assert!(outcome.status.success(), "{outcome}");
}

fn attached(kind: DeviceKind, address: &str) -> StorageDevice {
    let (adapter, id) = (hpvm_model::AdapterKind::Scsi, DiskId::from_random(0));
    let address = address.parse().expect("an address");
    let backing = Backing::new(StorageType::Attach, "/dev/sg0");
    StorageDevice { kind, adapter, address, backing, layers: Vec::new(), id }
}

fn in_machine(device: &StorageDevice) -> Attached {
    let (access, cache, sharing) = (Access::ReadWrite, Cache::Page, Sharing::Alone);
    Attached { device: device.clone(), identity: None, access, cache, sharing, layers: Vec::new() }
}

/// An engine whose guests have more options than the product gives them.
fn engine_with(host: &mut VmHost, library: &Path, options: &str) {
    let script = host.path("engine");
    let text = format!(
        "#!/bin/sh\nexport QEMU_MODULE_DIR={0} LD_LIBRARY_PATH={0}\n\
         case \" $* \" in *' -name guest='*) set -- \"$@\" {options} ;; esac\n\
         exec qemu-system-x86_64 \"$@\"\n",
        library.display()
    );
    fs::write(&script, text).expect("a script");
    for path in [host.root(), library, &script] {
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("all may start it");
    }
    host.set("HPVMQEMU", &script.to_string_lossy());
}

/// Settles 68: the guest's commands go to the device, its resets do not, so no driver waits for one; the reset that the
/// device reports at first is taken by both adapters.
fn a_guest_writes_a_tape_and_finds_a_changer() {
    let mut host = VmHost::new(Engine::Real);
    let library = Library::open(&host);
    let tape = attached(DeviceKind::Tape, "0,5,1");
    let changer = attached(DeviceKind::Changer, "0,6,1");
    let options = [library.options(&tape, 1), library.options(&changer, 2)].join(" ");
    engine_with(&mut host, &library.folder, &options);
    let boot = host.copy_of(&image("test-full"), "boot.img");
    let boot = format!("disk:avio_stor:0,0,0:file:{}", boot.display());
    // The adapters on which the attached devices sit come with a drive each.
    let drives = ["dvd:scsi:0,5,0:null:/none", "dvd:avio_stor:0,6,0:null:/none"];
    let create = ["hpvmcreate", "-P", "web", "-O", "linux", "-r", "576M", "-a", &boot];
    host.ok(&[&create[..], &["-a", drives[0], "-a", drives[1]]].concat());
    host.ok(&["hpvmstart", "-P", "web"]);
    let mut console = Console::attach(&host.run_dir(1));
    console.wait_for_shell();
    let types = console.run("cat /sys/class/scsi_generic/*/device/type | sort -n | tr '\\n' ' '");
    assert_eq!(types.trim(), "0 1 5 5 8");
    console.run("modprobe st");
    let seen = console.run(
        "until [ -c /dev/nst0 ]; do usleep 20000; done; cat /sys/class/scsi_tape/st0/device/model",
    );
    assert_eq!(seen.trim(), "VIRTUAL-TAPE");

    // The driver ends each part with a file mark.
    console.run("for part in one two; do echo part $part | dd of=/dev/nst0 bs=512 conv=sync; done");
    console.run("mt -f /dev/nst0 rewind && mt -f /dev/nst0 fsf 1");
    assert_eq!(console.run("dd if=/dev/nst0 bs=512 count=1 2>&- | head -n 1"), "part two");
    let content = fs::read(library.folder.join("tape")).expect("the tape's file");
    for part in [&b"part one"[..], b"part two"] {
        assert!(content.windows(part.len()).any(|bytes| bytes == part), "it is on the tape");
    }

    let complaints =
        "dmesg | grep -iE 'mpt|scsi|st[0-9]' | grep -iE 'abort|attempt|fail|error|timed? ?out'";
    assert_eq!(console.run(complaints), "");
}
