//! A VM Host of a test's own: a folder under HPVM_ROOT, commands run in it with a bound, everything ended and removed when
//! it is dropped, also when the test failed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use hpvm_app::snapshot::Snapshot;
use hpvm_guesthost::KeptOff;
use hpvm_host::process::PidFd;
use rustix::process::Signal;

use crate::processors;
use crate::script::write_script;
use crate::wait::wait_until;

/// No command takes longer, and a test that waits longer has failed.
pub const COMMAND_BOUND: Duration = Duration::from_secs(180);
/// A command that has ended has closed its output, and none that goes on has it.
const PIPE_BOUND: Duration = Duration::from_secs(20);
/// The longest a command may take to refuse what it is asked.
pub const REFUSAL_BOUND: Duration = Duration::from_secs(5);

/// Which engine the host's guests run on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// `fake-qemu`, for all that the plan or a scripted engine can judge.
    Fake,
    Real,
}

pub struct VmHost {
    root: PathBuf,
    folder: tempfile::TempDir,
    /// Whose it is, when it is an ordinary user's: his home is the folder.
    user: Option<u32>,
    settings: Vec<(String, String)>,
    environment: Vec<(String, String)>,
    /// Where the commands are, when they are this VM Host's own.
    installed: Option<PathBuf>,
}

/// The programs of a VM Host that commands start.
const LBIN: [&str; 4] = ["hpvmkeeper", "hpvmapp", "hpvmnetd", "hpvmnat"];

/// What a command did.
#[derive(Debug)]
pub struct Outcome {
    pub line: String,
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
    /// Without the time in which others had the processors that the command was ready to use.
    pub took: Duration,
}

impl VmHost {
    #[must_use]
    pub fn new(engine: Engine) -> VmHost {
        let folder = tempfile::Builder::new().prefix("hpvm-t").tempdir().expect("a folder in /tmp");
        VmHost::in_folder(folder, None, engine)
    }

    /// An ordinary user's, where it lies without HPVM_ROOT, with programs installed in it: the user need not be able to
    /// reach the workspace.
    #[must_use]
    pub fn of_user(user: u32, engine: Engine) -> VmHost {
        let folder = tempfile::Builder::new().prefix("hpvm-t").tempdir().expect("a folder in /tmp");
        let mut host = VmHost::in_folder(folder, Some(user), engine);
        host.install();
        let owner = format!("{user}:{user}");
        let owned = Command::new("chown").args(["-R", &owner]).arg(host.folder.path()).status();
        assert!(owned.expect("chown runs").success(), "the folder is the user's");
        host
    }

    fn in_folder(folder: tempfile::TempDir, user: Option<u32>, engine: Engine) -> VmHost {
        if engine == Engine::Real {
            processors::take();
        }
        let root = match user {
            Some(_) => folder.path().join(".local/share/hpvm"),
            None => folder.path().to_owned(),
        };
        let (settings, environment) = (Vec::new(), Vec::new());
        let mut host = VmHost { root, folder, user, settings, environment, installed: None };
        if engine == Engine::Fake {
            host.set("HPVMQEMU", &program("fake-qemu").to_string_lossy());
        }
        let rom = repository().join(".cache/images/mptsas1068.rom");
        host.set("HPVMSCSIROM", &rom.to_string_lossy());
        host
    }

    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// A path below the root.
    #[must_use]
    pub fn path(&self, below: &str) -> PathBuf {
        self.root().join(below)
    }

    /// Sets a tunable in hpvmconf.
    pub fn set(&mut self, name: &str, value: &str) {
        self.settings.retain(|(set, _)| set != name);
        self.settings.push((name.into(), value.into()));
        let path = self.path("etc/opt/hpvm/hpvmconf");
        fs::create_dir_all(path.parent().expect("below the root")).expect("a folder");
        let text: String = self.settings.iter().map(|(n, v)| format!("{n}='{v}'\n")).collect();
        fs::write(path, text).expect("hpvmconf is written");
    }

    /// Gives later guests a fake engine that behaves as [`crate::fake::behaviour`] lists.
    pub fn engine_behaves(&mut self, behaviour: &str) {
        self.engine_after(&format!("export HPVM_FAKE_QEMU='{behaviour}'"));
    }

    /// Gives later guests a fake engine that a shell starts after these commands. The keeper hands no environment on, and
    /// an engine runs as the guest's own user.
    pub fn engine_after(&mut self, commands: &str) {
        let engine = self.path("engine");
        fs::set_permissions(self.root(), fs::Permissions::from_mode(0o711)).expect("it may be run");
        let fake = program("fake-qemu");
        write_script(&engine, &format!("{commands}\nexec {} \"$@\"", fake.display()));
        self.set("HPVMQEMU", &engine.to_string_lossy());
    }

