//! Work a sender left to be done: whether what its header says of the frame is true, and doing it for a receiver that does
//! not (virtio 1.2, 5.1.6.2). Pure.
//!
//! Between AVIO guests, and towards a wire, the header travels with the frame and nothing is done here.

use crate::avio::Put;
use crate::features::Offloads;
use crate::frame::View;
use crate::packet::{self, IPV4, IPV6, Network, TCP, Transport, UDP};
use crate::wire::OffloadHeader;

/// What a frame needs and a receiver takes, as masks: a frame passes as it is when it needs nothing that is not taken.
pub(crate) const CHECKSUM: u8 = 1;
const SEGMENTS_IPV4: u8 = 2;
const SEGMENTS_IPV6: u8 = 4;
const SEGMENTS_ECN: u8 = 8;
/// Nobody takes these: no driver was offered them, and older kernels know no such header.
const SEGMENTS_UDP: u8 = 16;

/// Into so many pieces a frame is cut at most. Linux makes fewer than 750 of 64 KiB by itself (its shortest are of 88 bytes,
/// `TCP_MIN_MSS`); a byte apiece would keep everybody's switch busy.
const PIECES_MAX: u32 = 1024;
const TCP_CHECKSUM_OFFSET: u16 = 16;
const UDP_CHECKSUM_OFFSET: u16 = 6;
const UDP_HEADER_BYTES: usize = 8;
const TCP_FIN: u8 = 0x01;
const TCP_PUSH: u8 = 0x08;
const TCP_CONGESTION_REDUCED: u8 = 0x80;

/// What a receiver takes, as a mask.
pub(crate) fn mask(takes: Offloads) -> u8 {
    let bit = |taken: bool, bit: u8| if taken { bit } else { 0 };
    bit(takes.checksum, CHECKSUM)
        | bit(takes.segmentation_ipv4, SEGMENTS_IPV4)
        | bit(takes.segmentation_ipv6, SEGMENTS_IPV6)
        | bit(takes.segmentation_ecn, SEGMENTS_ECN)
}

/// What a frame with such a header needs, or none if the header contradicts the frame. `head`: its first bytes.
pub(crate) fn judge(header: &OffloadHeader, head: &[u8], octets: u32) -> Option<u8> {
    let mut needs = if header.flags == 0 { 0 } else { CHECKSUM };
    if header.flags & OffloadHeader::NEEDS_CHECKSUM != 0 {
        let start = u32::from(header.checksum_start);
        let end = start + u32::from(header.checksum_offset) + 2;
        if start < 14 || end > octets {
            return None;
        }
    }
    if header.gso_type == OffloadHeader::GSO_NONE {
        return Some(needs);
    }
    let (network, transport) = packet::transport(head)?;
    let (bit, checksum_offset) = match (header.gso_type, network.ethertype, transport.protocol) {
        (OffloadHeader::GSO_UDP, IPV4 | IPV6, UDP) => (SEGMENTS_UDP, UDP_CHECKSUM_OFFSET),
        (gso, ethertype, TCP) => match (gso & !OffloadHeader::GSO_ECN, ethertype) {
            (OffloadHeader::GSO_TCP_IPV4, IPV4) => (SEGMENTS_IPV4, TCP_CHECKSUM_OFFSET),
            (OffloadHeader::GSO_TCP_IPV6, IPV6) => (SEGMENTS_IPV6, TCP_CHECKSUM_OFFSET),
            _ => return None,
        },
        _ => return None,
    };
    let whole = !transport.later_fragment
        && header.segment_size > 0
        && header.flags & OffloadHeader::NEEDS_CHECKSUM != 0
        && usize::from(header.checksum_start) == transport.start
        && header.checksum_offset == checksum_offset
        && data_start(head, transport)
            .and_then(|bytes| octets.checked_sub(bytes as u32))
            .is_some_and(|data| data.div_ceil(header.segment_size.into()) <= PIECES_MAX);
    if header.gso_type & OffloadHeader::GSO_ECN != 0 {
        needs |= SEGMENTS_ECN;
    }
    whole.then_some(needs | bit)
}

