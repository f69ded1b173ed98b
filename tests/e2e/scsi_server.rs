//! A server of SCSI devices on the loopback interface, tgt, and an engine whose guests get them by QEMU's iscsi driver, for
//! tests on machines that have none. That way is the tests' own; what the product does with devices of the VM Host is seen in
//! `guest_host`.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use hpvm_plan::command_line::{Value, device_properties, json, node_id};
use hpvm_plan::record::Attached;
use hpvm_testkit::vm_host::{Outcome, VmHost, repository};
use hpvm_testkit::wait::wait_until;
use hpvm_testkit::write_script;

const BOUND: Duration = Duration::from_secs(20);
const TARGET: &str = "iqn.2026-11.hpvm:devices";
const LIBRARIES: [&str; 3] = ["ld-linux-x86-64.so.2", "libc.so.6", "libpthread.so.0"];

/// A server without units.
pub(crate) struct ScsiServer {
    server: Child,
    pub(crate) folder: PathBuf,
    port: u16,
}

impl ScsiServer {
    pub(crate) fn open(host: &VmHost) -> ScsiServer {
        let folder = host.path("devices");
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
        let server = ScsiServer { server: server.expect("tgtd starts"), folder, port };
        wait_until(BOUND, "the server answers", || {
            let show = server.control("--op show --mode target");
            Outcome::of("tgtadm", show, b"").status.success()
        });
        server.obey(&format!("--op new --mode target --tid 1 --targetname {TARGET}"));
        server.obey("--op bind --mode target --tid 1 --initiator-address ALL");
        server
    }

    pub(crate) fn path(&self, name: &str) -> String {
        self.folder.join(name).display().to_string()
    }

    /// A unit on a file of the server's folder; `kind` are tgtadm's words for what it is.
    pub(crate) fn add(&self, lun: u8, kind: &str, file: &str) {
        let store = self.path(file);
        let unit = "--op new --mode logicalunit --tid 1";
        self.obey(&format!("{unit} --lun {lun} {kind} --backing-store {store}"));
    }

    /// The options of QEMU that put unit `lun` into the place of what backs a device; to the server the guest is `initiator`.
    pub(crate) fn options(&self, attached: &Attached, lun: u8, initiator: &str) -> String {
        let node = node_id(attached.device.address, 0);
        let properties = device_properties(attached, Some(&node));
        let properties = json(&Value::Group(properties));
        let portal = format!("portal=127.0.0.1:{},target={TARGET},lun={lun}", self.port);
        let source = format!("transport=tcp,initiator-name=iqn.2026-11.hpvm:{initiator}");
        format!("-blockdev driver=iscsi,node-name={node},{source},{portal} -device '{properties}'")
    }

    /// Has the named guests started with more options than the product gives them.
    pub(crate) fn give(&self, host: &mut VmHost, guests: &[(&str, String)]) {
        let script = host.path("engine");
        let cases = guests.iter().map(|(guest, options)| {
            format!("case \" $* \" in *' -name guest={guest},'*) set -- \"$@\" {options} ;; esac\n")
        });
        let commands = format!(
            "export QEMU_MODULE_DIR={0} LD_LIBRARY_PATH={0}\n{1}exec qemu-system-x86_64 \"$@\"",
            self.folder.display(),
            cases.collect::<String>()
        );
        write_script(&script, &commands);
        for path in [host.root(), &self.folder] {
            open_to_all(path);
        }
        host.set("HPVMQEMU", &script.to_string_lossy());
    }

    /// A disk that is an archive: files of the server's folder, and the libraries that a program among them needs and the
    /// guest has not.
    pub(crate) fn tools(&self, host: &VmHost, files: &[&str]) -> PathBuf {
        for name in LIBRARIES {
            let library = Path::new("/lib/x86_64-linux-gnu").join(name);
            fs::copy(library, self.folder.join(name)).expect("a library of this machine");
        }
        let archive = host.path("tools.img");
        let mut tar = Command::new("tar");
        tar.arg("--create").arg("--file").arg(&archive).arg("--directory").arg(&self.folder);
        tar.args(files).args(LIBRARIES);
        done("tar", tar);
        archive
    }

    fn obey(&self, words: &str) {
        done("tgtadm", self.control(words));
    }

    fn control(&self, words: &str) -> Command {
        let mut command = Command::new("timeout");
        command.arg("10").arg(self.folder.join("tgtadm")).args(["--lld", "iscsi"]);
        command.env("TGT_IPC_SOCKET", self.folder.join("control"));
        command.args(words.split(' ').filter(|word| !word.is_empty()));
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }
}

impl Drop for ScsiServer {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

fn open_to_all(path: &Path) {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("all may start it");
}

/// Runs a program that must succeed.
#[track_caller]
pub(crate) fn done(name: &str, mut command: Command) {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let outcome = Outcome::of(name, command, b"");
    assert!(outcome.status.success(), "{outcome}");
}