    /// Gives this VM Host programs of its own below `/opt/hpvm`, where a test may replace them.
    pub fn install(&mut self) {
        fs::set_permissions(self.root(), fs::Permissions::from_mode(0o711)).expect("it may be run");
        let folders = ["bin", "lbin"].map(|name| self.path("opt/hpvm").join(name));
        for folder in &folders {
            fs::create_dir_all(folder).expect("a folder");
        }
        let command = folders[0].join("hpvm");
        place(&program("hpvm"), &command);
        for name in LBIN {
            place(&program(name), &folders[1].join(name));
        }
        self.installed = Some(command);
    }

    /// Puts another version in the place of an installed program, as a package does: a script that runs the program as it was
    /// built, with these arguments.
    pub fn replace_program(&self, name: &str, arguments: &str) {
        self.replace_program_by(name, |real| format!("exec {real} {arguments}"));
    }

    /// Has whoever starts an installed program ignore how children end (SIGCHLD), as many daemons and scripts do: what they start
    /// would do so too.
    pub fn start_ignoring_children(&self, name: &str) {
        self.replace_program_by(name, |real| {
            format!("exec env --ignore-signal=CHLD {real} \"$@\"")
        });
    }

    fn replace_program_by(&self, name: &str, script: impl FnOnce(&str) -> String) {
        let lbin = self.path("opt/hpvm/lbin");
        let real = lbin.join(format!("{name}.built"));
        if !real.exists() {
            place(&program(name), &real);
        }
        write_script(&lbin.join(name), &script(&real.to_string_lossy()));
    }

    /// Gives later commands an environment variable.
    pub fn environment(&mut self, name: &str, value: &str) {
        self.environment.retain(|(set, _)| set != name);
        self.environment.push((name.into(), value.into()));
    }

    pub fn without_environment(&mut self, name: &str) {
        self.environment.retain(|(set, _)| set != name);
    }

    /// A file of so many bytes, for a disk.
    #[must_use]
    pub fn disk(&self, name: &str, bytes: u64) -> PathBuf {
        let path = self.path(name);
        fs::File::create(&path).and_then(|f| f.set_len(bytes)).expect("a disk file");
        path
    }

    /// A copy of an image, for a guest that boots.
    #[must_use]
    pub fn copy_of(&self, image: &Path, name: &str) -> PathBuf {
        let path = self.path(name);
        fs::copy(image, &path).expect("a copy of the image");
        path
    }

    /// Makes a Linux guest with so much memory and these devices.
    pub fn create(&self, name: &str, memory: &str, devices: &[impl AsRef<str>]) {
        let mut line = vec!["hpvmcreate", "-P", name, "-O", "linux", "-r", memory];
        line.extend(devices.iter().flat_map(|device| ["-a", device.as_ref()]));
        self.ok(&line);
    }

