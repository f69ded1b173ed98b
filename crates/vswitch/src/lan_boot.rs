//! A port's boot profile: the firmware of the guest asks by DHCP how to boot, as it always does, and the port answers it with
//! what the profile says. Such a question goes no further, so that nobody else on the LAN answers. What an operating system
//! asks later, as another class of client, is none of the profile's.
//!
//! The formats are DHCP's (RFC 2131, 2; options: RFC 2132) and, for who asks, those of firmware that boots over a network
//! (RFC 4578; UEFI specification 2.10, 24.3 and 24.7).

use std::net::Ipv4Addr;

use hpvm_model::{BootProfile, MacAddress};

use crate::avio::Put;
use crate::counters::Counter;
use crate::forward::Forwarder;
use crate::frame::ETHERNET_BYTES;
use crate::offload;
use crate::packet::{self, IPV4, UDP};
use crate::port::{PeerFault, PlaceIndex, Port};
use crate::stream::Backlog;

const SERVER_PORT: u16 = 67;
const CLIENT_PORT: u16 = 68;
/// Of whom the answers come from; no station has it, and nobody needs to send there.
const ANSWERER: [u8; 6] = [0x02, b'h', b'p', b'v', b'm', 0x00];
const BROADCAST: [u8; 6] = [0xff; 6];

const IPV4_BYTES: usize = 20;
const UDP_BYTES: usize = 8;
/// Of a message, without its options.
const MESSAGE_BYTES: usize = 236;
/// What every client takes (RFC 1542, 2.1).
const MESSAGE_BYTES_MIN: usize = 300;
/// More than any question has.
pub(crate) const QUESTION_BYTES_MAX: usize = 2048;

const REQUEST: u8 = 1;
const REPLY: u8 = 2;
const ETHERNET: [u8; 2] = [1, 6];
const COOKIE: [u8; 4] = [99, 130, 83, 99];
const PAD: u8 = 0;
const MASK: u8 = 1;
const ROUTER: u8 = 3;
const LEASE_SECONDS: u8 = 51;
const MESSAGE_TYPE: u8 = 53;
const SERVER: u8 = 54;
const CLASS: u8 = 60;
const END: u8 = 255;
const DISCOVER: u8 = 1;
const OFFER: u8 = 2;
const ASKS_FOR: u8 = 3;
const ACK: u8 = 5;
/// An address of a profile is the guest's as long as it wants it.
const FOR_EVER: [u8; 4] = [0xff; 4];

/// What a port does with a frame of its guest.
#[derive(Debug, PartialEq, Eq)]
enum Heard {
    /// Not for the port: it goes its way.
    Other,
    /// Of the firmware, about something that the profile does not have.
    Unanswered,
    Answered(Vec<u8>),
}

/// Whether a frame, of which these are the first bytes, may be a question for a profile's port.
pub(crate) fn may_be_question(head: &[u8]) -> bool {
    let is_to_server = || {
        let (network, transport) = packet::transport(head)?;
        let plain = network.start == ETHERNET_BYTES && !transport.later_fragment;
        let udp = network.ethertype == IPV4 && transport.protocol == UDP;
        let port = packet::word(head, transport.start + 2)?;
        Some(plain && udp && port == SERVER_PORT)
    };
    head.starts_with(&BROADCAST) && is_to_server().unwrap_or(false)
}

/// What becomes of a whole frame.
fn hear(profile: &BootProfile, mac: MacAddress, frame: &[u8]) -> Heard {
    if !may_be_question(frame) {
        return Heard::Other;
    }
    let Some(question) = Question::read(frame) else { return Heard::Other };
    let message = question.message;
    let is_own =
        message[0] == REQUEST && message[1..3] == ETHERNET && message[28..34] == mac.bytes();
    match (is_own, question.class) {
        (true, Some(Class::Pxe)) => {}
        (true, Some(Class::Http)) => return Heard::Unanswered,
        _ => return Heard::Other,
    }
    match question.kind {
        Some(DISCOVER) => Heard::Answered(answer(profile, message, OFFER)),
        Some(ASKS_FOR) => Heard::Answered(answer(profile, message, ACK)),
        _ => Heard::Unanswered,
    }
}

/// Which way of booting the firmware tries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    /// By TFTP.
    Pxe,
    /// By HTTP, which a profile's server is not asked for.
    Http,
}

impl Class {
    fn of(name: &[u8]) -> Option<Class> {
        match name {
            _ if name.starts_with(b"PXEClient") => Some(Class::Pxe),
            _ if name.starts_with(b"HTTPClient") => Some(Class::Http),
            _ => None,
        }
    }
}

struct Question<'a> {
    /// What is before the options.
    message: &'a [u8; MESSAGE_BYTES],
    kind: Option<u8>,
    class: Option<Class>,
}

