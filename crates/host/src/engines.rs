//! Which guests have a QEMU, told by the kernel alone: each QEMU keeps one byte of a file that all share locked, the one of its
//! guest's number, through a description it got for nothing else. Whatever becomes of `/run` and however QEMU ends, that is
//! true, and nobody has to write it down. Starts mark, lists look.
//!
//! `/proc/locks` would tell as well, but reading it makes every process of the machine that locks a file wait for an RCU grace
//! period, some 15 ms.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::ops::RangeInclusive;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

use crate::durable;

/// No number of a guest is higher.
const NUMBER_MAX: u64 = u32::MAX as u64;
/// So many marks are looked at, and beyond that all guests count as marked: a QEMU that a guest has taken over may lock
/// what it likes.
const MARKS_MAX: usize = 4096;

/// Opens the file so that it can carry a guest's mark as long as anybody has the description. For reading alone: who has it
/// can neither write to the file nor keep another guest's mark from being set.
pub fn mark(path: &Path, number: u32) -> io::Result<File> {
    let file = durable::open_regular(path)?;
    let byte = lock(libc::F_RDLCK, u64::from(number)..=u64::from(number))?;
    fcntl(&file, FcntlArg::F_OFD_SETLK(&byte))?;
    Ok(file)
}

/// The guests that have a mark.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Marked(Vec<RangeInclusive<u64>>);

impl Marked {
    /// Costs two questions to the kernel for each guest that runs. A file that is not there marks nobody.
    pub fn read(path: &Path) -> io::Result<Marked> {
        let file = match durable::open_regular(path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Marked::default()),
            Err(error) => return Err(error),
        };
        let mut marked = Vec::new();
        let mut unknown = vec![0..=NUMBER_MAX];
        // The kernel answers with any lock in a range, not with the first: what lies on either side is still to be asked.
        while let Some(range) = unknown.pop() {
            let Some(held) = held_within(&file, &range)? else { continue };
            if marked.len() == MARKS_MAX {
                return Ok(Marked(vec![0..=NUMBER_MAX]));
            }
            if range.start() < held.start() {
                unknown.push(*range.start()..=held.start() - 1);
            }
            if held.end() < range.end() {
                unknown.push(held.end() + 1..=*range.end());
            }
            marked.push(held);
        }
        Ok(Marked(marked))
    }

    #[must_use]
    pub fn has(&self, number: u32) -> bool {
        self.0.iter().any(|range| range.contains(&u64::from(number)))
    }
}

/// One of the locks that others hold in a range, cut to it.
fn held_within(
    file: &File,
    range: &RangeInclusive<u64>,
) -> io::Result<Option<RangeInclusive<u64>>> {
    let mut answer = lock(libc::F_WRLCK, range.clone())?;
    loop {
        match fcntl(file, FcntlArg::F_OFD_GETLK(&mut answer)) {
            Ok(_) => break,
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    if i32::from(answer.l_type) == libc::F_UNLCK {
        return Ok(None);
    }
    let first = u64::try_from(answer.l_start).unwrap_or(0);
    // A length of 0 reaches to the end of all files.
    let last = match u64::try_from(answer.l_len) {
        Ok(0) | Err(_) => *range.end(),
        Ok(length) => first + (length - 1),
    };
    Ok(Some(first.max(*range.start())..=last.min(*range.end())))
}

fn lock(kind: i32, bytes: RangeInclusive<u64>) -> io::Result<libc::flock> {
    let invalid = |_| io::Error::from(ErrorKind::InvalidInput);
    Ok(libc::flock {
        l_type: i16::try_from(kind).map_err(invalid)?,
        l_whence: i16::try_from(libc::SEEK_SET).map_err(invalid)?,
        l_start: i64::try_from(*bytes.start()).map_err(invalid)?,
        l_len: i64::try_from(bytes.end() - bytes.start() + 1).map_err(invalid)?,
        l_pid: 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;
    use std::iter;
    use std::time::{Duration, Instant};

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn just_the_guests_whose_descriptions_live_are_marked(
            numbers in prop::collection::btree_set(prop_oneof![1u32..40, any::<u32>()], 0..20),
            ended in prop::collection::btree_set(0usize..20, 0..10),
        ) {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("engines");
            File::create(&path).unwrap();
            let held: Vec<(u32, File)> =
                numbers.iter().map(|n| (*n, mark(&path, *n).unwrap())).collect();
            let (alive, gone): (Vec<_>, Vec<_>) =
                held.into_iter().enumerate().partition(|(place, _)| !ended.contains(place));
            let gone: Vec<u32> = gone.into_iter().map(|(_, (number, _))| number).collect();
            // The child of a test beside this one has a copy of each description too until it runs its own program.
            let deadline = Instant::now() + Duration::from_secs(10);
            let is_past = |marked: &Marked| !gone.iter().any(|number| marked.has(*number));
            let marked = iter::repeat_with(|| Marked::read(&path).unwrap())
                .find(|marked| is_past(marked) || Instant::now() > deadline)
                .unwrap();
            let alive: BTreeSet<u32> = alive.iter().map(|(_, (number, _))| *number).collect();
            for number in numbers.iter().flat_map(|n| [n.saturating_sub(1), *n, n.saturating_add(1)]) {
                prop_assert_eq!(marked.has(number), alive.contains(&number), "{}", number);
            }
        }
    }

    #[test]
    fn a_lock_on_everything_marks_everybody_and_keeps_nobody_from_marking() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("engines");
        File::create(&path).unwrap();
        let hostile = File::open(&path).unwrap();
        let mut all = lock(libc::F_RDLCK, 0..=0).unwrap();
        all.l_len = 0;
        fcntl(&hostile, FcntlArg::F_OFD_SETLK(&all)).unwrap();
        let _mark = mark(&path, 7).unwrap();
        let marked = Marked::read(&path).unwrap();
        assert!(marked.has(7) && marked.has(8));
    }

    #[test]
    fn more_locks_than_guests_could_have_mark_everybody() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("engines");
        File::create(&path).unwrap();
        let hostile = File::open(&path).unwrap();
        for number in 0..=MARKS_MAX as u64 {
            let byte = lock(libc::F_RDLCK, 2 * number..=2 * number).unwrap();
            fcntl(&hostile, FcntlArg::F_OFD_SETLK(&byte)).unwrap();
        }
        assert!(Marked::read(&path).unwrap().has(1));
    }

    #[test]
    fn no_file_marks_nobody() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(Marked::read(&folder.path().join("engines")).unwrap(), Marked::default());
    }
}