    /// A command ready to be started: `hpvmstatus -P web`.
    #[must_use]
    pub fn command(&self, line: &[&str]) -> Command {
        let hpvm = self.installed.clone().unwrap_or_else(|| program("hpvm"));
        let mut command = Command::new(hpvm);
        command.arg0(line[0]).args(&line[1..]).env("HPVM_ROOT", self.root());
        command.env_remove("HPVM_ACCEL").env_remove("HPVM_ABORT_AT").current_dir("/");
        command.envs(self.environment.iter().map(|(n, v)| (n, v)));
        if let Some(user) = self.user {
            command.env_remove("HPVM_ROOT").env_remove("XDG_DATA_HOME");
            command.env_remove("XDG_RUNTIME_DIR").env("HOME", self.folder.path());
            command.uid(user).gid(user);
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// The same as another user would type it, who names this VM Host.
    #[must_use]
    pub fn command_as(&self, user: u32, line: &[&str]) -> Command {
        let mut command = self.command(line);
        command.env("HPVM_ROOT", self.root()).uid(user).gid(user);
        command
    }

    /// The same from programs that lie in another folder.
    #[must_use]
    pub fn command_from(&self, folder: &Path, line: &[&str]) -> Command {
        let own = self.command(line);
        let mut command = Command::new(folder.join("hpvm"));
        command.arg0(line[0]).args(own.get_args()).current_dir("/");
        for (name, value) in own.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Runs a command to its end.
    pub fn run(&self, line: &[&str]) -> Outcome {
        self.run_with_input(line, b"")
    }

    pub fn run_with_input(&self, line: &[&str], input: &[u8]) -> Outcome {
        let mut command = self.command(line);
        if !input.is_empty() {
            command.stdin(Stdio::piped());
        }
        Outcome::of(&line.join(" "), command, input)
    }

    /// Runs a command that must succeed; gives what it printed.
    #[track_caller]
    pub fn ok(&self, line: &[&str]) -> String {
        let outcome = self.run(line);
        assert!(outcome.status.success(), "{outcome}");
        outcome.stdout
    }

    /// Runs a command that must be refused in time with exit status 1; gives what it said.
    #[track_caller]
    pub fn refused(&self, line: &[&str]) -> String {
        let outcome = self.run(line);
        assert_eq!(outcome.status.code(), Some(1), "{outcome}");
        outcome.assert_prompt();
        outcome.stderr
    }

    /// What the worker of guest NUMBER published.
    #[must_use]
    pub fn snapshot(&self, number: u32) -> Option<Snapshot> {
        let text = fs::read_to_string(self.run_dir(number).join("status")).ok()?;
        Snapshot::from_file(&text).map(|(_, snapshot)| snapshot)
    }

    #[must_use]
    pub fn run_dir(&self, number: u32) -> PathBuf {
        self.path("run/hpvm").join(number.to_string())
    }

    /// QEMU of guest NUMBER.
    #[must_use]
    pub fn qemu(&self, number: u32) -> Option<PidFd> {
        let process = self.snapshot(number)?.qemu;
        PidFd::open(process.pid, process.start_time).ok().flatten()
    }

    /// The state column of a guest, as hpvmstatus prints it.
    #[must_use]
    pub fn state(&self, name: &str) -> String {
        let text = self.ok(&["hpvmstatus"]);
        let line = text.lines().find(|l| l.split_whitespace().next() == Some(name));
        line.and_then(|l| l.get(35..44)).unwrap_or_default().trim().to_owned()
    }

    #[track_caller]
    pub fn wait_for_state(&self, name: &str, state: &str, bound: Duration) {
        wait_until(bound, &format!("'{name}' is {state}"), || self.state(name) == state);
    }

    /// Processes that have files of this VM Host open, by their number, and what they are. A command that another test has just
    /// begun has all files of this process until its program runs, and is nobody's.
    #[must_use]
    pub fn processes(&self) -> Vec<(i32, String)> {
        let program = |pid: &str| fs::read_link(format!("/proc/{pid}/exe")).ok();
        let own_program = program("self");
        let run = fs::canonicalize(self.path("run/hpvm")).unwrap_or_else(|_| self.path("run/hpvm"));
        let places = [self.root().to_owned(), run];
        let ours = |pid: &i32| {
            // Asked first: one that begins its program in between has none of these files any more.
            if program(&pid.to_string()) == own_program {
                return false;
            }
            let links = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
            let mut targets = links.filter_map(|link| fs::read_link(link.path()).ok());
            targets.any(|target| places.iter().any(|place| target.starts_with(place)))
        };
        let numbers = fs::read_dir("/proc").expect("/proc").flatten();
        numbers
            .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
            .filter(|pid| u32::try_from(*pid).is_ok_and(|p| p != std::process::id()) && ours(pid))
            .map(|pid| {
                let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
                (pid, name.trim().to_owned())
            })
            .collect()
    }
}

impl VmHost {
    /// Ends every process of this VM Host. A test that takes a file system away calls it before.
    pub fn end_processes(&self) {
        end_all(|| self.processes_and_children());
    }

    /// Ends every process that runs this program.
    ///
    /// # Panics
    ///
    /// When others take their places again and again.
    pub fn end_program(&self, program: &str) {
        end_all(|| self.running(program));
        let left = described(&self.running(program));
        assert!(left.is_empty(), "these are there still, or again: {left:#?}");
    }

    /// Every process that runs this program, also one that has just been born and is listed under another name.
    #[must_use]
    pub fn running(&self, program: &str) -> BTreeSet<i32> {
        let runs_it = |pid: &i32| {
            let link = fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
            let name = link.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            // A program that was replaced is called so.
            name.strip_suffix(" (deleted)").unwrap_or(name) == program
        };
        self.processes_and_children().into_iter().filter(runs_it).collect()
    }

    /// With those that were just born and have nothing open yet.
    fn processes_and_children(&self) -> BTreeSet<i32> {
        let own: Vec<i32> = self.processes().into_iter().map(|(pid, _)| pid).collect();
        let children = own.iter().flat_map(|pid| {
            let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
            tasks.filter_map(|task| fs::read_to_string(task.path().join("children")).ok())
        });
        let children: Vec<String> = children.collect();
        let children = children.iter().flat_map(|all| all.split_whitespace());
        own.iter().copied().chain(children.filter_map(|pid| pid.parse().ok())).collect()
    }
}

/// Ends those that bring each other back: none may run on while another is ended, so all are stopped first. One that was being
/// born meanwhile, and goes on in their place, is ended with its own.
fn end_all(living: impl Fn() -> BTreeSet<i32>) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while end_once(&living) && Instant::now() < deadline {}
}

/// Whether there were any.
fn end_once(living: impl Fn() -> BTreeSet<i32>) -> bool {
    let mut stopped = BTreeMap::new();
    loop {
        let left = living();
        let new = left.into_iter().filter(|pid| !stopped.contains_key(pid));
        let new: Vec<(i32, PidFd)> =
            new.filter_map(|pid| Some((pid, PidFd::open_number(pid).ok()??))).collect();
        if new.is_empty() {
            break;
        }
        for (pid, process) in new {
            let _ = process.signal(Signal::STOP);
            stopped.insert(pid, process);
        }
    }
    for process in stopped.values() {
        let _ = process.signal(Signal::KILL);
    }
    for process in stopped.values() {
        let _ = process.wait_exit(Duration::from_secs(2));
    }
    !stopped.is_empty()
}

fn described(processes: &BTreeSet<i32>) -> Vec<String> {
    let read = |pid: &i32, name: &str| fs::read_to_string(format!("/proc/{pid}/{name}"));
    let line = |pid| {
        let stat = read(pid, "stat").unwrap_or_default();
        format!(
            "{} {}",
            stat.trim_end(),
            read(pid, "cmdline").unwrap_or_default().replace('\0', " ")
        )
    };
    processes.iter().map(line).collect()
}

impl Drop for VmHost {
    fn drop(&mut self) {
        self.end_processes();
        if let Ok(run) = fs::read_link(self.path("run/hpvm")) {
            let _ = fs::remove_dir_all(run);
        }
    }
}

impl Outcome {
    /// Runs a command that a test put together itself to its end; `line` names it in messages.
    #[must_use]
    pub fn of(line: &str, mut command: Command, input: &[u8]) -> Outcome {
        let since = Instant::now();
        finish(line, command.spawn().expect("the program starts"), since, input)
    }

    /// A refusal, or an answer that nothing may hold up.
    #[track_caller]
    pub fn assert_prompt(&self) {
        assert!(self.took < REFUSAL_BOUND, "took {:?}: {self}", self.took);
    }
}

fn finish(line: &str, mut child: Child, since: Instant, input: &[u8]) -> Outcome {
    if let Some(mut stdin) = child.stdin.take() {
        let input = input.to_vec();
        // A command that reads nothing closes its end; what it makes of that is what the test looks at.
        thread::spawn(move || stdin.write_all(&input));
    }
    let stdout = gather(child.stdout.take());
    let stderr = gather(child.stderr.take());
    let pid = i32::try_from(child.id()).expect("a process number");
    let kept_off = KeptOff::by(Some(pid));
    let ended = PidFd::open_number(pid)
        .ok()
        .flatten()
        .is_none_or(|process| process.wait_exit(COMMAND_BOUND).unwrap_or(false));
    if !ended {
        let _ = child.kill();
    }
    // The kernel keeps its account until somebody waits for it.
    let took = since.elapsed().saturating_sub(kept_off.since_then());
    let status = child.wait().expect("the command is our child");
    let (stdout, stderr) = (stdout(line), stderr(line));
    let outcome = Outcome { line: line.to_owned(), status, stdout, stderr, took };
    assert!(ended, "not finished after {COMMAND_BOUND:?}: {outcome}");
    outcome
}

/// Reads a pipe beside the others, so that none fills up.
fn gather(pipe: Option<impl Read + Send + 'static>) -> impl FnOnce(&str) -> String {
    let (done, text) = mpsc::channel();
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            let _ = pipe.read_to_end(&mut bytes);
        }
        done.send(String::from_utf8_lossy(&bytes).into_owned())
    });
    move |line| {
        let text = text.recv_timeout(PIPE_BOUND);
        text.unwrap_or_else(|_| panic!("somebody has the output of '{line}' open after its end"))
    }
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Outcome { line, status, stdout, stderr, took: _ } = self;
        write!(f, "$ {line}\n{stdout}{stderr}[{status}]")
    }
}

/// The same file in another folder, or a copy where that cannot be.
fn place(program: &Path, to: &Path) {
    if fs::hard_link(program, to).is_err() {
        fs::copy(program, to).expect("a copy of the program");
    }
}

/// A program of the workspace, built beside the test that runs.
#[must_use]
pub fn program(name: &str) -> PathBuf {
    let own = std::env::current_exe().expect("our own path");
    let folder = own.parent().expect("a folder");
    let folder = if folder.ends_with("deps") { folder.parent().expect("target") } else { folder };
    let path = folder.join(name);
    assert!(path.exists(), "{} is not built; `make test` builds it", path.display());
    path
}

/// The root of the repository.
#[must_use]
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().expect("the repository")
}