/// Where the data of TCP or UDP begin.
fn data_start(head: &[u8], transport: Transport) -> Option<usize> {
    let header_bytes = match transport.protocol {
        UDP => UDP_HEADER_BYTES,
        _ => 4 * usize::from(head.get(transport.start + 12)? >> 4),
    };
    let end = transport.start + header_bytes;
    let is_whole = transport.protocol == UDP || header_bytes >= 20;
    (is_whole && head.len() >= end).then_some(end)
}

/// Does for a receiver what it does not take, in memory of its own.
#[derive(Debug, Default)]
pub(crate) struct Finisher {
    whole: Vec<u8>,
    segment: Vec<u8>,
}

impl Finisher {
    /// Hands on the frames that the receiver gets instead of this one, which needs more than it takes, until it does not
    /// take one.
    pub(crate) fn finish<E>(
        &mut self,
        view: &View<'_>,
        takes: u8,
        mut hand_on: impl FnMut(&View<'_>) -> Result<Put, E>,
    ) -> Result<(), E> {
        self.whole.clear();
        view.append_to(&mut self.whole);
        let header = view.header;
        let gso = match header.gso_type & !OffloadHeader::GSO_ECN {
            OffloadHeader::GSO_TCP_IPV4 => SEGMENTS_IPV4,
            OffloadHeader::GSO_TCP_IPV6 => SEGMENTS_IPV6,
            OffloadHeader::GSO_UDP => SEGMENTS_UDP,
            _ => 0,
        };
        let ecn = header.gso_type & OffloadHeader::GSO_ECN != 0 && takes & SEGMENTS_ECN == 0;
        if gso != 0 && (gso & !takes != 0 || ecn || takes & CHECKSUM == 0) {
            return self.segments(&header, hand_on);
        }
        if header.flags & OffloadHeader::NEEDS_CHECKSUM != 0 {
            fill_checksum(&mut self.whole, header.checksum_start, header.checksum_offset);
        }
        hand_on(&plain(&self.whole)).map(drop)
    }

    /// Cuts long TCP and UDP segments as a network card would: the headers before each piece, with length, identification,
    /// sequence number, flags and checksums of its own.
    fn segments<E>(
        &mut self,
        header: &OffloadHeader,
        mut hand_on: impl FnMut(&View<'_>) -> Result<Put, E>,
    ) -> Result<(), E> {
        let Some((network, transport)) = packet::transport(&self.whole) else { return Ok(()) };
        let Some(data) = data_start(&self.whole, transport) else { return Ok(()) };
        let (headers, payload) = self.whole.split_at(data);
        let identification = packet::word(headers, network.start + 4).unwrap_or(0);
        let size = usize::from(header.segment_size);
        let count = payload.len().div_ceil(size).max(1);
        for index in 0..count {
            let from = index * size;
            let piece = &payload[from..payload.len().min(from + size)];
            self.segment.clear();
            self.segment.extend_from_slice(headers);
            self.segment.extend_from_slice(piece);
            let segment = &mut self.segment;
            let network_bytes = (segment.len() - network.start) as u16;
            match network.ethertype {
                IPV4 => {
                    put_word(segment, network.start + 2, network_bytes);
                    let own = identification.wrapping_add(index as u16);
                    put_word(segment, network.start + 4, own);
                    put_word(segment, network.start + 10, 0);
                    let sum = checksum(&segment[network.start..transport.start]);
                    put_word(segment, network.start + 10, sum);
                }
                _ => put_word(segment, network.start + 4, network_bytes - 40),
            }
            let checksum_offset = match transport.protocol {
                UDP => {
                    let bytes = (segment.len() - transport.start) as u16;
                    put_word(segment, transport.start + 4, bytes);
                    UDP_CHECKSUM_OFFSET
                }
                _ => {
                    let place = Place { from: from as u32, is_last: index + 1 == count };
                    place.put_into(&mut segment[transport.start..]);
                    TCP_CHECKSUM_OFFSET
                }
            };
            // The sender put the sum of the pseudo header there, with the whole length; ours is made anew.
            let pseudo = pseudo_sum(segment, network, transport);
            let start = transport.start;
            put_word(segment, start + usize::from(checksum_offset), fold(pseudo));
            fill_checksum(segment, start as u16, checksum_offset);
            if hand_on(&plain(segment))? != Put::Done {
                break;
            }
        }
        Ok(())
    }
}

/// Where in the whole a piece of a TCP segment is.
#[derive(Clone, Copy, Debug)]
struct Place {
    from: u32,
    is_last: bool,
}

impl Place {
    fn put_into(self, tcp: &mut [u8]) {
        let sequence = number(tcp, 4).wrapping_add(self.from);
        tcp[4..8].copy_from_slice(&sequence.to_be_bytes());
        if !self.is_last {
            tcp[13] &= !(TCP_FIN | TCP_PUSH);
        }
        if self.from > 0 {
            tcp[13] &= !TCP_CONGESTION_REDUCED;
        }
    }
}

/// A frame with nothing left to do.
pub(crate) fn plain(frame: &[u8]) -> View<'_> {
    View { header: OffloadHeader::default(), head: frame, tail: &[], octets: frame.len() as u32 }
}

/// Sums from `start` on and puts the result where it belongs; the sum of the pseudo header is there already.
fn fill_checksum(frame: &mut [u8], start: u16, offset: u16) {
    let at = usize::from(start) + usize::from(offset);
    if at + 2 > frame.len() {
        return;
    }
    let mut checksum = checksum(&frame[usize::from(start)..]);
    // In UDP zero says that there is no checksum (RFC 768).
    if checksum == 0 && offset == UDP_CHECKSUM_OFFSET {
        checksum = 0xffff;
    }
    put_word(frame, at, checksum);
}

/// The sum over addresses, protocol and length (RFC 9293, 3.1; RFC 8200, 8.1).
fn pseudo_sum(segment: &[u8], network: Network, transport: Transport) -> u64 {
    let addresses = match network.ethertype {
        IPV4 => network.start + 12..network.start + 20,
        _ => network.start + 8..network.start + 40,
    };
    let length = (segment.len() - transport.start) as u64;
    sum(&segment[addresses], u64::from(transport.protocol) + length)
}

/// Adds big-endian words, the last one filled up with zero (RFC 1071), to a sum.
fn sum(bytes: &[u8], start: u64) -> u64 {
    let mut words = bytes.chunks_exact(4);
    let mut total = start;
    for word in &mut words {
        total += u64::from(u32::from_be_bytes([word[0], word[1], word[2], word[3]]));
    }
    let mut last = [0; 4];
    last[..words.remainder().len()].copy_from_slice(words.remainder());
    total + u64::from(u32::from_be_bytes(last))
}

/// The Internet checksum of some bytes (RFC 1071).
pub(crate) fn checksum(bytes: &[u8]) -> u16 {
    !fold(sum(bytes, 0))
}

fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

fn put_word(bytes: &mut [u8], at: usize, word: u16) {
    bytes[at..at + 2].copy_from_slice(&word.to_be_bytes());
}

fn number(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn tcp_frame(ethertype: u16, tag: bool, data: &[u8]) -> (Vec<u8>, OffloadHeader, usize) {
        let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1];
        if tag {
            frame.extend([0x81, 0, 0, 7]);
        }
        frame.extend(ethertype.to_be_bytes());
        let network = frame.len();
        let length = (20 + data.len()) as u16;
        if ethertype == IPV4 {
            frame.extend([0x45, 0]);
            frame.extend((length + 20).to_be_bytes());
            frame.extend([0xff, 0xff, 0x40, 0, 64, TCP, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        } else {
            frame.extend([0x60, 0, 0, 0]);
            frame.extend(length.to_be_bytes());
            frame.extend([TCP, 64]);
            frame.extend([0xfd; 32]);
        }
        let tcp = frame.len();
        frame
            .extend([0, 1, 0, 2, 0xff, 0xff, 0xff, 0xf0, 0, 0, 0, 0, 0x50, 0x99, 1, 0, 0, 0, 0, 0]);
        frame.extend(data);
        let (of_network, of_transport) = packet::transport(&frame).expect("TCP");
        let pseudo = fold(pseudo_sum(&frame, of_network, of_transport));
        put_word(&mut frame, tcp + 16, pseudo);
        let header = OffloadHeader {
            flags: OffloadHeader::NEEDS_CHECKSUM,
            gso_type: if ethertype == IPV4 { 1 } else { 4 } | OffloadHeader::GSO_ECN,
            header_length: (tcp + 20) as u16,
            segment_size: 100,
            checksum_start: tcp as u16,
            checksum_offset: TCP_CHECKSUM_OFFSET,
        };
        (frame, header, network)
    }

    #[test]
    fn a_frame_has_so_many_pieces_and_no_more_than_its_receiver_takes() {
        let (frame, header, _) = tcp_frame(IPV4, false, &[7; 65_000]);
        let needs = |segment_size: u16| {
            let header = OffloadHeader { segment_size, ..header };
            judge(&header, &frame[..128], frame.len() as u32)
        };
        assert_eq!([0, 1, 63].map(needs), [None; 3]);
        assert!([64, 88, u16::MAX].map(needs).iter().all(Option::is_some));
        let mut pieces = 0;
        let finished = Finisher::default().finish(&View { header, ..plain(&frame) }, 0, |_| {
            pieces += 1;
            Ok::<_, ()>(if pieces < 5 { Put::Done } else { Put::NoRoom })
        });
        assert_eq!((finished, pieces), (Ok(()), 5));
    }

    /// Lengths and checksums are those of the piece.
    fn assert_is_sound(piece: &[u8], network: usize, transport: usize) {
        let (of_network, of_transport) = packet::transport(piece).expect("as before");
        let pseudo = pseudo_sum(piece, of_network, of_transport);
        assert_eq!(fold(pseudo + sum(&piece[transport..], 0)), 0xffff, "the transport's checksum");
        let length = |at: usize| packet::word(piece, at).map(usize::from);
        if of_network.ethertype == IPV4 {
            assert_eq!(fold(sum(&piece[network..transport], 0)), 0xffff, "IPv4's checksum");
            assert_eq!(length(network + 2), Some(piece.len() - network));
        } else {
            assert_eq!(length(network + 4), Some(piece.len() - transport));
        }
        if of_transport.protocol == UDP {
            assert_eq!(length(transport + 4), Some(piece.len() - transport));
        }
    }

    /// As a kernel hands several datagrams at once to a packet socket.
    fn udp_frame(ethertype: u16, tag: bool, data: &[u8]) -> (Vec<u8>, OffloadHeader, usize) {
        let (mut frame, tcp, network) = tcp_frame(ethertype, tag, &[]);
        let start = usize::from(tcp.checksum_start);
        frame.truncate(start);
        let (protocol_at, length_at, ip_bytes) = match ethertype {
            IPV4 => (network + 9, network + 2, 20),
            _ => (network + 6, network + 4, 0),
        };
        frame[protocol_at] = UDP;
        let length = (UDP_HEADER_BYTES + data.len()) as u16;
        put_word(&mut frame, length_at, ip_bytes + length);
        frame.extend([0, 1, 0, 2]);
        frame.extend(length.to_be_bytes());
        frame.extend([0, 0]);
        frame.extend(data);
        let header = OffloadHeader {
            gso_type: OffloadHeader::GSO_UDP,
            header_length: (start + UDP_HEADER_BYTES) as u16,
            checksum_offset: UDP_CHECKSUM_OFFSET,
            ..tcp
        };
        (frame, header, network)
    }

    proptest! {
        #[test]
        fn datagrams_that_were_handed_over_at_once_are_parted(
            data in prop::collection::vec(any::<u8>(), 1..5000),
            size in 5u16..1500, v6: bool, tag: bool,
        ) {
            let (frame, mut header, network) = udp_frame(if v6 { IPV6 } else { IPV4 }, tag, &data);
            header.segment_size = size;
            let needs = judge(&header, &frame[..frame.len().min(128)], frame.len() as u32);
            prop_assert_eq!(needs, Some(CHECKSUM | SEGMENTS_UDP));
            let (start, mut datagrams) = (usize::from(header.checksum_start), Vec::new());
            let all = mask(Offloads::all());
            prop_assert_eq!(needs.unwrap_or(0) & !all, SEGMENTS_UDP, "not even a wire takes them");
            let finished = Finisher::default().finish(&View { header, ..plain(&frame) }, all, |piece| {
                assert_eq!(piece.header, OffloadHeader::default());
                assert_is_sound(piece.head, network, start);
                datagrams.push(piece.head[start + UDP_HEADER_BYTES..].to_vec());
                Ok::<_, ()>(Put::Done)
            });
            prop_assert_eq!(finished, Ok(()));
            let expected: Vec<Vec<u8>> = data.chunks(size.into()).map(<[u8]>::to_vec).collect();
            prop_assert_eq!(datagrams, expected);
        }

        #[test]
        fn what_was_cut_is_whole_again(
            data in prop::collection::vec(any::<u8>(), 0..5000),
            size in 5u16..1500, v6: bool, tag: bool,
        ) {
            let ethertype = if v6 { IPV6 } else { IPV4 };
            let (frame, mut header, network) = tcp_frame(ethertype, tag, &data);
            header.segment_size = size;
            let needs = judge(&header, &frame[..frame.len().min(128)], frame.len() as u32);
            let needs = needs.expect("a true header");
            prop_assert_ne!(needs & CHECKSUM, 0);
            let view = View { header, ..plain(&frame) };
            let (mut gathered, mut flags) = (Vec::new(), Vec::new());
            let tcp = usize::from(header.checksum_start);
            let finished = Finisher::default().finish(&view, 0, |piece| {
                let bytes = piece.head;
                assert_eq!(piece.header, OffloadHeader::default());
                assert!(bytes.len() <= tcp + 20 + usize::from(size));
                assert_is_sound(bytes, network, tcp);
                let at = number(bytes, tcp + 4).wrapping_sub(0xffff_fff0) as usize;
                assert_eq!(at, gathered.len());
                gathered.extend_from_slice(&bytes[tcp + 20..]);
                flags.push(bytes[tcp + 13]);
                Ok::<_, ()>(Put::Done)
            });
            prop_assert_eq!(finished, Ok(()));
            prop_assert_eq!(&gathered, &data);
            prop_assert_eq!(flags[0] & TCP_CONGESTION_REDUCED, TCP_CONGESTION_REDUCED);
            let ends = flags.iter().filter(|flags| *flags & (TCP_FIN | TCP_PUSH) != 0).count();
            prop_assert_eq!(ends, 1);
        }

        #[test]
        fn no_header_makes_the_judge_or_the_finisher_panic(
            head in prop::collection::vec(any::<u8>(), 14..200), bytes: [u8; 10], likely: bool, udp: bool,
        ) {
            let mut header = OffloadHeader::from_bytes(bytes);
            let made = if udp { udp_frame } else { tcp_frame };
            let (frame, true_header, _) = made(IPV4, false, &head);
            let frame = if likely { frame } else { head };
            if likely {
                header = OffloadHeader { segment_size: header.segment_size, gso_type: header.gso_type, ..true_header };
            }
            let first = &frame[..frame.len().min(128)];
            if judge(&header, first, frame.len() as u32).is_some() {
                let view = View { header, ..plain(&frame) };
                let _ = Finisher::default().finish(&view, 0, |_| Ok::<_, ()>(Put::Done));
            }
        }
    }
}