impl<'a> Question<'a> {
    fn read(frame: &'a [u8]) -> Option<Question<'a>> {
        let (_, udp) = packet::transport(frame)?;
        let (message, rest) = frame.get(udp.start + UDP_BYTES..)?.split_first_chunk()?;
        let mut options = rest.strip_prefix(&COOKIE)?;
        let mut question = Question { message, kind: None, class: None };
        loop {
            match *options {
                [PAD, ref rest @ ..] => options = rest,
                [END, ..] | [] => return Some(question),
                [code, length, ref rest @ ..] => {
                    let (value, rest) = rest.split_at_checked(length.into())?;
                    match code {
                        MESSAGE_TYPE => question.kind = value.first().copied(),
                        CLASS => question.class = Class::of(value),
                        _ => {}
                    }
                    options = rest;
                }
                [_] => return None,
            }
        }
    }
}

fn answer(profile: &BootProfile, question: &[u8; MESSAGE_BYTES], kind: u8) -> Vec<u8> {
    let mut message = [0; MESSAGE_BYTES];
    message[0] = REPLY;
    message[1..3].copy_from_slice(&ETHERNET);
    // The question's number, and whether it wants to be answered by broadcast, as it is anyway.
    message[4..8].copy_from_slice(&question[4..8]);
    message[10..12].copy_from_slice(&question[10..12]);
    message[16..20].copy_from_slice(&profile.address().octets());
    message[20..24].copy_from_slice(&profile.server().octets());
    message[28..44].copy_from_slice(&question[28..44]);
    let file = profile.file().as_str().as_bytes();
    message[108..108 + file.len()].copy_from_slice(file);
    let mut bytes = message.to_vec();
    bytes.extend(COOKIE);
    bytes.extend([MESSAGE_TYPE, 1, kind]);
    let mut option = |code: u8, value: [u8; 4]| {
        bytes.extend([code, 4]);
        bytes.extend(value);
    };
    option(SERVER, profile.server().octets());
    option(LEASE_SECONDS, FOR_EVER);
    option(MASK, profile.mask().octets());
    profile.gateway().into_iter().for_each(|gateway| option(ROUTER, gateway.octets()));
    bytes.push(END);
    bytes.resize(bytes.len().max(MESSAGE_BYTES_MIN), PAD);
    in_frame(profile.server(), &bytes)
}

/// A message to whoever listens at the client's port.
fn in_frame(from: Ipv4Addr, message: &[u8]) -> Vec<u8> {
    let udp_bytes = (UDP_BYTES + message.len()) as u16;
    let mut header = [0; IPV4_BYTES];
    header[0] = 0x45;
    header[2..4].copy_from_slice(&(IPV4_BYTES as u16 + udp_bytes).to_be_bytes());
    header[8..10].copy_from_slice(&[64, UDP]);
    header[12..16].copy_from_slice(&from.octets());
    header[16..20].copy_from_slice(&Ipv4Addr::BROADCAST.octets());
    let sum = offload::checksum(&header);
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    let mut frame = [BROADCAST, ANSWERER].concat();
    frame.extend(IPV4.to_be_bytes());
    frame.extend(header);
    // UDP needs no checksum over IPv4 (RFC 768).
    for word in [SERVER_PORT, CLIENT_PORT, udp_bytes, 0] {
        frame.extend(word.to_be_bytes());
    }
    frame.extend(message);
    frame
}

/// What a port with a profile has to say.
#[derive(Debug)]
pub(crate) struct Answerer {
    profile: BootProfile,
    mac: MacAddress,
    /// For the guest, when its batch is done with.
    answers: Vec<Vec<u8>>,
}

impl Answerer {
    pub(crate) fn new(profile: BootProfile, mac: MacAddress) -> Answerer {
        Answerer { profile, mac, answers: Vec::new() }
    }

