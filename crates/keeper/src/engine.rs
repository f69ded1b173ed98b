//! QEMU as the keeper sees it: a child, or a process that an earlier keeper started and this one can only watch.

use std::io;

use crate::description::{Adopted, Description, Mission};
use crate::link::UNSEEN;
use crate::log::{Log, push_ending};
use crate::sys::{Fd, Pid, hold, is_ready, kill_child, kill_held, status_of_held};

pub(crate) struct Engine {
    pub(crate) pid: Pid,
    /// A hold on it for every worker, that no reuse of its number can mislead. None if it was gone before we could.
    pub(crate) pidfd: Option<Fd>,
    state: State,
    log: Log,
}

enum State {
    Child,
    /// There is none, and none has to end.
    None,
    /// Watched by a pidfd.
    Adopted(Fd),
    Gone {
        status: u32,
        was_child: bool,
    },
}

impl Engine {
    /// Starts or adopts, as the description says.
    pub(crate) fn begin(description: &Description) -> io::Result<Engine> {
        let log = Log(description.log);
        match &description.mission {
            Mission::Start(qemu) => {
                let pid = qemu.run(&[])?;
                description.close_after_start(qemu);
                Ok(Engine { pid, pidfd: hold(pid).ok(), state: State::Child, log })
            }
            Mission::Adopt(adopted) => Ok(Engine::adopt(adopted, log)),
            Mission::Nothing => Ok(Engine { pid: 0, pidfd: None, state: State::None, log }),
        }
    }

    fn adopt(&Adopted { pid, pidfd }: &Adopted, log: Log) -> Engine {
        let pidfd = pidfd.or_else(|| hold(pid).ok());
        let state = pidfd.map_or(State::Gone { status: UNSEEN, was_child: false }, State::Adopted);
        log.say(|line| {
            line.push("taking over the running engine, process ");
            line.push_number(u64::from(pid.unsigned_abs()));
        });
        Engine { pid, pidfd, state, log }
    }

    pub(crate) fn is_child(&self) -> bool {
        matches!(self.state, State::Child | State::Gone { was_child: true, .. })
    }

    /// The wait status, once it is gone.
    pub(crate) fn status(&self) -> Option<u32> {
        match self.state {
            State::Gone { status, .. } => Some(status),
            State::Child | State::Adopted(_) | State::None => None,
        }
    }

    /// Whether nothing of it is left to look after.
    pub(crate) fn is_over(&self) -> bool {
        matches!(self.state, State::None | State::Gone { .. })
    }

    pub(crate) fn exists(&self) -> bool {
        !matches!(self.state, State::None)
    }

    /// What to watch besides the ends of children.
    pub(crate) fn watched(&self) -> Option<Fd> {
        match self.state {
            State::Adopted(pidfd) => Some(pidfd),
            State::Child | State::Gone { .. } | State::None => None,
        }
    }

    /// A child has ended. Whether it was QEMU.
    pub(crate) fn child_ended(&mut self, pid: Pid, status: u32) -> bool {
        let was_it = matches!(self.state, State::Child) && pid == self.pid;
        if was_it {
            self.gone(status, true);
        }
        was_it
    }

    /// Looks whether the adopted QEMU has ended. Whether it just did.
    pub(crate) fn look(&mut self) -> bool {
        let State::Adopted(pidfd) = self.state else { return false };
        if !is_ready(pidfd) {
            return false;
        }
        let status = status_of_held(pidfd).unwrap_or(UNSEEN);
        self.gone(status, false);
        true
    }

    pub(crate) fn kill(&self) {
        let killed = match self.state {
            State::Child => kill_child(self.pid),
            State::Adopted(pidfd) => kill_held(pidfd),
            State::Gone { .. } | State::None => true,
        };
        if !killed {
            self.log.say(|line| line.push("the engine could not be killed"));
        }
    }

    fn gone(&mut self, status: u32, was_child: bool) {
        self.state = State::Gone { status, was_child };
        self.log.say(|line| {
            line.push("the engine, process ");
            line.push_number(u64::from(self.pid.unsigned_abs()));
            line.push(", ");
            match status {
                UNSEEN => line.push("ended unseen"),
                status => push_ending(line, status),
            }
        });
    }
}
