//! Tries what the worker's confinement forbids, and what it must leave possible.
//!
//! Each probe is a process of its own: this program, run again as `confine probe NAME FOLDER`. It confines itself as a worker
//! does, tries one thing, and says by its exit status what came of it.

use std::fs::{self, File};
use std::io::{self, Write};
use std::net::{TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use hpvm_host::confine::{Confinement, Enforced};
use hpvm_host::users::{self, Ids};
use nix::libc;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::ptrace;

const WORKER: Ids = Ids { uid: 1_500_078, gid: 1_500_078 };

/// What a probe must come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Works,
    /// EPERM or EACCES.
    Refused,
    /// Killed by SIGSYS.
    Killed,
    Other,
}

struct Probe {
    name: &'static str,
    wanted: Outcome,
    attempt: fn(&Path) -> io::Result<()>,
}

const PROBES: &[Probe] = &[
    Probe { name: "read a file everybody may read", wanted: Outcome::Refused, attempt: passwd },
    Probe { name: "read /etc/shadow", wanted: Outcome::Refused, attempt: shadow },
    Probe { name: "list /", wanted: Outcome::Refused, attempt: |_| fs::read_dir("/").map(drop) },
    Probe { name: "make a file elsewhere", wanted: Outcome::Refused, attempt: elsewhere },
    Probe { name: "read another guest's run folder", wanted: Outcome::Refused, attempt: neighbour },
    Probe { name: "make a TCP socket", wanted: Outcome::Refused, attempt: tcp },
    Probe { name: "make a UDP socket", wanted: Outcome::Refused, attempt: udp },
    Probe { name: "start a shell", wanted: Outcome::Refused, attempt: shell },
    Probe { name: "start what it wrote itself", wanted: Outcome::Refused, attempt: own_program },
    Probe { name: "signal another process", wanted: Outcome::Refused, attempt: signal_parent },
    Probe { name: "trace another process", wanted: Outcome::Killed, attempt: trace_parent },
    Probe { name: "mount", wanted: Outcome::Killed, attempt: mount_something },
    Probe { name: "make a namespace", wanted: Outcome::Killed, attempt: namespace },
    Probe { name: "work in its folder", wanted: Outcome::Works, attempt: work_in_folder },
    Probe { name: "serve a socket in its folder", wanted: Outcome::Works, attempt: serve },
    Probe { name: "have threads", wanted: Outcome::Works, attempt: threads },
    Probe { name: "start a listed program", wanted: Outcome::Works, attempt: listed_program },
    Probe { name: "be confined again and again", wanted: Outcome::Works, attempt: again },
    Probe { name: "still be refused then", wanted: Outcome::Refused, attempt: refused_again },
];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["probe", name, folder] => probe(name, Path::new(folder)),
        ["hello"] => ExitCode::SUCCESS,
        _ => run_all(),
    }
}

fn run_all() -> ExitCode {
    let failed: Vec<String> = PROBES.iter().filter_map(|probe| run(probe).err()).collect();
    for failure in &failed {
        println!("FAILED {failure}");
    }
    println!("{} probes, {} failed", PROBES.len(), failed.len());
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Runs one probe in a process of its own; the error says what came instead.
fn run(probe: &Probe) -> Result<(), String> {
    let stage = tempfile::tempdir().expect("a folder");
    fs::set_permissions(stage.path(), PermissionsExt::from_mode(0o755)).expect("reachable");
    let folder = stage.path().join("7");
    fs::create_dir(&folder).expect("a run folder");
    fs::create_dir(stage.path().join("8")).expect("another guest's");
    fs::write(stage.path().join("8/status"), "secret").expect("written");
    if users::is_root() {
        chown(&folder, Some(WORKER.uid), Some(WORKER.gid)).expect("owned by the worker");
    }
    // A program in a place that the worker's user reaches, as /opt is.
    let program = stage.path().join("hpvmkeeper");
    fs::copy(std::env::current_exe().expect("our path"), &program).expect("copied");
    let ended = Command::new(&program)
        .args(["probe", probe.name])
        .arg(&folder)
        .stdin(Stdio::null())
        .output()
        .expect("the probe runs");
    let outcome = match (ended.status.code(), ended.status.signal()) {
        (Some(0), _) => Outcome::Works,
        (Some(10), _) => Outcome::Refused,
        (_, Some(libc::SIGSYS)) => Outcome::Killed,
        _ => Outcome::Other,
    };
    if outcome == probe.wanted {
        println!("ok {}: {outcome:?}", probe.name);
        return Ok(());
    }
    let said = String::from_utf8_lossy(&ended.stderr).into_owned();
    Err(format!(
        "{}: {outcome:?} instead of {:?}; {} {said}",
        probe.name, probe.wanted, ended.status
    ))
}

fn probe(name: &str, folder: &Path) -> ExitCode {
    let probe = PROBES.iter().find(|probe| probe.name == name).expect("a known probe");
    let enforced = confine(folder).expect("confined");
    assert_eq!(
        enforced,
        Enforced::Partly,
        "the kernel of tests has Landlock, though not its newest"
    );
    match (probe.attempt)(folder) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => ExitCode::from(10),
        Err(error) => {
            eprintln!("{error:?}");
            ExitCode::from(11)
        }
    }
}

