//! The same QEMU command line without hpvm: a running guest's line is taken from /proc, and each descriptor it names is
//! opened again for a process of our own.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use command_fds::{CommandFdExt, FdMapping};
use rustix::fs::OFlags;

use super::process;

/// A line to run, and the files for it.
pub(super) struct Bare {
    words: Vec<String>,
    folder: PathBuf,
    media: Vec<PathBuf>,
}

/// A QEMU of ours that runs.
pub(super) struct Running {
    child: Child,
    /// From its start until QMP said that the guest runs.
    pub(super) until_running: Duration,
    pub(super) begin: Instant,
    _monitor: UnixStream,
}

impl Bare {
    /// Takes over the line of process `pid`; `media` are the files of its disks in their order.
    pub(super) fn like(
        pid: i32,
        folder: PathBuf,
        variables: &Path,
        media: Vec<PathBuf>,
    ) -> Result<Bare> {
        let line = fs::read(format!("/proc/{pid}/cmdline"))?;
        let words = line.split(|byte| *byte == 0).filter(|word| !word.is_empty());
        let words = words.map(|word| String::from_utf8_lossy(word).into_owned()).collect();
        fs::create_dir(&folder)?;
        fs::copy(variables, folder.join("nvram"))?;
        Ok(Bare { words, folder, media })
    }

    /// Adds words of which none names a descriptor.
    pub(super) fn also(&mut self, words: &[String]) {
        self.words.extend_from_slice(words);
    }

    /// The first word that has this in it.
    pub(super) fn word_with(&self, part: &str) -> Option<String> {
        self.words.iter().find(|word| word.contains(part)).cloned()
    }

    /// Where a chardev with this id listens.
    pub(super) fn socket(&self, id: &str) -> PathBuf {
        self.folder.join(id)
    }

    pub(super) fn console(&self) -> PathBuf {
        self.folder.join("console.log")
    }

    pub(super) fn start(&self) -> Result<Running> {
        let mut command = Command::new(&self.words[0]);
        command.args(&self.words[1..]).stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(File::create(self.folder.join("words"))?);
        File::create(self.console())?;
        command.fd_mappings(self.descriptors()?)?;
        let begin = Instant::now();
        let child = command.spawn().context("starting QEMU")?;
        // The mapped descriptors live in the command; as long as they do, a connection waits instead of failing.
        let monitor = UnixStream::connect(self.folder.join("monitor"))?;
        let mut running =
            Running { child, until_running: Duration::ZERO, begin, _monitor: monitor };
        drop(command);
        running.wait_until_running().with_context(|| {
            let said = fs::read_to_string(self.folder.join("words")).unwrap_or_default();
            format!("waiting until bare QEMU runs, which said: {said}")
        })?;
        Ok(running)
    }

    /// What the line names: `-add-fd fd=N,…,opaque=ROLE`, without a role for media, and sockets by their id.
    fn descriptors(&self) -> Result<Vec<FdMapping>> {
        let mut media = self.media.iter();
        let mut mappings = Vec::new();
        for word in &self.words {
            let fields: Vec<&str> = word.split(',').collect();
            let field =
                |name: &str| fields.iter().find_map(|f| f.strip_prefix(name)?.strip_prefix('='));
            let Some(number) = field("fd") else { continue };
            let parent_fd: OwnedFd = match (field("opaque"), field("id")) {
                (Some("firmware-code"), _) => File::open("/usr/share/OVMF/OVMF_CODE_4M.fd")?.into(),
                (Some("console-log"), _) => {
                    OpenOptions::new().append(true).open(self.console())?.into()
                }
                (Some(name), _) => both_ways(&self.folder.join(name))?.into(),
                (None, Some(name)) => {
                    let path = self.folder.join(name);
                    let _ = fs::remove_file(&path);
                    UnixListener::bind(path)?.into()
                }
                (None, None) => {
                    let path = media.next().context("more media on the line than known")?;
                    self.medium(number, path)?.into()
                }
            };
            mappings.push(FdMapping { parent_fd, child_fd: number.parse()? });
        }
        Ok(mappings)
    }

    /// QEMU takes a descriptor of a set only when it was opened just as QEMU would have done.
    fn medium(&self, number: &str, path: &Path) -> Result<File> {
        let file = format!("filename=/dev/fdset/{number}");
        let is_of = |word: &&String| word.split(',').any(|part| part == file);
        let says = |what: &str| self.words.iter().filter(is_of).any(|word| word.contains(what));
        let flags = if says("cache.direct=on") { OFlags::DIRECT } else { OFlags::empty() };
        OpenOptions::new()
            .read(true)
            .write(!says("read-only=on"))
            .custom_flags(i32::try_from(flags.bits())?)
            .open(path)
            .with_context(|| format!("opening {}", path.display()))
    }
}

fn both_ways(path: &Path) -> Result<File> {
    let opened = OpenOptions::new().read(true).write(true).open(path);
    opened.with_context(|| format!("opening {}", path.display()))
}

impl Running {
    fn wait_until_running(&mut self) -> Result<()> {
        self._monitor.set_read_timeout(Some(Duration::from_secs(30)))?;
        let mut lines = BufReader::new(self._monitor.try_clone()?).lines();
        let mut hear = |what: &str| -> Result<String> {
            loop {
                let line = lines.next().context("QEMU closed its monitor")??;
                if line.contains(what) {
                    return Ok(line);
                }
            }
        };
        hear("\"QMP\"")?;
        self._monitor.write_all(b"{\"execute\":\"qmp_capabilities\"}\n")?;
        hear("\"return\"")?;
        self._monitor.write_all(b"{\"execute\":\"query-status\"}\n")?;
        let status = hear("\"return\"")?;
        self.until_running = self.begin.elapsed();
        if !status.contains("\"running\": true") {
            bail!("bare QEMU does not run: {status}");
        }
        Ok(())
    }

    pub(super) fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).unwrap_or_default()
    }

    /// Ends it as one would by hand; gives how long that took.
    pub(super) fn terminate(mut self) -> Result<Duration> {
        let begin = Instant::now();
        process::signal(self.pid(), rustix::process::Signal::TERM);
        self.child.wait()?;
        Ok(begin.elapsed())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
