//! `load`, a program of the test guest that `cargo xtask bench storage` drives: reads and writes a disk, past the guest's
//! memory, for as long as it is told, and says how much it did. `rustc` makes it, linked statically: the guest has no libraries.
//!
//! A line of standard input is a task, `DISK BYTES DEPTH BATCH random|sequential read|write|mixed MILLISECONDS`; its answer is
//! `did COUNT in MICROSECONDS`. DEPTH requests of BYTES are under way at once, BATCH of them handed over by one call at most, by
//! the kernel's own asynchronous I/O (Linux, `include/uapi/linux/aio_abi.h`).

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, Error, ErrorKind, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::time::{Duration, Instant};

const O_DIRECT: i32 = 0o40000;
const IO_SETUP: i64 = 206;
const IO_GETEVENTS: i64 = 208;
const IO_SUBMIT: i64 = 209;
const DEPTH_MAX: usize = 64;
const BYTES_MAX: usize = 1 << 20;

/// `struct iocb` on a little-endian machine.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Request {
    tag: u64,
    key: u32,
    flags: u32,
    operation: u16,
    priority: i16,
    file: u32,
    buffer: u64,
    bytes: u64,
    offset: i64,
    reserved: u64,
    more_flags: u32,
    event_file: u32,
}

/// `struct io_event`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Completion {
    tag: u64,
    request: u64,
    result: i64,
    second_result: i64,
}

#[repr(C, align(4096))]
#[derive(Clone)]
struct Page([u8; 4096]);

unsafe extern "C" {
    fn syscall(number: i64, ...) -> i64;
}

struct Task<'a> {
    disk: &'a str,
    bytes: usize,
    depth: usize,
    batch: usize,
    is_random: bool,
    /// Requests of a round of two that write.
    writes: [bool; 2],
    time: Duration,
}

impl Task<'_> {
    fn read(line: &str) -> Option<Task<'_>> {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [disk, bytes, depth, batch, order, what, milliseconds] = words[..] else { return None };
        Some(Task {
            disk,
            bytes: bytes.parse().ok().filter(|bytes| (512..=BYTES_MAX).contains(bytes))?,
            depth: depth.parse().ok().filter(|depth| (1..=DEPTH_MAX).contains(depth))?,
            batch: batch.parse().ok().filter(|batch| (1..=DEPTH_MAX).contains(batch))?,
            is_random: order == "random",
            writes: match what {
                "read" => [false, false],
                "write" => [true, true],
                "mixed" => [false, true],
                _ => return None,
            },
            time: Duration::from_millis(milliseconds.parse().ok()?),
        })
    }
}

/// A disk that was used before goes on where it stood.
struct Disk {
    file: File,
    length: u64,
    next: u64,
}

impl Disk {
    fn open(path: &str) -> io::Result<Disk> {
        let mut file = OpenOptions::new().read(true).write(true).custom_flags(O_DIRECT).open(path)?;
        let length = file.seek(SeekFrom::End(0))?;
        Ok(Disk { file, length, next: 0 })
    }

    /// Where the next request begins.
    fn place(&mut self, task: &Task) -> u64 {
        let places = (self.length / task.bytes as u64).max(1);
        self.next = if task.is_random {
            self.next.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407)
        } else {
            (self.next + 1) % places
        };
        let place = if task.is_random { (self.next >> 32) % places } else { self.next };
        place * task.bytes as u64
    }
}

struct Machine {
    context: u64,
    disks: HashMap<String, Disk>,
    pages: Vec<Page>,
}

impl Machine {
    fn new() -> io::Result<Machine> {
        let mut context = 0u64;
        // SAFETY: io_setup writes the context's number into the word it is given.
        told(unsafe { syscall(IO_SETUP, DEPTH_MAX, &raw mut context) })?;
        let pages = vec![Page([0x5a; 4096]); DEPTH_MAX * BYTES_MAX / 4096];
        Ok(Machine { context, disks: HashMap::new(), pages })
    }

    /// Gives how many requests were done, and in what time.
    fn perform(&mut self, task: &Task) -> io::Result<(u64, Duration)> {
        if !self.disks.contains_key(task.disk) {
            self.disks.insert(task.disk.to_owned(), Disk::open(task.disk)?);
        }
        let mut requests = [Request::default(); DEPTH_MAX];
        let mut begun = 0;
        let begin = Instant::now();
        let mut free: Vec<usize> = (0..task.depth).collect();
        let mut done = 0;
        loop {
            if begin.elapsed() < task.time {
                for slot in &free {
                    requests[*slot] = self.request(task, *slot, begun)?;
                    begun += 1;
                }
                for batch in free.chunks(task.batch) {
                    self.submit(batch, &mut requests)?;
                }
            }
            if done == begun {
                return Ok((done, begin.elapsed()));
            }
            free = self.completed(task.bytes)?;
            done += free.len() as u64;
        }
    }

    fn request(&mut self, task: &Task, slot: usize, number: u64) -> io::Result<Request> {
        let disk = self.disks.get_mut(task.disk).ok_or(ErrorKind::NotFound)?;
        let is_write = task.writes[usize::from(number % 2 == 1)];
        Ok(Request {
            tag: slot as u64,
            operation: u16::from(is_write),
            file: disk.file.as_raw_fd() as u32,
            buffer: self.pages[slot * BYTES_MAX / 4096].0.as_mut_ptr() as u64,
            bytes: task.bytes as u64,
            offset: disk.place(task) as i64,
            ..Request::default()
        })
    }

    fn submit(&self, slots: &[usize], requests: &mut [Request; DEPTH_MAX]) -> io::Result<()> {
        let list: Vec<*mut Request> = slots.iter().map(|slot| &raw mut requests[*slot]).collect();
        // SAFETY: io_submit copies the requests; their buffers are pages of ours that live until the program ends.
        let taken = told(unsafe { syscall(IO_SUBMIT, self.context, list.len(), list.as_ptr()) })?;
        if taken as usize == list.len() {
            Ok(())
        } else {
            Err(Error::other(format!("{taken} of {} requests were taken", list.len())))
        }
    }

    /// Waits for one request at least; gives the slots of all that are done.
    fn completed(&self, bytes: usize) -> io::Result<Vec<usize>> {
        let mut events = [Completion::default(); DEPTH_MAX];
        // SAFETY: io_getevents writes no more events than it is told there is room for; there is no time limit.
        let count = told(unsafe {
            syscall(IO_GETEVENTS, self.context, 1, DEPTH_MAX, events.as_mut_ptr(), 0usize)
        })?;
        let slot = |event: &Completion| match event.result == bytes as i64 {
            true => Ok(event.tag as usize),
            false => Err(Error::other(format!("a request came back with {}", event.result))),
        };
        events[..count as usize].iter().map(slot).collect()
    }
}

/// What a system call gave, or why it failed.
fn told(result: i64) -> io::Result<i64> {
    if result < 0 { Err(Error::last_os_error()) } else { Ok(result) }
}

fn main() -> io::Result<()> {
    let mut machine = Machine::new()?;
    println!("load is ready");
    for line in io::stdin().lock().lines() {
        let line = line?;
        match Task::read(&line).map(|task| machine.perform(&task)) {
            Some(Ok((count, time))) => println!("did {count} in {}", time.as_micros()),
            Some(Err(error)) => println!("failed: {line}: {error}"),
            None => println!("failed: {line}: no task"),
        }
    }
    Ok(())
}
