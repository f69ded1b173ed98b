//! A program to run as a child with exactly the descriptors it is meant to have.

use std::ffi::{CStr, CString, c_char};
use std::io::{self, Error};

use crate::log::Line;
use crate::sys::{
    Fd, Pid, Refusal, become_a_program, become_user, copy_closed_on_exec, copy_to, execute,
    fork_into, write_some,
};

/// A descriptor of ours and the number it has in a child.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mapping {
    pub(crate) ours: Fd,
    pub(crate) theirs: Fd,
}

pub(crate) struct Program {
    path: CString,
    /// The same program through a descriptor of the child's: root started us from a folder its user may not enter.
    held: Option<CString>,
    /// What `arguments` points into.
    _strings: Vec<CString>,
    arguments: Vec<*const c_char>,
    descriptors: Vec<Mapping>,
    ids: Option<(u32, u32)>,
    stderr: Option<Fd>,
}

impl Program {
    pub(crate) fn new(
        path: CString,
        args: Vec<CString>,
        descriptors: Vec<Mapping>,
        ids: Option<(u32, u32)>,
        stderr: Option<Fd>,
    ) -> Program {
        let arguments = std::iter::once(path.as_ptr())
            .chain(args.iter().map(|arg| arg.as_ptr()))
            .chain([std::ptr::null()])
            .collect();
        Program { path, held: None, _strings: args, arguments, descriptors, ids, stderr }
    }

    /// Names the descriptor in the child that holds the program.
    pub(crate) fn held_as(self, theirs: Option<Fd>) -> Program {
        let held = theirs.and_then(|fd| CString::new(format!("/proc/self/fd/{fd}")).ok());
        Program { held, ..self }
    }

    pub(crate) fn descriptors(&self) -> &[Mapping] {
        &self.descriptors
    }

    pub(crate) fn stderr(&self) -> Option<Fd> {
        self.stderr
    }

    /// Runs the program as a child, with `more` descriptors for this run.
    pub(crate) fn run(&self, more: &[Mapping]) -> io::Result<Pid> {
        fork_into(|| {
            let error = self.become_it(more);
            report(self.path.as_c_str(), &error, self.stderr.unwrap_or(2));
            Refusal
        })
    }

    /// In the child: everything up to exec. Returns only with the reason why it went no further.
    fn become_it(&self, more: &[Mapping]) -> Error {
        let prepared = become_a_program()
            .and_then(|()| self.place_descriptors(more))
            .and_then(|()| self.ids.map_or(Ok(()), |(uid, gid)| become_user(uid, gid)));
        match prepared {
            Err(error) => error,
            Ok(()) => self.execute(),
        }
    }

    fn execute(&self) -> Error {
        let error = self.execute_at(&self.path);
        match &self.held {
            Some(held) if error.kind() == io::ErrorKind::PermissionDenied => self.execute_at(held),
            _ => error,
        }
    }

    #[allow(unsafe_code)]
    fn execute_at(&self, path: &CStr) -> Error {
        // SAFETY: the pointers lead into `path` and `_strings`, which this program owns, and a null pointer ends them.
        unsafe { execute(path, &self.arguments) }
    }

    /// Copies all out of the way first, since one's old number may be another's new one: to numbers above all of these, one
    /// after the other, so that no list of them is needed. What else the keeper has there is closed by that, in the child alone.
    fn place_descriptors(&self, more: &[Mapping]) -> io::Result<()> {
        let wanted = || self.descriptors.iter().chain(more);
        let numbers = wanted().flat_map(|one| [one.ours, one.theirs]).chain(self.stderr);
        let above = numbers.max().unwrap_or(2) + 1;
        for (copy, one) in (above..).zip(wanted()) {
            copy_closed_on_exec(one.ours, copy)?;
        }
        if let Some(stderr) = self.stderr {
            copy_to(stderr, 2)?;
        }
        for (copy, one) in (above..).zip(wanted()) {
            copy_to(copy, one.theirs)?;
        }
        Ok(())
    }
}

fn report(path: &CStr, error: &Error, stderr: Fd) {
    let mut line = Line::new();
    line.push("hpvmkeeper: cannot run ");
    line.push(path.to_str().unwrap_or("a program"));
    line.push(": error ");
    line.push_number(u64::from(error.raw_os_error().unwrap_or(0).unsigned_abs()));
    line.push("\n");
    write_some(stderr, line.bytes());
}
