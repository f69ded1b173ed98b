//! Finds out whether somebody on the LAN has a MAC address already.
//!
//! No protocol asks for that alone. So each address is sent frames that most stations answer, whatever they are, and
//! whoever is heard with the address as its sender has it. All addresses on all interfaces are asked at once, and nobody
//! waits longer than [`DEADLINE`]. An address nobody has is asked for too: where that one answers, something on the LAN
//! answers for all, and nothing can be found out there.
//!
//! A guest of this VM Host is not heard: what leaves by an interface is not listened to, and the caller knows its own.

mod frames;

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use hpvm_model::{MacAddress, VlanId};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};

use super::wire::{self, WireError};
use super::{Carrier, Nic};
use frames::Sender;

/// From the first frame to the verdict.
pub const DEADLINE: Duration = Duration::from_millis(300);
/// The last frames are out by then, so that there is time for their answers.
const SENDING: Duration = Duration::from_millis(200);
/// As HPVMACADDRFRAMES could be.
pub const ROUNDS_MAX: u8 = 30;
/// The header that a wire's socket has before each frame (virtio 1.2, 5.1.6): nothing is left to do.
const HEADER: [u8; 10] = [0; 10];
/// Of a frame only the sender is looked at.
const SEEN_BYTES: usize = HEADER.len() + 12;
/// A flood on one interface keeps the others waiting no longer than this many frames.
const FRAMES_AT_ONCE: usize = 256;

/// An address that a guest shall have.
#[derive(Clone, Copy, Debug)]
pub struct Question<'a> {
    /// The interface behind the guest's switch.
    pub nic: &'a Nic,
    pub mac: MacAddress,
    /// The VLAN of the guest's port.
    pub vlan: Option<VlanId>,
}

/// What came of a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nobody with this address was heard.
    Free,
    InUse,
    /// Something on this LAN answers for every address.
    EverythingAnswers,
    /// Nobody was asked: asking is switched off, or the interface has no link.
    NotAsked,
}

/// Why nobody could be asked.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    #[error(transparent)]
    Wire(#[from] WireError),
    #[error("no address can be made up, which nobody has")]
    Random(#[source] io::Error),
    #[error("answers on {nic} cannot be heard")]
    Listen { nic: String, source: io::Error },
}

/// Asks all at once, `rounds` times each; the verdicts stand in the questions' order.
pub fn ask(questions: &[Question], rounds: u8) -> Result<Vec<Verdict>, ProbeError> {
    let mut lans = lans(questions, rounds.min(ROUNDS_MAX))?;
    listen_and_ask(&mut lans, rounds.min(ROUNDS_MAX))?;
    Ok(questions.iter().map(|question| verdict(question, &lans)).collect())
}

/// An interface, and what is asked there.
struct Lan<'a> {
    nic: &'a Nic,
    socket: OwnedFd,
    asked: Vec<(MacAddress, Option<VlanId>)>,
    /// An address that nobody has.
    decoy: MacAddress,
    heard: HashSet<MacAddress>,
}

fn lans<'a>(questions: &[Question<'a>], rounds: u8) -> Result<Vec<Lan<'a>>, ProbeError> {
    let mut lans: Vec<Lan> = Vec::new();
    if rounds == 0 {
        return Ok(lans);
    }
    for question in questions.iter().filter(|question| question.nic.carrier == Carrier::Up) {
        let known = lans.iter().position(|lan| lan.nic.index == question.nic.index);
        let at = match known {
            Some(at) => at,
            None => {
                lans.push(Lan {
                    nic: question.nic,
                    socket: wire::packets(question.nic)?,
                    asked: Vec::new(),
                    decoy: made_up().map_err(ProbeError::Random)?,
                    heard: HashSet::new(),
                });
                lans.len() - 1
            }
        };
        lans[at].asked.push((question.mac, question.vlan));
    }
    Ok(lans)
}

fn made_up() -> io::Result<MacAddress> {
    let mut bytes = [0; 6];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(MacAddress::for_a_guest(bytes))
}