fn confine(folder: &Path) -> Result<Enforced, hpvm_host::confine::ConfineError> {
    let opened = File::open(folder).expect("the run folder");
    let keeper = std::env::current_exe().expect("our path");
    Confinement {
        ids: users::is_root().then_some(WORKER),
        folder: opened.as_fd(),
        read_beneath: &[],
        read: &[],
        execute: &[&keeper],
    }
    .apply()
}

fn passwd(_: &Path) -> io::Result<()> {
    File::open("/etc/passwd").map(drop)
}

fn shadow(_: &Path) -> io::Result<()> {
    File::open("/etc/shadow").map(drop)
}

fn elsewhere(_: &Path) -> io::Result<()> {
    let path = PathBuf::from(format!("/tmp/hpvm-probe-{}", std::process::id()));
    let made = File::create(&path);
    // Only to be found if the confinement has a hole.
    let _ = fs::remove_file(path);
    made.map(drop)
}

fn neighbour(folder: &Path) -> io::Result<()> {
    fs::read(folder.with_file_name("8").join("status")).map(drop)
}

fn tcp(_: &Path) -> io::Result<()> {
    TcpStream::connect("127.0.0.1:22").map(drop)
}

fn udp(_: &Path) -> io::Result<()> {
    UdpSocket::bind("127.0.0.1:0").map(drop)
}

fn shell(_: &Path) -> io::Result<()> {
    Command::new("/bin/sh").args(["-c", "exit 0"]).status().map(drop)
}

fn own_program(folder: &Path) -> io::Result<()> {
    let path = folder.join("program");
    fs::write(&path, "#!/bin/sh\n")?;
    fs::set_permissions(&path, PermissionsExt::from_mode(0o755))?;
    Command::new(path).status().map(drop)
}

fn parent() -> nix::unistd::Pid {
    nix::unistd::getppid()
}

fn signal_parent(_: &Path) -> io::Result<()> {
    // No signal at all, only the question whether it might.
    nix::sys::signal::kill(parent(), None).map_err(io::Error::from)
}

fn trace_parent(_: &Path) -> io::Result<()> {
    ptrace::seize(parent(), ptrace::Options::empty()).map_err(io::Error::from)
}

fn mount_something(folder: &Path) -> io::Result<()> {
    mount(Some("none"), folder, Some("tmpfs"), MsFlags::empty(), None::<&str>)
        .map_err(io::Error::from)
}

fn namespace(_: &Path) -> io::Result<()> {
    unshare(CloneFlags::CLONE_NEWUSER).map_err(io::Error::from)
}

fn work_in_folder(folder: &Path) -> io::Result<()> {
    let fresh = folder.join("status.new");
    let mut file = File::create(&fresh)?;
    file.write_all(b"hpvm-status 1")?;
    file.sync_all()?;
    file.set_len(4)?;
    fs::rename(&fresh, folder.join("status"))?;
    let text = fs::read_to_string(folder.join("status"))?;
    assert_eq!(text, "hpvm");
    fs::remove_file(folder.join("status"))
}

fn serve(folder: &Path) -> io::Result<()> {
    let path = folder.join("control");
    let listener = UnixListener::bind(&path)?;
    let mut client = UnixStream::connect(&path)?;
    let (mut server, _) = listener.accept()?;
    server.set_nonblocking(true)?;
    client.write_all(b"x")?;
    let stdin = io::stdin();
    let descriptors = [stdin.as_fd()];
    hpvm_host::fdpass::send(&client, b"y", &descriptors)?;
    let mut buffer = [0; 2];
    let (length, _) = hpvm_host::fdpass::receive(&server, &mut buffer)?;
    assert!(length >= 1);
    server.flush()
}

fn threads(_: &Path) -> io::Result<()> {
    let sum = std::thread::Builder::new().spawn(|| 40 + 2)?.join();
    assert_eq!(sum.ok(), Some(42));
    Ok(())
}

fn listed_program(_: &Path) -> io::Result<()> {
    let status =
        Command::new(std::env::current_exe()?).arg("hello").stdin(Stdio::null()).status()?;
    if status.success() { Ok(()) } else { Err(io::Error::other(format!("{status}"))) }
}

/// More often than the kernel takes layers.
fn again(folder: &Path) -> io::Result<()> {
    for _ in 0..20 {
        assert_eq!(confine_further(folder)?, Enforced::Inherited);
    }
    work_in_folder(folder)?;
    listed_program(folder)
}

fn refused_again(folder: &Path) -> io::Result<()> {
    confine_further(folder)?;
    passwd(folder)
}

/// As the worker of a successor does, which is root no more.
fn confine_further(folder: &Path) -> io::Result<Enforced> {
    let opened = File::open(folder)?;
    let keeper = std::env::args_os().next().expect("our path");
    Confinement {
        ids: None,
        folder: opened.as_fd(),
        read_beneath: &[],
        read: &[],
        execute: &[Path::new(&keeper)],
    }
    .apply()
    .map_err(io::Error::other)
}