    /// Whether a frame is for the port, which then goes no further.
    pub(crate) fn hear(&mut self, frame: &[u8]) -> bool {
        match hear(&self.profile, self.mac, frame) {
            Heard::Other => false,
            Heard::Unanswered => true,
            Heard::Answered(answer) => {
                self.answers.push(answer);
                true
            }
        }
    }
}

impl Forwarder {
    /// Gives the guest at a place what its port has to say to it.
    #[cold]
    pub(crate) fn answer(&mut self, place: PlaceIndex) {
        match self.port(place).map(Port::answer) {
            Some(Ok(backlog)) => self.note_backlog(place, backlog),
            Some(Err(fault)) => self.lose(place, fault),
            None => {}
        }
    }
}

impl Port {
    /// Gives the guest what its port has to say. An answer for which there is no room is lost, and asked for again.
    fn answer(&mut self) -> Result<Backlog, PeerFault> {
        let answerer = self.answerer.as_mut();
        let answers = answerer.map(|answerer| std::mem::take(&mut answerer.answers));
        let answers = answers.unwrap_or_default();
        if answers.is_empty() {
            return Ok(self.backlog);
        }
        self.prepare(answers.len())?;
        for answer in &answers {
            let view = offload::plain(answer);
            if let Some(capture) = &mut self.capture {
                capture.frame(&view);
            }
            match self.put(&view)? {
                Put::Done => {
                    self.count(Counter::InOctets, view.octets.into());
                    self.count(Counter::InOtherLocal, 1);
                }
                Put::NoRoom | Put::TooLong => {
                    self.count(Counter::NoRoom, 1);
                }
            }
        }
        let backlog = self.flush()?;
        self.flush_capture();
        Ok(backlog)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hpvm_model::LanBoot;
    use proptest::prelude::*;

    const MAC: [u8; 6] = [0x56, 0, 0, 0, 0, 1];

    fn profile() -> BootProfile {
        let text = "192.0.2.7/26,gateway=192.0.2.62,server=203.0.113.1,file=boot/hpvm.efi";
        match text.parse() {
            Ok(LanBoot::Profile(profile)) => profile,
            other => panic!("{other:?}"),
        }
    }

    fn question(kind: u8, class: &[u8], mac: [u8; 6]) -> Vec<u8> {
        let mut message = vec![0; MESSAGE_BYTES];
        message[..3].copy_from_slice(&[REQUEST, 1, 6]);
        message[4..8].copy_from_slice(&[9, 8, 7, 6]);
        message[28..34].copy_from_slice(&mac);
        message.extend(COOKIE);
        message.extend([PAD, MESSAGE_TYPE, 1, kind, CLASS, class.len() as u8]);
        message.extend(class);
        message.push(END);
        let mut frame = in_frame(Ipv4Addr::UNSPECIFIED, &message);
        frame[6..12].copy_from_slice(&mac);
        // From the client's port to the server's.
        frame[34..38].copy_from_slice(&[0, 68, 0, 67]);
        frame
    }

    fn heard(frame: &[u8]) -> Heard {
        hear(&profile(), MacAddress::new(MAC), frame)
    }

    const PXE: &[u8] = b"PXEClient:Arch:00007:UNDI:003001";

    #[test]
    fn the_firmware_is_told_what_the_profile_says() {
        for (asked, answered) in [(DISCOVER, OFFER), (ASKS_FOR, ACK)] {
            let Heard::Answered(frame) = heard(&question(asked, PXE, MAC)) else {
                panic!("no answer")
            };
            let header: [u8; IPV4_BYTES] = frame[14..34].try_into().unwrap();
            assert_eq!(offload::checksum(&header), 0);
            assert_eq!(usize::from(u16::from_be_bytes([frame[16], frame[17]])), frame.len() - 14);
            assert_eq!(frame[34..38], [0, 67, 0, 68]);
            let message = &frame[42..];
            assert_eq!(
                (message[0], &message[4..8], &message[28..34]),
                (REPLY, &[9, 8, 7, 6][..], &MAC[..])
            );
            assert_eq!(message[16..24], [192, 0, 2, 7, 203, 0, 113, 1]);
            assert!(message[108..].starts_with(b"boot/hpvm.efi\0"));
            let mut wanted =
                vec![MESSAGE_TYPE, 1, answered, SERVER, 4, 203, 0, 113, 1, LEASE_SECONDS, 4];
            wanted.extend([255, 255, 255, 255, MASK, 4, 255, 255, 255, 192]);
            wanted.extend([ROUTER, 4, 192, 0, 2, 62, END]);
            assert!(message[240..].starts_with(&wanted), "{:?}", &message[240..]);
        }
    }

    #[test]
    fn what_is_not_the_firmwares_goes_its_way() {
        let mut tagged = question(DISCOVER, PXE, MAC);
        tagged.splice(12..12, [0x81, 0, 0, 5]);
        let mut to_one = question(DISCOVER, PXE, MAC);
        to_one[..6].copy_from_slice(&[2, 0, 0, 0, 0, 9]);
        let mut to_name_server = question(DISCOVER, PXE, MAC);
        to_name_server[37] = 53;
        for (what, frame) in [
            ("an operating system", question(DISCOVER, b"linux", MAC)),
            ("another card's", question(DISCOVER, PXE, [0x56, 0, 0, 0, 0, 2])),
            ("in a VLAN", tagged),
            ("to a station", to_one),
            ("to another service", to_name_server),
        ] {
            assert_eq!(heard(&frame), Heard::Other, "{what}");
        }
        assert_eq!(heard(&question(DISCOVER, b"HTTPClient:Arch:00016", MAC)), Heard::Unanswered);
        assert_eq!(heard(&question(7, PXE, MAC)), Heard::Unanswered);
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..80), at in 0usize..300, cut in 0usize..300) {
            let mut frame = question(DISCOVER, PXE, MAC);
            let end = frame.len().min(at + bytes.len());
            let at = at.min(end);
            frame[at..end].copy_from_slice(&bytes[..end - at]);
            frame.truncate(cut.max(14));
            heard(&frame);
        }
    }
}