fn listen_and_ask(lans: &mut [Lan], rounds: u8) -> Result<(), ProbeError> {
    let began = Instant::now();
    let pause = SENDING / u32::from(rounds.max(1));
    let mut sent = 0;
    while !lans.iter().all(Lan::is_decided) {
        if sent < rounds && began.elapsed() >= pause * u32::from(sent) {
            lans.iter().for_each(Lan::send);
            sent += 1;
        }
        let due = if sent < rounds { pause * u32::from(sent) } else { DEADLINE };
        let rest = due.saturating_sub(began.elapsed());
        if rest.is_zero() && sent == rounds {
            break;
        }
        wait(lans, rest);
        for lan in &mut *lans {
            lan.listen()?;
        }
    }
    Ok(())
}

/// Until somebody is heard, or the time is over.
fn wait(lans: &[Lan], at_most: Duration) {
    let Ok(at_most) = Timespec::try_from(at_most) else { return };
    let mut polled: Vec<PollFd> = lans
        .iter()
        .map(|lan| PollFd::from_borrowed_fd(lan.socket.as_fd(), PollFlags::IN))
        .collect();
    // What interrupts it only shortens the wait, which the caller measures.
    let _ = poll(&mut polled, Some(&at_most));
}

impl Lan<'_> {
    /// Whether more time would change nothing. An address that was heard may still turn out to be one of all that
    /// something answers for.
    fn is_decided(&self) -> bool {
        self.heard.contains(&self.decoy)
    }

    /// A frame that the interface does not take is as one that was lost on the way: there are more.
    fn send(&self) {
        let Some(own) = self.nic.mac else { return };
        let from = Sender { mac: own, addresses: &self.nic.addresses };
        let decoys = self.asked.first().map(|(_, vlan)| (self.decoy, *vlan));
        for (mac, vlan) in self.asked.iter().copied().chain(decoys) {
            for frame in frames::asking(mac, vlan, &from) {
                let mut message = HEADER.to_vec();
                message.extend(frame);
                let _ = send(&self.socket, &message, SendFlags::DONTWAIT);
            }
        }
    }

    fn listen(&mut self) -> Result<(), ProbeError> {
        let mut seen = [0; SEEN_BYTES];
        for _ in 0..FRAMES_AT_ONCE {
            match recv(&self.socket, &mut seen[..], RecvFlags::DONTWAIT) {
                Ok((SEEN_BYTES, _)) => {
                    let sender: [u8; 6] = std::array::from_fn(|at| seen[HEADER.len() + 6 + at]);
                    self.heard.insert(MacAddress::new(sender));
                }
                Ok(_) | Err(Errno::INTR) => {}
                Err(Errno::AGAIN | Errno::NETDOWN) => return Ok(()),
                Err(error) => {
                    let nic = self.nic.name.clone();
                    return Err(ProbeError::Listen { nic, source: error.into() });
                }
            }
        }
        Ok(())
    }
}

fn verdict(question: &Question, lans: &[Lan]) -> Verdict {
    let lan = lans.iter().find(|lan| lan.nic.index == question.nic.index);
    lan.map_or(Verdict::NotAsked, |lan| judge(question.mac, lan.decoy, &lan.heard))
}

/// What the senders that were heard tell of an address.
fn judge(mac: MacAddress, decoy: MacAddress, heard: &HashSet<MacAddress>) -> Verdict {
    match (heard.contains(&decoy), heard.contains(&mac)) {
        (true, _) => Verdict::EverythingAnswers,
        (false, true) => Verdict::InUse,
        (false, false) => Verdict::Free,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mac(number: u8) -> MacAddress {
        MacAddress::new([0x56, 0, 0, 0, 0, number])
    }

    #[test]
    fn who_answers_for_all_is_not_taken_for_a_station() {
        let (asked, decoy, other) = (mac(1), mac(2), mac(3));
        let judged = |heard: &[MacAddress]| judge(asked, decoy, &heard.iter().copied().collect());
        assert_eq!(judged(&[]), Verdict::Free);
        assert_eq!(judged(&[other]), Verdict::Free);
        assert_eq!(judged(&[asked, other]), Verdict::InUse);
        assert_eq!(judged(&[decoy]), Verdict::EverythingAnswers);
        assert_eq!(judged(&[asked, decoy]), Verdict::EverythingAnswers);
    }
}
