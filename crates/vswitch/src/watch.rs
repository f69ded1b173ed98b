//! What the forwarding thread waits for when it has nothing to do: an epoll set, each member with a token.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};

use crate::port::PlaceIndex;

/// How much is told at once; the rest is told next time.
const READY_MAX: usize = 64;

/// What a member of the set is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Token {
    /// A command waits.
    Bell,
    /// An AVIO guest sent something.
    Kick(PlaceIndex),
    /// A peer wants to connect.
    Listener(PlaceIndex),
    /// A stream peer or a network interface has frames, or room for them.
    Peer(PlaceIndex),
}

/// What a member of the set is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Interest {
    /// Each time something new arrives, without anybody taking it: an eventfd that is never read.
    News,
    /// As long as something waits.
    Arrival,
    /// As long as something waits or there is room.
    ArrivalOrRoom,
    /// Only room.
    Room,
    /// Nothing for now.
    Nothing,
}

pub(crate) struct Watch {
    epoll: OwnedFd,
}

impl Watch {
    pub(crate) fn new() -> io::Result<Watch> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        Ok(Watch { epoll })
    }

    pub(crate) fn add(&self, what: impl AsFd, token: Token, interest: Interest) -> io::Result<()> {
        Ok(epoll::add(&self.epoll, what, token.data(), interest.flags())?)
    }

    pub(crate) fn change(
        &self,
        what: impl AsFd,
        token: Token,
        interest: Interest,
    ) -> io::Result<()> {
        Ok(epoll::modify(&self.epoll, what, token.data(), interest.flags())?)
    }

    pub(crate) fn remove(&self, what: impl AsFd) {
        let _ = epoll::delete(&self.epoll, what);
    }

    /// Waits at most so long, or without end, for something to be ready, and tells what is.
    pub(crate) fn wait(&self, timeout: Option<Duration>) -> Vec<Token> {
        let timeout = timeout.map(|timeout| Timespec {
            tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: timeout.subsec_nanos().into(),
        });
        let mut room = [const { MaybeUninit::<Event>::uninit() }; READY_MAX];
        // An interrupted wait has nothing to tell.
        match epoll::wait(&self.epoll, &mut room, timeout.as_ref()) {
            Ok((ready, _)) => {
                ready.iter().filter_map(|event| Token::from_data(event.data.u64())).collect()
            }
            Err(_) => Vec::new(),
        }
    }
}

impl Token {
    fn data(self) -> EventData {
        let (kind, place) = match self {
            Token::Bell => (0, 0),
            Token::Kick(place) => (1, place),
            Token::Listener(place) => (2, place),
            Token::Peer(place) => (3, place),
        };
        EventData::new_u64(kind << 16 | u64::from(place))
    }

    fn from_data(data: u64) -> Option<Token> {
        let place = (data & 0xffff) as PlaceIndex;
        match data >> 16 {
            0 => Some(Token::Bell),
            1 => Some(Token::Kick(place)),
            2 => Some(Token::Listener(place)),
            3 => Some(Token::Peer(place)),
            _ => None,
        }
    }
}

impl Interest {
    fn flags(self) -> EventFlags {
        match self {
            Interest::News => EventFlags::IN | EventFlags::ET,
            Interest::Arrival => EventFlags::IN,
            Interest::ArrivalOrRoom => EventFlags::IN | EventFlags::OUT,
            Interest::Room => EventFlags::OUT,
            Interest::Nothing => EventFlags::empty(),
        }
    }
}
