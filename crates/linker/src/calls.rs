//! Which functions of a program are called while it runs: each begins with a breakpoint until it is called (ptrace(2)).

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail};
use nix::sys::ptrace::{self, Event, Options};
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, alarm};

/// INT3; a thread that met it stands at the byte behind it (Intel SDM, volume 2A).
const BREAKPOINT: u8 = 0xcc;
/// What is watched takes some tenths of a second. SIGALRM ends us, and whom we watch ends with us.
const BOUND_SECONDS: u32 = 60;

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
        let names = String::from_utf8_lossy(&printed).lines().filter_map(function).collect();
        Ok(Functions { program, names })
    }

    /// Runs a command of the program to its end. Gives the functions that it was the first to call, as they lie in memory.
    pub(crate) fn called_by(&mut self, command: &Command) -> Result<Vec<String>> {
        let mut watched = Watched::start(command)?;
        alarm::set(BOUND_SECONDS);
        let called = watched.run(self);
        alarm::cancel();
        if called.is_err() {
            // It may have ended.
            let _ = watched.child.kill();
        }
        // Sorted, since which of two threads is the first to call a function is chance, and a build is not.
        let mut called = called?;
        called.sort_unstable();
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

struct Watched {
    child: Child,
    pid: Pid,
}

impl Watched {
    /// As a shell, which becomes the command once it is told to, so that nothing runs unwatched.
    fn start(command: &Command) -> Result<Watched> {
        let mut shell = Command::new("sh");
        shell.args(["-c", "read -r go; exec \"$0\" \"$@\""]).arg(command.get_program());
        shell.args(command.get_args());
        shell.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        shell.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = shell.spawn().context("starting sh")?;
        let pid = Pid::from_raw(child.id().try_into()?);
        let options =
            Options::PTRACE_O_TRACEEXEC | Options::PTRACE_O_TRACECLONE | Options::PTRACE_O_EXITKILL;
        ptrace::seize(pid, options).context("watching a command")?;
        Ok(Watched { child, pid })
    }

    /// Gives the places of the functions that were called.
    fn run(&mut self, functions: &Functions) -> Result<Vec<u64>> {
        // The end of its input is as good as a word.
        drop(self.child.stdin.take());
        let mut breakpoints = None;
        let mut called = Vec::new();
        loop {
            // It, and its threads, of whom we are not the parent.
            let ours = WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD;
            match waitpid(Pid::from_raw(-1), Some(ours))? {
                WaitStatus::Exited(pid, 0) if pid == self.pid => return Ok(called),
                WaitStatus::Exited(pid, status) if pid == self.pid => bail!("exit status {status}"),
                WaitStatus::Signaled(pid, signal, _) if pid == self.pid => {
                    bail!("ended by {signal}")
                }
                WaitStatus::PtraceEvent(pid, _, event) => {
                    if event == Event::PTRACE_EVENT_EXEC as i32 {
                        breakpoints = Breakpoints::set(pid, functions)?;
                    }
                    ptrace::cont(pid, None)?;
                }
                WaitStatus::Stopped(thread, Signal::SIGTRAP) => {
                    if let Some(breakpoints) = &mut breakpoints {
                        called.extend(breakpoints.pass(thread)?);
                    }
                    ptrace::cont(thread, None)?;
                }
                WaitStatus::Stopped(thread, signal) => ptrace::cont(thread, signal)?,
                _ => {}
            }
        }
    }
}

struct Breakpoints {
    memory: File,
    /// Where the program begins in it.
    base: u64,
    /// What stood where they stand, and whether it stands there again.
    bytes: BTreeMap<u64, (u8, bool)>,
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
        let memory = File::options().read(true).write(true).open(format!("/proc/{pid}/mem"))?;
        let mut bytes = BTreeMap::new();
        for &place in functions.names.keys() {
            let mut byte = [0];
            memory.read_exact_at(&mut byte, base + place)?;
            memory.write_all_at(&[BREAKPOINT], base + place)?;
            bytes.insert(place, (byte[0], false));
        }
        Ok(Some(Breakpoints { memory, base, bytes }))
    }

    /// Lets a thread that has stopped begin its function. Gives the function's place, unless another thread was there before.
    fn pass(&mut self, thread: Pid) -> Result<Option<u64>> {
        let mut registers = ptrace::getregs(thread)?;
        registers.rip -= 1;
        let place = registers.rip.wrapping_sub(self.base);
        let Some((byte, is_back)) = self.bytes.get_mut(&place) else { return Ok(None) };
        self.memory.write_all_at(&[*byte], registers.rip)?;
        ptrace::setregs(thread, registers)?;
        Ok((!std::mem::replace(is_back, true)).then_some(place))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROGRAM: &str = "
        #include <pthread.h>
        void in_main(void) {}
        void never(void) {}
        void by_word(void) {}
        static void *in_thread(void *nothing) { return nothing; }
        int main(int words, char **word) {
            pthread_t thread;
            in_main();
            if (words > 1) by_word();
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
                let ours = ["in_main", "never", "by_word", "in_thread", "main"];
                called.into_iter().filter(|name| ours.contains(&&**name)).collect()
            };
            let mut command = Command::new(&program);
            let called = functions.called_by(&command).unwrap();
            assert_eq!(ours(called), ["in_main", "in_thread", "main"], "{how}");
            let called = functions.called_by(command.arg("word")).unwrap();
            assert_eq!(ours(called), ["by_word"], "{how}");
        }
    }

    #[test]
    fn a_command_that_fails_is_told() {
        let mut functions = Functions::of(Path::new("/bin/false")).unwrap();
        let told = functions.called_by(&Command::new("/bin/false")).unwrap_err();
        assert_eq!(told.to_string(), "exit status 1");
    }
}
