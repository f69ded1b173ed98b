//! Which functions of a program are called while it runs: each begins with a breakpoint until it is called (ptrace(2)).

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use nix::sys::ptrace::{self, Event, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// INT3; a thread that met it stands at the byte behind it (Intel SDM, volume 2A).
const BREAKPOINT: u8 = 0xcc;
/// What is watched takes some tenths of a second.
const BOUND: Duration = Duration::from_secs(60);

/// The functions of a program that nothing has called so far.
pub(crate) struct Functions {
    program: PathBuf,
    /// By their places in the program.
    names: BTreeMap<u64, String>,
}

impl Functions {
    pub(crate) fn of(program: &Path) -> Result<Functions> {
        let program = fs::canonicalize(program)?;
        let printed = Command::new("nm").arg("--defined-only").arg(&program).output();
        let printed = printed.context("starting nm")?.stdout;
        let names: BTreeMap<u64, String> =
            String::from_utf8_lossy(&printed).lines().filter_map(function).collect();
        ensure!(!names.is_empty(), "{} has no names of functions", program.display());
        Ok(Functions { program, names })
    }

    /// Runs a command of the program to its end. Gives the functions that it was the first to call, as they lie in memory.
    pub(crate) fn called_by(&mut self, command: &Command) -> Result<Vec<String>> {
        let called = Watched::start(command)?.run_within(BOUND, self)?;
        // Sorted, since which of two threads is the first to call a function is chance, and a build is not.
        Ok(called.iter().filter_map(|place| self.names.remove(place)).collect())
    }
}

/// A line of nm(1): place, kind, name.
fn function(line: &str) -> Option<(u64, String)> {
    let mut words = line.split(' ');
    let (place, kind, name) = (words.next()?, words.next()?, words.next()?);
    let place = u64::from_str_radix(place, 16).ok()?;
    matches!(kind, "t" | "T" | "w" | "W" | "i").then(|| (place, name.to_owned()))
}

/// A command, with what it starts. It ends with its owner.
struct Watched {
    child: Child,
    pid: Pid,
    /// Its number may be another process's then.
    has_ended: bool,
}

impl Drop for Watched {
    fn drop(&mut self) {
        if !self.has_ended {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

impl Watched {
    /// As a shell, which becomes the command once it is told to, so that nothing runs unwatched.
    fn start(command: &Command) -> Result<Watched> {
        let mut shell = Command::new("sh");
        shell.args(["-c", "read -r go; exec \"$0\" \"$@\""]).arg(command.get_program());
        shell.args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => shell.env(name, value),
                None => shell.env_remove(name),
            };
        }
        shell.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = shell.spawn().context("starting sh")?;
        let pid = Pid::from_raw(child.id().try_into()?);
        let watched = Watched { child, pid, has_ended: false };
        let options = Options::PTRACE_O_TRACEEXEC
            | Options::PTRACE_O_TRACECLONE
            | Options::PTRACE_O_TRACEFORK
            | Options::PTRACE_O_TRACEVFORK
            | Options::PTRACE_O_EXITKILL;
        ptrace::seize(watched.pid, options).context("watching a command")?;
        Ok(watched)
    }

    /// Gives the places of the functions that were called.
    fn run_within(&mut self, bound: Duration, functions: &Functions) -> Result<BTreeSet<u64>> {
        let (pid, (over, is_over)) = (self.pid, mpsc::channel::<()>());
        thread::scope(|scope| {
            let guard = scope.spawn(move || {
                let is_late = is_over.recv_timeout(bound) == Err(RecvTimeoutError::Timeout);
                is_late.then(|| kill(pid, Signal::SIGKILL))
            });
            let called = self.run(functions);
            drop(over);
            match guard.join() {
                Ok(None) => called,
                _ => bail!("it takes longer than {} seconds", bound.as_secs()),
            }
        })
    }

    fn run(&mut self, functions: &Functions) -> Result<BTreeSet<u64>> {
        // The end of its input is as good as a word.
        drop(self.child.stdin.take());
        let mut breakpoints = None;
        let mut called = BTreeSet::new();
        loop {
            // It, its threads and what it started, of which we are not the parent.
            let ours = WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD;
            match waitpid(Pid::from_raw(-1), Some(ours)) {
                // All have ended.
                Err(Errno::ECHILD) => return Ok(called),
                Err(error) => return Err(error.into()),
                Ok(WaitStatus::Exited(pid, status)) if pid == self.pid => {
                    self.has_ended = true;
                    ensure!(status == 0, "exit status {status}");
                }
                Ok(WaitStatus::Signaled(pid, signal, _)) if pid == self.pid => {
                    self.has_ended = true;
                    bail!("ended by {signal}");
                }
                Ok(WaitStatus::PtraceEvent(pid, _, event)) => {
                    if pid == self.pid && event == Event::PTRACE_EVENT_EXEC as i32 {
                        breakpoints = Breakpoints::set(pid, functions)?;
                    }
                    go_on(pid, None)?;
                }
                Ok(WaitStatus::Stopped(thread, Signal::SIGTRAP)) => {
                    if let Some(breakpoints) = &breakpoints {
                        called.extend(breakpoints.pass(thread)?);
                    }
                    go_on(thread, None)?;
                }
                Ok(WaitStatus::Stopped(thread, signal)) => go_on(thread, Some(signal))?,
                Ok(_) => {}
            }
        }
    }
}

/// Whoever was killed while it stood still is waited for as all are.
fn go_on(thread: Pid, signal: Option<Signal>) -> Result<()> {
    match ptrace::cont(thread, signal) {
        Err(Errno::ESRCH) => Ok(()),
        other => Ok(other?),
    }
}

struct Breakpoints {
    /// Where the program begins in memory.
    base: u64,
    /// What stood where they stand.
    bytes: BTreeMap<u64, u8>,
}

impl Breakpoints {
    /// `None` in what is still the shell.
    fn set(pid: Pid, functions: &Functions) -> Result<Option<Breakpoints>> {
        let program = functions.program.to_string_lossy();
        let maps = fs::read_to_string(format!("/proc/{pid}/maps"))?;
        let mut places = maps.lines().filter(|place| place.ends_with(&*program));
        let Some((base, _)) = places.next().and_then(|first| first.split_once('-')) else {
            return Ok(None);
        };
        let base = u64::from_str_radix(base, 16)?;
        let memory = memory_of(pid)?;
        let mut bytes = BTreeMap::new();
        for &place in functions.names.keys() {
            let mut byte = [0];
            memory.read_exact_at(&mut byte, base + place)?;
            memory.write_all_at(&[BREAKPOINT], base + place)?;
            bytes.insert(place, byte[0]);
        }
        Ok(Some(Breakpoints { base, bytes }))
    }

    /// Lets a thread that has stopped begin its function, in its own memory: a process that was forked has the breakpoints that its
    /// parent had then. Gives the function's place.
    fn pass(&self, thread: Pid) -> Result<Option<u64>> {
        let mut registers = match ptrace::getregs(thread) {
            Err(Errno::ESRCH) => return Ok(None),
            registers => registers?,
        };
        registers.rip -= 1;
        let place = registers.rip.wrapping_sub(self.base);
        let Some(byte) = self.bytes.get(&place) else { return Ok(None) };
        memory_of(thread)?.write_all_at(&[*byte], registers.rip)?;
        ptrace::setregs(thread, registers)?;
        Ok(Some(place))
    }
}

fn memory_of(thread: Pid) -> Result<File> {
    Ok(File::options().read(true).write(true).open(format!("/proc/{thread}/mem"))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROGRAM: &str = "
        #include <pthread.h>
        #include <sys/wait.h>
        #include <unistd.h>
        void in_main(void) {}
        void never(void) {}
        void by_word(void) {}
        void in_child(void) {}
        static void *in_thread(void *nothing) { return nothing; }
        int main(int words, char **word) {
            pthread_t thread;
            in_main();
            if (words > 1) by_word();
            pid_t child = fork();
            if (!child) { in_main(); in_child(); _exit(0); }
            int status;
            if (waitpid(child, &status, 0) != child || status) return 1;
            return pthread_create(&thread, 0, in_thread, word) || pthread_join(thread, 0);
        }";

    #[test]
    fn each_function_is_told_by_the_first_command_that_calls_it() {
        let folder = tempfile::tempdir().unwrap();
        let (source, program) = (folder.path().join("program.c"), folder.path().join("program"));
        fs::write(&source, PROGRAM).unwrap();
        for how in ["-static-pie", "-pthread"] {
            let built =
                Command::new("cc").args(["-O0", how, "-o"]).args([&program, &source]).status();
            assert!(built.unwrap().success());
            let mut functions = Functions::of(&program).unwrap();
            let ours = |called: Vec<String>| -> Vec<String> {
                let ours = ["in_main", "never", "by_word", "in_child", "in_thread", "main"];
                called.into_iter().filter(|name| ours.contains(&&**name)).collect()
            };
            let mut command = Command::new(&program);
            let called = functions.called_by(&command).unwrap();
            assert_eq!(ours(called), ["in_main", "in_child", "in_thread", "main"], "{how}");
            let called = functions.called_by(command.arg("word")).unwrap();
            assert_eq!(ours(called), ["by_word"], "{how}");
        }
    }

    /// A script has the names of no functions, so any will do.
    fn watched(folder: &Path, script: &str) -> (Functions, Command) {
        let mut command = Command::new("sh");
        command.current_dir(folder).args(["-c", script]);
        (Functions { program: folder.to_owned(), names: BTreeMap::new() }, command)
    }

    #[test]
    fn a_command_that_fails_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let (mut functions, command) = watched(folder.path(), "exit 3");
        let told = functions.called_by(&command).unwrap_err();
        assert_eq!(told.to_string(), "exit status 3");
    }

    #[test]
    fn a_command_that_never_ends_is_ended() {
        let folder = tempfile::tempdir().unwrap();
        let (functions, command) = watched(folder.path(), "exec sleep 1000");
        let mut watched = Watched::start(&command).unwrap();
        let told = watched.run_within(Duration::from_millis(50), &functions).unwrap_err();
        assert_eq!(told.to_string(), "it takes longer than 0 seconds");
    }

    #[test]
    fn a_program_without_names_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("program");
        fs::write(&program, "").unwrap();
        let told = Functions::of(&program).err().unwrap();
        assert!(told.to_string().ends_with("has no names of functions"), "{told}");
    }
}
