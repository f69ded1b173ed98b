//! Whether the wires of the guest's switches are there, as the switches' processes write it into their run folders. Read by
//! the owner whenever it shows links, and watched, so that a guest sees a wire come back as soon as frames pass.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use hpvm_host::names::{SWITCHES, switch_folder};
use hpvm_host::paths::within;
use hpvm_model::{SwitchNumber, WireNow};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::fs::{Mode, OFlags, openat};
use tokio::net::unix::pipe;

/// Of a file that holds one word.
const WORD_BYTES_MAX: u64 = 64;
/// Some events at once, each with a name.
const EVENTS_BYTES: usize = 2048;
/// `struct inotify_event` (inotify(7)): watch, what happened, cookie, and how long the name behind it is.
const EVENT_BYTES: usize = 16;

#[derive(Debug)]
pub(crate) struct Wires {
    /// Of all switches' run folders.
    folder: Option<OwnedFd>,
    /// `None`: this user has too many watches already.
    events: Option<pipe::Receiver>,
}

impl Wires {
    /// From the guest's run folder, beside which the switches' lie.
    pub(crate) fn new(run_folder: &OwnedFd) -> Wires {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = openat(run_folder, format!("../{SWITCHES}"), flags, Mode::empty());
        let events = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC);
        Wires {
            folder: folder.ok(),
            // It is read like a pipe, and is none.
            events: events.ok().and_then(|it| pipe::Receiver::from_owned_fd_unchecked(it).ok()),
        }
    }

    /// What the confinement has to leave.
    pub(crate) fn folder(&self) -> Option<BorrowedFd<'_>> {
        self.folder.as_ref().map(AsFd::as_fd)
    }

    /// Whether [`Wires::changed`] tells; else they are to be looked at now and then.
    pub(crate) fn is_told(&self) -> bool {
        self.events.is_some()
    }

    /// Has changes of this switch's wire told. Once is enough, and more does no harm.
    pub(crate) fn watch(&self, switch: SwitchNumber) {
        if let (Some(folder), Some(events)) = (&self.folder, &self.events) {
            let switch = within(folder, &switch.get().to_string());
            // A switch whose process never ran has no folder yet; when it gets one, links are shown anew.
            let _ = inotify::add_watch(events, switch, WatchFlags::MOVED_TO);
        }
    }

    /// What its process says. A switch that says nothing has nothing to complain of.
    pub(crate) fn of(&self, switch: SwitchNumber) -> WireNow {
        let text = self.folder.as_ref().and_then(|folder| read(folder, switch));
        text.map_or(WireNow::There, |text| WireNow::read(&text))
    }

    /// Waits until the wire of a watched switch may have changed.
    pub(crate) async fn changed(&self) {
        let Some(events) = &self.events else { return std::future::pending().await };
        let mut room = [0; EVENTS_BYTES];
        loop {
            if events.readable().await.is_err() {
                return std::future::pending().await;
            }
            // An event too many is followed by one without a name.
            if events.try_read(&mut room).is_ok_and(|count| are_about_a_wire(&room[..count])) {
                return;
            }
        }
    }
}

/// Whether one of these events is: a new file was put in the place of the one that says how the wire is.
fn are_about_a_wire(mut events: &[u8]) -> bool {
    while let Some((head, rest)) = events.split_first_chunk::<EVENT_BYTES>() {
        let [.., a, b, c, d] = *head;
        let length = u32::from_ne_bytes([a, b, c, d]) as usize;
        let Some((name, rest)) = rest.split_at_checked(length) else { return false };
        let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
        if name.is_empty() || name == switch_folder::WIRE.as_bytes() {
            return true;
        }
        events = rest;
    }
    false
}

fn read(folder: &OwnedFd, switch: SwitchNumber) -> Option<String> {
    let path = format!("{switch}/{}", switch_folder::WIRE);
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = File::from(openat(folder, path, flags, Mode::empty()).ok()?);
    let mut text = String::new();
    file.take(WORD_BYTES_MAX).read_to_string(&mut text).ok()?;
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(name: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; EVENT_BYTES - 4];
        let padded = name.len().next_multiple_of(16);
        bytes.extend((padded as u32).to_ne_bytes());
        bytes.extend(name);
        bytes.resize(EVENT_BYTES + padded, 0);
        bytes
    }

    #[test]
    fn counters_that_are_published_wake_nobody() {
        let (status, wire) = (event(b"status"), event(b"wire"));
        assert!(!are_about_a_wire(&[status.clone(), status.clone()].concat()));
        assert!(are_about_a_wire(&[status.clone(), wire.clone()].concat()));
        assert!(are_about_a_wire(&event(b"")), "events were lost");
        assert!(!are_about_a_wire(&wire[..wire.len() - 1]));
    }
}
