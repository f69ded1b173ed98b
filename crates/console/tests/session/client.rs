//! The program under test: a small hpvmconsole whose guest is a folder with files.
//!
//! `--client FOLDER [--quiet] [--command TEXT] [--own-terminal]`; in the folder:
//!
//! | file | what |
//! | --- | --- |
//! | `power` | `on` or `off` |
//! | `door` | the socket of the guest's worker |
//! | `refuse` | when there: why power verbs fail |
//! | `report` | when there: what power verbs tell before |
//! | `hold` | when there: power verbs last until it is gone |
//! | `panic` | when there: connecting panics |
//! | `verbs` | written: the power verbs that were performed |

use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use std::{fs, io, process};

use hpvm_console::door::DriveAddress;
use hpvm_console::menu::PowerVerb;
use hpvm_console::session::{Chatter, End, Guest, GuestPower, Options, run};

use crate::rig::{GUEST, tick};

pub(crate) fn main() -> ! {
    let mut arguments = std::env::args().skip(2);
    let folder = PathBuf::from(arguments.next().expect("a folder"));
    let (mut chatter, mut command) = (Chatter::Full, None);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--quiet" => chatter = Chatter::Quiet,
            "--command" => command = arguments.next(),
            "--own-terminal" => {
                rustix::process::setsid().expect("a session");
                rustix::process::ioctl_tiocsctty(io::stdin()).expect("a controlling terminal");
            }
            other => panic!("unknown argument {other}"),
        }
    }
    // As in a release build, a panic ends the program at once and drops nothing.
    std::panic::set_hook(Box::new(|panic| {
        eprintln!("{panic}");
        process::abort();
    }));
    let options = Options { command: command.as_deref(), chatter };
    let mut guest = FolderGuest { folder };
    match run(&mut guest, &options, io::stdin().as_fd(), io::stdout().as_fd()) {
        Ok(end) => {
            if let End::Failed(why) | End::Usage(why) = &end {
                eprintln!("client: {why}");
            }
            process::exit(end.status().into());
        }
        Err(error) => {
            // Standard error may be as broken as the rest.
            let _ = writeln!(io::stderr(), "client: {error}");
            process::exit(1);
        }
    }
}

struct FolderGuest {
    folder: PathBuf,
}

impl FolderGuest {
    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }
}

impl Guest for FolderGuest {
    fn name(&self) -> &str {
        GUEST
    }

    fn state(&mut self) -> GuestPower {
        match fs::read_to_string(self.path("power")).expect("power").as_str() {
            "on" => GuestPower::On,
            _ => GuestPower::Off,
        }
    }

    fn connect(&mut self) -> io::Result<Option<UnixStream>> {
        assert!(!self.path("panic").exists(), "asked to panic");
        match self.state() {
            GuestPower::On => UnixStream::connect(self.path("door")).map(Some),
            GuestPower::Off => Ok(None),
        }
    }

    fn power(&mut self, verb: PowerVerb, report: &mut dyn FnMut(&str)) -> Result<String, String> {
        if let Ok(lines) = fs::read_to_string(self.path("report")) {
            lines.lines().for_each(report);
        }
        if let Ok(why) = fs::read_to_string(self.path("refuse")) {
            return Err(why);
        }
        append(&self.path("verbs"), &format!("{verb}\n"));
        let deadline = Instant::now() + Duration::from_secs(20);
        while self.path("hold").exists() && Instant::now() < deadline {
            tick();
        }
        let power = if verb == PowerVerb::Off { "off" } else { "on" };
        fs::write(self.path("power"), power).expect("power");
        append(&self.path("verbs"), "done\n");
        Ok(format!("Guest '{GUEST}' is {power}."))
    }

    fn give_back(&mut self, drive: DriveAddress) -> Result<String, String> {
        Err(format!("no drive at {drive} was ejected"))
    }
}

fn append(path: &Path, text: &str) {
    let file = fs::OpenOptions::new().create(true).append(true).open(path);
    file.and_then(|mut file| file.write_all(text.as_bytes())).expect("append");
}
